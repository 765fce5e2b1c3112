"""Batches are closed when the model is free, hold what their budget allows, and nobody waits for ever."""

import asyncio
from collections import deque

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmray.serving.batching import Batcher, Busy, Waiting, next_batch


def table(*lengths, first=0):
    """Rows that are told apart by their number."""
    numbers = np.arange(first, first + len(lengths), dtype=np.int64)
    return pa.table({"number": numbers, "length": pa.array(lengths, pa.int32())})


def waiting(*requests):
    loop = asyncio.new_event_loop()
    try:
        return deque(Waiting(one, one["length"].to_numpy(), loop.create_future()) for one in requests)
    finally:
        loop.close()


def sizes(pieces):
    return [(piece.start, piece.stop) for piece in pieces]


def test_a_batch_holds_what_waits_in_order_up_to_its_budget():
    queue = waiting(table(5, 5), table(5), table(5, 5, 5))
    assert sizes(next_batch(queue, 4, 1000)) == [(0, 2), (0, 1), (0, 1)]
    assert sizes(next_batch(queue, 4, 1000)) == [(1, 3)]
    assert not queue


def test_tokens_are_a_budget_too_and_one_row_always_fits():
    queue = waiting(table(90), table(90), table(20))
    assert sizes(next_batch(queue, 8, 100)) == [(0, 1)]
    # The second is too long to go with anybody; the third does not jump over it.
    assert sizes(next_batch(queue, 8, 50)) == [(0, 1)]
    assert sizes(next_batch(queue, 8, 100)) == [(0, 1)]


def test_a_large_request_takes_turns():
    queue = waiting(table(*[1] * 10), table(1), table(1))
    assert sizes(next_batch(queue, 4, 1000)) == [(0, 4)]
    assert sizes(next_batch(queue, 4, 1000)) == [(0, 1), (0, 1), (4, 6)]
    assert sizes(next_batch(queue, 4, 1000)) == [(6, 10)]


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(1, 8),
    st.integers(1, 60),
)
def test_every_row_goes_into_one_batch_whatever_comes(requests, max_rows, max_tokens):
    queue = waiting(*(table(*lengths) for lengths in requests))
    everything = list(queue)
    seen = {id(one): [] for one in everything}
    for _ in range(sum(map(len, requests))):
        if not queue:
            break
        pieces = next_batch(queue, max_rows, max_tokens)
        rows = [length for piece in pieces for length in piece.request.lengths[piece.start : piece.stop]]
        assert 1 <= len(rows) <= max_rows
        assert sum(rows) <= max_tokens or len(rows) == 1
        for piece in pieces:
            seen[id(piece.request)] += range(piece.start, piece.stop)
    assert not queue
    assert [seen[id(one)] for one in everything] == [list(range(len(lengths))) for lengths in requests]


class Model:
    """Doubles numbers when it is let to."""

    def __init__(self, fails_at=None):
        self.batches, self.free, self.fails_at = [], asyncio.Event(), fails_at
        self.free.set()

    async def __call__(self, inputs):
        numbers = inputs["number"].to_numpy()
        self.batches.append(len(numbers))
        await self.free.wait()
        if self.fails_at is not None and self.fails_at in numbers:
            raise RuntimeError("lost")
        return np.stack([numbers * 2.0], axis=1)


def batcher(model, **changes):
    return Batcher(model, **{"max_rows": 4, "max_tokens": 1000, "max_wait_s": 1.0, "eager": 1, "most": 1, **changes})


def test_what_comes_while_the_model_is_busy_goes_together_and_everyone_gets_his_own():
    async def story():
        model = Model()
        model.free.clear()
        one = batcher(model)
        asked = [asyncio.create_task(one.scores(table(1, 1, first=10 * n))) for n in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert model.batches == [2]  # nobody waited for company
        model.free.set()
        found = await asyncio.gather(*asked)
        assert [part.ravel().tolist() for part in found] == [[20.0 * n, 20.0 * n + 2] for n in range(5)]
        assert model.batches == [2, 4, 4]
        assert not one.waiting
        assert not one.under_way

    asyncio.run(story())


def test_more_batches_than_processes_are_begun_only_when_full():
    async def story():
        model = Model()
        model.free.clear()
        one = batcher(model, eager=1, most=3)
        asked = [asyncio.create_task(one.scores(table(1))) for _ in range(8)]
        for _ in range(4):
            await asyncio.sleep(0)
        # One row at once, then a full batch; three rows are left, which are no batch.
        assert model.batches == [1, 4]
        model.free.set()
        await asyncio.gather(*asked)

    asyncio.run(story())


def test_who_would_wait_too_long_is_refused_at_once_and_a_large_request_is_not_when_nothing_waits():
    async def story():
        model = Model()
        one = batcher(model, rate=4.0, max_wait_s=2.0)
        await one.scores(table(*[1] * 50))
        one.expect(4.0)
        model.free.clear()
        asked = [asyncio.create_task(one.scores(table(1, 1, 1))) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert one.expected_wait() == pytest.approx(9 / 4)
        with pytest.raises(Busy) as refused:
            await one.scores(table(1))
        assert refused.value.retry_after == 3
        with pytest.raises(Busy):
            one.check(1)
        # A tenth of what they take themselves.
        one.check(20)
        model.free.set()
        await asyncio.gather(*asked)
        assert one.expected_wait() == 0

    asyncio.run(story())


def test_a_slow_model_lets_a_batch_wait_and_a_fast_one_as_many_as_it_answers_in_time():
    async def story(rate, max_rows, fits):
        model = Model()
        model.free.clear()
        one = batcher(model, rate=rate, max_rows=max_rows, max_wait_s=1.0)
        asked = [asyncio.create_task(one.scores(table(1))) for _ in range(fits + 5)]
        for _ in range(3):
            await asyncio.sleep(0)
        model.free.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(one, Busy) for one in found] == [False] * fits + [True] * 5

    # One more than may be before a newcomer: the newcomer itself.
    asyncio.run(story(rate=1.0, max_rows=16, fits=16 + 1))
    asyncio.run(story(rate=1.0, max_rows=4, fits=8 + 1))
    # Of 40 in a second, four are in the newcomer's own batch.
    asyncio.run(story(rate=40.0, max_rows=4, fits=36 + 1))


def test_a_failed_batch_fails_those_in_it_alone_and_one_who_left_takes_no_room():
    async def story():
        model = Model(fails_at=0)
        model.free.clear()
        one = batcher(model)
        first = asyncio.create_task(one.scores(table(1, first=0)))
        gone = asyncio.create_task(one.scores(table(1, 1, 1, first=5)))
        later = asyncio.create_task(one.scores(table(1, first=9)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        model.free.set()
        with pytest.raises(RuntimeError, match="lost"):
            await first
        assert (await later).tolist() == [[18.0]]
        assert model.batches == [1, 1]

    asyncio.run(story())


def test_two_processes_that_end_together_are_not_taken_for_ones_without_end():
    """Eight rows in 0.05 s, forty times: 160 rows a second, though every second batch ends right after the first."""

    async def run(inputs):
        await asyncio.sleep(0.05)
        return np.zeros((len(inputs), 1))

    async def story():
        one = Batcher(run, max_rows=4, max_tokens=1000, max_wait_s=9.0, eager=2, most=2, rate=1000.0)
        for _ in range(40):
            await asyncio.gather(*(one.scores(table(1, 1, 1, 1)) for _ in range(2)))
        # A busy machine sleeps longer, never shorter.
        assert one.rate < 170

    asyncio.run(story())
