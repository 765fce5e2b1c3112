"""Fine-tuning side by side: ``transformers.Trainer`` as people write it, with its best settings, and pmray's loop.

``python -m tests.bench.fit [ROWS] [SEEDS]``: the same model, rows, effective batch, schedule, examples, seeds and F1
metric in one process, one after the other, for each seed anew. What is counted is training alone.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from threading import Event, Thread

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import f1_score

from pmray.data.batches import training_steps
from pmray.data.encode import encode_table
from pmray.demo.story import WEIGHTS
from pmray.scoring.metrics import f1
from pmray.scoring.paired import paired_bootstrap
from pmray.spec import Candidate, Recipe
from pmray.tasks.text import TextClassification
from pmray.training import loop
from pmray.training.hardware import device_here, fastest_precision
from pmray.training.model import locate, open_model, quiet_transformers

TASK = TextClassification(("negative", "positive"), positive="negative")
RECIPE = Recipe(lr=1e-4, epochs=1, batch_size=32, warmup=0.1, max_length=128, weight_decay=0.01)
SST2 = Path(os.environ.get("PMRAY_SHARED", "../shared")) / "data" / "text_classification" / "sst2"


class Rows:
    """SST-2, or the demo's reviews where it is not there."""

    def __init__(self, count: int) -> None:
        from pmray.demo.story import DATA

        train, test = SST2 / "train.parquet", SST2 / "validation.parquet"
        if not train.is_file():
            train, test = DATA / "reviews_train.parquet", DATA / "reviews_test.parquet"
        self.name = train.parent.name
        table = pq.read_table(train)
        chosen = np.random.default_rng(0).permutation(len(table))[:count]
        self.train, self.test = (self._named(one) for one in (table.take(chosen), pq.read_table(test)))

    @staticmethod
    def _named(table):
        label = next(name for name in ("label_name", "label") if name in table.column_names)
        text = next(name for name in ("text", "sentence") if name in table.column_names)
        table = table.select([text, label]).rename_columns(["text", "label"])
        names = sorted(set(table["label"].to_pylist()), key=str)
        return table.set_column(1, "label", [[TASK.labels[names.index(one)] for one in table["label"].to_pylist()]])


class PeakMemory:
    """The most memory in a block: of the GPU, or what this process holds more than before."""

    def __enter__(self) -> PeakMemory:
        self.process, self.ended = psutil.Process(), Event()
        self.before = self.most = self.process.memory_info().rss
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.thread = Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.ended.wait(0.05):
            self.most = max(self.most, self.process.memory_info().rss)

    def __exit__(self, *raised: object) -> None:
        self.ended.set()
        self.thread.join()
        held = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self.most - self.before
        self.mebibytes = held / 2**20


def with_trainer(rows: Rows, seed: int, **settings) -> tuple[float, np.ndarray]:
    """Seconds of ``Trainer.train``, and predicted labels of the test rows."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    folder = locate(Candidate(model=WEIGHTS)).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    attention = settings.pop("attention", None)

    def encoded(table):
        made = tokenizer(table["text"].to_pylist(), truncation=True, max_length=RECIPE.max_length)
        labels = TASK.targets(table)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": int(label)}
            for ids, mask, label in zip(made["input_ids"], made["attention_mask"], labels, strict=True)
        ]

    torch.manual_seed(seed)
    options = {"attn_implementation": attention} if attention else {}
    with quiet_transformers(), TemporaryDirectory() as out:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **options)
        arguments = TrainingArguments(
            out,
            per_device_train_batch_size=RECIPE.batch_size,
            per_device_eval_batch_size=64,
            num_train_epochs=RECIPE.epochs,
            learning_rate=RECIPE.lr,
            weight_decay=RECIPE.weight_decay,
            warmup_steps=RECIPE.warmup,
            lr_scheduler_type="linear",
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), encoded(rows.train))
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
        return seconds, trainer.predict(encoded(rows.test)).predictions.argmax(1)


def with_pmray(rows: Rows, seed: int, **changes) -> tuple[float, np.ndarray]:
    """Training seconds of the loop, and predicted labels of the test rows."""
    recipe = RECIPE.changed(changes)
    one = locate(Candidate(model=WEIGHTS))
    processor = TASK.processor(one.folder)
    train, test = (encode_table(TASK, table, processor, recipe.max_length) for table in (rows.train, rows.test))
    torch.manual_seed(seed)
    model = open_model(one, TASK, pad=train.pad, recipe=recipe)
    fitted = loop.fit(
        model, TASK, recipe, train, TASK.targets(rows.train), test, TASK.targets(rows.test),
        metric="f1_macro", rungs=[len(train)], seed=seed,
    )  # fmt: skip
    return fitted.train_seconds, TASK.said(fitted.validation)


def limit(rows: Rows) -> float:
    """Seconds of forward and backward passes alone over the batches of an epoch, weights in the fastest precision."""
    one = locate(Candidate(model=WEIGHTS))
    train = encode_table(TASK, rows.train, TASK.processor(one.folder), RECIPE.max_length)
    model = open_model(one, TASK, pad=train.pad, recipe=RECIPE.changed({"dropout": 0.0}))
    device = device_here()
    model.to(device, torch.bfloat16 if fastest_precision() == "bf16" else torch.float32).train()
    targets = TASK.targets(rows.train)
    steps = training_steps(train.lengths, RECIPE.batch_size, seed=0, epoch=0)
    batches = [(TASK.collate(encoded, train.pad), targets[part]) for part in steps for encoded in [train.rows(part)]]
    started = time.perf_counter()
    for batch, wanted in batches:
        logits = model(**{name: value.to(device) for name, value in batch.items()}).logits
        TASK.loss(logits, wanted, None).mean().backward()
        model.zero_grad()
    return time.perf_counter() - started


def ways() -> dict[str, Callable[..., tuple[float, np.ndarray]]]:
    low = fastest_precision() == "bf16"
    best = {"bf16": low, "train_sampling_strategy": "group_by_length", "attention": "sdpa"}
    return {
        "(a) Trainer as people write it": lambda rows, seed: with_trainer(rows, seed),
        "(b) Trainer, best settings": lambda rows, seed: with_trainer(rows, seed, **best),
        # Grouping sorts 50 batches by length and keeps that order: few rows are then learned from long to short.
        "(b) without grouping": lambda rows, seed: with_trainer(rows, seed, bf16=low, attention="sdpa"),
        "(c) pmray": lambda rows, seed: with_pmray(rows, seed),
        "(c) pmray, embeddings frozen": lambda rows, seed: with_pmray(rows, seed, freeze_embeddings=True),
    }


def main(count: int = 2_000, seeds: int = 3) -> None:
    """Measure, and print the table."""
    console = Console(width=140)
    rows = Rows(count)
    true = TASK.targets(rows.test)
    seconds: dict[str, list[float]] = {}
    lines: dict[str, list[np.ndarray]] = {}
    memory: dict[str, float] = {}
    passes = []
    for seed in range(seeds):
        passes.append(limit(rows))
        for name, fit in ways().items():
            gc.collect()
            with PeakMemory() as peak:
                taken, said = fit(rows, seed)
            seconds.setdefault(name, []).append(taken)
            lines.setdefault(name, []).append(np.stack([true, said], axis=1))
            memory[name] = max(memory.get(name, 0.0), peak.mebibytes)
            console.print(f"seed {seed}: {name}: {count / taken:.0f} examples/s")
    names = list(seconds)
    rate = {name: count / mean(seconds[name]) for name in names}
    table = Table(title=f"{rows.name}, {count} rows, batch {RECIPE.batch_size}, {seeds} seeds, {device_here()}")
    for heading in (
        "way",
        "examples/s",
        "x (a)",
        "x (b)",
        "of passes alone",
        "macro F1 (spread)",
        "p against (a)",
        "MiB",
    ):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for name in names:
        scores = [f1_score(*one.T, average="macro") for one in lines[name]]
        paired = paired_bootstrap(f1, lines[name], lines[names[0]])
        table.add_row(
            name,
            f"{rate[name]:.0f}",
            f"{rate[name] / rate[names[0]]:.2f}",
            f"{rate[name] / rate[names[1]]:.2f}",
            f"{mean(passes) / mean(seconds[name]):.0%}",
            f"{mean(scores):.3f} ({max(scores) - min(scores):.3f})",
            "-" if name == names[0] else f"{paired.p_value:.3f}",
            f"{memory[name]:.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    main(*(int(one) for one in sys.argv[1:]))
