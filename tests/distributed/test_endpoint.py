"""A bundle behind a real Ray Serve endpoint."""

import asyncio
import json
import shutil

import httpx
import numpy as np
import psutil
import pytest

import pmray
from pmray.errors import DataError, EndpointError, RegistryError, SpecError
from pmray.evaluation.compare import compare
from pmray.evaluation.evaluate import evaluate, save_predictions
from tests.serving import assert_close
from tests.tiny import tiny_bundle, tiny_rows, write_rows

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def other(bundle):
    """The same model under another name."""
    folder = shutil.copytree(bundle, bundle.with_name("other"))
    settings = json.loads((folder / "pmray.json").read_text())
    (folder / "pmray.json").write_text(json.dumps({**settings, "name": "other"}))
    return folder


@pytest.fixture(scope="module")
def endpoint(bundle, other, ray_cluster):
    # Answers are held against those of the bundle in this process, to the fifth digit.
    settings = pmray.Serve(port=0, cpus=0.5, precision="fp32", max_rows=100, max_batch_rows=16)
    with pmray.deploy([str(bundle), str(other)], serve_spec=settings) as deployed:
        yield deployed


@pytest.fixture(scope="module")
def client(endpoint):
    with httpx.Client(base_url=endpoint.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    labelled = tiny_rows(230, seed=5)
    return write_rows(folder / "rows.jsonl", [*labelled[:7], {"text": "  ", "label": "positive"}, *labelled[7:]])


def test_a_bad_row_gets_its_own_error_and_never_its_neighbours(client):
    body = {"rows": [{"text": "good phone"}, {"text": ""}, {"txt": "good"}, {"text": 7}, {"text": "bad case"}]}
    response = client.post("/v1/predict", json=body)
    assert response.status_code == 200
    found = response.json()["predictions"]
    assert ["error" in one for one in found] == [False, True, True, True, False]
    assert found[0]["label"] in {"negative", "positive"}
    assert sum(found[0]["scores"].values()) == pytest.approx(1, abs=1e-3)
    assert len({one["id"] for one in found}) == 5


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (422, {"content": b'{"rows": [', "headers": {"content-type": "application/json"}}),
        (422, {"json": {"rows": []}}),
        (422, {"json": {"texts": ["good"]}}),
        (422, {"json": {"rows": "good"}}),
        (422, {"content": b"\xff\xfe", "headers": {"content-type": "application/json"}}),
        (413, {"json": {"rows": [{"text": "good"}] * 101}}),
        (413, {"content": b" " * (33 * 2**20), "headers": {"content-type": "application/json"}}),
    ],
)
def test_a_request_that_cannot_be_read_gets_one_sentence(client, status, sent):
    response = client.post("/v1/predict", **sent)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert "Traceback" not in response.text


def test_offline_and_endpoint_agree_row_for_row(bundle, endpoint, rows, tmp_path):
    offline, online = evaluate(str(bundle), str(rows)), evaluate(endpoint.url, str(rows))
    assert offline.row_ids == online.row_ids
    np.testing.assert_allclose(offline.scores, online.scores, atol=1e-5)
    # Counts are equal; probabilities travel rounded to six digits.
    assert_close(*({**one.to_json(), "source": "", "speed": None} for one in (offline, online)))
    assert online.speed.p50_ms > 0
    assert offline.rows == 230
    assert [one["row_id"] for one in offline.refused] == ["rows.jsonl:8"]
    save_predictions(online, tmp_path / "predictions.csv")
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 231


def test_the_evaluate_route_gives_the_same_numbers(client, endpoint, tmp_path):
    labelled = tiny_rows(90, seed=6)
    route = client.post("/v1/evaluate", json={"rows": labelled}).json()
    offline = evaluate(endpoint.url, str(write_rows(tmp_path / "rows.parquet", labelled))).to_json()
    assert_close(route["metrics"], offline["metrics"])
    assert route["confusion"] == offline["confusion"]


def test_an_unknown_label_is_named(client, endpoint, tmp_path):
    response = client.post("/v1/evaluate", json={"rows": [{"text": "good", "label": "fine"}]})
    assert response.status_code == 422
    assert "rows.0.label: 'fine' is not one of: negative, positive" in response.json()["error"]
    wrong = write_rows(tmp_path / "rows.jsonl", [{"text": "good", "label": "fine"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: label 'fine'"):
        evaluate(endpoint.url, str(wrong))


def test_health_readiness_facts_and_documentation(client):
    assert client.get("/healthz").json() == {"status": "healthy"}
    assert client.get("/readyz").json() == {"status": "ready"}
    facts = client.get("/v1/model").json()
    assert facts["settings"]["task"]["labels"] == ["negative", "positive"]
    assert facts["serving"]["precision"] == "fp32"
    assert {"/v1/predict", "/v1/evaluate", "/v1/model"} <= set(client.get("/openapi.json").json()["paths"])
    assert client.get("/docs").is_success


def test_several_models_answer_under_their_names(client, endpoint):
    assert client.get("/v1/models").json() == {"models": ["tiny", "other"]}
    rows = {"rows": [{"text": "good phone"}, {"text": "bad case"}]}
    told = [client.post(f"/v1{path}/predict", json=rows).json() for path in ("", "/models/tiny", "/models/other")]
    assert [one["model"]["name"] for one in told] == ["tiny", "tiny", "other"]
    labels = [[row["label"] for row in one["predictions"]] for one in told]
    assert labels[0] == labels[1] == labels[2]
    with pmray.Client(endpoint.url, model="other") as asked:
        assert [one.label for one in asked.predict(["good phone", "bad case"])] == labels[0]
    assert client.post("/v1/models/nobody/predict", json=rows).status_code == 404


def test_nothing_of_an_endpoint_for_this_machine_listens_beyond_it(endpoint):
    port = int(endpoint.url.rsplit(":", 1)[1])
    haproxy = [one for one in psutil.process_iter(["name"]) if one.info["name"] == "haproxy"]
    mine = [one for one in haproxy if port in {at.laddr.port for at in one.net_connections() if at.status == "LISTEN"}]
    assert mine
    for one in mine:
        assert {at.laddr.ip for at in one.net_connections() if at.status == "LISTEN"} == {"127.0.0.1"}


def test_the_application_of_a_serve_config_takes_plain_values(bundle):
    from pmray.serving.app import application

    assert application({"model": str(bundle), "serve": {"replicas": [1, 3], "separate": False}})
    with pytest.raises(ValueError, match="thresold"):
        application({"model": str(bundle), "thresold": 1})


def test_many_clients_at_once_are_all_answered(endpoint):
    async def ask():
        limits = httpx.Limits(max_connections=16)
        async with httpx.AsyncClient(base_url=endpoint.url, timeout=60, limits=limits) as client:
            texts = [row["text"] for row in tiny_rows(64, seed=9)]
            calls = (client.post("/v1/predict", json={"rows": [{"text": text}]}) for text in texts)
            return [response.json()["predictions"][0] for response in await asyncio.gather(*calls)], texts

    answers, texts = asyncio.run(ask())
    together = httpx.post(f"{endpoint.url}/v1/predict", json={"rows": [{"text": text} for text in texts]}).json()
    assert [one["label"] for one in answers] == [one["label"] for one in together["predictions"]]


def test_a_model_compared_with_itself_is_a_tie(bundle, rows):
    found = compare([str(bundle), str(bundle)], str(rows), draws=200)
    assert len(found.groups) == 1
    assert found.comparisons[0].adjusted_p == 1
    assert found.disagreements == 0


def test_what_cannot_be_served_is_one_clear_error(bundle, endpoint, tmp_path):
    with pytest.raises(EndpointError, match="cannot listen on"):
        pmray.deploy(str(bundle), serve_spec=pmray.Serve(port=int(endpoint.url.rsplit(":", 1)[1])))
    with pytest.raises(SpecError, match="both called 'tiny'"):
        pmray.deploy([str(bundle), str(bundle)])
    with pytest.raises(SpecError, match="--no-auth"):
        pmray.deploy(str(bundle), serve_spec=pmray.Serve(host="0.0.0.0"))
    with pytest.raises(DataError, match="not a pmray bundle"):
        pmray.deploy(str(tmp_path))
    with pytest.raises(RegistryError, match="neither a bundle's folder nor a model"):
        pmray.deploy("nobody", registry=f"sqlite:///{tmp_path}/registry.db")
    with pytest.raises(EndpointError, match="does not answer"):
        evaluate("http://127.0.0.1:9", "rows.csv")
