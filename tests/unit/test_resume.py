"""An interrupted fit goes on where it was, and ends with the weights of one that never stopped."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pmray.spec import Recipe
from pmray.training import loop, sharding
from pmray.training.state import StateFile, copy_state, read_state
from tests.tiny import tiny_model
from tests.unit.test_loop import RECIPE, Setting, farthest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "bert")


class Killed(Exception):
    """Stands for the end of the process."""


class AtStep(StateFile):
    """Keeps a state after one step of the fit, and ends the fit some steps later."""

    def __init__(self, path, step, later):
        super().__init__(path, seconds=float("inf"))
        self.step, self.end, self.asked = step, step + later, 0

    def urgent(self):
        self.asked += 1
        if self.asked == self.end:
            raise Killed
        return self.asked == self.step


RECIPES = {
    "fp32": RECIPE,
    "bf16": RECIPE.changed({"precision": "bf16"}),
    "dropout": RECIPE.changed({"dropout": 0.3}),
    "balanced": RECIPE.changed({"sampling": "balanced", "patience": 5, "layer_decay": 0.9}),
    "adapters": RECIPE.changed({"lora_rank": 2, "precision": "bf16"}),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("step", [3, 13])
def test_a_fit_that_goes_on_gives_the_weights_of_one_that_never_stopped(folder, tmp_path, name, step):
    """Eight steps an epoch, rungs after 160 and 480 examples: step 3 is before the first rung, step 13 behind it."""
    recipe = RECIPES[name]
    whole = Setting(folder, recipe=recipe)
    expected = whole.fit(recipe)
    with pytest.raises(Killed):
        Setting(folder, recipe=recipe).fit(recipe, keeper=AtStep(tmp_path / "state.pt", step, later=4))
    again = Setting(folder, recipe=recipe, seed=99)  # other first weights: all must come from the state
    reported = []
    found = again.fit(recipe, keeper=StateFile(tmp_path / "state.pt"), report=reported.append)
    assert farthest(whole.weights(), again.weights()) == 0
    assert found.validation.tobytes() == expected.validation.tobytes()
    assert [(rung.examples, rung.score) for rung in found.curve] == [(r.examples, r.score) for r in expected.curve]
    assert (found.examples, found.loss) == (expected.examples, expected.loss)
    assert len(reported) == (2 if step == 3 else 1)


@pytest.mark.parametrize("name", ["fp32", "adapters"])
def test_a_variant_that_goes_on_from_its_parents_state_is_one_that_was_fitted_from_the_start(folder, tmp_path, name):
    parent = RECIPES[name]
    with pytest.raises(Killed):
        Setting(folder, recipe=parent).fit(parent, keeper=AtStep(tmp_path / "parent.pt", 13, later=1))
    seen = read_state(tmp_path / "parent.pt")["counts"][0]
    variant = parent.changed({"lr_changes": ((seen / 480, 0.25),)})
    assert copy_state(str(tmp_path), "parent", "variant")
    assert not copy_state(str(tmp_path), "nobody", "variant")
    on, whole = Setting(folder, recipe=variant, seed=99), Setting(folder, recipe=variant)
    found = on.fit(variant, keeper=StateFile(tmp_path / "variant.pt"))
    expected = whole.fit(variant)
    assert farthest(whole.weights(), on.weights()) == 0
    assert found.loss == expected.loss != Setting(folder, recipe=parent).fit(parent).loss
    assert (tmp_path / "parent.pt").is_file(), "its parent goes on from it too"


def test_a_damaged_state_costs_the_time_and_not_the_fit(folder, tmp_path):
    path = tmp_path / "state.pt"
    with pytest.raises(Killed):
        Setting(folder).fit(keeper=AtStep(path, 5, later=1))
    path.write_bytes(path.read_bytes()[:-200])
    keeper = StateFile(path)
    whole, again = Setting(folder), Setting(folder)
    assert whole.fit().validation.tobytes() == again.fit(keeper=keeper).validation.tobytes()
    assert "state.pt cannot be read" in keeper.problem and "started over" in keeper.problem


def test_a_full_disk_costs_the_states_and_not_the_fit(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    keeper = StateFile(tmp_path / "state.pt", seconds=0)
    assert Setting(folder).fit(keeper=keeper).examples == 480
    assert "No space left on device" in keeper.problem
    assert list(tmp_path.iterdir()) == []


def test_a_state_is_read_without_running_code(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "code-ran",))

    torch.save({"weights": Trap()}, tmp_path / "state.pt")
    keeper = StateFile(tmp_path / "state.pt")
    assert keeper.load() is None and keeper.problem
    assert not (tmp_path / "code-ran").exists()
    keeper = StateFile(tmp_path / "kept.pt", seconds=0)
    Setting(folder).fit(keeper=keeper)
    assert read_state(keeper.path)["counts"][0] < 480
    keeper.discard()
    assert not keeper.path.exists()


def test_a_fit_that_stopped_getting_better_ends_early(folder, monkeypatch):
    from pmray.tasks.text import TextClassification

    scores = iter([0.5, 0.9, 0.8, 0.8, 0.95])
    monkeypatch.setattr(TextClassification, "score", lambda *_: np.array([next(scores)]))
    fitted = Setting(folder).fit(Recipe(**{**RECIPE.model_dump(), "patience": 2}), rungs=[96, 192, 288, 384, 480])
    assert [rung.score for rung in fitted.curve] == [0.5, 0.9, 0.8, 0.8]
    assert fitted.score == 0.9


def test_a_loss_that_runs_away_ends_the_fit(folder, monkeypatch):
    setting = Setting(folder)
    fit = loop.Loop(
        setting.model, setting.task, RECIPE, setting.train, setting.targets, setting.validation,
        setting.validation_targets, "f1_macro", [160, 480], 0, "tiny", None,
    )  # fmt: skip
    fit.first_losses, fit.losses, fit.seen = [0.7] * loop.FIRST_STEPS, [2.5] * 5, 160
    with pytest.raises(loop.Diverged, match=r"mean loss \(at first 0.7\) rose to 2.5 at step 0 with lr 0.003"):
        fit._evaluate()


def shard_in_a_process(rank, store, folder, states, answer):
    """A sharded fit of two workers: whole, and interrupted and gone on with."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for name in ("whole", "interrupted", "again"):
        setting = Setting(folder, seed=99 if name == "again" else 0)
        sharding.shard(setting.model, low_precision=False)
        keeper = AtStep(states / "state.pt", 13, later=4) if name == "interrupted" else StateFile(states / "state.pt")
        keeper.writes = rank == 0
        try:
            fitted = setting.fit(RECIPE, keeper=None if name == "whole" else keeper)
        except Killed:
            dist.barrier()
            continue
        weights = sharding.whole_weights(setting.model)
        found[name] = {"validation": fitted.validation, "weights": weights, "resumed_at": fitted.resumed_at}
    if rank == 0:
        torch.save(found, answer)
    dist.barrier()
    os._exit(0)


def test_a_sharded_fit_goes_on_with_as_many_workers_or_alone(folder, tmp_path):
    mp.spawn(shard_in_a_process, (tmp_path / "store", folder, tmp_path, tmp_path / "answer"), nprocs=2)
    found = torch.load(tmp_path / "answer", weights_only=False)
    assert 0 < found["again"]["resumed_at"] < 480
    assert farthest(found["again"]["weights"], found["whole"]["weights"]) == 0
    alone = Setting(folder, seed=99)
    fitted = alone.fit(keeper=StateFile(tmp_path / "state.pt"))
    assert fitted.resumed_at == found["again"]["resumed_at"]
    np.testing.assert_allclose(fitted.validation, found["whole"]["validation"], atol=1e-3)
