"""What Tune is to run next: new recipes, those that go on from a rung or after a failure, and variants of the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.search import Searcher

from pmray.distributed.cluster import avoided_nodes
from pmray.selection.halving import Leaders, Reached, leading, next_stop, promoted
from pmray.selection.ledger import Outcome
from pmray.selection.population import Member, turn
from pmray.selection.search import Asking, Proposal, Tried
from pmray.spec import Recipe
from pmray.training.trial import Facts, Work


@dataclass(frozen=True)
class Population:
    """Trials that are replaced by variants of better ones; see ``selection.population``."""

    seed: int
    copy_state: Callable[[str, str], bool]
    """Let a fit go on from the state of another, both by their keys; false where there is none."""
    drop: Callable[[str], None]
    """Called with the key of a trial that has been replaced."""


class DriverOnly:
    """Base of objects that live in the driver only: Tune tries to write them to disk, and need not."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Proposals(DriverOnly, Searcher):
    """Hands the search's proposals to Tune, and the scores back."""

    def __init__(
        self,
        search: Asking,
        make_work: Callable[[Proposal], Work],
        trials: int,
        enough: Callable[[], bool],
        over: Callable[[], bool] = lambda: False,
        earlier: Iterable[Outcome] = (),
        reduction: float = math.inf,
        *,
        leaders: Leaders,
        population: Population | None = None,
    ) -> None:
        # No metric: Tune would then demand it of every report, also of the last one, which brings facts.
        super().__init__()
        self.search, self.make_work, self.left, self.enough, self.over = search, make_work, trials, enough, over
        self.leaders, self.population = leaders, population
        self.used_up: frozenset[str] | None = None
        """Leaders for which the search had nothing new."""
        self.reduction = reduction
        """Of trials that wait at their rungs; infinite where none does."""
        self.reached: dict[str, Reached] = {}
        """Key of a trial -> how far it has come."""
        self.known: dict[str, Work] = {}
        """Key of each of these -> what it is."""
        self.parts: dict[str, Facts] = {
            one.key: Facts(one.status, one.score, one.examples, one.curve, one.seconds) for one in earlier
        }
        """Key of a trial -> what it gave until it waited."""
        self.waiting: dict[str, tuple[int | None, Work]] = {}
        """Key of a trial that waits at a rung -> its number in the search, where this run has proposed it."""
        self.promoted: list[str] = []
        """Keys of those that go on next."""
        self.asked = False
        """Whether it was asked who goes on since a trial has arrived."""
        for one in earlier:
            proposal = Proposal(-1, one.candidate, Recipe(**one.recipe))
            self.note(make_work(proposal), one.curve, None, waits=one.status == "stopped")
        self.first = search.ask() if trials else None
        """Asked before Tune starts, which cannot run without a trial."""
        self.numbers: dict[str, int | None] = {}
        self.works: dict[str, Work] = {}
        self.under_way: set[str] = set()
        self.given_back: list[tuple[str, frozenset[str]]] = []
        """Trials to hand out once more, under another id, and the hosts where they are not to run."""
        self.avoid: frozenset[str] = frozenset()
        """Hosts where nothing is to run."""

    def suggest(self, trial_id: str) -> Any:
        """Say what comes next; None where that hangs on what is under way."""
        without: frozenset[str] = frozenset()
        number: int | None
        if self.given_back:
            lost, without = self.given_back.pop()
            number, work = self.numbers[lost], self.works[lost]
        elif self.promoted:
            number, work = self.waiting.pop(self.promoted.pop(0))
        elif proposal := self._next():
            number, work = proposal.number, self.make_work(proposal)
        elif self._promote():
            number, work = self.waiting.pop(self.promoted.pop(0))
        else:
            # What is under way may yet be given back, and may be better than what waits.
            return None if self.under_way else Searcher.FINISHED
        self.under_way.add(trial_id)
        self.numbers[trial_id], self.works[trial_id] = number, work
        return {"work": work, "without": sorted({*self.avoid, *without, *avoided_nodes()}), "goal": self._goal(work)}

    def at_end(self) -> bool:
        """Whether there is nothing to start, and nobody who goes on; called before anything is under way."""
        return self.first is None and not self._promote()

    def _promote(self) -> bool:
        """Whether somebody goes on from a rung; those are in ``promoted``."""
        if not self.promoted and not self.asked and not self.over():
            running = {self.works[one].key for one in self.under_way}
            rungs = sorted({rung for _, work in self.waiting.values() for rung in work.rungs[:-1]})
            if self.population is None:
                # Only those that are on their way to their first score may change who leads, and so what is tried yet.
                new = len(running - self.reached.keys())
                self.promoted = promoted(
                    list(self.reached.values()),
                    rungs,
                    reduction=self.reduction,
                    running=running,
                    new=new + self.left if new else 0,
                )
            elif not running:
                self.promoted = self._replaced(self.population, rungs)
            self.asked = True
        return bool(self.promoted)

    def _replaced(self, population: Population, rungs: Sequence[int]) -> list[str]:
        """Put variants in the place of the worst that wait; who goes on."""
        members = [
            Member(key, self.known[key].recipe, self.known[key].budget, one.curve, one.waits)
            for key, one in self.reached.items()
        ]
        found = turn(members, rungs, population.seed)
        going = list(found.going)
        for one in found.variants:
            parent, reached = self.known[one.parent], self.reached[one.parent]
            work = self.make_work(Proposal(-1, parent.pretrained.name, one.recipe))
            if work.key in self.known:
                continue
            # A parent that went on in a run before this one leaves its variant to begin at the beginning.
            if max(reached.curve) == one.rung and population.copy_state(one.parent, work.key):
                before = tuple(sorted(reached.curve.items()))
                self.parts[work.key] = Facts("stopped", max(reached.curve.values()), one.rung, before)
                self.note(work, before, None, waits=True)
            else:
                self.known[work.key], self.waiting[work.key] = work, (None, work)
            going.append(work.key)
        for key in found.ending:
            if self.waiting.pop(key, None):
                population.drop(key)
        return going

    def note(self, work: Work, curve: Iterable[tuple[int, float]], number: int | None, *, waits: bool) -> None:
        """Remember how far a trial has come, and whether it waits there."""
        self.asked = False
        known = self.reached.get(work.key)
        scores = {**(known.curve if known else {}), **dict(curve)}
        waits = waits and math.isfinite(self.reduction) and bool(scores) and max(scores) < work.budget
        if scores:
            self.known[work.key] = work
            self.reached[work.key] = Reached(work.key, work.pretrained.name, scores, waits)
        if waits:
            self.waiting[work.key] = (number, work)

    def _goal(self, work: Work) -> int:
        """Examples at which a trial waits next; its end where none does."""
        if math.isinf(self.reduction):
            return work.budget
        known = self.reached.get(work.key)
        seen = max(known.curve) if known else 0
        return next_stop(seen, work.rungs, self.leaders.straight_to(work.pretrained.name, work.recipe))

    def _next(self) -> Proposal | None:
        if self.left == 0 or self.enough():
            self.left, self.first = 0, None
            return None
        proposal, self.first = self.first, None
        if proposal is None:
            rule = self.leaders
            leaders = leading(self.reached.values(), rule.defaults, rule.count, rule.rung)
            proposal = None if leaders == self.used_up else self.search.ask(leaders)
            if proposal is None and self.under_way:
                # What is under way may yet change who leads.
                self.used_up = leaders
                return None
        self.left = 0 if proposal is None else self.left - 1
        return proposal

    def give_back(self, trial_id: str, without: frozenset[str]) -> None:
        """Hand a trial out once more."""
        self.under_way.discard(trial_id)
        self.given_back.append((trial_id, without))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Scores are told by ``_News``, which knows what kind of end it was."""

    def tell(self, trial_id: str, score: float | None) -> None:
        """Take the score of a trial, or of its part up to a rung; None when it failed."""
        self.under_way.discard(trial_id)
        number, work = self.numbers[trial_id], self.works[trial_id]
        if number is None:
            # It has gone on from a rung where its score was told, in this run or an earlier one.
            self.search.learn(Tried(work.pretrained.name, work.recipe, score))
        else:
            self.search.tell(number, score)

    def save(self, checkpoint_path: str) -> None:
        """The ledger is what a sweep resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""
