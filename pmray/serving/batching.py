"""Rows of many requests, put together into batches that a model can take. No Ray, no HTTP.

``@serve.batch`` closes a batch when a time has passed, whether or not the model is free, and puts what does not fit
behind all that came later. Here a batch is closed at the moment in which the model can take it, so that it holds all
that came while the model was busy and nobody waits for company; and a request of many rows takes turns with the
others, one batch at a time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MEMORY = 0.95
"""Weight that a batch keeps in the mean of rows per second when another one has ended."""

ALIKE = 8
"""Requests of its own size that one may find before it, however long they take: many rows take long in any case."""

Run = Callable[[pa.Table], Awaitable[NDArray[Any]]]


class Busy(Exception):
    """More waits already than can be answered in time."""

    def __init__(self, seconds: float) -> None:
        self.retry_after = max(1, math.ceil(seconds))
        super().__init__(f"the model is busy for about {seconds:.1f} s; ask again in {self.retry_after} s")


@dataclass(eq=False)
class Waiting:
    """A request whose rows have not all been answered."""

    inputs: pa.Table
    lengths: NDArray[np.int32]
    answered: asyncio.Future[NDArray[Any]]
    taken: int = 0
    """Rows that went into a batch."""
    scores: dict[int, NDArray[Any]] = field(default_factory=dict)
    """First row -> score vectors of the rows from there."""
    scored: int = 0

    @property
    def left(self) -> int:
        """Rows that are in no batch yet."""
        return len(self.inputs) - self.taken


@dataclass(frozen=True)
class Piece:
    """Rows of one request that go into one batch."""

    request: Waiting
    start: int
    stop: int


def next_batch(waiting: deque[Waiting], max_rows: int, max_tokens: int) -> list[Piece]:
    """Take the next batch from the requests that wait, and leave the rest.

    In the order in which they came; a request that does not fit whole gives what fits, and goes behind the others. One
    row always fits, however long it is.

    Args:
        waiting: Requests with rows left; changed.
        max_rows: Rows of a batch.
        max_tokens: Tokens of a batch, without padding.
    """
    pieces: list[Piece] = []
    rows = tokens = 0
    for _ in range(len(waiting)):
        request = waiting.popleft()
        start = request.taken
        ends = np.cumsum(request.lengths[start : start + max_rows - rows])
        fits = int(np.searchsorted(ends, max_tokens - tokens, side="right"))
        if not pieces:
            fits = max(1, fits)
        if fits:
            request.taken += fits
            rows, tokens = rows + fits, tokens + int(ends[fits - 1])
            pieces.append(Piece(request, start, request.taken))
        if request.left:
            # Before those that were not reached yet it would stand in their way again.
            waiting.append(request) if fits else waiting.appendleft(request)
            break
        if rows >= max_rows or tokens >= max_tokens:
            break
    return pieces


class Batcher:
    """Gives a model one batch after the other, and refuses what it could not answer in time."""

    def __init__(
        self,
        run: Run,
        *,
        max_rows: int,
        max_tokens: int,
        max_wait_s: float,
        eager: int = 1,
        most: int = 2,
        rate: float | None = None,
        told: Callable[[int, int, float], None] = lambda rows, tokens, seconds: None,
    ) -> None:
        """Make one; it belongs to the event loop in which it is first used.

        Args:
            run: Scores a batch of model inputs.
            max_rows: Rows of a batch.
            max_tokens: Tokens of a batch.
            max_wait_s: A request that is expected to be answered later is refused, unless no more rows are before it
                than a batch or ``ALIKE`` requests of its size have.
            eager: So many batches are begun however small they are: one for each process of the model.
            most: So many are begun when they are full: one then waits at each process while it computes another, and
                autoscaling sees that more is wanted.
            rate: Rows per second of full batches, where it is known already.
            told: Called after each batch with its rows, tokens and seconds.
        """
        self.run, self.max_rows, self.max_tokens, self.max_wait_s = run, max_rows, max_tokens, max_wait_s
        self.eager, self.most, self.told = eager, max(eager, most), told
        self.waiting: deque[Waiting] = deque()
        self.under_way: dict[asyncio.Task[None], int] = {}
        """Running batches and their rows."""
        self._rows = self._seconds = 0.0
        """Of batches that are at least half full, those before weighing less and less."""
        self._done_at = 0.0
        if rate is not None:
            self.expect(rate)

    def expect(self, rate: float) -> None:
        """Take rows per second as seen in one full batch, and nothing that was seen before."""
        self._rows, self._seconds = float(self.max_rows), self.max_rows / rate

    @property
    def rate(self) -> float | None:
        """Rows per second of batches that are at least half full; None before the first batch."""
        return self._rows / self._seconds if self._rows else None

    def expected_wait(self) -> float:
        """Seconds until the model can begin with rows that come now, from the speed seen so far."""
        return self._ahead() / self.rate if self.rate else 0.0

    def check(self, rows: int) -> None:
        """Raise ``Busy`` when so many rows that came now would be answered too late."""
        at_once = self.eager * self.max_rows
        # The batch that they go into may be full.
        in_time = self.max_wait_s * (self.rate or math.inf) - at_once
        if self._ahead() > max(at_once, ALIKE * rows, in_time):
            raise Busy(self.expected_wait())

    def _ahead(self) -> int:
        """Rows that are answered before one that comes now."""
        # Requests take turns: of each one that waits, at most a batch comes before the newcomer.
        return sum(self.under_way.values()) + sum(min(one.left, self.max_rows) for one in self.waiting)

    async def scores(self, inputs: pa.Table, *, patient: bool = False) -> NDArray[Any]:
        """Score vectors of model inputs, shape (rows, labels) or ragged, in their order.

        Args:
            inputs: Encoded rows, with their ``length``.
            patient: Wait however long it takes: these rows belong to a request of which a part was answered.

        Raises:
            Busy: They would wait too long.
        """
        if not patient:
            self.check(len(inputs))
        if not len(inputs):
            return await self.run(inputs)
        request = Waiting(inputs, inputs["length"].to_numpy(), asyncio.get_running_loop().create_future())
        self.waiting.append(request)
        self._begin()
        try:
            return await request.answered
        finally:
            # The client went away: its rows are not worth a batch any more.
            if not request.answered.done() or request.answered.cancelled():
                request.taken = len(inputs)
                if request in self.waiting:
                    self.waiting.remove(request)

    def _begin(self) -> None:
        """Begin as many batches as the model takes now."""
        while self.waiting:
            running = len(self.under_way)
            if running >= self.eager:
                rows = sum(one.left for one in self.waiting)
                if running >= self.most or rows < self.max_rows:
                    return
            pieces = next_batch(self.waiting, self.max_rows, self.max_tokens)
            task = asyncio.get_running_loop().create_task(self._batch(pieces))
            self.under_way[task] = sum(piece.stop - piece.start for piece in pieces)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self.under_way[task]
        self._begin()

    async def _batch(self, pieces: Sequence[Piece]) -> None:
        parts = [piece.request.inputs.slice(piece.start, piece.stop - piece.start) for piece in pieces]
        began = time.perf_counter()
        try:
            scores = await self.run(pa.concat_tables(parts).combine_chunks() if len(parts) > 1 else parts[0])
        except Exception as error:  # noqa: BLE001  (every request of the batch is told)
            for piece in pieces:
                if not piece.request.answered.done():
                    piece.request.answered.set_exception(error)
                piece.request.taken = len(piece.request.inputs)
            self.waiting = deque(one for one in self.waiting if one.left)
            return
        self._count(pieces, began)
        start = 0
        for piece in pieces:
            stop = start + piece.stop - piece.start
            piece.request.scores[piece.start] = scores[start:stop]
            piece.request.scored += stop - start
            start = stop
            if piece.request.scored == len(piece.request.inputs) and not piece.request.answered.done():
                found = [part for _, part in sorted(piece.request.scores.items())]
                piece.request.answered.set_result(np.concatenate(found) if len(found) > 1 else found[0])

    def _count(self, pieces: Sequence[Piece], began: float) -> None:
        """Keep the speed: rows over the time since the last batch ended, or since this one began while none ran.

        Sums, and no mean of rates: of two processes that end together the second one seems to have taken no time.
        """
        now = time.perf_counter()
        rows = sum(piece.stop - piece.start for piece in pieces)
        tokens = sum(int(piece.request.lengths[piece.start : piece.stop].sum()) for piece in pieces)
        seconds = max(1e-6, now - max(began, self._done_at))
        self._done_at = now
        # Small batches say little of what the model can do when much waits.
        if self.rate is None or 2 * rows >= self.max_rows or 2 * tokens >= self.max_tokens:
            self._rows, self._seconds = MEMORY * self._rows + rows, MEMORY * self._seconds + seconds
        self.told(rows, tokens, now - began)
