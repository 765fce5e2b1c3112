"""A bundle behind HTTP on Ray Serve: predict, evaluate, model facts, health."""

# No `from __future__ import annotations` here: Serve ships the class below by value, and FastAPI then could not look up
# the names of its request models.

import asyncio
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version as version_of
from typing import Any, Self
from uuid import uuid4

import httpx
import pyarrow as pa
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from ray import serve

from pmray.bundle import open_bundle
from pmray.distributed.cluster import connected
from pmray.errors import EndpointError, SpecError
from pmray.evaluation import evaluate_scores
from pmray.predictors import resolve
from pmray.scoring.ragged import stacked
from pmray.serving.scorer import Answer, Refused, Scorer
from pmray.spec import Serve

MAX_BODY_BYTES = 32 * 2**20
BATCH_WAIT_S = 0.005
"""How long a request waits for company; a single-row forward of a small encoder takes 5 to 10 ms."""

START_TIMEOUT_S = 180

log = logging.getLogger("ray.serve")

app = FastAPI(
    title="pmray endpoint",
    version=version_of("pmray"),
    description="A fine-tuned model. A row is an object with the fields that `GET /v1/model` lists under `fields`.",
)


class Rows(BaseModel):
    """Rows to answer."""

    rows: list[dict[str, Any]] = Field(min_length=1, examples=[[{"text": "great value, and it arrived early ."}]])


class LabelledRows(BaseModel):
    """Rows with their true labels."""

    rows: list[dict[str, Any]] = Field(
        min_length=1, examples=[[{"text": "great value, and it arrived early .", "label": "positive"}]]
    )


class Predictions(BaseModel):
    """Answers in the order of the rows."""

    model: dict[str, str] = Field(examples=[{"name": "reviews", "version": "3"}])
    predictions: list[dict[str, Any]] = Field(
        description="`id`, `label` (or `labels`) and `scores` of each row; or `id` and `error` of a row that cannot be "
        "answered, which never fails its neighbours.",
        examples=[[{"id": "6f0c", "label": "positive", "scores": {"negative": 0.02, "positive": 0.98}}]],
    )


@app.exception_handler(RequestValidationError)
async def _malformed(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return JSONResponse({"error": f"{where}: {first['msg'].lower()}; see /docs for the form"}, status_code=422)


@app.exception_handler(HTTPException)
async def _refused(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


@app.middleware("http")
async def _bounded(request: Request, call_next: Any) -> Any:
    """Refuse huge bodies unread; let no stack trace out."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > MAX_BODY_BYTES:
        return JSONResponse({"error": f"a body may have {MAX_BODY_BYTES} bytes, this has {length}"}, status_code=413)
    try:
        return await call_next(request)
    except Exception:
        log.exception("a request failed")
        return JSONResponse({"error": "the server failed on this request; its log says why"}, status_code=500)


def _rows_in(batch: Sequence[Sequence[dict[str, Any]]]) -> int:
    """Size of a batch of requests; one request alone always fits, since the scorer cuts it into forward passes."""
    return 1 if len(batch) == 1 else sum(len(rows) for rows in batch)


def _label(value: Any, position: int, known: Sequence[str]) -> Any:
    """A row's label or labels as text, or a 422 that names the row.

    It stands before the class: Serve takes along only what was there when it saw the class.
    """
    labels = [str(one) for one in value] if isinstance(value, list) else [str(value)]
    unknown = [one for one in labels if one not in known]
    if value is None or unknown:
        found = "is missing" if value is None else f"{unknown[0]!r} is not one of: {', '.join(known)}"
        raise HTTPException(422, f"rows.{position}.label: {found}")
    return labels if isinstance(value, list) else labels[0]


@serve.deployment
@serve.ingress(app)
class Endpoint:
    """One replica: a scorer, and requests put together into batches."""

    def __init__(self, folder: str, version: str, limits: dict[str, int]) -> None:
        import torch

        # Ray sets OMP_NUM_THREADS to the replica's CPUs; torch reads it only at its first import in a process.
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        self.scorer = Scorer(open_bundle(folder))
        self.version, self.limits = version, limits
        if problem := self.scorer.health():
            raise RuntimeError(problem)
        self.batched.set_max_batch_size(limits["max_batch_rows"])

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=BATCH_WAIT_S, batch_size_fn=_rows_in)
    async def batched(self, requests: list[list[dict[str, Any]]]) -> list[list[Answer | Refused]]:
        """Answer the rows of several requests in as few forward passes as the token budget allows."""
        together = [row for rows in requests for row in rows]
        # In a thread: the event loop goes on accepting requests.
        answers = iter(await asyncio.to_thread(self.scorer, together))
        return [[next(answers) for _ in rows] for rows in requests]

    @app.post("/v1/predict", response_model=Predictions)
    async def predict(self, body: Rows) -> dict[str, Any]:
        """Answer every row."""
        self._count(body.rows)
        answers = await self.batched(body.rows)
        predictions = [
            {"id": uuid4().hex, **({"error": one.error} if isinstance(one, Refused) else one.values)} for one in answers
        ]
        return {"model": {"name": self.scorer.bundle.name, "version": self.version}, "predictions": predictions}

    @app.post("/v1/evaluate")
    async def evaluate(self, body: LabelledRows) -> dict[str, Any]:
        """Score the model on labelled rows, with intervals; equal to ``pmray evaluate``."""
        self._count(body.rows)
        task = self.scorer.task
        labels = [_label(row.get("label"), position, task.labels) for position, row in enumerate(body.rows)]
        answers = await self.batched(
            [{key: value for key, value in row.items() if key != "label"} for row in body.rows]
        )
        good = [position for position, one in enumerate(answers) if isinstance(one, Answer)]
        refused = [
            {"row_id": str(position), "error": one.error}
            for position, one in enumerate(answers)
            if isinstance(one, Refused)
        ]
        if not good:
            raise HTTPException(422, f"no row could be answered; row 0: {refused[0]['error']}")
        table = pa.table(
            {"row_id": [str(position) for position in good], "label": [labels[position] for position in good]}
        )
        scores = stacked([one.scores for one in answers if isinstance(one, Answer)])
        for position, row in zip(good, scores, strict=True):
            if row.ndim > 1 and len(row) != len(labels[position]):
                raise HTTPException(
                    422, f"rows.{position}.label: {len(labels[position])} tags, but the row has {len(row)} words"
                )
        metric = str(self.scorer.bundle.settings["metric"])
        found = await asyncio.to_thread(
            evaluate_scores, task, metric, table, scores, source=self.scorer.bundle.name, refused=refused
        )
        return found.to_json()

    @app.get("/v1/model")
    async def model(self) -> dict[str, Any]:
        """What is served: task, promised score, recipe, origin, limits."""
        settings = self.scorer.bundle.settings
        facts = {"name": self.scorer.bundle.name, "version": self.version, "fields": list(self.scorer.task.inputs)}
        return {**facts, "max_rows": self.limits["max_rows"], "settings": dict(settings)}

    @app.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Run a few rows with known answers, and compare."""
        if problem := await asyncio.to_thread(self.scorer.health):
            raise HTTPException(503, problem)
        return {"status": "healthy"}

    @app.get("/readyz")
    async def readyz(self) -> dict[str, str]:
        """Answer: the model is loaded and passed its health check."""
        return {"status": "ready"}

    def _count(self, rows: Sequence[Any]) -> None:
        if len(rows) > self.limits["max_rows"]:
            raise HTTPException(413, f"a request may have {self.limits['max_rows']} rows, this has {len(rows)}")


@dataclass
class Deployed:
    """A running endpoint; closing it (or leaving its ``with`` block) ends it."""

    url: str
    _stack: ExitStack

    def close(self) -> None:
        """End the endpoint, and the cluster if it was started for it."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def build_app(folder: str, settings: Serve, version: str) -> serve.Application:
    """Make the Serve application of a bundle.

    Args:
        folder: Of the bundle; every node must see it.
        settings: Replicas, resources and limits.
        version: Shown by the endpoint.
    """
    low, high = settings.replicas if isinstance(settings.replicas, tuple) else (settings.replicas,) * 2
    scale = (
        {"num_replicas": low}
        if low == high
        else {"autoscaling_config": {"min_replicas": low, "max_replicas": high, "target_ongoing_requests": 16}}
    )
    limits = {key: getattr(settings, key) for key in ("max_rows", "max_batch_rows")}
    return Endpoint.options(  # type: ignore[attr-defined]
        **scale,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        # Serve admits 5 requests per replica unless told otherwise (ray 2.60), so a batch would never fill: one batch
        # runs while the next one gathers.
        max_ongoing_requests=2 * settings.max_batch_rows,
        # More than this wait in vain: they get a 503 at once.
        max_queued_requests=8 * settings.max_batch_rows,
        # A broken bundle stays broken.
        max_constructor_retry_count=1,
    ).bind(folder, version, limits)


def deploy(
    model: str,
    *,
    serve_spec: Serve | None = None,
    registry: str | None = None,
    address: str | None = None,
    no_auth: bool = False,
) -> Deployed:
    """Serve a bundle and return when it answers.

    Args:
        model: Bundle folder, or ``NAME[@alias]`` in the registry.
        serve_spec: Host, port, replicas and limits.
        registry: MLflow tracking URI, for names.
        address: Of a Ray cluster; by default this machine.
        no_auth: Listen beyond this machine although anybody may then ask.

    Raises:
        DataError: The folder is not a bundle.
        RegistryError: There is no such model.
        EndpointError: The port is taken, or the model does not start.
        SpecError: A host beyond this machine without `no_auth`.
    """
    settings = serve_spec or Serve()
    if not _is_loopback(settings.host) and not no_auth:
        raise SpecError(
            f"serve.host is {settings.host}, which others can reach, and the endpoint asks nobody for a key; "
            "use 127.0.0.1, or say --no-auth."
        )
    folder, version = resolve(model, registry)
    port = settings.port or _free_port(settings.host)
    _check_free(settings.host, port)
    stack = ExitStack()
    try:
        stack.enter_context(connected(address))
        stack.callback(_stop_serving)
        log.setLevel(logging.ERROR)
        serve.start(http_options={"host": settings.host, "port": port}, logging_config={"log_level": "ERROR"})
        serve.run(build_app(str(folder), settings, version), name="pmray", logging_config={"log_level": "ERROR"})
        url = f"http://{'127.0.0.1' if settings.host in ('0.0.0.0', '::') else settings.host}:{port}"
        _wait_ready(url)
    except RuntimeError as error:
        stack.close()
        raise EndpointError(f"{folder} could not be served: {str(error).strip()[-500:]}") from None
    except BaseException:
        stack.close()
        raise
    return Deployed(url, stack)


def _stop_serving() -> None:
    """End the endpoint; and Ray Serve with it, unless it serves other people's applications on a shared cluster.

    Serve keeps the address that it was started with: the next endpoint may want another.
    """
    serve.delete("pmray")
    if not serve.status().applications:
        serve.shutdown()


def _wait_ready(url: str) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise EndpointError(
        f"{url} did not answer within {START_TIMEOUT_S} s; where Ray Serve was already running on this cluster, it "
        "listens where it was told to then, so name that host and port"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EndpointError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another --port, or 0"
            ) from None
