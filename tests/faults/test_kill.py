"""Real processes are killed; what was finished must not be repeated, and the verdict must be whole."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
import yaml

from tests.tiny import tiny_bundle, tiny_spec

pytestmark = pytest.mark.slow

TRIALS = 9


def start(*arguments: object) -> subprocess.Popen:
    """`pmray ARGUMENTS` as a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "pmray", *map(str, arguments)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would all that they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def outcomes(folder: Path) -> list[dict]:
    ledger = folder / "runs" / "tiny" / "ledger.jsonl"
    lines = ledger.read_bytes().split(b"\n")[:-1] if ledger.exists() else []
    return [json.loads(line) for line in lines if line]


def wait_for(condition, seconds: float = 120):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.05)
    return found


def write_spec(folder: Path) -> Path:
    spec = tiny_spec(folder)
    spec["search"] |= {"trials": TRIALS, "rungs": 0}
    # Long enough to be caught in the middle.
    for candidate in spec["candidates"]:
        candidate["recipe"] = {**candidate["recipe"], "epochs": 12}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def finished(folder: Path, stage: str) -> Counter:
    return Counter(one["key"] for one in outcomes(folder) if one["stage"] == stage and not one["may_pass"])


def gone(processes: list[psutil.Process], seconds: float = 30) -> bool:
    def running(process):
        with suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    return wait_for(lambda: not any(running(process) for process in processes), seconds)


def titled(process: psutil.Process, title: str) -> bool:
    """Whether a process that may have ended in the meantime calls itself so."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and "".join(process.cmdline()[:1]).startswith(title)
    return False


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """The driver's Ray processes: its children and theirs."""
    return psutil.Process(process.pid).children(recursive=True)


def started(folder: Path, spec: Path, more: int) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """A sweep that has finished some trials more than there were, and its processes."""
    before = sum(finished(folder, "sweep").values())
    driver = start("sweep", spec, "--json")
    wait_for(lambda: sum(finished(folder, "sweep").values()) >= before + more)
    return driver, family(driver)


def test_a_sweep_outlives_whatever_ends_it_and_repeats_nothing(tmp_path):
    """One sweep is ended by Ctrl-C, SIGTERM and SIGKILL, goes on each time, and in the end loses a trial's worker."""
    spec = write_spec(tmp_path)
    driver, children = started(tmp_path, spec, 1)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert (driver.returncode, "Traceback" in err) == (130, False), err
    assert gone(children), "Ctrl-C left processes behind"

    driver, children = started(tmp_path, spec, 1)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert (driver.returncode, "the same command continues" in err) == (130, True), err
    assert gone(children), "SIGTERM left processes behind"

    driver, children = started(tmp_path, spec, 1)
    agents = [one for one in children if titled(one, "ray::DashboardAgent") or titled(one, "ray::RuntimeEnvAgent")]
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    # Ray's reaper ends everything but the raylet's two agents, which notice late or never that they are alone.
    assert gone([child for child in children if child not in agents]), "Ray's processes outlived their driver"
    for agent in agents:
        with suppress(psutil.NoSuchProcess):
            agent.kill()

    before = finished(tmp_path, "sweep")
    assert sum(before.values()) < TRIALS, "nothing is left of the sweep"
    driver = start("sweep", spec, "--json")

    def trial() -> psutil.Process | None:
        return next((child for child in family(driver) if titled(child, "ray::ImplicitFunc")), None)

    wait_for(trial).kill()
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    after = finished(tmp_path, "sweep")
    assert set(before) <= set(after)
    assert (sum(after.values()), max(after.values())) == (TRIALS, 1), outcomes(tmp_path)
    assert {line["name"] for line in json.loads(out)["lines"]} >= {"bert", "llama", "majority class"}


def test_a_terminated_server_frees_its_port_and_leaves_no_process_behind(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def ready() -> bool:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status == 200
        return False

    server = start("serve", tiny_bundle(tmp_path / "bundle"), "--port", port)
    wait_for(ready)
    children = family(server)
    server.send_signal(signal.SIGTERM)
    _, err = server.communicate(timeout=60)
    assert server.returncode == 0
    assert "Traceback" not in err
    assert gone(children)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
