"""A bundle behind HTTP on Ray Serve. What is asked and answered is in ``http``; here it meets Ray.

Two deployments: ``Ingress`` speaks HTTP, reads rows and makes batches; ``Model`` computes, in processes of its own, to
which batches travel as Arrow tables. Or ``Ingress`` alone, which computes in a thread: a call from process to process
takes some milliseconds, and the interpreter lock, which the event loop needs, is free during most of a forward pass
(tests/bench/RESULTS.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
from fastapi import APIRouter
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send

from pmray.bundle import GOLDEN_TOLERANCE, open_bundle
from pmray.errors import PmrayError, RegistryError
from pmray.live import status as live
from pmray.live.store import default_url
from pmray.registry import CHALLENGER, PREVIOUS
from pmray.serving.arguments import (
    Arguments,
    Served,
    all_served,
    check_access,
    follows,
    is_separate,
    limits_of,
    replicas_of,
    served,
)
from pmray.serving.batching import Batcher
from pmray.serving.http import build_http
from pmray.serving.keys import Keys
from pmray.serving.live import Scorekeeper, build_router, plain_router
from pmray.serving.metrics import ServingMetrics
from pmray.serving.precision import Chosen, open_weights
from pmray.serving.recording import Recorder
from pmray.serving.scorer import Reader, golden_problem
from pmray.serving.service import Service
from pmray.spec import Serve

SHADOW_WAIT_S = 0.1
"""A challenger answers nothing unseen while requests would wait longer than this."""

ATTEMPTS = 3
"""Times that a batch is tried when a process of the model is lost under it."""

log = logging.getLogger("ray.serve")


def _model_class(models_at_a_time: int) -> type:
    """The class of the model's processes; how many models each holds is fixed when it is made."""

    class Model:
        """One process that computes: several models, one batch at a time."""

        def __init__(self, arguments: dict[str, Any]) -> None:
            self.arguments = Arguments.model_validate(arguments)
            self.thread = ThreadPoolExecutor(1)
            """Forward passes run here, one after the other; the event loop goes on receiving batches."""
            _use_cpus()
            first = served(self.arguments.model[0], self.arguments.registry)
            # Before the process counts as ready: no request waits for weights.
            self.first = {str(first.folder): _open_weights(str(first.folder), self.arguments.serve)}

        @serve.multiplexed(max_num_models_per_replica=models_at_a_time)
        async def weights(self, folder: str) -> Chosen:
            """The weights of a bundle; those used longest ago make room."""
            if folder in self.first:
                return self.first.pop(folder)
            return await asyncio.to_thread(_open_weights, folder, self.arguments.serve)

        async def prepare(self, folder: str) -> tuple[float, dict[str, Any]]:
            """Open a bundle's weights, warm; returns rows per second of a batch, and what was measured."""
            chosen: Chosen = await self.weights(folder)
            return chosen.rows_per_second, chosen.to_json()

        async def scores(self, folder: str, inputs: pa.Table) -> NDArray[Any]:
            """Score vectors of model inputs, shape (rows, labels) or ragged, in their order."""
            chosen: Chosen = await self.weights(folder)
            return await asyncio.get_running_loop().run_in_executor(self.thread, chosen.weights.scores, inputs)

    return Model


@serve.deployment
@serve.ingress()
class Ingress:
    """One process that speaks HTTP; it is what the routes ask for (``http.Models``)."""

    def __init__(self, arguments: dict[str, Any], model: DeploymentHandle | None) -> None:
        self.arguments = Arguments.model_validate(arguments)
        self.settings = self.arguments.serve
        self.keys = Keys(os.environ)
        check_access(self.settings.host, self.keys, no_auth=self.arguments.no_auth)
        self.model = model
        self.metrics = ServingMetrics()
        self.known = all_served(self.arguments.model, self.arguments.registry)
        self.first = next(iter(self.known))
        self.services: dict[str, Service] = {}
        self.opening = asyncio.Lock()
        self.local: dict[str, Chosen] = {}
        self.thread = ThreadPoolExecutor(1)
        self.challengers: dict[str, Service] = {}
        """Name of a model -> the version that is compared with the one that is served."""
        self.before: dict[str, live.Served] = {}
        """Name of a model -> the version that was served before."""
        self.keeper = self._scorekeeper()
        self.recorder: Recorder | None = self.keeper
        router = build_router(self.keeper, self, max_rows=self.settings.max_rows) if self.keeper else plain_router(self)
        self.routers: Sequence[APIRouter] = (router,)
        self.following: asyncio.Task[None] | None = None
        self.http: ASGIApp | None = None
        if model is None:
            _use_cpus()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Serve sends requests to; the application behind it changes with the model."""

        async def current(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await self._live(receive, send)
            elif self.http is not None:
                await self.http(scope, receive, send)

        return current

    @property
    def default(self) -> Service:
        """The model of ``/v1/predict``."""
        return self.services[self.first]

    def names(self) -> Sequence[str]:
        """Of all models that are served."""
        return list(self.known)

    async def named(self, name: str) -> Service | None:
        """The model of that name, opened if need be; None where there is none."""
        # Looked up among those that were named at the start: what a request says never becomes a path.
        if name not in self.known:
            return None
        if name not in self.services:
            async with self.opening:
                if name not in self.services:
                    await self._open(self.known[name])
        return self.services[name]

    def champion(self, name: str | None) -> Service | None:
        """The version that answers under a name, or the default model."""
        return self.services.get(self.first if name is None else name)

    def challenger(self, name: str) -> Service | None:
        """The version that is compared with it; None where there is none."""
        return self.challengers.get(name)

    def previous(self, name: str) -> live.Served | None:
        """The version that was served before."""
        return self.before.get(name)

    def routed(self, service: Service) -> Service:
        """Who answers a request to a model: itself, or by the canary's weight its challenger."""
        return self.keeper.routed(service) if self.keeper else service

    def busy(self) -> bool:
        """Whether requests wait for the model, so that nobody answers unseen."""
        return self.default.batcher.expected_wait() > SHADOW_WAIT_S

    def told(self) -> Mapping[str, str]:
        """How the model computes, latency and batch fill, in words."""
        how = self.default.serving
        runtime = {"onnx": "ONNX Runtime"}.get(how["runtime"], how["runtime"])
        return {"computed by": f"{runtime}, {how['precision']}", **self.metrics.told()}

    async def health(self) -> str | None:
        """Run the golden rows of the default model; None when all is as it was at export, else what differs."""
        return await self.problem(self.default)

    async def problem(self, service: Service) -> str | None:
        """Run the golden rows of a version; None when all is as it was at export, else what differs."""
        golden = service.bundle.golden()
        read = await asyncio.to_thread(service.task.encode, golden, service.reader.processor, service.bundle.max_length)
        try:
            found = await self._scores(str(service.bundle.folder), read)
        except Exception:
            log.exception("golden rows could not be run")
            return "the model does not answer"
        return golden_problem(found, golden, max(GOLDEN_TOLERANCE, self.settings.max_difference))

    async def _live(self, receive: Receive, send: Send) -> None:
        """Serve's start and end of this process."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self._open(self.known[self.first])
                except Exception as error:
                    log.exception("the endpoint does not start")
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                if self.settings.follow_s is not None and any(map(follows, self.known.values())):
                    self.following = asyncio.create_task(self._follow(self.settings.follow_s))
                if self.keeper:
                    self.keeper.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                if self.following:
                    self.following.cancel()
                if self.recorder:
                    await self.recorder.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _open(self, one: Served) -> None:
        """Open a model, warm; then let it take the place of the version that had its name. Nobody waits for it."""
        service = await self._service(one)
        example = (await service.predict(service.task.row_schema()["examples"])).body
        if before := self.services.get(one.name):
            self.metrics.info.remove(before.name, before.version)
            if before.bundle.folder != one.folder:
                # Not yet: it still answers what it was asked.
                asyncio.get_running_loop().call_later(self.settings.timeout_s, self._close, str(before.bundle.folder))
        self.services[one.name], self.known[one.name] = service, one
        self.metrics.info.labels(one.name, one.version).set(1)
        if one.name == self.first:
            self.http = build_http(
                self, limits_of(self.arguments, self.keys), self.keys, self.metrics,
                recorder=self.recorder, routers=self.routers, example=example,
            )  # fmt: skip

    def _close(self, folder: str) -> None:
        """Let go of a version's weights, unless it is served again. Processes of the model do so by themselves."""
        used = (*self.services.values(), *self.challengers.values())
        if folder not in {str(one.bundle.folder) for one in used}:
            self.local.pop(folder, None)

    async def _service(self, one: Served) -> Service:
        folder = str(one.folder)
        bundle = await asyncio.to_thread(open_bundle, folder)
        processor = await asyncio.to_thread(bundle.task.processor, folder)
        rate, measured = await self._prepare(folder)
        reader = Reader(bundle, processor, max_characters=self.settings.max_characters)
        batcher = self._batcher(one.name, folder, rate)
        return Service(one.name, one.version, reader, batcher, max_rows=self.settings.max_rows, serving=measured)

    def _scorekeeper(self) -> Scorekeeper | None:
        settings = self.settings.live
        url = settings.store or default_url(self.arguments.registry)
        return Scorekeeper(url, settings, self, self.metrics.registry) if settings.enabled and url else None

    async def _look_beside(self, one: Served) -> None:
        """Open the version that the registry calls challenger, or let go of the one that it does so no more; and note
        which version it would go back to.
        """
        found, before = await asyncio.gather(*(self._beside(one.name, alias) for alias in (CHALLENGER, PREVIOUS)))
        if before is None:
            self.before.pop(one.name, None)
        else:
            self.before[one.name] = live.Served(before.version, await asyncio.to_thread(open_bundle, before.folder))
        now = self.challengers.get(one.name)
        if found is None or found.version == self.known[one.name].version:
            self.challengers.pop(one.name, None)
        elif now is None or now.version != found.version:
            self.challengers[one.name] = await self._service(found)

    async def _beside(self, name: str, alias: str) -> Served | None:
        try:
            return await asyncio.to_thread(served, f"{name}@{alias}", self.arguments.registry)
        except RegistryError:
            return None

    def _batcher(self, name: str, folder: str, rate: float) -> Batcher:
        settings = self.settings
        # Where each process does all, it knows of itself alone.
        low, high = replicas_of(settings) if self.model else (1, 1)

        def told(rows: int, tokens: int, seconds: float) -> None:
            fill = max(rows / settings.max_batch_rows, min(1.0, tokens / settings.max_batch_tokens))
            self.metrics.batch(name, rows, tokens, seconds, fill)

        return Batcher(
            lambda inputs: self._scores(folder, inputs),
            max_rows=settings.max_batch_rows,
            max_tokens=settings.max_batch_tokens,
            max_wait_s=settings.max_wait_s,
            eager=low,
            most=2 * high,
            rate=rate * low,
            told=told,
        )

    async def _prepare(self, folder: str) -> tuple[float, dict[str, Any]]:
        """Let every process of the model open a bundle; rows per second of one of them, and what was measured."""
        if self.model is None:
            chosen = await asyncio.to_thread(_open_weights, folder, self.settings)
            self.local[folder] = chosen
            return chosen.rows_per_second, chosen.to_json()
        rate, measured = await self._asked("prepare", folder)
        if folder != str(self.known[self.first].folder):
            # All others too, before the first request comes.
            await self.model.broadcast("prepare", folder).results_async(return_exceptions=True)
        return rate, measured

    async def _scores(self, folder: str, inputs: pa.Table) -> NDArray[Any]:
        if self.model is None:
            run = self.local[folder].weights.scores
            return await asyncio.get_running_loop().run_in_executor(self.thread, run, inputs)
        scores: NDArray[Any] = await self._asked("scores", folder, inputs)
        return scores

    async def _asked(self, method: str, folder: str, *more: Any) -> Any:
        """Ask a process of the model; when one is lost, another: a forward pass can be repeated."""
        assert self.model is not None
        handle = self.model
        if folder != str(self.known[self.first].folder):
            # Those that have it open are asked first; the default model is open everywhere.
            handle = handle.options(multiplexed_model_id=folder)
        for attempt in range(ATTEMPTS):
            try:
                return await getattr(handle, method).remote(folder, *more)
            except PmrayError:
                raise
            except (RayError, RayServeException):
                if attempt == ATTEMPTS - 1:
                    raise
                log.warning("a batch is tried again", exc_info=True)
                await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError

    async def _follow(self, seconds: float) -> None:
        """Look for other versions under the names that are served, and let them in without a pause."""
        while True:
            for one in list(self.known.values()):
                if not follows(one):
                    continue
                try:
                    now = await asyncio.to_thread(served, one.reference, self.arguments.registry)
                    if now.version != one.version:
                        async with self.opening:
                            await self._open(now)
                    if self.keeper and one.name in self.services:
                        await self._look_beside(one)
                except Exception:
                    # A registry that is away for a while, or a version that does not open: what is served stays.
                    log.exception("%s stays at version %s", one.reference, one.version)
            await asyncio.sleep(seconds)


def application(arguments: Arguments | Mapping[str, Any]) -> serve.Application:
    """Make the Serve application; ``import_path: pmray.serving.app:application`` of a Serve config.

    Args:
        arguments: ``args`` of the config, with the keys of ``Arguments``.

    Raises:
        ValidationError: A key or value that does not exist.
    """
    # Serve would make the object itself, but cannot see through annotations that are text.
    arguments = Arguments.model_validate(arguments)
    settings = arguments.serve
    plain = arguments.model_dump(mode="json")
    low, high = replicas_of(settings)
    scale: dict[str, Any] = (
        {"num_replicas": low}
        if low == high
        # An ongoing request of the model is a batch: one runs and one waits while it is busy.
        else {"autoscaling_config": {"min_replicas": low, "max_replicas": high, "target_ongoing_requests": 1.5}}
    )
    compute = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
    # A broken bundle stays broken.
    common = {"max_constructor_retry_count": 1}
    model = None
    # A Serve config is for a cluster; ``deploy`` has decided before.
    separate = is_separate(settings, len(arguments.model), on_cluster=True)
    if separate:
        options = {"ray_actor_options": compute, "max_ongoing_requests": 4, **scale, **common}
        model = serve.deployment(_model_class(settings.models_at_a_time)).options(**options).bind(plain)
        compute = {"num_cpus": 0}
        scale = {"num_replicas": settings.ingress_replicas}
    # Who is to be refused is refused by the batcher, which knows how long the wait is. This only bounds memory.
    ongoing = max(256, 16 * settings.max_batch_rows)
    return Ingress.options(  # type: ignore[attr-defined]
        ray_actor_options=compute,
        max_ongoing_requests=ongoing,
        max_queued_requests=ongoing,
        # Another one speaks HTTP before this one ends. Not so the model's: where the machine is full, there would
        # never be room for it, and requests wait in the ingress until it has started again.
        max_surge_percent=100 if separate else 0,
        **scale,
        **common,
    ).bind(plain, model)


def _open_weights(folder: str, settings: Serve) -> Chosen:
    return open_weights(open_bundle(folder), settings.precision, settings.max_difference, settings.runtime)


def _use_cpus() -> None:
    """Let torch use the CPUs of this process: Ray says how many, but torch reads it only at its first import."""
    import torch

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
