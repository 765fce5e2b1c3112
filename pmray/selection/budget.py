"""When a sweep has used up what it may."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from pmray.selection.halving import most_waiting
from pmray.selection.ledger import Outcome
from pmray.selection.population import born
from pmray.spec import Recipe, Resources, Search


@dataclass
class Spent:
    """What the trials of a sweep have cost so far, those of earlier runs of the same folder included."""

    counted: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Key of a trial -> examples seen in training, and GPU-seconds."""
    variants: bool = False
    """Whether trials with ``lr_changes`` have their first part from others, as in a population."""

    @property
    def examples(self) -> int:
        """Seen in training, over all trials."""
        return sum(examples for examples, _ in self.counted.values())

    @property
    def gpu_seconds(self) -> float:
        """Of GPUs, over all trials."""
        return sum(seconds for _, seconds in self.counted.values())

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], resources: Mapping[str, Resources], *, variants: bool = False) -> Self:
        """Add trials up."""
        spent = cls(variants=variants)
        for one in outcomes:
            spent.add(one, resources)
        return spent

    def add(self, outcome: Outcome, resources: Mapping[str, Resources]) -> None:
        """Count a trial that has stopped, well or not; one that went on counts as it is now.

        A candidate that is no longer one counts without its GPUs.
        """
        demand = resources.get(outcome.candidate)
        gpus = 0.0 if demand is None else demand.most * demand.gpus_per_worker
        # What a variant has from its parent has been counted there.
        shared = born(Recipe(**outcome.recipe), outcome.facts.get("budget", 0)) if self.variants else 0
        self.counted[outcome.key] = (max(0, outcome.examples - shared), outcome.seconds * gpus)

    def reached(self, search: Search, seconds: float) -> str | None:
        """Which budget is used up, in words, or None.

        Args:
            search: Gives the budgets.
            seconds: Since this run's sweep began.
        """
        if search.hours is not None and seconds >= 3600 * search.hours:
            return f"search.hours = {search.hours:g} are over"
        if search.examples is not None and self.examples >= search.examples:
            return f"{self.examples:,} examples were seen, and search.examples = {search.examples:,}"
        if search.gpu_hours is not None and self.gpu_seconds >= 3600 * search.gpu_hours:
            return f"{self.gpu_seconds / 3600:.2f} GPU-hours were used, and search.gpu_hours = {search.gpu_hours:g}"
        return None

    def used(self, search: Search, seconds: float) -> list[tuple[str, float, float]]:
        """Name of each budget that a spec sets, what of it is used, and how much there is."""
        spent = (
            ("hours", seconds / 3600, search.hours),
            ("examples", float(self.examples), search.examples),
            ("GPU-hours", self.gpu_seconds / 3600, search.gpu_hours),
        )
        return [(name, used, float(most)) for name, used, most in spent if most is not None]


def states_at_a_time(search: Search, candidates: int) -> int:
    """How many states of trials that wait at rungs there are at most, but for equal scores.

    >>> states_at_a_time(Search(trials=12, reduction=3), 4), states_at_a_time(Search(trials=12, algorithm="pbt"), 4)
    (8, 24)
    """
    if search.algorithm == "pbt":
        # A variant begins with a copy before the one in whose place it comes is gone.
        return 2 * search.trials
    return most_waiting(search.trials, candidates, search.reduction)
