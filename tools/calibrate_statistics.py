"""Check the statistics by simulation: error, power, coverage. Prints the tables of docs/statistics.md.

What: thousands of simulated ablations whose truth is known go through the very functions that a
report uses (`comparison.compare`, `sequential.decide`, `factorial.effects`, ...), and the share of
right and wrong verdicts is counted. What the rooms promise is checked at the end; a broken promise
ends the program with exit code 1.

Noise, always with mean 0 and sd 1 in a paired difference: `normal`; `heavy`, Student's t with 3
degrees of freedom; `skewed`, exponential minus 1. An ablation has a baseline and variants: a score is
seed + effect + noise, so that differences share the baseline's noise, and the difference of two skewed
scores is symmetric. "Differences skewed" draws the differences themselves: no real pair of arms with
alike noise does that; it breaks the one assumption of the sign-flip test on purpose.

Command (one core)::

    python tools/calibrate_statistics.py
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from comkd_ray import across_datasets, comparison, factorial, planner, sequential
from comkd_ray.comparison import Claim
from comkd_ray.stats import estimate

Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, tuple[int, ...]], Array]

NOISE: dict[str, Noise] = {
    "normal": lambda draw, shape: draw.standard_normal(shape),
    "heavy": lambda draw, shape: draw.standard_t(3, shape) / math.sqrt(3),
    "skewed": lambda draw, shape: draw.exponential(1.0, shape) - 1.0,
}
BROKEN: list[str] = []


def at_most(limit: float, count: int) -> float:
    """A limit plus two binomial standard errors: what an exact rule may show in `count` simulations."""
    return limit + 2 * math.sqrt(limit * (1 - limit) / count)


def promise(kept: bool, words: str) -> None:
    """Note a promise that the numbers do not keep."""
    if not kept:
        BROKEN.append(words)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table; a float is a share, shown in percent."""
    print(f"\n### {title}\n")
    for row in (head, ["---"] * len(head), *rows):
        cells = (f"{100 * cell:.1f} %" if isinstance(cell, float) else str(cell) for cell in row)
        print(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


def ablations(
    draw: np.random.Generator, noise: Noise, count: int, n: int, effects: Sequence[float]
) -> list[list[Claim]]:
    """Families of claims, one a variant: variant - baseline over n seeds; effects in sd of a difference."""
    scores = noise(draw, (count, n, 1 + len(effects))) / math.sqrt(2)
    scores += 3 * draw.standard_normal((count, n, 1))  # what all arms of a seed share
    differences = scores[:, :, 1:] - scores[:, :, :1] + np.asarray(effects)
    return [
        [Claim(f"claim {k}", tuple(values)) for k, values in enumerate(one.T.tolist())] for one in differences
    ]


def share(hits: Sequence[bool]) -> float:
    """Share of true ones."""
    return float(np.mean(hits))


def error_of_verdicts(draw: np.random.Generator, count: int) -> None:
    """Null ablations: how often is anything supported, or refuted?"""
    rows = []
    for name, noise in NOISE.items():
        for n in (6, 8, 12):
            row: list[object] = [name, n]
            for claims in (1, 3):
                families = map(comparison.compare, ablations(draw, noise, count, n, [0.0] * claims))
                found = [{one.verdict for one in family} for family in families]
                supported = share(["supported" in verdicts for verdicts in found])
                promise(supported <= 0.05, f"null, {name}, n {n}: supported {supported:.3f}")
                row += [supported, share([bool(verdicts - {"not decidable"}) for verdicts in found])]
            rows.append(row)
    for n in (6, 8, 12):
        values = NOISE["skewed"](draw, (count, n))
        found = [{comparison.compare([Claim("", tuple(row))])[0].verdict} for row in values.tolist()]
        rows.append(
            [
                "differences skewed",
                n,
                share(["supported" in verdicts for verdicts in found]),
                share([bool(verdicts - {"not decidable"}) for verdicts in found]),
                "",
                "",
            ]
        )
    head = [
        "noise",
        "n",
        "1 claim: supported",
        "supported or refuted",
        "3 claims: any supported",
        "any of both",
    ]
    table("Without any effect: share of ablations with a verdict", head, rows)


def power_of_verdicts(draw: np.random.Generator, count: int) -> None:
    """True effects: share supported, against what the planner foretold."""
    rows = []
    for claims in (1, 3):
        for n in (6, 8, 12, 16):
            for effect in (0.5, 1.0, 2.0):
                foretold = planner.power(effect, n, claims)
                row: list[object] = [claims, n, f"{effect:g}", foretold]
                for name in NOISE:
                    if name != "normal" and (claims > 1 or n > 12):
                        row.append("")
                        continue
                    effects = [effect] + [0.0] * (claims - 1)
                    families = ablations(draw, NOISE[name], count if n <= 12 else count // 4, n, effects)
                    found = share([comparison.compare(one)[0].verdict == "supported" for one in families])
                    if name == "normal" and n <= 12:
                        promise(abs(found - foretold) <= 0.05, f"power {claims} {n} {effect}: {found:.3f}")
                    row.append(found)
                rows.append(row)
    head = ["claims", "n", "effect, sd", "foretold", *NOISE]
    table("One true effect: share supported (the family's other claims are null)", head, rows)


def coverage(draw: np.random.Generator, count: int) -> None:
    """How often the 95 % intervals hold the true mean."""
    rows = []
    for n in (3, 5, 6, 8, 12, 20, 40):
        row: list[object] = [n]
        for name, noise in NOISE.items():
            student, bca = [], []
            for values in noise(draw, (count, n)).tolist():
                found, interval = estimate(values), comparison.bca(values)
                assert found
                assert interval
                student.append(covers(found))
                bca.append(interval[0] <= 0 <= interval[1])
            if name == "normal":
                promise(0.93 <= share(student) <= 0.97, f"t-interval, n {n}: {share(student):.3f}")
            row += [share(student), share(bca)]
        rows.append(row)
    head = ["n", *(f"{name}: {kind}" for name in NOISE for kind in ("t", "BCa"))]
    table("95 % intervals of a mean difference: share that hold the truth", head, rows)


def until_decided(claims: list[Claim], most: int) -> list[sequential.Question]:
    """What `--until-decided` does: one more seed for the open claims, a look after each."""
    seen = {claim.name: 1 for claim in claims}
    while True:
        so_far = [claim._replace(differences=claim.differences[: seen[claim.name]]) for claim in claims]
        questions = sequential.decide(so_far, max(seen.values()) < most)
        still_open = [question.claim for question in questions if question.standing == "open"]
        if not still_open:
            return questions
        for name in still_open:
            seen[name] += 1


def sequential_rule(draw: np.random.Generator, count: int) -> None:
    """Error over all looks, power and seeds used; beside it, a test after every seed."""
    rows = []
    for name in NOISE:
        for claims in (1, 3):
            families = ablations(draw, NOISE[name], count, 20, [0.0] * claims)
            found = [until_decided(one, 20) for one in families]
            wrong = share([any(q.standing in ("supported", "refuted") for q in one) for one in found])
            promise(wrong <= 0.05, f"sequential, {name}, {claims} claims: {wrong:.3f}")
            peeks = []
            if claims == 1:
                values = np.array([one[0].differences for one in families])
                looks = [planner.sign_flip_p_rows(values[:, :n]) for n in range(6, 17)]
                peeks = [float((np.min(looks, axis=0) < planner.LEVEL).mean())]
            rows.append([name, claims, wrong, *peeks] if peeks else [name, claims, wrong, ""])
    head = ["noise", "claims", "any verdict by n = 20", "a plain test after every seed from 6 to 16"]
    table("Adding seeds without any effect: share of ablations with a verdict", head, rows)
    rows = []
    for most in (12, 20):
        for effect in (0.5, 1.0, 1.5, 2.0):
            families = ablations(draw, NOISE["normal"], count, most, [effect])
            found = [until_decided(one, most)[0] for one in families]
            right = share([question.standing == "supported" for question in found])
            used = np.mean([question.n for question in found])
            rows.append([most, f"{effect:g}", right, f"{used:.1f}", planner.power(effect, most)])
    head = ["max seeds", "effect, sd", "supported", "mean seeds used", "one test at max seeds (foretold)"]
    table("Adding seeds with one true effect, normal noise", head, rows)


def further_seeds(draw: np.random.Generator, count: int) -> None:
    """A pilot names further seeds; the claim is tested again, once, with all of them."""
    rows = []
    for pilot in (3, 6):
        for effect in (0.0, 1.0, 2.0):
            needed, verdicts = [], []
            for one in ablations(draw, NOISE["normal"], count // 4, 40, [effect]):
                values = one[0].differences
                first = comparison.compare([Claim("", values[:pilot])])[0]
                more = math.inf if first.further_seeds is None else first.further_seeds
                needed.append(more)
                last = values[: pilot + int(min(more, 40 - pilot))]
                verdicts.append(comparison.compare([Claim("", last)])[0].verdict)
            low, middle, high = np.quantile(needed, [0.25, 0.5, 0.75], method="nearest")
            decided = share([verdict != "not decidable" for verdict in verdicts])
            rows.append([pilot, f"{effect:g}", f"{middle:g}", f"{low:g} to {high:g}", decided])
    head = ["pilot seeds", "true effect, sd", "further seeds, median", "quartiles", "decided afterwards"]
    table("The number of further seeds that a pilot names (at most 40 in all)", head, rows)


def factorials(draw: np.random.Generator, count: int) -> None:
    """2^3 grids over 8 seeds: coverage of effects and Shapley values; error over all six effects."""
    rows = []
    for name, noise in NOISE.items():
        held, shapley, wrong = [], [], []
        for _ in range(count):
            scores = noise(draw, (8, 2, 2, 2)) + 3 * draw.standard_normal((8, 1, 1, 1))
            grid = factorial.Grid(("a", "b", "c"), ((False, True),) * 3, tuple(range(8)), scores)
            effects = factorial.effects(grid)
            wrong.append(any(effect.p_holm < planner.LEVEL for effect in effects))
            held += [covers(effect.estimate) for effect in effects]
            shapley += [covers(part.estimate) for part in factorial.shapley(grid)]
        promise(share(wrong) <= at_most(0.05, count), f"factorial, {name}: {share(wrong):.3f}")
        rows.append([name, share(held), share(shapley), share(wrong)])
    head = [
        "noise",
        "effects: t-interval holds 0",
        "Shapley: t-interval holds 0",
        "any of 6 effects significant",
    ]
    table("2x2x2 over 8 seeds without any effect", head, rows)


def covers(found: factorial.Estimate) -> bool:
    """Whether an interval holds zero."""
    return found.low is not None and found.high is not None and found.low <= 0 <= found.high


def several_datasets(draw: np.random.Generator, count: int) -> None:
    """4 methods on 11 data sets of unlike spread, none better: how often does anything differ?"""
    rows = []
    for name, noise in NOISE.items():
        friedman, pair = [], []
        for _ in range(count):
            values = noise(draw, (11, 4)) * draw.uniform(0.5, 3, (11, 1)) + 10 * draw.standard_normal((11, 1))
            ranks = across_datasets.rank(
                across_datasets.Scores(tuple(map(str, range(11))), tuple("abcd"), values)
            )
            friedman.append(ranks.friedman is not None and ranks.friedman[1] < planner.LEVEL)
            pair.append(any(one.p_holm < planner.LEVEL for one in ranks.pairs))
        promise(share(pair) <= at_most(0.05, count), f"data sets, {name}: {share(pair):.3f}")
        rows.append([name, share(friedman), share(pair)])
    head = ["noise", "Friedman p < 0.05", "any of 6 pairs significant (Wilcoxon, Holm)"]
    table("4 equal methods on 11 data sets", head, rows)


PARTS = {
    "error": error_of_verdicts,
    "power": power_of_verdicts,
    "coverage": coverage,
    "sequential": sequential_rule,
    "further-seeds": further_seeds,
    "factorial": factorials,
    "datasets": several_datasets,
}


def main() -> int:
    """Run the simulations that are asked for; 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all without")
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    begin = time.perf_counter()
    for number, (name, part) in enumerate(PARTS.items()):
        if name in (asked.parts or PARTS):  # each part has its own draws: alone it prints the same
            part(np.random.default_rng([asked.seed, number]), asked.simulations)
    took = time.perf_counter() - begin
    print(f"\n{asked.simulations} simulations a row, a quarter of that at n = 16 and for further seeds.")
    print(f"Seed {asked.seed}, {took:.0f} s.")
    print("\n".join(f"BROKEN: {words}" for words in BROKEN) or "Every promise was kept.")
    return 1 if BROKEN else 0


if __name__ == "__main__":
    raise SystemExit(main())
