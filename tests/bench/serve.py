"""Endpoints side by side: pmray's, the documented Serve deployments, FastAPI with a pipeline, MLflow's server.

``python -m tests.bench.serve [BUNDLE|- [SECONDS [WAY...]]]``: the same bundle (without one, MiniLM-L6 is fitted to
SST-2 first), texts (SST-2) and load, which comes from a process of its own; one server at a time; the bare batched
forward in one process is the limit. CPU time a row (of the server and all that it started, not of the load) says
something even where neighbours take the cores.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory, mkdtemp

import httpx
import psutil
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import pmray
from pmray.bundle import open_bundle
from pmray.registry import register
from pmray.serving.haproxy import free_port
from tests.bench.load import KEY

SST2 = Path(os.environ.get("PMRAY_SHARED", "../shared")) / "data" / "text_classification" / "sst2" / "test.parquet"
CONNECTIONS = 64
ROWS = 32
"""Rows of a large request; 8 connections send them."""

OFFLINE = """
import json, sys, time
import pyarrow.parquet as pq
from pmray.bundle import open_bundle
from pmray.serving.precision import open_weights
import torch
torch.set_num_threads(int(sys.argv[3]))
bundle = open_bundle(sys.argv[1])
chosen = open_weights(bundle, "auto", float(sys.argv[4]))
weights = chosen.weights
processor = bundle.task.processor(str(bundle.folder))
table = bundle.task.rows([{"text": text} for text in pq.read_table(sys.argv[2])["text"].to_pylist()[:1024]])
inputs = bundle.task.encode(table, processor, bundle.max_length)
def timed(rows, seconds=6.0):
    done, began, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        weights.scores(inputs.slice(done * rows % 960, rows)); done += 1
    return (time.perf_counter() - began) / (done * rows), (time.process_time() - used) * 1e3 / (done * rows)
timed(64, 1.0)
(seconds, cpu), (single, single_cpu) = timed(64), timed(1, 3.0)
print(json.dumps({"computed": f"{chosen.precision}, {chosen.best.runtime}", "rows_per_second": 1 / seconds,
                  "cpu_ms": cpu, "single_ms": 1e3 * single, "single_cpu_ms": single_cpu}))
"""

PIPELINE = """
import sys
from ray import serve
from starlette.requests import Request
from transformers import pipeline

@serve.deployment
class Sentiment:
    def __init__(self, folder):
        self.model = pipeline("text-classification", model=folder)

    async def __call__(self, request: Request):
        return self.model((await request.json())["text"])

serve.start(http_options={"port": int(sys.argv[2])})
serve.run(Sentiment.bind(sys.argv[1]), blocking=True)
"""

BATCH = """
import sys
from ray import serve
from starlette.requests import Request
from transformers import pipeline

@serve.deployment(max_ongoing_requests=200)
class Sentiment:
    def __init__(self, folder):
        self.model = pipeline("text-classification", model=folder)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01)
    async def answer(self, texts):
        return self.model(texts, batch_size=len(texts))

    async def __call__(self, request: Request):
        return await self.answer((await request.json())["text"])

serve.start(http_options={"port": int(sys.argv[2])})
serve.run(Sentiment.bind(sys.argv[1]), blocking=True)
"""

FASTAPI = """
import sys
import uvicorn
from fastapi import FastAPI, Request
from transformers import pipeline

app, model = FastAPI(), pipeline("text-classification", model=sys.argv[1])

@app.post("/")
def answer(body: dict):
    return model(body["text"])

uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""

MLFLOW = """
import os, sys, tempfile
import mlflow
from transformers import pipeline

folder = tempfile.mkdtemp() + "/model"
mlflow.transformers.save_model(
    pipeline("text-classification", model=sys.argv[1]), folder, task="text-classification",
    pip_requirements=["torch", "transformers"],
)
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
os.execvp("mlflow", ["mlflow", "models", "serve", "-m", folder, "--env-manager", "local", "-p", sys.argv[2]])
"""


def pmray_command(*options: str) -> Callable[[str, int], list[str]]:
    """The command line of pmray's endpoint."""
    return lambda folder, port: [sys.executable, "-m", "pmray", "serve", folder, "--port", str(port), *options]


def with_all(*options: str) -> Callable[[str, int], list[str]]:
    """The same with a key, and with a challenger that answers every row too, unseen."""

    def command(folder: str, port: int) -> list[str]:
        place = Path(mkdtemp(prefix="bench-serve-"))
        atexit.register(shutil.rmtree, place, ignore_errors=True)
        twin = Path(shutil.copytree(folder, place / "twin"))
        settings = json.loads((twin / "pmray.json").read_text())
        (twin / "pmray.json").write_text(json.dumps(settings | {"key": "twin"}))
        uri = f"sqlite:///{place / 'registry.db'}"
        for alias, one in (("champion", folder), ("challenger", str(twin))):
            register(open_bundle(one), uri, metrics={}, params={}, alias=alias)
        name = open_bundle(folder).name
        return ["env", f"PMRAY_API_KEYS={KEY}", *pmray_command("--registry", uri, *options)(name, port)]

    return command


def script(text: str) -> Callable[[str, int], list[str]]:
    """A server that is a script."""
    return lambda folder, port: [sys.executable, "-c", text, folder, str(port)]


def as_rows(texts: Sequence[str]) -> dict[str, object]:
    """A request of pmray's."""
    return {"rows": [{"text": one} for one in texts]}


TWO_CPUS = ("--set", "cpus=2")
TWO_PROCESSES = ("--replicas", "2")
INT8 = ("--set", "max_difference=0.15")
"""Golden rows differ by up to 0.04 there, more than the default allows."""

WAYS = {
    "Serve, pipeline() (documented)": (script(PIPELINE), "/", lambda texts: {"text": texts[0]}),
    "Serve, @serve.batch (documented)": (script(BATCH), "/", lambda texts: {"text": texts[0]}),
    "FastAPI + uvicorn, pipeline()": (script(FASTAPI), "/", lambda texts: {"text": texts[0]}),
    "mlflow models serve": (script(MLFLOW), "/invocations", lambda texts: {"inputs": texts[:1]}),
    **{
        name: (pmray_command(*options), "/v1/predict", as_rows)
        for name, options in {
            "pmray": TWO_CPUS,
            "pmray, torch only": (*TWO_CPUS, "--set", "runtime=torch"),
            "pmray, int8": (*TWO_CPUS, *INT8),
            "pmray, nothing kept": (*TWO_CPUS, "--set", "live={enabled: false}"),
            "pmray, two processes beside the one that speaks HTTP": TWO_PROCESSES,
            "pmray, two processes beside it, int8": (*TWO_PROCESSES, *INT8),
            "pmray, two processes that do all": (*TWO_PROCESSES, "--set", "separate=false"),
            "pmray, two processes that do all, int8": (*TWO_PROCESSES, "--set", "separate=false", *INT8),
        }.items()
    },
    "pmray, a key and a challenger": (with_all(*TWO_CPUS), "/v1/predict", as_rows),
    "pmray, the same, int8": (with_all(*TWO_CPUS, *INT8), "/v1/predict", as_rows),
}


@contextmanager
def serving(command: list[str], port: int, path: str, body: bytes) -> Iterator[psutil.Process]:
    """A server that answers, until the end of the block."""
    with NamedTemporaryFile(prefix="bench-serve-", delete=False) as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 240
        while True:
            try:
                headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
                if httpx.post(f"http://127.0.0.1:{port}{path}", content=body, headers=headers, timeout=30).is_success:
                    break
            except httpx.HTTPError:
                pass
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"no answer: {Path(log.name).read_text()[-2000:]}")
            time.sleep(1)
        yield psutil.Process(server.pid)
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def memory_of(server: psutil.Process) -> float:
    """MiB of a server and all that it started."""
    family = [server, *server.children(recursive=True)]
    return sum(one.memory_info().rss for one in family if one.is_running()) / 2**20


def cpu_of(server: psutil.Process) -> float:
    """CPU seconds of a server and all that it started, so far."""
    used = 0.0
    for one in [server, *server.children(recursive=True)]:
        with suppress(psutil.Error):
            times = one.cpu_times()
            used += times.user + times.system
    return used


def measured(server: psutil.Process, rows: int, *arguments) -> dict:
    """As ``load``, with the CPU milliseconds of the server for each row that was answered."""
    before = cpu_of(server)
    found = load(*arguments)
    # The load generator counts after it has warmed up; its share of the CPU time is taken to be the same.
    answered = found["all_answered"] * rows
    return found | {"cpu_ms_per_row": (cpu_of(server) - before) * 1e3 / max(1, answered)}


def load(port: int, path: str, bodies: Path, connections: int, seconds: float, rate: float | None = None) -> dict:
    """What the load generator saw."""
    more = [] if rate is None else [str(rate)]
    command = [sys.executable, "-m", "tests.bench.load", f"http://127.0.0.1:{port}", path, str(bodies)]
    found = subprocess.run(
        [*command, str(connections), str(seconds), *more], capture_output=True, check=True, text=True
    )
    return json.loads(found.stdout)


def fill_of(port: int) -> tuple[float, float]:
    """Batches, and the sum of their fill, so far."""
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"authorization": f"Bearer {KEY}"}).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("pmray_batch_fill_"))
    return float(values.get("pmray_batch_fill_count", 0)), float(values.get("pmray_batch_fill_sum", 0))


def fitted(storage: str) -> str:
    """Folder of a bundle: MiniLM-L6 fitted to 2,000 rows of SST-2."""
    os.environ.setdefault("PMRAY_SHARED", "../shared")
    spec = pmray.load_spec("jobs/specs/sst2.yaml", [f"storage={storage}"])
    return str(pmray.fit(spec, "all-minilm-l6-v2"))


def main(bundle: str = "-", seconds: str = "8", *ways: str) -> None:
    """Run the bench and print a table."""
    # Whoever ends the bench ends its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with TemporaryDirectory() as storage:
        compare(fitted(storage) if bundle == "-" else bundle, float(seconds), ways or list(WAYS))


def compare(folder: str, seconds: float, ways: Sequence[str]) -> None:
    """Measure one server after the other."""
    console, lines = Console(width=160), []
    texts = pq.read_table(SST2)["text"].to_pylist()
    for threads, difference in ((1, 0.01), (2, 0.01), (1, 0.15), (2, 0.15)):
        command = [sys.executable, "-c", OFFLINE, folder, str(SST2), str(threads), str(difference)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()[-1])
        lines.append((f"bare forward, {threads} threads, {found['computed']}", found))
        console.print(lines[-1])
    for name in ways:
        make, path, body = WAYS[name]
        port = free_port("127.0.0.1")
        with TemporaryDirectory() as place:
            single, large = Path(place) / "single", Path(place) / "large"
            single.write_text("\n".join(json.dumps(body([text])) for text in texts))
            groups = [texts[start : start + ROWS] for start in range(0, 1024, ROWS)]
            large.write_text("\n".join(json.dumps(body(group)) for group in groups))
            first = single.read_bytes().splitlines()[0]
            try:
                with serving(make(folder, port), port, path, first) as server:
                    found = {"1": measured(server, 1, port, path, single, 1, seconds / 2)}
                    found["64"] = measured(server, 1, port, path, single, CONNECTIONS, seconds)
                    if name.startswith("pmray"):
                        before = fill_of(port)
                        found["rows"] = measured(server, ROWS, port, path, large, 8, seconds)
                        after = fill_of(port)
                        if "that do all" not in name:
                            # Each of several such processes tells of itself alone.
                            found["fill"] = (after[1] - before[1]) / max(1.0, after[0] - before[0])
                        memory = memory_of(server)
                        found["twice"] = load(port, path, single, 512, seconds, 2 * found["64"]["per_second"])
                        found["memory"] = (memory, memory_of(server))
            except (RuntimeError, subprocess.CalledProcessError) as error:
                found = {"error": str(error)[-500:]}
        lines.append((name, found))
        console.print(lines[-1])
    table = Table(
        "way", "1 connection p50", f"{CONNECTIONS}: requests/s", "p50", "p99", f"rows/s of {ROWS} a request", "fill",
        "CPU ms a row",
    )  # fmt: skip
    for name, found in lines:
        if "64" not in found:
            shown = [f"{found[key]:.1f}" if key in found else "" for key in ("single_ms", "rows_per_second", "cpu_ms")]
            table.add_row(name, *shown[:2], "", "", "", "", shown[2])
            continue
        many, rows = found["64"], found.get("rows")
        table.add_row(
            name,
            f"{found['1']['p50_ms']:.1f} ms",
            f"{many['per_second']:.0f}",
            f"{many['p50_ms']:.0f} ms",
            f"{many['p99_ms']:.0f} ms",
            f"{rows['per_second'] * ROWS:.0f}" if rows else "",
            f"{found['fill']:.0%}" if "fill" in found else "",
            f"{many['cpu_ms_per_row']:.1f}" + (f" ({rows['cpu_ms_per_row']:.1f})" if rows else ""),
        )
    console.print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
