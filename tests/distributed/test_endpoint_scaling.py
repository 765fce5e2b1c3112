"""Other shapes of an endpoint: one process for all, and processes of the model that come with the load."""

import threading
import time

import httpx
import numpy as np
import psutil
import pytest
from ray import serve

import pmray
from tests.tiny import tiny_bundle, tiny_rows

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

ROWS = [{"text": row["text"]} for row in tiny_rows(64, seed=3)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def ask(url, rows=ROWS):
    answer = httpx.post(f"{url}/v1/predict", json={"rows": rows}, timeout=60)
    assert answer.status_code == 200, answer.text
    return np.array([list(one["scores"].values()) for one in answer.json()["predictions"]])


def processes(title):
    """Those of this machine's Ray with such a title."""
    mine = psutil.Process().children(recursive=True)
    return [one for one in mine if one.is_running() and title in " ".join(one.cmdline())]


def running(deployment):
    states = serve.status().applications["pmray"].deployments[deployment].replica_states
    return states.get("RUNNING", 0)


def test_one_process_for_all_answers_what_two_do_and_more_come_with_the_load(bundle):
    # Answers are held against each other to the fifth digit.
    shared = {"port": 0, "cpus": 0.5, "precision": "fp32"}
    with pmray.deploy(str(bundle), serve_spec=pmray.Serve(**shared)) as deployed:
        together = ask(deployed.url)
        assert httpx.get(f"{deployed.url}/healthz", timeout=60).json() == {"status": "healthy"}
        assert list(serve.status().applications["pmray"].deployments) == ["Ingress"]
        (process,) = processes("ServeReplica:pmray:Ingress")
        process.kill()
        with pmray.Client(deployed.url) as client:
            assert len(list(client.predict([row["text"] for row in ROWS]))) == len(ROWS), "it came back"
    # Small batches, so that several wait however fast the model is.
    settings = pmray.Serve(**shared, replicas=(1, 2), max_batch_rows=2, max_wait_s=30)
    with pmray.deploy(str(bundle), serve_spec=settings) as deployed:
        np.testing.assert_allclose(ask(deployed.url), together, atol=1e-5)
        assert running("Model") == 1
        over = threading.Event()

        def load():
            while not over.is_set():
                ask(deployed.url)

        clients = [threading.Thread(target=load) for _ in range(8)]
        for one in clients:
            one.start()
        try:
            until = time.monotonic() + 120
            while running("Model") < 2:
                assert time.monotonic() < until, serve.status()
                time.sleep(1)
        finally:
            over.set()
            for one in clients:
                one.join()
        np.testing.assert_allclose(ask(deployed.url), together, atol=1e-5)
