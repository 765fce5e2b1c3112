"""Every task keeps the promises of the protocol, and one that does not is told what is wrong."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import numpy as np
import pyarrow as pa
import pytest

from pmray import plugins
from pmray.spec import Data
from pmray.tasks.images import ImageClassification
from pmray.tasks.text import TextClassification
from pmray.tasks.tokens import TokenClassification
from pmray.testing import check_task
from tests.tiny import tiny_image_model, tiny_images, tiny_model, tiny_rows, tiny_tagged
from tests.unit.keyword_task import KeywordSpotting


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist([{"row_id": f"rows:{number}", **row} for number, row in enumerate(rows)])


def several(rows: list[dict]) -> list[dict]:
    return [{**row, "label": [row["label"], "any"] if n % 2 else []} for n, row in enumerate(rows)]


def pairs(rows: list[dict]) -> list[dict]:
    return [{**row, "text_pair": row["text"][::-1]} for row in rows]


def spaced(rows: list[dict]) -> list[dict]:
    return [{**row, "words": [f"{word} " for word in row["words"]]} for row in rows]


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (TextClassification, tiny_rows(9)),
        (TextClassification, several(tiny_rows(9))),
        (TextClassification, pairs(tiny_rows(9))),
        (TokenClassification, spaced(tiny_tagged(9))),
        (KeywordSpotting, tiny_rows(9)),
    ],
    ids=["text", "multi-label", "pair", "tokens", "plug-in"],
)
def test_text_tasks_keep_their_promises(kind, rows, family, tmp_path):
    check_task(kind, table(rows), str(tiny_model(tmp_path / family, family)))


@pytest.mark.parametrize("family", ["vit", "mobilenet_v1", "efficientnet"])
def test_image_tasks_keep_their_promises(family, tmp_path):
    check_task(ImageClassification, table(tiny_images(9)), str(tiny_image_model(tmp_path / family, family)))


@dataclass(frozen=True)
class Careless(TextClassification):
    """Breaks promises."""

    def paired_outcome(self, said, targets):
        return np.stack([targets, np.zeros_like(said)], axis=1)

    def collate(self, encoded, pad, random=None):
        batch = super().collate(encoded, pad)
        return {**batch, "attention_mask": batch["attention_mask"] * 0 + 1}

    def scores_of(self, answer):
        raise KeyError("probabilities")


def test_all_broken_promises_are_told_at_once(tmp_path):
    with pytest.raises(AssertionError) as caught:
        check_task(Careless, table(tiny_rows(9)), str(tiny_model(tmp_path / "bert")))
    message = str(caught.value)
    assert "Careless breaks" in message
    assert "right() doubts predictions that equal the targets" in message
    assert "alone gives other scores than among others; is padding masked?" in message


def test_a_class_that_is_no_task_is_told_so(tmp_path):
    class Nothing:
        pass

    with pytest.raises(AssertionError, match="the class variable `name` is missing"):
        check_task(Nothing, table(tiny_rows(4)), str(tmp_path), data=Data(train="x"))


def test_a_task_of_another_package_comes_through_the_entry_point(monkeypatch):
    entry = EntryPoint("keyword-spotting", "tests.unit.keyword_task:KeywordSpotting", "pmray.tasks")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry] if group == "pmray.tasks" else [])
    assert "keyword-spotting" in plugins.task_names()
    assert plugins.task_class("keyword-spotting") is KeywordSpotting
