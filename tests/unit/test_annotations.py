"""Words and tags in one form, however they were written; what does not fit is named by row."""

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmray import load_data
from pmray.data.annotations import annotate, as_bio, cut, spaced
from pmray.errors import DataError
from pmray.spec import Data
from pmray.tasks.tokens import TokenClassification
from tests.tiny import write_rows


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist([{"row_id": f"a:{number}", **row} for number, row in enumerate(rows, 1)])


def annotated(rows: list[dict], *, drop: bool = False):
    tables, findings = annotate({"train": table(rows)}, drop=drop)
    return tables["train"].to_pylist(), findings


@given(st.text())
def test_cut_words_are_the_text_again(text):
    words = cut(text)
    assert "".join(words) == text or not text.strip()
    assert all(word.strip() for word in words)


def test_a_list_of_words_gets_spaces():
    assert spaced(["a", "b "], [True, False]) == ["a ", "b"]
    assert spaced(["a", "b"]) == ["a ", "b "]


@pytest.mark.parametrize(
    ("tags", "bio"),
    [
        (["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "I-PER", "O", "B-LOC"]),
        (["B-PER", "E-PER", "S-LOC", "S-LOC"], ["B-PER", "I-PER", "B-LOC", "B-LOC"]),
        (["B-PER", "L-PER", "U-LOC", "O"], ["B-PER", "I-PER", "B-LOC", "O"]),
        (["PER", "PER", "LOC", "O"], ["B-PER", "I-PER", "B-LOC", "O"]),
        (["O", "O", "O", "O"], ["O", "O", "O", "O"]),
    ],
    ids=["BIO", "BIOES", "BILOU", "IO", "nothing"],
)
def test_every_scheme_becomes_bio(tags, bio):
    rows, findings = annotated([{"words": list("abcd"), "label": tags}])
    assert rows[0]["label"] == bio
    assert findings == []


def test_an_i_without_a_b_is_named_and_read_as_a_b():
    good = {"words": ["x", "y"], "label": ["B-PER", "I-PER"]}
    rows, (finding,) = annotated([good, {"words": ["x", "y"], "label": ["O", "I-PER"]}])
    assert rows[1]["label"] == ["O", "B-PER"]
    assert (finding.severity, finding.count, finding.examples) == ("warning", 1, ("a:2",))
    assert "in 1 row (a:2)" in finding.message


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"words": ["x", "y"], "label": ["O"]}, "a:2: it has 2 words, but 1 tags"),
        ({"words": ["x"], "label": ["PER"]}, "a:2: tag 1 is 'PER', expected O or one of BIO"),
        ({"words": ["x"], "label": ["E-PER"]}, None),
        ({"words": ["x"], "label": ["B-"]}, "a:2: tag 1 is 'B-'"),
        ({"words": ["x", None], "label": ["O", "O"]}, "a:2: a word is missing"),
    ],
)
def test_what_does_not_fit_is_named_by_row(row, told):
    good = {"words": ["x", "y"], "label": ["B-PER", "I-PER"]}
    rows, findings = annotated([good, row])
    if told is None:  # with an E the scheme is BIOES, where it may stand
        assert rows[1]["label"] == ["B-PER"]
        return
    assert findings[0].severity == "error"
    assert told in findings[0].message
    assert len(rows) == 1
    assert annotated([good, row], drop=True)[1][0].severity == "warning"


SPANS = [{"start": 0, "end": 10, "label": "PER"}, {"start": 18, "end": 24, "label": "LOC"}]


@pytest.mark.parametrize("label", [SPANS, json.dumps(SPANS)], ids=["list", "JSON"])
def test_character_spans_become_tags_of_words(label):
    rows, findings = annotated([{"words": "Ada  King lives in London.", "label": label}])
    assert findings == []
    assert [word.strip() for word in rows[0]["words"]] == ["Ada", "King", "lives", "in", "London", "."]
    assert rows[0]["label"] == ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]


@pytest.mark.parametrize(
    ("span", "told"),
    [
        ({"start": 0, "end": 99, "label": "PER"}, "span 0-99 (PER) is not inside the text, which has 9 characters"),
        ({"start": 5, "end": 5, "label": "PER"}, "span 5-5 (PER) is not inside"),
        ({"start": 3, "end": 5, "label": "PER"}, "span 3-5 (PER) holds no word"),
        ({"start": "x", "end": 5, "label": "PER"}, "expected start, end and label"),
        ({"start": 0, "end": 2}, "expected start, end and label"),
    ],
)
def test_a_span_that_cannot_be_is_named(span, told):
    _, findings = annotated([{"words": "Ada  King", "label": json.dumps([span])}])
    assert told in findings[0].message


def test_overlapping_spans_are_named():
    spans = [{"start": 0, "end": 9, "label": "PER"}, {"start": 5, "end": 9, "label": "ORG"}]
    assert "overlaps another one" in annotated([{"words": "Ada  King", "label": spans}])[1][0].message


def test_texts_of_words_and_tags_between_spaces():
    rows, _ = annotated([{"words": "Ada lives", "label": "B-PER O"}])
    assert rows[0]["words"] == ["Ada ", "lives "]
    assert rows[0]["label"] == ["B-PER", "O"]


def test_a_csv_of_tags_is_loaded_and_a_type_that_train_lacks_is_named(tmp_path):
    lines = [f"word{n} in town,O O B-LOC" for n in range(20)]
    (tmp_path / "rows.csv").write_text("\n".join(["words,label", *lines]))
    test = [{"words": ["one", "two"], "label": ["B-LOC", "I-LOC"]}, {"words": ["Ada"], "label": ["B-PER"]}]
    data = {"train": str(tmp_path / "rows.csv"), "test": str(write_rows(tmp_path / "test.jsonl", test))}
    with pytest.raises(DataError, match=r"1 row has a label .*'PER' \(test.jsonl:2\)|'PER'") as caught:
        load_data(Data(**data), TokenClassification.columns)
    assert "test.jsonl:2" in str(caught.value)
    write_rows(tmp_path / "test.jsonl", test[:1])
    loaded = load_data(Data(**data), TokenClassification.columns)
    assert TokenClassification.from_data(Data(**data), loaded.train).labels == ("O", "B-LOC", "I-LOC")


def test_as_bio_refuses_a_tag_of_another_scheme():
    with pytest.raises(DataError, match="tag 2 is 'S-PER'"):
        as_bio(["O", "S-PER"], "BIO")
