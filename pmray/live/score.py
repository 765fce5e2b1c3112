"""The live score: the metrics of the sweep, on labels that arrive after the prediction, beside what was promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmray.live.drift import Profile, category_of, confidence_of
from pmray.live.estimate import Estimate, estimate
from pmray.live.promotion import ClassDrop
from pmray.live.records import unpack
from pmray.live.sequential import Anytime, difference_sequence, score_sequence
from pmray.live.store import Answered
from pmray.scoring.intervals import Interval, bootstrap
from pmray.scoring.ragged import stacked
from pmray.tasks.base import Outcomes, Task
from pmray.tasks.labels import RowLabels

MIN_LABELS = 20
"""Labels of the smallest window that gets a score."""

STEPS_S = (60, 300, 900, 3_600, 6 * 3_600, 86_400, 7 * 86_400)
"""Lengths of windows: the shortest is taken of which `WINDOWS` span the time that is looked at."""

WINDOWS = 24

DRAWS = 300
"""Bootstrap draws of a window's interval; a page shows two dozen of them."""


@dataclass(frozen=True)
class Scored:
    """Labelled predictions as the metrics want them, in the order of time."""

    rows: Sequence[Answered]
    scores: NDArray[Any]
    """Score vectors, (rows, labels) or ragged."""
    outcomes: Outcomes
    unusable: int
    """Labelled predictions left out: the label is none that the model knows, or scores are of other labels."""


@dataclass(frozen=True)
class Window:
    """One span of time, by when predictions were made; a label that comes late counts where its prediction is."""

    start: float
    end: float
    predictions: int
    labelled: int
    score: Interval | None
    """None with fewer than `MIN_LABELS`."""
    estimate: Estimate | None
    """Without labels; see ``pmray.live.estimate``."""


@dataclass(frozen=True)
class Lag:
    """Seconds from predictions to their labels."""

    median_s: float
    p90_s: float


def label_problem(task: Task, label: Any, parts: int | None = None) -> str | None:
    """Say why a label cannot be one of this task's, or None.

    Args:
        task: Knows the labels.
        label: As it was sent.
        parts: How many parts the row has, where each has a label and it is known.
    """
    several = task.multi_label if isinstance(task, RowLabels) else True
    given = label if isinstance(label, list) else [label]
    if isinstance(label, list) != several:
        wanted = "a list of labels" if several else "one label, as text"
        return f"a label must be {wanted}, but is {'a list' if isinstance(label, list) else type(label).__name__}"
    for one in given:
        if not isinstance(one, str) or one not in task.labels:
            known = ", ".join(task.labels[:20]) + (", …" if len(task.labels) > 20 else "")
            return f"{str(one)[:80]!r} is not one of: {known}"
    if isinstance(task, RowLabels):
        return None
    if parts is not None and len(given) != parts:
        return f"{len(given)} tags, but the row has {parts} words"
    return None if given else "a label must have at least one tag"


def scored(task: Task, rows: Sequence[Answered]) -> Scored | None:
    """Put predictions and their labels into the form of metrics; None where none can be."""
    good, vectors = [], []
    labelled = [row for row in rows if row.label is not None]
    for row in labelled:
        vector = unpack(row.scores, len(task.labels))
        if vector is None or label_problem(task, row.label, len(vector) if vector.ndim > 1 else None):
            continue
        good.append(row)
        vectors.append(vector)
    if not good:
        return None
    scores = stacked(vectors)
    targets = task.targets(pa.table({"label": [row.label for row in good]}))
    return Scored(good, scores, task.outcome(scores, targets), len(labelled) - len(good))


def profile(task: Task, rows: Sequence[Answered]) -> Profile:
    """What ``pmray.live.drift`` compares of some predictions."""
    vectors = [unpack(row.scores, len(task.labels)) for row in rows]
    words = [row.words for row in rows if row.words is not None]
    return Profile(
        lengths=np.array([row.length for row in rows], np.int64),
        words=np.array(words, np.int64),
        predictions=[
            category_of(row.prediction, len(vector) if vector is not None and vector.ndim > 1 else None)
            for row, vector in zip(rows, vectors, strict=True)
        ],
        confidence=np.array([confidence_of(vector) for vector in vectors if vector is not None]),
    )


def intervals(task: Task, found: Scored) -> dict[str, Interval]:
    """All metrics of the task on all labelled rows."""
    return {name: bootstrap(task.metric(name), found.outcomes, draws=DRAWS) for name in task.metrics()}


def per_class(task: Task, found: Scored) -> dict[str, Interval]:
    """F1 of each label."""
    return {
        label: bootstrap(functions["f1"], found.outcomes, draws=DRAWS)
        for label, functions in task.class_metrics().items()
        if "f1" in functions
    }


def windows(
    task: Task, metric: str, rows: Sequence[Answered], *, since: float, until: float, estimates: bool = True
) -> list[Window]:
    """Score spans of equal length, oldest first; those without predictions are left out.

    Args:
        task: Gives the metric.
        metric: The one that decides.
        rows: Predictions, labelled or not, in the order of time.
        since: Where the first window may begin, seconds since 1970; windows begin at whole hours, days and so on.
        until: Where the last ends.
        estimates: Whether to also estimate scores without labels.
    """
    if not rows:
        return []
    step = step_of(until - max(since, rows[0].time))
    numbers = np.array([row.time // step for row in rows])
    found = []
    for number in np.unique(numbers):
        inside = [rows[place] for place in np.flatnonzero(numbers == number).tolist()]
        of_window = scored(task, inside)
        labelled = len(of_window.rows) if of_window else 0
        score = None
        if of_window and labelled >= MIN_LABELS:
            score = bootstrap(task.metric(metric), of_window.outcomes, draws=DRAWS)
        guess = estimate(task, metric, _vectors(task, inside)) if estimates else None
        found.append(Window(number * step, (number + 1) * step, len(inside), labelled, score, guess))
    return found


def step_of(seconds: float) -> int:
    """Length of the windows of a span.

    >>> step_of(3_600), step_of(86_400), step_of(30 * 86_400)
    (300, 3600, 604800)
    """
    return next((step for step in STEPS_S if seconds / step <= WINDOWS), STEPS_S[-1])


def estimated(task: Task, metric: str, rows: Sequence[Answered]) -> Estimate | None:
    """The score of some predictions without their labels."""
    return estimate(task, metric, _vectors(task, rows))


def lag(rows: Sequence[Answered]) -> Lag | None:
    """How long labels take."""
    waits = [row.received - row.time for row in rows if row.received is not None]
    return Lag(*(float(one) for one in np.quantile(waits, [0.5, 0.9]))) if waits else None


def anytime(task: Task, metric: str, rows: Sequence[Answered], level: float = 0.95) -> Anytime | None:
    """The live score with an interval that stays valid however often one looks."""
    found = scored(task, rows)
    return score_sequence(task.metric(metric), found.outcomes, level=level) if found else None


@dataclass(frozen=True)
class Pairing:
    """Champion and challenger on the rows that both answered and that have a label."""

    rows: int
    difference: Anytime | None
    """Challenger minus champion."""
    champion: Interval | None
    challenger: Interval | None
    class_drops: dict[str, ClassDrop]


def pairing(
    task: Task, metric: str, pairs: Sequence[tuple[Answered, Answered]], other: Task | None = None, level: float = 0.95
) -> Pairing:
    """Compare two versions row by row.

    Args:
        task: Of the champion.
        metric: The one that decides.
        pairs: (champion's, challenger's) answers.
        other: The challenger's task, which may have other thresholds, but must have the same labels.
        level: Of the interval, at all times together.
    """
    other = other or task
    sides = [scored(one, side) for one, side in zip((task, other), zip(*pairs, strict=True), strict=False)]
    if not pairs or task.labels != other.labels or None in sides:
        return Pairing(0, None, None, None, {})
    first, second = (side for side in sides if side is not None)
    shared = {row.id for row in first.rows} & {row.id for row in second.rows}
    one, two = (
        side.outcomes[[place for place, row in enumerate(side.rows) if row.id in shared]] for side in (first, second)
    )
    function = task.metric(metric)
    drops = {}
    for label, functions in task.class_metrics().items():
        if "f1" not in functions:
            continue
        old, new = (float(functions["f1"](side, np.ones((1, len(side))))[0]) for side in (one, two))
        drops[label] = ClassDrop(old - new, _having(task, one, label))
    before, after = (bootstrap(function, side, draws=DRAWS) if len(one) >= MIN_LABELS else None for side in (one, two))
    return Pairing(len(one), difference_sequence(function, two, one, level=level), before, after, drops)


def _having(task: Task, outcomes: Outcomes, label: str) -> int:
    """Rows that have a label; where a row is no set of labels, all rows."""
    halves = task.halves(outcomes)
    if halves is None:
        return len(outcomes)
    true, number = halves[0], task.labels.index(label)
    return int((true[:, number] == 1).sum() if true.shape[1] > 1 else (true[:, 0] == number).sum())


def _vectors(task: Task, rows: Sequence[Answered]) -> NDArray[Any]:
    vectors = [vector for row in rows if (vector := unpack(row.scores, len(task.labels))) is not None]
    return stacked(vectors) if vectors else np.zeros((0, len(task.labels)), np.float32)
