"""One trial from beginning to end: open everything by name, fit, measure, and turn what happened into plain facts.

The same function serves a Ray Tune trial, a worker of Ray Train and a plain process. It gets names, paths and numbers,
never data or models.
"""

from __future__ import annotations

import json
import math
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pmray import plugins, storage
from pmray.data.encode import Encoded, open_encoded, read_arrow
from pmray.errors import CandidateUnavailable, OutOfMemory, TrialError
from pmray.scoring.calibration import fit_temperature, rescaled
from pmray.scoring.intervals import bootstrap
from pmray.scoring.ragged import flat, is_ragged, like, ragged
from pmray.spec import Recipe, digest
from pmray.tasks.base import Objective, Task
from pmray.training import loop, sharding
from pmray.training.fused import Member
from pmray.training.hardware import device_here, place, precision_of
from pmray.training.model import (
    Pretrained,
    divide_logits,
    on_this_node,
    open_model,
    quiet_transformers,
    without_adapters,
)
from pmray.training.prediction import measure_latency, predict
from pmray.training.state import STATE_SECONDS, open_state

INTERVAL_DRAWS = 200
"""Of an interval that decides nothing."""

FACTS = "facts.json"
"""Beside a checkpoint when its fit is complete: a worker group that lost a worker after that does not repeat it."""


@dataclass(frozen=True)
class Work:
    """Everything that a worker must know to carry out a trial."""

    key: str
    """The outcome's key in the ledger."""
    pretrained: Pretrained
    recipe: Recipe
    seed: int
    task: Mapping[str, Any]
    """``task.to_json()``."""
    metric: str
    rungs: tuple[int, ...]
    """Examples after which the model is scored; the last ends the fit."""
    cache: str
    """Folder (or URL) of loaded and encoded data."""
    data: str
    """Key of the loaded data."""
    encoding: str
    """Key of the encoded data."""
    run: str | None = None
    """Run folder (or URL) that weights and predictions are saved to; finalists only."""
    states: str | None = None
    """Folder of the states of fits under way; None keeps none."""
    state_seconds: float = STATE_SECONDS
    """Between two of them."""
    shard: bool = False
    """Shard the model over the workers."""
    checkpoint_activations: bool = False

    @property
    def budget(self) -> int:
        """Examples seen when the trial is complete."""
        return self.rungs[-1]

    @property
    def predictions(self) -> Path:
        """Folder of ``validation.parquet`` and ``test.parquet``."""
        return predictions_folder(storage.local(self.run or ""), self.key)

    @property
    def checkpoint(self) -> Path:
        """Folder of the weights; deleted when the model has lost."""
        return checkpoint_folder(storage.local(self.run or ""), self.key)


@dataclass(frozen=True)
class Facts:
    """What carrying out a trial gave, as plain values that travel and are written down."""

    status: str
    score: float | None = None
    examples: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    measured: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def carry_out(
    work: Work,
    report: Callable[[loop.Rung], None] = lambda rung: None,
    keeper: loop.Keeper | None = None,
    together: Member | None = None,
) -> Facts:
    """Fine-tune as `work` says; a fit that was interrupted goes on from the state that was kept.

    Whatever goes wrong in the trial is returned as facts, not raised: a sweep outlives its trials. In a process group
    every worker calls this; rank 0 saves. There, what may have happened to one worker alone is raised, for the others
    wait for it: the group has to end, and may start again.

    Args:
        work: What to do.
        report: Called at every rung.
        keeper: Keeps states of the fit; by default a file in ``work.states``.
        together: Takes its steps with those of others in this process.
    """
    clock = together.clock if together else time.perf_counter
    started = clock()
    # Asked now: where a worker was lost, the others' process group may be taken from under them.
    alone = place()[1] == 1
    if keeper is None and work.states:
        keeper = open_state(work.states, work.key, writes=place()[0] == 0, seconds=work.state_seconds)
    curve: list[tuple[int, float]] = []

    def remember(rung: loop.Rung) -> None:
        curve.append((rung.examples, rung.score))
        report(rung)

    try:
        return _fit(work, remember, keeper, together)
    except OutOfMemory as error:
        if work.shard and not alone:
            raise
        status, reason = "infeasible", str(error)
    except CandidateUnavailable as error:
        status, reason = "unavailable", str(error)
    except TrialError as error:
        status, reason = "failed", str(error)
    except Exception as error:
        if not alone:
            raise
        status, reason = "failed", _last_lines(error)
    return Facts(
        status=status,
        score=max((score for _, score in curve), default=None),
        examples=curve[-1][0] if curve else 0,
        curve=tuple(curve),
        seconds=clock() - started,
        measured={"host": socket.gethostname()},
        error=reason,
    )


@dataclass(frozen=True)
class Opened:
    """What a fit begins with."""

    task: Task
    train: Encoded
    targets: NDArray[Any]
    validation: Encoded
    validation_targets: NDArray[Any]
    model: torch.nn.Module
    """Whole, and still on the CPU."""


def open_fit(work: Work) -> Opened:
    """Open a fit's rows and its model, with its new head and, where the recipe says so, adapters."""
    task = open_task(work.task)
    cache = storage.fetched(work.cache, f"data-{work.data}", f"encoded-{work.encoding}")
    train, validation = (open_encoded(cache, work.encoding, split) for split in ("train", "validation"))
    if "label" in task.columns:
        targets, validation_targets = (open_targets(cache, work.data, split, task) for split in ("train", "validation"))
    else:
        # Texts are packed into rows that are not those of the data, and carry what is to be predicted.
        targets, validation_targets = task.targets(train.table), task.targets(validation.table)
    # The seed decides the head's first weights here, and dropout and batch order in the loop.
    torch.manual_seed(work.seed)
    model = open_model(on_this_node(work.pretrained), task, pad=train.pad, recipe=work.recipe)
    return Opened(task, train, targets, validation, validation_targets, model)


def _fit(work: Work, report: Callable[[loop.Rung], None], keeper: loop.Keeper | None, together: Member | None) -> Facts:
    clock = together.clock if together else time.perf_counter
    started = clock()
    begin = open_fit(work)
    task, model, validation, validation_targets = begin.task, begin.model, begin.validation, begin.validation_targets
    labelled = "label" in task.columns
    if work.checkpoint_activations:
        sharding.checkpoint_activations(model)
    if work.shard and place()[1] > 1:
        device = device_here()
        sharding.shard(model.to(device), low_precision=precision_of(work.recipe, device) == "bf16")
    opened = clock() - started
    before = math.nan
    if work.run and not labelled:
        before = _held_out_score(work, task, model.to(device_here()))
    known = MicroBatches(storage.local(work.cache))
    room = known.key(work.pretrained.revision, work.pretrained.candidate.layers, work.recipe)
    fitted = loop.fit(
        model,
        task,
        work.recipe,
        begin.train,
        begin.targets,
        validation,
        validation_targets,
        metric=work.metric,
        rungs=work.rungs,
        seed=work.seed,
        report=report,
        name=work.pretrained.name,
        keeper=keeper,
        micro_batch_tokens=known.get(room),
        together=together,
    )
    if together is None:
        known.put(room, fitted.micro_batch_tokens, work.recipe.max_batch_tokens)
    model = without_adapters(model)
    measured: dict[str, Any] = {
        "host": socket.gethostname(),
        "open_seconds": round(opened, 3),
        "train_seconds": round(fitted.train_seconds, 3),
        "evaluate_seconds": round(fitted.evaluate_seconds, 3),
        "examples_per_second": round(fitted.examples / max(fitted.train_seconds, 1e-9), 1),
        "loss": fitted.loss,
        "precision": fitted.precision,
        "micro_batch_tokens": fitted.micro_batch_tokens,
        "resumed_at": fitted.resumed_at,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    if labelled:
        measured["interval"] = _interval(work.metric, fitted, validation_targets)
    if together is not None:
        measured |= {"fused_steps": together.fused_steps, "fused_problem": together.problem}
    if problem := getattr(keeper, "problem", None):
        measured["state_problem"] = problem
    if work.run and labelled:
        measured |= _save_classifier(work, task, model, fitted, validation, validation_targets)
    elif work.run:
        measured |= _save_pretrained(work, task, model, before)
    return Facts(
        status="done",
        score=fitted.score,
        examples=work.budget,
        curve=tuple((rung.examples, rung.score) for rung in fitted.curve),
        seconds=clock() - started,
        measured=measured,
    )


def _interval(metric: str, fitted: loop.Fitted, targets: NDArray[Any]) -> list[float]:
    """Bootstrap interval (95 %) of the score on validation rows: how sure a live view may be of who leads."""
    task: Task = fitted.task  # type: ignore[assignment]
    found = bootstrap(task.metric(metric), task.outcome(fitted.validation, targets), draws=INTERVAL_DRAWS)
    return [round(found.low, 6), round(found.high, 6)]


def _save_classifier(
    work: Work,
    task: Task,
    model: torch.nn.Module,
    fitted: loop.Fitted,
    validation: Encoded,
    validation_targets: NDArray[Any],
) -> dict[str, Any]:
    """Calibrate the model, save it with its predictions, and return what was measured."""
    cache, measured = storage.local(work.cache), {}
    tuned = fitted.task
    test = open_encoded(cache, work.encoding, "test")
    said, wanted = flat(fitted.validation), flat(validation_targets)
    temperature = fit_temperature(said, wanted)
    calm = fitted.validation
    if divide_logits(model, len(task.labels), temperature):
        # From here on the weights themselves give calibrated probabilities, to whoever opens them.
        calm = like(rescaled(said, temperature, multi_label=wanted.ndim == 2).astype(np.float32), fitted.validation)
        tuned = task.tuned(calm, validation_targets, work.metric)
        measured["temperature"] = temperature
    # In fp32: what decides is what will be served.
    test_scores = predict(model, task, test)
    weights = sharding.whole_weights(model)
    latency = measure_latency(model, task, validation)
    if place()[0] == 0:
        for split, scores in (("test", test_scores), ("validation", calm)):
            save_predictions(work.predictions / f"{split}.parquet", _row_ids(cache, work.data, split), scores)
        save_model(work.checkpoint, model, weights, tuned, work.pretrained, work.recipe.max_length)
    return {**measured, "latency_ms": latency, "task": tuned.to_json()}


def _save_pretrained(work: Work, task: Task, model: torch.nn.Module, before: float) -> dict[str, Any]:
    """Score held-out texts, save the model, and return what was measured."""
    after = _held_out_score(work, task, model)
    weights = sharding.whole_weights(model)
    if place()[0] == 0:
        save_model(work.checkpoint, model, weights, task, work.pretrained)
    return {"test_score_before": before, "test_score": after, "task": task.to_json()}


def _held_out_score(work: Work, task: Task, model: torch.nn.Module) -> float:
    scores = predict(model, task, open_encoded(storage.local(work.cache), work.encoding, "test"))
    return float(task.score(work.metric, scores, np.ones((1, len(scores))))[0])


class MicroBatches:
    """Sizes of forward passes that were found to fit into memory, per model, length and device, beside encoded data."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "micro-batches"

    def key(self, revision: str, layers: int | None, recipe: Recipe) -> str:
        """Name what decides how much memory a token takes."""
        device = device_here()
        what = torch.cuda.get_device_name(device) if device.type == "cuda" else socket.gethostname()
        settings = recipe.model_dump(include={"max_length", "precision", "lora_rank", "freeze_layers", "head_only"})
        return digest(json.dumps([revision, layers, what, settings], sort_keys=True))

    def get(self, key: str) -> int | None:
        """Tokens that fitted, or None where nothing ever failed."""
        try:
            return int((self.folder / key).read_text())
        except (OSError, ValueError):
            return None

    def put(self, key: str, tokens: int, asked: int) -> None:
        """Remember what fitted where it is less than what was asked for."""
        if tokens < asked:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / key).write_text(str(tokens))


def open_task(settings: Mapping[str, Any]) -> Task:
    """Make a task from what ``to_json`` wrote."""
    task: Task = plugins.task_class(settings["task"]).from_json(settings)
    return task


def open_targets(cache: Path, data: str, split: str, task: Objective) -> NDArray[Any]:
    """Labels of a loaded split as numbers."""
    return task.targets(read_arrow(cache / f"data-{data}" / f"{split}.arrow"))


def recipe_length(recipe: Recipe, pretrained: Pretrained) -> int:
    """Tokens of a row: what the recipe asks, at most what the model can take."""
    return min(recipe.max_length, pretrained.max_positions or recipe.max_length)


def predictions_folder(run: str | Path, key: str) -> Path:
    """Where a trial's predictions lie in a run folder."""
    return Path(run) / "predictions" / key


def checkpoint_folder(run: str | Path, key: str) -> Path:
    """Where a trial's weights lie in a run folder."""
    return Path(run) / "checkpoints" / key


def save_predictions(path: Path, row_ids: Sequence[str], scores: NDArray[Any]) -> None:
    """Write one line a row: its id and its score vector, or the list of the score vectors of its parts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"row_id": list(row_ids), "scores": score_column(scores)}), path)


def read_predictions(path: Path) -> tuple[list[str], NDArray[Any]]:
    """Read what ``save_predictions`` wrote: row ids, and score vectors of shape (rows, labels), or ragged."""
    table = pq.read_table(path)
    return table["row_id"].to_pylist(), score_vectors(table["scores"])


def score_column(scores: NDArray[Any]) -> pa.Array:
    """Score vectors as a column; ``score_vectors`` reads it."""
    vector = pa.list_(pa.float32())
    if is_ragged(scores):
        return pa.array([list(row) for row in scores], pa.list_(vector))
    return pa.array(list(scores), vector)


def score_vectors(column: pa.ChunkedArray) -> NDArray[Any]:
    """Score vectors from a column of lists of numbers, or (ragged) of lists of such lists."""
    array = column.combine_chunks()
    if not pa.types.is_list(array.type.value_type):
        vectors: NDArray[Any] = array.flatten().to_numpy().reshape(len(array), -1)
        return vectors
    sizes = pc.list_value_length(array).to_numpy()
    parts = array.flatten()
    flattened = parts.flatten().to_numpy().reshape(len(parts), -1)
    return ragged(np.split(flattened, np.cumsum(sizes)[:-1]))


def save_model(
    folder: Path,
    model: torch.nn.Module,
    weights: Mapping[str, torch.Tensor],
    task: Objective,
    pretrained: Pretrained,
    max_length: int | None = None,
) -> None:
    """Write a plain ``save_pretrained`` folder that ``transformers`` opens without pmray.

    Args:
        folder: Where to.
        model: Its configuration and kind.
        weights: All of them, by name.
        task: Opens the processor.
        pretrained: Where the processor is.
        max_length: Tokens at which readers of the folder are to cut texts, as training did; None leaves that.
    """
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
        processor = task.processor(on_this_node(pretrained).folder)
        if task.reader == "tokenizer" and max_length is not None:
            processor.model_max_length = min(max_length, pretrained.max_positions or max_length)
        processor.save_pretrained(folder)


def _row_ids(cache: Path, data: str, split: str) -> list[str]:
    ids: list[str] = read_arrow(cache / f"data-{data}" / f"{split}.arrow")["row_id"].to_pylist()
    return ids


def _last_lines(error: BaseException) -> str:
    """The exception and the last lines of its traceback: enough to act on, short enough for a table."""
    return "".join(traceback.format_exception(error)[-3:]).strip()[-2000:]
