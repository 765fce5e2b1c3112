"""Plans of batches: every row once, similar lengths together, the same for any number of workers."""

import numpy as np
import pytest

from pmray.data.batches import share, training_steps, within_budget

LENGTHS = np.random.default_rng(0).integers(3, 200, 1000).astype(np.int32)


def padded(batches, lengths=LENGTHS):
    return sum(len(batch) * int(lengths[batch].max()) for batch in batches)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 2000])
def test_an_epoch_has_every_row_once(batch_size):
    steps = training_steps(LENGTHS, batch_size, seed=3, epoch=0)
    assert sorted(np.concatenate(steps)) == list(range(1000))
    assert len(steps) == -(-1000 // batch_size)
    assert max(map(len, steps)) <= batch_size


def test_the_plan_depends_on_seed_and_epoch_alone():
    def plan(seed, epoch):
        return [step.tolist() for step in training_steps(LENGTHS, 32, seed=seed, epoch=epoch)]

    assert plan(0, 0) == plan(0, 0)
    assert plan(0, 0) != plan(0, 1)
    assert plan(0, 1) != plan(1, 0)


def test_rows_of_similar_length_go_together():
    steps = training_steps(LENGTHS, 32, seed=0, epoch=0)
    at_random = np.array_split(np.random.default_rng(1).permutation(1000), len(steps))
    assert padded(steps) < 1.15 * LENGTHS.sum() < 0.75 * padded(at_random)


def test_long_and_short_batches_come_in_no_order():
    means = [LENGTHS[step].mean() for step in training_steps(LENGTHS, 32, seed=0, epoch=0)]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


@pytest.mark.parametrize("budget", [16, 200, 1024, 10**9])
def test_a_forward_pass_stays_within_its_budget(budget):
    rows = np.arange(0, 1000, 3)
    parts = list(within_budget(rows, LENGTHS, budget))
    assert sorted(np.concatenate(parts)) == rows.tolist()
    assert all(len(part) == 1 or len(part) * LENGTHS[part].max() <= budget for part in parts)


def test_a_budget_is_used_up():
    parts = list(within_budget(np.arange(10), np.full(10, 8, dtype=np.int32), 32))
    assert [len(part) for part in parts] == [4, 4, 2]


def test_no_rows_are_no_passes():
    assert list(within_budget(np.array([], dtype=np.int64), LENGTHS, 100)) == []


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_workers_share_a_batch_and_nothing_is_lost(workers):
    rows = np.arange(5) * 10
    parts = [share(rows, rank, workers) for rank in range(workers)]
    assert sorted(np.concatenate(parts)) == rows.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
