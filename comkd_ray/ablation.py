"""Grids and lists: all arms are known beforehand, and the records are the ledger. No sampler is asked."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping

from comkd_ray.config import Study
from comkd_ray.optuna_search import Proposal
from comkd_ray.results import Row
from comkd_ray.search_space import Overrides
from comkd_ray.study_file import cells


class GridArms:
    """Asks for the cells that have no record yet, in their order; answers like `OptunaArms`."""

    def __init__(
        self,
        study: Study,
        identify: Callable[[Overrides], str],
        recorded: Container[str],
        wanted: Container[str] | None = None,
    ) -> None:
        """identify: a cell's values to its arm; cells of one arm (a knob without effect) are one.

        wanted: arms that are asked for now; None for all.
        """
        arms = {identify(cell): cell for cell in cells(study)}
        numbered = [(arm, Proposal(number, cell)) for number, (arm, cell) in enumerate(arms.items())]
        self.pending = [
            proposal
            for arm, proposal in numbered
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
