"""Grids, lists, exhausted spaces: all arms are known beforehand, and the records are the ledger."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Container, Mapping

from comkd_ray.config import Study
from comkd_ray.optuna_search import Proposal
from comkd_ray.results import Row
from comkd_ray.search_space import Overrides
from comkd_ray.study_file import cells, full_point


class GridArms:
    """Asks for the cells that have no record yet, in their order; answers like `OptunaArms`."""

    def __init__(
        self,
        study: Study,
        identify: Callable[[Overrides], str],
        recorded: Container[str],
        taken: Collection[int] = (),
        wanted: Container[str] | None = None,
    ) -> None:
        """identify: a cell's values to its arm; cells of one arm (a knob without effect) are one.

        recorded: arms that have ended. taken: numbers that a sampler gave to arms of this study.
        wanted: arms that are asked for now; None for all.
        """
        arms: dict[str, Overrides] = {}
        for cell in cells(study):
            arms.setdefault(identify(cell), cell)
        exhausted = study.search.is_exhausted
        named = [full_point(study, point) for point in study.search.first] if exhausted else []
        beyond = itertools.count(max([len(arms), *(number + 1 for number in taken)]))
        self.pending = [
            Proposal(next(beyond) if number in taken else number, cell, cell in named)
            for number, (arm, cell) in enumerate(arms.items())
            if arm not in recorded and (wanted is None or arm in wanted)
        ]
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
