"""Grids: every cell of a finite space once, with the records as the ledger. No sampler is involved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        self.cells = list(search_space.grid(self.study.search.space))
        self.next: Iterator[tuple[int, search_space.Overrides]] = iter(enumerate(self.cells))
        self.asked = 0

    def left(self) -> int:
        """Cells still to ask for, those that have a record included: they cost nothing."""
        return len(self.cells) - self.asked

    def ask(self) -> Proposal:
        """The next cell."""
        self.asked += 1
        return Proposal(*next(self.next))

    def assign(self, number: int, arm: str) -> None:
        """A cell's record is found by the arm's identity alone."""

    def note(self, number: int, epoch: int, value: float) -> None:
        """A grid does not steer by values."""

    def tell(self, number: int, record: Row | None, same_as: str | None = None) -> None:
        """The record is the ledger."""

    def reconcile(self, records: Mapping[str, Row]) -> int:
        """Nothing to repair."""
        return 0
