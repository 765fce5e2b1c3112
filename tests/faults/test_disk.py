"""Disks that are really full: a small file system where the states of a fit, or its weights, are to go."""

import subprocess
from pathlib import Path

import pytest

import pmray
from pmray.training.state import StateFile
from tests.faults.test_kill import outcomes
from tests.faults.test_workers import EPOCHS, ROWS, write_spec
from tests.tiny import tiny_model
from tests.unit.test_loop import Setting

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path):
    """Make a folder a disk of some kilobytes."""
    mounted = []

    def make(folder: Path, kilobytes: int) -> Path:
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_fit_without_room_for_its_states_ends_as_if_it_kept_none(tmp_path, small_disk):
    model = tiny_model(tmp_path / "bert")
    keeper = StateFile(small_disk(tmp_path / "states", 64) / "state.pt", seconds=0)
    whole, poor = Setting(model), Setting(model)
    expected = whole.fit()
    assert poor.fit(keeper=keeper).validation.tobytes() == expected.validation.tobytes()
    assert "no state could be kept" in keeper.problem
    assert list(keeper.path.parent.iterdir()) == []


@pytest.mark.usefixtures("ray_cluster")
def test_workers_without_room_for_their_states_end_the_fit_all_the_same(tmp_path, small_disk):
    spec = pmray.load_spec(write_spec(tmp_path, workers=2))
    small_disk(tmp_path / "runs" / "tiny" / "states", 64)
    pmray.fit(spec, "bert", seed=3)
    final = next(one for one in outcomes(tmp_path) if one["stage"] == "final")
    assert final["status"] == "done" and final["examples"] == ROWS * EPOCHS
    assert "no state could be kept" in final["facts"]["state_problem"]


@pytest.mark.usefixtures("ray_cluster")
def test_weights_without_room_are_one_clear_error(tmp_path, small_disk):
    spec = pmray.load_spec(write_spec(tmp_path))
    small_disk(tmp_path / "runs" / "tiny" / "checkpoints", 16)
    with pytest.raises(pmray.NoVerdict, match="No space left on device"):
        pmray.fit(spec, "bert", recipe={"epochs": 1})
    assert [one["status"] for one in outcomes(tmp_path)] == ["failed"]
