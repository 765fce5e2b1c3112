"""What an endpoint does to keep score: records predictions, takes labels, tells the live score, shows the page.

Everything that computes runs in threads, beside the event loop, and is kept for a while: whoever looks often costs
little. Nothing here is on a reply's path.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from starlette.responses import Response

from pmray.errors import LiveStoreError, PmrayError
from pmray.live.page import render
from pmray.live.records import ID, Check, Feedback, hash_of, said_in, texts_in, words_of
from pmray.live.records import Prediction as Kept
from pmray.live.redaction import redact_row
from pmray.live.score import label_problem
from pmray.live.status import Served, Status, status
from pmray.live.store import Store
from pmray.live.writer import Writer
from pmray.serving.batching import Busy
from pmray.serving.bodies import json_response, read_json
from pmray.serving.recording import Prediction
from pmray.serving.schemas import ERROR, REFUSALS
from pmray.serving.service import Service
from pmray.spec import Live
from pmray.tasks.base import Task

FRESH_S, LEAST_S = 10.0, 1.0
"""How long a status holds for whoever asks; where labels have come meanwhile, the time from one look to the next."""

GAUGES = 5
"""Checks from one look at the scores for Prometheus to the next; a look may take a second."""

FUTURE_S = 86_400.0
"""A label whose time is further ahead is a mistake: it would outrank all later ones."""

SHADOWS = 8
"""Requests that a challenger may be answering at once; more are not shadowed."""

NO_STORE = "this endpoint keeps no live score; serve a model with a registry, or set PMRAY_LIVE_URL"

log = logging.getLogger("ray.serve")


class Models(Protocol):
    """What is asked of the endpoint."""

    def champion(self, name: str | None) -> Service | None:
        """The version that answers under a name, or the default model; None where it is not open."""
        ...

    def challenger(self, name: str) -> Service | None:
        """The version that is compared with it; None where there is none."""
        ...

    def previous(self, name: str) -> Served | None:
        """The version that was served before, to be gone back to; None where there is none."""
        ...

    async def problem(self, service: Service) -> str | None:
        """Run a version's golden rows; None when all is as it was at export."""
        ...

    def busy(self) -> bool:
        """Whether requests wait for the model, so that nothing else should."""
        ...

    def told(self) -> Mapping[str, str]:
        """Latency, batch fill and so on, in words."""
        ...


class Scorekeeper:
    """One endpoint's connection with the live store; it is a ``serving.recording.Recorder``.

    Args:
        url: Of the store.
        settings: Shares, and what is kept.
        models: The endpoint.
        registry: Gets the live score's gauges.
    """

    def __init__(self, url: str, settings: Live, models: Models, registry: CollectorRegistry) -> None:
        self.url, self.settings, self.models = url, settings, models
        self.writer = Writer(lambda: Store(url))
        self.seen: dict[str, Status] = {}
        """Name of a model -> what was last known of it."""
        self.shadows: set[asyncio.Task[None]] = set()
        self.skipped = 0
        """Requests that were to be shadowed, but the endpoint had enough to do."""
        self._store: Store | None = None
        self._looking = asyncio.Lock()
        self._labelled = 0.0  # when labels came last
        self._checking: asyncio.Task[None] | None = None
        registry.register(_Gauges(self))

    def start(self) -> None:
        """Begin to check the served versions; call it in the event loop."""
        self._checking = asyncio.create_task(self._check())

    def routed(self, model: Service) -> Service:
        """Who answers a request: the model itself, or by the weight of the canary its challenger."""
        if not self.settings.canary or random.random() >= self.settings.canary:
            return model
        return self.models.challenger(model.name) or model

    def record(self, predictions: list[Prediction]) -> None:
        """Take the answered rows of a request; let the other version answer them too, unseen."""
        self.writer.record(lambda: [self._kept(one, served=True) for one in predictions])
        first = predictions[0]
        other = self.models.challenger(first.model)
        if other is not None and other.version == first.version:  # a canary's reply is compared with the champion
            other = self.models.champion(first.model)
        if other is None or other.version == first.version:
            return
        chosen = [one for one in predictions if int(one.id[:8], 16) < self.settings.shadow * 2**32]
        if not chosen:
            return
        if len(self.shadows) >= SHADOWS or self.models.busy():
            self.skipped += 1
            return
        task = asyncio.create_task(self._shadow(other, chosen))
        self.shadows.add(task)
        task.add_done_callback(self.shadows.discard)

    async def close(self) -> None:
        """Write down what was taken."""
        for task in (*self.shadows, *([self._checking] if self._checking else [])):
            task.cancel()
        await asyncio.to_thread(self.writer.close)
        if self._store:
            self._store.close()

    async def feedback(self, labels: Sequence[Feedback]) -> list[dict[str, Any]]:
        """Write labels; when it returns they are on disk.

        Raises:
            LiveStoreError: None was written.
        """
        received = await asyncio.wrap_future(self.writer.feedback(labels))
        self._labelled = time.time()
        return [{"id": one.id, "outcome": one.outcome, "matched": one.matched} for one in received]

    async def status(self, name: str | None, fresh_s: float = FRESH_S) -> Status | None:
        """What is known of a model, at most some seconds old; None where no such model is open.

        Raises:
            LiveStoreError: The store cannot be read.
        """
        model = self.models.champion(name)
        if model is None:
            return None
        async with self._looking:
            known = self.seen.get(model.name)
            age = time.time() - known.time if known else fresh_s
            outdated = known is None or known.version != model.version or known.time < self._labelled
            if known and known.time < self._labelled and age < LEAST_S:
                await asyncio.sleep(LEAST_S - age)  # labels may come all the time; a look costs up to a second
            if outdated or age >= fresh_s:
                challenger = self.models.challenger(model.name)
                self.seen[model.name] = await asyncio.to_thread(self._status, model, challenger)
            return self.seen[model.name]

    def _status(self, model: Service, challenger: Service | None) -> Status:
        sides = [Served(one.version, one.bundle) if one else None for one in (model, challenger)]
        champion, other = sides
        assert champion is not None
        return status(
            self._opened(),
            champion,
            name=model.name,
            now=time.time(),
            challenger=other,
            previous=self.models.previous(model.name),
            days=self.settings.days,
        )

    def _note(self, check: Check) -> None:
        self._opened().check(check)

    def _opened(self) -> Store:
        self._store = self._store or Store(self.url)
        return self._store

    def _kept(self, one: Prediction, *, served: bool, row: str | None = None, at: float | None = None) -> Kept:
        task = self.models.champion(one.model)
        texts = texts_in(one.row, task.task.inputs if task else ())
        return Kept(
            id=row or one.id,
            time=one.time if at is None else at,
            name=one.model,
            version=one.version,
            prediction=said_in(one.answer),
            scores=one.scores,
            input_hash=hash_of(one.row),
            length=one.length,
            served=served,
            words=words_of(texts) if texts else None,
            latency_ms=one.latency_ms,
            inputs=redact_row(one.row) if self.settings.keep_inputs and served else None,
        )

    async def _shadow(self, other: Service, chosen: Sequence[Prediction]) -> None:
        try:
            answered = await other.predict([one.row for one in chosen])
        except Busy:
            self.skipped += 1
            return
        except Exception:
            # Nobody waits for it: whatever goes wrong with a challenger, the reply was sent.
            log.exception("version %s could not answer as a challenger", other.version)
            return
        # Rows that it refuses are missing; the others hold the row that they answer.
        rows = {id(one.row): one for one in chosen}
        pairs = [(one, rows[id(one.row)]) for one in answered.predictions]
        self.writer.record(lambda: [self._kept(one, served=False, row=to.id, at=to.time) for one, to in pairs])

    async def _check(self) -> None:
        """Every now and then: run golden rows, write down how that went, and look at the scores for Prometheus."""
        while True:
            await asyncio.sleep(self.settings.check_s)
            model = self.models.champion(None)
            if model is None:
                continue
            for one in (model, self.models.challenger(model.name)):
                if one is None:
                    continue
                check = Check(one.name, one.version, time.time(), await self.models.problem(one))
                with suppress(PmrayError):  # the writer has already said that the store is away
                    await asyncio.to_thread(self._note, check)
            with suppress(PmrayError):
                await self.status(None, fresh_s=GAUGES * self.settings.check_s)


class _Gauges:
    """What Prometheus alerts on: the last status, no older than the endpoint's checks are apart."""

    def __init__(self, keeper: Scorekeeper) -> None:
        self.keeper = keeper

    def collect(self) -> Iterator[Metric]:
        """One family a gauge."""
        yield GaugeMetricFamily(
            "pmray_live_waiting", "Predictions that are not yet in the live store.", self.keeper.writer.waiting
        )
        yield GaugeMetricFamily(
            "pmray_live_dropped", "Predictions that never came into the live store.", self.keeper.writer.dropped
        )
        yield GaugeMetricFamily(
            "pmray_live_shadows_skipped", "Requests that no challenger answered.", self.keeper.skipped
        )
        yield GaugeMetricFamily(
            "pmray_live_store_up", "0 where the live store failed last.", float(self.keeper.writer.failure is None)
        )
        yield from _families(list(self.keeper.seen.values()))


def _families(seen: Sequence[Status]) -> Iterator[Metric]:
    score = GaugeMetricFamily("pmray_live_score", "Score on labels.", labels=["model", "version", "metric", "end"])
    drift = GaugeMetricFamily("pmray_live_drift", "Effect of a change, 0 to 1.", labels=["model", "what"])
    alert = GaugeMetricFamily("pmray_live_alert", "1 for each that holds.", labels=["model", "alert"])
    coverage = GaugeMetricFamily("pmray_live_coverage", "Share of predictions with a label.", labels=["model"])
    lag = GaugeMetricFamily("pmray_live_label_lag_seconds", "Median wait for a label.", labels=["model"])
    for found in seen:
        kinds = {
            "live": found.score,
            "promised": found.promised,
            "estimate": found.estimate.score if found.estimate else None,
        }
        for kind, one in kinds.items():
            for end in ("value", "low", "high") if one else ():
                score.add_metric([found.name, found.version, found.metric, f"{kind}_{end}"], getattr(one, end))
        for shift in found.drift:
            drift.add_metric([found.name, shift.what], shift.effect)
        for name in found.alerts:
            alert.add_metric([found.name, name], 1)
        coverage.add_metric([found.name], found.coverage)
        if found.lag:
            lag.add_metric([found.name], found.lag.median_s)
    yield from (score, drift, alert, coverage, lag)


FEEDBACK = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": f"^{ID.pattern}$"},
        "label": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "time": {
            "anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}],
            "description": "When the label was given; of contradictory ones the latest counts. By default now.",
        },
    },
    "required": ["id", "label"],
    "additionalProperties": False,
}


def build_router(keeper: Scorekeeper, models: Models, *, max_rows: int) -> APIRouter:
    """Make the routes of the live score.

    Args:
        keeper: Keeps it.
        models: The endpoint.
        max_rows: Labels in one request.
    """
    router = APIRouter()

    def refused(*statuses: int) -> dict[int | str, dict[str, Any]]:
        content = {"application/json": {"schema": ERROR}}
        told = {404: "No such model is served here.", **REFUSALS}
        return {one: {"description": told[one], "content": content} for one in statuses}

    bulk = {"type": "array", "minItems": 1, "items": FEEDBACK}
    body = {"anyOf": [FEEDBACK, {"type": "object", "properties": {"feedback": bulk}, "required": ["feedback"]}]}
    example = {"feedback": [{"id": "6f0c0d6f2f0b4f3c8a37c5d6f8b1a2e4", "label": "positive"}]}
    content = {"application/json": {"schema": body, "example": example}}

    @router.post(
        "/v1/feedback",
        responses=refused(400, 401, 403, 408, 413, 415, 422, 503),
        openapi_extra={"requestBody": {"required": True, "content": content}},
    )
    async def feedback(request: Request, model: str | None = Query(None, description="Whose labels; default")) -> Any:
        """Take the true label of a row that was predicted, or of many. What is acknowledged is on disk."""
        told = await read_json(request)
        served = models.champion(model)
        if served is None:
            raise HTTPException(422, f"model: {str(model)[:80]!r} is not served here")
        several = isinstance(told, dict) and "feedback" in told
        given = told["feedback"] if several else [told]
        if not isinstance(given, list) or not given:
            raise HTTPException(422, "feedback: an array with one label or more is expected; see /docs for the form")
        if len(given) > max_rows:
            raise HTTPException(413, f"a request may have {max_rows} labels, this has {len(given)}")
        now = time.time()
        read = [read_feedback(one, served.task, now) for one in given]
        if not several and isinstance(read[0], str):
            raise HTTPException(422, read[0])
        good = [one for one in read if isinstance(one, Feedback)]
        try:
            answers = iter(await keeper.feedback(good) if good else ())
        except LiveStoreError as error:
            log.warning("labels were refused: %s", error)
            raise HTTPException(
                503, "the live store cannot be reached; nothing was kept, send it again", {"retry-after": "5"}
            ) from None
        received = [next(answers) if isinstance(one, Feedback) else {"error": one} for one in read]
        return json_response({"received": received} if several else received[0])

    @router.get("/v1/live", responses=refused(401, 403, 404, 422, 503))
    async def live(model: str | None = Query(None, description="Default: the model of /v1/predict")) -> Response:
        """The score on labels that came, beside the promised one; drift; champion and challenger."""
        try:
            found = await keeper.status(model)
        except LiveStoreError as error:
            log.warning("the live score cannot be told: %s", error)
            raise HTTPException(503, "the live store cannot be read", {"retry-after": "5"}) from None
        if found is None:
            raise HTTPException(404, f"model: {str(model)[:80]!r} is not served here")
        return json_response(found.to_json())

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        """The page for people."""
        problem, found = None, None
        try:
            found = await keeper.status(None)
        except LiveStoreError as error:
            log.warning("the page has no live score: %s", error)
            problem = "The live store cannot be read; predictions wait for it."
        return shown(models, found, problem)

    return router


def plain_router(models: Models) -> APIRouter:
    """The page, and one clear answer at the other routes, of an endpoint without a live store."""
    router = APIRouter()

    @router.post("/v1/feedback", include_in_schema=False)
    @router.get("/v1/live", include_in_schema=False)
    async def none() -> Response:
        raise HTTPException(404, NO_STORE)

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> Response:
        return shown(models, None, NO_STORE)

    return router


def shown(models: Models, found: Status | None, problem: str | None) -> Response:
    """The page, with headers that let it run its own script and nothing else."""
    model = models.champion(None)
    if model is None:
        raise HTTPException(503, "no model is open yet", {"retry-after": "1"})
    nonce = secrets.token_urlsafe(16)
    html = render(
        found,
        facts={"name": model.name, "version": model.version, "settings": model.bundle.settings},
        example=json.dumps(model.task.row_schema()["examples"][0], ensure_ascii=False),
        serving=models.told(),
        nonce=nonce,
        problem=problem,
    )
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'"
    headers = {"content-security-policy": f"{policy}; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"}
    return HTMLResponse(html, headers={**headers, "cache-control": "no-store", "referrer-policy": "no-referrer"})


def read_feedback(given: Any, task: Task, now: float) -> Feedback | str:
    """A label as it was sent, or why it cannot be taken.

    >>> read_feedback({"id": "a b", "label": "spam"}, None, 0.0)
    '`id` must be the id of a prediction: letters, digits, _ and -, at most 64'
    """
    if not isinstance(given, dict):
        return "a label must be an object with `id` and `label`"
    if more := sorted(set(given) - {"id", "label", "time"}):
        return f"{str(more[0])[:80]!r} is not known; a label has `id`, `label` and perhaps `time`"
    if not isinstance(given.get("id"), str) or not ID.fullmatch(given["id"]):
        return "`id` must be the id of a prediction: letters, digits, _ and -, at most 64"
    if "label" not in given:
        return "`label` is missing"
    if problem := label_problem(task, given["label"]):
        return f"`label`: {problem}"
    at = _seconds(given.get("time", now))
    if at is None or not 0 <= at <= now + FUTURE_S:
        return "`time` must be seconds since 1970 or ISO 8601, and not in the future"
    return Feedback(given["id"], given["label"], at)


def _seconds(given: Any) -> float | None:
    if isinstance(given, bool):
        return None
    if isinstance(given, int | float):
        return float(given)
    with suppress(ValueError, TypeError, OverflowError):
        return datetime.fromisoformat(given).timestamp()
    return None
