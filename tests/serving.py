"""An endpoint's routes over a bundle in this process: no Ray, no network."""

import asyncio

import httpx
import pytest

from pmray.bundle import open_bundle
from pmray.serving.batching import Batcher
from pmray.serving.guard import Limits
from pmray.serving.http import build_http
from pmray.serving.keys import Keys
from pmray.serving.metrics import ServingMetrics
from pmray.serving.scorer import Scorer
from pmray.serving.service import Service


class OneModel:
    """What the routes ask for, with one model."""

    def __init__(self, folder, *, max_rows=100, max_characters=10_000, max_wait_s=60.0, max_batch_rows=16):
        scorer = Scorer(open_bundle(folder))
        scorer.reader.max_characters = max_characters
        self.scorer = scorer
        self.batches = []

        async def run(inputs):
            return await asyncio.to_thread(scorer._scores, inputs)

        batcher = Batcher(
            run,
            max_rows=max_batch_rows,
            max_tokens=4096,
            max_wait_s=max_wait_s,
            told=lambda rows, tokens, seconds: self.batches.append((rows, tokens)),
        )
        self.default = Service("tiny", "1", scorer.reader, batcher, max_rows=max_rows)

    def names(self):
        return ["tiny"]

    async def named(self, name):
        return self.default if name == "tiny" else None

    def routed(self, service):
        return service

    async def health(self):
        return self.scorer.health()


def served_app(models, *, keys=None, recorder=None, routers=(), **limits):
    """The ASGI application of a model; `limits` change those of a small endpoint."""
    all_limits = {"max_body": 2**20, "max_upload": 2**20, "max_rows": 100, "timeout_s": 30.0, **limits}
    return build_http(
        models, Limits(**all_limits), Keys(keys or {}), ServingMetrics(), recorder=recorder, routers=routers
    )


def asked(app, *requests, **client):
    """Replies to (method, path, options), one after the other."""

    async def ask():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", **client) as one:
            return [await one.request(method, path, **options) for method, path, options in requests]

    return asyncio.run(ask())


def assert_close(first, second, path=""):
    """Equal in all but the last digits of their fractions."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        for key in first:
            assert_close(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list):
        assert_close(dict(enumerate(first)), dict(enumerate(second)), path)
    elif isinstance(first, float):
        assert first == pytest.approx(second, abs=1e-3), path
    else:
        assert first == second, path
