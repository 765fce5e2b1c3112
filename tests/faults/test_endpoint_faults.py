"""An endpoint under load: a process of the model is killed, a new version takes over, the live store's database stops
and starts, the server is killed. ``PMRAY_LOAD_S=300`` lets the load last five minutes.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import httpx
import numpy as np
import psutil
import pytest

import pmray
from pmray.bundle import open_bundle, write_settings
from pmray.live.store import Store
from pmray.registry import register
from pmray.serving.haproxy import free_port
from pmray.serving.scorer import Scorer
from tests.databases import PostgreSQL
from tests.tiny import tiny_bundle, tiny_rows

pytestmark = pytest.mark.slow

TEXTS = [row["text"] for row in tiny_rows(24, seed=3)]
LOAD_S = float(os.environ.get("PMRAY_LOAD_S", "0"))


@pytest.fixture
def database(tmp_path_factory):
    """A PostgreSQL server for the live store."""
    server = PostgreSQL(tmp_path_factory.mktemp("postgresql"))
    yield server
    server.stop()


def turned_round(folder):
    """The same model with the opposite opinion, as another version."""
    import pyarrow as pa
    import torch

    bundle = open_bundle(folder)
    scorer = Scorer(bundle)
    with torch.no_grad():
        for parameter in scorer.model.classifier.parameters():
            parameter.mul_(-1)
    other = folder.with_name("other")
    scorer.model.save_pretrained(other)
    scorer.processor.save_pretrained(other)
    golden = bundle.golden()
    found = pa.array(list(np.asarray(scorer.scores(golden))), pa.list_(pa.float32()))
    golden = golden.set_column(golden.column_names.index("scores"), "scores", found)
    write_settings(other, {**bundle.settings, "key": "1"}, golden, "# other\n")
    return other


def wait_for(condition, seconds=300):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.2)
    return found


def named(server, part):
    """Processes of a server by a part of their names."""
    found = []
    for one in psutil.Process(server.pid).children(recursive=True):
        with suppress(psutil.Error):
            if part in one.name() or part in " ".join(one.cmdline()):
                found.append(one)
    return found


def test_no_answer_is_wrong_and_none_is_missing_whatever_is_killed_or_replaced(tmp_path, database):
    first = tiny_bundle(tmp_path / "bundle")
    uri = f"sqlite:///{tmp_path / 'registry.db'}"
    register(open_bundle(first), uri, metrics={}, params={})
    expected = {}
    port, key = free_port("127.0.0.1"), secrets.token_urlsafe(24)
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PMRAY_API_KEYS": key, "PMRAY_LIVE_URL": database.url}
    options = ["--port", str(port), "--registry", uri, "--replicas", "2", "--set", "cpus=0.5", "--set", "follow_s=0.5"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "pmray", "serve", "tiny", *options], env=environment, stdout=log, stderr=log
        )
    wrong, answered, ended, problems = [], [], threading.Event(), []
    acknowledged = set()
    """Ids of predictions whose label was taken."""

    def ask():
        with pmray.Client(url, key=key, retry_s=60) as client:
            while not ended.is_set():
                told = client.ask("POST", "/v1/predict", json={"rows": [{"text": text} for text in TEXTS]})
                labels = [one["label"] for one in told["predictions"]]
                answered.append(told["model"]["version"])
                if labels != expected[told["model"]["version"]]:
                    wrong.append((told["model"], labels))
                told_true = {one["id"]: one["label"] for one in told["predictions"]}
                client.feedback(told_true)
                acknowledged.update(told_true)

    def guarded():
        try:
            ask()
        except Exception as error:  # noqa: BLE001
            problems.append(error)

    try:
        for version, folder in (("1", first), ("2", turned_round(first))):
            answers = Scorer(open_bundle(folder))([{"text": text} for text in TEXTS])
            expected[version] = [one.values["label"] for one in answers]
        assert expected["1"] != expected["2"]

        def ready():
            assert server.poll() is None, (tmp_path / "log").read_text()
            with suppress(httpx.HTTPError):
                return httpx.get(f"{url}/readyz", timeout=5).is_success

        wait_for(ready)
        assert httpx.post(f"{url}/v1/predict", json={"rows": [{"text": "good"}]}).status_code == 401
        bearer, began = {"authorization": f"Bearer {key}"}, time.monotonic()
        threads = [threading.Thread(target=guarded) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answered) > 20 or problems)
        models = named(server, "ServeReplica:pmray:Model")
        assert len(models) == 2
        models[0].kill()
        seen = len(answered)
        wait_for(lambda: len(answered) > seen + 20 or problems)
        register(open_bundle(tmp_path / "other"), uri, metrics={}, params={})
        wait_for(lambda: answered[-1] == "2" or problems)
        # The killed one is replaced.
        wait_for(lambda: len(named(server, "ServeReplica:pmray:Model")) == 2 or problems)
        database.stop()
        time.sleep(5)
        # Answers do not need the database; labels wait for it.
        assert httpx.post(f"{url}/v1/predict", json={"rows": [{"text": "good"}]}, headers=bearer, timeout=30).is_success
        database.start()
        seen = len(answered)
        wait_for(lambda: len(answered) > seen + 20 or problems)
        time.sleep(max(0.0, began + LOAD_S - time.monotonic()))
        ended.set()
        for thread in threads:
            thread.join(90)
        assert not problems
        assert not wrong
        print(
            f"{time.monotonic() - began:.0f} s of load: {len(answered):,} requests of {len(TEXTS)} rows, "
            f"{len(acknowledged):,} labels acknowledged"
        )
        assert answered[0] == "1"
        assert answered[-1] == "2"
        haproxies = [one for one in psutil.Process(server.pid).children(recursive=True) if one.name() == "haproxy"]
        log_text = (tmp_path / "log").read_text()
        assert key not in log_text
        assert json.dumps(TEXTS[0]) not in log_text
    finally:
        ended.set()
        server.send_signal(signal.SIGKILL)
        server.wait()
    store = Store(database.url)
    labelled = {one.id for one in store.answered("tiny", 0, labelled=True, limit=10_000_000)}
    store.close()
    assert len(acknowledged) > 1000
    assert not acknowledged - labelled
    # It used to stay behind with the port. Ray's own processes end in their time.
    assert haproxies
    wait_for(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in haproxies))
