"""One round of watching against a real registry and store: what it decides, does, and writes down."""

import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pyarrow.parquet as pq
import pytest

from pmray import registry
from pmray.bundle import open_bundle
from pmray.errors import RegistryError, SpecError
from pmray.live.page import render
from pmray.live.promotion import Rules
from pmray.live.records import Check
from pmray.live.reference import reference_table
from pmray.live.status import Served, status
from pmray.live.store import Store
from pmray.live.watch import promote_by_hand, watch
from tests.live import LABELS, TASK, feedback, labels_of, scores_of, traffic
from tests.tiny import tiny_bundle, tiny_rows

ROWS = 900


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    made = [tiny_bundle(root / "first")]
    for number in (1, 2):
        made.append(shutil.copytree(made[0], root / f"other{number}"))
    for number, folder in enumerate(made):
        settings = json.loads((folder / "pmray.json").read_text())
        promised = {"value": 0.78, "low": 0.75, "high": 0.81, "level": 0.95}
        (folder / "pmray.json").write_text(json.dumps({**settings, "key": str(number), "score": promised}))
    return made


@pytest.fixture(scope="module")
def empty_registry(bundles, tmp_path_factory):
    """Three versions; the last is champion. Copied for every test, since making one takes seconds."""
    file = tmp_path_factory.mktemp("registry") / "registry.db"
    for folder in bundles:
        registry.register(open_bundle(folder), f"sqlite:///{file}", metrics={}, params={})
    return file


@pytest.fixture
def place(empty_registry, tmp_path):
    """A registry in which version 2 is champion and 3 challenger, and an empty store."""
    file = shutil.copy(empty_registry, tmp_path / "registry.db")
    uri = f"sqlite:///{file}"
    registry.promote("tiny/2", uri)
    registry.withdraw("tiny", "previous", uri)
    registry.promote("tiny/3", uri, alias="challenger")
    store = Store(f"sqlite:///{tmp_path}/live.db")
    yield uri, store
    store.close()


def fill(store, *, better=0.0, worse=0.0, rows=ROWS, labels=None):
    """Version 2 answers, 3 shadows it and is right on a share more or fewer of the rows."""
    scores = scores_of(rows)
    labels = labels or labels_of(scores)
    truth = np.array([LABELS.index(label) for label in labels])
    other = scores.copy()
    draw = np.random.default_rng(5).random(rows)
    right, wrong = draw < better, draw > 1 - worse
    other[right] = np.eye(2, dtype=np.float32)[truth[right]]
    other[wrong] = np.eye(2, dtype=np.float32)[1 - truth[wrong]]
    start = time.time() - rows
    store.write(
        traffic(scores, version="2", start=start) + traffic(other, version="3", start=start, served=False),
        feedback(labels, time.time()),
    )


def run(place, **more):
    uri, store = place
    return watch("tiny", registry_uri=uri, live=str(store.url), **more)


def test_a_better_challenger_becomes_champion_once(place):
    uri, store = place
    fill(store, better=0.5)
    found = run(place)
    assert found.decision.kind == "promote"
    assert registry.aliases("tiny", uri) == {"champion": "3", "previous": "2"}
    (record,) = store.decisions("tiny")
    assert (record.kind, record.champion, record.challenger) == ("promote", "2", "3")
    assert record.numbers["facts"]["difference"]["low"] > 0
    assert record.numbers["rules"]["level"] == 0.95
    json.dumps(found.to_json(), default=float)
    again = run(place)
    assert (again.decision.kind, again.done) == ("wait", ())
    assert registry.aliases("tiny", uri) == {"champion": "3", "previous": "2"}


def test_a_worse_challenger_is_withdrawn(place):
    uri, store = place
    fill(store, worse=0.3)
    assert run(place).decision.kind == "reject"
    assert registry.aliases("tiny", uri) == {"champion": "2"}


def test_without_enough_labels_it_waits_and_says_so_once_a_night(place):
    uri, store = place
    fill(store, rows=60)
    for _ in range(2):
        assert run(place).decision.kind == "wait"
    assert [one.kind for one in store.decisions("tiny")] == ["wait"]
    assert registry.aliases("tiny", uri) == {"champion": "2", "challenger": "3"}


def test_a_dry_run_changes_and_writes_nothing(place):
    uri, store = place
    fill(store, better=0.5)
    assert run(place, dry_run=True, keep_days=1e-9).decision.kind == "promote"
    assert registry.aliases("tiny", uri) == {"champion": "2", "challenger": "3"}
    assert store.decisions("tiny") == []
    assert store.counts("tiny", 0).predictions == ROWS


def test_an_ill_champion_is_rolled_back_and_not_returned_to(place):
    uri, store = place
    registry.promote("tiny/1", uri)
    registry.promote("tiny/2", uri)
    for _ in range(3):
        store.check(Check("tiny", "2", time.time(), "the model does not answer"))
    found = run(place)
    assert found.decision.kind == "roll back"
    assert found.status.alerts == ["health_of_champion"]
    assert registry.aliases("tiny", uri) == {"champion": "1", "challenger": "3"}


def test_a_broken_promise_without_a_way_back_is_an_alert_that_the_webhook_gets(place):
    uri, store = place
    registry.withdraw("tiny", "challenger", uri)
    received = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fill(store, labels=[LABELS[n % 2] for n in range(ROWS)])  # labels that have nothing to do with the rows
    found = run(place, webhook=f"http://127.0.0.1:{server.server_port}/hook")
    server.shutdown()
    assert found.decision.kind == "alert"
    assert found.status.alerts == ["score_below_promise"]
    assert found.webhook == "sent"
    assert received[0]["alerts"] == ["score_below_promise"]
    assert "pmray tiny: alert" in received[0]["text"]
    assert run(place, webhook="http://127.0.0.1:9/").webhook.startswith("not sent (ConnectError")


def test_what_is_too_old_is_forgotten(place):
    _, store = place
    fill(store)
    assert run(place, keep_days=500 / 86_400).forgotten > 300
    assert store.counts("tiny", 0).predictions < 600
    with pytest.raises(SpecError, match="days to keep"):
        run(place, keep_days=0)


def test_a_model_that_is_not_there_is_one_clear_error(place):
    uri, store = place
    with pytest.raises(RegistryError, match="nobody is no model"):
        watch("nobody", registry_uri=uri, live=str(store.url))
    registry.withdraw("tiny", "champion", uri)
    with pytest.raises(RegistryError, match="has no champion"):
        run(place)


def test_a_promotion_by_hand_is_written_down(place, tmp_path, monkeypatch):
    uri, store = place
    monkeypatch.setenv("PMRAY_LIVE_URL", str(store.url))
    assert promote_by_hand("tiny/1", uri).version == "1"
    (record,) = store.decisions("tiny")
    assert (record.kind, record.champion, record.challenger) == ("promote", "2", "1")
    assert registry.aliases("tiny", uri)["previous"] == "2"


def test_drift_is_measured_against_validation_rows_of_the_bundle(place, bundles):
    _, store = place
    folder = bundles[1]
    rows, scores = tiny_rows(300), scores_of(300, seed=3)
    lengths = np.array([20 + number % 10 for number in range(300)])
    table = reference_table(TASK, rows, scores, lengths)
    assert table.column_names == ["length", "words", "prediction", "scores"]
    pq.write_table(table, folder / "reference.parquet")
    try:
        fill(store, rows=300)
        champion = Served("2", open_bundle(folder))
        found = status(store, champion, name="tiny", now=time.time() + 1)
        assert found.reference == "validation"
        told = {one.what: one.drifted for one in found.drift}
        assert told == {"length": False, "words": True, "predictions": False, "confidence": False}
        assert found.alerts == ["drift_of_words"]
    finally:
        (folder / "reference.parquet").unlink()
    without = status(store, Served("2", open_bundle(folder)), name="tiny", now=time.time() + 1)
    assert (without.reference, without.drift) == (None, [])


def test_the_page_shows_it_all_and_nothing_that_was_sent_as_code(place, bundles):
    _, store = place
    fill(store)
    champion, challenger = (
        Served(version, open_bundle(folder)) for version, folder in zip("23", bundles[1:], strict=True)
    )
    found = status(store, champion, name="tiny", now=time.time() + 1, challenger=challenger)
    facts = {"name": "<script>alert(1)</script>", "version": "2", "settings": champion.bundle.settings}
    page = render(found, facts=facts, example='{"text": "a & b"}', serving={"fill": "80 %"}, nonce="n0nce")
    assert f'<b id="live">{found.score.value:.3f}</b>' in page
    assert '<b id="promised">0.780</b>' in page
    assert page.count('<g class="score">') == sum(one.score is not None for one in found.windows) > 0
    assert "Version 3 against version 2 on 900 labelled rows" in page
    assert page.count("<script") == 1
    assert "a &amp; b" in page
    empty = render(None, facts=facts, example="{}", serving={}, nonce="", problem="the live store is away")
    assert "the live store is away" in empty


def test_a_model_that_nobody_has_asked_has_a_status_too(place, bundles):
    _, store = place
    found = status(store, Served("2", open_bundle(bundles[1])), name="tiny", now=time.time())
    assert (found.counts.predictions, found.score, found.windows, found.alerts) == (0, None, [], [])
    facts = {"name": "t", "version": "2", "settings": {"task": TASK.to_json()}}
    assert "too few labels" in render(found, facts=facts, example="", serving={}, nonce="")


def test_gates_and_rules_can_be_set(place):
    _, store = place
    fill(store, better=0.5)
    found = run(place, rules=Rules(min_labels=2_000), dry_run=True)
    assert "2000" in found.decision.reasons[0]
