"""Set models beside each other on the same labelled rows: differences, tests, groups, and where they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.data.labelled import inputs_of
from pmray.data.split import group_numbers
from pmray.errors import DataError
from pmray.evaluation.predictors import LATENCY_ROWS, Predicted, Progress, Speed, predict, trained_columns
from pmray.scoring.intervals import Interval, bootstrap
from pmray.scoring.paired import Paired, groups, holm, mcnemar, paired_bootstrap
from pmray.scoring.ragged import flat, is_ragged, like
from pmray.spec import Source
from pmray.tasks.base import Task


@dataclass(frozen=True)
class Scored:
    """A model's line in a comparison."""

    name: str
    score: Interval
    speed: Speed | None = None
    """None for predictions from a file."""


@dataclass(frozen=True)
class Pair:
    """Two models on the same rows; `first` has the higher score."""

    first: str
    second: str
    paired: Paired
    adjusted_p: float
    """After Holm's correction for all pairs."""
    both_right: int
    first_right: int
    """Rows on which only the first model is right."""
    second_right: int
    both_wrong: int
    mcnemar_p: float
    """Of the two being right equally often (exact McNemar), after Holm's correction for all pairs."""


@dataclass(frozen=True)
class Disagreement:
    """A row of which the models do not say the same."""

    row_id: str
    true: str
    said: Mapping[str, str]
    """Model -> its prediction."""
    inputs: Mapping[str, str]
    """Role -> text, where the data has it."""


@dataclass(frozen=True)
class Compared:
    """Models on the same rows."""

    metric: str
    rows: int
    left_out: int
    """Rows that at least one model refused; they count for none."""
    lines: tuple[Scored, ...]
    """Best first."""
    comparisons: tuple[Pair, ...]
    groups: list[list[str]]
    """Members of a group cannot be told apart from its best."""
    disagreements: int
    """Rows on which not all models say the same."""
    examples: tuple[Disagreement, ...]
    """The first few of them."""

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain values."""
        return asdict(self)


def compare(
    models: Sequence[str],
    data: Source,
    *,
    registry: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
    alpha: float = 0.05,
    examples: int = 10,
    latency_rows: int = LATENCY_ROWS,
    draws: int = 2000,
    progress: Progress = lambda done, total: None,
) -> Compared:
    """Compare models on the same labelled rows with paired tests.

    Args:
        models: Two or more, of any kinds; see ``pmray.evaluate``.
        data: Labelled rows.
        registry: MLflow tracking URI, for names.
        columns: Role -> column name; by default those of each model, and for models that pmray did not train those of
            the first that it did.
        labels: Names of the outputs, in order, of models that call them ``LABEL_0``.
        alpha: Significance level after Holm's correction.
        examples: How many rows to return on which the models disagree.
        latency_rows: Rows to ask one by one; 0 asks none.
        draws: Bootstrap draws.
        progress: Called with (rows done, rows), anew for each model.

    Raises:
        DataError: There are fewer than two models, they do different tasks, or see other labels in the same rows.
        CandidateUnavailable: A model is none that can be opened.
        RegistryError: There is no such model.
        EndpointError: An endpoint cannot be reached.
    """
    if len(models) < 2:
        raise DataError(f"a comparison needs two models or more, but got {len(models)}; `evaluate` scores one")
    names = [name if models.count(name) == 1 else f"{name} ({place})" for place, name in enumerate(models, start=1)]
    trained = [trained_columns(model, registry) for model in models]
    shared = next((one for one in trained if one is not None), {})
    found = {
        name: predict(
            model,
            data,
            registry=registry,
            columns={**(shared if own is None else {}), **(columns or {})},
            labels=labels,
            latency_rows=latency_rows,
            progress=progress,
        )
        for name, model, own in zip(names, models, trained, strict=True)
    }
    every = {row_id for one in found.values() for row_id in [*_ids(one), *(row["row_id"] for row in one.refused)]}
    # A row that one model refused is left out for all: the same rows, or no comparison.
    common = every.intersection(*(_ids(one) for one in found.values()))
    if not common:
        raise DataError("there is no row that all models answered; evaluate each alone to see why")
    task = _shared_task(found)
    said = {name: _shared_predictions(one, task, common) for name, one in found.items()}
    targets = _shared_targets(found, task, common)
    lines = {name: task.paired_outcome(one, targets) for name, one in said.items()}
    metric_name = found[names[0]].metric
    metric = task.metric(metric_name)
    tables = [one.rows.table for one in found.values()]
    # One model that knows of groups is enough: the rows are the same.
    grouped = next((table for table in tables if "group" in table.column_names), tables[0])
    kept = pa.array([row_id in common for row_id in grouped["row_id"].to_pylist()])
    clusters = group_numbers(grouped.filter(kept))
    scored = sorted(
        (
            Scored(name, bootstrap(metric, lines[name], draws=draws, clusters=clusters), found[name].speed)
            for name in names
        ),
        key=lambda line: -line.score.value,
    )
    pairs = {
        (a.name, b.name): paired_bootstrap(
            metric, [lines[a.name]], [lines[b.name]], draws=draws, level=1 - alpha, clusters=clusters
        )
        for a, b in combinations(scored, 2)
    }
    adjusted = holm({pair: paired.p_value for pair, paired in pairs.items()})
    right = {name: task.right(outcomes) for name, outcomes in lines.items()}
    mcnemars = holm({(a, b): mcnemar(right[a], right[b]) for a, b in pairs})
    disagreeing = _disagreeing(said)
    return Compared(
        metric=metric_name,
        rows=len(common),
        left_out=len(every) - len(common),
        lines=tuple(scored),
        comparisons=tuple(
            Pair(a, b, paired, adjusted[a, b], *_crossed(right[a], right[b]), mcnemars[a, b])
            for (a, b), paired in pairs.items()
        ),
        groups=groups([line.name for line in scored], {frozenset(pair): p for pair, p in adjusted.items()}, alpha),
        disagreements=len(disagreeing),
        examples=_examples(found[names[0]], task, targets, said, common, disagreeing[:examples]),
    )


def _ids(one: Predicted) -> list[str]:
    ids: list[str] = one.rows.table["row_id"].to_pylist()
    return ids


def _shared_task(found: Mapping[str, Predicted]) -> Task:
    """The first model's task, with the labels of all."""
    (first_name, first), *others = found.items()
    settings = first.task.to_json()
    labels = list(first.task.labels)
    for name, one in others:
        theirs = one.task.to_json()
        for key in ("task", "multi_label"):
            if theirs.get(key) != settings.get(key):
                raise DataError(
                    f"{first_name} and {name} do different jobs: {key} is {settings.get(key)!r} and {theirs.get(key)!r}"
                )
        if settings.get("multi_label") and set(one.task.labels) != set(labels):
            # All labels of such a task enter its averages, so that more labels would be another score.
            raise DataError(
                f"{first_name} has the labels {', '.join(labels)}, but {name} has {', '.join(one.task.labels)}"
            )
        labels += [label for label in one.task.labels if label not in labels]
    if labels == list(first.task.labels):
        return first.task
    # What a model says beside the labels of the data is only ever wrong; the positive label of two stays out of it.
    return type(first.task).from_json({**settings, "labels": labels})


def _shared_predictions(one: Predicted, task: Task, common: set[str]) -> NDArray[Any]:
    """What is said of the common rows, in the labels of the shared task."""
    said, number = one.said[_kept(one, common)], {label: place for place, label in enumerate(task.labels)}
    moved = np.array([number[label] for label in one.task.labels])
    if is_ragged(said):
        return like(moved[flat(said)], said)
    if said.ndim == 2:
        bits = np.zeros((len(said), len(task.labels)), dtype=said.dtype)
        bits[:, moved] = said
        return bits
    numbers: NDArray[Any] = moved[said]
    return numbers


def _shared_targets(found: Mapping[str, Predicted], task: Task, common: set[str]) -> NDArray[Any]:
    """Labels of the common rows; models that read them from different columns are not compared on the same thing."""
    targets = {name: task.targets(one.rows.table.filter(_kept(one, common))) for name, one in found.items()}
    (first, ours), *others = targets.items()
    for name, theirs in others:
        if not all(np.array_equal(*pair) for pair in zip(ours, theirs, strict=True)):
            columns = " and ".join(repr(found[one].rows.names.get("label")) for one in (first, name))
            raise DataError(
                f"{first} and {name} read other labels in the same rows (columns {columns}); name one for all, such as "
                "`--column label=NAME`"
            )
    return ours


def _kept(one: Predicted, common: set[str]) -> NDArray[np.bool_]:
    return np.array([row_id in common for row_id in _ids(one)])


def _disagreeing(said: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    first, *others = said.values()
    differ = [[not np.array_equal(*pair) for pair in zip(first, other, strict=True)] for other in others]
    return np.flatnonzero(np.any(differ, axis=0))


def _crossed(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Rows on which both are right, only the first, only the second, none."""
    return int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())


def _examples(
    first: Predicted,
    task: Task,
    targets: NDArray[Any],
    said: Mapping[str, NDArray[Any]],
    common: set[str],
    positions: NDArray[np.int64],
) -> tuple[Disagreement, ...]:
    rows = first.rows.taken(pa.array(_kept(first, common)))
    ids = rows.table["row_id"].take(positions).to_pylist()
    true = task.shown(targets[positions])
    shown = {name: task.shown(one[positions]) for name, one in said.items()}
    return tuple(
        Disagreement(row_id, true[place], {name: values[place] for name, values in shown.items()}, inputs)
        for place, (row_id, inputs) in enumerate(zip(ids, inputs_of(rows.table, positions.tolist()), strict=True))
    )
