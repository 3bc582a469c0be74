"""Methods over data sets: against scipy, scikit-posthocs and autorank, and at the edges."""

from __future__ import annotations

import math
import warnings
from itertools import combinations

import autorank
import numpy as np
import pandas
import polars as pl
import pytest
import scikit_posthocs
from scipy import stats as scipy_stats

from comkd_ray import across_datasets
from comkd_ray.across_datasets import Pair, Scores
from comkd_ray.errors import UserError

METHODS = ("PromptKD", "IFAlign", "EduAttention", "ComKD-CLIP")


def scores(datasets: int = 11, shifts: tuple[float, ...] = (0.0, 0.4, 0.1, 1.2), seed: int = 8) -> Scores:
    values = np.random.default_rng(seed).normal(0, 1, (datasets, len(shifts))) + shifts
    return Scores(tuple(f"d{k}" for k in range(datasets)), METHODS[: len(shifts)], 70 + values)


def test_friedman_is_that_of_scipy() -> None:
    one = scores()
    assert across_datasets.rank(one).friedman == pytest.approx(
        tuple(scipy_stats.friedmanchisquare(*one.values.T))
    )


def test_pairs_are_those_of_scikit_posthocs() -> None:
    one = scores()
    expected = scikit_posthocs.posthoc_wilcoxon(list(one.values.T), p_adjust="holm").to_numpy()
    place = {method: k for k, method in enumerate(METHODS)}
    pairs = across_datasets.rank(one).pairs
    assert len(pairs) == 6
    for pair in pairs:
        assert pair.p_holm == pytest.approx(expected[place[pair.first], place[pair.second]])


def test_ranks_and_friedman_are_those_of_autorank() -> None:
    one = scores()
    table = pandas.DataFrame(one.values, columns=METHODS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = autorank.autorank(table, alpha=0.05, force_mode="nonparametric")
    found = across_datasets.rank(one)
    assert found.friedman is not None
    assert found.friedman[1] == pytest.approx(expected.pvalue)
    for method, average in zip(found.methods, found.average_ranks, strict=True):
        assert average == pytest.approx(expected.rankdf.loc[method, "meanrank"])


@pytest.mark.parametrize("n", [1, 4, 6, 11])
def test_wilcoxon_is_that_of_scipy(n: int) -> None:
    values = np.random.default_rng(n).normal(0.5, 1, n)
    assert across_datasets.wilcoxon_p(values) == pytest.approx(scipy_stats.wilcoxon(values).pvalue)


def test_wilcoxon_with_ties_and_zeros_is_exact() -> None:
    """Fourteen equal gains and one loss: 32 of 2^15 patterns; scipy's approximation says 0.0008."""
    assert across_datasets.wilcoxon_p(np.array([1.0] * 14 + [-1.0] + [0.0] * 3)) == 32 / 2**15
    assert across_datasets.wilcoxon_p(np.zeros(5)) == 1.0


def test_rank_one_is_the_best_and_ties_share() -> None:
    one = Scores(("x", "y"), ("a", "b", "c"), np.array([[1.0, 3.0, 3.0], [1.0, 2.0, 5.0]]))
    found = across_datasets.rank(one)
    assert found.methods == ("c", "b", "a")
    assert found.average_ranks == (1.25, 1.75, 3.0)
    pair = found.pairs[0]
    assert (pair.first, pair.second, pair.mean_difference, pair.wins) == ("c", "b", 1.5, 1)


def test_a_clear_winner_stands_outside_the_bars() -> None:
    found = across_datasets.rank(scores(shifts=(0.0, 0.0, 0.0, 9.0), seed=1))
    assert found.methods[0] == "ComKD-CLIP"
    assert found.cliques == (tuple(found.methods[1:]),)


def test_cliques_are_all_largest_groups_without_a_difference() -> None:
    """Restated: every subset is tried, for random answers on the pairs of six methods."""
    methods = tuple("abcdef")
    draw = np.random.default_rng(1)
    for _ in range(30):
        edges = zip(combinations(methods, 2), draw.choice([0.01, 0.5], 15), strict=True)
        pairs = [Pair(a, b, 0.0, 0, p, p) for (a, b), p in edges]
        apart = {frozenset((pair.first, pair.second)) for pair in pairs if pair.p_holm < 0.05}
        groups = [
            set(group)
            for size in range(2, 7)
            for group in combinations(methods, size)
            if not any(frozenset(pair) in apart for pair in combinations(group, 2))
        ]
        expected = {tuple(sorted(one)) for one in groups if not any(one < other for other in groups)}
        found = across_datasets.cliques(methods, pairs)
        assert len(found) == len(expected)
        assert set(found) == expected


def test_two_methods_and_few_data_sets() -> None:
    two = across_datasets.rank(scores(shifts=(0.0, 3.0)))
    assert two.friedman is None
    assert two.pairs[0].p == two.pairs[0].p_holm == two.smallest_p == 2 / 2**11
    single = across_datasets.rank(scores(datasets=1))
    assert (single.friedman, single.smallest_p, {pair.p for pair in single.pairs}) == (None, 1.0, {1.0})
    assert single.cliques == (single.methods,)


def test_equal_methods_do_not_differ() -> None:
    found = across_datasets.rank(Scores(("x", "y", "z"), ("a", "b", "c"), np.full((3, 3), 70.0)))
    assert found.friedman == (0.0, 1.0)
    assert found.average_ranks == (2.0, 2.0, 2.0)
    assert found.cliques == (("a", "b", "c"),)


def test_friedman_frozen() -> None:
    """By hand, one order on three data sets: 12 / 36 * (3^2 + 6^2 + 9^2) - 36 = 6, and p = exp(-3)."""
    values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    assert across_datasets.friedman(values) == pytest.approx((6.0, math.exp(-3)))


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="at least one data set and two methods"):
        across_datasets.rank(Scores((), ("a", "b"), np.zeros((0, 2))))
    with pytest.raises(UserError, match="at least one data set and two methods"):
        across_datasets.rank(Scores(("x",), ("a",), np.zeros((1, 1))))
    with pytest.raises(UserError, match="b has no finite score on y"):
        across_datasets.rank(Scores(("x", "y"), ("a", "b"), np.array([[1, 2], [3, math.nan]])))


def test_rows_become_a_table_averaged_over_seeds() -> None:
    rows = pl.DataFrame(
        {
            "data.dataset": ["x", "x", "x", "y", "y"],
            "method": ["a", "a", "b", "b", "a"],
            "score": [1.0, 3.0, 5.0, 7.0, 9.0],
        }
    )
    found = across_datasets.scores_of(rows, "data.dataset", "method", "score")
    assert (found.datasets, found.methods) == (("x", "y"), ("a", "b"))
    assert found.values.tolist() == [[2.0, 5.0], [9.0, 7.0]]
    holed = rows.with_columns(score=pl.when(pl.col("score") < 7).then("score"))
    with pytest.raises(UserError, match="score: a has no score on y"):
        across_datasets.scores_of(holed, "data.dataset", "method", "score")
