"""What a model's predictions have to tell, computed from scores and labels: small tuples that ``run_page`` draws."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.data.labelled import inputs_of, texts_of
from pmray.data.split import group_numbers
from pmray.evaluation.reliability import Reliability, reliability, surest_error
from pmray.evaluation.slices import MIN_ROWS, WorstSlices, worst_slices
from pmray.scoring.metrics import Metric, confusion
from pmray.scoring.ragged import flat, is_ragged
from pmray.scoring.spans import spans_of
from pmray.tasks.base import Task

EXAMPLES = 12
"""Rows that are shown of each kind."""
THUMBNAIL = 128
"""Pixels of an image's longer side."""
SLICE_DRAWS = 400
"""Bootstrap draws of a slice's score, which decides nothing."""


class Matrix(NamedTuple):
    """Counts by what is true (down) and what was said (across)."""

    unit: str
    """What is counted: rows or spans."""
    true: tuple[str, ...]
    said: tuple[str, ...]
    cells: tuple[tuple[int, ...], ...]
    right: tuple[tuple[int, int], ...]
    """Cells of what is right."""


class Example(NamedTuple):
    """A row, what is true of it and what was said."""

    row_id: str
    true: str
    said: Mapping[str, str]
    """Model -> its prediction."""
    confidence: float | None
    inputs: Mapping[str, str]
    picture: str
    """A small copy of an image as a data URL; empty where there is none."""


class Disagreement(NamedTuple):
    """Two models on the same rows."""

    first: str
    second: str
    both: int
    """Rows on which both are right."""
    only_first: int
    only_second: int
    neither: int
    examples: tuple[Example, ...]
    """Rows on which they differ, those of which the first model was surest."""


class RowFacts(NamedTuple):
    """What the predictions of the exported fit have to tell."""

    model: str
    rows: int
    matrix: Matrix | None
    calibration: Reliability | None
    slices: WorstSlices | None
    wrong: int
    mistakes: tuple[Example, ...]
    disagreement: Disagreement | None
    """With the runner-up, where there is one."""


class Predictions(NamedTuple):
    """What a fit says of some rows."""

    model: str
    task: Task
    """With the thresholds that the fit tuned."""
    scores: NDArray[Any]


def row_facts(
    best: Predictions,
    other: Predictions | None,
    labels: pa.Table,
    table: pa.Table,
    metric: str,
    *,
    show_rows: bool = True,
) -> RowFacts:
    """Look at predictions row by row.

    Args:
        best: Of the winner.
        other: Of the runner-up.
        labels: ``row_id`` and ``label`` of the same rows.
        table: Their inputs.
        metric: Name of the deciding one.
        show_rows: Whether inputs are shown, and slices are named by words of them.
    """
    task = best.task
    targets = task.targets(labels)
    outcomes = task.outcome(best.scores, targets)
    right = task.right(outcomes)
    return RowFacts(
        model=best.model,
        rows=len(labels),
        matrix=matrix(task, best.scores, targets),
        calibration=calibration(task, best.scores, targets),
        slices=_slices(task.metric(metric), labels, table, right, outcomes, show_rows=show_rows),
        wrong=int((~right).sum()),
        mistakes=_mistakes(best, targets, labels, table) if show_rows else (),
        disagreement=None if other is None else _disagreement(best, other, targets, labels, table, show_rows),
    )


def matrix(task: Task, scores: NDArray[Any], targets: NDArray[Any]) -> Matrix | None:
    """The confusion matrix: of rows with one label, of labels that rows have or not, or of spans; else None."""
    said = task.said(scores)
    if is_ragged(targets):
        if getattr(task, "types", None) is None:
            return None
        return span_matrix(list(targets), list(said), task.types)  # type: ignore[attr-defined]
    halves = task.halves(task.paired_outcome(said, targets))
    if halves is None:
        return None
    true, claimed = halves
    if true.shape[1] == 1:
        cells = confusion(np.hstack([true, claimed]), len(task.labels))
        names = tuple(task.labels)
        return Matrix("rows", names, names, _tuples(cells), tuple((place, place) for place in range(len(names))))
    counts = np.stack([(true & claimed).sum(0), (true & ~claimed & 1).sum(0), (~true & 1 & claimed).sum(0)], axis=1)
    columns = ("said and true", "missed", "said but false")
    return Matrix("rows", tuple(task.labels), columns, _tuples(counts), tuple((n, 0) for n in range(len(task.labels))))


def span_matrix(true: Sequence[NDArray[Any]], said: Sequence[NDArray[Any]], types: Sequence[str]) -> Matrix:
    """What became of every true span, and what was said where there is none.

    A span with the right ends counts by the type that was said; one of which a part was marked, as `other ends`.
    What was marked without touching a true span stands in the last line. Compare the error types of MUC-5 (Chinchor &
    Sundheim 1993).

    Args:
        true: BIO tags of each row; see ``scoring.spans``.
        said: Predicted ones.
        types: Names of the types.

    >>> found = span_matrix([np.array([1, 2, 0, 1])], [np.array([3, 4, 0, 0])], ["PER", "LOC"])
    >>> found.cells
    ((0, 1, 0, 1), (0, 0, 0, 0), (0, 0, 0, 0))
    """
    kinds = len(types)
    cells = np.zeros((kinds + 1, kinds + 2), dtype=np.int64)
    for have, claimed in zip(true, said, strict=True):
        there, marked = spans_of(have), spans_of(claimed)
        ends = {(first, after): kind for kind, first, after in marked}
        for kind, first, after in there:
            if (first, after) in ends:
                cells[kind, ends[first, after]] += 1
            else:
                touched = any(begin < after and first < end for begin, end in ends)
                cells[kind, kinds if touched else kinds + 1] += 1
        for kind, first, after in marked:
            if not any(first < end and begin < after for _, begin, end in there):
                cells[kinds, kind] += 1
    names = tuple(types)
    right = tuple((place, place) for place in range(kinds))
    return Matrix("spans", (*names, "nothing"), (*names, "other ends", "missed"), _tuples(cells), right)


def calibration(task: Task, scores: NDArray[Any], targets: NDArray[Any]) -> Reliability | None:
    """Confidence against success: of rows, of labels where a row has several, of words where it has parts."""
    if is_ragged(scores):
        parts, true = flat(scores), flat(targets)
        if parts.ndim != 2 or true.ndim != 1:
            return None
        said = parts.argmax(1)
        return reliability(parts[np.arange(len(said)), said], said == true)
    halves = task.halves(task.outcome(scores, targets))
    if halves is None or scores.ndim != 2 or scores.min() < 0 or scores.max() > 1:
        return None
    true, said = halves
    if true.shape[1] == scores.shape[1]:
        return reliability(scores.ravel(), true.ravel() == 1)
    return reliability(np.take_along_axis(scores, said, axis=1)[:, 0], true[:, 0] == said[:, 0])


def shown(task: Task, values: NDArray[Any], table: pa.Table, places: NDArray[np.int64]) -> list[str]:
    """Write targets or predictions of some rows for people: labels, or what is marked in the words.

    Args:
        task: Knows the names.
        values: Of these rows, as ``task.targets`` gives them.
        table: All rows.
        places: Which rows.
    """
    types = getattr(task, "types", None)
    if not is_ragged(values) or types is None or "words" not in table.column_names:
        return task.shown(values)
    told = []
    for tags, place in zip(values, places.tolist(), strict=True):
        words = table["words"][place].as_py()
        spans = sorted(spans_of(tags), key=lambda span: span[1])
        told.append("; ".join(f"{types[kind]}: {''.join(words[first:after]).strip()}" for kind, first, after in spans))
    return told


def picture(table: pa.Table, place: int) -> str:
    """A small copy of a row's image as a data URL; empty where rows have none."""
    if "image" not in table.column_names:
        return ""
    from PIL import Image

    from pmray.data.images import decode

    small = decode(table["image"][place].as_py())
    if max(small.size) < THUMBNAIL:
        grown = THUMBNAIL // max(small.size)
        small = small.resize((small.width * grown, small.height * grown), Image.Resampling.NEAREST)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _slices(
    metric: Metric,
    labels: pa.Table,
    table: pa.Table,
    right: NDArray[np.bool_],
    outcomes: NDArray[Any],
    *,
    show_rows: bool,
) -> WorstSlices | None:
    if len(labels) < 2 * MIN_ROWS:
        return None
    columns = {"label": labels["label"]}
    texts = texts_of(table) if show_rows else []
    clusters = group_numbers(table)
    return worst_slices(columns, texts, right, outcomes, metric, clusters=clusters, draws=SLICE_DRAWS)


def _mistakes(best: Predictions, targets: NDArray[Any], labels: pa.Table, table: pa.Table) -> tuple[Example, ...]:
    said = best.task.said(best.scores)
    wrong = np.flatnonzero(~best.task.right(best.task.outcome(best.scores, targets)))
    sure = _confidence(best, targets, said, wrong)
    order = np.argsort(-sure, kind="stable")[:EXAMPLES]
    return _examples(wrong[order], [best], targets, labels, table, sure[order])


def _disagreement(
    first: Predictions,
    second: Predictions,
    targets: NDArray[Any],
    labels: pa.Table,
    table: pa.Table,
    show_rows: bool,
) -> Disagreement:
    a, b = (one.task.right(one.task.outcome(one.scores, targets)) for one in (first, second))
    one_right = np.flatnonzero(a != b)
    examples: tuple[Example, ...] = ()
    if show_rows:
        # As many of either side as there are, so that neither model looks better than the counts say.
        half = EXAMPLES // 2
        picked = np.concatenate([one_right[a[one_right]][:half], one_right[b[one_right]][:half]])
        examples = _examples(picked, [first, second], targets, labels, table, None)
    return Disagreement(
        first.model,
        second.model,
        int((a & b).sum()),
        int((a & ~b).sum()),
        int((~a & b).sum()),
        int((~a & ~b).sum()),
        examples,
    )


def _confidence(
    one: Predictions, targets: NDArray[Any], said: NDArray[Any], places: NDArray[np.int64]
) -> NDArray[np.float64]:
    rows = zip(one.scores[places], targets[places], said[places], strict=True)
    return np.array([surest_error(*row) for row in rows], dtype=np.float64)


def _examples(
    places: NDArray[np.int64],
    models: Sequence[Predictions],
    targets: NDArray[Any],
    labels: pa.Table,
    table: pa.Table,
    sure: NDArray[np.float64] | None,
) -> tuple[Example, ...]:
    true = shown(models[0].task, targets[places], table, places)
    said = {one.model: shown(one.task, one.task.said(one.scores)[places], table, places) for one in models}
    ids = labels["row_id"].take(places).to_pylist()
    inputs = inputs_of(table, places.tolist())
    return tuple(
        Example(
            row_id,
            true[number],
            {model: values[number] for model, values in said.items()},
            None if sure is None else float(sure[number]),
            inputs[number],
            picture(table, int(places[number])),
        )
        for number, row_id in enumerate(ids)
    )


def _tuples(cells: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(count) for count in line) for line in cells)
