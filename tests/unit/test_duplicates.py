"""Near-duplicates: what is found is exact, what is missed is rare."""

import numpy as np
import pyarrow as pa
import pytest

from pmray.data.documents import documents, input_keys
from pmray.data.duplicates import THRESHOLD, check_near_duplicates, near_pairs

WORDS = [f"word{number}" for number in range(400)]


def table(texts, split="train", **columns):
    ids = [f"{split}:{row}" for row in range(1, len(texts) + 1)]
    return pa.table({"row_id": ids, "text": pa.array(texts, pa.string()), **columns})


def jaccard(first, second):
    one, other = ({*zip(text.split(), text.split()[1:], strict=False)} for text in (first, second))
    return len(one & other) / len(one | other)


def changed(words, places, draw):
    """A copy with other words at random places."""
    copy = list(words)
    for place in draw.choice(len(copy), places, replace=False):
        copy[place] = "changed"
    return copy


def test_pairs_are_those_of_all_pairs_compared():
    draw = np.random.default_rng(0)
    texts = []
    for _ in range(60):
        words = [WORDS[at] for at in draw.integers(len(WORDS), size=30)]
        texts += [" ".join(words)] + [" ".join(changed(words, places, draw)) for places in (1, 2, 3, 6)]
    found = near_pairs(pa.chunked_array([texts]))
    expected = {
        (one, other): jaccard(texts[one], texts[other])
        for one in range(len(texts))
        for other in range(one + 1, len(texts))
        if jaccard(texts[one], texts[other]) >= THRESHOLD
    }
    assert len(expected) > 60
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == set(expected)
    assert found.similarity.tolist() == pytest.approx([expected[pair] for pair in sorted(expected)])


def test_a_crowd_of_almost_equal_rows_is_found_whole():
    crowd = ["one long sentence that all of them have in common up to its last word " + word for word in WORDS]
    (finding,) = check_near_duplicates({"train": table(crowd)})
    assert (finding.check, finding.severity, finding.count) == ("near-duplicate row", "info", len(crowd) - 1)


@pytest.mark.parametrize(
    "texts",
    [
        ["東京は日本の首都であり世界最大の都市の一つです", "東京は日本の首都であり世界最大の都市の一つ"],
        ["Der Wagen ist SCHÖN, sagt er!", "der wagen ist schön - sagt er"],
        ["one", "One."],
        ["ﬁne café", "fine cafe\u0301"],
    ],
)
def test_near_after_normalising(texts):
    findings = check_near_duplicates({"train": table(texts[:1]), "test": table(texts[1:], "test")})
    assert [(one.check, one.severity, one.count, one.examples) for one in findings] == [
        ("test rows near train", "warning", 1, ("test:1",))
    ]
    assert "test:1 and train:1" in findings[0].message


@pytest.mark.parametrize("texts", [[":-)", ":-("], ["!", "?"], ["👍", "👎"], ["東京", "大阪"], ["a b", "b a"]])
def test_what_is_different_stays_so(texts):
    assert check_near_duplicates({"train": table(texts)}) == []


def test_equal_inputs_are_left_to_the_exact_check():
    assert check_near_duplicates({"train": table(["the same text", "the same text"])}) == []


def test_a_pair_is_one_document():
    first, second = "a text about this and that and more of it", "some other words in another sentence here"
    ours = table([first], text_pair=pa.array([second]))
    assert check_near_duplicates({"train": ours, "test": table([first], "test", text_pair=pa.array(["no"]))}) == []
    swapped = table([second], "test", text_pair=pa.array([first]))
    assert check_near_duplicates({"train": ours, "test": swapped}) != []
    near = table([first.upper()], "test", text_pair=pa.array([second + "!"]))
    assert [one.count for one in check_near_duplicates({"train": ours, "test": near})] == [1]


def test_rows_without_text_are_left_alone():
    rows = table(["x"]).append_column("audio", pa.array([b"bytes"]))
    assert documents(rows) is None
    assert input_keys(rows) is None
    assert check_near_duplicates({"train": rows}) == []
    numbers = pa.table({"row_id": ["a:1", "a:2"], "age": [3, 3]})
    assert documents(numbers) is None
    assert input_keys(numbers).to_pylist() == ["3", "3"]
    assert check_near_duplicates({"train": table([])}) == []
