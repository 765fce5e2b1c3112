"""A sweep ends early only where nobody can catch up any more."""

import pytest

from pmray.selection.certainty import settled_leaders
from pmray.selection.ledger import Outcome


def trial(candidate, *scores, status="done"):
    curve = tuple((100 * 3**place, score) for place, score in enumerate(scores))
    return Outcome(key="", stage="sweep", candidate=candidate, status=status, score=max(scores), curve=curve)


FIELD = [trial("a", 0.7, 0.9), trial("b", 0.3, 0.5), trial("c", 0.4, 0.52), trial("a", 0.7, 0.91)]


def said(outcomes, rows=400, finalists=2, candidates="abc", searched=3):
    return settled_leaders(outcomes, list(candidates), rows, finalists, searched)


def test_a_leader_that_nobody_can_catch_is_settled():
    assert said(FIELD).startswith("a lead by 39.0 points or more, and chance (4.0) and search (1.0)")


@pytest.mark.parametrize(
    "outcomes",
    [
        FIELD[:3],  # the leader was not searched
        FIELD[:2] + FIELD[3:],  # c was not tried
        [*FIELD, trial("b", 0.3, 0.89)],  # and b now is a leader that would be, had c not gained so much
        [*FIELD, trial("c", 0.4, 0.88), trial("b", 0.3, 0.5)],
    ],
)
def test_what_is_open_is_not_settled(outcomes):
    assert said(outcomes, finalists=1) is None


def test_few_validation_rows_settle_nothing():
    assert said(FIELD, rows=4) is None


def test_a_search_that_has_moved_scores_far_may_do_so_again():
    assert said([*FIELD, trial("c", 0.1, 0.1), trial("b", 0.5, 0.85)]) is None


def test_who_was_stopped_early_is_compared_where_it_stood():
    slow = trial("b", 0.65, status="stopped")
    assert said([FIELD[0], FIELD[3], slow, FIELD[2]]) is None, "at 100 examples it was near"
    assert said([FIELD[0], FIELD[3], trial("b", 0.3, status="stopped"), FIELD[2]])


def test_where_all_are_alike_and_go_on_nothing_is_left_to_find():
    alike = [trial("a", 0.5, 0.8), trial("b", 0.5, 0.81)]
    assert said(alike * 2, candidates="ab").startswith("all candidates are within")
    assert said(alike * 2, candidates="ab", finalists=1) is None
    assert said([*alike, alike[0]], candidates="ab") is None, "b was not searched"
    assert said([*alike, alike[0]], candidates="ab", searched=1), "nor will it be"


def test_failures_do_not_count():
    lost = Outcome(key="", stage="sweep", candidate="b", status="failed")
    assert said([FIELD[0], FIELD[3], lost, FIELD[2]]) is None
