"""What all tests share."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4

import pytest

# Before anything imports the libraries that read them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models: a second thread costs more in waiting than it computes, above all beside Ray's processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    # Each process of pytest has a cluster of its own, and must not find the other's where Ray notes the latest one.
    place = Path(os.environ.get("RAY_TMPDIR", gettempdir())) / f"pmray-{worker}"
    place.mkdir(parents=True, exist_ok=True)
    os.environ["RAY_TMPDIR"] = str(place)


@pytest.fixture(scope="session")
def ray_cluster():
    """One local cluster of two CPUs for the whole session."""
    import ray

    from pmray.distributed.cluster import SETTINGS, start_here
    from pmray.serving import haproxy

    os.environ.update(SETTINGS | haproxy.settings())
    start_here(num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of larger data sets and models; tests that need it are skipped without it."""
    folder = Path(os.environ.get("PMRAY_SHARED", "../shared"))
    if not (folder / "data").is_dir():
        pytest.skip("PMRAY_SHARED (default ../shared) holds no data sets")
    return folder.absolute()


@pytest.fixture(scope="session")
def object_store():
    """An S3-compatible server on this machine (moto's); its URL."""
    pytest.importorskip("moto", reason="moto is not installed (pip install 'pmray[test]')")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def bucket(object_store, monkeypatch, tmp_path):
    """A new bucket there, and a folder of local copies of this test's own; the bucket's URL."""
    from pyarrow import fs

    from pmray import storage

    for name, value in {
        "AWS_ENDPOINT_URL": object_store,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        storage.COPIES: str(tmp_path / "copies"),
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid4().hex[:8]}"
    host = object_store.removeprefix("http://")
    options = {"endpoint_override": host, "scheme": "http", "region": "us-east-1"}
    fs.S3FileSystem(**options, allow_bucket_creation=True).create_dir(name)
    return f"s3://{name}"
