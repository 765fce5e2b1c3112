"""For authors of tasks: does a class keep the promises of ``pmray.tasks.base.Task``?

    from pmray.testing import check_task

    def test_my_task():
        check_task(MyTask, rows, "path/to/a/small/model")

The rows are a table as ``pmray.load_data`` gives it: ``row_id``, the columns of the roles, ``label``.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.data.encode import Encoded, encode_table
from pmray.errors import PmrayError
from pmray.scoring.ragged import flat, is_ragged
from pmray.spec import Data, Recipe
from pmray.tasks.base import Task

LARGEST_PICKLE = 100_000
"""Bytes: a task travels with every trial, so it holds settings and never data."""

LENGTH = 32
"""Tokens of a row in these checks."""


def check_task(kind: type[Task] | Any, rows: pa.Table, folder: str, *, data: Data | None = None) -> None:
    """Try everything that pmray asks of a task, on a few rows and a small model.

    Args:
        kind: The class.
        rows: Four to a few dozen labelled rows of different lengths.
        folder: A small model with its tokenizer or other processor, as ``save_pretrained`` writes it.
        data: Section ``data`` of a spec, for classes that read it; by default one without settings.

    Raises:
        AssertionError: The class breaks a promise; the message lists all that were found, with what to do.
    """
    findings: list[str] = []

    @contextmanager
    def part(what: str) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            findings.append(f"{what}: {error}")
        except Exception as error:  # noqa: BLE001  (whatever a stranger's class raises is a finding)
            findings.append(f"{what}: raises {type(error).__name__}: {error}")

    with part("class"):
        for name in ("name", "columns", "head", "reader", "encode_rows", "baselines"):
            _ensure(hasattr(kind, name), f"the class variable `{name}` is missing")
        _ensure("label" in kind.columns, "`columns` has no role 'label'")
    task: Task | None = None
    with part("from_data"):
        task = kind.from_data(data or Data(train="rows"), rows)
    if task is not None:
        _check_settings(kind, task, part)
        _check_scores(task, rows, part)
        _check_model(task, rows, folder, part)
    if findings:
        listed = "\n".join(f"- {finding}" for finding in findings)
        raise AssertionError(f"{kind.__name__} breaks {len(findings)} promises of pmray.tasks.base.Task:\n{listed}")


Part = Callable[[str], Any]


def _check_settings(kind: Any, task: Task, part: Part) -> None:
    with part("to_json"):
        settings = json.loads(json.dumps(task.to_json()))
        _ensure(settings.get("task") == kind.name, "the settings need `task` with the class's name")
        _ensure(kind.from_json(settings) == task, "from_json(to_json()) is another task; compare by fields (dataclass)")
    with part("pickle"):
        size = len(pickle.dumps(task))
        _ensure(size < LARGEST_PICKLE, f"{size} bytes; a task holds settings, never data")
    with part("labels"):
        _ensure(isinstance(task.labels, tuple) and len(task.labels) > 0, "a tuple with at least one label is expected")
    with part("scores"):
        unknown = set(task.metrics()) - kind.scores()
        _ensure(not unknown, f"metrics() names {sorted(unknown)}, which scores() does not know")
        _ensure(task.default_score() in task.metrics(), "default_score() is not among metrics()")
        task.check_score(task.default_score())
    with part("check_score"):
        try:
            task.check_score("no such score")
        except PmrayError:
            pass
        else:
            raise AssertionError("a score that does not exist must raise SpecError")
    with part("row_schema"):
        examples = task.row_schema().get("examples") or []
        _ensure(bool(examples), "it needs `examples` with a row that can be answered; /docs shows it")
        for example in examples:
            problem = task.problem(example)
            _ensure(problem is None, f"its example cannot be answered: {problem}")
    with part("default_recipe"):
        for size in (1_000_000, 20_000_000, 100_000_000, 400_000_000):
            recipe = task.default_recipe("bert", size)
            _ensure(isinstance(recipe, Recipe), "it must return a Recipe")
            unknown = set(task.default_space("bert", size)) - set(Recipe.model_fields)
            _ensure(not unknown, f"default_space names {sorted(unknown)}, which no recipe has")


def _check_scores(task: Task, rows: pa.Table, part: Part) -> None:
    """Predictions that are right score best, and each form of a prediction agrees with the others."""
    with part("check"):
        for finding in task.check(rows, "train"):
            _ensure(finding.severity in ("error", "warning", "info"), f"severity {finding.severity!r} is unknown")
    targets: NDArray[Any] | None = None
    with part("targets"):
        targets = task.targets(rows)
        _ensure(len(targets) == len(rows), f"{len(targets)} targets for {len(rows)} rows")
    if targets is None:
        return
    perfect = task.paired_outcome(targets, targets)
    with part("paired_outcome"):
        _ensure(perfect.ndim == 2 and len(perfect) == len(rows), "one line of numbers a row is expected")
        _ensure(bool(task.right(perfect).all()), "right() doubts predictions that equal the targets")
    with part("score"):
        weights = np.ones((3, len(rows)))
        for name in task.metrics():
            values = task.score(name, perfect, weights)
            _ensure(np.shape(values) == (3,), f"{name} gives shape {np.shape(values)} for 3 lines of weights, not (3,)")
            _ensure(bool(np.isfinite(values).all()), f"{name} is {values[0]} where all is right")
    with part("score"):
        metric = task.default_score()
        best = task.score(metric, perfect, np.ones((1, len(rows))))[0]
        order = np.roll(np.arange(len(rows)), 1)
        if not is_ragged(targets):
            worse = task.score(metric, task.paired_outcome(targets[order], targets), np.ones((1, len(rows))))[0]
            _ensure(worse <= best, f"{metric} is higher for predictions of other rows ({worse}) than for right ones")
        twice = task.score(metric, np.concatenate([perfect, perfect]), np.ones((1, 2 * len(rows))))[0]
        again = task.score(metric, perfect, np.full((1, len(rows)), 2.0))[0]
        _ensure(np.isclose(twice, again), f"{metric}: rows that are there twice are not rows with weight 2")
    with part("shown"):
        shown = task.shown(targets)
        _ensure(len(shown) == len(rows) and all(isinstance(one, str) for one in shown), "one text a row is expected")
    with part("class_metrics"):
        for label, functions in task.class_metrics().items():
            for name, function in functions.items():
                _ensure(np.shape(function(perfect, np.ones((2, len(rows))))) == (2,), f"{label}, {name}: wrong shape")


def _check_model(task: Task, rows: pa.Table, folder: str, part: Part) -> None:
    """Encode, train one step, predict; the same row gives the same whatever it is batched with."""
    import torch
    from transformers import AutoConfig

    from pmray.training.model import quiet_transformers
    from pmray.training.prediction import predict

    processor: Any = None
    encoded: Encoded | None = None
    with part("processor"):
        processor = task.processor(folder)
    with part("encode"):
        encoded = encode_table(task, rows, processor, LENGTH)
        _check_encoding(task, rows, processor, encoded)
    model: torch.nn.Module | None = None
    with part("build"), quiet_transformers():
        torch.manual_seed(0)
        pad = getattr(processor, "pad_token_id", None) or 0
        model = task.build(folder, AutoConfig.from_pretrained(folder), pad, dtype=torch.float32)
    if encoded is None or model is None:
        return
    some = encoded.rows(np.arange(len(rows)))
    batch: Mapping[str, Any] = {}
    with part("collate"):
        batch = task.collate(some, encoded.pad)
        _ensure(all(isinstance(value, torch.Tensor) for value in batch.values()), "tensors by name are expected")
    with part("loss"):
        losses = task.loss(model(**batch).logits, task.targets(rows), some)
        _ensure(tuple(losses.shape) == (len(rows),), f"shape {tuple(losses.shape)}; one loss a row is expected")
        losses.sum().backward()  # type: ignore[no-untyped-call]
        moved = [one.grad is not None and bool(one.grad.abs().sum() > 0) for one in model.parameters()]
        _ensure(any(moved), "no parameter gets a gradient")
    with part("features"), torch.no_grad():
        found = task.features(model.eval(), batch, some)
        _ensure(len(found) == len(rows), f"{len(found)} feature rows for {len(rows)} rows")
    with part("predict"):
        together = predict(model, task, encoded)
        _ensure(len(together) == len(rows), f"{len(together)} predictions for {len(rows)} rows")
        wrong = [one for one in (flat(together),) if one.shape[-1] != len(task.labels)]
        _ensure(not wrong, f"score vectors need one number for each of {len(task.labels)} labels")
        for position in range(len(rows)):
            alone = flat(predict(model, task, _only(encoded, position)))
            same = np.allclose(alone, flat(together[position : position + 1]), rtol=0, atol=2e-6)
            _ensure(same, f"row {position} alone gives other scores than among others; is padding masked?")
        _check_answers(task, rows, together)


def _check_encoding(task: Task, rows: pa.Table, processor: Any, encoded: Encoded) -> None:
    table = encoded.table
    _ensure(len(table) == len(rows), f"{len(table)} encoded rows for {len(rows)} rows")
    _ensure(table.schema.field("length").type == pa.int32(), "a column `length` of int32 is expected")
    _ensure(bool((encoded.lengths > 0).all()), "lengths must be positive")
    _ensure("label" not in table.column_names, "labels do not belong into encoded rows: test has none")
    halves = [task.encode(part, processor, LENGTH) for part in (rows.slice(0, 2), rows.slice(2))]
    _ensure(pa.concat_tables(halves).equals(table.combine_chunks()), "parts encode to something else than the whole")
    inputs = rows.drop_columns("label")
    _ensure(task.encode(inputs, processor, LENGTH).equals(table), "the encoding changes when the labels are away")
    nothing = task.encode(rows.slice(0, 0), processor, LENGTH)
    _ensure(nothing.column_names == table.column_names, "no rows encode to other columns than some rows")


def _check_answers(task: Task, rows: pa.Table, scores: NDArray[Any]) -> None:
    """What an endpoint answers says what was predicted, and a row survives being sent."""
    inputs = rows.select([name for name in rows.column_names if name not in ("row_id", "label", "group")])
    sent = [json.loads(json.dumps(task.sent(row))) for row in inputs.to_pylist()]
    problems = [problem for row in sent if (problem := task.problem(row))]
    _ensure(not problems, f"problem() refuses a good row: {problems[:1]}")
    _ensure(task.problem({}) is not None, "problem() takes an empty row")
    _ensure(len(task.rows(sent)) == len(rows), "rows() loses rows")
    answers = [json.loads(json.dumps(task.answer(one, row))) for one, row in zip(scores, sent, strict=True)]
    told = [task.scores_of(answer) for answer in answers]
    said = task.said(scores)
    for position, one in enumerate(told):
        single = np.empty(1, dtype=object) if is_ragged(scores) else one[None]
        if is_ragged(scores):
            single[0] = one
        _ensure(np.array_equal(task.said(single)[0], said[position]), f"row {position}: the answer says something else")
    outcomes = task.outcome(scores, task.targets(rows))
    _ensure(np.array_equal(outcomes, task.paired_outcome(said, task.targets(rows))), "outcome() is not of what is said")
    tuned = task.tuned(scores, task.targets(rows), task.default_score())
    _ensure(type(tuned) is type(task), "tuned() must return a task of the same class")


def _only(encoded: Encoded, position: int) -> Encoded:
    table = encoded.rows(np.array([position]))
    return Encoded(table, table["length"].to_numpy(), encoded.pad)


def _ensure(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
