"""What is in a file: CSV, JSON, Parquet and Arrow, compressed or not, and which of their rows cannot be read."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.core import OpenFile
from fsspec.utils import infer_compression
from numpy.typing import NDArray

from pmray.errors import DataError

FORMATS = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
}

KNOWN_KINDS = f"{', '.join(FORMATS)}, also compressed (.gz, .bz2, .xz, .zip)"


@dataclass(frozen=True)
class File:
    """A file of any file system."""

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
class Part:
    """The rows of one file, or of one split of a hub data set."""

    name: str
    address: str
    table: pa.Table
    rows: NDArray[np.int64]
    """Number of each row in its file."""
    bad: Mapping[int, str]
    """Number and description of each row that could not be read."""
    files: tuple[str, ...] = ()
    """The file of each row, where each has one of its own."""

    def row_ids(self) -> pa.Array:
        """Name each row ``<file>:<row>``."""
        if self.files:
            return pa.array(self.files)
        return pc.binary_join_element_wise(self.name, pa.array(self.rows).cast(pa.string()), ":")


def read_file(file: File) -> Part:
    """Read a file by what its name ends with, and name its rows.

    CSV and TSV cells stay text (``007`` is not 7, ``NA`` is not missing; an empty unquoted cell is null).

    Raises:
        DataError: It cannot be read as a whole; single bad rows are in ``Part.bad``.
    """
    if file.suffix not in FORMATS:
        raise DataError(f"{file.path} is of no known kind; known: {KNOWN_KINDS}")
    compression = infer_compression(file.path)
    with reaching(file.path), OpenFile(file.system, file.path, compression=compression) as stream:
        content = stream.read()
    if not content or content.isspace():
        raise DataError(f"{file.path} is empty; remove it from the source, or write it again")
    table, rows, bad = READERS[FORMATS[file.suffix]](file, content)
    rows = np.arange(1, len(table) + 1) if rows is None else rows
    return Part(file.name, file.address, plain_table(table, file.name), rows, bad)


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Turn whatever a file system raises into a ``DataError`` that names what was to be read."""
    # One broad except: file systems raise errors of their own (botocore, aiohttp, gcsfs …) without a common base.
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().rstrip(":.")
        raise DataError(f"{what} cannot be read ({reason}); check its address, your access and the file") from error


def plain_table(table: pa.Table, name: str) -> pa.Table:
    """Decode dictionary columns and refuse a name that is there twice."""
    names = table.column_names
    if twice := sorted({column for column in names if names.count(column) > 1}):
        raise DataError(f"{name}: two columns are called {', '.join(map(repr, twice))}; rename one of them")
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table[field.name].cast(field.type.value_type))
    return table


Rows = tuple[pa.Table, NDArray[np.int64] | None, dict[int, str]]
"""A table, the number of each row where they are not 1, 2, 3 …, and what is wrong with rows that cannot be read."""


def _read_parquet(file: File, content: bytes) -> Rows:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(pa.BufferReader(content)), None, {}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path} is not a whole Parquet file ({error}); write it again") from None


def _read_arrow(file: File, content: bytes) -> Rows:
    from pyarrow import feather

    try:
        if content.startswith((b"ARROW1", b"FEA1")):
            return feather.read_table(pa.BufferReader(content)), None, {}
        return pa.ipc.open_stream(content).read_all(), None, {}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path} is not a whole Arrow file or stream ({error}); write it again") from None


def _read_csv(file: File, content: bytes) -> Rows:
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


def _parsed(file: File, body: bytes, width: int, delimiter: str, *, quote: bool) -> tuple[pa.Table, dict[int, str]]:
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


def _read_json(file: File, content: bytes) -> Rows:
    rows, bad = {}, {}
    for number, value in _json_values(file, _decoded(file, content)):
        if isinstance(value, dict):
            rows[number] = value
        elif isinstance(value, ValueError | RecursionError):
            bad[number] = f"{file.name}:{number} is not JSON ({value}); write one object a line"
        else:
            found = f"{json_kind(value)}: {_short(json.dumps(value))}"
            bad[number] = f'{file.name}:{number} is not an object but {found}; write {{"text": …, "label": …}}'
    names = dict.fromkeys(name for value in rows.values() for name in value)
    if not names and not bad:
        raise DataError(f'{file.path} holds no row with a field; expected objects such as {{"text": …, "label": …}}')
    columns, fields = [], []
    for name in names:
        values = [value.get(name) for value in rows.values()]
        columns.append(_json_column(values))
        fields.append(pa.field(name, columns[-1].type, metadata=_mixture(values, columns[-1].type, list(rows))))
    return pa.table(columns, schema=pa.schema(fields)), np.array(list(rows), dtype=np.int64), bad


MIXTURE = b"pmray.mixture"
"""Metadata of a column whose values were of several kinds and became text: see ``_mixture``."""


def _mixture(values: list[Any], kind: pa.DataType, rows: list[int]) -> dict[bytes, bytes] | None:
    """Where scalars of several kinds became text: the kinds, how many are not of the commonest, the first few rows."""
    if not pa.types.is_string(kind) or all(value is None or isinstance(value, str) for value in values):
        return None
    kinds = [None if value is None else json_kind(value) for value in values]
    (common, _), *others = Counter(one for one in kinds if one).most_common()
    odd = [row for row, one in zip(rows, kinds, strict=True) if one not in (None, common)]
    found = {"kinds": [common, *(name for name, _ in others)], "count": len(odd), "rows": odd[:5]}
    return {MIXTURE: json.dumps(found).encode()} if odd else None


def _json_values(file: File, text: str) -> Iterator[tuple[int, Any]]:
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


def json_kind(value: object) -> str:
    """Say what kind of JSON value it is, for people."""
    kinds = {dict: "an object", list: "an array", str: "text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def _decoded(file: File, content: bytes) -> str:
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


READERS: Mapping[str, Callable[[File, bytes], Rows]] = {
    "csv": _read_csv,
    "json": _read_json,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
