"""What the `arms` table says: by which score arms are chosen and judged, which method each one is,
and which is best.

A method is what an arm has on: learnable prompts, IFAlign, EduAttention. With prompts and no module
it is PromptKD; without all three only the projector is trained (PAPER 4.34, 7.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl

from comkd_ray.errors import UserError
from comkd_ray.protocols import OBJECTIVE, PROTOCOLS, SELECTIONS, Protocol
from comkd_ray.search_space import Scalar

Row = dict[str, Any]

PROMPTS, IFALIGN, EDU_ATTENTION = "student.prompt_length", "student.ifalign", "student.edu_attention"
METHOD_KEYS = frozenset((PROMPTS, IFALIGN, EDU_ATTENTION))
SEED = "train.seed"

Method = tuple[bool, bool, bool]
"""(student.prompt_length > 0, student.ifalign, student.edu_attention)."""
PROMPTKD: Method = (True, False, False)
PROJECTOR_ONLY: Method = (False, False, False)
METHODS: Mapping[Method, str] = {
    PROJECTOR_ONLY: "projector only",
    (False, True, False): "projector + IFAlign",
    (False, False, True): "projector + EduAttention",
    (False, True, True): "ComKD-CLIP without prompts",
    PROMPTKD: "PromptKD",
    (True, True, False): "PromptKD + IFAlign",
    (True, False, True): "PromptKD + EduAttention",
    (True, True, True): "ComKD-CLIP",
}
"""What each method is called, everywhere."""

_SCORE_NAMES = {
    "base_accuracy": "base",
    "novel_accuracy": "novel",
    "harmonic_mean": "harmonic mean",
    "accuracy": "accuracy",
}


class Scores(NamedTuple):
    """By what the arms of a study are chosen, and by what they are judged."""

    protocol: str
    selection: str

    @property
    def rules(self) -> Protocol:
        """The row of PROTOCOLS."""
        return PROTOCOLS[self.protocol]

    @property
    def headline(self) -> str:
        """Column of the test score that leads."""
        return self.rules.headline

    @property
    def tests(self) -> tuple[str, ...]:
        """Columns of all test scores; the headline is the last."""
        return tuple(f"test_{score}" for score in self.rules.scores)

    @property
    def names(self) -> tuple[str, ...]:
        """What the test scores are called in a table, in the order of `tests`."""
        return tuple(_SCORE_NAMES[score] for score in self.rules.scores)

    @property
    def name(self) -> str:
        """What the headline is called: `test harmonic mean` or `test accuracy`."""
        return f"test {self.names[-1]}"

    @property
    def objective(self) -> str:
        """What the values of the column `objective` are."""
        return self.rules.objective(self.selection)

    @property
    def on_test(self) -> bool:
        """Whether test labels chose epochs and arms."""
        return self.selection == "promptkd"

    def axis(self, column: str) -> str:
        """A score as an axis names it; a picture saved from the page says so too where test chose."""
        return f"{column} (%)" + "<br>chosen on test" * self.on_test

    @property
    def warning(self) -> str:
        """What stands beside every score that test labels chose; empty where none did."""
        if not self.on_test:
            return ""
        words = "chosen on the test set, as PromptKD does: not an estimate of new images"
        return f"{words}; transductive: trained on the test images" if self.rules.shares_test else words


def scores_of(arms: pl.DataFrame) -> Scores:
    """The scores of a table. UserError where rows of several protocols or selections stand together,
    or of one that is not known here.
    """
    found = arms.select("protocol", "selection").drop_nulls().unique(maintain_order=True).rows()
    if len(found) > 1:
        kinds = ", ".join(f"{protocol}/{selection}" for protocol, selection in sorted(found))
        raise UserError(f"results/arms holds arms of {kinds}: a report is about one of them")
    if not found:  # no arm has a score
        return Scores("base_to_novel", "strict")
    for column, value, known in zip(
        ("protocol", "selection"), found[0], (PROTOCOLS, SELECTIONS), strict=True
    ):
        if value not in known:
            raise UserError(f"results/arms: {column} '{value}' is unknown; known are {', '.join(known)}")
    return Scores(*found[0])


def full_budget(arms: pl.DataFrame) -> pl.DataFrame:
    """Arms that trained for all their epochs and have a finite objective."""
    score = pl.col(OBJECTIVE)
    return arms.filter(pl.col("status") == "complete", score.is_not_null(), score.is_finite())


def best_arm(arms: pl.DataFrame) -> Row | None:
    """The full-budget arm with the highest objective; the earliest of equals, or None."""
    ranked = ranking(arms)
    return ranked.row(0, named=True) if len(ranked) else None


def ranking(arms: pl.DataFrame) -> pl.DataFrame:
    """Full-budget arms, highest objective first; equals in the order of `number`."""
    return full_budget(arms).sort(OBJECTIVE, "number", descending=[True, False], maintain_order=True)


def searched_keys(arms: pl.DataFrame) -> list[str]:
    """Every key that at least one arm searched, in alphabetical order."""
    return sorted({key for keys in arms["searched"].drop_nulls().to_list() for key in keys})


def is_same(stored: Scalar | None, value: Scalar) -> bool:
    """Whether a stored value is that of the study file: parquet turns 1.0 beside a word into "1"."""
    if isinstance(stored, str) and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(stored) == value
        except ValueError:
            return False
    return isinstance(stored, bool) == isinstance(value, bool) and stored == value


def has_modules(arms: pl.DataFrame) -> bool:
    """Whether the table says which method each arm is."""
    return {PROMPTS, IFALIGN, EDU_ATTENTION} <= set(arms.columns)


def method_of(row: Row) -> Method:
    """The method of one row."""
    return row[PROMPTS] > 0, row[IFALIGN], row[EDU_ATTENTION]


def of_method(arms: pl.DataFrame, method: Method) -> pl.DataFrame:
    """The arms of one method."""
    prompts, ifalign, edu_attention = method
    return arms.filter(
        (pl.col(PROMPTS) > 0) == prompts, pl.col(IFALIGN) == ifalign, pl.col(EDU_ATTENTION) == edu_attention
    )


def module_cells(arms: pl.DataFrame) -> list[Method]:
    """The 2x2 of IFAlign and EduAttention, both off first.

    With prompts; in a study without any (its student is no ViT), without.
    """
    prompts = bool((arms[PROMPTS] > 0).any())
    return [(prompts, *modules) for modules in ((False, False), (True, False), (False, True), (True, True))]


def method_values(arms: pl.DataFrame, method: Method, score: str) -> list[float]:
    """Values of `score` (percent) of the full-budget arms of a method, without nulls."""
    return [float(value) for value in of_method(full_budget(arms), method)[score].drop_nulls()]
