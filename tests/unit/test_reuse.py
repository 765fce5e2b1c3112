"""A changed spec says what it can use again."""

from pmray.selection.ledger import Outcome
from pmray.selection.reuse import reuse_told


def trial(key, candidate="bert", **facts):
    told = {"data": "d", "score": "f1_macro", "revision": "r", **facts}
    return Outcome(key=key, stage="sweep", candidate=candidate, status="done", score=0.5, facts=told)


def told(outcomes, usable):
    return reuse_told(outcomes, usable, data="d", metric="f1_macro", revisions={"bert": "r"})


def test_where_all_can_be_used_nothing_is_said():
    assert told([], set()) is None
    assert told([trial("a"), trial("b")], {"a", "b"}) is None


def test_each_reason_is_counted():
    outcomes = [
        trial("a"),
        trial("b", data="x"),
        trial("c", data="x"),
        trial("e", "gpt"),
        trial("f", score="accuracy"),
        trial("g", revision="x"),
        trial("h"),
    ]
    assert told(outcomes, {"a"}) == (
        "1 of 7 trials in the ledger can be used; not used: 2 on other data, 1 of gpt, which is not in the spec any "
        "more, 1 by accuracy instead of f1_macro, 1 of other weights of bert, 1 of other settings of the task, or "
        "another version of pmray"
    )
