"""What the routes answer, and how they refuse: one sentence each, whatever is sent."""

import asyncio
import io
import json
import re

import httpx
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import pmray
from pmray.client import Client
from pmray.errors import EndpointError
from pmray.evaluation.evaluate import evaluate
from pmray.serving.haproxy import kept_inside
from tests.serving import OneModel, asked, assert_close, served_app
from tests.tiny import tiny_bundle, tiny_rows, write_rows

JSON = {"content-type": "application/json"}
KEY, LOOK = "full-key-0123456789", "look-key-0123456789"
ROW = {"rows": [{"text": "good phone"}]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def models(bundle):
    return OneModel(bundle)


@pytest.fixture(scope="module")
def app(models):
    return served_app(models)


def one(app, method, path, **options):
    return asked(app, (method, path, options))[0]


def test_a_bad_row_gets_its_own_error(app):
    rows = [{"text": "good phone"}, {"text": " "}, {"txt": "a"}, {"text": 7}, 7, None, ["a"], {"text": "x" * 20_000}]
    found = one(app, "POST", "/v1/predict", json={"rows": [*rows, {"text": "bad case"}]}).json()["predictions"]
    assert ["error" in row for row in found] == [False, *[True] * 7, False]
    assert found[4]["error"] == "a row must be an object with `text`, but is a number"
    assert "20000 characters" in found[7]["error"]
    assert len({row["id"] for row in found}) == 9


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (422, {"content": b'{"rows": [', "headers": JSON}),
        (422, {"content": b'{"rows": [{"text": NaN}]}', "headers": JSON}),
        (422, {"content": b'{"rows": [{"text": Infinity}]}', "headers": JSON}),
        (422, {"content": b"[" * 100_000, "headers": JSON}),
        (422, {"content": b'{"rows": ' + b'{"a":' * 5_000, "headers": JSON}),
        (422, {"content": b'{"rows": [{"text": "\xff\xfe"}]}', "headers": JSON}),
        (422, {"content": b'{"rows": [{"text": "\\ud800"}]}', "headers": JSON}),
        (422, {"content": b"", "headers": JSON}),
        (422, {"json": []}),
        (422, {"json": {"rows": []}}),
        (422, {"json": {"rows": {"text": "a"}}}),
        (422, {"json": {**ROW, "thresold": 1}}),
        (413, {"json": {"rows": [{"text": "a"}] * 101}}),
        (413, {"content": b" " * (2**20 + 1), "headers": JSON}),
        (415, {"content": b"{}", "headers": {"content-type": "text/plain"}}),
        (415, {"content": b"{}", "headers": {**JSON, "content-encoding": "gzip"}}),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(app, status, sent):
    response = one(app, "POST", "/v1/predict", **sent)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert len(response.text) < 400
    assert "Traceback" not in response.text


def test_a_body_that_hides_its_size_is_cut_off(app):
    async def chunks():
        for _ in range(40):
            yield b" " * 100_000

    assert one(app, "POST", "/v1/predict", content=chunks(), headers=JSON).status_code == 413


def test_a_body_that_does_not_come_is_not_waited_for(models):
    async def slow():
        yield b"{"
        await asyncio.sleep(30)

    response = one(served_app(models, timeout_s=0.05), "POST", "/v1/predict", content=slow(), headers=JSON)
    assert response.status_code == 408


def test_names_of_models_are_never_paths(app):
    for name in ("%2e%2e", "..%2f..%2fetc", "tiny%00", "tiny%2f..%2ftiny", "/etc/passwd", "x" * 5_000, "TINY"):
        assert one(app, "POST", f"/v1/models/{name}/predict", json=ROW).status_code in (404, 405)
    assert one(app, "POST", "/v1/models/tiny/predict", json=ROW).is_success
    assert one(app, "GET", "/v1/models/tiny").json() == one(app, "GET", "/v1/model").json()
    assert one(app, "GET", "/v1/models").json() == {"models": ["tiny"]}


def test_keys(models):
    app = served_app(models, keys={"PMRAY_API_KEYS": KEY, "PMRAY_READ_KEYS": LOOK})
    bearer, look = {"authorization": f"Bearer {KEY}"}, {"authorization": f"Bearer {LOOK}"}
    replies = asked(
        app,
        ("POST", "/v1/predict", {"json": ROW}),
        ("POST", "/v1/predict", {"json": ROW, "headers": {"authorization": "Bearer wrong"}}),
        ("POST", "/v1/predict", {"json": ROW, "headers": look}),
        ("GET", "/v1/model", {"headers": look}),
        ("POST", "/v1/predict", {"json": ROW, "headers": bearer}),
        ("POST", "/v1/predict", {"json": ROW, "headers": {"x-api-key": KEY}}),
        ("GET", "/metrics", {"auth": ("anyone", KEY)}),
        ("GET", "/docs", {}),
        ("GET", "/readyz", {}),
        ("GET", "/healthz", {}),
    )
    assert [one.status_code for one in replies] == [401, 401, 403, 200, 200, 200, 200, 401, 200, 200]
    assert "Basic" in replies[0].headers["www-authenticate"]
    assert KEY not in "".join(one.text for one in replies)


def test_the_page_for_people_needs_no_network(app):
    page = one(app, "GET", "/docs").text
    wanted = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any(path.endswith(".js") for path in wanted)
    assert all(path.startswith("/") and one(app, "GET", path).is_success for path in wanted)


def test_other_pages_of_a_browser_cannot_ask(models):
    app = served_app(models, local_only=True)
    assert one(app, "POST", "/v1/predict", json=ROW, headers={"host": "evil.example"}).status_code == 403
    assert one(app, "POST", "/v1/predict", json=ROW, headers={"host": "localhost:8000"}).is_success
    asks = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in one(app, "OPTIONS", "/v1/predict", headers=asks).headers


def test_what_is_too_much_is_refused_at_once_with_the_time_to_come_again(bundle):
    models = OneModel(bundle, max_wait_s=0.5)
    models.default.batcher.expect(10.0)
    models.default.batcher.under_way["running"] = 20
    response = one(served_app(models), "POST", "/v1/predict", json=ROW)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"


def test_a_failure_is_told_without_its_words(bundle, caplog):
    models = OneModel(bundle)

    async def fails(inputs):
        raise RuntimeError("secret path /etc/x")

    models.default.batcher.run = fails
    response = one(served_app(models), "POST", "/v1/predict", json=ROW)
    assert response.status_code == 500
    assert response.json() == {"error": "the server failed on this request; its log says why"}
    assert "secret" in caplog.text


def test_predictions_are_recorded_after_the_reply_without_refused_rows(models):
    class Kept:
        def __init__(self):
            self.kept = []

        def record(self, predictions):
            self.kept.append(predictions)

        async def close(self):
            pass

    recorder = Kept()
    app = served_app(models, recorder=recorder)
    told = one(app, "POST", "/v1/predict", json={"rows": [{"text": "good"}, {"text": ""}]}).json()
    one(app, "POST", "/v1/predict", json={"rows": [{"text": ""}]})
    ((kept,),) = recorder.kept
    assert kept.id == told["predictions"][0]["id"]
    assert kept.answer["label"] == told["predictions"][0]["label"]
    assert (kept.model, kept.version, kept.row, kept.length) == ("tiny", "1", {"text": "good"}, 3)
    assert kept.scores.shape == (2,)


def uploads(rows):
    table = pa.Table.from_pylist(rows)
    parquet, csv = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    pyarrow.csv.write_csv(table, csv)
    return {"application/vnd.apache.parquet": parquet.getvalue(), "text/csv": csv.getvalue()}


def test_evaluation_of_rows_and_of_files_equals_the_one_offline(app, bundle, tmp_path):
    rows = [{**row, "shop": "ab"[n % 2]} for n, row in enumerate(tiny_rows(90, seed=6))]
    path = write_rows(tmp_path / "rows.parquet", rows)
    offline = json.loads(json.dumps(evaluate(str(bundle), str(path), by="shop", slices="auto").to_json()))
    query = "/v1/evaluate?by=shop&slices=auto"
    bodies = [{"json": {"rows": rows}}]
    bodies += [{"content": body, "headers": {"content-type": kind}} for kind, body in uploads(rows).items()]
    for options in bodies:
        found = one(app, "POST", query, **options).json()
        for part in ("rows", "score", "metrics", "per_class", "confusion", "slices", "worst_slices"):
            assert_close(found[part], offline[part], part)


def test_fields_that_cannot_be_sliced_by_do_no_harm(app):
    fields = {"x": 10**30, "y": [1], "z": {"a": 1}, "row_id": 3, "w": None}
    rows = [{**row, **fields, "mixed": [1, "a"][n % 2]} for n, row in enumerate(tiny_rows(70))]
    reply = one(app, "POST", "/v1/evaluate?slices=auto", json={"rows": rows})
    assert reply.json()["rows"] == 70
    for by in (*fields, "mixed", "nothing"):
        assert one(app, "POST", f"/v1/evaluate?by={by}", json={"rows": rows}).status_code == 422


def test_columns_of_a_file_may_have_other_names(app):
    body = b"message,topic\ngood phone,positive\nbad case,negative\n"
    path, kind = "/v1/evaluate?column=text=message&column=label=topic", {"content-type": "text/csv"}
    assert one(app, "POST", path, content=body, headers=kind).json()["rows"] == 2
    refused = one(app, "POST", "/v1/evaluate", content=body, headers=kind)
    assert refused.status_code == 422
    assert "message" in refused.json()["error"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "good"}, "rows.0.label: is missing"),
        ({"text": "good", "label": "fine"}, "rows.0.label: 'fine' is not one of: negative, positive"),
        ({"text": "good", "label": ["positive"]}, "rows.0.label: one label is expected"),
        ({"text": "good", "label": {}}, "rows.0.label"),
        ({"text": "", "label": "positive"}, "no row could be answered"),
        (7, "rows.0: a labelled row must be an object"),
    ],
)
def test_labels_that_cannot_be_used_are_named(app, row, told):
    response = one(app, "POST", "/v1/evaluate", json={"rows": [row]})
    assert response.status_code == 422
    assert told in response.json()["error"]


def test_a_file_that_would_blow_up_is_refused_from_its_footer(app):
    bomb = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"] * 2_000_000, "label": ["positive"] * 2_000_000}), bomb)
    assert len(bomb.getvalue()) < 100_000
    kind = {"content-type": "application/vnd.apache.parquet"}
    response = one(app, "POST", "/v1/evaluate", content=bomb.getvalue(), headers=kind)
    assert response.status_code == 413
    assert "unpacked" in response.json()["error"]


def test_giant_images_and_broken_base64_are_errors_of_their_row():
    import zlib
    from base64 import b64encode
    from struct import pack

    from pmray.tasks.images import EXAMPLE, ImageClassification

    def chunk(kind, data):
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    giant = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    task = ImageClassification(labels=("a", "b"))
    assert task.problem({"image": EXAMPLE}) is None
    for image in (b64encode(giant).decode(), "%%%", "/etc/passwd", b64encode(b"text").decode()):
        assert task.problem({"image": image})


def test_metrics_and_documentation(app):
    one(app, "POST", "/v1/predict", json=ROW)
    shown = one(app, "GET", "/metrics").text
    assert 'pmray_requests_total{path="/v1/predict",status="200"}' in shown
    assert "pmray_batch_fill_count" in shown
    document = one(app, "GET", "/openapi.json").json()
    body = document["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert one(app, "POST", "/v1/predict", json={"rows": body["properties"]["rows"]["example"]}).is_success
    labelled = document["paths"]["/v1/evaluate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert one(app, "POST", "/v1/evaluate", json={"rows": labelled["properties"]["rows"]["example"]}).is_success


def test_haproxy_keeps_its_inside_to_this_machine():
    written = "frontend prometheus\n    bind :9101\nfrontend http\n    bind *:80\nlisten stats\n  bind *:8404\n"
    kept = written.replace(" :9101", " 127.0.0.1:9101").replace("*:8404", "127.0.0.1:8404")
    assert kept_inside(written) == kept


def replies(*answers):
    """A transport that gives one answer after the other, and what it was asked."""
    waiting, seen = list(answers), []

    def handle(request):
        seen.append(request)
        answer = waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.MockTransport(handle), seen


def answered(*labels):
    rows = [{"id": str(n), "label": label, "scores": {label: 1.0}} for n, label in enumerate(labels)]
    return httpx.Response(200, json={"model": {}, "predictions": rows})


def test_the_client_tries_again_when_that_may_help():
    busy = httpx.Response(503, json={"error": "busy"}, headers={"retry-after": "3"})
    transport, seen = replies(httpx.ConnectError("away"), busy, httpx.Response(500), answered("a", "b"), answered("c"))
    waits = []
    with pmray.Client("http://x", key="k", transport=transport, sleep=waits.append) as client:
        found = list(client.predict(["one", {"text": "two"}, "three"], batch=2))
    assert [one.label for one in found] == ["a", "b", "c"]
    assert found[0].scores == {"a": 1.0}
    assert len(waits) == 3
    assert waits[1] == 3.0
    assert json.loads(seen[-1].content) == {"rows": [{"text": "three"}]}
    assert seen[0].headers["authorization"] == "Bearer k"


def test_the_client_tells_what_was_refused_and_gives_up_in_time():
    refused = httpx.Response(422, json={"error": "rows: an array is expected"})
    transport, seen = replies(refused)
    with Client("http://x", transport=transport) as client, pytest.raises(EndpointError, match="422: rows: an array"):
        list(client.predict(["one"]))
    assert len(seen) == 1
    transport, _ = replies(httpx.ConnectError("away"))
    with Client("http://x", transport=transport, retry_s=0) as client, pytest.raises(EndpointError, match="not answer"):
        client.facts()


def test_the_client_sends_files(app, tmp_path):
    path = write_rows(tmp_path / "rows.parquet", tiny_rows(30))

    def handle(request):
        options = {"content": request.read(), "headers": dict(request.headers)}
        found = one(app, request.method, str(request.url), **options)
        return httpx.Response(found.status_code, content=found.content)

    with Client("http://127.0.0.1", transport=httpx.MockTransport(handle)) as client:
        assert client.evaluate(path)["rows"] == 30
        assert client.evaluate(tiny_rows(20))["rows"] == 20
        with pytest.raises(EndpointError, match=r"\.csv or \.parquet"):
            client.evaluate("rows.xlsx")
