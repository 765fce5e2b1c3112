"""From sources to tables that a search can use: name every row, split, check, cache, seal.

* load_rows       one source as it is, with a ``row_id`` column
* load_data       all splits: only the columns of the task, labels as text, checked, leaks dropped
* examine         the same with all that was found, where ``load_data`` raises at the first error
* cached_data     the same, once per content; memory-mapped afterwards, the labels of test sealed in a file of their own
* read_sealed     opens those labels
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from pmray.data import check, distributions
from pmray.data.annotations import annotate
from pmray.data.check import Finding
from pmray.data.columns import role_columns, stacked
from pmray.data.encode import finished_folder, read_arrow, write_arrow
from pmray.data.formats import Part
from pmray.data.sources import content_key, read_source
from pmray.data.split import sample, split_off
from pmray.errors import DataError, first_problems
from pmray.spec import Data, Source, digest

LOADER_VERSION = 2
"""Part of every key: raise it when the same files would give other tables."""

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Dataset:
    """Rows that a search can use: checked, split, without leaks.

    Every table has the text columns ``row_id`` and those of the roles: ``text``, ``text_pair`` and ``group`` where the
    spec maps them, and ``label`` (text, or a list of texts). From ``load_data``, ``test`` has its labels; from
    ``cached_data`` it has not: they are in a sealed file, which ``read_sealed`` opens.
    """

    train: pa.Table
    validation: pa.Table
    test: pa.Table
    findings: tuple[Finding, ...]
    """What was found and what was done about it; no errors, since those stop the load."""
    key: str
    """See ``data_key``."""


@dataclass(frozen=True)
class Examined:
    """Rows as a run would use them, and everything that was found in them."""

    splits: Mapping[str, pa.Table]
    """Split -> usable rows, leaks dropped; labels of test included."""
    findings: tuple[Finding, ...]
    """Errors too."""
    parts: Mapping[str, Sequence[Part]]
    """Split -> what was read, with all columns; fractions of train are part of train."""


def load_rows(source: Source, *, split: str) -> pa.Table:
    """Read a source as it is, and name its rows.

    CSV and TSV cells stay text (``007`` is not 7, ``NA`` is not missing; an empty unquoted cell is null).

    Args:
        source: File, glob, folder, fsspec URL, ``hub:path``, or a list of these; or a ``HubSource``.
        split: Which part of the spec it is, for messages; ``hub:path`` reads the split of this name.

    Returns:
        All columns and ``row_id``: ``<file>:<row>``, where the first data row is 1 (in JSON Lines: its line) and the
        file is relative to what all files of the source have in common.

    Raises:
        DataError: Anything cannot be read; the message names every file and row.
    """
    try:
        return stacked(read_source(source, split, drop=False))
    except DataError as error:
        raise DataError([f"data.{split}: {problem}" for problem in error.problems]) from error.__cause__


def load_data(data: Data, roles: Mapping[str, bool]) -> Dataset:
    """Read, map, split and check all rows; labels of test included.

    Args:
        data: Section ``data`` of the spec.
        roles: Role -> whether the task requires it. A role that is not required is used when ``data.columns`` names it.

    Raises:
        DataError: The data cannot be used; the message lists every problem found.
    """
    return _load(data, roles, data_key(data, roles))


def data_key(data: Data, roles: Mapping[str, bool]) -> str:
    """Name data by all that decides what is loaded: file names and bytes, settings, roles, loader version.

    Folders are no part of it: the same files elsewhere have the same key. Images that a table names count by their
    bytes, a hub data set by its fingerprint.

    Raises:
        DataError: A source cannot be reached.
    """
    images = data.columns.get("image", "image") if "image" in roles else None
    content = _each_source(data, partial(content_key, images=images))
    settings = data.model_dump(mode="json", exclude=set(content))
    return digest(json.dumps([LOADER_VERSION, content, settings, dict(roles)], sort_keys=True))


def cached_data(data: Data, roles: Mapping[str, bool], cache: Path) -> tuple[Dataset, bool]:
    """Load data once per content, into ``cache/data-<key>/``; two processes may do so at once.

    Args:
        data: Section ``data`` of the spec.
        roles: See ``load_data``.
        cache: Folder that all trials see.

    Returns:
        The memory-mapped rows, ``test`` without labels, and whether they came from the cache.

    Raises:
        DataError: The data cannot be used, or the cache is damaged.
    """
    key = data_key(data, roles)
    folder = cache / f"data-{key}"
    warm = (folder / "manifest.json").is_file()
    if not warm:
        _write(_load(data, roles, key), folder)
    try:
        findings = json.loads((folder / "findings.json").read_text())
        tables = {split: read_arrow(folder / f"{split}.arrow") for split in SPLITS}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder} is damaged ({error}); delete this folder, and it is made again") from None
    read = (Finding(**{**finding, "examples": tuple(finding["examples"])}) for finding in findings)
    return Dataset(**tables, findings=tuple(read), key=key), warm


def read_sealed(cache: Path, key: str) -> pa.Table:
    """Open the labels of test (``row_id``, ``label``), in the order of the test rows.

    Raises:
        DataError: They are missing, or not those that were sealed.
    """
    folder = cache / f"data-{key}"
    path = folder / "test.labels.arrow"
    try:
        sealed = json.loads((folder / "manifest.json").read_text())["sealed"]
        found = sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be opened ({error}); load the data again into this cache") from None
    if found != sealed:
        raise DataError(
            f"{path} was changed after it was sealed (SHA-256 {found[:16]}…, recorded {sealed[:16]}…); scores on it "
            f"would prove nothing. Delete {folder} and run again"
        )
    return read_arrow(path)


T = TypeVar("T")


def examine(data: Data, roles: Mapping[str, bool], *, only: Sequence[str] = SPLITS) -> Examined:
    """Read, map, split and check rows; what is wrong with single rows, labels and splits is found, not raised.

    Args:
        data: Section ``data`` of the spec.
        roles: See ``load_data``.
        only: Splits that are looked at; what is not among them is neither read nor split off.

    Raises:
        DataError: A source cannot be read as a whole, a column is missing, or nothing can be split off.
    """
    drop = data.bad_rows == "drop"
    parts = _each_source(data, partial(read_source, drop=True), only)
    _refuse_shared_files(parts)
    tables = _each_source(data, lambda _, split: role_columns(parts[split], roles, data.columns), only)
    kinds = {table["label"].type for table in tables.values() if "label" in table.column_names}
    if len(kinds) > 1 and "words" not in roles:
        raise DataError(f"the splits write labels in different ways ({', '.join(map(str, kinds))}); use one way")
    findings = [finding for split in parts for finding in _unreadable(parts[split], split, drop)]
    if "words" in roles:
        tables, found = annotate(tables, drop=drop)
        findings += found
    for split in tables:
        findings += distributions.check_kinds(parts[split], split, [data.columns.get(role, role) for role in roles])
        tables[split], found = check.usable_rows(tables[split], split, labels=data.labels, drop=drop)
        findings += found
        if "image" in tables[split].column_names:
            # A few damaged files among thousands are usual; only who asks for it is stopped by them.
            stop = data.bad_rows == "error" and "bad_rows" in data.model_fields_set
            tables[split], found = check.readable_images(tables[split], split, drop=not stop)
            findings += found
    try:
        splits = _with_fractions(tables, data, only)
    except DataError as error:
        raise DataError([*_errors(findings), *error.problems]) from None
    splits, found = check.drop_leaks(splits)
    findings += found
    if data.max_train_rows is not None:
        splits["train"] = sample(splits["train"], data.max_train_rows, _if_there("label", splits), data.seed)
    if data.labels is None and "label" in splits["train"].column_names:
        splits, found = check.known_labels(splits, drop=drop)
        findings += found
    findings += check.check_train(splits["train"], data.labels) + check.check_splits(splits)
    findings += distributions.check_distributions(splits)
    return Examined(splits, tuple(findings), parts)


def _load(data: Data, roles: Mapping[str, bool], key: str) -> Dataset:
    examined = examine(data, roles)
    if errors := _errors(examined.findings):
        raise DataError(errors)
    return Dataset(**examined.splits, findings=examined.findings, key=key)


def _each_source(data: Data, read: Callable[[Source, str], T], only: Sequence[str] = SPLITS) -> dict[str, T]:
    """Apply `read` to every split that is a source; the problems of all are raised together."""
    found, problems = {}, []
    for split in only:
        source = getattr(data, split)
        if isinstance(source, float):
            continue
        try:
            found[split] = read(source, split)
        except DataError as error:
            problems += [f"data.{split}: {problem}" for problem in error.problems]
    if problems:
        raise DataError(problems)
    return found


def _errors(findings: Sequence[Finding]) -> list[str]:
    return [f"data.{finding.message}" for finding in findings if finding.severity == "error"]


def _refuse_shared_files(parts: Mapping[str, list[Part]]) -> None:
    """One file in two splits is a mistake in the paths, not a thousand leaked rows."""
    problems = []
    for first, second in combinations(parts, 2):
        shared = {part.address for part in parts[first]} & {part.address for part in parts[second]} - {""}
        problems += [
            f"data.{first} and data.{second} both read {address}; list the files of data.{first}, or give a glob"
            for address in sorted(shared)
        ]
    if problems:
        raise DataError(problems)


def _unreadable(parts: Sequence[Part], split: str, drop: bool) -> list[Finding]:
    """Tell which rows could not be read; their description where they are not to be dropped."""
    findings = []
    for part in parts:
        if part.bad:
            count, ids = len(part.bad), tuple(f"{part.name}:{row}" for row in list(part.bad)[: check.NAMED])
            message = f"{split}: {check.counted(count)} of {part.name} cannot be read{check.named(ids, count)}; " + (
                "dropped"
                if drop
                else "\n".join(["repair them, or set `data.bad_rows: drop`", *first_problems(list(part.bad.values()))])
            )
            findings.append(Finding("warning" if drop else "error", "unreadable row", message, count, ids))
    return findings


def _with_fractions(tables: Mapping[str, pa.Table], data: Data, only: Sequence[str]) -> dict[str, pa.Table]:
    """Split test, then validation, off train where they are fractions of it."""
    splits, rest, left = dict(tables), tables["train"], 1.0
    label, group = _if_there("label", tables), _if_there("group", tables)
    for split in [name for name in ("test", "validation") if name in only]:
        fraction = getattr(data, split)
        if isinstance(fraction, float):
            try:
                rest, splits[split] = split_off(rest, fraction / left, label=label, group=group, seed=data.seed)
            except DataError as error:
                raise DataError([f"data.{split}: {problem}" for problem in error.problems]) from None
            left -= fraction
    return {"train": rest, **{split: splits[split] for split in only if split != "train"}}


def _if_there(role: str, splits: Mapping[str, pa.Table]) -> str | None:
    return role if role in splits["train"].column_names else None


def _write(dataset: Dataset, folder: Path) -> None:
    with finished_folder(folder) as unfinished:
        labels = [name for name in ("row_id", "label") if name in dataset.test.column_names]
        inputs = [name for name in dataset.test.column_names if name != "label"]
        write_arrow(dataset.train.combine_chunks(), unfinished / "train.arrow")
        write_arrow(dataset.validation.combine_chunks(), unfinished / "validation.arrow")
        write_arrow(dataset.test.select(inputs).combine_chunks(), unfinished / "test.arrow")
        write_arrow(dataset.test.select(labels).combine_chunks(), unfinished / "test.labels.arrow")
        (unfinished / "findings.json").write_text(json.dumps([asdict(finding) for finding in dataset.findings]))
        manifest = {
            "key": dataset.key,
            "loader": LOADER_VERSION,
            "rows": {split: len(getattr(dataset, split)) for split in SPLITS},
            "sealed": sha256((unfinished / "test.labels.arrow").read_bytes()).hexdigest(),
        }
        (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=2))
