"""Score a model on labelled rows: overall, class by class, slice by slice, and where it is confident and wrong.

``predictors`` asks the model, whatever it is; ``compare`` sets several beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pmray.data.labelled import LabelledRows, inputs_of, texts_of
from pmray.data.split import group_numbers
from pmray.errors import DataError
from pmray.evaluation.predictors import LATENCY_ROWS, Predicted, Progress, Speed, predict
from pmray.evaluation.reliability import Reliability, reliability, surest_error
from pmray.evaluation.slices import LENGTH, MIN_ROWS, Slice, WorstSlices, lengths, slices_by, worst_slices
from pmray.report.row_facts import picture
from pmray.scoring.intervals import Interval, bootstrap
from pmray.scoring.metrics import confusion
from pmray.scoring.probabilities import lines_of, probability_metrics
from pmray.scoring.ragged import is_ragged
from pmray.spec import Source
from pmray.tasks.base import Outcomes, Task

PROBABILITY_DRAWS = 200
"""Bootstrap draws of metrics of probabilities, which cost more than those of counts."""


@dataclass(frozen=True)
class Mistake:
    """A row whose prediction is wrong."""

    row_id: str
    true: str
    """Its label; several are joined by ``|``."""
    said: str
    confidence: float | None
    """Probability of what was said; of several labels, of the one that is furthest off. None without scores."""
    inputs: Mapping[str, str]
    """Role -> text, where the data has it."""


@dataclass(frozen=True)
class Evaluation:
    """A model's scores on labelled rows."""

    source: str
    """Bundle folder, URL, model or file of predictions."""
    rows: int
    """Scored; refused ones are not counted."""
    groups: int | None
    """Groups that intervals draw whole; None where rows are drawn one by one."""
    metric: str
    """The one that decided when the model was chosen, or the task's default."""
    score: Interval
    metrics: Mapping[str, Interval]
    per_class: Mapping[str, Mapping[str, Interval]]
    confusion: list[list[int]] | None
    """Rows by true (down) and predicted (across) label; None where a row has several labels."""
    labels: tuple[str, ...]
    calibration: Reliability | None
    """Of the label that was said; of several labels a row, of every label. None where scores are no probabilities."""
    refused: Sequence[Mapping[str, str]]
    """``row_id`` and ``error`` of rows that could not be answered."""
    speed: Speed | None = None
    """None where it was not measured, as for predictions from a file."""
    slices: Mapping[str, Sequence[Slice]] = field(default_factory=dict)
    """Column -> its slices, for the columns that were asked for."""
    worst_slices: WorstSlices | None = None
    """None where no search was asked for."""
    mistakes: Sequence[Mistake] = ()
    """As many as were asked for, most confident first; without scores, in the order of the rows."""
    pictures: Sequence[str] = field(default=(), repr=False)
    """Small copies of the mistakes' images as data URLs; empty where rows have none."""
    row_ids: Sequence[str] = field(default=(), repr=False)
    scores: NDArray[Any] | None = field(default=None, repr=False)
    """Score vectors, shape (rows, labels) or ragged."""
    true: Sequence[str] = field(default=(), repr=False)
    """The label of each row; several are joined."""
    said: Sequence[str] = field(default=(), repr=False)
    outcomes: Outcomes = field(default_factory=lambda: np.zeros((0, 2), np.int64), repr=False)
    task: Task | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain values, without the rows."""
        hidden = ("pictures", "row_ids", "scores", "true", "said", "outcomes", "task")
        return {key: _plain(value) for key, value in vars(self).items() if key not in hidden}


def evaluate(
    model: str,
    data: Source,
    *,
    registry: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
    by: Sequence[str] | str = (),
    slices: Literal["auto"] | None = None,
    min_slice_rows: int = MIN_ROWS,
    errors: int = 0,
    latency_rows: int = LATENCY_ROWS,
    draws: int = 1000,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Score a model on labelled rows.

    Args:
        model: Bundle folder, ``NAME[@alias]`` in the registry, URL of an endpoint, folder or Hub id of a
            ``transformers`` model with a classification head, or file of predictions; see ``predictors``.
        data: Labelled rows, as in a spec.
        registry: MLflow tracking URI, for names.
        columns: Role -> column name; by default those the model was trained with.
        labels: Names of the outputs, in order, of a model that calls them ``LABEL_0``; for predictions, all labels.
        by: Columns of the data whose values are scored one by one; ``length`` is that of the text, in characters.
        slices: ``auto`` looks for the slices with the most errors; see ``pmray.evaluation.slices``.
        min_slice_rows: Smaller slices are not looked at (`slices`) or put together (`by`).
        errors: How many of the wrong rows to return, the most confident first.
        latency_rows: Rows to ask one by one; 0 asks none.
        draws: Bootstrap draws.
        progress: Called with (rows done, rows).

    Raises:
        DataError: The rows cannot be read, have labels that the model does not know, or none could be answered; or the
            data cannot be sliced as asked.
        CandidateUnavailable: The model is none that can be opened.
        RegistryError: There is no such model.
        EndpointError: The endpoint cannot be reached.
    """
    if slices not in (None, "auto"):
        raise DataError(f"slices={slices!r}; the only search is 'auto', and `by` slices by a column")
    predicted = predict(
        model,
        data,
        registry=registry,
        columns=columns,
        labels=labels,
        latency_rows=latency_rows,
        progress=progress,
    )
    return evaluate_predicted(
        predicted, by=by, slices=slices, min_slice_rows=min_slice_rows, errors=errors, draws=draws
    )


def evaluate_predicted(
    predicted: Predicted,
    *,
    by: Sequence[str] | str = (),
    slices: Literal["auto"] | None = None,
    min_slice_rows: int = MIN_ROWS,
    errors: int = 0,
    draws: int = 1000,
) -> Evaluation:
    """Score predictions that are already there; the arguments are those of ``evaluate``.

    Raises:
        DataError: The data cannot be sliced as asked.
    """
    task, rows = predicted.task, predicted.rows
    targets = task.targets(rows.table)
    outcomes = task.paired_outcome(predicted.said, targets)
    right, metric = task.right(outcomes), task.metric(predicted.metric)
    wanted = [by] if isinstance(by, str) else by
    options: dict[str, Any] = {
        "clusters": group_numbers(rows.table),
        "min_rows": min_slice_rows,
        "draws": draws,
    }
    sliced = {name: slices_by(name, _sliced_column(rows, name), right, outcomes, metric, **options) for name in wanted}
    searched = None
    if slices == "auto":
        searched = worst_slices(_other_columns(rows), texts_of(rows.table), right, outcomes, metric, **options)
    wrong = _surest_mistakes(predicted, targets, right)[:errors]
    return _evaluation(
        predicted,
        targets,
        draws,
        slices=sliced,
        worst_slices=searched,
        mistakes=_mistakes(predicted, targets, wrong),
        pictures=[picture(rows.table, place) for place, _ in wrong] if "image" in rows.table.column_names else (),
    )


def _evaluation(predicted: Predicted, targets: NDArray[Any], draws: int, **more: Any) -> Evaluation:
    task = predicted.task
    outcomes = task.paired_outcome(predicted.said, targets)
    halves = task.halves(outcomes)
    clusters = group_numbers(predicted.rows.table)
    metrics = {name: bootstrap(task.metric(name), outcomes, draws=draws, clusters=clusters) for name in task.metrics()}
    metrics |= _of_probabilities(predicted, halves, draws, clusters)
    return Evaluation(
        source=predicted.source,
        rows=len(outcomes),
        groups=None if clusters is None else int(clusters.max()) + 1,
        metric=predicted.metric,
        score=metrics[predicted.metric],
        metrics=metrics,
        per_class={
            label: {
                name: bootstrap(function, outcomes, draws=draws, clusters=clusters)
                for name, function in functions.items()
            }
            for label, functions in task.class_metrics().items()
        },
        confusion=confusion(outcomes, len(task.labels)).tolist() if halves and halves[0].shape[1] == 1 else None,
        labels=task.labels,
        calibration=_calibration(predicted, halves),
        refused=list(predicted.refused),
        speed=predicted.speed,
        row_ids=predicted.rows.table["row_id"].to_pylist(),
        scores=predicted.scores,
        true=task.shown(targets),
        said=task.shown(predicted.said),
        outcomes=outcomes,
        task=task,
        **more,
    )


def save_predictions(found: Evaluation, path: Path) -> None:
    """Write one line a row, as Parquet or CSV by the file's suffix: its id, its label(s), what was said, all scores."""
    columns: dict[str, Any] = {
        "row_id": list(found.row_ids),
        "label": list(found.true),
        "prediction": list(found.said),
    }
    if found.scores is not None and not is_ragged(found.scores):
        columns |= {f"score: {label}": found.scores[:, index].tolist() for index, label in enumerate(found.labels)}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(pa.table(columns), path)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        raise DataError(f"{path}: predictions are written as .parquet or .csv, not {path.suffix or 'without suffix'}")


def _sliced_column(rows: LabelledRows, name: str) -> pa.ChunkedArray | NDArray[np.int64]:
    """The column to slice by; ``length`` is made from the texts unless the data has a column of that name."""
    if name == LENGTH and LENGTH not in rows.columns.column_names:
        if not (texts := texts_of(rows.table)):
            raise DataError("slices by length need the texts; name their column, such as `--column text=NAME`")
        return lengths(texts)
    return rows.column(name)


def _other_columns(rows: LabelledRows) -> dict[str, pa.ChunkedArray]:
    """Columns that are neither inputs nor the label, nor the label written another way, such as its number."""
    used = {name for role, name in rows.names.items() if role != "group"}
    shown = rows.table["label"].to_pylist()
    found = {}
    for name in rows.columns.column_names:
        if name in used:
            continue
        values = rows.columns[name].to_pylist()
        pairs = {(str(value), str(label)) for value, label in zip(values, shown, strict=True)}
        if not len(pairs) == len({value for value, _ in pairs}) == len({label for _, label in pairs}):
            found[name] = rows.columns[name]
    return found


Halves = tuple[NDArray[Any], NDArray[Any]]


def _probabilities(predicted: Predicted, halves: Halves | None) -> NDArray[np.float32] | None:
    """The score vectors, where each row has one, of probabilities."""
    scores = predicted.scores
    if halves is None or scores is None or scores.min() < 0 or scores.max() > 1:
        return None
    several = halves[0].shape[1] > 1
    return scores if several or np.allclose(scores.sum(axis=1), 1, atol=0.01) else None


def _of_probabilities(
    predicted: Predicted, halves: Halves | None, draws: int, clusters: NDArray[np.int64] | None
) -> dict[str, Interval]:
    """ROC-AUC, average precision, log loss, Brier score and calibration error, those that these rows can tell."""
    scores = _probabilities(predicted, halves)
    if halves is None or scores is None:
        return {}
    several = halves[0].shape[1] > 1
    true = halves[0] if several else halves[0][:, 0]
    positive = getattr(predicted.task, "positive", None)
    found = probability_metrics(
        scores.shape[1],
        multi_label=several,
        positive=None if positive is None else predicted.task.labels.index(positive),
    )
    lines = lines_of(true, scores)
    draws = min(draws, PROBABILITY_DRAWS)
    # Each row for itself, in the rows' order: sorted by their probabilities, rows would be drawn otherwise after a
    # change in a last digit.
    clusters = np.arange(len(lines)) if clusters is None else clusters
    intervals = {name: bootstrap(metric, lines, draws=draws, clusters=clusters) for name, metric in found.items()}
    # A label that no row has, or every row, cannot be ranked.
    return {name: one for name, one in intervals.items() if np.isfinite([one.value, one.low, one.high]).all()}


def _calibration(predicted: Predicted, halves: Halves | None) -> Reliability | None:
    scores = _probabilities(predicted, halves)
    if halves is None or scores is None:
        return None
    true, said = halves
    if true.shape[1] == scores.shape[1]:
        return reliability(scores.ravel(), true.ravel() == 1)
    return reliability(np.take_along_axis(scores, said, axis=1)[:, 0], true[:, 0] == said[:, 0])


def _surest_mistakes(
    predicted: Predicted, targets: NDArray[Any], right: NDArray[np.bool_]
) -> list[tuple[int, float | None]]:
    """Positions of the wrong rows with the confidence in them, the most confident first."""
    wrong = np.flatnonzero(~right)
    if predicted.scores is None:
        return [(place, None) for place in wrong.tolist()]
    rows = zip(predicted.scores[wrong], targets[wrong], predicted.said[wrong], strict=True)
    confidence = np.array([surest_error(*row) for row in rows])
    order = np.argsort(-confidence, kind="stable")
    return list(zip(wrong[order].tolist(), confidence[order].tolist(), strict=True))


def _mistakes(predicted: Predicted, targets: NDArray[Any], wrong: Sequence[tuple[int, float | None]]) -> list[Mistake]:
    places = [place for place, _ in wrong]
    if not places:
        return []
    shown = zip(
        predicted.rows.table["row_id"].take(places).to_pylist(),
        predicted.task.shown(targets[places]),
        predicted.task.shown(predicted.said[places]),
        (confidence for _, confidence in wrong),
        inputs_of(predicted.rows.table, places),
        strict=True,
    )
    return [Mistake(*one) for one in shown]


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
