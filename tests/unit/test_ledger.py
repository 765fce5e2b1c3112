import json

import pytest

from pmray.errors import LedgerError
from pmray.selection.ledger import Ledger, Outcome, latest, outcome_key, read_ledger


def outcome(key: str, **values) -> Outcome:
    return Outcome(**{"key": key, "stage": "sweep", "candidate": "bert", "status": "done", "score": 0.5, **values})


def test_what_was_appended_is_read_back(tmp_path):
    ledger = Ledger(tmp_path / "run" / "ledger.jsonl")
    ledger.append(outcome("a", curve=((10, 0.4), (20, 0.5)), recipe={"lr": 1e-4}, facts={"host": "x"}))
    ledger.append(outcome("b", status="failed", score=None, error="line one\nline two"))
    assert read_ledger(ledger.path) == ledger.outcomes


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_last_line_is_dropped_and_the_next_one_starts_fresh(tmp_path, cut):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(outcome("a"))
    ledger.append(outcome("b"))
    ledger.path.write_bytes(ledger.path.read_bytes()[:-cut])
    again = Ledger(ledger.path)
    assert [one.key for one in again.outcomes][:1] == ["a"]
    again.append(outcome("c"))
    assert {"a", "c"} <= {one.key for one in read_ledger(ledger.path)}


def test_an_earlier_broken_line_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path).append(outcome("a"))
    path.write_text("not json\n" + path.read_text())
    with pytest.raises(LedgerError, match=r"ledger\.jsonl:1 is not JSON"):
        read_ledger(path)


def test_a_record_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps({"key": "a", "v": 2}) + "\n")
    with pytest.raises(LedgerError, match="later pmray"):
        read_ledger(path)


def test_what_may_pass_is_tried_again_and_the_latest_counts(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(outcome("a", status="failed", score=None, may_pass=True))
    assert ledger.settled("sweep") == {}
    ledger.append(outcome("a"))
    assert ledger.settled("sweep")["a"].status == "done"
    assert latest(ledger.outcomes)["a"].status == "done"
    assert ledger.settled("final") == {}


def test_a_key_names_what_was_asked_and_nothing_else():
    asked = ("sweep", "data", {"revision": "r", "layers": None}, {"lr": 1e-4, "epochs": 3.0}, 0, 900)
    same = ("sweep", "data", {"layers": None, "revision": "r"}, {"epochs": 3.0, "lr": 1e-4}, 0, 900)
    assert outcome_key(*asked) == outcome_key(*same)
    for position, other in enumerate(["final", "other", {"revision": "s"}, {"lr": 2e-4}, 1, 300]):
        changed = [*asked[:position], other, *asked[position + 1 :]]
        assert outcome_key(*changed) != outcome_key(*asked)
