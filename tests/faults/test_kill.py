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
    spec["search"] |= {"trials": 6, "rungs": 0}
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


def test_a_killed_driver_continues_where_it_was(tmp_path):
    spec = write_spec(tmp_path)
    driver = start("sweep", spec)
    wait_for(lambda: sum(finished(tmp_path, "sweep").values()) >= 2)
    children = family(driver)
    agents = [one for one in children if titled(one, "ray::DashboardAgent") or titled(one, "ray::RuntimeEnvAgent")]
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    # Ray's reaper ends everything but the raylet's two agents, which notice late or never that they are alone.
    assert gone([child for child in children if child not in agents]), "Ray's processes outlived their driver"
    for agent in agents:
        with suppress(psutil.NoSuchProcess):
            agent.kill()
    before = finished(tmp_path, "sweep")
    second = start("sweep", spec, "--json")
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    after = finished(tmp_path, "sweep")
    assert set(before) <= set(after)
    assert sum(after.values()) == 6
    assert max(after.values()) == 1, "something finished was repeated"
    verdict = json.loads(out)
    assert {line["name"] for line in verdict["lines"]} >= {"bert", "llama", "majority class"}


def test_an_interrupted_sweep_leaves_no_process_behind(tmp_path):
    spec = write_spec(tmp_path)
    driver = start("sweep", spec)
    wait_for(lambda: sum(finished(tmp_path, "sweep").values()) >= 1)
    children = family(driver)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "Traceback" not in err
    assert gone(children)


def test_a_terminated_driver_leaves_no_process_behind(tmp_path):
    spec = write_spec(tmp_path)
    driver = start("sweep", spec)
    wait_for(lambda: sum(finished(tmp_path, "sweep").values()) >= 1)
    children = family(driver)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "the same command continues" in err
    assert gone(children)


def test_a_killed_worker_costs_its_trial_a_second_start_and_nothing_else(tmp_path):
    driver = start("sweep", write_spec(tmp_path), "--json")
    wait_for(lambda: sum(finished(tmp_path, "sweep").values()) >= 1)
    before = finished(tmp_path, "sweep")

    def trial() -> psutil.Process | None:
        return next((child for child in family(driver) if titled(child, "ray::ImplicitFunc")), None)

    wait_for(trial).kill()
    out, err = driver.communicate(timeout=300)
    assert driver.returncode == 0, err
    after = finished(tmp_path, "sweep")
    assert set(before) <= set(after)
    assert (sum(after.values()), max(after.values())) == (6, 1), outcomes(tmp_path)
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
