"""The record of a run: what was finished is never lost, and never repeated."""

import dataclasses
import json

import numpy as np
import pytest

from pmray.errors import LedgerError
from pmray.selection.ledger import Ledger, Outcome, latest, outcome_key, read_ledger

ASKED = {
    "stage": "sweep",
    "data": "d0",
    "candidate": {"revision": "abc", "layers": None},
    "recipe": {"lr": 1e-4, "epochs": 3.0},
    "seed": 0,
    "budget": 900,
}


def outcome(key, **values):
    return Outcome(**{"key": key, "stage": "sweep", "candidate": "bert", "status": "done", "score": 0.9, **values})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "ledger.jsonl"


@pytest.fixture
def ledger(path):
    ledger = Ledger(path)
    ledger.append(outcome("a"))
    ledger.append(outcome("b", score=None, status="failed", error="no\nluck"))
    return ledger


def keys(path):
    return [one.key for one in read_ledger(path)]


def test_what_was_appended_is_read_back_equal(path):
    full = outcome(
        "a", recipe={"lr": 3e-5, "dropout": None}, seed=2, curve=((10, 0.5), (30, 0.75)), facts={"host": "x"}, time="t"
    )
    Ledger(path).append(full)
    assert read_ledger(path) == [full]
    assert Ledger(path).outcomes == [full]


def test_numpy_numbers_are_written_as_numbers(path):
    Ledger(path).append(outcome("a", score=np.float32(0.5), facts={"latency_ms": np.float64(1.5), "rows": np.int64(3)}))
    (found,) = read_ledger(path)
    assert (found.score, found.facts) == (0.5, {"latency_ms": 1.5, "rows": 3})


def test_a_ledger_that_is_not_there_is_empty(path):
    assert read_ledger(path) == []


@pytest.mark.parametrize("cut", [1, 2, 20, 150])
def test_a_torn_last_line_is_dropped(ledger, path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    assert keys(path) == (["a", "b"] if cut == 1 else ["a"])


@pytest.mark.parametrize("cut", [1, 2, 20, 150])
def test_what_is_appended_after_a_torn_line_starts_fresh(ledger, path, cut):
    path.write_bytes(path.read_bytes()[:-cut])
    again = Ledger(path)
    again.append(outcome("c"))
    assert keys(path)[-1] == "c"
    assert [one.key for one in again.outcomes] == keys(path)
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("cut", [100, -3])
def test_a_line_torn_inside_a_letter_is_dropped_too(path, cut):
    ledger = Ledger(path)
    ledger.append(outcome("a"))
    whole = len(path.read_bytes())
    ledger.append(outcome("b"))
    half = '{"key":"b","error":"é'.encode()[:-1]
    path.write_bytes(path.read_bytes()[:whole] + half)
    assert keys(path) == ["a"]
    Ledger(path).append(outcome("c"))
    assert keys(path) == ["a", "c"]


@pytest.mark.parametrize("line", ["not json", '{"key": "x"', '{"key":"x","v":1}', '{"v":2}', "[]", "3", "null"])
def test_a_bad_earlier_line_is_an_error_that_names_it(ledger, path, line):
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{line}\n{second}\n")
    with pytest.raises(LedgerError, match=r"ledger\.jsonl:2 is not"):
        read_ledger(path)


def test_fields_of_a_later_minor_release_are_passed_over(path, ledger):
    record = {**json.loads(path.read_text().splitlines()[0]), "key": "later", "mood": "good"}
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    assert keys(path) == ["a", "b", "later"]


def test_a_key_depends_on_everything_that_decides_the_result():
    changes = [
        {"stage": "final"},
        {"data": "d1"},
        {"candidate": {"revision": "abd", "layers": None}},
        {"candidate": {"revision": "abc", "layers": 3}},
        {"recipe": {"lr": 2e-4, "epochs": 3.0}},
        {"seed": 1},
        {"budget": 300},
    ]
    found = {outcome_key(**{**ASKED, **change}) for change in [{}, *changes]}
    assert len(found) == len(changes) + 1


def test_a_key_depends_on_nothing_else():
    assert outcome_key(**{**ASKED, "recipe": {"epochs": 3.0, "lr": 1e-4}}) == outcome_key(**ASKED)
    # Written down: a key that changes between releases would repeat every finished trial.
    assert outcome_key(**ASKED) == "bc06a894215bb695"


def test_settled_are_the_latest_of_a_stage_that_need_no_second_try(path):
    ledger = Ledger(path)
    ledger.append(outcome("a", score=0.1))
    ledger.append(outcome("a", score=0.2))
    ledger.append(outcome("died", status="failed", may_pass=True))
    ledger.append(outcome("wrong", status="failed"))
    ledger.append(outcome("other", stage="final"))
    assert {key: one.score for key, one in ledger.settled("sweep").items()} == {"a": 0.2, "wrong": 0.9}
    assert list(ledger.settled("final")) == ["other"]
    assert latest(ledger.outcomes)["a"].score == 0.2


def test_a_failure_that_may_pass_does_not_undo_what_was_finished(path):
    ledger = Ledger(path)
    ledger.append(outcome("a", status="failed", may_pass=True))
    assert not ledger.settled("sweep")
    ledger.append(outcome("a"))
    assert ledger.settled("sweep")["a"].status == "done"


def test_every_field_of_an_outcome_survives_the_file(path):
    Ledger(path).append(outcome("a"))
    assert json.loads(path.read_text()).keys() == {field.name for field in dataclasses.fields(Outcome)}
