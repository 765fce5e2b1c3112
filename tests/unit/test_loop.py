"""The training loop: it learns, it repeats itself, and N processes do what one does."""

import copy
import gc
import os
import time
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pmray.data.encode import encode_table
from pmray.errors import Diverged, OutOfMemory
from pmray.spec import Candidate, Recipe
from pmray.tasks.text import TextClassification
from pmray.training import loop, prediction
from pmray.training.model import locate, open_model
from pmray.training.optimizer import rate_factor
from pmray.training.prediction import logits_to_scores, map_rows, measure_latency, predict
from tests.tiny import tiny_model, tiny_rows

TASK = TextClassification(labels=("negative", "positive"), positive="negative")
RECIPE = Recipe(lr=3e-3, epochs=4, batch_size=16, dropout=0.0, precision="fp32", warmup=0.0)


class Setting:
    """A tiny model and rows that it can learn; made from a folder, so that processes can make the same."""

    task = TASK

    def __init__(self, folder, train=120, seed=0, dropout=0.0, recipe=None):
        self.pretrained = locate(Candidate(model=str(folder)))
        processor = TASK.processor(str(folder))
        self.train, self.targets = self.encoded(processor, train, 0)
        self.validation, self.validation_targets = self.encoded(processor, 61, 1)
        torch.manual_seed(seed)
        self.model = open_model(self.pretrained, TASK, pad=self.train.pad, recipe=recipe or Recipe(dropout=dropout))

    def encoded(self, processor, count, seed):
        table = pa.Table.from_pylist(tiny_rows(count, seed))
        return encode_table(TASK, table, processor, 16), TASK.targets(table)

    def fit(self, recipe=RECIPE, **options):
        rungs = loop.rungs_of(recipe, len(self.train), 1, 3)
        options = {"metric": "f1_macro", "rungs": rungs, "seed": 0, **options}
        parts = (self.train, self.targets, self.validation, self.validation_targets)
        return loop.fit(self.model, TASK, recipe, *parts, **options)

    def weights(self):
        return {name: value.clone() for name, value in self.model.state_dict().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def setting(folder):
    return Setting(folder)


def farthest(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_a_fit_learns(setting):
    before = predict(setting.model, TASK, setting.validation).argmax(1) == setting.validation_targets
    fitted = setting.fit(RECIPE.changed({"epochs": 10, "batch_size": 8}))
    after = fitted.validation.argmax(1) == setting.validation_targets
    assert before.mean() < 0.7 < 0.85 < after.mean()
    assert fitted.loss < 0.5
    assert fitted.score > 0.85


def test_the_same_seed_gives_the_same_weights_bit_for_bit(folder):
    fits = []
    for seed in (0, 0, 1):
        setting = Setting(folder, dropout=0.1)
        fits.append((setting.fit(RECIPE.changed({"epochs": 1}), seed=seed), setting.weights()))
    (first, weights), (again, same_weights), (_, other_weights) = fits
    assert first.validation.tobytes() == again.validation.tobytes()
    assert farthest(weights, same_weights) == 0
    assert farthest(weights, other_weights) > 0


@pytest.fixture
def under_way(folder):
    """Makes the inside of a fit, to look at single steps."""

    def make(recipe=RECIPE, **options):
        setting = Setting(folder, **options)
        parts = (setting.train, setting.targets, setting.validation, setting.validation_targets)
        return loop.Loop(setting.model, TASK, recipe, *parts, "f1_macro", [480], 0, "tiny", None)

    return make


def gradients(fit, rows):
    loss = fit._gradients(rows)
    return loss, {n: one.grad for n, one in enumerate(fit.optimizer.masters) if one.grad is not None}


def test_small_forward_passes_add_up_to_the_whole_batch(under_way):
    found = [
        gradients(under_way(RECIPE.changed({"max_batch_tokens": tokens})), np.arange(32))
        for tokens in (16, 40, 100_000)
    ]
    *parts, (whole_loss, whole) = found
    for loss, part in parts:
        assert loss == pytest.approx(whole_loss, abs=1e-5)
        assert farthest(whole, part) < 1e-5


def test_a_loss_that_is_not_finite_ends_the_fit_with_the_step_and_the_rate(setting):
    with torch.no_grad():
        setting.model.classifier.bias.fill_(float("nan"))
    with pytest.raises(Diverged, match=r"loss is nan at step 0 with lr 0\.003; use a lower lr"):
        setting.fit()


class Full:
    """A forward pass that runs out of memory at some calls, or with more than some rows."""

    def __init__(self, model, calls=(), rows=10_000, error=torch.OutOfMemoryError):
        self.forward, self.calls, self.rows, self.error, self.call = model.forward, calls, rows, error, 0
        self.sizes = []

    def __call__(self, **batch):
        self.call += 1
        self.sizes.append(len(batch["input_ids"]))
        if self.call in self.calls or len(batch["input_ids"]) > self.rows:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        return self.forward(**batch)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize("calls", [(1,), (50,), (1, 50)])
def test_a_step_that_runs_out_of_memory_is_taken_again_in_smaller_passes(folder, monkeypatch, calls, error):
    recipe = RECIPE.changed({"epochs": 8})
    expected = Setting(folder)
    fitted = expected.fit(recipe)
    setting = Setting(folder)
    monkeypatch.setattr(setting.model, "forward", Full(setting.model, calls, error=error))
    again = setting.fit(recipe)
    assert again.micro_batch_tokens < fitted.micro_batch_tokens
    assert np.allclose(again.validation, fitted.validation, atol=1e-3)
    assert farthest(setting.weights(), expected.weights()) < 1e-3
    assert again.examples == fitted.examples


def test_the_found_size_of_a_pass_stays_found(setting, monkeypatch):
    full = Full(setting.model, rows=4)
    monkeypatch.setattr(setting.model, "forward", full)
    fitted = setting.fit(RECIPE.changed({"epochs": 1}))
    assert fitted.examples == 120
    failed = sum(size > 4 for size in full.sizes)
    # Training finds it in the first step, each of the two evaluations for itself; eight steps would fail 16 times more.
    assert failed < 16


def test_not_even_one_row_is_out_of_memory_with_the_arithmetic(setting, monkeypatch):
    monkeypatch.setattr(setting.model, "forward", Full(setting.model, rows=0))
    with pytest.raises(OutOfMemory, match=r"tiny ran out .* of 1 rows x \d+ tokens \(0.0 GiB .*shard: true"):
        setting.fit(name="tiny")


def test_other_errors_are_not_taken_for_a_lack_of_memory(setting, monkeypatch):
    def wrong(**batch):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(setting.model, "forward", wrong)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        setting.fit()


def test_the_weights_of_the_best_rung_are_restored(setting, monkeypatch):
    scores = iter([0.2, 0.9, 0.9, 0.5])
    monkeypatch.setattr(TextClassification, "score", lambda *_: np.array([next(scores)]))
    at_rung = []
    fitted = setting.fit(rungs=[120, 240, 360, 480], report=lambda rung: at_rung.append(setting.weights()))
    assert [rung.score for rung in fitted.curve] == [0.2, 0.9, 0.9, 0.5]
    assert fitted.score == 0.9
    assert farthest(setting.weights(), at_rung[1]) == 0
    assert np.array_equal(predict(setting.model, TASK, setting.validation, RECIPE), fitted.validation)


def test_every_rung_is_reported_in_examples_seen(setting):
    reported = []
    fitted = setting.fit(RECIPE.changed({"epochs": 2}), rungs=[50, 100, 240], report=reported.append)
    assert [rung.examples for rung in reported] == [50, 100, 240]
    assert tuple(reported) == fitted.curve
    assert fitted.examples == 240
    assert [rung.seconds for rung in reported] == sorted(rung.seconds for rung in reported)


def test_a_fit_may_end_in_the_middle_of_an_epoch(setting):
    assert setting.fit(RECIPE.changed({"epochs": 0.5})).examples in range(60, 60 + RECIPE.batch_size)


def test_rungs_that_fall_into_one_step_are_one_report(setting):
    fitted = setting.fit(rungs=[1, 2, 3, 240])
    assert [rung.examples for rung in fitted.curve] == [3, 240]


def test_what_the_report_raises_ends_the_fit(setting):
    class Enough(Exception):
        pass

    def stop(rung):
        raise Enough

    with pytest.raises(Enough):
        setting.fit(report=stop)


@pytest.mark.parametrize("ends_early", [False, True])
def test_nothing_of_a_fit_stays_in_memory_however_it_ends(folder, ends_early):
    """A process that carries out many trials must not wait for Python to find cycles of hundreds of megabytes."""

    class Enough(Exception):
        pass

    def stop(rung):
        if ends_early:
            raise Enough

    def tables():
        return [one for one in gc.get_objects() if type(one) is torch.nn.Parameter and one.shape[0] == vocabulary]

    setting = Setting(folder, dropout=0.1)
    vocabulary = len(setting.model.get_input_embeddings().weight)
    gc.collect()
    before = len(tables())
    gc.disable()
    try:
        with suppress(Enough):
            setting.fit(report=stop)
        setting.model = None
        assert len(tables()) == before - 1
    finally:
        gc.enable()


def test_frozen_embeddings_stay_as_they_were(folder):
    setting = Setting(folder)
    embeddings = setting.model.get_input_embeddings()
    embeddings.weight.requires_grad_(False)
    before = embeddings.weight.clone()
    setting.fit(RECIPE.changed({"epochs": 1}))
    assert torch.equal(embeddings.weight, before)


@pytest.mark.parametrize(
    ("recipe", "rows", "rungs", "expected"),
    [
        (Recipe(epochs=3), 900, 2, [300, 900, 2700]),
        (Recipe(epochs=3), 900, 0, [2700]),
        (Recipe(epochs=0.001), 100, 1, [1, 1]),
        (Recipe(epochs=0.5), 100, 1, [17, 50]),
    ],
)
def test_rungs_are_powers_of_the_reduction(recipe, rows, rungs, expected):
    assert loop.rungs_of(recipe, rows, rungs, 3) == expected


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_learning_rate_rises_then_falls_as_asked(schedule):
    factors = [rate_factor(step, 100, Recipe(warmup=0.1, schedule=schedule)) for step in range(100)]
    assert 0 < factors[0] < 0.2
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert max(factors) == factors[10] == 1
    assert factors[-1] == 1 if schedule == "constant" else 0 < factors[-1] < 0.05


def test_predictions_do_not_depend_on_the_batches(setting, monkeypatch):
    whole = predict(setting.model, TASK, setting.validation)
    monkeypatch.setattr(prediction, "EVALUATION_TOKENS", 30)
    assert np.allclose(predict(setting.model, TASK, setting.validation), whole, atol=1e-6)


def test_predictions_come_in_the_order_of_the_rows(setting):
    whole = predict(setting.model, TASK, setting.validation)
    order = np.random.default_rng(0).permutation(len(whole))
    part = map_rows(setting.model, TASK, setting.validation, order, logits_to_scores(TASK), None)
    assert np.allclose(part, whole[order], atol=1e-6)


def test_predicting_leaves_a_model_in_evaluation_and_without_gradients(setting):
    setting.model.train()
    predict(setting.model, TASK, setting.validation)
    assert not setting.model.training
    assert all(one.grad is None for one in setting.model.parameters())


def test_latency_is_milliseconds_of_one_row(setting):
    started = time.perf_counter()
    found = measure_latency(setting.model, TASK, setting.validation, count=5)
    assert 0 < found < 1000 * (time.perf_counter() - started)


def work_in_a_process(rank, workers, store, folder, answer):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=workers)
    setting = Setting(folder)
    before = predict(setting.model, TASK, setting.validation)
    # A batch of 17 in two shares, and 120 rows with a last step of one row: nothing divides evenly.
    fitted = setting.fit(RECIPE.changed({"batch_size": 17}))
    found = {"before": before, "validation": fitted.validation, "score": fitted.score, "loss": fitted.loss}
    torch.save({**found, "weights": setting.weights()}, f"{answer}-{rank}")
    dist.barrier()
    dist.destroy_process_group()
    # The way out of an interpreter that used gloo was seen to hang on a busy machine; all that counts is on disk.
    os._exit(0)


def test_two_workers_do_what_one_does(folder, tmp_path):
    mp.spawn(work_in_a_process, (2, tmp_path / "store", folder, tmp_path / "answer"), nprocs=2)
    first, second = (torch.load(tmp_path / f"answer-{rank}", weights_only=False) for rank in range(2))
    assert np.array_equal(first["before"], second["before"])
    assert np.array_equal(first["validation"], second["validation"])
    assert farthest(first["weights"], second["weights"]) == 0

    alone = Setting(folder)
    assert np.allclose(predict(alone.model, TASK, alone.validation), first["before"], atol=1e-6)
    fitted = alone.fit(RECIPE.changed({"batch_size": 17}))
    assert first["score"] == pytest.approx(fitted.score, abs=0.01)
    assert first["loss"] == pytest.approx(fitted.loss, abs=0.01)
    assert np.abs(first["validation"] - fitted.validation).max() < 0.05


def test_a_model_can_be_fitted_again_from_the_same_weights(setting):
    again = copy.deepcopy(setting)
    assert setting.fit().validation.tobytes() == again.fit().validation.tobytes()
