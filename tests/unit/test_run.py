"""A run folder: one writer at a time, and nothing is lost."""

import json
import os
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from pmray.errors import LedgerError, UnknownName
from pmray.report.plan import leaderboard_table, run_told
from pmray.run import Run, environment, find_run, leaderboard, list_runs, open_run, read_run
from pmray.selection.ledger import Outcome
from pmray.spec_file import load_spec, spec_from


@pytest.fixture
def spec(tmp_path):
    values = {"name": "job", "task": "text-classification", "data": {"train": "x.csv"}, "candidates": ["a/bert"]}
    return spec_from({**values, "storage": str(tmp_path / "runs")})


def outcome(key="a", **values):
    return Outcome(**{"key": key, "stage": "sweep", "candidate": "bert", "status": "done", "score": 0.5, **values})


def test_a_run_folder_says_what_ran_and_where(spec):
    with open_run(spec):
        pass
    assert load_spec(spec.folder / "spec.yaml") == spec
    found = json.loads((spec.folder / "environment.json").read_text())
    assert found["versions"]["torch"] == environment()["versions"]["torch"] != "not installed"


def test_a_second_writer_is_refused_and_told_who_is_first(spec):
    with open_run(spec) as run:
        run.ledger.append(outcome())
        with pytest.raises(LedgerError, match=rf"pid {os.getpid()} on .* is working on {spec.folder}"), open_run(spec):
            pass
        with pytest.raises(LedgerError, match="another process"), open_run(spec, fresh=True):
            pass
    assert len(Run(spec.folder).ledger.outcomes) == 1


def test_a_writer_that_was_killed_locks_nobody_out(spec):
    code = (
        "import os, signal, sys; from pmray.run import open_run; from pmray.spec_file import load_spec\n"
        "with open_run(load_spec(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    with open_run(spec):
        pass
    done = subprocess.run([sys.executable, "-c", code, spec.folder / "spec.yaml"], check=False, capture_output=True)
    assert done.returncode == -9
    with open_run(spec):
        pass


def test_a_folder_that_exists_is_continued(spec):
    with open_run(spec) as run:
        run.ledger.append(outcome())
    with open_run(spec) as run:
        assert [one.key for one in run.ledger.outcomes] == ["a"]


def test_fresh_moves_the_old_run_aside_and_loses_nothing(spec):
    with open_run(spec) as run:
        run.ledger.append(outcome())
    for _ in range(2):
        with open_run(spec, fresh=True) as run:
            assert run.ledger.outcomes == []
            run.ledger.append(outcome("b"))
    aside = sorted(spec.folder.parent.glob("job.before-*"))
    assert [Run(folder).ledger.outcomes[0].key for folder in aside] == ["a", "b"]


def test_scratch_files_are_gone_even_after_an_error(spec):
    with pytest.raises(ZeroDivisionError), open_run(spec) as run:
        run.scratch.mkdir()
        (run.scratch / "trial").touch()
        raise ZeroDivisionError
    assert not run.scratch.exists()


def test_a_verdict_is_written_whole(spec):
    with open_run(spec) as run:
        run.write_verdict({"winner": "bert"})
        with pytest.raises(TypeError):
            run.write_verdict({"winner": object()})
    assert json.loads((spec.folder / "verdict.json").read_text()) == {"winner": "bert"}


def test_runs_are_listed_with_what_came_of_them(spec, tmp_path):
    with open_run(spec) as run:
        run.ledger.append(outcome())
        run.ledger.append(outcome("b", status="stopped"))
        run.ledger.append(outcome("c", status="failed", score=None))
        run.ledger.append(outcome("d", stage="final"))
        line = {"name": "bert", "score": {"value": 0.9}}
        run.write_verdict({"winner": "bert", "metric": "f1_macro", "lines": [line]})
    other = spec_from({**spec.model_dump(mode="json"), "name": "other"})
    with open_run(other) as run:
        run.ledger.append(outcome())
    os.utime(other.folder / "ledger.jsonl", (2e9, 2e9))

    newest, oldest = list_runs(tmp_path / "runs")
    assert (newest["name"], newest["state"], newest["winner"]) == ("other", "unfinished", None)
    assert (oldest["name"], oldest["state"], oldest["winner"], oldest["score"]) == ("job", "decided", "bert", 0.9)
    assert (oldest["metric"], oldest["trials"], oldest["failed"]) == ("f1_macro", 2, 1)


def verdict_of(*models, metric="f1_macro"):
    lines = [
        {
            "name": name,
            "baseline": name == "tfidf",
            "score": {"value": value, "low": value - 0.1, "high": value + 0.1},
            "latency_ms": 2.0,
            "parameters": 10,
            "training_seconds": 3.0,
        }
        for name, value in models
    ]
    return {"winner": models[0][0], "metric": metric, "rows": 80, "lines": lines, "words": ["it wins"]}


def test_a_run_is_told_with_the_latest_word_of_each_trial(spec, tmp_path):
    with open_run(spec) as run:
        run.ledger.append(outcome(status="failed", score=None, error="it broke\nbadly", may_pass=True))
        run.ledger.append(outcome(recipe={"lr": 0.1}))
        run.ledger.append(outcome("t", stage="test", facts={"data": "abcdefgh"}))
        unfinished = read_run(spec.folder)
        run.write_verdict(verdict_of(("bert", 0.9), ("tfidf", 0.8)))
    assert (unfinished["state"], unfinished["lines"]) == ("unfinished", [])
    found = read_run(find_run("job", tmp_path / "runs"))
    assert [(one["status"], one["recipe"]) for one in found["trials"]] == [("done", {"lr": 0.1})]
    assert [(line["model"], line["winner"], line["data"]) for line in found["lines"]] == [
        ("bert", True, "abcdefgh"),
        ("tfidf", False, "abcdefgh"),
    ]
    console = Console(file=StringIO(), width=160)
    console.print(run_told(found))
    assert all(text in console.file.getvalue() for text in ("it wins", "0.900 [0.800, 1.000]", "default recipe"))
    (spec.folder / "verdict.json").write_text("{")
    with pytest.raises(LedgerError, match="is damaged"):
        read_run(spec.folder)


def test_a_leaderboard_puts_runs_together_and_says_what_cannot_be_compared(spec, tmp_path):
    for name, data, models in (("one", "a", [("bert", 0.7)]), ("two", "b", [("gpt", 0.8), ("tfidf", 0.6)])):
        with open_run(spec_from({**spec.model_dump(mode="json"), "name": name})) as run:
            run.ledger.append(outcome("t", stage="test", facts={"data": data}))
            run.write_verdict(verdict_of(*models))
    lines = leaderboard([find_run(name, tmp_path / "runs") for name in ("one", "two")])
    assert [(line["run"], line["model"]) for line in lines] == [("two", "gpt"), ("one", "bert"), ("two", "tfidf")]
    console = Console(file=StringIO(), width=160)
    console.print(leaderboard_table(lines))
    assert "such scores cannot be compared" in console.file.getvalue()
    with pytest.raises(UnknownName, match="Did you mean 'two'"):
        find_run("twoo", tmp_path / "runs")


def test_no_storage_is_no_runs(tmp_path):
    assert list_runs(tmp_path / "nowhere") == []


def test_a_damaged_run_does_not_hide_the_others(spec, tmp_path):
    with open_run(spec) as run:
        run.ledger.append(outcome())
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / "ledger.jsonl").write_text("not json\n{}\n")
    assert "job" in [line["name"] for line in list_runs(tmp_path / "runs")]


@pytest.mark.parametrize("name", ["cache"])
def test_a_run_cannot_lie_where_pmray_keeps_its_cache(tmp_path, name):
    values = {"name": name, "task": "text-classification", "data": {"train": "x.csv"}, "candidates": ["a/bert"]}
    with pytest.raises(ValueError, match="name"):
        spec_from(values)


def test_findings_of_the_data_are_kept_for_reports(spec):
    finding = {"severity": "warning", "check": "empty text", "message": "…", "count": 1, "examples": ("a:1",)}
    with open_run(spec) as run:
        run.write_findings([finding])
        run.write_findings([finding, finding])
    assert json.loads((spec.folder / "findings.json").read_text()) == [{**finding, "examples": ["a:1"]}] * 2
    assert not (spec.folder / ".findings.json").exists()
