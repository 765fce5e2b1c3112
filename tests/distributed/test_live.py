"""An endpoint that keeps score: labels, a challenger that shadows, a promotion that it follows."""

import json
import shutil
import time

import httpx
import pytest

import pmray
from pmray import registry
from pmray.bundle import open_bundle
from pmray.live.store import Store
from tests.tiny import tiny_bundle, tiny_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A registry with two versions; the first is champion, the second challenger, of other weights."""
    import torch
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("place")
    uri = f"sqlite:///{root}/registry.db"
    first = tiny_bundle(root / "first")
    second = shutil.copytree(first, root / "second")
    weights = load_file(second / "model.safetensors")
    # Slightly other answers, and the same golden rows.
    weights["classifier.bias"] = weights["classifier.bias"] + torch.tensor([0.005, -0.005])
    save_file(weights, second / "model.safetensors", metadata={"format": "pt"})
    for key, folder in enumerate((first, second)):
        settings = json.loads((folder / "pmray.json").read_text())
        (folder / "pmray.json").write_text(json.dumps({**settings, "key": str(key)}))
        registry.register(open_bundle(folder), uri, metrics={}, params={})
    registry.promote("tiny/1", uri)
    registry.promote("tiny/2", uri, alias="challenger")
    return root, uri


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.1)
    return found


def labelled(client, count):
    """The live score, when it counts so many labels."""
    live = client.get("/v1/live").json()
    return live if live["counts"]["labelled"] == count else None


def test_labels_a_challenger_and_a_promotion(place):
    root, uri = place
    settings = pmray.Serve(port=0, cpus=0.5, follow_s=0.5, live={"check_s": 1.0})
    store = Store(f"sqlite:///{root}/live.db")
    with (
        pmray.deploy("tiny", serve_spec=settings, registry=uri) as deployed,
        httpx.Client(base_url=deployed.url, timeout=60) as client,
    ):
        wait_for(lambda: store.checks("tiny", "2"))  # the challenger is open
        rows = tiny_rows(120, seed=5)
        sent = {"rows": [{"text": row["text"]} for row in rows]}
        predictions = client.post("/v1/predict", json=sent).json()["predictions"]
        labels = [{"id": one["id"], "label": row["label"]} for one, row in zip(predictions, rows, strict=True)]
        received = client.post("/v1/feedback", json={"feedback": labels}).json()["received"]
        assert {one["outcome"] for one in received} == {"stored"}
        # On disk, read by another process than the one that wrote it.
        assert len(store.answered("tiny", 0, version="1", labelled=True)) == 120
        assert len(wait_for(lambda: store.answered("tiny", 0, served=False))) == 120
        assert len(store.pairs("tiny", "1", "2")) == 120

        live = wait_for(lambda: labelled(client, 120))
        assert (live["version"], live["challenger"]) == ("1", "2")
        offline = [dict(row) for row in rows]
        again = client.post("/v1/evaluate", json={"rows": offline}).json()
        assert live["metrics"]["f1_macro"]["value"] == pytest.approx(again["metrics"]["f1_macro"]["value"])
        assert "pmray_live_store_up 1.0" in client.get("/metrics").text
        assert "Version 2 against version 1" in client.get("/").text

        # A round finds nothing to promote (the versions say the same); a person promotes; the endpoint follows.
        found = pmray.watch("tiny", registry_uri=uri, rules={"min_labels": 50})
        assert found.decision.kind in ("wait", "keep")
        registry.promote("tiny/2", uri)

        def versions():
            reply = client.post("/v1/predict", json={"rows": sent["rows"][:1]})
            assert reply.status_code == 200
            return reply.json()["model"]["version"] == "2"

        wait_for(versions)
        # The page and a round would go back to the same version.
        wait_for(lambda: client.get("/v1/live").json()["decision"]["numbers"]["facts"]["previous"] == "1")
    store.close()


def test_an_endpoint_without_a_registry_keeps_nothing_and_says_so(place):
    root, _ = place
    with pmray.deploy(str(root / "first"), serve_spec=pmray.Serve(port=0, cpus=0.5)) as deployed:
        reply = httpx.get(f"{deployed.url}/v1/live")
        assert (reply.status_code, "PMRAY_LIVE_URL" in reply.json()["error"]) == (404, True)
        assert httpx.get(f"{deployed.url}/").status_code == 200
