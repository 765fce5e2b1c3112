"""The trials of a sweep on a Ray cluster: carries out what ``pmray.selection`` decides."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from pmray.distributed.cluster import AVOIDED, avoided_nodes, capacity, elsewhere
from pmray.distributed.proposals import DriverOnly, Population, Proposals
from pmray.distributed.torch_group import NodeAddresses
from pmray.distributed.train import FAILURES, failure_of, scaling
from pmray.selection.failures import WORKER_DIED, Again, Attempt, after_end, avoided, cause_of
from pmray.selection.halving import Leaders, Standing, Stop, halve
from pmray.selection.ledger import Outcome
from pmray.selection.search import Asking, Proposal
from pmray.spec import Resources
from pmray.training.fused import Member, run_together
from pmray.training.hardware import return_memory
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
    leaders: Leaders,
    enough: Callable[[], bool],
    scratch: Path,
    on_start: Callable[[Work], None],
    on_rung: Callable[[Work, Rung], None],
    on_end: Callable[[Work, Facts, bool], None],
    earlier: Iterable[Outcome] = (),
    over: Callable[[], bool] = lambda: False,
    pause: bool = False,
    population: Population | None = None,
    fuse: int = 1,
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
        leaders: How many candidates get more than their default recipes, and how they are found.
        enough: Whether no further trial is to be started.
        scratch: Folder for Tune's own files; removed by the caller.
        on_start: Called in the driver when a trial starts, or starts anew.
        on_rung: Called when it reaches a rung.
        on_end: Called with (work, facts, may_pass) when it has ended, well or not.
        earlier: Trials of this sweep that have ended or waited before; new ones are held against them at each rung.
        over: Whether a budget is used up, so that none that waits goes on either.
        pause: Whether trials of one worker wait at each rung until it is certain that they are among the best that go
            on; otherwise each is decided about as it arrives, as those of several workers are in any case.
        population: Those that wait are replaced by variants of the best, in place of halving.
        fuse: So many trials of one worker run in one process as one computation, where they are alike.
        on_avoid: Called with the name of a host that gets no more trials.
    """
    # Trials of one worker share actors; several workers make a trial that ends its own worker group.
    nested = {name: demand for name, demand in resources.items() if demand.most > 1}
    proposals = Proposals(
        search,
        make_work,
        trials,
        enough,
        over,
        earlier,
        reduction if pause else math.inf,
        leaders=leaders,
        population=population,
        fused={name: 1 if name in nested else fuse for name in resources},
    )
    if proposals.at_end():
        return

    def demand_of(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        name = config["works"][0][0].pretrained.name
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
            callbacks=[_News(proposals, resources, on_start, on_rung, on_end, on_avoid)],
            verbose=0,
        ),
    )
    tuner.fit()


def _trial(config: dict[str, Any], nested: Mapping[str, Resources], scratch: str) -> None:
    """One Tune trial. Gets names and numbers; opens everything else itself."""
    works: list[tuple[Work, int]] = config["works"]
    work = works[0][0]
    demand = nested.get(work.pretrained.name)
    if demand is None:
        # Said first: of a process that dies, nothing else tells where it was.
        tune.report({"host": Host(ray.get_runtime_context().get_node_id(), socket.gethostname())})
        if len(works) == 1:
            _run_work(*works[0])
        else:
            run_together([partial(_run_work, *one) for one in works])
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
        tune.report(_facts_report(work, failure_of(error, demand)))


def _run_work(work: Work, goal: int, together: Member | None = None) -> None:
    """Carry out a work in this process, alone or with others, and tell Tune what it gave."""
    facts = _until(work, goal, lambda rung: tune.report(_rung_report(work, rung)), together)
    return_memory()
    tune.report(_facts_report(work, facts))


class _Paused(BaseException):
    """The state of a fit is kept, and it ends for now; no error, so that nobody takes it for one."""


class _Pausing:
    """Keeps states, and ends the fit with the one that follows its goal."""

    def __init__(self, states: StateFile) -> None:
        self.states = states
        self.reached = False
        self.curve: tuple[tuple[int, float], ...] = ()
        """(Examples, score) of all rungs so far, those before an interruption too."""

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
            self.curve = tuple((examples, score) for examples, score, _ in state["curve"])
            self.states.settle()
            raise _Paused


def _until(work: Work, goal: int, report: Callable[[Rung], None], together: Member | None) -> Facts:
    """Carry out a work as far as a rung, and from there another time; or to its end."""
    if goal >= work.budget or work.states is None:
        return carry_out(work, report, together=together)
    keeper = _Pausing(open_state(work.states, work.key, writes=True, seconds=work.state_seconds))
    clock = together.clock if together else time.perf_counter
    started = clock()

    def reached(rung: Rung) -> None:
        report(rung)
        keeper.reached = rung.examples >= goal

    try:
        return carry_out(work, reached, keeper, together)
    except _Paused:
        return Facts(
            status="stopped",
            score=max(score for _, score in keeper.curve),
            examples=keeper.curve[-1][0],
            curve=keeper.curve,
            seconds=clock() - started,
            measured={"host": socket.gethostname(), **({"state_problem": keeper.problem} if keeper.problem else {})},
        )


def _nested_worker(config: dict[str, Any]) -> None:
    work: Work = config["work"]
    facts = carry_out(work, lambda rung: ray.train.report(_rung_report(work, rung)))
    ray.train.report(_facts_report(work, facts))


@dataclass(frozen=True)
class Host:
    """Where a trial runs."""

    node: str
    """Ray's id of it."""
    name: str


def _rung_report(work: Work, rung: Rung) -> dict[str, Any]:
    return {"key": work.key, "examples": rung.examples, "score": rung.score, "rung": rung}


def _facts_report(work: Work, facts: Facts) -> dict[str, Any]:
    return {"key": work.key, "examples": facts.examples, "facts": facts}


class _Halving(DriverOnly, FIFOScheduler):
    """Asks ``selection.halving`` at every rung about trials of those candidates that do not wait there."""

    def __init__(
        self, reduction: float, proposals: Proposals, deciding: Collection[str], earlier: Iterable[Outcome]
    ) -> None:
        super().__init__()
        self.reduction, self.proposals, self.deciding = reduction, proposals, deciding
        self.rungs: dict[int, dict[str, Standing]] = {}
        for one in earlier:
            for examples, score in one.curve:
                if examples < one.facts["budget"]:
                    self.rungs.setdefault(examples, {})[one.key] = Standing(one.key, one.candidate, score)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "rung" not in result or result["examples"] >= self.proposals.works[result["key"]].budget:
            return str(TrialScheduler.CONTINUE)
        work, examples = self.proposals.works[result["key"]], result["examples"]
        standings = self.rungs.setdefault(examples, {})
        # A trial that was started anew arrives a second time, and replaces itself.
        standings[work.key] = Standing(work.key, work.pretrained.name, result["score"])
        if work.pretrained.name not in self.deciding:
            return str(TrialScheduler.CONTINUE)
        first = examples == min(self.rungs)
        decision = halve(work.key, list(standings.values()), reduction=self.reduction, first_rung=first)
        return str(TrialScheduler.STOP if isinstance(decision, Stop) else TrialScheduler.CONTINUE)


class _News(DriverOnly, tune.Callback):
    """Passes what happens to trials on to the driver's callbacks."""

    def __init__(
        self,
        proposals: Proposals,
        resources: Mapping[str, Resources],
        on_start: Callable[[Work], None],
        on_rung: Callable[[Work, Rung], None],
        on_end: Callable[[Work, Facts, bool], None],
        on_avoid: Callable[[str], None] = lambda host: None,
    ) -> None:
        self.proposals, self.resources, self.on_avoid = proposals, resources, on_avoid
        self.on_start, self.on_rung, self.on_end = on_start, on_rung, on_end
        self.curves: dict[str, list[Rung]] = {}
        self.facts: dict[str, Facts] = {}
        """Of trials that have come to an end in a process that has not."""
        self.started: dict[str, float] = {}
        self.hosts: dict[str, Host] = {}
        """Key of a trial -> where it runs now, or ran last."""
        self.names: dict[str, str] = {}
        """Node -> its name."""
        self.attempts: list[Attempt] = []
        self.troubles: dict[str, list[str]] = {}
        """Key of a trial -> why it was started anew."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for work in self.proposals.running_in(trial.trial_id):
            self.curves[work.key], self.started[work.key] = [], time.time()
            self.hosts.pop(work.key, None)
            self.on_start(work)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "host" in result:
            host: Host = result["host"]
            self.names[host.node] = host.name
            for work in self.proposals.running_in(trial.trial_id):
                self.hosts[work.key] = host
        elif "facts" in result:
            # Not an end yet: whoever came next would find the process busy, and be given another.
            self.facts[result["key"]] = result["facts"]
        elif "rung" in result:
            self.curves[result["key"]].append(result["rung"])
            self.on_rung(self.proposals.works[result["key"]], result["rung"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for work in self.proposals.running_in(trial.trial_id):
            self._end(work.key, self._facts_of(work.key, "stopped", None))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # What a trial did wrong comes back as facts; here come processes that died.
        for work in self.proposals.running_in(trial.trial_id):
            host = self.hosts.get(work.key)
            where = f" on {host.name}" if host else " before the trial began"
            told = f"{WORKER_DIED}{where} (killed, or out of memory)"
            self._end(work.key, self._facts_of(work.key, "failed", told))

    def _facts_of(self, key: str, status: str, error: str | None) -> Facts:
        """What a trial has told at its end, or where it was cut short."""
        if key in self.facts:
            return self.facts.pop(key)
        curve, host = self.curves.get(key, []), self.hosts.get(key)
        return Facts(
            status=status,
            score=max((rung.score for rung in curve), default=None),
            examples=curve[-1].examples if curve else 0,
            curve=tuple((rung.examples, rung.score) for rung in curve),
            seconds=time.time() - self.started.get(key, time.time()),
            measured={"host": host.name} if host else {},
            error=error,
        )

    def _end(self, key: str, facts: Facts) -> None:
        """Take an end as it is, or hand the trial out once more."""
        work, host = self.proposals.works[key], self.hosts.get(key)
        cause = cause_of(facts.status, facts.error)
        self.attempts.append(Attempt(work.key, host.node if host else "", cause == "none"))
        bad = avoided(self.attempts)
        for node in bad - self.proposals.avoid:
            # Finalists' fits, too, then stay away from it.
            os.environ[AVOIDED] = ",".join(sorted({*avoided_nodes(), node}))
            self.on_avoid(self.names[node])
        self.proposals.avoid |= bad
        may_pass = False
        if cause != "none":
            # Waiting at a rung is no failure, and does not count.
            mine = [one for one in self.attempts if one.trial == work.key and not one.well]
            decision = after_end(cause, mine, _hosts_for(self.resources[work.pretrained.name]) - self.proposals.avoid)
            if isinstance(decision, Again):
                self.troubles.setdefault(work.key, []).append((facts.error or "").strip()[-500:])
                self.proposals.give_back(key, decision.without)
                return
            may_pass = decision.may_pass
        if work.key in self.troubles:
            facts = replace(facts, measured={**facts.measured, "retried_after": self.troubles[work.key]})
        facts = self._whole(work, facts)
        self.proposals.tell(key, facts.score)
        waits = facts.status == "stopped" and host is not None
        self.proposals.note(work, facts.curve, None, waits=waits)
        self.on_end(work, facts, may_pass)

    def _whole(self, work: Work, facts: Facts) -> Facts:
        """Put together what a trial gave before it waited and after."""
        before = self.proposals.parts.get(work.key)
        curve = {**dict(before.curve), **dict(facts.curve)} if before else {}
        if before and curve:
            facts = replace(
                facts,
                curve=tuple(sorted(curve.items())),
                score=max(curve.values()),
                examples=max(facts.examples, before.examples),
                seconds=facts.seconds + before.seconds,
            )
        self.proposals.parts[work.key] = facts
        return facts


def _hosts_for(demand: Resources) -> set[str]:
    """Nodes that could hold a worker."""
    return {
        one.id for one in capacity().each if one.cpus >= demand.cpus_per_worker and one.gpus >= demand.gpus_per_worker
    }
