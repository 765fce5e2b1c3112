"""The story from a spec to a registered winner: rank, sweep, re-fit finalists, open the test rows, decide, register.

Every step first looks into the ledger for what is already known, so a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from pmray import preparation
from pmray.bundle import open_bundle
from pmray.data.load import read_sealed
from pmray.data.split import group_numbers
from pmray.distributed.cluster import Capacity, at_a_time, connected
from pmray.distributed.doctor import checked
from pmray.distributed.searchers import check_algorithm, search_of
from pmray.distributed.tune import run_trials
from pmray.errors import NoVerdict, RegistryError
from pmray.export import export, has_weights, is_exported
from pmray.fitting import described, encode, fit_works, prepare_run, share_models, within_disk
from pmray.preparation import Prepared
from pmray.ranking import current_trials, experience_of, learn, rank_stage, ranking_agreement, signature
from pmray.registry import Version, keep, register
from pmray.report.console import failures_table, verdict_panel
from pmray.report.progress import TrialBoard, people
from pmray.reporting import write_report
from pmray.run import Run, open_run
from pmray.scoring.calibration import rescaled
from pmray.scoring.probabilities import lines_of, probability_metrics
from pmray.scoring.ragged import flat
from pmray.selection.budget import Spent
from pmray.selection.certainty import settled_leaders
from pmray.selection.experience import first_recipes, weights_of
from pmray.selection.failures import ATTEMPTS, IN_A_ROW, PASSING, cause_of
from pmray.selection.halving import Reached, finalists, most_waiting, out_of_reach
from pmray.selection.ledger import Outcome, latest, outcome_of
from pmray.selection.proxies import Agreement, Ranked
from pmray.selection.reuse import reuse_told
from pmray.selection.search import Tried
from pmray.selection.verdict import Contender, Verdict, decide, gain_over_default
from pmray.spec import Recipe, Spec, digest
from pmray.storage import is_remote
from pmray.tasks.base import Outcomes
from pmray.tasks.baselines import fit_baseline
from pmray.tracking import describe_model, story_of, track
from pmray.training.trial import (
    Facts,
    Work,
    checkpoint_folder,
    open_task,
    predictions_folder,
    read_predictions,
    save_predictions,
)


@dataclass(frozen=True)
class Swept:
    """What a sweep gave."""

    verdict: Verdict
    bundle: Path
    version: Version
    folder: Path
    """The run folder."""
    outcomes: Sequence[Outcome]
    report: Path | None = None
    """One HTML file; None where it could not be written."""


def rank(
    spec: Spec,
    *,
    address: str | None = None,
    strict: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> list[Ranked]:
    """Order the candidates by how well their frozen features suit the data; minutes, no fine-tuning.

    Args:
        spec: The job.
        address: Of a Ray cluster; by default this machine.
        strict: A candidate that cannot be had is an error.
        force: Leave out nodes of the cluster that are not fit for the run, in place of refusing.
        console: For progress; standard error by default.

    Raises:
        DataError: The data cannot be used.
        NoVerdict: No candidate can be had.
    """
    preparation.check_command(spec, labels=True)
    console = console or people()
    with open_run(spec) as run:
        prepared = prepare_run(spec, run, console, strict)
        with connected(address) as cluster:
            cluster = checked(spec, cluster, force=force)
            prepared = share_models(prepared, cluster, console)
            encode(prepared, cluster, console)
            return rank_stage(prepared, run, cluster, console)


def sweep(
    spec: Spec,
    *,
    address: str | None = None,
    fresh: bool = False,
    strict: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> Swept:
    """Find, prove, export and register the best model; run again to continue after any interruption.

    Args:
        spec: The job.
        address: Of a Ray cluster; by default this machine.
        fresh: Put an earlier run of this name aside instead of continuing it.
        strict: A candidate that cannot be had is an error.
        force: Leave out nodes of the cluster that are not fit for the run, in place of refusing.
        console: For progress; standard error by default.

    Raises:
        DataError: The data cannot be used; nothing was started.
        ClusterError: The plan does not fit the cluster.
        NoVerdict: No trial gave a score.
    """
    preparation.check_command(spec, labels=True)
    check_algorithm(spec.search)
    console = console or people()
    with open_run(spec, fresh=fresh) as run:
        prepared = prepare_run(spec, run, console, strict)
        _baselines(prepared, run, console)
        with connected(address) as cluster:
            cluster = checked(spec, cluster, force=force)
            prepared = share_models(prepared, cluster, console)
            encode(prepared, cluster, console)
            prepared = within_disk(prepared, cluster, console)
            ranked = rank_stage(prepared, run, cluster, console)
            _tell_reuse(prepared, run, console)
            _search(prepared, run, [one.candidate for one in ranked if one.kept], cluster, console)
            learn(prepared, run, console)
            agreed = ranking_agreement(prepared, run, ranked, console)
            chosen = _finalists(prepared, run)
            works = _refit(prepared, run, chosen, console)
            verdict = _decide(prepared, run, works, ranked, agreed, console)
            winner = _best_fit(works[verdict.winner])
            if not has_weights(run, winner):
                # The run had been decided for another winner, and this one's weights deleted.
                works = _refit(prepared, run, chosen, console, again={winner.key})
        bundle = _export(prepared, run, winner, verdict)
        report = _report(run, console)
        version = _register(prepared, run, bundle, verdict, winner, console)
        _tidy(run)
        console.print(verdict_panel(verdict))
        if table := failures_table(list(latest(run.ledger.outcomes).values())):
            console.print(table)
        console.print(f"winner: {bundle}\nregistered: {version} as champion in {spec.registry_uri}\nrun: {run.folder}")
        if report:
            console.print(f"report: {report}")
        return Swept(verdict, bundle, version, run.folder, tuple(run.ledger.outcomes), report)


def fit(
    spec: Spec,
    candidate: str,
    *,
    recipe: Mapping[str, Any] | None = None,
    seed: int = 0,
    address: str | None = None,
    force: bool = False,
    console: Console | None = None,
) -> Path:
    """Fine-tune one candidate with its default recipe (or a changed one) on its workers, and export it.

    The test rows stay sealed; the score is on validation rows.

    Args:
        spec: The job; its search part is not used.
        candidate: Name of the candidate.
        recipe: Values that differ from the default recipe.
        seed: Seed of the fit.
        address: Of a Ray cluster; by default this machine.
        force: Leave out nodes of the cluster that are not fit for the run, in place of refusing.
        console: For progress; standard error by default.

    Returns:
        Folder of the bundle.

    Raises:
        UnknownName: No such candidate.
        NoVerdict: The fit failed; says why.
    """
    preparation.check_command(spec, labels=True)
    console = console or people()
    asked = spec.candidate(candidate)
    merged = asked.model_copy(update={"recipe": {**asked.recipe, **(recipe or {})}, "space": {}})
    one = Spec.model_validate({**spec.model_dump(), "candidates": [merged.model_dump()]})
    with open_run(one) as run:
        prepared = prepare_run(one, run, console, strict=True)
        with connected(address) as cluster:
            cluster = checked(spec, cluster, force=force)
            prepared = within_disk(share_models(prepared, cluster, console), cluster, console)
            encode(prepared, cluster, console)
            work = prepared.work(
                "final", candidate, prepared.arms[candidate].default, seed, run.folder, states=run.states
            )
            facts = fit_works(prepared, run, [work], console, title="fit")[work.key]
        if facts.status != "done":
            raise NoVerdict(f"{candidate}: {facts.error}")
        folder = run.folder / "fits" / work.key
        return export(prepared, run, _latest(run, work.key), folder)


def _baselines(prepared: Prepared, run: Run, console: Console) -> None:
    """Fit what needs no transformer, unless the ledger has it."""
    known = run.ledger.settled("baseline")
    for name, kind in prepared.task.baselines.items():
        key = _baseline_key(prepared, kind)
        if key in known:
            continue
        started = time.perf_counter()
        data = prepared.dataset
        with console.status(f"baseline: {name}"):
            validation, (test,) = fit_baseline(
                kind, prepared.task, data.train, data.validation, [data.test], metric=prepared.metric
            )
        task = prepared.task.tuned(validation, prepared.task.targets(data.validation), prepared.metric)
        folder = predictions_folder(run.folder, key)
        save_predictions(folder / "validation.parquet", data.validation["row_id"].to_pylist(), validation)
        save_predictions(folder / "test.parquet", data.test["row_id"].to_pylist(), test)
        run.keep(f"predictions/{key}")
        outcomes = task.outcome(validation, task.targets(data.validation))
        run.ledger.append(
            Outcome(
                key=key,
                stage="baseline",
                candidate=name,
                status="done",
                score=float(task.score(prepared.metric, outcomes, np.ones((1, len(outcomes))))[0]),
                seconds=round(time.perf_counter() - started, 3),
                facts={"task": task.to_json()},
            )
        )


def _tell_reuse(prepared: Prepared, run: Run, console: Console) -> None:
    """Say what of an earlier run of this folder a changed spec cannot use."""
    names = [one.name for one in prepared.candidates]
    told = reuse_told(
        run.ledger.settled("sweep").values(),
        {one.key for one in current_trials(prepared, run, names)},
        data=prepared.dataset.key,
        metric=prepared.metric,
        revisions={one.name: one.revision for one in prepared.candidates},
    )
    if told:
        console.print(f"[yellow]{told}[/]")


def _search(prepared: Prepared, run: Run, kept: Sequence[str], cluster: Capacity, console: Console) -> None:
    """Run what is left of the sweep's trials."""
    spec = prepared.spec
    arms = [prepared.arms[name] for name in kept]
    tried = _tried(prepared, run, kept)
    left = spec.search.trials - len(tried)
    if spec.search.trials >= len(kept):
        # A candidate or a recipe that has been added to the spec since then is tried in any case.
        known = {(one.candidate, one.recipe) for one in tried}
        left = max(left, sum((arm.candidate, arm.default) not in known for arm in arms))
    if left <= 0:
        console.print(f"sweep: all {len(tried)} trials are in the ledger")
    elif tried:
        console.print(f"sweep: {len(tried)} trials are in the ledger, {left} to go")
    left = max(0, left)
    if spec.search.trials < len(kept):
        console.print(
            f"[yellow]search.trials = {spec.search.trials} is less than {len(kept)} candidates: some are not tried[/]"
        )
    resources = {name: spec.resources_of(spec.candidate(name)) for name in kept}
    parallel = at_a_time(resources, cluster, spec.search.concurrency)
    by_weights = {weights_of(prepared.pretrained(arm.candidate)): arm for arm in arms}
    proven = first_recipes(experience_of(prepared, None), signature(prepared), by_weights)
    first = [(by_weights[weights].candidate, recipe) for weights, recipe in proven.items()]
    search = search_of(spec.search, arms, tried, first)
    spent = Spent.of(run.ledger.settled("sweep").values(), resources)
    known_trials = current_trials(prepared, run, kept)
    ended_trials = {one.key: one for one in known_trials}
    pause = _may_pause(prepared, len(kept), console)
    without_state: set[str] = set()
    started = time.time()

    def over() -> str | None:
        """Which budget is used up, in words, or None."""
        return spent.reached(spec.search, time.time() - started)

    def enough() -> str | None:
        """Why no further trial is started, in words, or None."""
        if (reason := over()) or not spec.search.until_sure:
            return reason
        validation = len(prepared.dataset.validation)
        return settled_leaders(ended_trials.values(), kept, validation, spec.search.finalists)

    if left and (reason := enough()):
        # By an earlier run of this folder.
        console.print(f"[yellow]no further trial is started: {reason}[/]")
        left = 0
    board = TrialBoard(
        console,
        "sweep",
        prepared.metric,
        left,
        left * prepared.rungs[-1],
        budgets=lambda: spent.used(spec.search, time.time() - started),
    )
    with board:

        def ended(work: Work, facts: Facts, may_pass: bool) -> None:
            outcome = outcome_of(work, facts, "sweep", may_pass=may_pass)
            run.ledger.append(outcome)
            spent.add(outcome, resources)
            ended_trials[outcome.key] = outcome
            if outcome.status != "stopped":
                run.discard_state(work.key)
            drop_states(outcome.candidate)
            board.end(work.key, outcome)

        def drop_states(candidate: str) -> None:
            """Delete states that a trial has put out of reach: its own, or those of others of its candidate."""
            reached = [
                Reached(one.key, one.candidate, dict(one.curve), one.status == "stopped")
                for one in ended_trials.values()
                if one.curve
            ]
            total = max(spec.search.trials, len(reached))
            mine = [one for one in reached if one.candidate == candidate and one.waits]
            for one in mine:
                lost = out_of_reach(one, reached, prepared.rungs, total, spec.search.reduction)
                if lost and one.trial not in without_state:
                    without_state.add(one.trial)
                    run.discard_state(one.trial)

        run_trials(
            search,
            lambda proposal: prepared.work(
                "sweep", proposal.candidate, proposal.recipe, spec.search.seed, states=run.states
            ),
            resources,
            trials=left,
            at_a_time=parallel,
            reduction=spec.search.reduction if spec.search.stop else math.inf,
            enough=lambda: enough() is not None,
            scratch=run.scratch,
            on_start=lambda work: board.start(work.key, *described(prepared, work)),
            on_rung=lambda work, rung: board.rung(work.key, rung.examples, rung.score),
            on_end=ended,
            earlier=known_trials,
            over=lambda: over() is not None,
            pause=pause,
            on_avoid=lambda host: console.print(
                f"[yellow]{host} gets no more trials: it failed {IN_A_ROW} in a row that others ran well[/]"
            ),
        )
    for key in ended_trials:
        run.discard_state(key)
    reason = enough()
    if reason and board.ended < left:
        console.print(f"[yellow]the sweep ended early: {reason}[/]")


def _may_pause(prepared: Prepared, candidates: int, console: Console) -> bool:
    """Whether trials wait at their rungs: the spec says so, and the states of all of them find room on the disk."""
    search = prepared.spec.search
    if not (search.pause and search.stop and prepared.keep_states and search.rungs):
        return False
    largest = max(one.parameters for one in prepared.candidates)
    # Weights, their best so far, and the optimizer's two moments, in fp32.
    count = most_waiting(search.trials, candidates, search.reduction)
    states = 16 * largest * count
    free = shutil.disk_usage(prepared.cache).free
    room = min(free // 2, free if search.max_disk is None else search.max_disk)
    if states > room:
        console.print(
            f"[yellow]trials do not wait at rungs: the states of {count} would take {states / 1e9:.1f} GB, and "
            f"there are {room / 1e9:.1f} GB for them; each is decided about as it arrives[/]"
        )
    return states <= room


def _tried(prepared: Prepared, run: Run, kept: Sequence[str]) -> list[Tried]:
    """Trials of these candidates on this data that the ledger has settled."""
    return [Tried(one.candidate, Recipe(**one.recipe), one.score) for one in current_trials(prepared, run, kept)]


def _finalists(prepared: Prepared, run: Run) -> list[Outcome]:
    names = [one.name for one in prepared.candidates]
    outcomes = [one for one in current_trials(prepared, run, names) if one.status in ("done", "stopped")]
    chosen = finalists(outcomes, prepared.spec.search.finalists)
    if not chosen:
        raise NoVerdict(f"no trial gave a score; {run.ledger.path} says why each one failed.")
    return chosen


def _refit(
    prepared: Prepared,
    run: Run,
    chosen: Sequence[Outcome],
    console: Console,
    *,
    again: set[str] = frozenset(),  # type: ignore[assignment]
) -> dict[str, list[Outcome]]:
    """Fit each finalist with several seeds; returns their outcomes, by candidate.

    Args:
        prepared: The job.
        run: Where to.
        chosen: Finalists, best first.
        console: For progress.
        again: Keys that are fitted although the ledger has them.
    """
    groups: dict[str, list[Work]] = {}
    for one in chosen:
        # Seeds of the fits are not that of the search: the search has already picked by that one.
        seeds = [prepared.spec.search.seed + 1 + index for index in range(prepared.spec.search.seeds)]
        groups[one.candidate] = [
            prepared.work("final", one.candidate, Recipe(**one.recipe), seed, run.folder, states=run.states)
            for seed in seeds
        ]
    known = run.ledger.settled("final")
    left = [work for works in groups.values() for work in works if work.key in again or not _is_settled(work, known)]
    for _ in range(ATTEMPTS):
        if not left:
            break
        ended = fit_works(
            prepared, run, left, console, title="finalists", on_done=partial(_drop_losing_seeds, run, groups)
        )
        left = [work for work in left if cause_of(ended[work.key].status, ended[work.key].error) in PASSING]
    known = run.ledger.settled("final")
    done = {
        name: [known[work.key] for work in works if work.key in known and known[work.key].status == "done"]
        for name, works in groups.items()
    }
    if not any(done.values()):
        raise NoVerdict(f"no finalist could be fitted again; {run.ledger.path} says why.")
    return {name: outcomes for name, outcomes in done.items() if outcomes}


def _is_settled(work: Work, known: Mapping[str, Outcome]) -> bool:
    """A finished fit counts only with its predictions on disk."""
    return work.key in known and (known[work.key].status != "done" or (work.predictions / "test.parquet").is_file())


def _drop_losing_seeds(run: Run, groups: Mapping[str, Sequence[Work]], ended: Work) -> None:
    """Delete the weights of all fits of a candidate but its best so far: they can no longer be exported."""
    known = run.ledger.settled("final")
    same = [known[work.key] for work in groups[ended.pretrained.name] if work.key in known]
    done = [one for one in same if one.status == "done"]
    for one in done:
        if one.key != _best_fit(done).key:
            run.discard(checkpoint_folder(run.folder, one.key))


def _decide(
    prepared: Prepared,
    run: Run,
    works: Mapping[str, Sequence[Outcome]],
    ranked: Sequence[Ranked],
    agreed: Agreement | None,
    console: Console,
) -> Verdict:
    """Open the test rows, for all finalists and baselines together, and decide."""
    data = prepared.dataset
    keys = sorted(one.key for outcomes in works.values() for one in outcomes)
    opened = digest("\n".join([data.key, prepared.metric, *keys]))
    known = [one for one in run.ledger.outcomes if one.stage == "test"]
    labels = read_sealed(prepared.cache, data.key)
    if opened not in {one.key for one in known}:
        run.ledger.append(
            Outcome(key=opened, stage="test", candidate="", status="done", facts={"data": data.key, "fits": keys})
        )
    times = len({one.key for one in run.ledger.outcomes if one.stage == "test" and one.facts.get("data") == data.key})
    swept = current_trials(prepared, run, list(works))
    memory = {one.candidate: one.cost.memory_bytes for one in ranked if one.cost}
    contenders = []
    for name, outcomes in works.items():
        searched = [
            one.score
            for one in swept
            if one.candidate == name and one.recipe == outcomes[0].recipe and one.score is not None
        ]
        default = prepared.arms[name].default.model_dump()
        curves = {
            which: dict(one.curve)
            for one in swept
            if one.candidate == name and one.curve
            for which, recipe in (("default", default), ("chosen", outcomes[0].recipe))
            if one.recipe == recipe
        }
        default_score, gain = gain_over_default(curves.get("chosen", {}), curves.get("default", {}))
        contenders.append(
            Contender(
                name=name,
                outcomes=[_test_outcomes(run, one, labels) for one in outcomes],
                search_score=max(searched, default=None),
                default_score=default_score,
                search_gain=gain,
                validation_score=float(np.mean([one.score for one in outcomes])),
                latency_ms=float(np.median([one.facts["latency_ms"] for one in outcomes])),
                parameters=int(outcomes[0].facts["parameters"]),
                training_seconds=float(np.mean([one.facts["train_seconds"] for one in outcomes])),
                memory_bytes=memory.get(name, 0),
            )
        )
    for name, kind in prepared.task.baselines.items():
        outcome = run.ledger.settled("baseline")[_baseline_key(prepared, kind)]
        contenders.append(
            Contender(
                name=name,
                outcomes=[_test_outcomes(run, outcome, labels)],
                baseline=True,
                validation_score=outcome.score,
                training_seconds=outcome.seconds,
            )
        )
    searched = [one.score for one in current_trials(prepared, run, list(prepared.arms)) if one.score is not None]
    with console.status("comparing on the test rows"):
        verdict = decide(
            contenders,
            prepared.task,
            prepared.metric,
            prepared.spec.decide,
            # Groups are no secret: they lie beside the sealed labels.
            group_numbers(data.test),
            searched,
        )
    if times > 1:
        console.print(
            f"[yellow]The test labels of this data were opened {times} times for different fits: "
            "the more often, the less the number is worth.[/]"
        )
    calibration = {
        name: _calibration(run, _best_fit(outcomes), labels, prepared.metric) for name, outcomes in works.items()
    }
    if told := calibration[verdict.winner]:
        effects = ", ".join(
            f"{name} {one['before']:.3f} -> {one['after']:.3f}" for name, one in told.items() if isinstance(one, dict)
        )
        console.print(f"calibration of {verdict.winner} (fitted on validation; its effect on the test rows): {effects}")
    trials = [one for one in latest(run.ledger.outcomes).values() if one.stage in ("rank", "sweep", "final")]
    run.write_verdict(
        {
            **verdict.to_json(),
            "test_opened": times,
            "calibration": calibration,
            "ranking": asdict(agreed) if agreed else None,
            "seconds": {
                stage: round(sum(one.seconds for one in trials if one.stage == stage), 1)
                for stage in ("rank", "sweep", "final")
            },
            "failures": [
                {
                    "candidate": one.candidate,
                    "stage": one.stage,
                    "status": one.status,
                    "host": one.facts.get("host"),
                    "error": one.error,
                    "retried_after": one.facts.get("retried_after", []),
                }
                for one in trials
                if one.error or one.facts.get("retried_after")
            ],
        }
    )
    return verdict


def _calibration(run: Run, fit: Outcome, labels: pa.Table, metric: str) -> dict[str, Any] | None:
    """What temperature and thresholds, fitted on validation, change on the test rows; None for a model without them."""
    if (temperature := fit.facts.get("temperature")) is None:
        return None
    task = open_task(fit.facts["task"])
    truth = task.targets(labels)
    _, predicted = read_predictions(predictions_folder(run.folder, fit.key) / "test.parquet")
    targets, calm = flat(truth), flat(predicted)
    multi_label = targets.ndim == 2
    sure = rescaled(calm, 1 / temperature, multi_label=multi_label)
    one = np.ones((1, len(targets)))
    changed = {
        name: {
            "before": float(of(lines_of(targets, sure), one)[0]),
            "after": float(of(lines_of(targets, calm), one)[0]),
        }
        for name, of in probability_metrics(len(task.labels), multi_label=multi_label).items()
        if name in ("log_loss", "brier", "ece")
    }
    if multi_label:
        # Without thresholds of its own, a task says a label at 0.5.
        plain = open_task({**fit.facts["task"], "thresholds": []})
        changed[metric] = {
            "before": float(plain.score(metric, plain.outcome(sure, targets), one)[0]),
            "after": float(task.score(metric, task.outcome(calm, targets), one)[0]),
        }
    return {"temperature": temperature, **changed}


def _test_outcomes(run: Run, outcome: Outcome, labels: pa.Table) -> Outcomes:
    """Outcome lines of a fit's predictions on the test rows, with the thresholds it tuned on validation."""
    task = open_task(outcome.facts["task"])
    row_ids, scores = read_predictions(predictions_folder(run.folder, outcome.key) / "test.parquet")
    if row_ids != labels["row_id"].to_pylist():
        raise NoVerdict(f"the predictions of {outcome.candidate} are not of these test rows; run with --fresh.")
    return task.outcome(scores, task.targets(labels))


def _best_fit(outcomes: Sequence[Outcome]) -> Outcome:
    """The seed that is exported: the best on validation rows, so that the test rows stay untouched by this choice."""
    return max(outcomes, key=lambda one: (one.score, -one.seed))


def _latest(run: Run, key: str) -> Outcome:
    return latest(run.ledger.outcomes)[key]


def _export(prepared: Prepared, run: Run, winner: Outcome, verdict: Verdict) -> Path:
    if is_exported(run, winner):
        return run.bundle
    outcomes = _test_outcomes(run, winner, read_sealed(prepared.cache, prepared.dataset.key))
    deployed = float(prepared.task.score(prepared.metric, outcomes, np.ones((1, len(outcomes))))[0])
    return export(prepared, run, winner, run.bundle, verdict=verdict, deployed_score=deployed)


def _register(
    prepared: Prepared, run: Run, bundle: Path, verdict: Verdict, winner: Outcome, console: Console
) -> Version:
    line = verdict.line(verdict.winner)
    metrics = {f"test_{name}": interval.value for name, interval in line.metrics.items()}
    metrics |= {f"test_{verdict.metric}_low": line.score.low, f"test_{verdict.metric}_high": line.score.high}
    params = {"candidate": winner.candidate, "seed": winner.seed, **winner.recipe}
    uri = prepared.spec.registry_uri
    runs: dict[str, str] = {}
    try:
        with console.status("writing to MLflow"):
            runs = track(story_of(prepared, run), uri)
    except RegistryError as error:
        # What stands in the ledger can be written again; the winner is registered in any case.
        console.print(f"[yellow]{error}[/]")
    source = prepared.spec.location(bundle) if is_remote(prepared.spec.storage) else ""
    opened = open_bundle(bundle)
    run.keep(*(f"{bundle.name}/{name}" for name in describe_model(opened)))
    if not source:
        # `bundle` is replaced by the next winner; a version that is rolled back to must still be there.
        opened = keep(opened, prepared.spec.registered / str(opened.settings["key"]))
    return register(opened, uri, metrics=metrics, params=params, run_id=runs.get(winner.key), source=source)


def _report(run: Run, console: Console) -> Path | None:
    """Write the report; what goes wrong there does not undo a decision."""
    try:
        path = write_report(run.folder)
        run.keep(path.name)
        return path
    except Exception as error:  # noqa: BLE001
        console.print(f"[yellow]the report could not be written ({error}); `pmray report {run.folder}` tries again[/]")
        return None


def _tidy(run: Run) -> None:
    """Delete the weights of the losers; the winner's are in the bundle, and every prediction is kept."""
    run.discard(checkpoint_folder(run.folder, ""))


def _baseline_key(prepared: Prepared, kind: str) -> str:
    return digest(f"baseline {prepared.dataset.key} {prepared.task.to_json()} {prepared.metric} {kind}")
