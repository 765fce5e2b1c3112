"""pmray's ranking and sweep beside their peers, all measured in one run on the same rows: see ``tests.bench.sweep``."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr, weightedtau
from sklearn.metrics import f1_score

from pmray.distributed.cluster import connected
from pmray.distributed.tune import run_trials
from pmray.selection.proxies import thin
from pmray.selection.search import Proposal
from pmray.spec import Recipe, Spec
from pmray.stages.fitting import encode
from pmray.stages.preparation import prepare
from pmray.stages.searching import leaders_of
from pmray.training.hardware import fastest_precision
from pmray.training.model import locate
from pmray.training.trial import carry_out
from tests.bench.curves import DATA_SETS, ROWS, rank, read, spec_of

NOTES = Console(stderr=True, highlight=False)
BODIES = ("minilm-l6", "minilm-l3", "stories")
"""Candidates that TransformerRanker can open too: it knows no first layers of a model."""
RATES = (5e-5, 1e-4, 2e-4, 4e-4)
BATCHES = (32,)
EPOCHS = 2
RECIPES = [Recipe(epochs=EPOCHS, max_length=64, lr=rate, batch_size=batch) for rate in RATES for batch in BATCHES]


def texts(path: str | Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(path)
    names = sorted(set(table["label"].to_pylist()))
    return table["text"].to_pylist(), np.array([names.index(one) for one in table["label"].to_pylist()])


def compare_ranking(storage: Path) -> None:
    """Seconds a candidate, and agreement with fine-tuning, of both rankings; and of each proxy on all candidates."""
    console = Console(width=140)
    table = Table(title="Ranking: seconds a candidate, models opened; agreement with the best test F1 of fine-tuning")
    for heading in ("data", "candidates", "way", "s/candidate", "x", "Spearman", "weighted tau"):
        table.add_column(heading, justify="left" if heading in ("data", "way") else "right")

    def line(data: str, count: int, way: str, seconds: float, than: float, scores: dict[str, float]) -> None:
        best = {name: max(one.facts["test"] for one in read(data) if one.candidate == name) for name in scores}
        said, found = [scores[name] for name in scores], [best[name] for name in scores]
        table.add_row(
            data,
            str(count),
            way,
            f"{seconds:.1f}" if seconds else "",
            f"{than / seconds:.1f}" if seconds and than else "",
            f"{spearmanr(said, found).statistic:.2f}",
            f"{weightedtau(said, found, rank=None).statistic:.2f}",
        )

    for name in DATA_SETS:
        spec = spec_of(name, storage)
        whole = prepare(spec, NOTES)
        both = prepare(spec_of(name, storage, candidates=[one for one in spec.candidates if one.name in BODIES]), NOTES)
        theirs = theirs_seconds = None
        if find_spec("transformer_ranker"):
            theirs, theirs_seconds = transformer_ranker(spec, {one.name: one.folder for one in both.candidates})
        with connected() as cluster, TemporaryDirectory() as fresh:
            encode(whole, cluster, NOTES)
            rank(both)  # the workers have started and imported
            again = prepare(spec_of(name, Path(fresh), candidates=both.spec.candidates), NOTES)
            started = time.perf_counter()
            encode(again, cluster, NOTES)
            ours = rank(again)
            ours_seconds = (time.perf_counter() - started) / len(BODIES)
            everybody = rank(whole)
        if not read(name):
            continue
        if theirs:
            line(name, len(BODIES), "TransformerRanker, H-score", theirs_seconds, 0, theirs)
        line(name, len(BODIES), "pmray", ours_seconds, theirs_seconds or 0, mean_rank(ours, both))
        line(name, len(whole.candidates), "pmray", 0, 0, mean_rank(everybody, whole))
        for proxy in next(iter(everybody.values()))["proxies"]:
            alone = {one: found["proxies"][proxy] for one, found in everybody.items()}
            line(name, len(whole.candidates), f"  {proxy} alone", 0, 0, alone)
    console.print(table)


def mean_rank(found: dict[str, dict[str, Any]], prepared: Any) -> dict[str, float]:
    ranked = thin(
        {name: one["proxies"] for name, one in found.items()},
        {one.name: one.family for one in prepared.candidates},
        {one.name: one.parameters for one in prepared.candidates},
        keep=1,
    )
    return {one.candidate: -one.mean_rank for one in ranked}


def transformer_ranker(spec: Spec, folders: dict[str, str]) -> tuple[dict[str, float], float]:
    """Scores by TransformerRanker with its defaults, and seconds a candidate."""
    from datasets import Dataset
    from transformer_ranker import TransformerRanker

    rows, labels = texts(spec.data.train)
    data = Dataset.from_dict({"text": rows, "label": labels})
    ranker = TransformerRanker(data, text_column="text", label_column="label")
    scores, started = {}, time.perf_counter()
    for name, folder in folders.items():
        found = ranker.run([folder], batch_size=32, device="cpu")
        scores[name] = float(next(iter(found.scores.values())))
    return scores, (time.perf_counter() - started) / len(folders)


def compare_search(storage: Path, *ways: str, rows: int = ROWS["train"]) -> None:
    """Seconds from nothing to a best recipe of the best of three models, and its validation F1."""
    counts = {**ROWS, "train": rows}
    console = Console(width=140)
    models = [
        one for one in spec_of("sst2", storage / str(rows), counts).model_dump()["candidates"] if one["name"] in BODIES
    ]
    changes = {"candidates": [{**one, "recipe": {"epochs": EPOCHS, "max_length": 64}} for one in models]}
    table = Table(title=f"{len(RATES)} learning rates of {', '.join(BODIES)}, {EPOCHS} epochs of {rows} rows of SST-2")
    for heading in ("way", "seconds", "x", "its choice", "validation F1", "beyond training, s a trial"):
        table.add_column(heading, justify="left" if heading in ("way", "its choice") else "right")
    known = {"trainer": with_trainer, "pmray": with_pmray, "nested": with_nested}
    first = 0.0
    for name in ways or known:
        with TemporaryDirectory() as folder:
            spec = spec_of("sst2", Path(folder), counts, **changes)
            started = time.perf_counter()
            found = known[name](spec)
            seconds = time.perf_counter() - started
        first = first or seconds
        beyond = "" if found.beyond is None else f"{found.beyond:.1f}"
        table.add_row(name, f"{seconds:.0f}", f"{first / seconds:.2f}", found.choice, f"{found.score:.3f}", beyond)
        console.print(table)


@dataclass(frozen=True)
class Found:
    """What a search ended with."""

    choice: str
    score: float
    beyond: float | None = None
    """Seconds a trial took beyond its training, on one of the two CPUs."""


class Listed:
    """Proposes recipes from a list, of one candidate after the other."""

    def __init__(self, candidates: Sequence[str]) -> None:
        self.waiting = [(candidate, recipe) for recipe in RECIPES for candidate in candidates]
        self.number = 0

    def ask(self, leaders: Collection[str] | None = None) -> Proposal | None:
        place = next((place for place, (candidate, _) in enumerate(self.waiting) if self._may(place, leaders)), None)
        if place is None:
            return None
        self.number += 1
        return Proposal(self.number, *self.waiting.pop(place))

    def _may(self, place: int, leaders: Collection[str] | None) -> bool:
        candidate, recipe = self.waiting[place]
        return leaders is None or recipe == RECIPES[0] or candidate in leaders

    def tell(self, number: int, score: float | None) -> None:
        """The list is what it is."""

    def learn(self, one: Any) -> None:
        """See ``tell``."""


def with_pmray(spec: Spec) -> Found:
    """Rank, and let trials wait at rungs; what ``pmray sweep`` does after that (finalists, test rows) is not asked."""
    prepared = prepare(spec, NOTES)
    ended: list[Any] = []
    with connected() as cluster:
        encode(prepared, cluster, NOTES)
        ranked = thin(
            {name: one["proxies"] for name, one in rank(prepared).items()},
            {one.name: one.family for one in prepared.candidates},
            {one.name: one.parameters for one in prepared.candidates},
            keep=spec.search.keep_after_rank,
        )
        kept = [one.candidate for one in ranked if one.kept]
        run_trials(
            Listed(kept),
            lambda proposal: prepared.work(
                "sweep", proposal.candidate, proposal.recipe, 0, states=spec.folder / "states"
            ),
            dict.fromkeys(kept, spec.resources),
            trials=len(kept) * len(RECIPES),
            at_a_time=2,
            reduction=spec.search.reduction,
            leaders=replace(leaders_of(prepared, kept), defaults=dict.fromkeys(kept, RECIPES[0])),
            enough=lambda: False,
            scratch=spec.folder / ".ray",
            on_start=lambda work: None,
            on_rung=lambda work, rung: None,
            on_end=lambda work, facts, may_pass: ended.append((facts.status == "done", facts.score, work)),
            pause=True,
        )
    _, score, work = max((one for one in ended if one[1] is not None), key=lambda one: one[:2])
    return Found(f"{work.pretrained.name}, {work.recipe.lr:g}", score)


def with_nested(spec: Spec, trials: int = 3) -> Found:
    """The pattern of Ray's guide: a Tune function that fits a TorchTrainer; the first trials of one model."""
    import ray
    from ray import tune
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    prepared = prepare(spec, NOTES)
    works = [prepared.work("sweep", "minilm-l6", recipe, 0) for recipe in RECIPES[:trials]]
    storage = str(spec.folder / ".ray")

    def train(config: dict[str, Any]) -> None:
        facts = carry_out(config["work"])
        ray.train.report({"score": facts.score, "seconds": facts.measured["train_seconds"]})

    def trial(config: dict[str, Any]) -> None:
        TorchTrainer(
            train,
            train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(storage_path=storage, callbacks=[TuneReportCallback()]),
        ).fit()

    with connected() as cluster:
        encode(prepared, cluster, NOTES)
        started = time.perf_counter()
        found = tune.Tuner(
            tune.with_resources(trial, {"CPU": 0.01}),
            param_space={"work": tune.grid_search(works)},
            tune_config=tune.TuneConfig(max_concurrent_trials=2),
            run_config=tune.RunConfig(storage_path=storage, verbose=0),
        ).fit()
        seconds = time.perf_counter() - started
    results = [one.metrics for one in found]
    busy = sum(one["seconds"] for one in results)
    best = max(results, key=lambda one: one["score"])
    rate = best["config"]["work"].recipe.lr
    # Two run at a time; of an odd number the last is alone.
    return Found(f"{BODIES[0]}, {rate:g}, of {trials} trials", best["score"], (2 * seconds - busy) / trials)


def with_trainer(spec: Spec) -> Found:
    """``Trainer`` with its best settings, as in ``tests.bench.fit``; a search for each model in turn."""
    found = []
    with connected():
        for one in spec.candidates:
            found.append((*search_with_trainer(spec, locate(one).folder), one.name))
    score, rate, name = max(found)
    return Found(f"{name}, {rate:g}", score)


def search_with_trainer(spec: Spec, folder: str) -> tuple[float, float]:
    """The best validation F1 of a model, and its learning rate."""
    import torch
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Decoders have none.
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def encoded(path: Any) -> list[dict[str, Any]]:
        said, labels = texts(path)
        made = tokenizer(said, truncation=True, max_length=64)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": int(label)}
            for ids, mask, label in zip(made["input_ids"], made["attention_mask"], labels, strict=True)
        ]

    def opened(trial: Any = None) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=2,
            attn_implementation="sdpa",
            pad_token_id=tokenizer.pad_token_id,
            dtype=torch.float32,
        )

    def scored(prediction: Any) -> dict[str, float]:
        return {"f1": f1_score(prediction.label_ids, prediction.predictions.argmax(1), average="macro")}

    with TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out,
            num_train_epochs=EPOCHS,
            per_device_eval_batch_size=64,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=fastest_precision() == "bf16",
            warmup_steps=0.1,
            weight_decay=0.01,
        )
        trainer = Trainer(
            None,
            arguments,
            DataCollatorWithPadding(tokenizer),
            encoded(spec.data.train),
            encoded(spec.data.validation),
            model_init=opened,
            compute_metrics=scored,
        )
        torch.set_num_threads(1)
        best = trainer.hyperparameter_search(
            hp_space=lambda trial: {
                "learning_rate": tune.grid_search(list(RATES)),
                "per_device_train_batch_size": tune.grid_search(list(BATCHES)),
            },
            compute_objective=lambda metrics: metrics["eval_f1"],
            n_trials=1,
            direction="maximize",
            backend="ray",
            scheduler=ASHAScheduler(metric="objective", mode="max"),
            resources_per_trial={"cpu": 1},
            storage_path=out,
            verbose=0,
        )
    return float(best.objective), float(best.hyperparameters["learning_rate"])
