"""A data check as a whole: of files, folders and specs, and as a part of every run."""

import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import pmray
from pmray import checking
from pmray.cli import app
from pmray.errors import DataError, UnknownName
from pmray.spec_file import spec_from
from pmray.stages.preparation import prepare
from tests.tiny import tiny_rows, tiny_spec, write_rows

LEAKS = {"trec6": 10, "cola": 12, "imdb": 3, "sst2": 2, "go_emotions": 2}


@pytest.fixture
def folder(tmp_path):
    for split, count in {"train": 80, "dev": 20, "test": 30}.items():
        write_rows(tmp_path / f"{split}.jsonl", tiny_rows(count, seed=count))
    return tmp_path


def checks(checked):
    return {one.check: one for one in checked.findings}


def test_a_folder_is_read_by_the_names_of_its_files(folder):
    write_rows(folder / "items.jsonl", [{"item": 1}])
    checked = pmray.check(str(folder))
    assert dict(checked.rows) == {"train": 80, "validation": 20, "test": 30}
    assert (checked.task, dict(checked.roles)) == ("text-classification", {"text": "text", "label": "label"})
    assert "items.jsonl" in checks(checked)["file left out"].message
    assert [(column.name, column.missing, column.distinct) for column in checked.columns] == [
        ("text", 0, 80),
        ("label", 0, 2),
    ]
    assert checked.errors == 0
    assert json.loads(json.dumps(checked.to_json()))["rows"]["train"] == 80


def test_one_file_is_not_split(folder):
    assert dict(pmray.check(str(folder / "train.jsonl")).rows) == {"train": 80}
    assert dict(pmray.check(str(folder / "d*.jsonl")).rows) == {"train": 20}


def test_columns_are_found_by_their_usual_names(tmp_path):
    rows = [
        {"Review": row["text"], "sentiment": row["label"], "day": "monday", "nr": n}
        for n, row in enumerate(tiny_rows(30))
    ]
    checked = pmray.check(str(write_rows(tmp_path / "a.jsonl", rows)))
    assert dict(checked.roles) == {"text": "Review", "label": "sentiment"}
    assert "'day'" in checks(checked)["constant column"].message
    assert "'nr'" in checks(checked)["id-like column"].message
    mapped = pmray.check(str(tmp_path / "a.jsonl"), columns={"group": "day"})
    assert dict(mapped.roles) == {"text": "Review", "label": "sentiment", "group": "day"}
    assert "constant column" not in checks(mapped)
    asked = pmray.check(str(tmp_path / "a.jsonl"), task="text-classification", columns={"label": "day"})
    assert asked.roles["label"] == "day"
    assert checks(asked)["single label"].severity == "error"
    with pytest.raises(UnknownName, match=r"Unknown column role 'txt'\. Did you mean 'text'"):
        pmray.check(str(tmp_path / "a.jsonl"), columns={"txt": "Review"})


def test_rows_that_no_task_reads_get_the_checks_of_any_rows(tmp_path):
    table = pa.table({"user": [1, 2, 2], "item": [5, 6, 6], "rating": [1.0, None, 2.0]})
    pq.write_table(table, tmp_path / "train.parquet")
    checked = pmray.check(str(tmp_path))
    assert checked.task is None
    assert checks(checked)["empty rating"].examples == ("train.parquet:2",)
    words = pa.table({"tokens": [["a", "word"]] * 12, "tags": [[0, 1]] * 12})
    pq.write_table(words, tmp_path / "train.parquet")
    assert checks(pmray.check(str(tmp_path)))["repeated row"].count == 11


def test_encoded_bytes_are_refused_in_a_sentence(tmp_path):
    pq.write_table(pa.table({"sound": [b"fLaC"] * 3, "text": ["a"] * 3, "label": [0] * 3}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'sound' holds encoded bytes") as caught:
        pmray.check(str(tmp_path / "a.parquet"))
    assert len(caught.value.problems) == 1


def test_groups_in_two_splits(folder):
    for split in ("train", "test"):
        rows = [
            {**row, "who": f"speaker {n % 7}" if split == "test" else f"speaker {n % 5}"}
            for n, row in enumerate(tiny_rows(30, seed=len(split)))
        ]
        write_rows(folder / f"{split}.jsonl", rows)
    (folder / "dev.jsonl").unlink()
    assert "group in two splits" not in checks(pmray.check(str(folder)))
    found = checks(pmray.check(str(folder), columns={"group": "who"}))["group in two splits"]
    assert (found.severity, found.count) == ("warning", 22)


def test_labels_of_the_splits_are_compared(tmp_path):
    def rows(labels):
        return [{"text": f"text number {at} of {len(labels)}", "label": label} for at, label in enumerate(labels)]

    write_rows(tmp_path / "train.jsonl", rows(["a"] * 300 + ["b"] * 300 + ["c"] * 10))
    write_rows(tmp_path / "test.jsonl", rows(["a"] * 200 + ["b"] * 20 + ["d"]))
    found = checks(pmray.check(str(tmp_path)))
    assert (found["unknown label"].severity, found["unknown label"].examples) == ("error", ("test.jsonl:221",))
    assert "'c'" in found["label not in test"].message
    assert "'a': 90.9% against 49.2%" in found["label shares differ"].message
    assert (found["class imbalance"].count, found["class imbalance"].severity) == (10, "info")


def test_a_spec_is_checked_with_the_tokenizers_of_its_candidates(tmp_path):
    spec = spec_from(tiny_spec(tmp_path))
    short = spec.candidates[0].model_copy(update={"recipe": {"max_length": 8}})
    missing = short.model_copy(update={"model": str(tmp_path / "nowhere"), "name": "missing"})
    checked = pmray.check(spec.model_copy(update={"candidates": [short, missing]}))
    lengths = checks(checked)["length"]
    assert lengths.severity == "warning"
    assert 0 < lengths.count < 160
    assert f"max_length 8 cuts {lengths.count / 160:.1%} of the rows" in lengths.message
    assert "nowhere" in checks(checked)["candidate unavailable"].message
    assert not (tmp_path / "runs").exists()


def test_every_run_looks_once(tmp_path, monkeypatch):
    spec = tiny_spec(tmp_path)
    twice = tiny_rows(160)
    twice[7] = {**twice[7], "text": twice[3]["text"].upper() + " !"}
    write_rows(tmp_path / "train.parquet", twice)
    quiet = Console(quiet=True)
    first = prepare(spec_from(spec), quiet)
    near = [one for one in first.findings if one.check == "near-duplicate row"]
    assert [(one.count, one.examples) for one in near] == [(1, ("train.parquet:8",))]
    assert "length" in {one.check for one in first.findings}
    monkeypatch.setattr(checking, "dear_findings", lambda *_, **__: pytest.fail("looked again"))
    assert prepare(spec_from(spec), quiet).findings == first.findings


def test_too_many_rows_are_told_and_looked_at_on_request(folder, monkeypatch):
    monkeypatch.setattr(checking, "MANY_ROWS", 100)
    found = checks(pmray.check(str(folder)))
    assert "130 rows" in found[checking.NOTHING].message and "--full" in found[checking.NOTHING].message
    assert checking.NOTHING not in checks(pmray.check(str(folder), full=True))


def test_labels_of_test_are_not_looked_at(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(checking, "check_near_duplicates", lambda splits: seen.append(splits) or [])
    pmray.check(str(folder))
    assert all("label" not in table.column_names for table in seen[0].values())


def test_the_command_prints_a_table_or_json_and_fails_on_errors(folder, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            app(["check", *map(str, arguments)])
        return ended.value.code, *capsys.readouterr()

    code, out, _ = run(folder)
    assert code == 0
    assert "80 train, 20 validation, 30 test rows" in " ".join(out.split())
    assert "0 errors" in out
    (folder / "test.jsonl").write_text('{"text": "x", "label": "other"}\n')
    code, out, _ = run(folder, "--json")
    assert code == 1
    assert {one["check"] for one in json.loads(out)["findings"] if one["severity"] == "error"} == {
        "unknown label",
        "empty split",
    }
    assert run(folder / "spec.yaml", "--task", "text-classification")[0] == 2
    assert run(folder, "--set", "name=x")[0] == 2


def test_kept_findings_that_are_torn_are_made_again(tmp_path):
    texts = [row["text"] for row in tiny_rows(30)]
    ids = [f"a:{row}" for row in range(30)]
    train = pa.table({"row_id": ids, "text": [*texts[:-1], texts[0].upper()], "label": ["a", "b"] * 15})
    task = pmray.stages.preparation.plugins.task_class("text-classification")(labels=("a", "b"))
    first = checking.findings_once({"train": train}, task, "key", tmp_path)
    (path,) = tmp_path.glob("checks-*.json")
    assert json.loads(path.read_text()) == [{**asdict(one), "examples": list(one.examples)} for one in first]
    path.write_text(path.read_text()[:20])
    assert checking.findings_once({"train": train}, task, "key", tmp_path) == first


@pytest.mark.parametrize("name", LEAKS)
def test_known_leaks_of_real_data_are_found(shared, name):
    found = checks(pmray.check(str(shared / "data" / "text_classification" / name)))["test rows in train"]
    assert (found.severity, found.count) == ("warning", LEAKS[name])
