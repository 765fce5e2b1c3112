"""The demo's data files are what their README says, and the split leaks nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pmray.errors
from pmray.demo import make_data
from pmray.demo.make_data import Sentence, clean_text, keep, parse, split_by_review
from pmray.errors import DataError

DATA = Path(pmray.errors.__file__).parent / "demo" / "data"
COUNTS = {
    "reviews_train": {"positive": 1307, "negative": 925},
    "reviews_test": {"positive": 436, "negative": 308},
    "tweets": {"positive": 2345, "negative": 1087},
}


def rows(name: str) -> list[dict[str, object]]:
    table: list[dict[str, object]] = pq.read_table(DATA / f"{name}.parquet").to_pylist()
    return table


@pytest.mark.parametrize("name", COUNTS)
def test_schema(name: str) -> None:
    fields = [
        ("text", pa.string()),
        ("label", pa.string()),
        ("domain", pa.string()),
        ("mean", pa.float32()),
        ("id", pa.string()),
    ]
    if name != "tweets":
        fields.append(("review", pa.string()))
    assert pq.read_schema(DATA / f"{name}.parquet").equals(pa.schema(fields))


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_the_readme(name: str) -> None:
    labels = [row["label"] for row in rows(name)]
    assert {label: labels.count(label) for label in set(labels)} == COUNTS[name]
    stated = re.search(rf"`{name}\.parquet` \| (\d+) \| (\d+) \| (\d+) ", (DATA / "README.md").read_text("utf-8"))
    assert stated is not None
    assert [int(n) for n in stated.groups()] == [len(labels), COUNTS[name]["positive"], COUNTS[name]["negative"]]


@pytest.mark.parametrize("name", COUNTS)
def test_rows_are_clean(name: str) -> None:
    table = rows(name)
    assert len({row["text"] for row in table}) == len({row["id"] for row in table}) == len(table)
    for row in table:
        text, mean = str(row["text"]), float(str(row["mean"]))
        assert text == clean_text(text) and any(sign.isalnum() for sign in text)
        assert "\ufffd" not in text
        assert 0.5 <= abs(mean) <= 4
        assert row["label"] == ("positive" if mean > 0 else "negative")
        assert row["domain"] == name.split("_")[0]


@pytest.mark.parametrize("key", ["text", "review", "id"])
def test_train_and_test_share_nothing(key: str) -> None:
    train, test = ({str(row[key]).casefold() for row in rows(f"reviews_{side}")} for side in ("train", "test"))
    assert train and test and not train & test


def test_small_enough_to_embed() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 500_000


def test_licence_is_shipped() -> None:
    licence = (DATA.parent / "LICENSE-vaderSentiment.txt").read_text("utf-8")
    assert licence.startswith("The MIT License (MIT)\n\nCopyright (c) 2016 C.J. Hutto\n")


def test_keep_drops_neutral_blank_repeated_and_contradictory() -> None:
    sentences = [
        Sentence("1", "good", 2.0, "d"),
        Sentence("2", "good", 1.0, "d"),
        Sentence("3", "odd", 1.0, "d"),
        Sentence("4", "odd", -1.0, "d"),
        Sentence("5", "so so", 0.49, "d"),
        Sentence("6", "edge", -0.5, "d"),
        Sentence("7", "!", 3.0, "d"),
    ]
    assert [one.id for one in keep(sentences)] == ["1", "6"]


def test_clean_text_leaves_bare_ampersands() -> None:
    assert clean_text("a&copyb AT&T R&amp;B &lt;3 &amp;#38;") == "a&copyb AT&T R&B <3 &"


def test_parse_names_the_bad_line() -> None:
    with pytest.raises(DataError, match="line 2"):
        parse(b"\xef\xbb\xbf1_1\t2.0\tgood\r\n1_2 bad", "reviews")


def test_split_keeps_reviews_whole_and_labels_even() -> None:
    sentences = [Sentence(f"{n // 4}_{n}", f"t{n}", (-1) ** n, "d", str(n // 4)) for n in range(400)]
    train, test = split_by_review(sentences)
    assert len(train) == 300 and len(test) == 100
    assert not {one.review for one in train} & {one.review for one in test}
    assert sum(one.mean for one in test) == 0


def test_another_archive_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.tar.gz"
    wrong.write_bytes(b"")
    with pytest.raises(DataError, match="SHA-256"):
        make_data.make(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()
