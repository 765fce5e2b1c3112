from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pmray.scoring.metrics import accuracy, f1
from pmray.scoring.paired import (
    approximate_randomisation,
    groups,
    holm,
    mcnemar,
    minimum_detectable_difference,
    paired_bootstrap,
)

quick = settings(max_examples=50, deadline=None, derandomize=True)


def discordant(only_a, only_b, both=100):
    """Whether each of two models is right, with so many rows on which only one is."""
    a = np.repeat([True, False, True], [only_a, only_b, both])
    b = np.repeat([False, True, True], [only_a, only_b, both])
    return a, b


def lines(right):
    """Outcome lines of a model that is right on these rows."""
    return np.stack([np.ones(len(right), int), np.asarray(right, int)], axis=1)


def test_mcnemar_on_13_against_32():
    assert 0.006 < mcnemar(*discordant(13, 32)) < 0.01


def test_mcnemar_by_hand():
    # Five discordant rows, all one way: 2 / 2^5.
    assert mcnemar(*discordant(5, 0)) == pytest.approx(2 / 32)
    assert mcnemar(*discordant(4, 4)) == 1
    assert mcnemar(*discordant(0, 0)) == 1


@quick
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 50))
def test_mcnemar_knows_no_sides_and_no_concordant_rows(only_a, only_b, both):
    p_value = mcnemar(*discordant(only_a, only_b, both))
    assert 0 < p_value <= 1
    assert p_value == pytest.approx(mcnemar(*discordant(only_b, only_a, both=0)))
    assert p_value == pytest.approx(min(1, 2 * stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))


def test_paired_bootstrap_agrees_with_mcnemar_on_accuracy():
    for only_a, only_b in ((13, 32), (20, 25), (40, 22)):
        a, b = discordant(only_a, only_b, both=400)
        found = paired_bootstrap(accuracy, [lines(a)], [lines(b)], draws=4_000)
        assert found.difference == pytest.approx((only_a - only_b) / len(a))
        assert found.low < found.difference < found.high
        assert found.p_value == pytest.approx(mcnemar(a, b), abs=0.1)
        assert (found.p_value < 0.05) == (mcnemar(a, b) < 0.05)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("metric", [accuracy, f1])
def test_identical_models_are_one_group(metric, seeds):
    rng = np.random.default_rng(0)
    runs = [rng.integers(4, size=(200, 2)) for _ in range(seeds)]
    found = paired_bootstrap(metric, runs, [run.copy() for run in runs])
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    assert groups(["a", "b"], holm({frozenset("ab"): found.p_value}), alpha=0.05) == [["a", "b"]]


def test_models_that_differ_on_as_many_rows_either_way_do_not_differ():
    a, b = discordant(10, 10)
    found = paired_bootstrap(accuracy, [lines(a)], [lines(b)])
    assert found.difference == pytest.approx(0)
    assert found.p_value > 0.8


def test_swapping_the_models_swaps_the_sign():
    rng = np.random.default_rng(0)
    a, b = ([lines(rng.random(300) < right)] for right in (0.8, 0.7))
    forward, back = paired_bootstrap(accuracy, a, b), paired_bootstrap(accuracy, b, a)
    assert forward.difference == pytest.approx(-back.difference)
    # The draws of swapped models are others, since they are drawn over sorted lines.
    assert (forward.low, forward.high) == pytest.approx((-back.high, -back.low), abs=0.02)
    assert forward.test == "paired bootstrap"


def test_pairing_is_narrower_than_two_intervals():
    a, b = discordant(30, 10, both=300)
    wrong = np.zeros(400, bool)
    found = paired_bootstrap(accuracy, [lines([*a, *wrong])], [lines([*b, *wrong])])
    unpaired = 2 * 1.96 * np.sqrt(2 * 0.45 * 0.55 / 740)
    assert found.high - found.low < 0.5 * unpaired
    assert found.p_value < 0.05


@pytest.mark.parametrize("others", [1, 2, 3])
def test_seeds_that_differ_make_the_comparison_less_sure(others):
    rng = np.random.default_rng(0)
    steady = [lines(rng.random(1_000) < 0.78)] * others
    shaky = [lines(rng.random(1_000) < right) for right in (0.6, 0.7, 0.85)]
    sure = paired_bootstrap(accuracy, steady, [shaky[1]])
    unsure = paired_bootstrap(accuracy, steady, shaky)
    assert sure.p_value < 0.05 < unsure.p_value
    assert unsure.high - unsure.low > 1.5 * (sure.high - sure.low)


def test_false_alarms_are_about_as_many_as_promised():
    rng = np.random.default_rng(0)
    alarms = 0
    for trial in range(200):
        a, b = (lines(rng.random(200) < 0.8) for _ in range(2))
        alarms += paired_bootstrap(accuracy, [a], [b], draws=200, seed=trial).p_value < 0.05
    assert 0.01 <= alarms / 200 <= 0.09


def test_holm_by_hand():
    # 4 x 0.005; 3 x 0.01; 2 x 0.03; 1 x 0.04 is less than the one before, so it becomes that.
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({1: 0.9, 2: 0.8}) == {1: 1.0, 2: 1.0}
    assert holm({}) == {}


@quick
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_nothing_and_bonferroni(p_values):
    adjusted = list(holm(dict(enumerate(p_values))).values())
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
    assert all(p <= q <= min(1, len(p_values) * p) for p, q in zip(p_values, adjusted, strict=True))


def test_groups_start_again_with_the_best_left():
    names = ["a", "b", "c", "d"]
    p_values = {frozenset((x, y)): 0.001 for x in names for y in names if x != y}
    assert groups(names, p_values, 0.05) == [["a"], ["b"], ["c"], ["d"]]
    p_values[frozenset("ac")] = p_values[frozenset("bd")] = 0.05  # exactly alpha: not told apart
    assert groups(names, p_values, 0.05) == [["a", "c"], ["b", "d"]]
    assert groups([], {}, 0.05) == []


def test_minimum_detectable_difference_solves_connors_formula():
    z_a, z_b = stats.norm.ppf([0.975, 0.8])
    for n, psi in ((200, 0.2), (1_000, 0.1), (10_000, 0.05)):
        d = minimum_detectable_difference(n, 0.9, discordant=psi)
        assert n == pytest.approx((z_a * np.sqrt(psi) + z_b * np.sqrt(psi - d**2)) ** 2 / d**2)


def test_minimum_detectable_difference_is_sane_at_the_edges():
    for score in (0, 0.5, 0.99, 1):
        found = [minimum_detectable_difference(n, score) for n in (1, 5, 50, 1_000, 100_000)]
        assert all(0 < d <= 1 for d in found)
        assert found == sorted(found, reverse=True)
    # Perfect models on 100 rows: about eight rows must go one way.
    assert minimum_detectable_difference(100, 1) == pytest.approx(0.076, abs=0.002)


def test_minimum_detectable_difference_is_detected_with_its_power():
    n, psi, rng = 1_000, 0.15, np.random.default_rng(0)
    d = minimum_detectable_difference(n, 0.9, discordant=psi)
    only_a, only_b, _ = rng.multinomial(n, [(psi + d) / 2, (psi - d) / 2, 1 - psi], size=400).T
    p_values = [mcnemar(*discordant(a, b, both=0)) for a, b in zip(only_a, only_b, strict=True)]
    assert 0.72 <= np.mean(np.array(p_values) < 0.05) <= 0.86  # the exact test is a little less sharp


def test_randomisation_of_accuracy_agrees_with_mcnemar():
    # For accuracy, swapping rows is tossing a coin for each discordant row, which McNemar's exact test does on paper.
    a, b = np.zeros((220, 2), int), np.zeros((220, 2), int)
    a[13:45, 1], b[:13, 1] = 1, 1
    exact = mcnemar(a[:, 1] == 0, b[:, 1] == 0)
    found = approximate_randomisation(accuracy, [a], [b], draws=20_000)
    assert found == pytest.approx(exact, abs=0.002)


def test_randomisation_of_equal_models_finds_nothing_and_of_unequal_ones_something():
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=400)
    good, bad = (
        [np.stack([true, np.where(rng.random(400) < right, true, (true + 1) % 3)], axis=1) for _ in range(2)]
        for right in (0.9, 0.75)
    )
    assert approximate_randomisation(f1, good, good) == 1.0
    assert approximate_randomisation(f1, good, bad) == pytest.approx(1 / 1_001)
    assert approximate_randomisation(f1, good, bad) == approximate_randomisation(f1, bad, good)
    with pytest.raises(ValueError, match="equally many fits; found 2 and 1"):
        approximate_randomisation(f1, good, bad[:1])


def test_rows_of_one_group_swap_together():
    # Ten copies of each row are no more evidence than the row: with groups the p-value is that of single rows.
    rng = np.random.default_rng(1)
    a, b = (np.stack([np.zeros(40, int), (rng.random(40) > right).astype(int)], axis=1) for right in (0.9, 0.7))
    copies, groups_of = [np.repeat(lines, 10, axis=0) for lines in (a, b)], np.repeat(np.arange(40), 10)
    single = approximate_randomisation(accuracy, [a], [b], draws=5_000)
    clustered = approximate_randomisation(accuracy, copies[:1], copies[1:], draws=5_000, clusters=groups_of)
    alone = approximate_randomisation(accuracy, copies[:1], copies[1:], draws=5_000)
    assert clustered == pytest.approx(single, abs=0.02)
    assert alone < clustered / 5
    paired = [paired_bootstrap(accuracy, copies[:1], copies[1:], clusters=one) for one in (None, groups_of)]
    assert paired[1].high - paired[1].low > 2.5 * (paired[0].high - paired[0].low)
