"""A run folder as a sweep leaves it, made without training: data, ledger, predictions, verdict; scores by chance."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pmray import plugins
from pmray.data.load import cached_data, read_sealed
from pmray.run import FINDINGS, VERDICT, Run, environment
from pmray.scoring.ragged import is_ragged, ragged
from pmray.selection.ledger import Outcome
from pmray.selection.verdict import Contender, decide
from pmray.spec import Recipe
from pmray.spec_file import spec_from
from pmray.training.trial import predictions_folder, save_predictions
from tests.tiny import tiny_images, tiny_rows, tiny_tagged, write_rows

ROWS = {"text-classification": tiny_rows, "token-classification": tiny_tagged, "image-classification": tiny_images}
MODELS = {"bert": 0.9, "llama": 0.75, "gpt2": 0.5}
"""Model -> share of the rows (or words) of which it knows the label."""


def made_run(folder: Path, task_name: str = "text-classification", *, trials: int = 9, decided: bool = True, rows=None):
    """Write a run folder; returns the spec.

    Args:
        folder: Where data and runs go.
        task_name: The task.
        trials: Of the sweep.
        decided: Whether the test rows were opened.
        rows: Gives rows, such as ``tiny_rows``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows or ROWS[task_name]
    data = {
        split: str(write_rows(folder / f"{split}.parquet", rows(count, seed=seed)))
        for seed, (split, count) in enumerate({"train": 60, "validation": 40, "test": 90}.items())
    }
    spec = spec_from(
        {
            "name": f"made-{task_name}",
            "task": task_name,
            "data": data,
            "candidates": [{"model": f"nobody/{name}", "name": name} for name in [*MODELS, "gone"]],
            "search": {"trials": trials, "finalists": 2, "seeds": 2},
            "storage": str(folder / "runs"),
        }
    )
    kind = plugins.task_class(task_name)
    dataset, _ = cached_data(spec.data, kind.columns, spec.cache)
    task = kind.from_data(spec.data, dataset.train)
    metric = task.default_score()
    run = Run(spec.folder)
    chance = np.random.default_rng(0)

    def add(stage, name, status="done", **values):
        key = values.pop("key", f"{stage}{len(run.ledger.outcomes):04}")
        time = f"2026-11-24T12:{len(run.ledger.outcomes) // 60 % 60:02}:{len(run.ledger.outcomes) % 60:02}+00:00"
        one = Outcome(**{"key": key, "stage": stage, "candidate": name, "status": status, "time": time, **values})
        run.ledger.append(one)
        return one

    add("sweep", "gone", "unavailable", error="nobody/gone: <no> such model", may_pass=True)
    for name, skill in MODELS.items():
        proxies = {"LogME": skill - 1, "linear probe": skill}
        add("rank", name, seconds=2.0, facts={"proxies": proxies, "rows": 60})
    for number in range(trials):
        name = list(MODELS)[number % 3]
        lr = 1e-4 if number < 3 else float(np.round(10 ** chance.uniform(-5, -3), 6))
        best = MODELS[name] - 0.1 * abs(np.log10(lr) + 4) + chance.normal(0, 0.01)
        stopped = number % 3 == 2 or number % 5 == 4
        rungs = (20,) if stopped else (20, 60, 180)
        add(
            "sweep",
            name,
            "stopped" if stopped else "done",
            score=best,
            recipe=Recipe(lr=lr, batch_size=(16, 32)[number % 2]).model_dump(),
            examples=rungs[-1],
            curve=tuple((examples, best - 0.3 / (place + 1)) for place, examples in enumerate(rungs)),
            seconds=float(chance.uniform(2, 20)),
            facts={"family": name, "interval": [best - 0.05, best + 0.05], "host": "here", "parameters": 10_000},
        )
    add("sweep", "llama", "failed", error="Traceback\nRuntimeError: it broke", recipe=Recipe(lr=1.0).model_dump())
    finding = {"severity": "warning", "check": "made up", "message": "nothing <b>real</b>", "count": 1, "examples": []}
    (run.folder / FINDINGS).write_text(json.dumps([finding]))
    (run.folder / "spec.yaml").write_text(spec.to_yaml())
    (run.folder / "environment.json").write_text(json.dumps(environment()))
    if not decided:
        return spec

    def scores(targets, skill):
        """Score vectors of a model that knows some of the labels."""
        if is_ragged(targets):
            return ragged([scores(row, skill) for row in targets])
        several = targets.ndim == 2
        bits = targets if several else np.eye(len(task.labels))[targets]
        known = chance.random(len(bits)) < skill
        noise = chance.random(bits.shape)
        told = np.where(known[:, None], bits + 0.3 * noise, noise)
        return np.clip(told, 0, 1) if several else (told / told.sum(1, keepdims=True)).astype(np.float32)

    labels = read_sealed(spec.cache, dataset.key)
    truth, row_ids = task.targets(labels), labels["row_id"].to_pylist()
    contenders, fits = [], []
    for name, skill in [*list(MODELS.items())[:2], ("most frequent", 0.2)]:
        stage = "baseline" if skill == 0.2 else "final"
        outcomes = []
        for seed in (1, 2):
            fit = add(
                stage,
                name,
                score=skill,
                seed=seed,
                seconds=9.0,
                examples=180,
                recipe=Recipe().model_dump(),
                facts={"task": task.to_json(), "revision": f"r-{name}"},
            )
            said = scores(truth, skill)
            save_predictions(predictions_folder(run.folder, fit.key) / "test.parquet", row_ids, said)
            outcomes.append(task.outcome(said, truth))
            if stage == "final":
                fits.append(fit.key)
        contenders.append(
            Contender(
                name,
                outcomes,
                baseline=stage == "baseline",
                search_score=skill,
                default_score=skill - 0.1,
                validation_score=skill,
                latency_ms=10 * skill,
                parameters=int(1e6 * skill),
                training_seconds=30 * skill,
            )
        )
    add("test", "", key="opened", facts={"data": dataset.key, "fits": fits})
    spec = spec.model_copy(update={"decide": spec.decide.model_copy(update={"draws": 200})})
    verdict = decide(contenders, task, metric, spec.decide)
    calibration = {"temperature": 1.2, "ece": {"before": 0.05, "after": 0.03}}
    ranking = {"candidates": 3, "examples": 20, "spearman": 1.0, "weighted_tau": 1.0}
    more = {"test_opened": 1, "calibration": {verdict.winner: calibration}, "ranking": ranking}
    (run.folder / VERDICT).write_text(json.dumps({**asdict(verdict), **more}, default=float))
    return spec
