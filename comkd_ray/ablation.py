"""Grids: every cell of a finite space once, with the records as the ledger. No sampler is involved."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from comkd_ray import search_space
from comkd_ray.config import Study
from comkd_ray.optuna_search import Proposal
from comkd_ray.results import Row


@dataclass
class GridArms:
    """Asks for the cells of a grid in their order; the same questions as `OptunaArms` answers."""

    study: Study

    def __post_init__(self) -> None:
        cells = enumerate(search_space.grid(self.study.search.space))
        self.waiting = deque(Proposal(number, cell) for number, cell in cells)

    def left(self) -> int:
        """Cells still to ask for."""
        return len(self.waiting)

    def ask(self) -> Proposal:
        """The next cell."""
        return self.waiting.popleft()

    def assign(self, number: int, arm: str) -> None:
        """A cell's record is found by the arm's identity alone."""

    def note(self, number: int, epoch: int, value: float) -> None:
        """A grid does not steer by values."""

    def tell(self, number: int, record: Row | None, same_as: str | None = None) -> None:
        """The record is the ledger."""

    def reconcile(self, records: Mapping[str, Row]) -> int:
        """Leave out the cells that have a record; nothing has to be repaired."""
        done = {record["arm"]["number"] for record in records.values()}
        self.waiting = deque(cell for cell in self.waiting if cell.number not in done)
        return 0
