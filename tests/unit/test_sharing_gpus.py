"""Several trials on one GPU: how many, and what each then asks for."""

import dataclasses
import io

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console

from pmray.spec import Resources
from pmray.spec_file import spec_from
from pmray.stages import fitting
from pmray.training.memory import gpu_memory
from tests.tiny import tiny_spec
from tests.unit.test_trial import work  # noqa: F401


class Prepared:
    """What ``share_gpus`` needs of a prepared run."""

    def __init__(self, spec):
        self.spec = spec
        self.arms = {one.name: dataclasses.make_dataclass("Arm", ["default"])(None) for one in spec.candidates}

    def work(self, stage, name, recipe, seed):
        return name


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "replace", lambda prepared, spec: Prepared(spec))
    spec = tiny_spec(tmp_path)
    spec["resources"] = {"gpus_per_worker": 1, "share_gpu": True}
    spec["candidates"][1]["resources"] = {"gpus_per_worker": 1}
    return Prepared(spec_from(spec))


def test_trials_ask_for_the_part_of_a_gpu_that_a_step_was_seen_to_take(prepared, monkeypatch):
    first, second, *_ = (one.name for one in prepared.spec.candidates)
    asked = {}
    monkeypatch.setattr(
        fitting, "measure_gpu_memory", lambda works, resources: asked.update(works) or {first: (20 * 10**9, 80 * 10**9)}
    )
    console = Console(record=True, quiet=False, width=200, file=io.StringIO())
    shared = fitting.share_gpus(prepared, [first, second], console)
    assert f"{first}: a step takes 20.0 of 80.0 GB of a GPU, which 3 trial(s) share" in console.export_text()
    # Who does not share is not measured, and keeps its GPU.
    assert list(asked) == [first]
    gpus = {one.name: shared.spec.resources_of(one).gpus_per_worker for one in shared.spec.candidates}
    assert gpus[first] == pytest.approx(1 / 3) and gpus[second] == 1
    assert spec_from(shared.spec.model_dump()), "what is written down can be read again"


def test_where_nothing_could_be_measured_each_trial_has_a_gpu(prepared, monkeypatch):
    monkeypatch.setattr(fitting, "measure_gpu_memory", lambda works, resources: {})
    names = [one.name for one in prepared.spec.candidates]
    shared = fitting.share_gpus(prepared, names, Console(quiet=True))
    assert {shared.spec.resources_of(one).gpus_per_worker for one in shared.spec.candidates} == {1}


def test_only_trials_of_one_worker_and_one_gpu_share():
    with pytest.raises(ValidationError, match="share_gpu: true"):
        Resources(share_gpu=True)
    with pytest.raises(ValidationError, match="share_gpu: true"):
        Resources(share_gpu=True, workers=2, gpus_per_worker=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_there_is_nothing_to_measure(work):  # noqa: F811
    assert gpu_memory(work) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_is_measured_on_a_gpu(work):  # noqa: F811
    needed, total = gpu_memory(work)
    assert 0 < needed < total
