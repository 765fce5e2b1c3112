"""Rank and sweep on a Ray cluster: carries out what ``pmray.selection`` decides."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pmray.distributed.train import FAILURES, failure_of, scaling
from pmray.selection import proxies
from pmray.selection.features import look
from pmray.selection.halving import Standing, Stop, halve
from pmray.selection.search import Proposal, Search
from pmray.spec import Resources
from pmray.training.loop import Rung
from pmray.training.model import Pretrained
from pmray.training.trial import Facts, Work, carry_out, open_task

WORKER_DIED = "the trial's worker process died (killed, or out of memory); it was tried again and died again"


def rank_candidates(
    candidates: Sequence[Pretrained],
    resources: Mapping[str, Resources],
    settings: Mapping[str, Any],
    metric: str,
    cache: Path,
    encodings: Mapping[str, str],
    rows: NDArray[np.int64],
    targets: NDArray[Any],
    on_end: Callable[[Pretrained, dict[str, float] | None, proxies.Cost | None, str | None, float], None],
) -> None:
    """Score frozen candidates on the same training rows, in parallel.

    Args:
        candidates: Who.
        resources: Candidate -> CPUs and GPUs of its task.
        settings: ``task.to_json()``.
        metric: Name of the deciding metric.
        cache: Folder of encoded data.
        encodings: Candidate -> key of its encoded data.
        rows: Positions of the training rows.
        targets: Their labels.
        on_end: Called with (candidate, proxies, cost of a row, error, seconds) as each one ends.
    """
    shared = ray.put((rows, targets))
    running = {}
    for one in candidates:
        demand = resources[one.name]
        task = _rank_one.options(num_cpus=demand.cpus_per_worker, num_gpus=demand.gpus_per_worker)
        running[task.remote(one, settings, metric, str(cache), encodings[one.name], shared)] = one
    while running:
        done, _ = ray.wait(list(running), num_returns=1)
        one = running.pop(done[0])
        try:
            scores, cost, seconds = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            on_end(one, None, None, str(error.cause).strip()[-500:], 0.0)
        except ray.exceptions.RayError as error:
            on_end(one, None, None, f"{type(error).__name__}: {str(error).strip()[:300]}", 0.0)
        else:
            on_end(one, scores, cost, None, seconds)


@ray.remote(max_retries=1)
def _rank_one(
    one: Pretrained,
    settings: Mapping[str, Any],
    metric: str,
    cache: str,
    encoding: str,
    shared: tuple[NDArray[np.int64], NDArray[Any]],
) -> tuple[dict[str, float], proxies.Cost, float]:
    started = time.perf_counter()
    rows, targets = shared
    seen = look(one, settings, Path(cache), encoding, rows)
    scores = proxies.judge(seen.features, targets, open_task(settings), metric, seen.source)
    return scores, proxies.Cost(seen.latency_ms, seen.memory_bytes), time.perf_counter() - started


def run_trials(
    search: Search,
    make_work: Callable[[Proposal], Work],
    resources: Mapping[str, Resources],
    *,
    trials: int,
    at_a_time: int,
    reduction: float,
    enough: Callable[[], bool],
    scratch: Path,
    on_start: Callable[[Work], None],
    on_rung: Callable[[Work, Rung], None],
    on_end: Callable[[Work, Facts, bool], None],
) -> None:
    """Run a sweep as one Tune run over (candidate, recipe).

    One-worker trials run the pure loop inside reused Tune actors; a candidate with more workers nests Ray Train.

    Args:
        search: Proposes and learns.
        make_work: Turns a proposal into names, paths and numbers.
        resources: Candidate -> what one trial gets.
        trials: How many to run.
        at_a_time: Trials that run at once.
        reduction: Of the halving; see ``selection.halving``.
        enough: Whether a budget is used up, so that no further trial is started.
        scratch: Folder for Tune's own files; removed by the caller.
        on_start: Called in the driver when a trial starts.
        on_rung: Called when it reaches a rung.
        on_end: Called with (work, facts, may_pass) when it has ended, well or not.
    """
    proposals = _Proposals(search, make_work, trials, enough)
    if proposals.first is None:
        return
    # Trials of one worker share actors; several workers make a trial that ends its own worker group.
    nested = {name: demand for name, demand in resources.items() if demand.most > 1}

    def demand_of(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        name = config["work"].pretrained.name
        if name in nested:
            # The worker group asks for its own resources; this process only waits for it, and takes no part of a CPU,
            # which the group may need whole. A placement group must hold something: one byte.
            return tune.PlacementGroupFactory([{"memory": 1}])
        bundle = {"CPU": resources[name].cpus_per_worker}
        if resources[name].gpus_per_worker:
            bundle["GPU"] = resources[name].gpus_per_worker
        return tune.PlacementGroupFactory([bundle])

    alike = len({(one.cpus_per_worker, one.gpus_per_worker) for one in resources.values()}) == 1 and not nested
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, nested=nested, scratch=str(scratch)), demand_of),
        tune_config=tune.TuneConfig(
            search_alg=proposals,
            scheduler=_Halving(reduction, proposals),
            # The searcher says when it is at its end; it may hand out a trial twice.
            num_samples=2 * trials,
            max_concurrent_trials=at_a_time,
            # An actor is reused whatever the next trial asks for, so only where all ask for the same.
            reuse_actors=alike,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(scratch),
            # Only the death of a process comes here; what a trial did wrong comes back as facts.
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[_News(proposals, on_start, on_rung, on_end)],
            verbose=0,
        ),
    )
    tuner.fit()


def _trial(config: dict[str, Any], nested: Mapping[str, Resources], scratch: str) -> None:
    """One Tune trial. Gets names and numbers; opens everything else itself."""
    work: Work = config["work"]
    demand = nested.get(work.pretrained.name)
    if demand is None:
        facts = carry_out(work, lambda rung: tune.report(_rung_report(rung)))
        tune.report({"examples": facts.examples, "facts": facts})
        return
    trainer = TorchTrainer(
        _nested_worker,
        train_loop_config={"work": work},
        scaling_config=scaling(demand),
        run_config=ray.train.RunConfig(
            name=work.key, storage_path=scratch, failure_config=FAILURES, callbacks=[TuneReportCallback()]
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        tune.report({"examples": 0, "facts": failure_of(error, demand)})


def _nested_worker(config: dict[str, Any]) -> None:
    facts = carry_out(config["work"], lambda rung: ray.train.report(_rung_report(rung)))
    ray.train.report({"examples": facts.examples, "facts": facts})


def _rung_report(rung: Rung) -> dict[str, Any]:
    return {"examples": rung.examples, "score": rung.score, "rung": rung}


class _Driver:
    """Base of objects that live in the driver only: Tune tries to write them to disk, and need not."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Proposals(_Driver, Searcher):
    """Hands the search's proposals to Tune, and the scores back."""

    def __init__(
        self, search: Search, make_work: Callable[[Proposal], Work], trials: int, enough: Callable[[], bool]
    ) -> None:
        # No metric: Tune would then demand it of every report, also of the last one, which brings facts.
        super().__init__()
        self.search, self.make_work, self.left, self.enough = search, make_work, trials, enough
        self.first = search.ask()
        """Asked before Tune starts, which cannot run without a trial."""
        self.numbers: dict[str, int] = {}
        self.works: dict[str, Work] = {}
        self.under_way: set[str] = set()
        self.given_back: list[str] = []
        """Trials to hand out once more, under another id."""
        self.twice: set[str] = set()
        """Keys of the trials handed out once more."""

    def suggest(self, trial_id: str) -> Any:
        if self.given_back:
            lost = self.given_back.pop()
            number, work = self.numbers[lost], self.works[lost]
        else:
            proposal = self._next()
            if proposal is None:
                # A trial under way may yet be given back.
                return None if self.under_way else Searcher.FINISHED
            number, work = proposal.number, self.make_work(proposal)
        self.under_way.add(trial_id)
        self.numbers[trial_id], self.works[trial_id] = number, work
        return {"work": work}

    def _next(self) -> Proposal | None:
        if self.left == 0 or self.enough():
            return None
        proposal = self.search.ask() if self.first is None else self.first
        self.first = None
        self.left = 0 if proposal is None else self.left - 1
        return proposal

    def give_back(self, trial_id: str) -> bool:
        """Hand a trial out once more, because it never started; False when it has already been handed out twice."""
        key = self.works[trial_id].key
        if key in self.twice:
            return False
        self.under_way.discard(trial_id)
        self.twice.add(key)
        self.given_back.append(trial_id)
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Scores are told by ``_News``, which knows what kind of end it was."""

    def tell(self, trial_id: str, score: float | None) -> None:
        self.under_way.discard(trial_id)
        self.search.tell(self.numbers[trial_id], score)

    def save(self, checkpoint_path: str) -> None:
        """The ledger is what a sweep resumes from."""

    def restore(self, checkpoint_path: str) -> None:
        """See ``save``."""


class _Halving(_Driver, FIFOScheduler):
    """Asks ``selection.halving`` at every rung."""

    def __init__(self, reduction: float, proposals: _Proposals) -> None:
        super().__init__()
        self.reduction, self.proposals = reduction, proposals
        self.rungs: dict[int, dict[str, Standing]] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        work = self.proposals.works[trial.trial_id]
        examples = result["examples"]
        if "facts" in result or examples >= work.budget:
            return str(TrialScheduler.CONTINUE)
        standings = self.rungs.setdefault(examples, {})
        # A trial that was started anew after its worker died arrives a second time, and replaces itself.
        standings[trial.trial_id] = Standing(trial.trial_id, work.pretrained.name, result["score"])
        first = examples == min(self.rungs)
        decision = halve(trial.trial_id, list(standings.values()), reduction=self.reduction, first_rung=first)
        return str(TrialScheduler.STOP if isinstance(decision, Stop) else TrialScheduler.CONTINUE)


class _News(_Driver, tune.Callback):
    """Passes what happens to trials on to the driver's callbacks."""

    def __init__(
        self,
        proposals: _Proposals,
        on_start: Callable[[Work], None],
        on_rung: Callable[[Work, Rung], None],
        on_end: Callable[[Work, Facts, bool], None],
    ) -> None:
        self.proposals = proposals
        self.on_start, self.on_rung, self.on_end = on_start, on_rung, on_end
        self.curves: dict[str, list[Rung]] = {}
        self.started: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.curves[trial.trial_id] = []
        self.started[trial.trial_id] = time.time()
        self.on_start(self.proposals.works[trial.trial_id])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "facts" not in result and "rung" in result:
            self.curves[trial.trial_id].append(result["rung"])
            self.on_rung(self.proposals.works[trial.trial_id], result["rung"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        facts = trial.last_result.get("facts") or self._cut_short(trial.trial_id, "stopped", None)
        self._end(trial.trial_id, facts, may_pass=facts.status == "unavailable")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Tune does not retry a trial whose actor died between the last trial's end and this one's start.
        if trial.trial_id not in self.started and self.proposals.give_back(trial.trial_id):
            return
        self._end(trial.trial_id, self._cut_short(trial.trial_id, "failed", WORKER_DIED), may_pass=True)

    def _cut_short(self, trial_id: str, status: str, error: str | None) -> Facts:
        curve = self.curves.get(trial_id, [])
        return Facts(
            status=status,
            score=max((rung.score for rung in curve), default=None),
            examples=curve[-1].examples if curve else 0,
            curve=tuple((rung.examples, rung.score) for rung in curve),
            seconds=time.time() - self.started.get(trial_id, time.time()),
            error=error,
        )

    def _end(self, trial_id: str, facts: Facts, *, may_pass: bool) -> None:
        self.proposals.tell(trial_id, facts.score)
        self.on_end(self.proposals.works[trial_id], facts, may_pass)
