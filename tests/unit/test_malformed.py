"""Every malformed input gives one clear error that names the file, or a counted finding that names the rows.

Each case: what lies in the folder, which file (or folder) is read, and what must be said of it. ``ERROR`` cases stop a
load; ``FOUND`` cases are findings of ``pmray.check`` with their severity, count and row ids.
"""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pmray
from pmray.data.load import load_data, load_rows
from pmray.errors import DataError
from pmray.spec import Data

ROLES = {"text": True, "text_pair": False, "label": True, "group": False}
GOOD = "".join(f"a sentence that says thing number {row},{'ab'[row % 2]}\n" for row in range(20))
HEADER = "text,label\n"


def parquet(rows, **kinds):
    sink = io.BytesIO()
    table = pa.table({name: pa.array([row.get(name) for row in rows], kinds.get(name)) for name in rows[0]})
    pq.write_table(table, sink)
    return sink.getvalue()


def arrow(rows):
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


SENTENCES = [{"text": f"a sentence that says thing number {row}", "label": "ab"[row % 2]} for row in range(20)]


def changed(at, **values):
    """The good rows with one of them changed."""
    return [{**row, **values} if number == at else row for number, row in enumerate(SENTENCES, 1)]


def numbered(at, label):
    """The good rows with numbers for labels, one of them another."""
    return [{**row, "label": label if number == at else number % 2} for number, row in enumerate(SENTENCES, 1)]


def changed_lists(at, labels):
    """The good rows with lists of labels, one of them another."""
    some = [["a"], ["a", "b"], []]
    return [{**row, "label": labels if number == at else some[number % 3]} for number, row in enumerate(SENTENCES, 1)]


IDS = (HEADER + "".join(f"user-{row}.txt,{'ab'[row % 2]}\n" for row in range(20))).encode()

QUOTE = b'"a text that begins with a quote\ta\n'

ERRORS = {
    # files
    "empty.csv": (b"", "is empty"),
    "empty.parquet": (b"", "is empty"),
    "empty.csv.gz": (gzip.compress(b""), "is empty"),
    "blank.jsonl": (b" \n\n", "is empty"),
    "notes.docx": (b"PK", r"no(?:tes.docx)? .*data file|known kind"),
    "torn.csv.gz": (gzip.compress(b"text,label\n" * 99)[:-9], "cannot be read"),
    "fake.csv.gz": (b"text,label\n", "cannot be read"),
    "torn.parquet": (b"PAR1 and no more", "is not a whole Parquet file"),
    "cut.parquet": (parquet(SENTENCES)[:-20], "is not a whole Parquet file"),
    "torn.arrow": (b"ARROW1\0\0 and no more", "is not a whole Arrow file"),
    "cut.arrow": (arrow(SENTENCES)[:-20], "is not a whole Arrow file"),
    "stream.arrow": (b"nonsense", "is not a whole Arrow file"),
    "csv.parquet": ((HEADER + GOOD).encode(), "is not a whole Parquet file"),
    "parquet.csv": (parquet(SENTENCES), r"is not UTF-8 text.*binary"),
    # encodings
    "latin.csv": ("text,label\nok,1\ncafé,1\n".encode("cp1252"), r"byte 0xe9 at offset 19, line 3.*UTF-8"),
    "bom.csv": (b"\xef\xbb\xbftext,label\ncaf\xe9,1\n", r"byte 0xe9 at offset 17, line 2"),
    "latin.jsonl": ('{"text": "é"}\n'.encode("latin-1"), r"byte 0xe9 at offset 10, line 1"),
    "wide.csv": ("text,label\nx,1\n".encode("utf-16"), "looks like UTF-16"),
    "wide.jsonl": ('{"text": "x"}\n'.encode("utf-16-le"), "looks like UTF-16"),
    "null.csv": (b"text,label\nx\0y,1\n", "looks like UTF-16 or binary"),
    "half.jsonl": (b'{"text": "\\ud83d"}\n', r"half.jsonl:1 is not JSON \(half of a surrogate"),
    # rows
    "few.csv": (b"text,label\nok,1\nonly\n", r"few.csv: row 2 has 1 field, the header has 2: 'only'"),
    "many.csv": (b"text,label\n\nok,1\nx,y,z\n", r"many.csv: row 2 has 3 fields, the header has 2.*double quotes"),
    "open.csv": (b'text,label\n\nok,1\n"never closed,1\nlost,0\n', r"line 4 opens with a double quote"),
    "swallow.csv": (b'text,label\n"Foo said,1\nbar,0\n"baz,1\n', r"line 2 opens with a double quote"),
    "torn.jsonl": (b'{"text": "a"}\n{"text": \n', r"torn.jsonl:2 is not JSON \(Expecting value at column 10"),
    "list.jsonl": (b'{"text": "a"}\n["b"]\n3\n', r"list.jsonl:2 is not an object but an array.*\n.*:3 .* a number"),
    "array.json": (b'[{"text": "a"}, 3]', r"array.json:2 is not an object but a number: '3'"),
    "torn.json": (b'[{"text": "a"}', r"is not a JSON array"),
    "fieldless.jsonl": (b"{}\n{}\n", "no row with a field"),
    "deep.json": (b"[" * 100_000, "is not a JSON array"),
    # columns
    "twice.csv": (b"text,label,text\na,b,c\n", r"two columns are called 'text'"),
    "padded.csv": (b"text, text,label\na,b,c\n", r"two columns are called 'text'"),
}
"""Files that cannot be read as tables: bytes, and what is said."""


@pytest.mark.parametrize("name", ERRORS)
def test_files_that_cannot_be_read_are_named(tmp_path, name):
    content, message = ERRORS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        load_rows(str(tmp_path / name), split="train")
    assert name in str(caught.value)
    assert all(problem.startswith("data.train: ") for problem in caught.value.problems)


UNFIT = {
    "semicolons": (b"text;label;x,y\na;b;c,d\n", "no column 'text' for text; found: 'text;label;x', 'y'"),
    "no header": (b"a first text,a\na second text,b\n", r"no column 'text' .*in CSV the first line names them"),
    "truth values": (lines(changed(1, text=True)[:1]), r"column 'text' \(text\) holds bool, expected text or numbers"),
    "text and lists": (lines(changed(2, text=["y"])), r"a mixture \(text in row 1, an array in row 2"),
    "objects": (
        lines([{"text": "x", "label": {"a": 1}}]),
        r"column 'label' \(label\) holds struct<a: int64>, expected",
    ),
    "lists of lists": (lines([{"text": "x", "label": [[1]]}]), r"column 'label' \(label\) holds list<item: list"),
    "labels of both kinds": (lines(changed(3, label=["a"])), r"a mixture \(text in row 1, an array in row 3"),
    "bytes": (parquet([{"text": b"\xff", "label": "a"}]), r"column 'text' \(text\) holds binary, expected text"),
}
"""Tables whose columns do not fit the task: bytes, and what is said."""


@pytest.mark.parametrize("case", UNFIT)
def test_columns_that_do_not_fit_are_named(tmp_path, case):
    content, message = UNFIT[case]
    path = tmp_path / (
        "a.parquet" if content.startswith(b"PAR1") else "a.jsonl" if content.startswith(b"{") else "a.csv"
    )
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_data(Data(train=str(path)), ROLES)
    assert all(problem.startswith(f"data.train: {path.name}: ") for problem in caught.value.problems)


def csv(*rows):
    return (HEADER + GOOD + "".join(row + "\n" for row in rows)).encode()


FOUND = {
    "a row with too few fields": ("csv", csv("only"), ("error", "unreadable row", 1, "data.csv:21")),
    "a line that is no JSON": (
        "jsonl",
        lines(SENTENCES) + b"nonsense\n",
        ("error", "unreadable row", 1, "data.jsonl:21"),
    ),
    "half a surrogate": (
        "jsonl",
        lines(SENTENCES) + b'{"text": "\\ud83d"}\n',
        ("error", "unreadable row", 1, "data.jsonl:21"),
    ),
    "an empty text": ("csv", csv(",a", '"  ",b'), ("error", "empty text", 2, "data.csv:21")),
    "a null text": ("parquet", parquet(changed(4, text=None)), ("error", "empty text", 1, "data.parquet:4")),
    "a missing key": ("jsonl", lines([*SENTENCES, {"label": "a"}]), ("error", "empty text", 1, "data.jsonl:21")),
    "no label": ("csv", csv("a text without a label,"), ("error", "no label", 1, "data.csv:21")),
    "a blank label": ("csv", csv("a text without a label,  "), ("error", "no label", 1, "data.csv:21")),
    "not a number": ("parquet", parquet(numbered(4, float("nan"))), ("error", "no label", 1, "data.parquet:4")),
    "a null in a list of labels": (
        "jsonl",
        lines(changed_lists(6, ["a", None])),
        ("error", "no label", 1, "data.jsonl:6"),
    ),
    "one label only": ("csv", (HEADER + GOOD.replace(",b\n", ",a\n")).encode(), ("error", "single label", 20, None)),
    "three rows": (
        "csv",
        (HEADER + "one text,a\nanother text,b\nno more,a\n").encode(),
        ("error", "too few rows", 3, None),
    ),
    "a label of one row": ("csv", csv("a text with a rare label,c"), ("warning", "rare label", 1, None)),
    "two spellings of a label": (
        "csv",
        csv("one more text,A", "two more texts,A "),
        ("warning", "similar labels", 2, "data.csv:21"),
    ),
    "text among numbers": ("jsonl", lines(changed(2, text=7)), ("warning", "mixed types", 1, "data.jsonl:2")),
    "mixed labels": ("jsonl", lines(numbered(5, "1")), ("warning", "mixed types", 1, "data.jsonl:5")),
    "a huge cell": ("csv", csv("word " * 30_000 + ",a"), ("warning", "huge cell", 1, "data.csv:21")),
    "an unclosed quote in TSV": (
        "tsv",
        (HEADER + GOOD).replace(",", "\t").encode() + QUOTE * 2,
        ("info", "repeated row", 1, "data.tsv:22"),
    ),
    "a replacement character": (
        "csv",
        csv("a caf\ufffd in Paris,a"),
        ("warning", "damaged characters", 1, "data.csv:21"),
    ),
    "mojibake": ("csv", csv("a cafÃ© in Paris,a"), ("warning", "damaged characters", 1, "data.csv:21")),
    "a control character": (
        "jsonl",
        lines(changed(3, text="a bell \x07 rings")),
        ("info", "control characters", 1, "data.jsonl:3"),
    ),
    "a null character": (
        "jsonl",
        lines(changed(3, text="a null \x00 in it")),
        ("info", "control characters", 1, "data.jsonl:3"),
    ),
    "ids for texts": ("csv", IDS, ("warning", "id-like text", 20, None)),
    "one text for all": (
        "csv",
        (HEADER + "always the same,a\nalways the same,b\n" * 10).encode(),
        ("warning", "constant text", 20, None),
    ),
    "a text with two labels": (
        "csv",
        csv("A Sentence that says: thing number 2!,b"),
        ("warning", "contradictory labels", 2, "data.csv:3"),
    ),
}
"""Rows that can be read: ending, bytes, and the finding (severity, check, count, first row id)."""


@pytest.mark.parametrize("case", FOUND)
def test_malformed_rows_are_counted_and_named(tmp_path, case):
    ending, content, (severity, check, count, first) = FOUND[case]
    (tmp_path / f"data.{ending}").write_bytes(content)
    checked = pmray.check(str(tmp_path / f"data.{ending}"), task="text-classification")
    found = [one for one in checked.findings if one.check == check]
    assert [(one.severity, one.count) for one in found] == [(severity, count)]
    assert found[0].examples[:1] == ((first,) if first else ())
    assert first is None or first in found[0].message
    assert checked.errors == sum(one.severity == "error" for one in checked.findings)
    if severity == "error":
        assert checked.errors


def test_there_are_at_least_forty_cases():
    assert len(ERRORS) + len(UNFIT) + len(FOUND) >= 40
