"""From files of every kind to checked splits, and what is said when that is impossible."""

import bz2
import gzip
import json
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pmray.data.load import cached_data, data_key, load_data, load_rows, read_sealed
from pmray.errors import DataError
from pmray.spec import Data, HubDataset, HubSource

ROLES = {"text": True, "text_pair": False, "label": True, "group": False}
SHARED = Path(os.environ.get("PMRAY_SHARED", "../shared")) / "data" / "text_classification"

TEXTS = ["plain", 'with "quotes"', "two\nlines", "a, b; c", "naïve café 漢字 🎉"]
TABLE = pa.table({"text": TEXTS, "label": ["pos", "neg", "pos", "neg", "pos"]})


def write_csv(path, delimiter=","):
    arrow_csv.write_csv(TABLE, path, arrow_csv.WriteOptions(delimiter=delimiter))


def write_lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()), encoding="utf-8")


def write_stream(path):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)


WRITERS = {
    "rows.csv": write_csv,
    "rows.tsv": lambda path: write_csv(path, "\t"),
    "rows.tab": lambda path: write_csv(path, "\t"),
    "rows.jsonl": write_lines,
    "rows.ndjson": write_lines,
    "rows.json": write_lines,
    "array.json": lambda path: path.write_text(json.dumps(TABLE.to_pylist(), indent=1)),
    "rows.parquet": lambda path: pq.write_table(TABLE, path),
    "categories.parquet": lambda path: pq.write_table(
        TABLE.set_column(1, "label", TABLE["label"].dictionary_encode()), path
    ),
    "rows.feather": lambda path: feather.write_feather(TABLE, str(path)),
    "stream.arrow": write_stream,
}


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    return str(path)


def labelled(count, *, start=0, labels=("a", "b")):
    lines = [f"text {row},{labels[row % len(labels)]}" for row in range(start, start + count)]
    return "text,label\n" + "\n".join(lines) + "\n"


@pytest.fixture
def three(tmp_path):
    return {
        "train": write(tmp_path, "train.csv", labelled(40)),
        "validation": write(tmp_path, "validation.csv", labelled(10, start=100)),
        "test": write(tmp_path, "test.csv", labelled(12, start=200)),
    }


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    rows = load_rows(str(tmp_path / name), split="train")
    assert rows.select(["text", "label"]).to_pydict() == TABLE.to_pydict()
    assert rows["row_id"].to_pylist() == [f"{name}:{row}" for row in range(1, 6)]
    assert rows["row_id"].type == pa.string()


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "stream.arrow"])
def test_compressed_files(tmp_path, name, ending, pack):
    WRITERS[name](tmp_path / name)
    path = write(tmp_path, name + ending, pack((tmp_path / name).read_bytes()))
    assert load_rows(path, split="train")["text"].to_pylist() == TEXTS


def test_csv_cells_stay_as_they_are_written(tmp_path):
    path = write(tmp_path, "a.csv", '\ufefftext , zip,\nNA,007,\n"",,\r\nnull,1.0,\n')
    assert load_rows(path, split="train").drop_columns("row_id").to_pydict() == {
        "text": ["NA", "", "null"],
        "zip": ["007", None, "1.0"],
    }


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_delimiter_is_that_of_the_header(tmp_path, name, delimiter):
    path = write(tmp_path, name, f'"text"{delimiter}label\nhello{delimiter}pos\n')
    assert load_rows(path, split="train")["label"].to_pylist() == ["pos"]


def test_plain_quotes_in_tsv_are_text(tmp_path):
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"Foo said\t1\nbar\t0\n"A" is the best\t1\nend"\t0\n')
    assert load_rows(path, split="train")["text"].to_pylist() == ['"Foo said', "bar", '"A" is the best', 'end"']
    aligned = write(tmp_path, "b.tsv", 'text\tlabel\n"Foo said\t1\nbar"\t0\n')
    assert len(load_rows(aligned, split="train")) == 2


def test_numbers_and_text_in_one_json_column_become_text(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"label": 1, "n": 1}\n{"label": "1"}\n{"label": 2.0, "n": 3}\n{"label": true}\n')
    rows = load_rows(path, split="train")
    assert rows["label"].to_pylist() == ["1", "1", "2", "true"]
    assert rows["n"].to_pylist() == [1, None, 3, None]


def test_folder_glob_and_list(tmp_path, monkeypatch):
    write(tmp_path, "data/b/two.csv", "label,text\nn,second\n")
    write(tmp_path, "data/a/one.csv", "text,label\nfirst,p\n")
    for ignored in (
        "data/.hidden.csv",
        "data/a/_part.csv",
        "data/_tmp/x.csv",
        "data/README.md",
        "data/a/dataset_info.json",
    ):
        write(tmp_path, ignored, "nonsense")
    rows = load_rows(str(tmp_path / "data"), split="train")
    assert rows.to_pydict() == {
        "text": ["first", "second"],
        "label": ["p", "n"],
        "row_id": ["a/one.csv:1", "b/two.csv:1"],
    }
    assert load_rows(str(tmp_path / "data/*/*.csv"), split="train") == rows
    assert load_rows(str(tmp_path / "data/**/*.csv"), split="train") == rows
    write(tmp_path, "data/a/_asked.csv", "text,label\nasked,p\n")
    assert load_rows(str(tmp_path / "data/a/_ask*.csv"), split="train")["text"].to_pylist() == ["asked"]
    pair = [str(tmp_path / "data/b/two.csv"), str(tmp_path / "data/a")]
    assert load_rows(pair, split="train")["row_id"].to_pylist() == ["b/two.csv:1", "a/one.csv:1"]
    assert len(load_rows([*pair, pair[0]], split="train")) == 2, "a file counts once"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHERE", "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("data/a/one.csv", "./data/../data/a", "$WHERE/a/one.csv", "${WHERE}/a", "~/data/a/one.csv"):
        assert load_rows(path, split="train")["row_id"].to_pylist() == ["one.csv:1"]


def test_urls(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/pmray-test/in/one.csv", b"text,label\nhello,p\n")
    memory.pipe("/pmray-test/in/two.jsonl.gz", gzip.compress(b'{"text": "bye", "label": "n"}\n'))
    try:
        assert load_rows("memory://pmray-test/in/one.csv", split="train")["text"].to_pylist() == ["hello"]
        for source in ("memory://pmray-test/in", "memory://pmray-test/in/*"):
            rows = load_rows(source, split="train")
            assert rows["row_id"].to_pylist() == ["one.csv:1", "two.jsonl.gz:1"]
        with pytest.raises(DataError, match=r"did you mean 'one.csv'"):
            load_rows("memory://pmray-test/in/onne.csv", split="train")
    finally:
        memory.rm("/pmray-test", recursive=True)
    path = write(tmp_path, "a.csv", "text\nx\n")
    assert load_rows(f"file://{path}", split="train")["row_id"].to_pylist() == ["a.csv:1"]


def test_one_column_of_two_kinds_becomes_text(tmp_path):
    write(tmp_path, "a.jsonl", '{"text": "x", "label": 1}\n')
    write(tmp_path, "b.jsonl", '{"text": "y", "label": "two"}\n')
    assert load_rows(str(tmp_path), split="train")["label"].to_pylist() == ["1", "two"]


# Hub ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    datasets.disable_progress_bars()
    label = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label, "labels": datasets.List(label)})
    for split in ("train", "test"):
        rows = {"text": [f"{split} 1", f"{split} 2", "3"], "label": [0, 1, -1], "labels": [[0, 1], [], None]}
        (tmp_path / "reviews").mkdir(exist_ok=True)
        parquet = tmp_path / "reviews" / f"{split}-00000-of-00001.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(parquet))
    return str(tmp_path / "reviews")


def test_a_hub_data_set_gives_names_of_labels(hub):
    for source in (f"hub:{hub}", HubSource(hub=HubDataset(path=hub, split="test")), [f"hub:{hub}"]):
        assert load_rows(source, split="test").to_pydict() == {
            "text": ["test 1", "test 2", "3"],
            "label": ["neg", "pos", None],
            "labels": [["neg", "pos"], [], None],
            "row_id": [f"reviews/test:{row}" for row in (1, 2, 3)],
        }
    part = HubSource(hub=HubDataset(path=hub, split="train[:1]"))
    assert load_rows(part, split="train")["text"].to_pylist() == ["train 1"]


@pytest.mark.parametrize("change", [{"split": "validation"}, {"name": "other"}, {"path": "nobody/nothing"}])
def test_what_the_hub_does_not_have_is_named(hub, change):
    source = HubSource(hub=HubDataset(**{"path": hub, **change}))
    with pytest.raises(DataError, match=r"data.train: hub data set .* cannot be loaded .*check path, name and split"):
        load_rows(source, split="train")


def test_hub_rows_have_a_key(hub, tmp_path):
    first = Data(train=HubSource(hub=HubDataset(path=hub)))
    other = Data(train=HubSource(hub=HubDataset(path=hub, split="test")))
    assert data_key(first, ROLES) == data_key(first, ROLES) != data_key(other, ROLES)


# What cannot be read; files, rows and columns that are malformed are in test_malformed.py ----------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "empty path"),
        ([], "empty list"),
        ("nowhere/x.csv", "/nowhere/x.csv does not exist, nor does its folder"),
        ("good.cvs", r"/good.cvs does not exist; did you mean 'good.csv'"),
        ("empty/", "holds no data file; known kinds: .csv"),
        ("*.parquet", "holds no data file"),
        ("$PMRAY_UNSET/x.csv", r"the environment variable PMRAY_UNSET is not set"),
        ("${PMRAY_UNSET}/x.csv", r"the environment variable PMRAY_UNSET is not set"),
        ("nosuch://x.csv", "nosuch://x.csv cannot be read .*Protocol not known"),
        (["good.csv", "other.csv"], r"other.csv: no column 'label', which other files"),
        (["good.cvs", "nowhere/x.csv"], r"(?s)good.cvs.*nowhere"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "good.csv", "text,label\na,b\n")
    write(tmp_path, "other.csv", "text\na\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        load_rows(source, split="train")


def test_ten_bad_rows_are_shown_and_the_others_counted(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\n" + "good,1\nbad\n" * 30)
    with pytest.raises(DataError) as caught:
        load_rows(path, split="train")
    assert len(caught.value.problems) == 12
    assert "a.csv: row 20 has 1 field" in caught.value.problems[9]
    assert "and 20 more" in caught.value.problems[10]
    assert "30 rows in all cannot be read; repair them, or set `data.bad_rows: drop`" in caught.value.problems[11]


def test_bad_rows_are_dropped_on_request_and_ids_stay(tmp_path):
    train = write(tmp_path, "a.csv", labelled(40).replace("text 1,b\n", "text 1\n").replace("text 4,a", ",a"))
    test = write(tmp_path, "t.jsonl", '{"text": "x", "label": "a"}\nnot json\n{"text": "y", "label": "z"}\n')
    dataset = load_data(Data(train=train, test=test, validation=0.2, bad_rows="drop"), ROLES)
    left = {*dataset.train["row_id"].to_pylist(), *dataset.validation["row_id"].to_pylist()}
    assert left == {f"a.csv:{row}" for row in range(1, 41)} - {"a.csv:2", "a.csv:5"}
    assert dataset.test["row_id"].to_pylist() == ["t.jsonl:1"]
    found = [(finding.check, finding.severity, finding.examples) for finding in dataset.findings]
    assert found == [
        ("unreadable row", "warning", ("a.csv:2",)),
        ("unreadable row", "warning", ("t.jsonl:2",)),
        ("empty text", "warning", ("a.csv:5",)),
        ("unknown label", "warning", ("t.jsonl:3",)),
    ]


# Columns and splits ---------------------------------------------------------------------------------------------------


def test_only_the_columns_of_the_task_are_kept(tmp_path):
    rows = pa.table(
        {
            "message": [float(row) for row in range(20)],
            "topic": [row % 3 for row in range(20)],
            "group": ["x"] * 20,
            "user": [row // 2 for row in range(20)],
        }
    )
    pq.write_table(rows, tmp_path / "a.parquet")
    columns = {"text": "message", "label": "topic", "group": "user"}
    data = Data(train=str(tmp_path / "a.parquet"), columns=columns, test=0.25, validation=0.25)
    dataset = load_data(data, ROLES)
    assert dataset.train.schema == pa.schema([(name, pa.string()) for name in ("row_id", "text", "label", "group")])
    assert set(dataset.train["label"].to_pylist()) == {"0", "1", "2"}
    users = [set(part["group"].to_pylist()) for part in (dataset.train, dataset.validation, dataset.test)]
    assert sum(map(len, users)) == 10
    assert "3" in {
        *dataset.train["text"].to_pylist(),
        *dataset.test["text"].to_pylist(),
        *dataset.validation["text"].to_pylist(),
    }


@pytest.mark.parametrize(
    ("labels", "written"),
    [
        (pa.array([3, 0], pa.int8()), ["3", "0"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([3.0, 0.5]), ["3", "0.5"]),
        (pa.array([3.0, 0.5], pa.float32()), ["3", "0.5"]),
        (pa.array([" a\t", "b "]), ["a", "b"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array([[1.0, 2.0], []]), [["1", "2"], []]),
        (pa.array([[True], [False]], pa.large_list(pa.bool_())), [["true"], ["false"]]),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)), [["1", "2"], ["3", "4"]]),
        (pa.array([[" x "], ["y", "x"]]), [["x"], ["y", "x"]]),
    ],
)
def test_labels_are_written_one_way(tmp_path, labels, written):
    rows = pa.table({"text": [f"text {row}" for row in range(20)], "labels": pa.concat_arrays([labels] * 10)})
    pq.write_table(rows, tmp_path / "a.parquet")
    pq.write_table(rows.slice(0, 2).set_column(0, "text", [["other 1", "other 2"]]), tmp_path / "t.parquet")
    path = str(tmp_path / "t.parquet")
    dataset = load_data(Data(train=str(tmp_path / "a.parquet"), validation=0.2, test=path), ROLES)
    assert dataset.test["label"].to_pylist() == written
    assert dataset.test["label"].type == (pa.list_(pa.string()) if isinstance(written[0], list) else pa.string())


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ('{"sentence": "x", "label": 1}\n', {}, r"no column 'text' for text; found: 'sentence', 'label'; map it with "
         r"`data.columns: \{text: sentence\}`"),
        ('{"text": "x", "lable": 1}\n', {}, r"`data.columns: \{label: lable\}`"),
        ('{"text": "x", "label": 1}\n', {"text": "txt"}, r"no column 'txt' for text.*\{text: text\}"),
        ('{"text": "x", "label": 1, "g": [1]}\n', {"group": "g"}, r"column 'g' \(group\) holds list"),
        ('{"text": "x", "label": 1}\n', {"text_pair": "second"}, r"no column 'second' for text_pair"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_named(tmp_path, rows, columns, message):
    path = write(tmp_path, "a.jsonl", rows)
    with pytest.raises(DataError, match=message) as caught:
        load_data(Data(train=path, columns=columns), ROLES)
    assert caught.value.problems[0].startswith("data.train: a.jsonl: ")


def test_all_problems_are_listed_at_once(tmp_path):
    train = write(tmp_path, "train.csv", labelled(20).replace("text 3,b", ",b").replace("text 4,a", "text 4,"))
    test = write(tmp_path, "test.csv", "text,label\nx,c\n")
    with pytest.raises(DataError) as caught:
        load_data(Data(train=train, test=test), ROLES)
    assert [problem.split(";")[0] for problem in caught.value.problems] == [
        "data.train: 1 row has no text (train.csv:4)",
        "data.train: 1 row has no label (train.csv:5)",
        "data.test: 1 row has a label that is not one of the labels of train ('a', 'b'): 'c' (test.csv:1)",
        "data.test: no rows left",
    ]
    with pytest.raises(DataError) as caught:
        load_data(Data(train=str(tmp_path / "x.csv"), validation=str(tmp_path / "y.csv"), test=test), ROLES)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == ["data.train", "data.validation"]


def test_one_file_in_two_splits_is_a_mistake(tmp_path):
    write(tmp_path, "train.csv", labelled(20))
    test = write(tmp_path, "test.csv", labelled(5, start=50))
    with pytest.raises(DataError, match=r"data.train and data.test both read file://.*/test.csv; list the files"):
        load_data(Data(train=str(tmp_path), test=test), ROLES)


def test_labels_alone_and_in_lists_do_not_mix(tmp_path):
    train = write(tmp_path, "a.jsonl", '{"text": "x", "label": "a"}\n')
    test = write(tmp_path, "b.jsonl", '{"text": "y", "label": ["a"]}\n')
    with pytest.raises(DataError, match="write labels in different ways"):
        load_data(Data(train=train, test=test), ROLES)
    with pytest.raises(DataError, match="write a column in different ways"):
        load_data(Data(train=[train, test]), ROLES)


def test_fractions_are_of_all_rows_and_test_does_not_depend_on_validation(tmp_path):
    path = write(tmp_path, "a.csv", labelled(200))
    dataset = load_data(Data(train=path, validation=0.15, test=0.2), ROLES)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (130, 30, 40)
    assert load_data(Data(train=path, validation=0.3, test=0.2), ROLES).test == dataset.test
    assert load_data(Data(train=path, validation=0.3, test=0.2, seed=1), ROLES).test != dataset.test
    few = load_data(Data(train=path, max_train_rows=50), ROLES)
    assert len(few.train) == 50
    assert pc.value_counts(few.train["label"]).field(1).to_pylist() == [25, 25]
    assert few.test == dataset.test


# Cache ----------------------------------------------------------------------------------------------------------------


def test_the_second_load_comes_from_the_cache(three, tmp_path):
    data, cache = Data(**three), tmp_path / "cache"
    cold, was_cached = cached_data(data, ROLES, cache)
    warm, is_cached = cached_data(data, ROLES, cache)
    assert (was_cached, is_cached) == (False, True)
    assert warm == cold
    assert "label" not in cold.test.column_names
    loaded = load_data(data, ROLES)
    assert loaded.key == cold.key
    assert (loaded.train, loaded.validation, loaded.findings) == (cold.train, cold.validation, cold.findings)
    assert loaded.test.drop_columns("label") == cold.test
    assert read_sealed(cache, cold.key) == loaded.test.select(["row_id", "label"])
    assert sorted(path.name for path in cache.iterdir()) == [f"data-{cold.key}"]
    manifest = json.loads((cache / f"data-{cold.key}" / "manifest.json").read_text())
    assert manifest["rows"] == {"train": 40, "validation": 10, "test": 12}


def test_findings_survive_the_cache(tmp_path):
    path = write(tmp_path, "a.csv", labelled(50) + "text 0,b\n")
    test = write(tmp_path, "t.csv", "text,label\ntext 7,b\nother,a\n")
    cold, _ = cached_data(Data(train=path, test=test), ROLES, tmp_path / "cache")
    warm, _ = cached_data(Data(train=path, test=test), ROLES, tmp_path / "cache")
    assert warm.findings == cold.findings != ()


@pytest.mark.parametrize("change", ["bytes", "removed", "manifest"])
def test_sealed_labels_that_were_changed_are_refused(three, tmp_path, change):
    dataset, _ = cached_data(Data(**three), ROLES, tmp_path / "cache")
    sealed = tmp_path / "cache" / f"data-{dataset.key}" / "test.labels.arrow"
    if change == "bytes":
        content = bytearray(sealed.read_bytes())
        content[len(content) // 2] ^= 1
        sealed.write_bytes(content)
    else:
        (sealed if change == "removed" else sealed.parent / "manifest.json").unlink()
    with pytest.raises(DataError, match="was changed after" if change == "bytes" else "cannot be opened"):
        read_sealed(tmp_path / "cache", dataset.key)


def test_a_damaged_cache_is_named(three, tmp_path):
    dataset, _ = cached_data(Data(**three), ROLES, tmp_path / "cache")
    (tmp_path / "cache" / f"data-{dataset.key}" / "train.arrow").write_bytes(b"x")
    with pytest.raises(DataError, match=r"is damaged .*delete this folder"):
        cached_data(Data(**three), ROLES, tmp_path / "cache")


def test_the_key_follows_content_and_settings_but_not_the_folder(three, tmp_path):
    key = data_key(Data(**three), ROLES)
    moved = {split: write(tmp_path / "moved", f"{split}.csv", Path(path).read_bytes()) for split, path in three.items()}
    assert data_key(Data(**moved), ROLES) == key
    assert data_key(Data(**three, seed=1), ROLES) != key
    assert data_key(Data(**three), {"text": True}) != key
    write(tmp_path / "moved", "test.csv", labelled(12, start=201))
    assert data_key(Data(**moved), ROLES) != key


# Real data ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data pack is not here (PMRAY_SHARED)")
@pytest.mark.parametrize(("name", "leaks"), [("trec6", 10), ("sst2", 2), ("go_emotions", 2), ("imdb", 3), ("mrpc", 0)])
def test_known_leaks_of_real_data_are_found(name, leaks):
    files = {split: str(SHARED / name / f"{split}.parquet") for split in ("train", "validation", "test")}
    pair = {"text_pair": "text_pair"} if name == "mrpc" else {}
    dataset = load_data(Data(**files, columns=pair), ROLES)
    assert sum(finding.count for finding in dataset.findings if finding.check == "test rows in train") == leaks
    inputs = [name for name in ("text", "text_pair") if name in dataset.train.column_names]
    train, test = (
        set(zip(*(part[name].to_pylist() for name in inputs), strict=True)) for part in (dataset.train, dataset.test)
    )
    assert not train & test
    assert len(dataset.test) == pq.read_metadata(files["test"]).num_rows
