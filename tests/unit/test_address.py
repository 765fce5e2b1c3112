"""Where a cluster is: one rule, and one sentence for each way in which it does not let us in."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import grpc
import pytest

from pmray.distributed.address import Address, Kind, address_of, for_driver, knock
from pmray.errors import ClusterError


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (None, {}, Kind.here),
        ("local", {"RAY_ADDRESS": "head:6379"}, Kind.here),
        (None, {"RAY_ADDRESS": "head:6379"}, Kind.cluster),
        (None, {"RAY_ADDRESS": ""}, Kind.here),
        ("auto", {"RAY_ADDRESS": "head:6379"}, Kind.cluster),
        ("ray://head:10001", {}, Kind.client),
        ("http://head:8265/", {}, Kind.dashboard),
        ("https://ray.example.org/team", {}, Kind.dashboard),
    ],
)
def test_the_rule(given, environment, expected):
    assert address_of(given, environment).kind is expected


@pytest.mark.parametrize("given", ["head", "s3://head:1", "://head:1", "head:", "head:port", "ray://head"])
def test_what_is_no_address_is_said_with_its_origin(given):
    with pytest.raises(ClusterError, match=r"--address is .*, but a cluster's address is auto"):
        address_of(given)
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS is "):
        address_of(None, {"RAY_ADDRESS": given})


def test_a_driver_is_not_steered_through_a_dashboard_or_a_client():
    with pytest.raises(ClusterError, match=r"pmray submit COMMAND … --address http://head:8265"):
        for_driver(address_of("http://head:8265"))
    with pytest.raises(ClusterError, match=r"ends a run with the connection.*http://head:8265"):
        for_driver(address_of("ray://head:10001"))
    assert for_driver(address_of("ray://head:10001"), short=True).kind is Kind.client


class Store(grpc.GenericRpcHandler):
    """A control store that asks for the token ``right``."""

    def service(self, call):
        if call.method != "/ray.rpc.NodeInfoGcsService/CheckAlive":
            return None
        if dict(call.invocation_metadata).get("authorization") == "Bearer right":
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        )


@contextmanager
def store():
    server = grpc.server(ThreadPoolExecutor(1), handlers=(Store(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@contextmanager
def dashboard():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.headers.get("Authorization") == "Bearer right" else 401)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@pytest.mark.parametrize("place", [store, dashboard])
def test_the_token_decides_and_each_refusal_is_one_sentence(place, monkeypatch, tmp_path):
    with place() as value:
        address = Address(Kind.dashboard if value.startswith("http") else Kind.cluster, value, "--address")
        with pytest.raises(ClusterError, match="asks for a token, and none was sent; set RAY_AUTH_MODE=token"):
            knock(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with pytest.raises(ClusterError, match="asks for a token, and this process has none"):
            knock(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
        with pytest.raises(ClusterError, match="refuses the token of this process"):
            knock(address)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
        knock(address)
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("right\n")
        knock(address)


@pytest.mark.parametrize("value", ["127.0.0.1:1", "http://127.0.0.1:1"])
def test_nobody_there_is_said_at_once(value):
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at '.*127.0.0.1:1' \(from --address\)"):
        knock(address_of(value))


def test_something_else_that_speaks_http_is_no_dashboard():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ClusterError, match="is no Ray dashboard: it answers 404"):
            knock(address_of(f"http://127.0.0.1:{server.server_port}"))
    finally:
        server.shutdown()
