"""The one thread of a process that writes to the live store, many predictions and labels in one transaction."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import islice

from sqlalchemy.exc import DataError, IntegrityError

from pmray.errors import LiveStoreError, PmrayError
from pmray.live.records import Feedback, Prediction, Received
from pmray.live.store import Store

log = logging.getLogger(__name__)

GATHER_S = 0.25
"""How long predictions wait for company; labels, whose senders wait, are written at once."""

AT_MOST = 50_000
"""Predictions that wait while the store cannot be reached; of more, the oldest are dropped."""

BATCH = 2_000
"""Predictions in one transaction."""

RETRY_S = 0.5, 5.0
"""First and longest wait before the store is tried again."""

Writing = tuple[Sequence[Feedback], "Future[list[Received]]"]


class Writer:
    """Takes predictions and labels from any thread; a label is acknowledged when it is on disk.

    Args:
        store: Opened by the thread, so that an endpoint starts also where its store does not yet.
        at_most: Predictions that may wait.
    """

    def __init__(self, store: Callable[[], Store], *, at_most: int = AT_MOST) -> None:
        self._open, self._at_most = store, at_most
        self._come: list[Callable[[], Sequence[Prediction]]] = []
        self.dropped = 0
        """Predictions that were never written."""
        self.failure: str | None = None
        """Why the last attempt failed; None when it did not."""
        self._waiting: deque[Prediction] = deque()  # the thread's own
        self._feedback: deque[Writing] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._store: Store | None = None
        self._thread = threading.Thread(target=self._run, name="pmray live writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Predictions that are not yet written."""
        return len(self._waiting)

    def record(self, make: Callable[[], Sequence[Prediction]]) -> None:
        """Take predictions and return at once; the thread makes them, as hashing and redaction take their time."""
        with self._changed:
            if not self._come:
                self._changed.notify()
            self._come.append(make)

    def feedback(self, labels: Sequence[Feedback]) -> Future[list[Received]]:
        """Take labels; the future is done when they are on disk, and raises ``LiveStoreError`` where they are not."""
        done: Future[list[Received]] = Future()
        with self._changed:
            if self._closing:
                done.set_exception(LiveStoreError("the endpoint is about to end; send the labels again"))
            else:
                self._feedback.append((labels, done))
                self._changed.notify()
        return done

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, and end; what cannot be written by then is lost."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        pause = RETRY_S[0]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._come or self._waiting or self._feedback or self._closing)
                if not self._feedback and not self._closing:
                    self._changed.wait_for(lambda: self._feedback or self._closing, GATHER_S)
                come, self._come = self._come, []
                feedback = [*self._feedback]
                self._feedback.clear()
            self._make(come)
            new = list(islice(self._waiting, BATCH))
            if not new and not feedback:
                if self._closing:
                    break
                continue
            if self._write(new, feedback):
                pause = RETRY_S[0]
                continue
            with self._changed:
                if self._closing:
                    break
                # Labels are tried at once: whoever sent them waits for an answer.
                self._changed.wait_for(lambda: self._feedback or self._closing, pause)
            pause = min(2 * pause, RETRY_S[1])
        with self._changed:
            _refuse(self._feedback, "the endpoint ended; send the labels again")
        if self._store:
            self._store.close()

    def _write(self, new: Sequence[Prediction], feedback: Sequence[Writing]) -> bool:
        """Write a batch; False where the store cannot be reached, and the predictions stay."""
        try:
            self._store = self._store or self._open()
            received = iter(self._store.write(new, [one for some, _ in feedback for one in some]))
        except PmrayError as error:
            if self.failure is None:
                log.warning("predictions wait for the live store: %s", error)
            self.failure = str(error)
            _refuse(feedback, self.failure)
            if not isinstance(error.__cause__, DataError | IntegrityError):
                return False
            self._forget(new, dropped=True)  # the database will never take them, and others wait behind them
            return True
        except Exception:
            # The thread has to live: who waits for it would wait for ever.
            log.exception("predictions could not be written and are dropped")
            _refuse(feedback, "the live store failed; the server's log says why")
            self._forget(new, dropped=True)
            return True
        self.failure = None
        self._forget(new)
        for some, done in feedback:
            done.set_result(list(islice(received, len(some))))
        return True

    def _make(self, come: Sequence[Callable[[], Sequence[Prediction]]]) -> None:
        for make in come:
            try:
                self._waiting.extend(make())
            except Exception:
                # One request's record; the others' must not be lost with it.
                log.exception("predictions could not be recorded")
                self.dropped += 1
        while len(self._waiting) > self._at_most:
            self._waiting.popleft()
            self.dropped += 1

    def _forget(self, new: Sequence[Prediction], *, dropped: bool = False) -> None:
        for _ in new:
            self._waiting.popleft()
            self.dropped += dropped


def _refuse(feedback: Iterable[Writing], why: str) -> None:
    for _, done in feedback:
        done.set_exception(LiveStoreError(why))
