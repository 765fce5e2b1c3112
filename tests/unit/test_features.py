"""A frozen model is asked once, and tells features, what its own head says, and what a row takes."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from pmray.data.encode import encode_splits
from pmray.scoring.ragged import flat
from pmray.selection.features import look
from pmray.spec import Candidate
from pmray.tasks.images import ImageClassification
from pmray.tasks.text import TextClassification
from pmray.tasks.tokens import TokenClassification
from pmray.training.model import locate
from tests.tiny import tiny_image_model, tiny_images, tiny_model, tiny_rows, tiny_tagged

TASK = TextClassification(("negative", "positive"), positive="negative")


def encoded(tmp_path, folder, task, rows, **settings):
    import pyarrow as pa

    one = locate(Candidate(model=str(folder), **settings))
    table = pa.Table.from_pylist([{"row_id": str(number), **row} for number, row in enumerate(rows)])
    encode_splits({"train": table}, task, lambda: task.processor(one.folder), key="e", max_length=32, cache=tmp_path)
    return lambda positions: look(one, task.to_json(), tmp_path, "e", np.array(positions))


def with_head(folder, kind, labels, architecture=None):
    torch.manual_seed(1)
    model = kind.from_pretrained(folder, num_labels=labels)
    # Untrained weights are so small that all rows come out alike.
    torch.nn.init.normal_(next(one for one in reversed(list(model.modules())) if hasattr(one, "out_features")).weight)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_features_come_in_the_order_asked_for_and_a_body_has_no_head(tmp_path, family):
    of = encoded(tmp_path, tiny_model(tmp_path / "m", family), TASK, tiny_rows(12))
    seen = of([5, 2, 9])
    assert seen.features.shape == (3, 3, 32)
    assert seen.source is None
    assert np.allclose(seen.features[[1, 2, 0]], of([2, 9, 5]).features, atol=1e-5)
    assert seen.latency_ms > 0
    assert seen.memory_bytes >= 4 * 10_000


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_head_it_comes_with_is_asked_in_the_same_pass(tmp_path, family):
    folder = tiny_model(tmp_path / "m", family)
    plain = encoded(tmp_path, folder, TASK, tiny_rows(12))(range(12))
    asked = with_head(folder, AutoModelForSequenceClassification, 5)
    seen = encoded(tmp_path, asked, TASK, tiny_rows(12))(range(12))
    np.testing.assert_allclose(seen.features, plain.features, atol=1e-5)
    assert seen.source.shape == (12, 5)
    np.testing.assert_allclose(seen.source.sum(1), 1, atol=1e-4)
    assert encoded(tmp_path, asked, TASK, tiny_rows(12), layers=1)([0]).source is None, "a cut model has lost its head"


def test_tags_of_words_come_from_a_head_too(tmp_path):
    rows = tiny_tagged(10)
    tags = tuple(sorted({tag for row in rows for tag in row["label"]}))
    task = TokenClassification(labels=("O", *(one for one in tags if one != "O")))
    asked = with_head(tiny_model(tmp_path / "m"), AutoModelForTokenClassification, 7)
    seen = encoded(tmp_path, asked, task, rows)([3, 1])
    assert [len(row) for row in seen.features] == [len(rows[3]["words"]), len(rows[1]["words"])]
    assert flat(seen.source).shape == (len(flat(seen.features)), 7)


def test_images_too(tmp_path):
    task = ImageClassification(("blue", "green", "red"))
    seen = encoded(tmp_path, tiny_image_model(tmp_path / "m", "mobilenet_v1"), task, tiny_images(6))([0, 4])
    assert seen.source.shape == (2, 5) and len(seen.features) == 2
