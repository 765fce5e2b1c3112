"""From files to tables: read them, name every row, keep what the task needs, split, check, cache.

* load_rows       one source as it is, with a ``row_id`` column
* load_data       all splits: only the columns of the task, labels as text, checked, leaks dropped
* cached_data     the same, once per content; memory-mapped afterwards, the labels of test sealed in a file of their own
* read_sealed     opens those labels
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import file_digest, sha256
from itertools import combinations
from os import environ
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.core import OpenFile, url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_compression
from numpy.typing import NDArray

from pmray.data import check
from pmray.data.check import Finding
from pmray.data.encode import finished_folder, read_arrow, write_arrow
from pmray.data.split import sample, split_off
from pmray.errors import DataError, nearest
from pmray.spec import Data, HubDataset, HubSource, Source, digest

LOADER_VERSION = 1
"""Part of every key: raise it when the same files would give other tables."""

SPLITS = ("train", "validation", "test")

FORMATS = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
}

KNOWN_KINDS = f"{', '.join(FORMATS)}, also compressed (.gz, .bz2, .xz, .zip)"

HUB_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""What ``datasets.save_to_disk`` writes beside the rows."""

COMMON_NAMES = {
    "text": ("sentence", "sentence1", "review", "content", "message", "question", "premise", "tweet", "body", "title"),
    "text_pair": ("sentence2", "question2", "hypothesis", "passage", "context"),
    "label": ("class", "category", "target", "sentiment", "topic", "intent", "y"),
    "group": ("user", "author", "speaker", "patient", "document"),
}
"""Names that other data sets use for a role; proposed where a column is missing."""

SHOWN = 10
"""Unreadable rows of a file that are named."""


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
        return _stacked(_read(source, split, drop=False))
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


def load_labelled(source: Source, roles: Mapping[str, bool], columns: Mapping[str, str]) -> pa.Table:
    """Read one labelled table for an evaluation: ``row_id`` and the role columns, labels as text.

    Args:
        source: As in a spec.
        roles: Role -> whether it is required.
        columns: Role -> column name; a role left out means a column of that name.

    Raises:
        DataError: It cannot be read, or a column is missing.
    """
    return _chosen(_read(source, "test", drop=False), roles, columns)


def data_key(data: Data, roles: Mapping[str, bool]) -> str:
    """Name data by all that decides what is loaded: file names and bytes, settings, roles, loader version.

    Folders are no part of it: the same files elsewhere have the same key. A hub data set counts by its fingerprint.

    Raises:
        DataError: A source cannot be reached.
    """
    content = _each_source(data, _content_key)
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


# From parts to splits -------------------------------------------------------------------------------------------------


def _load(data: Data, roles: Mapping[str, bool], key: str) -> Dataset:
    drop = data.bad_rows == "drop"
    parts = _each_source(data, partial(_read, drop=drop))
    _refuse_shared_files(parts)
    tables = _each_source(data, lambda _, split: _chosen(parts[split], roles, data.columns))
    if len(kinds := {table["label"].type for table in tables.values() if "label" in table.column_names}) > 1:
        raise DataError(f"the splits write labels in different ways ({', '.join(map(str, kinds))}); use one way")
    findings = [finding for split in parts for finding in _dropped(parts[split], split)]
    for split in tables:
        tables[split], found = check.usable_rows(tables[split], split, labels=data.labels, drop=drop)
        findings += found
    try:
        splits = _with_fractions(tables, data)
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
    if errors := _errors(findings):
        raise DataError(errors)
    return Dataset(**splits, findings=tuple(findings), key=key)


def _errors(findings: Sequence[Finding]) -> list[str]:
    return [f"data.{finding.message}" for finding in findings if finding.severity == "error"]


def _refuse_shared_files(parts: Mapping[str, list[_Part]]) -> None:
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


def _dropped(parts: Sequence[_Part], split: str) -> list[Finding]:
    """Tell which rows the readers left out."""
    findings = []
    for part in parts:
        if part.bad:
            count, ids = len(part.bad), tuple(f"{part.name}:{row}" for row in list(part.bad)[: check.NAMED])
            message = f"{split}: {count} rows of {part.name} cannot be read ({', '.join(ids)}); dropped"
            findings.append(Finding("warning", "unreadable row", message, count, ids))
    return findings


def _with_fractions(tables: Mapping[str, pa.Table], data: Data) -> dict[str, pa.Table]:
    """Split test, then validation, off train where they are fractions of it."""
    splits, rest, left = dict(tables), tables["train"], 1.0
    label, group = _if_there("label", tables), _if_there("group", tables)
    for split in ("test", "validation"):
        fraction = getattr(data, split)
        if isinstance(fraction, float):
            try:
                rest, splits[split] = split_off(rest, fraction / left, label=label, group=group, seed=data.seed)
            except DataError as error:
                raise DataError([f"data.{split}: {problem}" for problem in error.problems]) from None
            left -= fraction
    return {"train": rest, "validation": splits["validation"], "test": splits["test"]}


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


# Columns --------------------------------------------------------------------------------------------------------------


def _chosen(parts: Sequence[_Part], roles: Mapping[str, bool], columns: Mapping[str, str]) -> pa.Table:
    """Keep ``row_id`` and the columns of the roles, named by role and written one way in all files."""
    tables, problems = [], []
    for part in parts:
        chosen = {"row_id": part.row_ids()}
        for role, required in roles.items():
            if required or role in columns:
                try:
                    chosen[role] = _role(part, role, columns.get(role))
                except DataError as error:
                    problems += error.problems
        tables.append(pa.table(chosen))
    if problems:
        raise DataError(_first(problems))
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"the files write a column in different ways ({error}); use one way") from None


def _role(part: _Part, role: str, mapped: str | None) -> pa.ChunkedArray:
    """Find the column of a role and convert it."""
    found = part.table.column_names
    name = mapped or ("labels" if role == "label" and "label" not in found and "labels" in found else role)
    if name not in found:
        raise DataError(_no_column(part.name, name, role, found))
    column = part.table[name]
    values: pa.ChunkedArray | None = column
    if role in ("text", "text_pair"):
        values, wanted = None if pa.types.is_boolean(column.type) else _as_text(column), "text or numbers"
    elif role in ("label", "group"):
        wanted = "text, numbers or truth values" + (", or lists of these" if role == "label" else "")
        values = _as_labels(column) if role == "label" or not _is_list(column.type) else None
    if values is None:
        raise DataError(
            f"{part.name}: column {name!r} ({role}) holds {_contents(column)}, expected {wanted}; map another column, "
            f"such as `data.columns: {{{role}: …}}`, or write the file again"
        )
    return values


def _no_column(file: str, name: str, role: str, found: Sequence[str]) -> str:
    lower = {column.lower(): column for column in found}
    known = (column for common in COMMON_NAMES.get(role, ()) for column in [lower.get(common)] if column)
    hint = nearest(name, found) or lower.get(name.lower()) or next(known, None)
    fix = f"`data.columns: {{{role}: {hint or 'its name'}}}`"
    listed = ", ".join(_first([*map(repr, found)])) or "none"
    return (
        f"{file}: no column {name!r} for {role}; found: {listed}; map it with {fix} (in CSV the first line names them)"
    )


def _contents(column: pa.ChunkedArray) -> str:
    """Say what a column holds, for people; of mixed columns, where the kinds change."""
    if column.type != pa.json_():
        return str(column.type)
    kinds = ((row, _json_kind(json.loads(value.as_py()))) for row, value in enumerate(column, 1) if value.is_valid)
    row, first = next(kinds)
    other, second = next(((other, kind) for other, kind in kinds if kind != first), (row, "others"))
    return f"a mixture ({first} in row {row}, {second} in row {other})"


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Write scalars one way: 3 and 3.0 as ``3``, true as ``true``; None where the type is not scalar."""
    kind = column.type
    if pa.types.is_floating(kind):
        column = column.cast(pa.float32()) if pa.types.is_float16(kind) else column
        whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 1e15))
        digits = pc.if_else(whole, column, 0.0).cast(pa.int64()).cast(pa.string())
        written = pc.if_else(whole, digits, column.cast(pa.string()))
        return pc.if_else(pc.is_nan(column), pa.scalar(None, pa.string()), written)
    simple = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
    if any(is_kind(kind) for is_kind in simple) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    return None


def _as_labels(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Write labels one way, alone or in lists; blank ones are null."""
    if _is_list(column.type):
        return _each_element(column, _as_labels)
    texts = _as_text(column)
    if texts is None:
        return None
    stripped = pc.utf8_trim_whitespace(texts)
    return pc.if_else(pc.equal(stripped, ""), pa.scalar(None, pa.string()), stripped)


def _is_list(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(is_kind(kind) for is_kind in kinds)


def _each_element(
    column: pa.ChunkedArray, convert: Callable[[pa.ChunkedArray], pa.ChunkedArray | None]
) -> pa.ChunkedArray | None:
    """Convert the elements of lists; None where they cannot be converted."""
    lists = column.cast(pa.list_(column.type.value_type))
    elements = pc.list_flatten(lists)
    if _is_list(elements.type) or (values := convert(elements)) is None:
        return None
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    flat = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    nulls = pa.array(lists.is_null().to_numpy())
    return pa.chunked_array([pa.ListArray.from_arrays(ends, flat, mask=nulls)])


def _plain(table: pa.Table, name: str) -> pa.Table:
    """Decode dictionary columns and refuse a name that is there twice."""
    names = table.column_names
    if twice := sorted({column for column in names if names.count(column) > 1}):
        raise DataError(f"{name}: two columns are called {', '.join(map(repr, twice))}; rename one of them")
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table[field.name].cast(field.type.value_type))
    return table


def _stacked(parts: Sequence[_Part]) -> pa.Table:
    """All parts in one table, by column name; what is text in one file and a number in another becomes text."""
    names = list(dict.fromkeys(name for part in parts for name in part.table.column_names if name != "row_id"))
    if problems := [
        f"{part.name}: no column {name!r}, which other files of this source have; add it, or read the files apart"
        for part in parts
        for name in names
        if name not in part.table.column_names
    ]:
        raise DataError(_first(problems))
    tables = [part.table.select(names).append_column("row_id", part.row_ids()) for part in parts]
    for text in (False, True):
        for position, name in enumerate(names if text else ()):
            if len({table.schema.field(name).type for table in tables}) > 1:
                texts = [_as_text(table[name]) for table in tables]
                tables = [
                    table if column is None else table.set_column(position, name, column)
                    for table, column in zip(tables, texts, strict=True)
                ]
        try:
            return pa.concat_tables(tables, promote_options="permissive")
        except pa.ArrowException as error:
            reason = error
    raise DataError(f"the files of this source have columns of different kinds ({reason}); write them one way")


def _first(problems: Sequence[str]) -> list[str]:
    more = len(problems) - SHOWN
    return [*problems[:SHOWN], f"… and {more} more"] if more > 0 else list(problems)


# Sources --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    system: Any
    """An fsspec file system."""
    path: str
    """In that file system."""
    name: str = ""
    """In row ids and messages."""

    @property
    def address(self) -> str:
        """The path with its protocol: the same for the same file."""
        return str(self.system.unstrip_protocol(self.path))

    @property
    def suffix(self) -> str:
        """What the name ends with, without that of the compression."""
        path = self.path.split("?")[0] if self.path.startswith("http") else self.path
        return PurePosixPath(path.rpartition(".")[0] if infer_compression(path) else path).suffix.lower()


@dataclass(frozen=True)
class _Part:
    """The rows of one file, or of one split of a hub data set."""

    name: str
    address: str
    table: pa.Table
    rows: NDArray[np.int64]
    """Number of each row in its file."""
    bad: Mapping[int, str]
    """Number and description of each row that could not be read."""

    def row_ids(self) -> pa.Array:
        """Name each row ``<file>:<row>``."""
        return pc.binary_join_element_wise(self.name, pa.array(self.rows).cast(pa.string()), ":")


T = TypeVar("T")


def _each_source(data: Data, read: Callable[[Source, str], T]) -> dict[str, T]:
    """Apply `read` to every split that is a source; the problems of all are raised together."""
    found, problems = {}, []
    for split in SPLITS:
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


def _content_key(source: Source, split: str) -> list[list[str]]:
    keys = []
    for origin in _origins(source, split):
        if isinstance(origin, HubDataset):
            keys.append([origin.model_dump_json(), _hub_dataset(origin)._fingerprint])
        else:
            with _reaching(origin.name), origin.system.open(origin.path, "rb") as stream:
                keys.append([origin.name, file_digest(stream, "sha256").hexdigest()])
    return keys


def _read(source: Source, split: str, *, drop: bool) -> list[_Part]:
    parts, problems = [], []
    for origin in _origins(source, split):
        try:
            part = _hub_part(origin) if isinstance(origin, HubDataset) else _file_part(origin)
        except DataError as error:
            problems += error.problems
            continue
        parts.append(part)
        if part.bad and not drop:
            problems += _first(list(part.bad.values()))
            count = "1 row" if len(part.bad) == 1 else f"{len(part.bad)} rows"
            problems.append(f"{part.name}: {count} in all cannot be read; repair them, or set `data.bad_rows: drop`")
    if problems:
        raise DataError(problems)
    return parts


def _origins(source: Source, split: str) -> list[_File | HubDataset]:
    """Find the files and hub data sets that a source names, in order, each once."""
    if isinstance(source, HubSource):
        return [source.hub]
    hub, files, problems = [], {}, []
    for given in [source] if isinstance(source, str) else source:
        if given.startswith("hub:"):
            hub.append(HubDataset(path=given.removeprefix("hub:"), split=split))
            continue
        try:
            files.update({file.address: file for file in _files(given)})
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    if not hub and not files:
        raise DataError("an empty list names no rows; give a file, glob, folder, URL or `hub:path`")
    return [*_named(list(files.values())), *hub]


def _named(files: list[_File]) -> list[_File]:
    """Name files relative to their common parent; paths of different file systems may have none and stay whole."""
    folders = [posixpath.dirname(file.path) for file in files]
    rooted = {folder.startswith("/") for folder in folders}
    common = posixpath.commonpath(folders) if len(rooted) == 1 else ""
    return [replace(file, name=file.path[len(common) :].lstrip("/")) for file in files]


def _files(given: str) -> list[_File]:
    if not given.strip():
        raise DataError("an empty path; give a file, glob, folder, URL or `hub:path`")
    path = _expanded(given)
    with _reaching(given):
        system, path = url_to_fs(path) if "://" in path else (LocalFileSystem(), _absolute(path))
        if system.isfile(path):
            return [_File(system, path)]
        if system.isdir(path):
            matches = [path]
        elif wildcard := re.search(r"[*?\[]", path):
            fixed = path.rfind("/", 0, wildcard.start()) + 1
            matches = [match for match in sorted(system.glob(path)) if not _hidden(match[fixed:], path[fixed:])]
        else:
            raise DataError(_missing(system, path))
        files = []
        for match in matches:
            files += _below(system, match) if system.isdir(match) else [_File(system, match)]
    if files := [file for file in files if file.suffix in FORMATS]:
        return files
    raise DataError(f"{path} holds no data file; known kinds: {KNOWN_KINDS}")


def _below(system: Any, folder: str) -> list[_File]:
    """All data files below a folder, sorted; names that begin with a dot or underscore are none."""
    found = []
    for path in sorted(system.find(folder)):
        if posixpath.basename(path) not in HUB_METADATA and not _hidden(path[len(folder) :], ""):
            found.append(_File(system, path))
    return found


def _hidden(path: str, pattern: str) -> bool:
    """Whether a name begins with a dot or underscore that the pattern does not ask for."""
    return any(step[:1] in (".", "_") and f"/{step[:1]}" not in f"/{pattern}" for step in path.split("/") if step)


def _missing(system: Any, path: str) -> str:
    folder, name = posixpath.split(path)
    if not system.isdir(folder):
        return f"{path} does not exist, nor does its folder; relative paths start at {Path.cwd()}"
    hint = nearest(name, [posixpath.basename(other.rstrip("/")) for other in system.ls(folder, detail=False)])
    return f"{path} does not exist; " + (
        f"did you mean {hint!r}, which does?" if hint else f"{folder} has no such file"
    )


def _absolute(path: str) -> str:
    return posixpath.normpath(str(Path(path).absolute()))


def _expanded(path: str) -> str:
    """Put the home folder and environment variables into a path."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in environ:
            raise DataError(f"{path}: the environment variable {name} is not set; set it, or write the path out")
        return environ[name]

    expanded = re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, path)
    return str(Path(expanded).expanduser()) if expanded.split("/")[0] == "~" else expanded


@contextmanager
def _reaching(what: str) -> Iterator[None]:
    # One broad except: file systems raise errors of their own (botocore, aiohttp, gcsfs …) without a common base.
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().rstrip(":.")
        raise DataError(f"{what} cannot be read ({reason}); check its address, your access and the file") from error


# Hub data sets --------------------------------------------------------------------------------------------------------


def _hub_dataset(hub: HubDataset) -> Any:
    import datasets

    local = hub.path.startswith(("~", "/", ".", "$"))
    path = _absolute(_expanded(hub.path)) if local else hub.path
    try:
        return datasets.load_dataset(path, hub.name, split=hub.split, revision=hub.revision)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().rstrip(":.")
        raise DataError(
            f"hub data set {hub.path!r}, split {hub.split!r}, cannot be loaded ({reason}); check path, name and split, "
            "or give files: without a network only what was downloaded before can be loaded"
        ) from error


def _hub_part(hub: HubDataset) -> _Part:
    dataset = _hub_dataset(hub)
    table = dataset.with_format("arrow")[:].replace_schema_metadata()
    for index, (name, feature) in enumerate(dataset.features.items()):
        if names := getattr(feature, "names", None):
            table = table.set_column(index, name, _class_names(table[name], names))
        elif names := getattr(getattr(feature, "feature", None), "names", None):
            table = table.set_column(index, name, _each_element(table[name], partial(_class_names, names=names)))
    path = posixpath.basename(hub.path.rstrip("/")) if hub.path.startswith(("~", "/", ".", "$")) else hub.path
    return _Part(f"{path}/{hub.split}", "", _plain(table, hub.path), np.arange(1, len(table) + 1), {})


def _class_names(numbers: pa.ChunkedArray, names: Sequence[str]) -> pa.ChunkedArray:
    """Turn class numbers into names; the hub writes -1 where a label is kept secret."""
    known = pc.if_else(pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(names))), numbers, None)
    return pc.take(pa.array(names, pa.string()), known)


# Files ----------------------------------------------------------------------------------------------------------------


Rows = tuple[pa.Table, NDArray[np.int64] | None, dict[int, str]]
"""A table, the number of each row where they are not 1, 2, 3 …, and what is wrong with rows that cannot be read."""


def _file_part(file: _File) -> _Part:
    if file.suffix not in FORMATS:
        raise DataError(f"{file.path} is of no known kind; known: {KNOWN_KINDS}")
    compression = infer_compression(file.path)
    with _reaching(file.path), OpenFile(file.system, file.path, compression=compression) as stream:
        content = stream.read()
    if not content or content.isspace():
        raise DataError(f"{file.path} is empty; remove it from the source, or write it again")
    table, rows, bad = READERS[FORMATS[file.suffix]](file, content)
    rows = np.arange(1, len(table) + 1) if rows is None else rows
    return _Part(file.name, file.address, _plain(table, file.name), rows, bad)


def _read_parquet(file: _File, content: bytes) -> Rows:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(pa.BufferReader(content)), None, {}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path} is not a whole Parquet file ({error}); write it again") from None


def _read_arrow(file: _File, content: bytes) -> Rows:
    from pyarrow import feather

    try:
        if content.startswith((b"ARROW1", b"FEA1")):
            return feather.read_table(pa.BufferReader(content)), None, {}
        return pa.ipc.open_stream(content).read_all(), None, {}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path} is not a whole Arrow file or stream ({error}); write it again") from None


def _read_csv(file: _File, content: bytes) -> Rows:
    text = _decoded(file, content).lstrip("\r\n")
    delimiter = _delimiter(text.splitlines()[0], tab=file.suffix != ".csv")
    try:
        names = next(csv.reader(io.StringIO(text[:1_000_000], newline=None), delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{file.path}: the header line cannot be read ({error}); it must name the columns") from None
    # A nameless column (a row number written by a data frame, or a comma at the end of the header) has no use here.
    header = {position: name.strip() for position, name in enumerate(names) if name.strip()}
    body = content.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n") + b"\n"
    parsed = partial(_parsed, file, body, len(names), delimiter)
    broken, spanning = _quotes(body, delimiter)
    if delimiter == "\t" and (broken or spanning):
        # Many TSV files (those of GLUE) hold plain quotes; CSV is always quoted (RFC 4180).
        table, bad = parsed(quote=False)
        if bad and not broken:
            table, bad = parsed(quote=True)
    elif broken and b"\n" in broken[0]:
        line = content.count(b"\n", 0, len(content) + 1 - len(body) + broken.start()) + 1
        raise DataError(
            f"{file.path}: the cell that line {line} opens with a double quote does not end with one, so the rows "
            'after it cannot be told apart; close the quote, or write quotes inside a cell twice ("")'
        )
    else:
        table, bad = parsed(quote=True)
    rows = np.setdiff1d(np.arange(1, len(table) + len(bad) + 1), np.array(list(bad), dtype=np.int64))
    return table.select(list(header)).rename_columns(list(header.values())), rows, bad


def _parsed(file: _File, body: bytes, width: int, delimiter: str, *, quote: bool) -> tuple[pa.Table, dict[int, str]]:
    """Read delimited text, every column as text; rows with another number of fields are left out and described."""
    from pyarrow import csv as arrow_csv

    bad: list[Any] = []

    def leave_out(row: Any) -> str:
        bad.append(row)
        return "skip"

    names = [str(position) for position in range(width)]
    parse = arrow_csv.ParseOptions(
        delimiter=delimiter,
        quote_char='"' if quote else False,
        newlines_in_values=quote,
        invalid_row_handler=leave_out,
    )
    convert = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    # Only a single thread numbers the rows, so a file with bad rows is read a second time.
    for threads in (True, False):
        bad.clear()
        # No cell may be larger than a block.
        read = arrow_csv.ReadOptions(
            column_names=names, skip_rows_after_names=1, block_size=1 << 25, use_threads=threads
        )
        try:
            table = arrow_csv.read_csv(pa.BufferReader(body), read, parse, convert)
        except pa.ArrowException as error:
            raise DataError(f"{file.path} cannot be read as delimited text ({error}); write it again") from None
        if not bad:
            break
    return table, {
        row.number - 1: f"{file.name}: row {row.number - 1} has {row.actual_columns} "
        f"field{'s' * (row.actual_columns != 1)}, the header has {width}: {_short(row.text)}; a cell that holds "
        f"{delimiter!r} needs double quotes"
        for row in bad
    }


def _delimiter(header: str, *, tab: bool) -> str:
    """Tell what separates the columns: what the file's name says, unless the header line has only other signs.

    >>> _delimiter('"a, b";label', tab=False)
    ';'
    """
    bare = re.sub(r'"[^"]*"', "", header)
    usual = "\t" if tab else ","
    return usual if usual in bare else max(",;\t", key=lambda sign: (bare.count(sign), sign == usual))


def _quotes(body: bytes, delimiter: str) -> tuple[re.Match[bytes] | None, bool]:
    """Look at the cells that begin with a quote: the first that does not end with one, and whether any spans lines.

    A cell that spans lines before it breaks is preferred: it would swallow rows in silence.
    """
    sign = re.escape(delimiter.encode())
    cell = re.compile(rb'(?<![^%b\r\n])"[^"]*+(?:""[^"]*+)*+("(?![^%b\r\n]))?' % (sign, sign))
    broken, spanning = None, False
    for found in cell.finditer(body) if b'"' in body else ():
        lines = b"\n" in found[0]
        spanning |= lines
        if found[1] is None and (lines or not broken):
            broken = found
            if lines:
                break
    return broken, spanning


def _read_json(file: _File, content: bytes) -> Rows:
    rows, bad = {}, {}
    for number, value in _json_values(file, _decoded(file, content)):
        if isinstance(value, dict):
            rows[number] = value
        elif isinstance(value, ValueError | RecursionError):
            bad[number] = f"{file.name}:{number} is not JSON ({value}); write one object a line"
        else:
            found = f"{_json_kind(value)}: {_short(json.dumps(value))}"
            bad[number] = f'{file.name}:{number} is not an object but {found}; write {{"text": …, "label": …}}'
    names = dict.fromkeys(name for value in rows.values() for name in value)
    if not names and not bad:
        raise DataError(f'{file.path} holds no row with a field; expected objects such as {{"text": …, "label": …}}')
    table = pa.table({name: _json_column([value.get(name) for value in rows.values()]) for name in names})
    return table, np.array(list(rows), dtype=np.int64), bad


def _json_values(file: _File, text: str) -> Iterator[tuple[int, Any]]:
    """Numbered items of a ``.json`` file that holds one array, else what stands on each line; an error for no JSON."""
    if file.suffix == ".json" and text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file.path} is not a JSON array ({error}); write it again") from None
        for number, item in enumerate(items, 1):
            yield number, item if _is_unicode(item, text) else ValueError(HALF_SURROGATE)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            value = ValueError(f"{error.msg} at column {error.colno} of {_short(line)}")
        except (ValueError, RecursionError) as error:
            value = error
        else:
            value = value if _is_unicode(value, line) else ValueError(HALF_SURROGATE)
        yield number, value


HALF_SURROGATE = "half of a surrogate pair, as left by a cut inside an emoji"


def _is_unicode(value: Any, text: str) -> bool:
    """Whether the texts of a value can be written; JSON can hold half of a character."""
    if "\\ud" not in text.lower():
        return True
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_column(values: list[Any]) -> pa.Array:
    """An Arrow column; scalars of several types become text, and a mixture of scalars and others stays JSON."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        pass
    if all(map(_is_scalar, values)):
        return pa.array(map(_spelled, values), pa.string())
    if all(value is None or (isinstance(value, list) and all(map(_is_scalar, value))) for value in values):
        return pa.array([value and [*map(_spelled, value)] for value in values], pa.list_(pa.string()))
    texts = [None if value is None else json.dumps(value) for value in values]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _spelled(value: Any) -> str | None:
    """Write a scalar as ``_as_text`` writes a column of its kind."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value != value:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def _json_kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _decoded(file: _File, content: bytes) -> str:
    fix = "save it as UTF-8, for example with `iconv -f CP1252 -t UTF-8`"
    zero = content[:4096].find(b"\0")
    if zero >= 0 or content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{file.path} is not UTF-8 text (offset {max(zero, 0)}: it looks like UTF-16 or binary); {fix}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + len(content) - len(error.object)
        place = f"byte 0x{content[start]:02x} at offset {start}, line {content.count(10, 0, start) + 1}"
        raise DataError(f"{file.path} is not UTF-8 text ({place}); {fix}") from None


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


READERS: Mapping[str, Callable[[_File, bytes], Rows]] = {
    "csv": _read_csv,
    "json": _read_json,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
