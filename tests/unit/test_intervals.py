from __future__ import annotations

import math
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmray.errors import NoVerdict
from pmray.scoring.intervals import (
    Interval,
    bootstrap,
    bootstrap_seeds,
    corrected,
    resampled,
    selection_corrected,
    stretch,
)
from pmray.scoring.metrics import MULTI_LABEL, SINGLE_LABEL, accuracy, f1, multi_label_metric, single_label_metric

quick = settings(max_examples=50, deadline=None, derandomize=True)


def fit(rng, true, right):
    """Lines of a model that is right on that share of the rows."""
    wrong = (true + rng.integers(1, 3, size=len(true))) % 3
    return np.stack([true, np.where(rng.random(len(true)) < right, true, wrong)], axis=1)


def assert_sane(interval: Interval, holds_value=True):
    assert all(math.isfinite(number) for number in (interval.value, interval.low, interval.high))
    assert interval.low <= interval.high
    assert not holds_value or interval.low <= interval.value <= interval.high


@pytest.mark.parametrize("name", SINGLE_LABEL)
@pytest.mark.parametrize(
    "lines",
    [[[0, 0]], [[0, 1]], [[0, 0], [1, 1]] * 10, [[0, 1], [1, 0]] * 10, [[0, 0], [1, 2]], [[3, 3]] * 9 + [[3, 1]]],
    ids=["one row right", "one row wrong", "all right", "all wrong", "two rows", "one class"],
)
def test_degenerate_rows_give_finite_intervals(name, lines):
    metric, lines = single_label_metric(name), np.array(lines)
    assert_sane(bootstrap(metric, lines, draws=50))
    assert_sane(bootstrap_seeds(metric, [lines, lines[::-1]], draws=50))
    assert_sane(selection_corrected(metric, {"a": [lines], "b": [lines[::-1]]}, draws=50), holds_value=False)


@pytest.mark.parametrize("name", MULTI_LABEL)
@quick
@given(rows=st.integers(1, 30), labels=st.integers(1, 5), seed=st.integers(0, 1_000))
def test_multi_label_intervals_are_sane(name, rows, labels, seed):
    lines = np.random.default_rng(seed).integers(2, size=(rows, 2 * labels))
    assert_sane(bootstrap(multi_label_metric(name), lines, draws=20))


def test_all_right_has_no_width():
    assert bootstrap(f1, np.array([[0, 0], [1, 1]] * 20)) == Interval(1.0, 1.0, 1.0, 0.95)


def test_accuracy_interval_is_the_normal_one():
    lines = np.array([[0, 0]] * 800 + [[0, 1]] * 200)
    found = bootstrap(accuracy, lines, draws=4_000)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 1_000)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.8 - half, 0.8 + half), abs=0.003)


def test_order_of_rows_changes_nothing_and_the_seed_does():
    rng = np.random.default_rng(0)
    lines = rng.integers(3, size=(200, 2))
    assert bootstrap(f1, lines) == bootstrap(f1, rng.permutation(lines)) == bootstrap(f1, lines.astype(np.int8))
    assert bootstrap(f1, lines) != bootstrap(f1, lines, seed=1)


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    runs = [rng.integers(4, size=(100, 2)) for _ in range(2)]
    for ask in (bootstrap_seeds, lambda metric, runs: selection_corrected(metric, {"a": runs, "b": runs[:1]})):
        whole = ask(f1, runs)
        monkeypatch.setattr("pmray.scoring.intervals.CELLS", 700)
        assert ask(f1, runs) == whole
        monkeypatch.undo()


def test_the_jackknife_finds_the_bias_and_error_of_small_classes():
    # Macro F1 of 77 classes on 200 rows is too low, for classes of no row are said and count zero.
    rng = np.random.default_rng(0)
    values, centres, held = [], [], 0
    truth = f1(np.argwhere(np.ones((77, 77))), (0.7 * np.eye(77) + 0.3 / 77).reshape(1, -1) / 77)[0]
    for seed in range(60):
        true = rng.integers(77, size=200)
        lines = np.stack([true, np.where(rng.random(200) < 0.7, true, rng.integers(77, size=200))], axis=1)
        found = bootstrap(f1, lines, draws=300, seed=seed)
        values.append(found.value)
        centres.append((found.low + found.high) / 2)
        held += found.low <= truth <= found.high
    assert np.mean(values) < truth - 0.03
    assert abs(np.mean(centres) - truth) < 0.02
    assert held >= 53


def test_a_mean_of_rows_has_no_bias_and_its_own_error():
    # For a mean of n rows the jackknife's error is s / sqrt(n), with s the standard deviation by n - 1.
    scores = np.random.default_rng(0).normal(0.5, 0.01, size=2_000)
    rows = np.random.default_rng(1).random(30)
    without = (rows.sum() - rows) / 29
    found = corrected(rows.mean(), scores, without, np.ones(30, int), 0.95)
    error = rows.std(ddof=1) / math.sqrt(30)
    assert (found.low, found.high) == pytest.approx(
        (rows.mean() - 1.96 * error, rows.mean() + 1.96 * error), abs=0.3 * error
    )


def test_skewed_rows_move_both_ends_to_their_long_side():
    # As for BCa: one long tail to the right moves the ends to the right.
    rows = np.r_[np.zeros(95), np.ones(5)]
    scores = np.random.default_rng(0).normal(0.05, 0.022, size=20_000)
    found = corrected(0.05, scores, (rows.sum() - rows) / 99, np.ones(100, int), 0.95)
    assert found.high - 0.05 > 0.05 - found.low > 0


def test_parts_put_together_say_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    lines = rng.integers(10, size=(1_000, 2))
    one_by_one = resampled(f1, [lines], 10, np.random.default_rng(0))
    assert len(one_by_one.without) == 100 and one_by_one.times.sum() == 1_000
    monkeypatch.setattr("pmray.scoring.intervals.PARTS", 50)
    together = resampled(f1, [lines], 10, np.random.default_rng(0))
    assert together.without.shape == (50, 1) and together.times.sum() == 50
    scores = rng.normal(0.1, 1e-3, size=500)
    spreads = [stretch(scores, f.without[:, 0], f.times) for f in (one_by_one, together)]
    assert spreads[0] == pytest.approx(spreads[1], rel=0.3)


def test_without_a_part_is_the_score_of_the_other_rows(monkeypatch):
    rng = np.random.default_rng(0)
    lines, clusters = rng.integers(4, size=(60, 2)), np.repeat(np.arange(12), 5)
    found = resampled(f1, [lines], 5, np.random.default_rng(0), clusters)
    expected = [f1(lines, (clusters != group).astype(int)[None])[0] for group in range(12)]
    assert sorted(found.without[:, 0]) == pytest.approx(sorted(expected))
    monkeypatch.setattr("pmray.scoring.intervals.PARTS", 6)
    assert resampled(f1, [lines], 5, np.random.default_rng(0), clusters).without.shape == (6, 1)


def test_coverage():
    rng = np.random.default_rng(1)
    truth, held = 0.8, 0
    for trial in range(200):
        lines = np.stack([np.zeros(150, int), (rng.random(150) > truth).astype(int)], axis=1)
        found = bootstrap(accuracy, lines, draws=200, seed=trial)
        held += found.low <= truth <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_one_seed_is_the_plain_bootstrap():
    lines = np.random.default_rng(0).integers(3, size=(100, 2))
    assert bootstrap_seeds(f1, [lines]) == bootstrap(f1, lines)


def test_seeds_that_differ_widen_the_interval_and_equal_ones_do_not():
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=500)
    runs = [fit(rng, true, right) for right in (0.6, 0.75, 0.9)]
    alone, alike = bootstrap(accuracy, runs[1]), bootstrap_seeds(accuracy, [runs[1]] * 3)
    apart = bootstrap_seeds(accuracy, runs)
    assert (alike.low, alike.high) == pytest.approx((alone.low, alone.high), abs=1e-12)
    assert apart.value == pytest.approx(np.mean([(run[:, 0] == run[:, 1]).mean() for run in runs]))
    assert apart.high - apart.low > 2 * (alone.high - alone.low)


def test_picking_among_equals_is_corrected():
    # Twenty models, all right on 70% of the rows: the best of them looks better, the corrected value does not.
    best, corrected, held = [], [], 0
    for trial in range(20):
        rng = np.random.default_rng(trial)
        true = rng.integers(3, size=200)
        models = {f"m{number}": [fit(rng, true, 0.7)] for number in range(20)}
        best.append(max((lines[:, 0] == lines[:, 1]).mean() for (lines,) in models.values()))
        found = selection_corrected(accuracy, models, draws=200, seed=trial)
        corrected.append(found.value)
        held += found.low <= 0.7 <= found.high
    assert np.mean(best) > 0.75
    assert abs(np.mean(corrected) - 0.7) < 0.02
    assert held >= 18


def test_picking_a_lucky_seed_is_corrected():
    # Ten equal models whose seeds vary (by 0.05) more than their rows do (by 0.02).
    best, corrected = [], []
    for trial in range(20):
        rng = np.random.default_rng(trial)
        true = rng.integers(3, size=400)
        models = {f"m{number}": [fit(rng, true, rng.normal(0.7, 0.05)) for _ in range(4)] for number in range(10)}
        scores = [np.mean([(run[:, 0] == run[:, 1]).mean() for run in runs]) for runs in models.values()]
        best.append(max(scores))
        corrected.append(selection_corrected(accuracy, models, draws=100, seed=trial).value)
    assert abs(np.mean(corrected) - 0.7) < 0.6 * (np.mean(best) - 0.7)


def test_without_rivals_the_corrected_value_is_the_score():
    rng = np.random.default_rng(0)
    lines = fit(rng, rng.integers(3, size=500), 0.8)
    found, plain = selection_corrected(accuracy, {"only": [lines]}), bootstrap(accuracy, lines)
    assert found.value == pytest.approx(plain.value, abs=0.005)
    assert found.high - found.low > plain.high - plain.low


def test_a_clear_winner_is_always_picked():
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=500)
    good, bad = fit(rng, true, 0.95), fit(rng, true, 0.5)
    for models in ({"bad": [bad], "good": [good]}, {"good": [good], "bad": [bad]}):
        found = selection_corrected(accuracy, models)
        assert found.value == pytest.approx((good[:, 0] == good[:, 1]).mean(), abs=0.003)


def test_left_out_rows_are_those_that_were_not_drawn():
    # A metric that sees the weights: per draw, drawn rows add up to n, and the left-out share is about 1 / e.
    seen = []

    def spy(outcomes, weights):
        seen.append(weights.sum(axis=1))
        return accuracy(outcomes, weights)

    lines = np.random.default_rng(0).integers(3, size=(300, 2))
    selection_corrected(spy, {"a": [lines]}, draws=500)
    drawn, left_out = seen
    assert (drawn == 300).all()
    assert left_out.mean() / 300 == pytest.approx(math.exp(-1), abs=0.005)


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="same rows"):
        bootstrap_seeds(accuracy, [np.zeros((3, 2), int), np.zeros((4, 2), int)])
    with pytest.raises(NoVerdict, match="No rows"):
        bootstrap(accuracy, np.empty((0, 2), int))


def test_metrics_of_other_shapes_work():
    def word_error_rate(outcomes, weights):
        edits, words = (weights @ outcomes).T
        return edits / words

    rng = np.random.default_rng(0)
    lines = np.stack([rng.integers(4, size=300), rng.integers(5, 30, size=300)], axis=1)
    assert_sane(bootstrap(word_error_rate, lines))
    assert_sane(bootstrap(lambda outcomes, weights: weights @ outcomes[:, 0] / weights.sum(1), rng.random((50, 1))))


def test_a_hundred_thousand_rows_are_quick():
    rng = np.random.default_rng(0)
    lines = rng.integers(20, size=(100_000, 2))
    multi = rng.integers(2, size=(2_000, 20))
    start = time.perf_counter()
    bootstrap(f1, lines, draws=1_000)
    bootstrap(partial(f1, multi_label=True), multi, draws=100)
    assert time.perf_counter() - start < 2  # 0.1 s on one core; room for a busy machine


def test_copies_in_one_group_say_no_more_than_one_row():
    rng = np.random.default_rng(0)
    lines = fit(rng, rng.integers(3, size=100), 0.7)
    copies, groups = np.repeat(lines, 9, axis=0), np.repeat(np.arange(100), 9)
    single, clustered, blind = bootstrap(f1, lines), bootstrap(f1, copies, clusters=groups), bootstrap(f1, copies)
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high), abs=0.02)
    assert blind.high - blind.low < 0.5 * (clustered.high - clustered.low)
    left_out = selection_corrected(f1, {"a": [copies]}, clusters=groups)
    expected = selection_corrected(f1, {"a": [lines]})
    assert (left_out.low, left_out.high) == pytest.approx((expected.low, expected.high), abs=0.04)


def test_groups_of_one_row_are_the_plain_bootstrap():
    rng = np.random.default_rng(0)
    lines = fit(rng, rng.integers(3, size=300), 0.7)
    names = np.array([f"group {number}" for number in range(300)])
    plain, clustered = bootstrap(f1, lines, draws=4_000), bootstrap(f1, lines, draws=4_000, clusters=names)
    assert (clustered.low, clustered.high) == pytest.approx((plain.low, plain.high), abs=0.01)
    with pytest.raises(ValueError, match="every row needs a group; found 299 groups for 300 rows"):
        bootstrap(f1, lines, clusters=names[1:])
