"""Storage in an object store, against a real S3-compatible server."""

import json
import threading

import pytest

from pmray import storage
from pmray.errors import DataError, LedgerError, SpecError
from pmray.run import open_run
from pmray.selection.ledger import Outcome, read_ledger
from pmray.spec import Spec
from pmray.training.state import open_state


def spec(bucket, **changes):
    values = {"name": "one", "task": "text-classification", "data": {"train": "a"}, "candidates": ["m"]}
    return Spec.model_validate({**values, "storage": f"{bucket}/runs", "registry": "sqlite:////tmp/r.db", **changes})


def on_other_machine(monkeypatch, tmp_path):
    monkeypatch.setenv(storage.COPIES, str(tmp_path / "another machine"))


def test_a_plain_folder_is_its_own_copy(tmp_path):
    assert storage.local(str(tmp_path)) == tmp_path
    assert storage.location_of(tmp_path / "run", str(tmp_path)) == str(tmp_path / "run")
    assert storage.fetched(str(tmp_path), "nothing") == tmp_path
    (tmp_path / "x").write_text("y")
    storage.push(str(tmp_path), "x")
    assert storage.exists(str(tmp_path), "x") and storage.names_in(str(tmp_path)) == ["x"]
    storage.delete(str(tmp_path), "x", "never there")
    assert not storage.exists(str(tmp_path), "x")


def test_other_urls_and_a_registry_nobody_else_sees_are_refused():
    with pytest.raises(ValueError, match="must be a folder, s3://"):
        spec("ftp://host")
    with pytest.raises(ValueError, match="an object store cannot hold the default registry"):
        spec("s3://bucket", registry=None)
    with pytest.raises(ValueError, match="names no bucket"):
        spec("s3://")
    with pytest.raises(SpecError, match="cannot be opened"):
        storage.filesystem("s3://bucket?colour=red")


def test_files_and_folders_go_there_and_come_back(bucket, monkeypatch, tmp_path):
    here = storage.local(bucket)
    (here / "run" / "deep").mkdir(parents=True)
    (here / "run" / "a").write_text("1")
    (here / "run" / "deep" / "b").write_text("2")
    storage.push(bucket, "run")
    on_other_machine(monkeypatch, tmp_path)
    assert storage.pull(bucket, "run/a") and storage.pull(f"{bucket}/run")
    assert (storage.local(bucket) / "run" / "deep" / "b").read_text() == "2"
    assert storage.names_in(f"{bucket}/run") == ["a", "deep"]
    assert not storage.pull(bucket, "nothing")
    storage.delete(bucket, "run/deep", "run/a", "nothing")
    assert storage.names_in(f"{bucket}/run") == []


def test_what_is_named_by_its_content_is_brought_once(bucket, monkeypatch, tmp_path):
    folder = storage.local(bucket) / "data-1"
    folder.mkdir(parents=True)
    (folder / "rows").write_text("rows")
    storage.publish(bucket, "data-1")
    assert not storage.exists(bucket, "data-1/manifest.json"), "half a folder is not there"
    (folder / "manifest.json").write_text("{}")
    storage.publish(bucket, "data-1")
    on_other_machine(monkeypatch, tmp_path)
    pulls = []
    pull = storage.pull
    monkeypatch.setattr(storage, "pull", lambda *asked: (pulls.append(asked), pull(*asked))[1])
    threads = [threading.Thread(target=storage.fetched, args=(bucket, "data-1")) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert (storage.local(bucket) / "data-1" / "rows").read_text() == "rows"
    assert len(pulls) == 1


def test_a_run_goes_on_from_another_machine(bucket, monkeypatch, tmp_path):
    with open_run(spec(bucket)) as run:
        run.ledger.append(Outcome("k1", "sweep", "m", "done", 0.5))
        (run.folder / "predictions" / "k1").mkdir(parents=True)
        (run.folder / "predictions" / "k1" / "test.parquet").write_text("p")
        run.keep("predictions/k1")
    on_other_machine(monkeypatch, tmp_path)
    with open_run(spec(bucket)) as run:
        assert [one.key for one in run.ledger.outcomes] == ["k1"]
        assert (run.folder / "predictions" / "k1" / "test.parquet").is_file()
        run.ledger.append(Outcome("k2", "sweep", "m", "done", 0.6))
        run.write_verdict({"winner": "m"})
        run.discard(run.folder / "predictions" / "k1")
    monkeypatch.setenv(storage.COPIES, str(tmp_path / "a third"))
    storage.pull(f"{bucket}/runs/one")
    third = storage.local(f"{bucket}/runs/one")
    assert [one.key for one in read_ledger(third / "ledger.jsonl")] == ["k1", "k2"]
    assert json.loads((third / "verdict.json").read_text()) == {"winner": "m"}
    assert not (third / "predictions").exists()
    with open_run(spec(bucket), fresh=True) as run:
        assert run.ledger.outcomes == []
    assert [name.partition(".before-")[0] for name in storage.names_in(f"{bucket}/runs")] == ["one", "one"]


def test_two_machines_do_not_write_the_same_run(bucket, monkeypatch, tmp_path):
    with open_run(spec(bucket)):
        on_other_machine(monkeypatch, tmp_path)
        with (
            pytest.raises(LedgerError, match=r"another process \(pid \d+ on .*\) is working on s3://"),
            open_run(spec(bucket)),
        ):
            pass
    with open_run(spec(bucket)):
        pass
    # A claim whose owner died is worth nothing after a while.
    location = f"{bucket}/runs/one"
    storage.Lease(location, "claim.json")._write()
    monkeypatch.setattr(storage, "LEASE_SECONDS", 0.0)
    with open_run(spec(bucket)):
        pass


def test_a_state_goes_on_elsewhere(bucket, monkeypatch, tmp_path):
    mine = open_state(f"{bucket}/states", "k", writes=True, seconds=0)
    assert mine.load() is None
    mine.save({"step": 7})
    mine._upload.join()
    on_other_machine(monkeypatch, tmp_path)
    theirs = open_state(f"{bucket}/states", "k", writes=True, seconds=0)
    assert theirs.load() == {"step": 7} and theirs.problem is None


def test_data_is_read_from_the_object_store_too(bucket, tmp_path):
    from pmray.data.sources import content_key, read_source
    from tests.tiny import tiny_rows, write_rows

    here = storage.local(bucket)
    (here / "data").mkdir(parents=True)
    write_rows(here / "data" / "a.parquet", tiny_rows(5))
    write_rows(here / "data" / "b.jsonl", tiny_rows(7, seed=1))
    storage.push(bucket, "data")
    parts = read_source(f"{bucket}/data", "train", drop=False)
    assert [(part.name, len(part.table)) for part in parts] == [("a.parquet", 5), ("b.jsonl", 7)]
    assert parts[0].address == f"{bucket}/data/a.parquet"
    assert [len(part.table) for part in read_source(f"{bucket}/data/*.jsonl", "train", drop=False)] == [7]
    assert content_key(f"{bucket}/data/a.parquet", "train")[0][0].endswith("a.parquet")
    with pytest.raises(DataError, match=r"a\.parqet does not exist; did you mean 'a\.parquet'"):
        read_source(f"{bucket}/data/a.parqet", "train", drop=False)


def test_runs_of_an_object_store_are_listed(bucket, monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from pmray.cli import app

    with open_run(spec(bucket)) as run:
        run.ledger.append(Outcome("k1", "sweep", "m", "done", 0.5))
    on_other_machine(monkeypatch, tmp_path)
    told = CliRunner().invoke(app, ["runs", "--storage", f"{bucket}/runs", "--json"])
    assert told.exit_code == 0, told.output
    assert [(one["name"], one["trials"]) for one in json.loads(told.stdout)] == [("one", 1)]
    told = CliRunner().invoke(app, ["show", "one", "--storage", f"{bucket}/runs", "--json"])
    assert json.loads(told.stdout)["state"] == "unfinished"
