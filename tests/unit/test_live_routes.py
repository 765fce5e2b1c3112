"""Feedback, live score and page over HTTP: no Ray, no network."""

import asyncio
import json
import sqlite3
import time

import httpx
import pytest
from prometheus_client import generate_latest

from pmray.bundle import open_bundle
from pmray.live.store import Store
from pmray.serving.batching import Batcher
from pmray.serving.live import Scorekeeper, build_router, plain_router, read_feedback
from pmray.serving.metrics import ServingMetrics
from pmray.serving.scorer import Scorer
from pmray.serving.service import Service
from pmray.spec import Live
from tests.live import TASK
from tests.serving import OneModel, served_app
from tests.tiny import tiny_bundle, tiny_rows


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


class TwoVersions(OneModel):
    """A champion, and perhaps a challenger of other weights."""

    def __init__(self, folder, other=None):
        super().__init__(folder)
        self.keeper, self.other, self.waits = None, other, False

    def champion(self, name):
        return self.default if name in (None, "tiny") else None

    def challenger(self, name):
        return self.other

    def routed(self, service):
        return self.keeper.routed(service) if self.keeper else service

    def previous(self, name):
        return None

    async def problem(self, service):
        return "golden rows differ" if service is self.other else None

    def busy(self):
        return self.waits

    def told(self):
        return {"batch fill": "80 %"}


def challenger_of(folder):
    scorer = Scorer(open_bundle(folder))

    async def run(inputs):
        return await asyncio.to_thread(scorer._scores, inputs)

    return Service("tiny", "2", scorer.reader, Batcher(run, max_rows=16, max_tokens=4096, max_wait_s=60), max_rows=100)


def served(bundle, tmp_path, ask, *, challenger=False, **settings):
    """Run ``ask(client, keeper, models)`` against an endpoint; returns what it returns, and the store afterwards."""
    models = TwoVersions(bundle)
    url = f"sqlite:///{tmp_path}/live.db"

    async def run():
        if challenger:
            models.other = challenger_of(bundle)
        metrics = ServingMetrics()
        keeper = models.keeper = Scorekeeper(url, Live(**settings), models, metrics.registry)
        keeper.metrics = metrics
        app = served_app(models, recorder=keeper, routers=[build_router(keeper, models, max_rows=100)])
        transport = httpx.ASGITransport(app=app)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                found = await ask(client, keeper, models)
            while keeper.shadows:
                await asyncio.sleep(0.01)
        finally:
            await keeper.close()
        return found

    return asyncio.run(run()), Store(url)


async def predicted(client, count, seed=0):
    rows = tiny_rows(count, seed)
    reply = await client.post("/v1/predict", json={"rows": [{"text": row["text"]} for row in rows]})
    return [one["id"] for one in reply.json()["predictions"]], [row["label"] for row in rows]


def test_predictions_and_labels_meet_in_the_live_score(bundle, tmp_path):
    async def ask(client, keeper, models):
        ids, labels = await predicted(client, 60)
        body = {"feedback": [{"id": one, "label": label} for one, label in zip(ids, labels, strict=True)]}
        first = (await client.post("/v1/feedback", json=body)).json()["received"]
        again = (await client.post("/v1/feedback", json=body)).json()["received"]
        live = (await client.get("/v1/live")).json()
        return first, again, live

    (first, again, live), store = served(bundle, tmp_path, ask)
    assert {(one["outcome"], one["matched"]) for one in first} == {("stored", True)}
    assert {one["outcome"] for one in again} == {"duplicate"}
    assert live["counts"] == {"predictions": 60, "labelled": 60, "relabelled": 0}
    assert live["score"]["low"] <= live["score"]["value"] <= live["score"]["high"]
    assert live["metric"] == "f1_macro"
    assert live["estimate"]["method"] == "CBPE"
    kept = store.answered("tiny", 0)
    assert len(kept) == 60
    assert all(one.latency_ms > 0 and one.words and one.length > 3 for one in kept)
    # What the metrics say of the same rows, by hand.
    right = sum(one.prediction == one.label for one in kept) / 60
    assert live["metrics"]["accuracy"]["value"] == pytest.approx(right)


def test_the_rows_themselves_are_kept_only_when_asked_and_redacted(bundle, tmp_path):
    async def ask(client, keeper, models):
        await client.post("/v1/predict", json={"rows": [{"text": "good phone, write to ann@example.org"}]})

    for keep, expected in ((False, None), (True, '{"text":"good phone, write to [EMAIL]"}')):
        folder = tmp_path / str(keep)
        folder.mkdir()
        served(bundle, folder, ask, keep_inputs=keep)
        found = sqlite3.connect(folder / "live.db").execute("SELECT inputs, input_hash FROM predictions").fetchall()
        assert found[0][0] == expected
        assert len(found[0][1]) == 16
        assert b"ann@example" not in (folder / "live.db").read_bytes()


def test_a_label_that_cannot_be_taken_gets_its_own_error_and_never_its_neighbours(bundle, tmp_path):
    async def ask(client, keeper, models):
        ids, _ = await predicted(client, 2)
        given = [(ids[0], "positive"), (ids[1], "fine"), ("zz", "negative"), (ids[1], "negative"), ("a b", "negative")]
        labels = [{"id": one, "label": label} for one, label in given]
        bulk = await client.post("/v1/feedback", json={"feedback": labels[:3]})
        return bulk, [await client.post("/v1/feedback", json=one) for one in labels[3:]]

    (bulk, single), _ = served(bundle, tmp_path, ask)
    received = bulk.json()["received"]
    assert bulk.status_code == 200
    assert received[0]["outcome"] == "stored"
    assert "'fine' is not one of: negative, positive" in received[1]["error"]
    assert received[2]["matched"] is False
    assert [one.status_code for one in single] == [200, 422]
    assert "`id` must be" in single[1].json()["error"]


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (422, {}, "`id` must be"),
        (422, {"feedback": []}, "one label or more"),
        (422, {"feedback": "x"}, "one label or more"),
        (413, {"feedback": [{"id": "a", "label": "positive"}] * 101}, "100 labels"),
        (422, [], "must be an object"),
        (422, "x", "must be an object"),
        (422, {"id": "a"}, "`label` is missing"),
        (422, {"id": "a", "label": "positive", "labl": 1}, "'labl' is not known"),
        (422, {"id": "a", "label": "positive", "time": "yesterday"}, "ISO 8601"),
        (422, {"id": "a", "label": "positive", "time": 1e18}, "not in the future"),
        (422, {"id": "a", "label": "positive", "time": True}, "ISO 8601"),
        (422, {"id": "../../etc", "label": "positive"}, "`id` must be"),
        (200, {"id": "a", "label": "positive", "time": "2026-11-01T12:00:00+00:00"}, "stored"),
    ],
)
def test_a_request_that_cannot_be_read_gets_one_sentence(bundle, tmp_path, status, body, told):
    async def ask(client, keeper, models):
        return await client.post("/v1/feedback", json=body)

    reply, _ = served(bundle, tmp_path, ask)
    assert (reply.status_code, told in reply.text) == (status, True), reply.text


def test_a_label_of_a_model_that_is_not_served_is_refused(bundle, tmp_path):
    async def ask(client, keeper, models):
        return (
            await client.post("/v1/feedback?model=nobody", json={"id": "a", "label": "positive"}),
            await client.get("/v1/live?model=../../x"),
        )

    (feedback, live), _ = served(bundle, tmp_path, ask)
    assert (feedback.status_code, live.status_code) == (422, 404)


def test_times_are_read_as_seconds_and_as_text():
    assert read_feedback({"id": "a", "label": "positive", "time": 5}, TASK, 10.0).time == 5.0
    assert read_feedback({"id": "a", "label": "positive", "time": "1970-01-01T00:00:07Z"}, TASK, 10.0).time == 7.0
    assert read_feedback({"id": "a", "label": "positive"}, TASK, 10.0).time == 10.0


def test_without_its_store_an_endpoint_answers_and_refuses_labels(bundle, tmp_path):
    async def ask(client, keeper, models):
        keeper.writer._open = keeper._opened = lambda: Store("postgresql://nobody@127.0.0.1:1/none")
        ids, _ = await predicted(client, 3)
        told = await client.post("/v1/feedback", json={"id": ids[0], "label": "positive"})
        shown = [await client.get(path) for path in ("/v1/live", "/")]
        return len(ids), told, *shown, generate_latest(keeper.metrics.registry)

    (count, feedback, live, page, metrics), _ = served(bundle, tmp_path, ask)
    assert count == 3
    assert (feedback.status_code, live.status_code, page.status_code) == (503, 503, 200)
    assert feedback.headers["retry-after"] == "5"
    assert "postgresql" not in feedback.text + live.text + page.text
    assert "The live store cannot be read" in page.text
    assert b"pmray_live_store_up 0.0" in metrics


def test_a_challenger_answers_the_same_rows_unseen(bundle, tmp_path):
    async def ask(client, keeper, models):
        return await predicted(client, 30)

    (ids, _), store = served(bundle, tmp_path, ask, challenger=True)
    shadows = {one.id for one in store.answered("tiny", 0, version="2", served=False)}
    assert shadows == set(ids)
    assert store.counts("tiny", 0).predictions == 30
    pairs = {one.id: one.time for one in store.answered("tiny", 0, version="1")}
    assert all(pairs[one.id] == one.time for one in store.answered("tiny", 0, version="2"))


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.3, 10, 60)])
def test_a_share_of_the_rows_is_shadowed(bundle, tmp_path, share, least, most):
    async def ask(client, keeper, models):
        await predicted(client, 100)

    _, store = served(bundle, tmp_path, ask, challenger=True, shadow=share)
    assert least <= len(store.answered("tiny", 0, served=False)) <= most


def test_under_load_nobody_answers_unseen(bundle, tmp_path):
    async def ask(client, keeper, models):
        models.waits = True
        await predicted(client, 10)
        return keeper.skipped

    skipped, store = served(bundle, tmp_path, ask, challenger=True)
    assert skipped == 1
    assert store.answered("tiny", 0, served=False) == []
    assert len(store.answered("tiny", 0, served=True)) == 10


def test_a_challenger_that_fails_harms_no_reply(bundle, tmp_path):
    async def ask(client, keeper, models):
        async def broken(inputs):
            raise RuntimeError("no memory")

        models.other.batcher.run = broken
        return await predicted(client, 5)

    (ids, _), store = served(bundle, tmp_path, ask, challenger=True)
    assert len(ids) == 5
    assert len(store.answered("tiny", 0)) == 5


def test_a_canary_gets_its_weight_of_the_requests_and_the_champion_shadows_it(bundle, tmp_path):
    async def ask(client, keeper, models):
        for seed in range(20):
            await predicted(client, 1, seed)
            while keeper.shadows:
                await asyncio.sleep(0.01)

    _, store = served(bundle, tmp_path, ask, challenger=True, canary=1.0)
    assert len(store.answered("tiny", 0, version="2", served=True)) == 20
    assert len(store.answered("tiny", 0, version="1", served=False)) == 20


def test_golden_rows_are_run_every_now_and_then_and_alerts_become_gauges(bundle, tmp_path):
    async def ask(client, keeper, models):
        await predicted(client, 60)
        await keeper.feedback([])  # all that came before is written
        keeper.start()
        until = time.monotonic() + 30
        while len(keeper._opened().checks("tiny", "2")) < 3 or not (keeper.seen and keeper.seen["tiny"].alerts):
            assert time.monotonic() < until
            await asyncio.sleep(0.05)
        return generate_latest(keeper.metrics.registry).decode()

    text, store = served(bundle, tmp_path, ask, challenger=True, check_s=0.05)
    assert store.checks("tiny", "1")[0].problem is None
    assert store.checks("tiny", "2")[0].problem == "golden rows differ"
    assert 'pmray_live_alert{alert="health_of_challenger",model="tiny"} 1.0' in text
    assert 'pmray_live_score{end="estimate_value",metric="f1_macro",model="tiny",version="1"}' in text
    assert "pmray_live_coverage" in text


def test_the_page_may_run_its_own_script_only(bundle, tmp_path):
    async def ask(client, keeper, models):
        await predicted(client, 60)
        await keeper.feedback([])
        return await client.get("/")

    page, _ = served(bundle, tmp_path, ask)
    assert page.status_code == 200
    nonce = page.text.partition('nonce="')[2].partition('"')[0]
    assert len(nonce) > 15
    assert f"script-src 'nonce-{nonce}'" in page.headers["content-security-policy"]
    assert "80 %" in page.text
    assert '<b id="predictions">60</b>' in page.text


def test_an_endpoint_without_a_store_has_a_page_and_says_what_is_missing(bundle):
    async def ask():
        models = TwoVersions(bundle)
        app = served_app(models, routers=[plain_router(models)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1") as client:
            return [await client.get("/"), await client.get("/v1/live"), await client.post("/v1/feedback", json={})]

    page, live, feedback = asyncio.run(ask())
    assert (page.status_code, live.status_code, feedback.status_code) == (200, 404, 404)
    assert "PMRAY_LIVE_URL" in page.text
    assert "PMRAY_LIVE_URL" in live.json()["error"]
    json.loads(feedback.text)


def test_a_look_after_labels_came_counts_them_also_right_after_another(bundle, tmp_path):
    async def ask(client, keeper, models):
        before = (await client.get("/v1/live")).json()["counts"]["labelled"]
        ids, labels = await predicted(client, 30)
        body = {"feedback": [{"id": one, "label": label} for one, label in zip(ids, labels, strict=True)]}
        await client.post("/v1/feedback", json=body)
        return before, (await client.get("/v1/live")).json()["counts"]["labelled"]

    found, _ = served(bundle, tmp_path, ask)
    assert found == (0, 30)
