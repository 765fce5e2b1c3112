"""Who goes on at a rung, and who is re-fitted."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmray.selection.halving import (
    Continue,
    Reached,
    Standing,
    Stop,
    compared_at,
    finalists,
    halve,
    leading,
    most_waiting,
    out_of_reach,
    promoted,
)
from pmray.selection.ledger import Outcome


def field(*scores, candidates=None):
    names = candidates or ["bert"] * len(scores)
    return [Standing(str(number), name, score) for number, (name, score) in enumerate(zip(names, scores, strict=True))]


def going_on(standings, **options):
    options = {"reduction": 3, "first_rung": False, **options}
    return [one.trial for one in standings if isinstance(halve(one.trial, standings, **options), Continue)]


@pytest.mark.parametrize(("count", "kept"), [(3, 1), (4, 2), (6, 2), (7, 3), (9, 3), (27, 9)])
def test_one_in_three_goes_on(count, kept):
    scores = [number / 100 for number in range(count)]
    assert going_on(field(*scores)) == [str(number) for number in range(count - kept, count)]


def test_nobody_is_stopped_before_there_are_enough_to_compare():
    assert going_on(field(0.1, 0.9)) == ["0", "1"]
    assert going_on(field(0.1)) == ["0"]


def test_equals_go_on_together():
    assert going_on(field(0.5, 0.5, 0.5)) == ["0", "1", "2"]
    assert going_on(field(0.6, 0.5, 0.5)) == ["0"]


def test_the_best_of_each_candidate_goes_on_at_the_first_rung_only():
    standings = field(0.9, 0.8, 0.7, 0.2, 0.1, 0.95, candidates=["bert", "bert", "bert", "gpt", "gpt", "bert"])
    assert going_on(standings, first_rung=True) == ["0", "3", "5"]
    assert going_on(standings, first_rung=False) == ["0", "5"]


def test_a_stop_says_why():
    assert halve("2", field(0.9, 0.8, 0.7), reduction=3, first_rung=False) == Stop(
        "2", "place 3 of 3; the best 1 go on"
    )


@pytest.mark.parametrize("reduction", [1.5, 2, 4])
def test_other_reductions_keep_other_shares(reduction):
    kept = going_on(field(*(number / 100 for number in range(12))), reduction=reduction)
    assert len(kept) == 12 / reduction


def outcome(candidate, score, status="done", examples=900, key="k"):
    return Outcome(key=key, stage="sweep", candidate=candidate, status=status, score=score, examples=examples)


def test_finalists_are_the_best_recipes_of_the_best_candidates():
    found = finalists(
        [outcome("a", 0.7), outcome("b", 0.9), outcome("a", 0.8, key="best"), outcome("c", 0.6), outcome("b", 0.1)], 2
    )
    assert [(one.candidate, one.score) for one in found] == [("b", 0.9), ("a", 0.8)]


def test_a_trial_that_went_to_its_end_comes_before_one_that_was_stopped():
    stopped_late, stopped_early = outcome("b", 0.9, "stopped", 300), outcome("c", 0.95, "stopped", 100)
    found = finalists([stopped_early, stopped_late, outcome("a", 0.5)], 3)
    assert [one.candidate for one in found] == ["a", "b", "c"]


def test_the_order_in_which_trials_ended_decides_nothing():
    equals = [outcome("a", 0.9, key="2"), outcome("b", 0.9, key="1"), outcome("a", 0.9, key="3")]
    for order in (equals, equals[::-1]):
        assert [(one.candidate, one.key) for one in finalists(order, 2)] == [("b", "1"), ("a", "2")]


def test_trials_without_a_score_or_that_broke_are_passed_over():
    broke = [outcome("a", 0.99, "failed"), outcome("b", None, "unavailable"), outcome("c", 0.99, "infeasible")]
    assert [one.candidate for one in finalists([*broke, outcome("d", 0.1)], 3)] == ["d"]


def test_without_scores_there_are_no_finalists():
    assert finalists([], 3) == []


def reached(trial, candidate, *scores, waits=True):
    return Reached(trial, candidate, dict(zip((10, 30), scores, strict=False)), waits)


def test_the_best_of_all_that_have_arrived_go_on():
    field = [reached(str(n), "a", n / 10) for n in range(6)]
    assert promoted(field, [10, 30], reduction=3) == ["4", "5"]
    assert promoted(field, [10, 30], reduction=2) == ["3", "4", "5"]
    # Two have gone on: now it is the second rung's turn, where nobody is protected but the best of a leader.
    later = [*field[:4], reached("4", "a", 0.4, 0.9), reached("5", "b", 0.5, 0.8)]
    assert promoted(later, [10, 30], reduction=3) == ["4"]
    assert promoted(later, [10, 30], reduction=3, leaders=["a", "b"]) == ["4", "5"]
    assert promoted(later, [10, 30], reduction=3, leaders=["a", "b"], running=["5"]) == ["4"]
    assert promoted([*later[:4], reached("4", "a", 0.4, 0.9, waits=False), later[5]], [10, 30], reduction=3) == []


def test_the_best_of_each_candidate_goes_on_from_the_first_rung_and_equals_together():
    field = [reached("1", "a", 0.9), reached("2", "a", 0.8), reached("3", "b", 0.2), reached("4", "b", 0.1)]
    assert promoted(field, [10, 30], reduction=4) == ["1", "3"]
    assert promoted([reached(str(n), "a", 0.3) for n in range(4)], [10], reduction=4) == ["0", "1", "2", "3"]
    assert promoted([], [], reduction=3) == []


def test_who_is_among_the_best_whatever_comes_goes_on_at_once():
    field = [reached("1", "a", 0.9), reached("2", "a", 0.8), reached("3", "b", 0.7)]
    # Of four two go on: the fourth may push the second out, but not the first.
    assert promoted(field, [10, 30], reduction=2, new=1) == ["1"]
    assert promoted(field, [10, 30], reduction=3, new=1) == ["1"]
    assert promoted(field, [10, 30], reduction=3, new=2) == []
    # The best of b may still be the one that comes; then it need not be protected.
    assert promoted(field, [10, 30], reduction=3) == ["1", "3"]
    # Who runs is not named again, and counts for the next rung as long as it has not come there.
    on = [reached("1", "a", 0.9, 0.95), reached("2", "a", 0.8, 0.6), reached("3", "b", 0.7)]
    assert promoted(on, [10, 30], reduction=2, running=["3"]) == ["1"]
    assert promoted(on, [10, 30], reduction=1.5, running=["3"]) == ["1"]
    assert promoted(on, [10, 30], reduction=2, running=["1", "3"]) == []


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5)), min_size=1, max_size=12), st.data())
def test_who_goes_on_early_is_who_would_have_gone_on_in_the_end(scores, data):
    field = [reached(str(n), candidate, score / 10) for n, (candidate, score) in enumerate(scores)]
    reduction = data.draw(st.floats(1.1, 6.0))
    leaders = data.draw(st.sets(st.sampled_from("ab")))
    whole = promoted(field, [10, 30], reduction=reduction, leaders=leaders)
    for arrived in range(len(field) + 1):
        early = promoted(field[:arrived], [10, 30], reduction=reduction, leaders=leaders, new=len(field) - arrived)
        assert set(early) <= set(whole)
        # Also where some of those that were to come have failed.
        for came in range(arrived, len(field) + 1):
            assert set(early) <= set(promoted(field[:came], [10, 30], reduction=reduction, leaders=leaders))


def test_what_cannot_go_on_whoever_arrives_needs_no_state():
    field = [reached(str(n), "a", n / 10) for n in range(5)]
    out = [out_of_reach(one, field, total=6, reduction=3) for one in field]
    assert out == [True, True, True, False, False], "two of six go on"
    assert not any(out_of_reach(one, field, total=30, reduction=3) for one in field)
    alone = reached("x", "b", 0.0)
    assert not out_of_reach(alone, [*field, alone], total=6, reduction=3), "the best of its candidate"
    late = reached("y", "b", 0.0, 0.1)
    others = [reached(str(n), "a", 0.5, 0.5) for n in range(2)]
    assert not out_of_reach(late, [*others, late], total=6, reduction=3), "b may lead"
    assert out_of_reach(late, [*others, late, reached("z", "b", 0.0, 0.2)], total=6, reduction=3)


@pytest.mark.parametrize("seed", range(20))
def test_who_goes_on_in_the_end_was_never_out_of_reach(seed):
    draw = random.Random(seed)
    total, field = 15, []
    gone = set()
    for number in range(total):
        field.append(reached(str(number), draw.choice("abc"), round(draw.random(), 1)))
        gone |= {one.trial for one in field if out_of_reach(one, field, total, 3)}
        assert len(field) - len(gone) <= most_waiting(total, 3, 3) + 3, "equal scores apart"
    assert not gone & set(promoted(field, [10, 30], reduction=3))


def test_no_rung_lies_within_the_warm_up():
    assert compared_at(900, 2, warmup=0.1) == [180, 300, 600]
    assert compared_at(900, 2, warmup=0.0) == [100, 300, 600]
    assert compared_at(900, 0, warmup=0.1) == []
    assert compared_at(900, 3, warmup=0.3) == [300, 600], "the last one stays where it is"


def test_no_rung_lies_within_the_first_steps_nor_beside_another():
    assert compared_at(7200, 2, warmup=0.0, batch=32) == [800, 2400, 4800]
    assert compared_at(2400, 2, warmup=0.0, batch=32) == [576, 800, 1600]
    assert compared_at(1800, 2, warmup=0.0, batch=32) == [600, 1200], "576 and 600 would ask the same"
    assert compared_at(600, 2, warmup=0.0, batch=32) == [200, 400], "not later than the last one"


def test_the_best_candidates_lead_at_the_rung_where_they_are_weighed_and_equals_share_the_place():
    def at(name, first, later=None, *, waits=True):
        return Reached(f"{name} {first}", name, {9: first} if later is None else {9: first, 27: later}, waits)

    field = [at("a", 0.1, 0.9), at("a", 0.9), at("b", 0.99, 0.5), at("c", 0.6, 0.6), at("d", 0.1, 0.6), at("e", 0.2)]
    names = [*"abcdef"]

    def lead(count, trials=field, rows=10**6):
        return leading(trials, names, count, rung=27, rows=rows)

    assert lead(1) == {"a"}
    assert lead(2) == lead(3) == {"a", "c", "d"}
    assert lead(4) == {"a", "b", "c", "d"}, "one that has not come so far does not lead"
    assert lead(5) == set(names), "too few have come so far"
    assert lead(3, []) == set(names)
    assert lead(1, [*field, at("e", 0.95, waits=False)]) == {"e"}, "a shorter fit is at its end"
    near = [at("a", 0.1, 0.80), at("b", 0.1, 0.78), at("c", 0.1, 0.75), at("d", 0.1, 0.74)]
    assert lead(2, near, rows=300) == {"a", "b", "c"}, "behind the second by less than 3.4 points, which is chance"
    assert lead(2, near, rows=30_000) == {"a", "b"}
