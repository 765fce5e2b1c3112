"""Keeping rows aside: shares, groups, seeds, order."""

from collections import Counter

import pyarrow as pa
import pytest

from pmray.data.split import sample, split_off
from pmray.errors import DataError


def table(labels, **columns):
    return pa.table({"row_id": [f"a:{row}" for row in range(1, len(labels) + 1)], "label": labels, **columns})


def counted(part):
    return Counter(part["label"].to_pylist())


def test_shares_stay_and_no_row_is_lost():
    rows = table(["a"] * 800 + ["b"] * 160 + ["c"] * 40)
    rest, part = split_off(rows, 0.25, label="label", group=None, seed=0)
    assert counted(part) == {"a": 200, "b": 40, "c": 10}
    assert sorted(rest["row_id"].to_pylist() + part["row_id"].to_pylist()) == sorted(rows["row_id"].to_pylist())


def test_rows_keep_their_order_and_the_seed_decides():
    rows = table(["a", "b"] * 50)
    first = split_off(rows, 0.2, label="label", group=None, seed=1)
    assert first == split_off(rows, 0.2, label="label", group=None, seed=1)
    assert first != split_off(rows, 0.2, label="label", group=None, seed=2)
    for part in first:
        numbers = [int(row.split(":")[1]) for row in part["row_id"].to_pylist()]
        assert numbers == sorted(numbers)


def test_a_label_with_one_row_stays_in_train():
    rest, part = split_off(table(["a"] * 20 + ["once"]), 0.5, label="label", group=None, seed=0)
    assert "once" in counted(rest)
    assert "once" not in counted(part)


def test_lists_are_split_by_their_rarest_label():
    rows = table([["common"]] * 90 + [["common", "rare"]] * 10 + [[]] * 10 + [None])
    _, part = split_off(rows, 0.2, label="label", group=None, seed=0)
    assert sum("rare" in (row or []) for row in part["label"].to_pylist()) == 2


def test_without_a_label_rows_are_drawn_at_random():
    rest, part = split_off(pa.table({"text": list("abcdefghij")}), 0.3, label=None, group=None, seed=0)
    assert (len(rest), len(part)) == (7, 3)


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_and_shares_stay_near(seed):
    groups = [f"user {row // 7}" for row in range(1400)]
    rows = table(["a" if row % 4 else "b" for row in range(1400)], group=groups)
    rest, part = split_off(rows, 0.2, label="label", group="group", seed=seed)
    assert not set(rest["group"].to_pylist()) & set(part["group"].to_pylist())
    assert len(part) == pytest.approx(280, rel=0.05)
    assert counted(part)["b"] == pytest.approx(70, rel=0.1)


def test_a_label_of_one_group_stays_in_train():
    rows = table(["a", "b"] * 20 + ["c"] * 5, group=[str(row // 4) for row in range(40)] + ["alone"] * 5)
    rest, _ = split_off(rows, 0.3, label="label", group="group", seed=0)
    assert counted(rest)["c"] == 5


def test_rows_without_a_group_are_groups_of_their_own():
    rows = table(["a", "b"] * 20, group=[None] * 40)
    _, part = split_off(rows, 0.25, label="label", group="group", seed=0)
    assert len(part) == 10


def test_two_large_groups_are_split_although_the_fraction_is_small():
    rows = table(["a", "b"] * 10, group=["x"] * 10 + ["y"] * 10)
    rest, part = split_off(rows, 0.1, label="label", group="group", seed=0)
    assert len(rest) == len(part) == 10


@pytest.mark.parametrize(
    ("rows", "group"), [(table(["a", "b"]), None), (table([]), None), (table(["a"] * 9, group=["x"] * 9), "group")]
)
def test_what_cannot_be_split_is_said(rows, group):
    with pytest.raises(DataError, match="nothing can be split off"):
        split_off(rows, 0.2, label="label", group=group, seed=0)


def test_a_sample_keeps_shares_and_labels():
    rows = table(["a"] * 900 + ["b"] * 99 + ["c"])
    drawn = sample(rows, 100, "label", seed=0)
    assert counted(drawn) == {"a": 89, "b": 10, "c": 1} or counted(drawn) == {"a": 90, "b": 9, "c": 1}
    assert sample(rows, 5000, "label", seed=0) is rows
    assert len(sample(rows, 2, "label", seed=0)) == 2
    assert len(sample(rows, 7, None, seed=0)) == 7
