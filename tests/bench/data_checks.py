"""What the data checks cost: ``python -m tests.bench.data_checks`` (the aim: under 5 s for 10,000 short rows).

The rows are the demo's sentences, each with a number of its own so that no two are equal, in 2, 6 and 77 labels. CPU
time of one thread, since a bench may share the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from pmray import checking
from pmray.data.duplicates import check_near_duplicates
from pmray.data.load import examine
from pmray.demo.story import DATA
from pmray.spec import Data
from pmray.tasks.text import TextClassification

ROWS = 10_000
LIMIT = 5.0
"""Seconds that all checks of 10,000 short rows may take."""


def rows_of(labels: int) -> pa.Table:
    texts = islice(cycle(pq.read_table(DATA / "tweets.parquet")["text"].to_pylist()), ROWS)
    draw = np.random.default_rng(0)
    topics = [f"topic{number}" for number in draw.integers(labels, size=ROWS)]
    # The topic stands in the text, so that there is something to learn and label noise is looked for.
    told = [f"{topic} {text} {number}" for number, (topic, text) in enumerate(zip(topics, texts, strict=True))]
    return pa.table({"text": told, "label": topics})


def all_checks(path: Path) -> tuple[float, float, float]:
    """CPU seconds of loading with the cheap checks, of near-duplicates, and of label noise."""
    data = Data(train=str(path))
    splits: dict[str, pa.Table] = {}
    cheap = seconds(lambda: splits.update(examine(data, TextClassification.columns, only=("train",)).splits))
    task = TextClassification.from_data(data, splits["train"])
    return (
        cheap,
        seconds(lambda: check_near_duplicates(splits)),
        seconds(lambda: checking.check_label_noise(task, splits["train"])),
    )


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    table = Table(title=f"CPU seconds of the data checks, {ROWS:,} short rows", title_justify="left")
    for heading in ("labels", "loading and cheap checks", "near-duplicates", "label noise", "all"):
        table.add_column(heading, justify="right")
    worst = 0.0
    with TemporaryDirectory() as folder:
        for labels in (2, 6, 77):
            path = Path(folder) / f"{labels}.parquet"
            pq.write_table(rows_of(labels), path)
            parts = all_checks(path)
            worst = max(worst, sum(parts))
            table.add_row(str(labels), *(f"{part:.2f}" for part in (*parts, sum(parts))))
    table.caption = (
        f"The first line pays for imports. The aim is under {LIMIT:g} s: {'met' if worst < LIMIT else 'MISSED'}."
    )
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    main()
