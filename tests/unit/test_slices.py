"""Slices: found where errors were put, quiet where there are none, and every row in exactly one value of a column."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from pmray.errors import DataError
from pmray.evaluation.reliability import reliability
from pmray.evaluation.slices import benjamini_hochberg, lengths, slices_by, worst_slices
from pmray.scoring.metrics import accuracy


def rows(count, wrong):
    """Outcomes of `count` rows with label 0, some of them said to be 1."""
    outcomes = np.zeros((count, 2), np.int64)
    outcomes[wrong, 1] = 1
    return outcomes[:, 0] == outcomes[:, 1], outcomes


def column(values):
    return pa.chunked_array([pa.array(values)])


def search(columns, texts, wrong, count=600, **options):
    right, outcomes = rows(count, wrong)
    return worst_slices(columns, texts, right, outcomes, accuracy, draws=50, **options)


def test_planted_errors_are_found_in_a_column_a_word_and_a_length():
    draw = np.random.default_rng(0)
    domain = np.array(["news", "tweets", "mail"])[np.arange(600) % 3]
    has_word = draw.random(600) < 0.2
    texts = [("it is not so" if one else "it is so",) for one in has_word]
    noise = draw.random(600)
    by_column = search({"domain": column(domain)}, texts, noise < np.where(domain == "tweets", 0.3, 0.05))
    assert (by_column.slices[0].column, by_column.slices[0].value) == ("domain", "tweets")
    assert by_column.significant >= 1 and by_column.slices[0].p_value < 0.001
    by_word = search({"domain": column(domain)}, texts, noise < np.where(has_word, 0.4, 0.05))
    assert by_word.slices[0].value in ("not", "12 characters")
    # The word and the length are the same rows here: told once.
    assert sum(one.rows == has_word.sum() for one in by_word.slices) == 1


def test_a_model_without_bad_slices_is_seldom_accused():
    accused = 0
    for seed in range(40):
        draw = np.random.default_rng(seed)
        columns = {name: column(draw.integers(5, size=600)) for name in "abcdef"}
        accused += search(columns, [], draw.random(600) < 0.15).significant > 0
    # 5 % are expected at most; 7 or more of 40 have a chance under 0.1 %.
    assert accused <= 6


def test_p_values_are_fishers_and_intervals_hold_the_share():
    wrong = np.r_[np.arange(0, 30), np.arange(300, 310)]
    found = search({"half": column(["a"] * 300 + ["b"] * 300)}, [], wrong)
    worst = found.slices[0]
    expected = stats.fisher_exact([[30, 270], [10, 290]], alternative="greater").pvalue
    assert found.tested == 2
    assert worst.p_value == pytest.approx(2 * expected)
    assert worst.errors.value == 0.1 and worst.errors.low < 0.1 < worst.errors.high
    assert worst.errors_elsewhere == pytest.approx(10 / 300)
    # Both of two tested are shown, so nothing was picked and the level is the plain one.
    assert worst.errors.level == pytest.approx(0.95)


def test_slices_of_grouped_rows_are_seldom_accused_for_what_their_groups_do():
    """60 groups of ten alike rows, half of them in each slice: rows as if independent would accuse far too often."""
    accused = {"rows": 0, "groups": 0}
    for seed in range(60):
        draw = np.random.default_rng(seed)
        clusters = np.repeat(np.arange(60), 10)
        half = column(np.repeat(draw.permutation(60) < 30, 10).astype(str))
        wrong = np.flatnonzero(draw.random(600) < np.repeat(draw.choice([0.02, 0.9], 60), 10))
        right, outcomes = rows(600, wrong)
        for name, known in (("rows", None), ("groups", clusters)):
            found = slices_by("half", half, right, outcomes, accuracy, clusters=known, draws=10)
            accused[name] += found[0].p_value < 0.05
    # 5 % are expected of 60; 9 or more have a chance of 1 %.
    assert accused["groups"] <= 8 < 20 < accused["rows"]


def test_errors_of_a_slice_of_many_groups_are_found_and_those_of_one_group_are_not():
    draw = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), 10)
    bad, one = clusters < 30, clusters == 40
    wrong = np.flatnonzero((draw.random(600) < 0.05 + 0.4 * bad) | one)
    columns = {"bad": column(bad.astype(str)), "one": column(one.astype(str))}
    found = search(columns, [], wrong, clusters=clusters, min_rows=10)
    assert (found.slices[0].column, found.slices[0].value, found.significant) == ("bad", "True", 1)
    single = next(part for part in found.slices if (part.column, part.value) == ("one", "True"))
    assert single.p_value == 1 and single.errors.value == 1


def test_intervals_of_grouped_rows_are_wider():
    draw = np.random.default_rng(1)
    clusters = np.repeat(np.arange(60), 10)
    right, outcomes = rows(600, np.flatnonzero(np.repeat(draw.random(60) < 0.3, 10)))
    kind = column((clusters % 2).astype(str))
    alone, grouped = (
        slices_by("kind", kind, right, outcomes, accuracy, clusters=known, draws=500)[0] for known in (None, clusters)
    )
    assert grouped.errors.high - grouped.errors.low > 2 * (alone.errors.high - alone.errors.low)
    assert grouped.score.high - grouped.score.low > 2 * (alone.score.high - alone.score.low)


def test_values_of_a_column_hold_every_row_once():
    values = ["big"] * 80 + ["mid"] * 40 + [None] * 25 + ["x"] * 3 + ["y"] * 2
    right, outcomes = rows(150, np.arange(0, 150, 7))
    found = slices_by("kind", column(values), right, outcomes, accuracy, min_rows=20, draws=50)
    assert [(one.value, one.rows) for one in found] == [
        ("big", 80),
        ("mid", 40),
        ("(missing)", 25),
        ("(2 values of fewer than 20 rows)", 5),
    ]
    assert sum(one.errors.value * one.rows for one in found) == pytest.approx((~right).sum())
    assert all(one.score.value == pytest.approx(1 - one.errors.value) for one in found)


def test_many_numbers_are_cut_into_quarters_that_say_their_bounds():
    right, outcomes = rows(200, [0])
    numbers = [*map(float, range(198)), None, float("nan")]
    found = slices_by("age", column(numbers), right, outcomes, accuracy, min_rows=2, draws=50)
    assert sum(one.rows for one in found) == 200
    assert "(missing)" in {one.value for one in found}
    assert found[1].value == "0 to 49" and found[-1].value.endswith("to 197")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([f"id{number}" for number in range(100)], "column 'c' is none to slice by"),
        ([[1]] * 100, "column 'c' is none to slice by"),
        ([number // 5 for number in range(100)], "too few rows to slice by: 100 rows in 20 values, of which 0 have 30"),
    ],
)
def test_columns_that_cannot_be_sliced_by_are_named(values, message):
    right, outcomes = rows(100, [3])
    with pytest.raises(DataError, match=message):
        slices_by("c", column(values), right, outcomes, accuracy)


def test_too_few_rows_for_a_search_are_told():
    with pytest.raises(DataError, match="needs 60 rows, but 59 were scored"):
        search({}, [], [1], count=59)


def test_columns_that_cannot_be_cut_are_left_out_of_a_search():
    found = search({"id": column([f"id{n}" for n in range(600)]), "lists": column([[1]] * 600)}, [], [1])
    assert (found.tested, found.slices) == (0, ())


def test_lengths_count_all_inputs():
    assert lengths([("abc", "de"), ("", "f")]).tolist() == [5, 1]


def test_false_discovery_adjustment_is_that_of_scipy_and_keeps_order():
    p = np.random.default_rng(1).random(50) ** 3
    ranked = np.sort(p) * 50 / np.arange(1, 51)
    expected = np.minimum.accumulate(ranked[::-1])[::-1]
    assert np.sort(benjamini_hochberg(p)) == pytest.approx(np.minimum(expected, 1))


def test_reliability_of_calibrated_and_of_boastful_scores():
    draw = np.random.default_rng(0)
    confidence = draw.uniform(0.5, 1, 50_000)
    honest = reliability(confidence, draw.random(50_000) < confidence)
    assert honest.ece < 0.01
    boastful = reliability(confidence, draw.random(50_000) < confidence - 0.2)
    assert boastful.ece == pytest.approx(0.2, abs=0.01)
    assert boastful.overconfidence == pytest.approx(0.2, abs=0.01)
    assert sum(one.count for one in boastful.bins) == 50_000


def test_reliability_at_the_edges_of_bins():
    found = reliability(np.array([0.0, 0.1, 0.2, 1.0]), np.array([False, False, True, True]))
    assert [(one.low, one.high, one.count) for one in found.bins] == [(0.0, 0.1, 2), (0.1, 0.2, 1), (0.9, 1.0, 1)]
    assert found.ece == pytest.approx((2 * 0.05 + 0.8 + 0) / 4)
