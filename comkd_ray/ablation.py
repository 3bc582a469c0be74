"""Grids and lists: all arms are known beforehand, and the records are the ledger. No sampler is asked."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

from comkd_ray import search_space
from comkd_ray.config import Study
from comkd_ray.optuna_search import Proposal
from comkd_ray.results import Row
from comkd_ray.search_space import Overrides
from comkd_ray.study_file import flatten


def cells(study: Study) -> list[Overrides]:
    """The arms of a grid or a list, in order.

    A list holds every arm of `search.first` in every cell of the space. A key that any of these arms
    names is in all of them, with the study's own value where an arm leaves it out: so all rows name
    the same searched keys, and arms of one seed can be paired.
    """
    of_space = list(search_space.grid(study.search.space))
    if study.search.sampler == "grid":
        return of_space
    own, first = flatten(study.model_dump(mode="json")), study.search.first
    named = dict.fromkeys(key for point in first for key in point)
    return [{key: point.get(key, own[key]) for key in named} | cell for point in first for cell in of_space]


class GridArms:
    """Asks for the cells that have no record yet, in their order; answers like `OptunaArms`."""

    def __init__(self, study: Study, identify: Callable[[Overrides], str], recorded: Container[str]) -> None:
        """identify: a cell's values to its arm; cells of one arm (a knob without effect) are one."""
        arms = {identify(cell): cell for cell in cells(study)}
        numbered = enumerate(arms.items())
        self.pending = [Proposal(number, cell) for number, (arm, cell) in numbered if arm not in recorded]
        self.asked = 0

    def left(self) -> int:
        """Cells still to ask for."""
        return len(self.pending) - self.asked

    def ask(self) -> Proposal:
        """The next cell."""
        self.asked += 1
        return self.pending[self.asked - 1]

    def assign(self, number: int, arm: str) -> None:
        """A cell's record is found by the arm's identity alone."""

    def note(self, number: int, epoch: int, value: float) -> None:
        """A grid does not steer by values."""

    def tell(self, number: int, record: Row | None, same_as: str | None = None) -> None:
        """The record is the ledger."""

    def reconcile(self, records: Mapping[str, Row]) -> int:
        """Nothing to repair."""
        return 0
