"""Encode rows once per (data, processor, length) into Arrow files that every trial memory-maps."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.spec import digest

ENCODER_VERSION = 2
"""Part of every key: raise it when the same inputs would give other files."""

SHARD_PIECES = 20
"""Pieces of ``Task.encode_rows`` rows in a shard: what is lost when encoding is interrupted, and what a worker does."""

MANIFEST = "manifest.json"
"""Written last into a folder of the cache: a folder that has it is whole."""

PROCESSOR_FILES = (
    *("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "spiece", "sentencepiece"),
    *("preprocessor", "processor"),
)
"""Beginnings of the names of files that decide how an input is encoded."""


class Encoder(Protocol):
    """What encoding needs of a task."""

    encode_rows: ClassVar[int]
    """Rows that are encoded at a time: enough to keep all threads busy, few enough to hold."""

    def encode(self, table: pa.Table, processor: Any, max_length: int) -> pa.Table:
        """Turn rows into model inputs with a ``length`` column."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        ...


@dataclass(frozen=True)
class Encoded:
    """One encoded split: model inputs in an Arrow table, memory-mapped."""

    table: pa.Table
    lengths: NDArray[np.int32]
    """Tokens of each row, shape (rows,)."""
    pad: int
    """Token id that fills shorter rows of a batch."""

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, positions: NDArray[np.int64]) -> pa.Table:
        """Take rows by position."""
        if len(self.batches) == 1:
            return self.table.take(pa.array(positions))
        # Arrow's own `take` would put all batches of the file together first, whatever the rows.
        number = np.searchsorted(self.ends, positions, side="right")
        order = np.argsort(number, kind="stable")
        parts = [
            self.batches[one].take(pa.array(positions[order[number[order] == one]] - self.starts[one]))
            for one in np.unique(number)
        ]
        return pa.Table.from_batches(parts).combine_chunks().take(pa.array(np.argsort(order, kind="stable")))

    @cached_property
    def batches(self) -> Sequence[pa.RecordBatch]:
        """The pieces that the file was written in."""
        found: list[pa.RecordBatch] = self.table.to_batches()
        return found or [pa.RecordBatch.from_pylist([], self.table.schema)]

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Position after the last row of each piece."""
        return np.cumsum([len(batch) for batch in self.batches])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Position of the first row of each piece."""
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)


def processor_key(folder: Path) -> str:
    """Hash the files that decide how text becomes tokens, so that candidates with one tokenizer share encodings."""
    hashed = sha256()
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name.startswith(PROCESSOR_FILES):
            hashed.update(file.name.encode())
            hashed.update(file.read_bytes())
    return hashed.hexdigest()[:16]


def encoding_key(data_key: str, task: Encoder, processor: str, max_length: int) -> str:
    """Name an encoding by all that decides it: data, task settings, processor files, length, encoder version."""
    settings = {key: value for key, value in task.to_json().items() if key in ("task", "pair")}
    return digest(json.dumps([data_key, settings, processor, max_length, ENCODER_VERSION], sort_keys=True))


@dataclass(frozen=True)
class Shard:
    """Some rows of a split, encoded into a file of their own."""

    split: str
    number: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"{self.split}-{self.number:05d}.arrow"

    def __len__(self) -> int:
        return self.stop - self.start


def shards_of(rows: Mapping[str, int], size: int) -> list[Shard]:
    """Cut splits into shards; a split without rows is one empty shard.

    >>> [(shard.file, shard.start, shard.stop) for shard in shards_of({"train": 5}, 3)]
    [('train-00000.arrow', 0, 3), ('train-00001.arrow', 3, 5)]
    """
    return [
        Shard(split, number, start, min(start + size, count))
        for split, count in rows.items()
        for number, start in enumerate(range(0, max(1, count), size))
    ]


def encode_splits(
    splits: Mapping[str, pa.Table],
    task: Encoder,
    open_processor: Callable[[], Any],
    *,
    key: str,
    max_length: int,
    cache: Path,
    progress: Callable[[int], None] = lambda rows: None,
    elsewhere: Callable[[Sequence[Shard]], None] | None = None,
) -> int:
    """Encode all splits into ``cache/encoded-<key>/``, those shards that are not there.

    Shards are written whole or not at all, and the manifest last: what was interrupted goes on where it was, and two
    processes may do the same at once.

    Args:
        splits: Split name -> rows.
        task: Says how rows become inputs.
        open_processor: Opens the tokenizer; not called when nothing is to be encoded.
        key: See ``encoding_key``.
        max_length: Longer rows are cut.
        cache: Folder that all trials see.
        progress: Called with the number of rows after each piece.
        elsewhere: Encodes shards by ``encode_shard`` in other processes, and calls `progress` itself.

    Returns:
        Rows encoded; 0 when the cache had them.
    """
    folder = cache / f"encoded-{key}"
    if (folder / MANIFEST).is_file():
        return 0
    processor = open_processor()
    rows = {name: len(table) for name, table in splits.items()}
    shards = shards_of(rows, SHARD_PIECES * task.encode_rows)
    waiting = [shard for shard in shards if not (folder / shard.file).is_file()]
    for shard in shards:
        if shard not in waiting:
            progress(len(shard))
    if elsewhere and waiting:
        elsewhere(waiting)
    else:
        for shard in waiting:
            encode_shard(shard, splits[shard.split], task, processor, max_length, folder, progress)
    manifest = {"pad": _pad(processor), "rows": rows, "shards": [shard.file for shard in shards]}
    partial = folder / f".{MANIFEST}-{time.time_ns()}"
    partial.write_text(json.dumps(manifest))
    partial.replace(folder / MANIFEST)
    return sum(len(shard) for shard in waiting)


def encode_shard(
    shard: Shard,
    table: pa.Table,
    task: Encoder,
    processor: Any,
    max_length: int,
    folder: Path,
    progress: Callable[[int], None] = lambda rows: None,
) -> None:
    """Encode the rows of a shard piece by piece, so that memory is bounded by the piece.

    Args:
        shard: Which rows.
        table: All rows of the split; may be memory-mapped.
        task: Says how rows become inputs.
        processor: Tokenizer or other processor.
        max_length: Longer rows are cut.
        folder: Of the encoding.
        progress: Called with the number of rows after each piece.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{shard.file}-{time.time_ns()}"
    try:
        with ArrowWriter(partial) as writer:
            for start in range(shard.start, max(shard.stop, shard.start + 1), task.encode_rows):
                rows = table.slice(start, min(task.encode_rows, shard.stop - start))
                writer.write(task.encode(rows, processor, max_length))
                progress(len(rows))
        partial.replace(folder / shard.file)
    finally:
        partial.unlink(missing_ok=True)


def open_encoded(cache: Path, key: str, split: str) -> Encoded:
    """Memory-map an encoded split; takes milliseconds for a thousand rows, and less than a second for millions."""
    folder = cache / f"encoded-{key}"
    manifest = json.loads((folder / MANIFEST).read_text())
    files = [file for file in manifest["shards"] if file.rpartition("-")[0] == split]
    table = pa.concat_tables([read_arrow(folder / file) for file in files])
    return Encoded(table, table["length"].to_numpy(), manifest["pad"])


def encode_table(task: Encoder, table: pa.Table, processor: Any, max_length: int) -> Encoded:
    """Encode a few rows in memory."""
    encoded = task.encode(table, processor, max_length)
    return Encoded(encoded, encoded["length"].to_numpy(), _pad(processor))


def _pad(processor: Any) -> int:
    """The token that fills shorter rows; images need none."""
    return getattr(processor, "pad_token_id", None) or 0


class ArrowWriter:
    """Writes an uncompressed Arrow file, the kind that can be memory-mapped, piece by piece."""

    def __init__(self, path: Path) -> None:
        self.sink = pa.OSFile(str(path), "wb")
        self.writer: Any = None

    def __enter__(self) -> ArrowWriter:
        return self

    def write(self, table: pa.Table) -> None:
        """Add rows; the first ones decide about the columns."""
        if self.writer is None:
            self.writer = pa.ipc.new_file(self.sink, table.schema)
        self.writer.write_table(table.combine_chunks())

    def __exit__(self, *raised: object) -> None:
        if self.writer is not None:
            self.writer.close()
        self.sink.close()


def write_arrow(table: pa.Table, path: Path) -> None:
    """Write an uncompressed Arrow file, the kind that can be memory-mapped."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        # One record batch: readers then see one chunk, and take rows from it without a search.
        writer.write_table(table.combine_chunks(), max_chunksize=max(1, len(table)))


def read_arrow(path: Path) -> pa.Table:
    """Memory-map what ``write_arrow`` wrote."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


@contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """Fill a temporary folder and rename it when all is in it, so that readers never see half of it.

    Two processes may fill the same folder at once; the first to finish wins and the other's copy is dropped.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield partial
        try:
            partial.replace(folder)
        except OSError:
            # Another process was first; or what lies there was left half by a crash of old.
            if not (folder / MANIFEST).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
