"""Model FLOPs utilisation: the share of the hardware's products that go into the model, for ``Trainer`` and pmray.

``python -m tests.bench.utilisation [tiny|base|large ...]``: models of the sizes of BERT-base and RoBERTa-large with
random weights on rows of random tokens, in one process, one after the other. Needs nothing but this package, and is
meant for a GPU; ``tiny`` shows on a CPU that it runs.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from pmray.data.encode import Encoded
from pmray.spec import Recipe
from pmray.tasks.text import TextClassification
from pmray.training import loop
from pmray.training.hardware import device_here, fastest_precision
from pmray.training.model import quiet_transformers

TASK = TextClassification(("negative", "positive"), positive="negative")

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "L4": 121e12, "V100": 125e12, "T4": 65e12}
"""bf16 (fp16 of old ones) products and sums a second, dense, as in the vendor's data sheets for the SXM form."""

SIZES = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}
FAMILY = {"tiny": "Bert", "base": "Bert", "large": "Roberta"}
VOCABULARY = {"Bert": 30_522, "Roberta": 50_265}


def model_of(size: str) -> torch.nn.Module:
    import transformers

    family = FAMILY[size]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(vocab_size=VOCABULARY[family], num_labels=2, **SIZES[size])
    config._attn_implementation = "sdpa" if torch.cuda.is_available() else "eager"
    return getattr(transformers, f"{family}ForSequenceClassification")(config)


def rows_of(size: str, count: int) -> tuple[Encoded, np.ndarray]:
    """Rows of 16 to 128 tokens, as long as real sentences are now and then."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3.7, 0.5, count), 16, 128).astype(np.int32)
    ids = [random.integers(5, VOCABULARY[FAMILY[size]] - 5, length).astype(np.int32) for length in lengths]
    table = pa.table({"input_ids": pa.array(ids, pa.list_(pa.int32())), "length": lengths})
    return Encoded(table, lengths, 1), random.integers(0, 2, count)


def operations(size: str, lengths: np.ndarray) -> float:
    """Products and sums of the forward and backward passes over rows without padding (Kaplan et al. 2020, section 2.1).

    Of a token: 6 for each weight of the layers, and 12 x layers x width x row length for attention.
    """
    shape = SIZES[size]
    width, layers = shape["hidden_size"], shape["num_hidden_layers"]
    weights = layers * (4 * width**2 + 2 * width * shape["intermediate_size"])
    tokens = lengths.astype(float)
    return float((6 * weights * tokens + 12 * layers * width * tokens**2).sum())


def peak() -> float:
    """Products and sums a second that the hardware could do."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        found = [value for key, value in PEAKS.items() if key in name]
        if not found:
            raise SystemExit(f"{name}: not in PEAKS; add what its data sheet says")
        return found[0]
    kind = torch.bfloat16 if fastest_precision() == "bf16" else torch.float32
    a, b = torch.ones(2048, 1024, dtype=kind), torch.ones(1024, 1024, dtype=kind)
    times = []
    for _ in range(10):
        before = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - before)
    return 2 * 2048 * 1024 * 1024 / min(times)


def with_trainer(size: str, rows: Encoded, labels: np.ndarray, batch: int) -> float:
    """Seconds of ``Trainer.train`` with its best settings."""
    from transformers import Trainer, TrainingArguments

    data = [
        {"input_ids": ids, "labels": int(label)}
        for ids, label in zip(rows.table["input_ids"].to_pylist(), labels, strict=True)
    ]

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        width = max(len(one["input_ids"]) for one in examples)
        ids = torch.tensor([one["input_ids"] + [1] * (width - len(one["input_ids"])) for one in examples])
        return {
            "input_ids": ids,
            "attention_mask": (ids != 1).long(),
            "labels": torch.tensor([one["labels"] for one in examples]),
        }

    with quiet_transformers(), TemporaryDirectory() as out:
        arguments = TrainingArguments(
            out,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            bf16=fastest_precision() == "bf16",
            train_sampling_strategy="group_by_length",
            optim="adamw_torch_fused",
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(model_of(size), arguments, collate, data)
        before = time.perf_counter()
        trainer.train()
        return time.perf_counter() - before


def with_pmray(size: str, rows: Encoded, labels: np.ndarray, batch: int) -> float:
    """Training seconds of the loop."""
    recipe = Recipe(epochs=1, batch_size=batch, max_batch_tokens=128 * batch)
    few = Encoded(rows.table.slice(0, 64), rows.lengths[:64], rows.pad)
    fitted = loop.fit(
        model_of(size), TASK, recipe, rows, labels, few, labels[:64],
        metric="accuracy", rungs=[len(rows)], seed=0,
    )  # fmt: skip
    return fitted.train_seconds


def main(*sizes: str) -> None:
    """Measure, and print the table."""
    sizes = sizes or (("base", "large") if torch.cuda.is_available() else ("tiny",))
    most = peak()
    console = Console()
    ways: dict[str, Callable[..., float]] = {"Trainer, best settings": with_trainer, "pmray": with_pmray}
    table = Table(title=f"{device_here()}, {most / 1e12:.1f} Tflop/s at most, batch 64, rows of 16 to 128 tokens")
    for heading in ("model", "way", "rows/s", "tokens/s", "x Trainer", "utilisation"):
        table.add_column(heading, justify="left" if heading in ("model", "way") else "right")
    for size in sizes:
        rows, labels = rows_of(size, 12_800 if torch.cuda.is_available() else 1_280)
        warm = Encoded(rows.table.slice(0, 640), rows.lengths[:640], rows.pad)
        seconds = {}
        for name, fit in ways.items():
            fit(size, warm, labels[:640], 64)
            seconds[name] = fit(size, rows, labels, 64)
            gc.collect()
            torch.cuda.empty_cache()
            table.add_row(
                size,
                name,
                f"{len(rows) / seconds[name]:.0f}",
                f"{rows.lengths.sum() / seconds[name]:.0f}",
                f"{seconds['Trainer, best settings'] / seconds[name]:.2f}",
                f"{operations(size, rows.lengths) / seconds[name] / most:.0%}",
            )
    console.print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
