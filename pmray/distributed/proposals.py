"""What Tune is to run next: new recipes, those that go on from a rung or after a failure, and variants of the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.search import Searcher

from pmray.distributed.cluster import avoided_nodes
from pmray.selection.halving import Leaders, Reached, leading, next_stop, promoted
from pmray.selection.ledger import Outcome
from pmray.selection.population import Member, turn
from pmray.selection.search import Asking, Proposal, Tried, alike
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
        fused: Mapping[str, int] | None = None,
    ) -> None:
        # No metric: Tune would then demand it of every report, also of the last one, which brings facts.
        super().__init__()
        self.search, self.make_work, self.left, self.enough, self.over = search, make_work, trials, enough, over
        self.leaders, self.population, self.fused = leaders, population, fused or {}
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
        self.under_way: dict[str, str] = {}
        """Key of a trial -> Tune's id of what it runs in, alone or with others."""
        self.given_back: list[tuple[str, frozenset[str]]] = []
        """Keys of trials to hand out once more, and the hosts where they are not to run."""
        self.avoid: frozenset[str] = frozenset()
        """Hosts where nothing is to run."""

    def suggest(self, trial_id: str) -> Any:
        """Say what comes next; None where that hangs on what is under way."""
        without: frozenset[str] = frozenset()
        chosen: list[tuple[int | None, Work]]
        if self.given_back:
            lost, without = self.given_back.pop()
            chosen = [(self.numbers[lost], self.works[lost])]
        elif self.promoted:
            chosen = self._going_on()
        elif proposal := self._next():
            chosen = [(one.number, self.make_work(one)) for one in (proposal, *self._like(proposal))]
        elif self._promote():
            chosen = self._going_on()
        else:
            # What is under way may yet be given back, and may be better than what waits.
            return None if self.under_way else Searcher.FINISHED
        for number, work in chosen:
            self.under_way[work.key] = trial_id
            self.numbers[work.key], self.works[work.key] = number, work
        return {
            "works": [(work, self._goal(work)) for _, work in chosen],
            "without": sorted({*self.avoid, *without, *avoided_nodes()}),
        }

    def running_in(self, trial_id: str) -> list[Work]:
        """What was handed out under an id and has not ended."""
        return [self.works[key] for key, one in self.under_way.items() if one == trial_id]

    def _going_on(self) -> list[tuple[int | None, Work]]:
        """The next one that goes on from its rung, with those that can take their steps together with it."""
        first = self.waiting[self.promoted[0]][1]
        most = self.fused.get(first.pretrained.name, 1)

        def fits(key: str) -> bool:
            other = self.waiting[key][1]
            if other is first:
                return True
            return (
                most > 1
                and other.pretrained.name == first.pretrained.name
                and alike(other.recipe, first.recipe)
                and max(self.reached[key].curve) == max(self.reached[first.key].curve)
            )

        keys = [key for key in self.promoted if fits(key)][:most]
        self.promoted = [key for key in self.promoted if key not in keys]
        return [self.waiting.pop(key) for key in keys]

    def _like(self, proposal: Proposal) -> list[Proposal]:
        """New proposals that can take their steps together with one."""
        found: list[Proposal] = []
        while len(found) + 1 < self.fused.get(proposal.candidate, 1) and self.left and not self.enough():
            other = self.search.ask(self._leaders(), proposal)
            if other is None:
                break
            self.left -= 1
            found.append(other)
        return found

    def at_end(self) -> bool:
        """Whether there is nothing to start, and nobody who goes on; called before anything is under way."""
        return self.first is None and not self._promote()

    def _promote(self) -> bool:
        """Whether somebody goes on from a rung; those are in ``promoted``."""
        if not self.promoted and not self.asked and not self.over():
            running = set(self.under_way)
            rungs = sorted({rung for _, work in self.waiting.values() for rung in work.rungs[:-1]})
            if self.population is None:
                # Only those that are on their way to their first score may change who leads, and so what is tried yet.
                new = len(running - self.reached.keys())
                self.promoted = promoted(
                    list(self.reached.values()),
                    rungs,
                    reduction=self.reduction,
                    leaders=self._leaders(),
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
            leaders = self._leaders()
            proposal = None if leaders == self.used_up else self.search.ask(leaders)
            if proposal is None and self.under_way:
                # What is under way may yet change who leads.
                self.used_up = leaders
                return None
        self.left = 0 if proposal is None else self.left - 1
        return proposal

    def _leaders(self) -> frozenset[str]:
        rule = self.leaders
        return leading(self.reached.values(), rule.defaults, rule.count, rule.rung, rows=rule.rows)

    def give_back(self, key: str, without: frozenset[str]) -> None:
        """Hand a trial out once more."""
        self.under_way.pop(key)
        self.given_back.append((key, without))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Scores are told by ``_News``, which knows what kind of end it was."""

    def tell(self, key: str, score: float | None) -> None:
        """Take the score of a trial, or of its part up to a rung; None when it failed."""
        self.under_way.pop(key)
        number, work = self.numbers[key], self.works[key]
        if number is None:
            # It has gone on from a rung where its score was told, in this run or an earlier one.
            self.search.learn(Tried(work.pretrained.name, work.recipe, score))
        else:
            self.search.tell(number, score)

    def save(self, checkpoint_path: str) -> None:
        """The ledger is what a sweep resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""
