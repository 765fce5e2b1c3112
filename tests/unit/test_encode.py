"""Encoding: once per data, tokenizer and length; memory-mapped afterwards."""

import shutil
from threading import Barrier, Thread

import numpy as np
import pyarrow as pa
import pytest

from pmray.data.encode import (
    encode_splits,
    encode_table,
    encoding_key,
    finished_folder,
    open_encoded,
    processor_key,
    read_arrow,
    write_arrow,
)
from pmray.tasks.text import TextClassification
from tests.tiny import tiny_model, tiny_rows

TASK = TextClassification(labels=("negative", "positive"))


def table(rows):
    return pa.Table.from_pylist([{"row_id": f"a:{number}", **row} for number, row in enumerate(rows)])


SPLITS = {"train": table(tiny_rows(30)), "validation": table(tiny_rows(7, seed=1))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def processor(folder):
    return TASK.processor(str(folder))


def never():
    raise AssertionError("the tokenizer was opened although nothing is to be encoded")


def test_rows_are_encoded_once_and_the_second_time_needs_no_tokenizer(tmp_path, processor):
    chunks = []
    options = {"key": "k", "max_length": 8, "cache": tmp_path}
    assert encode_splits(SPLITS, TASK, lambda: processor, progress=chunks.append, **options) == 37
    assert sum(chunks) == 37
    assert encode_splits(SPLITS, TASK, never, **options) == 0


def test_the_memory_mapped_rows_are_those_encoded_directly(tmp_path, processor):
    encode_splits(SPLITS, TASK, lambda: processor, key="k", max_length=8, cache=tmp_path)
    for name, rows in SPLITS.items():
        mapped, direct = open_encoded(tmp_path, "k", name), encode_table(TASK, rows, processor, 8)
        assert mapped.table.equals(direct.table)
        assert np.array_equal(mapped.lengths, direct.lengths)
        assert (mapped.pad, len(mapped)) == (processor.pad_token_id, len(rows))
        assert mapped.rows(np.array([3, 0])).equals(direct.rows(np.array([3, 0])))


def test_many_chunks_give_the_rows_that_one_gives(tmp_path, processor, monkeypatch):
    encode_splits(SPLITS, TASK, lambda: processor, key="one", max_length=8, cache=tmp_path)
    monkeypatch.setattr(type(TASK), "encode_rows", 4)
    encode_splits(SPLITS, TASK, lambda: processor, key="many", max_length=8, cache=tmp_path)
    one, many = (open_encoded(tmp_path, key, "train") for key in ("one", "many"))
    assert one.table.equals(many.table)
    assert many.table["input_ids"].num_chunks > 2
    for positions in ([0], [len(one) - 1, 0, 5, 4, 0], list(range(len(one)))):
        assert one.rows(np.array(positions)).equals(many.rows(np.array(positions)))


def test_an_empty_split_is_encoded_too(tmp_path, processor):
    encode_splits({"test": SPLITS["train"].slice(0, 0)}, TASK, lambda: processor, key="k", max_length=8, cache=tmp_path)
    assert len(open_encoded(tmp_path, "k", "test")) == 0


def test_a_failure_leaves_no_half_encoded_shard(tmp_path):
    def broken():
        raise ValueError("no tokenizer")

    with pytest.raises(ValueError, match="no tokenizer"):
        encode_splits(SPLITS, TASK, broken, key="k", max_length=8, cache=tmp_path)
    with pytest.raises(KeyError):
        encode_splits({"train": pa.table({"row_id": ["a"]})}, TASK, never_used, key="k", max_length=8, cache=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def never_used():
    return None


def test_interrupted_encoding_goes_on_where_it_was(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(type(TASK), "encode_rows", 1)  # shards of 20 rows
    options = {"key": "k", "max_length": 8, "cache": tmp_path}
    done = []

    def stop(rows):
        done.append(rows)
        if len(done) == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_splits(SPLITS, TASK, lambda: processor, progress=stop, **options)
    whole = [path.name for path in (tmp_path / "encoded-k").iterdir()]
    assert whole == ["train-00000.arrow"]
    written = (tmp_path / "encoded-k" / whole[0]).stat().st_mtime_ns
    assert encode_splits(SPLITS, TASK, lambda: processor, **options) == 17
    assert (tmp_path / "encoded-k" / whole[0]).stat().st_mtime_ns == written
    assert open_encoded(tmp_path, "k", "train").table.equals(encode_table(TASK, SPLITS["train"], processor, 8).table)


def test_two_writers_of_one_folder_leave_one_whole_folder(tmp_path):
    ready = Barrier(2)

    def write(name):
        with finished_folder(tmp_path / "folder") as partial:
            (partial / "name").write_text(name)
            ready.wait()

    writers = [Thread(target=write, args=(name,)) for name in ("first", "second")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "name").read_text() in ("first", "second")


def test_a_folder_left_half_by_an_old_crash_is_replaced(tmp_path, processor):
    half = tmp_path / "encoded-k"
    half.mkdir()
    (half / ".train-00000.arrow-1").write_bytes(b"half")
    assert encode_splits(SPLITS, TASK, lambda: processor, key="k", max_length=8, cache=tmp_path) == 37
    assert len(open_encoded(tmp_path, "k", "train")) == 30


def test_candidates_with_the_same_tokenizer_files_share_a_key(tmp_path, folder):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "config.json").write_text("{}")
    (other / "model.safetensors").write_bytes(b"other weights")
    assert processor_key(other) == processor_key(folder)


def test_one_changed_letter_of_a_tokenizer_is_another_key(tmp_path, folder):
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"good"', '"goos"'))
    assert processor_key(other) != processor_key(folder)


def test_a_key_names_all_that_decides_the_encoding_and_nothing_more():
    pairs = TextClassification(labels=TASK.labels, pair=True)
    others = [("d1", TASK, "p", 8), ("d0", pairs, "p", 8), ("d0", TASK, "q", 8), ("d0", TASK, "p", 16)]
    assert len({encoding_key(*one) for one in [("d0", TASK, "p", 8), *others]}) == 5
    relabelled = TextClassification(labels=("no", "yes"), positive="no", thresholds=(0.3, 0.3))
    assert encoding_key("d0", relabelled, "p", 8) == encoding_key("d0", TASK, "p", 8)


def test_an_arrow_file_holds_one_chunk_a_column(tmp_path):
    chunked = pa.chunked_array([[1, 2], [3]])
    write_arrow(pa.table({"a": chunked}), tmp_path / "a.arrow")
    found = read_arrow(tmp_path / "a.arrow")
    assert found["a"].to_pylist() == [1, 2, 3]
    assert found["a"].num_chunks == 1
