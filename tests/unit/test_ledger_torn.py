"""A writer that is killed leaves half a line: wherever it was cut, the run goes on."""

import pytest

from pmray.errors import LedgerError
from pmray.selection.ledger import Ledger, Outcome, read_ledger


def outcome(key):
    return Outcome(key=key, stage="sweep", candidate="bert", status="done", recipe={"lr": 1e-4}, facts={"host": "x"})


@pytest.fixture
def path(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(outcome("a"))
    ledger.append(outcome("b"))
    return ledger.path


def keys(path):
    return [one.key for one in read_ledger(path)]


def torn(whole):
    """The last line cut after every byte of it."""
    start = whole.rindex(b"\n", 0, -1) + 1
    return [whole[:end] for end in range(start + 1, len(whole) - 1)]


def test_a_last_line_without_its_newline_counts(path):
    path.write_bytes(path.read_bytes()[:-1])
    assert keys(path) == ["a", "b"]


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(path):
    for content in torn(path.read_bytes()):
        path.write_bytes(content)
        assert keys(path) == ["a"], content[-20:]


def test_what_is_appended_after_a_torn_line_starts_fresh(path):
    for content in torn(path.read_bytes()):
        path.write_bytes(content)
        again = Ledger(path)
        again.append(outcome("c"))
        assert [one.key for one in again.outcomes] == keys(path) == ["a", "c"], content[-20:]


@pytest.mark.parametrize("line", [b"not json", b'{"key":"x","v":1}', b"[]", b"3", b"null", b"\xff\xfe"])
def test_a_bad_earlier_line_is_an_error_that_names_it(path, line):
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, line, second, b""]))
    with pytest.raises(LedgerError, match=r"ledger\.jsonl:2 is not"):
        read_ledger(path)
