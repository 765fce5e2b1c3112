"""The trials of a sweep on a Ray cluster: carries out what ``pmray.selection`` decides."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pmray.distributed.cluster import AVOIDED, avoided_nodes, capacity, elsewhere
from pmray.distributed.torch_group import NodeAddresses
from pmray.distributed.train import FAILURES, failure_of, scaling
from pmray.selection.failures import WORKER_DIED, Again, Attempt, after_end, avoided, cause_of
from pmray.selection.halving import Reached, Standing, Stop, halve, leading, promoted
from pmray.selection.ledger import Outcome
from pmray.selection.search import Asking, Proposal, Tried
from pmray.spec import Recipe, Resources
from pmray.training.loop import Rung
from pmray.training.state import State, StateFile, open_state
from pmray.training.trial import Facts, Work, carry_out


def run_trials(
    search: Asking,
    make_work: Callable[[Proposal], Work],
    resources: Mapping[str, Resources],
    *,
    trials: int,
    at_a_time: int,
    reduction: float,
    leaders: int,
    enough: Callable[[], bool],
    scratch: Path,
    on_start: Callable[[Work], None],
    on_rung: Callable[[Work, Rung], None],
    on_end: Callable[[Work, Facts, bool], None],
    earlier: Iterable[Outcome] = (),
    over: Callable[[], bool] = lambda: False,
    pause: bool = False,
    on_avoid: Callable[[str], None] = lambda host: None,
) -> None:
    """Run a sweep as one Tune run over (candidate, recipe).

    One-worker trials run the pure loop inside reused Tune actors; a candidate with more workers nests Ray Train. What
    becomes of trials that fail, and which hosts get no more of them, says ``selection.failures``.

    Args:
        search: Proposes and learns.
        make_work: Turns a proposal into names, paths and numbers.
        resources: Candidate -> what one trial gets.
        trials: How many to run.
        at_a_time: Trials that run at once.
        reduction: Of the halving; see ``selection.halving``.
        leaders: Candidates that get more than their first recipes; see ``selection.halving.leading``.
        enough: Whether no further trial is to be started.
        scratch: Folder for Tune's own files; removed by the caller.
        on_start: Called in the driver when a trial starts, or starts anew.
        on_rung: Called when it reaches a rung.
        on_end: Called with (work, facts, may_pass) when it has ended, well or not.
        earlier: Trials of this sweep that have ended or waited before; new ones are held against them at each rung.
        over: Whether a budget is used up, so that none that waits goes on either.
        pause: Whether trials of one worker wait at each rung until all have arrived, and the best then go on; otherwise
            each is decided about as it arrives, as those of several workers are in any case.
        on_avoid: Called with the name of a host that gets no more trials.
    """
    waiting = reduction if pause else math.inf
    proposals = _Proposals(
        search, make_work, trials, enough, over, earlier, waiting, candidates=list(resources), leaders=leaders
    )
    if proposals.at_end():
        return
    # Trials of one worker share actors; several workers make a trial that ends its own worker group.
    nested = {name: demand for name, demand in resources.items() if demand.most > 1}

    def demand_of(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        name = config["work"].pretrained.name
        if name in nested:
            # The worker group asks for its own resources; this process only waits for it, and takes no part of a CPU,
            # which the group may need whole. A placement group must hold something: one byte.
            return placed({"memory": 1}, config["without"])
        bundle = {"CPU": resources[name].cpus_per_worker}
        if resources[name].gpus_per_worker:
            bundle["GPU"] = resources[name].gpus_per_worker
        return placed(bundle, config["without"])

    def placed(bundle: dict[str, float], without: Sequence[str]) -> tune.PlacementGroupFactory:
        # Actors are reused for the same demand only: a trial that avoids a host gets none that lives there.
        there = elsewhere(without)
        return tune.PlacementGroupFactory([bundle], **({"bundle_label_selector": [there]} if there else {}))

    alike = len({(one.cpus_per_worker, one.gpus_per_worker) for one in resources.values()}) == 1 and not nested
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, nested=nested, scratch=str(scratch)), demand_of),
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=_Halving(reduction, proposals, nested if pause else resources, earlier),
            # The searcher says when it is at its end; it hands out a trial once for each rung, and after failures.
            num_samples=-1,
            max_concurrent_trials=at_a_time,
            # Only where all ask for the same: an idle actor would hold what others wait for.
            reuse_actors=alike,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(scratch),
            callbacks=[_News(proposals, resources, on_start, on_rung, on_end, earlier, on_avoid)],
            verbose=0,
        ),
    )
    tuner.fit()


def _trial(config: dict[str, Any], nested: Mapping[str, Resources], scratch: str) -> None:
    """One Tune trial. Gets names and numbers; opens everything else itself."""
    work: Work = config["work"]
    demand = nested.get(work.pretrained.name)
    if demand is None:
        # Said first: of a process that dies, nothing else tells where it was.
        tune.report({"host": Host(ray.get_runtime_context().get_node_id(), socket.gethostname())})
        facts = _until(work, config["goal"], lambda rung: tune.report(_rung_report(rung)))
        tune.report({"examples": facts.examples, "facts": facts})
        return
    trainer = TorchTrainer(
        _nested_worker,
        train_loop_config={"work": work},
        torch_config=NodeAddresses(),
        scaling_config=replace(scaling(demand), label_selector=elsewhere(config["without"]) or None),
        run_config=ray.train.RunConfig(
            name=work.key, storage_path=scratch, failure_config=FAILURES, callbacks=[TuneReportCallback()]
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        tune.report({"examples": 0, "facts": failure_of(error, demand)})


class _Paused(BaseException):
    """The state of a fit is kept, and it ends for now; no error, so that nobody takes it for one."""


class _Pausing:
    """Keeps states, and ends the fit with the one that follows its goal."""

    def __init__(self, states: StateFile) -> None:
        self.states = states
        self.reached = False

    @property
    def seconds(self) -> float:
        """Between two states."""
        return self.states.seconds

    @property
    def problem(self) -> str | None:
        """Why no state could be kept or read, or None."""
        return self.states.problem

    def load(self) -> State | None:
        """The latest state, or None."""
        return self.states.load()

    def urgent(self) -> bool:
        """Whether the goal is reached, so that a state is wanted now."""
        return self.reached

    def save(self, state: State) -> None:
        """Keep a state; the last one ends the fit."""
        self.states.save(state)
        if self.reached:
            self.states.settle()
            raise _Paused


def _until(work: Work, goal: int, report: Callable[[Rung], None]) -> Facts:
    """Carry out a work as far as a rung, and from there another time; or to its end."""
    if goal >= work.budget or work.states is None:
        return carry_out(work, report)
    keeper = _Pausing(open_state(work.states, work.key, writes=True, seconds=work.state_seconds))
    curve: list[tuple[int, float]] = []
    started = time.perf_counter()

    def reached(rung: Rung) -> None:
        curve.append((rung.examples, rung.score))
        report(rung)
        keeper.reached = rung.examples >= goal

    try:
        return carry_out(work, reached, keeper)
    except _Paused:
        return Facts(
            status="stopped",
            score=max(score for _, score in curve),
            examples=curve[-1][0],
            curve=tuple(curve),
            seconds=time.perf_counter() - started,
            measured={"host": socket.gethostname(), **({"state_problem": keeper.problem} if keeper.problem else {})},
        )


def _nested_worker(config: dict[str, Any]) -> None:
    facts = carry_out(config["work"], lambda rung: ray.train.report(_rung_report(rung)))
    ray.train.report({"examples": facts.examples, "facts": facts})


@dataclass(frozen=True)
class Host:
    """Where a trial runs."""

    node: str
    """Ray's id of it."""
    name: str


def _rung_report(rung: Rung) -> dict[str, Any]:
    return {"examples": rung.examples, "score": rung.score, "rung": rung}


class _Driver:
    """Base of objects that live in the driver only: Tune tries to write them to disk, and need not."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Proposals(_Driver, Searcher):
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
        candidates: Sequence[str],
        leaders: int,
    ) -> None:
        # No metric: Tune would then demand it of every report, also of the last one, which brings facts.
        super().__init__()
        self.search, self.make_work, self.left, self.enough, self.over = search, make_work, trials, enough, over
        self.candidates, self.leaders = candidates, leaders
        self.used_up: frozenset[str] | None = None
        """Leaders for which the search had nothing new."""
        self.reduction = reduction
        """Of trials that wait at their rungs; infinite where none does."""
        self.reached: dict[str, Reached] = {}
        """Key of a trial -> how far it has come."""
        self.waiting: dict[str, tuple[int | None, Work]] = {}
        """Key of a trial that waits at a rung -> its number in the search, where this run has proposed it."""
        self.promoted: list[str] = []
        """Keys of those that go on next."""
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
        without: frozenset[str] = frozenset()
        number: int | None
        if self.given_back:
            lost, without = self.given_back.pop()
            number, work = self.numbers[lost], self.works[lost]
        elif self.promoted:
            number, work = self.waiting.pop(self.promoted.pop(0))
        elif proposal := self._next():
            number, work = proposal.number, self.make_work(proposal)
        elif self.under_way:
            # One under way may yet be given back, and who goes on is known when all have arrived.
            return None
        elif self.at_end():
            return Searcher.FINISHED
        else:
            number, work = self.waiting.pop(self.promoted.pop(0))
        self.under_way.add(trial_id)
        self.numbers[trial_id], self.works[trial_id] = number, work
        return {"work": work, "without": sorted({*self.avoid, *without, *avoided_nodes()}), "goal": self._goal(work)}

    def at_end(self) -> bool:
        """Whether there is nothing to start, and nobody who goes on; called when nothing is under way."""
        if self.first is not None:
            return False
        if not self.promoted and not self.over():
            rungs = sorted({rung for _, work in self.waiting.values() for rung in work.rungs[:-1]})
            self.promoted = promoted(list(self.reached.values()), rungs, reduction=self.reduction)
        return not self.promoted

    def note(self, work: Work, curve: Iterable[tuple[int, float]], number: int | None, *, waits: bool) -> None:
        """Remember how far a trial has come, and whether it waits there."""
        known = self.reached.get(work.key)
        scores = {**(known.curve if known else {}), **dict(curve)}
        waits = waits and math.isfinite(self.reduction) and bool(scores) and max(scores) < work.budget
        if scores:
            self.reached[work.key] = Reached(work.key, work.pretrained.name, scores, waits)
        if waits:
            self.waiting[work.key] = (number, work)

    def _goal(self, work: Work) -> int:
        """Examples at which a trial waits next; its end where none does."""
        known = self.reached.get(work.key)
        seen = max(known.curve) if known else 0
        return work.budget if math.isinf(self.reduction) else min(rung for rung in work.rungs if rung > seen)

    def _next(self) -> Proposal | None:
        if self.left == 0 or self.enough():
            self.left, self.first = 0, None
            return None
        proposal, self.first = self.first, None
        if proposal is None:
            leaders = leading(self.reached.values(), self.candidates, self.leaders)
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


class _Halving(_Driver, FIFOScheduler):
    """Asks ``selection.halving`` at every rung about trials of those candidates that do not wait there."""

    def __init__(
        self, reduction: float, proposals: _Proposals, deciding: Collection[str], earlier: Iterable[Outcome]
    ) -> None:
        super().__init__()
        self.reduction, self.proposals, self.deciding = reduction, proposals, deciding
        self.rungs: dict[int, dict[str, Standing]] = {}
        for one in earlier:
            for examples, score in one.curve:
                if examples < one.facts["budget"]:
                    self.rungs.setdefault(examples, {})[one.key] = Standing(one.key, one.candidate, score)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        work = self.proposals.works[trial.trial_id]
        if "rung" not in result or result["examples"] >= work.budget:
            return str(TrialScheduler.CONTINUE)
        examples = result["examples"]
        standings = self.rungs.setdefault(examples, {})
        # A trial that was started anew arrives a second time, and replaces itself.
        standings[work.key] = Standing(work.key, work.pretrained.name, result["score"])
        if work.pretrained.name not in self.deciding:
            return str(TrialScheduler.CONTINUE)
        first = examples == min(self.rungs)
        decision = halve(work.key, list(standings.values()), reduction=self.reduction, first_rung=first)
        return str(TrialScheduler.STOP if isinstance(decision, Stop) else TrialScheduler.CONTINUE)


class _News(_Driver, tune.Callback):
    """Passes what happens to trials on to the driver's callbacks."""

    def __init__(
        self,
        proposals: _Proposals,
        resources: Mapping[str, Resources],
        on_start: Callable[[Work], None],
        on_rung: Callable[[Work, Rung], None],
        on_end: Callable[[Work, Facts, bool], None],
        earlier: Iterable[Outcome] = (),
        on_avoid: Callable[[str], None] = lambda host: None,
    ) -> None:
        self.proposals, self.resources, self.on_avoid = proposals, resources, on_avoid
        self.on_start, self.on_rung, self.on_end = on_start, on_rung, on_end
        self.curves: dict[str, list[Rung]] = {}
        self.started: dict[str, float] = {}
        self.hosts: dict[str, Host] = {}
        self.attempts: list[Attempt] = []
        self.troubles: dict[str, list[str]] = {}
        """Key of a trial -> why it was started anew."""
        self.parts: dict[str, Facts] = {
            one.key: Facts(one.status, one.score, one.examples, one.curve, one.seconds) for one in earlier
        }
        """Key of a trial -> what it gave until it waited."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.curves[trial.trial_id] = []
        self.started[trial.trial_id] = time.time()
        self.on_start(self.proposals.works[trial.trial_id])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "host" in result:
            self.hosts[trial.trial_id] = result["host"]
        elif "facts" not in result and "rung" in result:
            self.curves[trial.trial_id].append(result["rung"])
            self.on_rung(self.proposals.works[trial.trial_id], result["rung"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(trial.trial_id, trial.last_result.get("facts") or self._cut_short(trial.trial_id, "stopped", None))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # What a trial did wrong comes back as facts; here come processes that died.
        host = self.hosts.get(trial.trial_id)
        where = f" on {host.name}" if host else " before the trial began"
        told = f"{WORKER_DIED}{where} (killed, or out of memory)"
        self._end(trial.trial_id, self._cut_short(trial.trial_id, "failed", told))

    def _cut_short(self, trial_id: str, status: str, error: str | None) -> Facts:
        curve, host = self.curves.get(trial_id, []), self.hosts.get(trial_id)
        return Facts(
            status=status,
            score=max((rung.score for rung in curve), default=None),
            examples=curve[-1].examples if curve else 0,
            curve=tuple((rung.examples, rung.score) for rung in curve),
            seconds=time.time() - self.started.get(trial_id, time.time()),
            measured={"host": host.name} if host else {},
            error=error,
        )

    def _end(self, trial_id: str, facts: Facts) -> None:
        """Take an end as it is, or hand the trial out once more."""
        work, host = self.proposals.works[trial_id], self.hosts.get(trial_id)
        cause = cause_of(facts.status, facts.error)
        self.attempts.append(Attempt(work.key, host.node if host else "", cause == "none"))
        bad = avoided(self.attempts)
        for node in bad - self.proposals.avoid:
            # Finalists' fits, too, then stay away from it.
            os.environ[AVOIDED] = ",".join(sorted({*avoided_nodes(), node}))
            self.on_avoid(next(one.name for one in self.hosts.values() if one.node == node))
        self.proposals.avoid |= bad
        may_pass = False
        if cause != "none":
            # Waiting at a rung is no failure, and does not count.
            mine = [one for one in self.attempts if one.trial == work.key and not one.well]
            decision = after_end(cause, mine, _hosts_for(self.resources[work.pretrained.name]) - self.proposals.avoid)
            if isinstance(decision, Again):
                self.troubles.setdefault(work.key, []).append((facts.error or "").strip()[-500:])
                self.proposals.give_back(trial_id, decision.without)
                return
            may_pass = decision.may_pass
        if work.key in self.troubles:
            facts = replace(facts, measured={**facts.measured, "retried_after": self.troubles[work.key]})
        facts = self._whole(work, facts)
        self.proposals.tell(trial_id, facts.score)
        waits = facts.status == "stopped" and host is not None
        self.proposals.note(work, facts.curve, None, waits=waits)
        self.on_end(work, facts, may_pass)

    def _whole(self, work: Work, facts: Facts) -> Facts:
        """Put together what a trial gave before it waited and after."""
        curve = {**dict(self.parts[work.key].curve), **dict(facts.curve)} if work.key in self.parts else {}
        if curve:
            before = self.parts[work.key]
            facts = replace(
                facts,
                curve=tuple(sorted(curve.items())),
                score=max(curve.values()),
                examples=max(facts.examples, before.examples),
                seconds=facts.seconds + before.seconds,
            )
        self.parts[work.key] = facts
        return facts


def _hosts_for(demand: Resources) -> set[str]:
    """Nodes that could hold a worker."""
    return {
        one.id for one in capacity().each if one.cpus >= demand.cpus_per_worker and one.gpus >= demand.gpus_per_worker
    }
