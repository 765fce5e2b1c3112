"""Encoding on the cluster gives what encoding here gives."""

from functools import partial

import numpy as np
import pytest

from pmray.data.encode import Shard, encode_splits, open_encoded
from pmray.data.load import cached_data
from pmray.distributed.encode import encode_shards
from pmray.spec import Candidate, Data
from pmray.tasks.images import ImageClassification
from pmray.tasks.text import TextClassification
from pmray.training.model import locate
from tests.tiny import tiny_image_model, tiny_images, tiny_model, tiny_rows, write_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize("kind", ["text", "images"])
def test_workers_write_the_shards_that_one_process_writes(tmp_path, kind, monkeypatch):
    task = TextClassification(("negative", "positive")) if kind == "text" else ImageClassification(("red", "green"))
    rows = tiny_rows(90) if kind == "text" else tiny_images(40)
    model = tiny_model(tmp_path / "tiny") if kind == "text" else tiny_image_model(tmp_path / "tiny")
    data, _ = cached_data(Data(train=str(write_rows(tmp_path / "rows.parquet", rows))), task.columns, tmp_path)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    one = locate(Candidate(model=str(model)))
    # Several shards of few rows; workers are told where each begins and ends.
    monkeypatch.setattr("pmray.data.encode.SHARD_PIECES", 1)
    monkeypatch.setattr(type(task), "encode_rows", 20)
    sent: list[Shard] = []

    def elsewhere(shards):
        sent.extend(shards)
        encode_shards(
            shards, one, task.to_json(), cache=tmp_path, data=data.key, key="there", max_length=16, workers=2,
            progress=lambda rows: None,
        )  # fmt: skip

    encode = partial(encode_splits, splits, task, partial(task.processor, str(model)), max_length=16, cache=tmp_path)
    total = sum(map(len, splits.values()))
    assert encode(key="here") == encode(key="there", elsewhere=elsewhere) == total
    assert len(sent) > 3
    for split in splits:
        here, there = (open_encoded(tmp_path, key, split) for key in ("here", "there"))
        assert here.table.equals(there.table)
        assert here.rows(np.array([0])).schema.metadata == there.rows(np.array([0])).schema.metadata
    # One shard is lost: that one alone is encoded again.
    folder = tmp_path / "encoded-there"
    (folder / "manifest.json").unlink()
    (folder / sent[1].file).unlink()
    lost = sent[1]
    sent.clear()
    assert encode(key="there", elsewhere=elsewhere) == len(lost)
    assert sent == [lost]
    assert encode(key="there", elsewhere=elsewhere) == 0
