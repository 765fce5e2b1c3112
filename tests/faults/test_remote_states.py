"""A fit of several workers whose storage is an object store goes on from there, on a machine that has seen nothing."""

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest
import yaml

from pmray import storage
from pmray.storage import names_in
from tests.faults.test_kill import family, start, wait_for
from tests.tiny import tiny_spec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PMRAY_FLEET_TESTS" not in os.environ, reason="takes many minutes; PMRAY_FLEET_TESTS=1 runs it"),
]


def test_a_fit_of_two_workers_goes_on_from_the_object_store(bucket, tmp_path, monkeypatch):
    spec = tiny_spec(
        tmp_path, resources={"workers": 2}, storage=f"{bucket}/runs", registry=f"sqlite:///{tmp_path / 'registry.db'}"
    )
    spec["candidates"] = spec["candidates"][:1]
    spec["candidates"][0]["recipe"] |= {"epochs": 60, "precision": "fp32", "lr": 1e-3}
    spec["search"] |= {"state_seconds": 0.5}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(spec))
    driver = start("fit", path, "--candidate", "bert", "--seed", 3)
    wait_for(lambda: [one for one in names_in(f"{bucket}/runs/tiny/states") if one.endswith(".pt")])
    children = family(driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    for child in psutil.wait_procs(children, timeout=15)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    monkeypatch.setenv(storage.COPIES, str(tmp_path / "another machine"))
    for _ in range(5):
        again = start("fit", path, "--candidate", "bert", "--seed", 3)
        _, err = again.communicate(timeout=400)
        if "another process" not in err:
            break
        # A run in an object store is held for half a minute by a driver that was killed.
        time.sleep(10)
    assert again.returncode == 0, err
    ledger = storage.local(f"{bucket}/runs/tiny") / "ledger.jsonl"
    [final] = [one for one in map(yaml.safe_load, ledger.read_text().splitlines()) if one["stage"] == "final"]
    assert final["status"] == "done"
    assert 0 < final["facts"]["resumed_at"] < 160 * 60
    assert os.environ[storage.COPIES] in str(ledger)
