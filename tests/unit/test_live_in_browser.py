"""The page of an endpoint in a real browser: it shows what it should, and the box answers."""

import asyncio
import contextlib
import socket
import threading
import time

import httpx
import pytest
import uvicorn

from pmray.live.store import Store
from pmray.serving.live import Scorekeeper, build_router
from pmray.serving.metrics import ServingMetrics
from pmray.spec import Live
from tests.browser import browser, chromium
from tests.live import feedback, labels_of, scores_of, traffic
from tests.serving import served_app
from tests.tiny import tiny_bundle
from tests.unit.test_live_routes import TwoVersions, challenger_of

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium here (PMRAY_CHROMIUM may name one)")

KEY = "a-key-of-enough-characters"
ROWS = 1_200

ANSWER = """new Promise(done => (function look() {
  const text = answer.textContent;
  if (!text) return setTimeout(look, 50);
  answer.textContent = "";
  done(text);
})())"""


@contextlib.contextmanager
def endpoint(bundle, url, keys):
    """The routes behind a real server, in a thread."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    models = TwoVersions(bundle)
    started = threading.Event()
    server = None

    async def run():
        nonlocal server
        models.other = challenger_of(bundle)
        models.keeper = Scorekeeper(url, Live(), models, ServingMetrics().registry)
        router = build_router(models.keeper, models, max_rows=100)
        app = served_app(models, keys=keys, recorder=models.keeper, routers=[router])
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off"))
        started.set()
        await server.serve()
        await models.keeper.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert started.wait(60)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(f"{address}/readyz")
            break
        time.sleep(0.05)
    yield address
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A store of a week with a challenger."""
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/live.db")
    scores = scores_of(ROWS)
    start, step = time.time() - 6 * 86_400, 6 * 86_400 / ROWS
    shadows = traffic(scores_of(ROWS, 3), version="2", start=start, step=step, served=False)
    store.write(traffic(scores, start=start, step=step) + shadows, feedback(labels_of(scores)[:1_000], time.time()))
    yield str(store.url)
    store.close()


def foreign(page, address):
    """What the console complained about, and requests to anybody but the endpoint."""
    return [one for one in page.problems() if not one.startswith(f"request of {address}") and "favicon" not in one]


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_the_page_shows_the_live_score_and_fits_the_window(bundle, url, tmp_path, width, dark):
    with endpoint(bundle, url, {}) as address, browser() as page:
        page.open(f"{address}/", width, dark=dark)
        live = httpx.get(f"{address}/v1/live").json()
        assert page.run("document.getElementById('live').textContent") == f"{live['score']['value']:.3f}"
        assert page.run("document.getElementById('predictions').textContent") == f"{ROWS:,}"
        shown = sum(one["score"] is not None for one in live["windows"])
        assert page.run("document.querySelectorAll('#chart g.score').length") == shown >= 5
        assert "Version 2 against version 1 on 1000" in page.run("document.getElementById('challenger').textContent")
        assert "reject" in page.run("document.getElementById('decision').textContent")
        assert page.run("document.documentElement.scrollWidth") <= width
        inside = "[...document.querySelectorAll('#chart circle')].every(one => one.getBoundingClientRect().top > "
        assert page.run(inside + "document.getElementById('chart').getBoundingClientRect().top)")
        assert foreign(page, address) == []
        assert page.picture(tmp_path / "page.png").stat().st_size > 10_000


def test_the_box_answers_and_shows_errors_as_text(bundle, url):
    with endpoint(bundle, url, {}) as address, browser() as page:
        page.open(f"{address}/")

        def tried(row):
            page.run(f"document.getElementById('row').value = {row!r}; document.querySelector('button').click()")
            return page.run(ANSWER)

        assert '"scores"' in tried('{"text": "good phone"}')
        assert "`text` is missing" in tried('{"txt": "<img src=x onerror=alert(1)>"}')
        assert "JSON" in tried("{")
        assert page.run("document.images.length") == 0


def test_with_keys_the_box_sends_one(bundle, url):
    with endpoint(bundle, url, {"PMRAY_API_KEYS": KEY}) as address, browser() as page:
        assert httpx.get(f"{address}/").status_code == 401
        page.open(f"{address.replace('//', f'//anyone:{KEY}@')}/")
        page.run(f"key.value = '{KEY}'; document.querySelector('button').click()")
        assert '"label"' in page.run(ANSWER)
