"""Intervals that stay valid under peeking, and decisions from them."""

import re
from dataclasses import replace

import numpy as np
import pytest

from pmray.live.promotion import ClassDrop, Facts, Health, Rules, decide
from pmray.live.sequential import Anytime, anytime_interval, difference_sequence, jackknife, score_sequence
from pmray.scoring.intervals import Interval
from pmray.scoring.metrics import accuracy, f1
from tests.bench.live import World, replay, replay_drift, replay_promise


def test_of_a_mean_it_is_the_sequence_of_the_paper():
    """Written out by hand for accuracy: mean, standard deviation, and the formula of theorem 2.2."""
    rng = np.random.default_rng(0)
    right = rng.random(800) < 0.8
    outcomes = np.stack([np.ones(800, int), right.astype(int)], axis=1)
    found = score_sequence(accuracy, outcomes, level=0.95, tightest_at=500)
    t, alpha = 800, 0.05
    rho2 = (-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / 500
    half = right.std() * np.sqrt(2 * (t * rho2 + 1) / (t**2 * rho2) * np.log(np.sqrt(t * rho2 + 1) / alpha))
    assert found.value == pytest.approx(right.mean())
    assert (found.low, found.high) == pytest.approx((right.mean() - half, right.mean() + half), rel=2e-3)


def test_many_looks_at_once_are_the_looks_one_by_one():
    champion, challenger, likely = World(gain=0.03).lines()
    counts = np.random.default_rng(1).multinomial(400, likely, size=3)
    values, errors = jackknife(f1, [challenger, champion], counts, np.array([1.0, -1.0]))
    for look, some in enumerate(counts):
        rows = np.repeat(np.arange(len(likely)), some)
        found = difference_sequence(f1, challenger[rows], champion[rows])
        assert (found.value, found.error) == pytest.approx((values[look], errors[look]))


def test_of_many_different_lines_rows_are_left_out_together():
    """77 classes: the standard error is near the one of single rows."""
    rng = np.random.default_rng(2)
    true = rng.integers(77, size=3_000)
    a, b = (np.where(rng.random(3_000) < 0.8, true, rng.integers(77, size=3_000)) for _ in range(2))
    found = difference_sequence(accuracy, np.stack([true, a], 1), np.stack([true, b], 1))
    apart = (a == true).astype(float) - (b == true)
    assert found.value == pytest.approx(apart.mean())
    assert found.error == pytest.approx(apart.std() / np.sqrt(3_000), rel=0.15)


def test_few_rows_and_rows_that_are_all_alike_prove_nothing():
    same = np.zeros((200, 2), int)
    assert score_sequence(accuracy, same[:49]) is None
    found = difference_sequence(f1, same, same)
    assert (found.value, found.error) == (0, 0)
    assert found.low == -found.high < -0.01
    assert decide(Facts("1", "2", difference=found)).kind == "wait"
    many = np.zeros((2_000, 2), int)
    assert decide(Facts("1", "2", difference=difference_sequence(f1, many, many))).kind == "keep"


def test_whoever_looks_all_the_time_is_wrong_no_more_often_than_promised():
    """A plain 95 % interval would exclude the truth in about half of these replays."""
    champion, challenger, likely = World(gain=0.0).lines()
    looks = np.arange(100, 5_001, 50)
    counts = np.random.default_rng(3).multinomial(50, likely, size=(200, len(looks) + 1)).cumsum(axis=1)[:, 1:]
    value, error = jackknife(f1, [challenger, champion], counts.reshape(-1, len(likely)), np.array([1.0, -1.0]))
    low, high = anytime_interval(value, error, np.tile(looks, 200), 0.95, 500)
    ever = ((low > 0) | (high < 0)).reshape(200, -1).any(axis=1).mean()
    plain = (np.abs(value) > 1.96 * error).reshape(200, -1).any(axis=1).mean()
    assert ever <= 0.05
    assert plain > 0.2


def test_replays_end_rightly():
    """The bench in small: goal is 95 %."""
    rules = Rules(max_labels=4_000)
    for gain, kind in ((0.05, "promote"), (0.0, "keep"), (-0.05, "reject")):
        ended, labels = replay(World(gain=gain), replays=60, rules=rules)
        assert ended[kind] >= 57
        assert rules.min_labels <= labels <= rules.max_labels
    promise = Interval(0.85, 0.83, 0.87, 0.95)
    assert replay_promise(0.85, promise, replays=60) <= 0.05
    assert replay_promise(0.77, promise, replays=60) >= 0.95
    assert replay_drift(0.0, replays=40) <= 0.05
    assert replay_drift(0.5, replays=40) >= 0.95


BETTER = Anytime(0.05, 0.01, 0.09, 0.95, 400, 0.01)
WORSE = Anytime(-0.05, -0.09, -0.01, 0.95, 400, 0.01)
OPEN = Anytime(0.01, -0.03, 0.05, 0.95, 400, 0.01)
TIE = Anytime(0.0, -0.009, 0.009, 0.95, 5_000, 0.003)
PROMISED = Interval(0.85, 0.82, 0.88, 0.95)
BROKEN = Anytime(0.75, 0.71, 0.79, 0.95, 400, 0.01)
FACTS = Facts("1", "2", difference=BETTER)


@pytest.mark.parametrize(
    ("facts", "kind", "why"),
    [
        (FACTS, "promote", "better by \\+0.0500"),
        (replace(FACTS, difference=WORSE), "reject", "worse by -0.0500"),
        (replace(FACTS, difference=OPEN), "wait", "not yet"),
        (replace(FACTS, difference=TIE), "keep", "no better"),
        (replace(FACTS, difference=replace(OPEN, rows=10_000)), "keep", "10000 labels do not tell"),
        (replace(FACTS, difference=replace(BETTER, rows=60)), "wait", "60 labelled rows"),
        (replace(FACTS, difference=None), "wait", "0 labelled rows"),
        (replace(FACTS, challenger=None), "wait", "no challenger"),
        (replace(FACTS, class_drops={"spam": ClassDrop(0.08, 200)}), "wait", "F1 of spam falls by 0.080"),
        (replace(FACTS, class_drops={"spam": ClassDrop(0.08, 10)}), "promote", "better"),
        (
            replace(FACTS, class_drops={"spam": ClassDrop(0.08, 200)}, difference=replace(BETTER, rows=10_000)),
            "reject",
            "better",
        ),
        (replace(FACTS, health={"1": Health(p95_ms=10), "2": Health(p95_ms=16)}), "wait", "p95 is 1.60 times"),
        (replace(FACTS, health={"1": Health(memory_mb=100), "2": Health(memory_mb=151)}), "wait", "memory is 1.51"),
        (replace(FACTS, health={"1": Health(p95_ms=10), "2": Health(p95_ms=14)}), "promote", "better"),
        (replace(FACTS, health={"2": Health(1, "golden rows differ")}), "wait", "last health check failed"),
        (replace(FACTS, health={"2": Health(3, "golden rows differ")}), "reject", "3 health checks in a row"),
        (replace(FACTS, health={"1": Health(3, "no answer")}, previous="0"), "roll back", "3 health checks"),
        (replace(FACTS, health={"1": Health(2, "no answer")}, previous="0"), "promote", "better"),
        (replace(FACTS, health={"1": Health(3, "no answer")}), "promote", "better"),
        (Facts("1", health={"1": Health(3, "no answer")}), "alert", "failed 3"),
        (Facts("1", previous="0", promised=PROMISED, live=BROKEN), "roll back", "below the promised 0.850"),
        (Facts("1", promised=PROMISED, live=BROKEN), "alert", "below the promised"),
        (replace(FACTS, promised=PROMISED, live=BROKEN), "promote", "better"),
        (replace(FACTS, difference=OPEN, promised=PROMISED, live=BROKEN), "alert", "no earlier version"),
        (replace(FACTS, previous="0", promised=PROMISED, live=BROKEN), "roll back", "below the promised"),
        (Facts("1", previous="0", promised=PROMISED, live=replace(BROKEN, rows=60)), "wait", "nothing wrong"),
        (Facts("1", previous="0", promised=PROMISED, live=replace(BROKEN, high=0.83)), "wait", "nothing wrong"),
        (
            Facts("1", previous="0", promised=PROMISED, live=BROKEN, previous_live=replace(BROKEN, value=0.7)),
            "alert",
            "below the promised",
        ),
        (
            Facts("1", previous="0", promised=PROMISED, live=BROKEN, previous_live=replace(BROKEN, value=0.84)),
            "roll back",
            "below the promised",
        ),
    ],
)
def test_facts_in_decision_out(facts, kind, why):
    found = decide(facts)
    assert found.kind == kind
    assert any(re.search(why, reason) for reason in found.reasons), found.reasons
    assert found.numbers["facts"]["champion"] == "1"


def test_a_limit_on_latency_in_milliseconds_is_a_gate_too():
    facts = replace(FACTS, health={"2": Health(p95_ms=30)})
    assert decide(facts, Rules(max_p95_ms=20)).kind == "wait"
    assert decide(facts, Rules(max_p95_ms=40)).kind == "promote"
