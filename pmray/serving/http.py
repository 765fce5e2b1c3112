"""The routes of an endpoint, as an ASGI application of its own: any server can run it, and tests run it without one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version as version_of
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi_offline import FastAPIOffline
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import ASGIApp

from pmray.errors import DataError
from pmray.serving.bodies import FILE_KINDS, as_http, content_type, json_response, read_json, rows_of, uploaded
from pmray.serving.guard import Guard, Limits, add_error_pages
from pmray.serving.keys import Keys
from pmray.serving.metrics import ServingMetrics
from pmray.serving.recording import Recorder
from pmray.serving.schemas import described
from pmray.serving.service import Answered, Service

HEALTH_S = 5.0
"""How long an answer of /healthz holds: probes of many cost one run of the golden rows."""


By = Annotated[list[str], Query(description="Fields whose values are scored one by one.")]
Slices = Annotated[Literal["auto"] | None, Query(description="`auto`: look for the worst slices.")]
Columns = Annotated[list[str], Query(description="Of a file: ROLE=COLUMN, such as label=topic.")]


class Models(Protocol):
    """What the routes ask for."""

    @property
    def default(self) -> Service:
        """The model of ``/v1/predict``."""
        ...

    def names(self) -> Sequence[str]:
        """Of all models that are served."""
        ...

    def routed(self, service: Service) -> Service:
        """Who answers a request to a model: itself, or now and then its challenger."""
        ...

    async def named(self, name: str) -> Service | None:
        """The model of that name, opened if need be; None where there is none."""
        ...

    async def health(self) -> str | None:
        """Run the golden rows; None when all is as it was at export, else what differs."""
        ...


def build_http(
    models: Models,
    limits: Limits,
    keys: Keys,
    metrics: ServingMetrics,
    *,
    recorder: Recorder | None = None,
    routers: Sequence[APIRouter] = (),
    example: Mapping[str, Any] | None = None,
) -> ASGIApp:
    """Make the application.

    Args:
        models: What is served.
        limits: Of one request.
        keys: Who may ask.
        metrics: Are counted, and shown at ``/metrics``.
        recorder: Gets every prediction after its reply was sent.
        routers: More routes.
        example: The default model's answer to its task's example, for the documentation.
    """
    # As FastAPI, but /docs takes nothing from other hosts: many an endpoint's network reaches none.
    app = FastAPIOffline(
        title="pmray endpoint",
        version=version_of("pmray"),
        description="A fine-tuned model. A row that cannot be answered gets an `error` of its own, and never fails its "
        "neighbours.",
    )
    add_error_pages(app)
    checked: list[tuple[float, str | None]] = []

    async def found(name: str) -> Service:
        service = await models.named(name)
        if service is None:
            raise HTTPException(404, f"no model of that name is served here; known: {', '.join(models.names())}")
        return service

    async def predicted(service: Service, request: Request) -> Response:
        started = time.perf_counter()
        rows = rows_of(await read_json(request), limits.max_rows)
        # Before they are tokenized: to refuse must cost little when there is much to refuse.
        service.batcher.check(len(rows))
        service = models.routed(service)
        answered = await service.predict(rows)
        metrics.seconds.observe(time.perf_counter() - started)
        metrics.rows.labels(service.name, "answered").inc(len(answered.predictions))
        if refused := len(rows) - len(answered.predictions):
            metrics.rows.labels(service.name, "refused").inc(refused)
        return json_response(answered.body, after=_recorded(answered))

    def _recorded(answered: Answered) -> BackgroundTask | None:
        if recorder is None or not answered.predictions:
            return None
        return BackgroundTask(_record, recorder, answered)

    async def evaluated(
        service: Service, request: Request, by: Sequence[str], slices: Literal["auto"] | None, column: Sequence[str]
    ) -> Response:
        try:
            if content_type(request) in FILE_KINDS:
                async with uploaded(request, limits.max_upload) as file:
                    evaluation = await service.evaluate_file(file, _columns(column), by=by, slices=slices)
            else:
                rows = rows_of(await read_json(request), limits.max_rows)
                evaluation = await service.evaluate(rows, by=by, slices=slices)
        except DataError as error:
            raise as_http(error) from None
        return json_response(evaluation.to_json())

    @app.post("/v1/predict", **described("predict", models.default, example))
    async def predict(request: Request) -> Response:
        """Answer every row."""
        return await predicted(models.default, request)

    @app.post("/v1/evaluate", **described("evaluate", models.default))
    async def evaluate(
        request: Request,
        by: By = [],  # noqa: B006  (FastAPI copies it)
        slices: Slices = None,
        column: Columns = [],  # noqa: B006
    ) -> Response:
        """Score the model on labelled rows or on an uploaded file, as `pmray evaluate` does."""
        return await evaluated(models.default, request, by, slices, column)

    @app.get("/v1/model", **described("facts"))
    async def model() -> Response:
        """What is served: task, promised score, recipe, origin, limits."""
        return json_response(_facts(models.default, limits))

    @app.get("/v1/models", **described("list"))
    async def list_models() -> Response:
        """Names of all models that are served; the first is the one of `/v1/predict`."""
        return json_response({"models": list(models.names())})

    @app.get("/v1/models/{name}", **described("facts", named=True))
    async def named_model(name: str) -> Response:
        """The facts of one of several models."""
        return json_response(_facts(await found(name), limits))

    @app.post("/v1/models/{name}/predict", **described("predict", models.default, example, named=True))
    async def named_predict(name: str, request: Request) -> Response:
        """Answer every row by one of several models."""
        return await predicted(await found(name), request)

    @app.post("/v1/models/{name}/evaluate", **described("evaluate", models.default, named=True))
    async def named_evaluate(
        name: str,
        request: Request,
        by: By = [],  # noqa: B006
        slices: Slices = None,
        column: Columns = [],  # noqa: B006
    ) -> Response:
        """Score one of several models."""
        return await evaluated(await found(name), request, by, slices, column)

    @app.get("/healthz", **described("health"))
    async def healthz() -> Response:
        """Run a few rows with known answers, and compare."""
        if not checked or time.monotonic() - checked[0][0] > HEALTH_S:
            checked[:] = [(time.monotonic(), await models.health())]
        if problem := checked[0][1]:
            return json_response({"error": problem}, 503)
        return json_response({"status": "healthy"})

    @app.get("/readyz", **described("health"))
    async def readyz() -> Response:
        """Answer: the model is loaded and passed its health check."""
        return json_response({"status": "ready"})

    @app.get("/metrics", **described("metrics"))
    async def show_metrics() -> Response:
        """Counters and times of this process, for Prometheus."""
        metrics.waiting.set(models.default.batcher.expected_wait())
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    for router in routers:
        app.include_router(router)
    return Guard(app, keys=keys, limits=limits, told=metrics.request)


async def _record(recorder: Recorder, answered: Answered) -> None:
    recorder.record(answered.predictions)


def _facts(service: Service, limits: Limits) -> dict[str, Any]:
    return {
        "name": service.name,
        "version": service.version,
        "fields": list(service.task.inputs),
        "max_rows": limits.max_rows,
        "serving": dict(service.serving),
        "settings": dict(service.bundle.settings),
    }


def _columns(given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for one in given:
        role, equals, name = one.partition("=")
        if not equals:
            raise HTTPException(422, f"column: ROLE=COLUMN is expected, but got {one[:80]!r}")
        pairs[role] = name
    return pairs
