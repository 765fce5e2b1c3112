"""The end of a sweep: baselines and finalists are fitted, the test rows opened once for all of them, and one wins."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from pmray.data.load import read_sealed
from pmray.data.split import group_numbers
from pmray.errors import NoVerdict
from pmray.run import Run
from pmray.scoring.calibration import rescaled
from pmray.scoring.probabilities import lines_of, probability_metrics
from pmray.scoring.ragged import flat
from pmray.selection.failures import ATTEMPTS, PASSING, cause_of
from pmray.selection.halving import finalists
from pmray.selection.ledger import Outcome, latest
from pmray.selection.proxies import Agreement, Ranked
from pmray.selection.verdict import Contender, Verdict, decide, gain_over_default
from pmray.spec import Recipe, digest
from pmray.stages.fitting import fit_works
from pmray.stages.preparation import Prepared
from pmray.stages.ranking import current_trials
from pmray.tasks.base import Outcomes
from pmray.tasks.baselines import fit_baseline
from pmray.training.trial import (
    Work,
    checkpoint_folder,
    open_task,
    predictions_folder,
    read_predictions,
    save_predictions,
)


def fit_baselines(prepared: Prepared, run: Run, console: Console) -> None:
    """Fit what needs no transformer, unless the ledger has it."""
    known = run.ledger.settled("baseline")
    for name, kind in prepared.task.baselines.items():
        key = baseline_key(prepared, kind)
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


def choose_finalists(prepared: Prepared, run: Run) -> list[Outcome]:
    """The best trial of each of the best candidates, best first.

    Raises:
        NoVerdict: No trial gave a score.
    """
    names = [one.name for one in prepared.candidates]
    outcomes = [one for one in current_trials(prepared, run, names) if one.status in ("done", "stopped")]
    chosen = finalists(outcomes, prepared.spec.search.finalists)
    if not chosen:
        raise NoVerdict(f"no trial gave a score; {run.ledger.path} says why each one failed.")
    return chosen


def refit(
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
        if one.key != best_fit(done).key:
            run.discard(checkpoint_folder(run.folder, one.key))


def decide_winner(
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
        # As recipes, not as they are written: an older ledger does not name every hyper-parameter.
        chosen, default = Recipe(**outcomes[0].recipe), prepared.arms[name].default
        mine = [(Recipe(**one.recipe), one) for one in swept if one.candidate == name]
        searched = [one.score for recipe, one in mine if recipe == chosen and one.score is not None]
        curves = {
            which: dict(one.curve)
            for found, one in mine
            if one.curve
            for which, recipe in (("default", default), ("chosen", chosen))
            if found == recipe
        }
        default_score, gain = gain_over_default(curves.get("chosen", {}), curves.get("default", {}))
        contenders.append(
            Contender(
                name=name,
                outcomes=[outcomes_on_test_rows(run, one, labels) for one in outcomes],
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
        outcome = run.ledger.settled("baseline")[baseline_key(prepared, kind)]
        contenders.append(
            Contender(
                name=name,
                outcomes=[outcomes_on_test_rows(run, outcome, labels)],
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
        name: _calibration(run, best_fit(outcomes), labels, prepared.metric) for name, outcomes in works.items()
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


def outcomes_on_test_rows(run: Run, outcome: Outcome, labels: pa.Table) -> Outcomes:
    """Outcome lines of a fit's predictions on the test rows, with the thresholds it tuned on validation."""
    task = open_task(outcome.facts["task"])
    row_ids, scores = read_predictions(predictions_folder(run.folder, outcome.key) / "test.parquet")
    if row_ids != labels["row_id"].to_pylist():
        raise NoVerdict(f"the predictions of {outcome.candidate} are not of these test rows; run with --fresh.")
    return task.outcome(scores, task.targets(labels))


def best_fit(outcomes: Sequence[Outcome]) -> Outcome:
    """The seed that is exported: the best on validation rows, so that the test rows stay untouched by this choice."""
    return max(outcomes, key=lambda one: (one.score, -one.seed))


def baseline_key(prepared: Prepared, kind: str) -> str:
    """Names a baseline's outcome by what produced it."""
    return digest(f"baseline {prepared.dataset.key} {prepared.task.to_json()} {prepared.metric} {kind}")
