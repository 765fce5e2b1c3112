"""Ask an endpoint from Python: retries with back-off, rows in batches, typed results. Needs httpx alone.

with pmray.Client("http://127.0.0.1:8000", key="…") as client:
    for row, found in zip(rows, client.predict(rows)):
        print(row["text"], found.label)
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self

import httpx

from pmray.errors import EndpointError

KEY = "PMRAY_API_KEY"
"""Environment variable with the key that is sent when none is given."""

PASSING = frozenset({429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed: a busy model, a lost process, a server that is replaced."""

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0

FILE_KINDS = {".csv": "text/csv", ".parquet": "application/vnd.apache.parquet"}


@dataclass(frozen=True)
class Prediction:
    """The answer to one row. Which fields it has depends on the task."""

    id: str
    """Name it in ``feedback``."""
    error: str | None = None
    """Why the row cannot be answered; all that follows is then empty."""
    label: str | None = None
    labels: tuple[str, ...] = ()
    """Where a row may have any number of labels."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Label -> probability."""
    tags: tuple[str, ...] = ()
    """A tag for each word."""
    entities: tuple[Mapping[str, Any], ...] = ()
    """``type``, ``text``, ``start``, ``end``, ``words`` and ``score`` of what the tags mark."""


class Client:
    """A connection to an endpoint; close it, or use it in a ``with`` block. Threads may share it."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        model: str | None = None,
        retry_s: float = 60.0,
        timeout_s: float = 120.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make one; nothing is sent yet.

        Args:
            url: Of the endpoint, such as ``http://127.0.0.1:8000``.
            key: API key; by default that of the environment variable ``PMRAY_API_KEY``.
            model: Name of one of several models; by default the endpoint's first.
            retry_s: For so long a request is sent again while the endpoint is busy or away; 0 never.
            timeout_s: Of one attempt.
            transport: Of httpx, for proxies and tests.
            sleep: Waits between attempts.
        """
        self.url, self.model, self.retry_s, self.sleep = url.rstrip("/"), model, retry_s, sleep
        key = key or os.environ.get(KEY)
        self.http = httpx.Client(
            base_url=self.url,
            timeout=timeout_s,
            headers={"authorization": f"Bearer {key}"} if key else {},
            transport=transport,
        )

    def predict(self, rows: Iterable[Mapping[str, Any] | str], *, batch: int = 256) -> Iterator[Prediction]:
        """Answer rows, in order; they are taken and sent `batch` at a time, as the answers are asked for.

        Args:
            rows: Objects with the fields of the task, or texts.
            batch: Rows in one request.

        Raises:
            EndpointError: The endpoint refuses the request, or is away for longer than ``retry_s``.
        """
        waiting = iter(rows)
        while part := list(islice(waiting, batch)):
            sent = [{"text": row} if isinstance(row, str) else row for row in part]
            for one in self.ask("POST", self._path("predict"), json={"rows": sent})["predictions"]:
                yield _prediction(one)

    def evaluate(self, rows: Sequence[Mapping[str, Any]] | str | Path, *, by: Sequence[str] = ()) -> dict[str, Any]:
        """Score the model on labelled rows, or on a CSV or Parquet file of them; as ``pmray.evaluate`` tells it.

        Raises:
            EndpointError: As ``predict``; or the file is neither CSV nor Parquet.
        """
        params = {"by": list(by)}
        if not isinstance(rows, str | Path):
            found = self.ask("POST", self._path("evaluate"), json={"rows": list(rows)}, params=params)
            return dict(found)
        path = Path(rows).expanduser()
        if path.suffix.lower() not in FILE_KINDS:
            raise EndpointError(
                f"{path} is sent to an endpoint as {' or '.join(FILE_KINDS)}; convert it, or send its rows"
            )
        kind = {"content-type": FILE_KINDS[path.suffix.lower()]}
        found = self.ask("POST", self._path("evaluate"), content=lambda: _pieces(path), headers=kind, params=params)
        return dict(found)

    def feedback(self, labels: Mapping[str, Any]) -> dict[str, Any]:
        """Tell true labels, id of the prediction -> label; to tell the same again changes nothing.

        Raises:
            EndpointError: As ``predict``.
        """
        rows = [{"id": id_, "label": label} for id_, label in labels.items()]
        return dict(self.ask("POST", "/v1/feedback", json={"feedback": rows}))

    def facts(self) -> dict[str, Any]:
        """What is served: task, promised score, limits."""
        return dict(self.ask("GET", "/v1/model" if self.model is None else f"/v1/models/{self.model}"))

    def live(self) -> dict[str, Any]:
        """The live score beside the promised one."""
        return dict(self.ask("GET", "/v1/live"))

    def ask(self, method: str, path: str, *, content: Callable[[], Any] | None = None, **options: Any) -> Any:
        """Send a request, again while that may help, and return its JSON.

        Raises:
            EndpointError: The endpoint refuses the request, or is away for longer than ``retry_s``.
        """
        until = time.monotonic() + self.retry_s
        attempt = 0
        while True:
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0)
            try:
                body = {} if content is None else {"content": content()}
                response = self.http.request(method, path, **options, **body)
            except httpx.TransportError as error:
                problem = f"{self.url} does not answer ({error}); is `pmray serve` running there?"
            except httpx.HTTPError as error:
                raise EndpointError(f"{self.url} does not answer ({error})") from None
            else:
                if response.is_success:
                    return self._json(response, path)
                problem = f"{self.url}{path} answered {response.status_code}: {_told(response)}"
                if response.status_code not in PASSING:
                    raise EndpointError(problem)
                asked = response.headers.get("retry-after", "")
                pause = max(pause, float(asked)) if asked.isdigit() else pause
            if time.monotonic() + pause > until:
                raise EndpointError(problem)
            self.sleep(pause)
            attempt += 1

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _path(self, verb: str) -> str:
        return f"/v1/{verb}" if self.model is None else f"/v1/models/{self.model}/{verb}"

    def _json(self, response: httpx.Response, path: str) -> Any:
        try:
            return response.json()
        except ValueError:
            raise EndpointError(f"{self.url}{path} did not answer with JSON; is it a pmray endpoint?") from None


def _prediction(found: Mapping[str, Any]) -> Prediction:
    return Prediction(
        id=str(found["id"]),
        error=found.get("error"),
        label=found.get("label"),
        labels=tuple(found.get("labels", ())),
        scores=dict(found.get("scores", {})),
        tags=tuple(found.get("tags", ())),
        entities=tuple(found.get("entities", ())),
    )


def _pieces(path: Path, size: int = 2**20) -> Iterator[bytes]:
    """A file as it is sent; opened anew for every attempt."""
    with path.open("rb") as file:
        while piece := file.read(size):
            yield piece


def _told(response: httpx.Response) -> str:
    """The sentence of a refusal."""
    try:
        return str(response.json()["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return response.text[:300]
