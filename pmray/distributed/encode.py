"""Encode large data on the cluster: Ray Data streams shards to workers, which read and write memory-mapped files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.data

from pmray.data.encode import Shard, encode_shard, read_arrow
from pmray.distributed.cluster import elsewhere
from pmray.training.model import Pretrained, on_this_node
from pmray.training.trial import open_task


def encode_shards(
    shards: Sequence[Shard],
    pretrained: Pretrained,
    settings: Mapping[str, Any],
    *,
    cache: Path,
    data: str,
    key: str,
    max_length: int,
    workers: int,
    progress: Callable[[int], None],
) -> None:
    """Encode shards in parallel; a worker holds one piece of a shard in memory, whatever the size of the data.

    Args:
        shards: What to encode.
        pretrained: Whose tokenizer or other processor.
        settings: ``task.to_json()``.
        cache: Folder that all nodes see, with the loaded data.
        data: Key of the loaded data.
        key: Key of the encoding.
        max_length: Longer rows are cut.
        workers: At most so many at a time, of one CPU each.
        progress: Called with the rows of each shard that is done.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    done = ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=len(shards)).map(
        _Encoder,
        fn_constructor_args=(pretrained, dict(settings), str(cache), data, key, max_length),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(workers, len(shards)))),
        num_cpus=1,
        label_selector=elsewhere() or None,
    )
    for row in done.iter_rows():
        progress(int(row["rows"]))


class _Encoder:
    """A worker: opens the processor once, and reads rows from the memory-mapped split."""

    def __init__(
        self, pretrained: Pretrained, settings: Mapping[str, Any], cache: str, data: str, key: str, max_length: int
    ) -> None:
        # One worker a CPU: threads of the tokenizer would only wait for each other.
        os.environ["RAYON_NUM_THREADS"] = "1"
        self.task = open_task(settings)
        self.processor = self.task.processor(on_this_node(pretrained).folder)
        self.rows = Path(cache) / f"data-{data}"
        self.folder = Path(cache) / f"encoded-{key}"
        self.max_length = max_length

    def __call__(self, row: dict[str, Any]) -> dict[str, int]:
        shard = Shard(**row)
        table = read_arrow(self.rows / f"{shard.split}.arrow")
        encode_shard(shard, table, self.task, self.processor, self.max_length, self.folder)
        return {"rows": len(shard)}
