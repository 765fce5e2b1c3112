"""Workers and nodes of a fit are killed: it goes on from its latest state, and ends as if nothing had been."""

import json
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from pmray.training.trial import read_predictions
from tests.faults.test_kill import family, finished, outcomes, start, titled, wait_for
from tests.tiny import tiny_spec

pytestmark = pytest.mark.slow

ROWS, EPOCHS = 160, 30


def write_spec(folder: Path, *, state_seconds: float = 0.5, **resources) -> Path:
    spec = tiny_spec(folder, resources=resources)
    spec["candidates"] = spec["candidates"][:1]
    # Long enough to be caught in the middle; scored seldom.
    spec["candidates"][0]["recipe"] |= {"epochs": EPOCHS, "precision": "fp32", "lr": 1e-3}
    spec["search"] |= {"state_seconds": state_seconds}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def fit(path: Path) -> subprocess.Popen:
    return start("fit", path, "--candidate", "bert", "--seed", 3)


def kept(folder: Path) -> set[str]:
    """Names of the states that Ray Train holds; one that is being brought there is not among them."""
    lists = (folder / "runs" / "tiny" / "states").rglob("checkpoint_manager_snapshot.json")
    return {name for one in lists for name in re.findall(r"checkpoint_[\d_.-]+\d", one.read_text())}


def predicted(folder: Path):
    final = next(one for one in outcomes(folder) if one["stage"] == "final" and one["status"] == "done")
    ids, scores = read_predictions(folder / "runs" / "tiny" / "predictions" / final["key"] / "test.parquet")
    return final, ids, scores


def is_whole(folder: Path) -> None:
    """That it has the weights of a fit that never stopped, bit for bit, is a unit test's to show."""
    final, ids, scores = predicted(folder)
    assert 0 < final["facts"]["resumed_at"] < ROWS * EPOCHS
    assert final["score"] > 0.9
    assert len(ids) == len(scores) == 80
    assert not kept(folder), "the state of a fit that has ended is of no use"


def test_killed_workers_and_drivers_cost_what_came_after_the_latest_state(tmp_path):
    path = write_spec(tmp_path, workers=2)
    driver = fit(path)
    wait_for(lambda: kept(tmp_path))
    worker = wait_for(lambda: [one for one in family(driver) if titled(one, "ray::RayTrainWorker")])[-1]
    worker.send_signal(signal.SIGKILL)
    # The group starts again, and gets further than it was.
    worker.wait(20)
    known = kept(tmp_path)
    wait_for(lambda: kept(tmp_path) - known)
    children = family(driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    # Two of Ray's agents do not notice that their driver is gone.
    for child in psutil.wait_procs(children, timeout=15)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    again = fit(path)
    _, err = again.communicate(timeout=400)
    assert again.returncode == 0, err
    assert sum(finished(tmp_path, "final").values()) == 1
    is_whole(tmp_path)


@pytest.mark.parametrize("announced", [False, True], ids=["killed", "announced"])
def test_a_lost_node_leaves_an_elastic_fit_with_fewer_workers(tmp_path, announced):
    # Where the loss is announced, the state is kept for that alone: none is due for an hour.
    path = write_spec(tmp_path, workers=[1, 2], state_seconds=3600 if announced else 0.5)
    command = [sys.executable, str(Path(__file__).with_name("lose_a_node.py")), str(path)]
    command += ["--announced"] if announced else []
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["nodes_left"] == 2
    is_whole(tmp_path)
