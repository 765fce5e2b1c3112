"""F1 of spans, such as named entities: a span is right when its type and both its ends are.

Equal to seqeval, in its default mode (as the CoNLL script: what goes on without a beginning begins) and in its strict
mode with IOB2 (only what begins with B- counts).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pmray.errors import UnknownName
from pmray.scoring.metrics import Metric, Outcomes, Scores, Weights

Span = tuple[int, int, int]
"""Type, first word, word after the last."""

PARTS = ("have", "said", "hits", "strict_said", "strict_hits")
"""What is counted of each type; the parts of an outcome line, followed by words and right words."""

Average = Literal["micro", "macro", "weighted"]


def spans_of(tags: NDArray[Any], *, strict: bool = False) -> set[Span]:
    """Spans of a row of tags.

    Args:
        tags: Numbers: 0 is O, ``2 * type + 1`` is B, ``2 * type + 2`` is I; shape (words,).
        strict: Leave out what does not begin with B.

    >>> sorted(spans_of(np.array([1, 2, 0, 4]))), sorted(spans_of(np.array([1, 2, 0, 4]), strict=True))
    ([(0, 0, 2), (1, 3, 4)], [(0, 0, 2)])
    """
    found: set[Span] = set()
    kind, start = -1, 0
    for place, tag in enumerate([*tags.tolist(), 0]):
        here = (tag - 1) // 2 if tag else -1
        begins = tag % 2 == 1
        if kind >= 0 and (begins or here != kind):
            found.add((kind, start, place))
            kind = -1
        if kind < 0 and tag and (begins or not strict):
            kind, start = here, place
    return found


def span_outcomes(true: Sequence[NDArray[Any]], said: Sequence[NDArray[Any]], types: int) -> Outcomes:
    """One line a row: for each type, spans that are there, said and right (lenient and strict); words; right words.

    Args:
        true: Tags of each row, BIO.
        said: Predicted ones.
        types: How many.

    Returns:
        int64, (rows, 5 x types + 2).
    """
    lines = np.zeros((len(true), len(PARTS), types), dtype=np.int64)
    words = np.zeros((len(true), 2), dtype=np.int64)
    for row, (have, claimed) in enumerate(zip(true, said, strict=True)):
        there = spans_of(have)
        lenient, strict = spans_of(claimed), spans_of(claimed, strict=True)
        for part, spans in enumerate((there, lenient, there & lenient, strict, there & strict)):
            for kind, _, _ in spans:
                lines[row, part, kind] += 1
        words[row] = len(have), int((have == claimed).sum())
    return np.hstack([lines.reshape(len(true), -1), words])


def all_right(outcomes: Outcomes) -> NDArray[np.bool_]:
    """Whether all spans of a row are right and none is missing, (rows,)."""
    have, said, hits, _, _ = _parts(outcomes)
    right: NDArray[np.bool_] = ((have == said) & (said == hits)).all(axis=1)
    return right


def span_metric(name: str) -> Metric:
    """Return the metric of that name, one of `SPAN`.

    Raises:
        UnknownName: No metric has that name.
    """
    if name not in _METRICS:
        raise UnknownName("metric", name, SPAN)
    return _METRICS[name]


def span_score(
    outcomes: Outcomes,
    weights: Weights,
    *,
    of: Literal["f1", "precision", "recall"] = "f1",
    average: Average = "micro",
    strict: bool = False,
    kind: int | None = None,
) -> Scores:
    """Score weighted rows; what has nothing to divide by is 0.

    Args:
        outcomes: As ``span_outcomes`` gives them.
        weights: (draws, rows).
        of: Which ratio.
        average: Over types: ``micro`` counts all spans as of one type; ``macro`` and ``weighted`` leave out types that
            are neither there nor said.
        strict: As seqeval's strict mode.
        kind: Score this type alone.
    """
    have, said, hits, strict_said, strict_hits = (weights @ part for part in _parts(outcomes))
    if strict:
        said, hits = strict_said, strict_hits
    if kind is not None:
        have, said, hits = (part[:, kind : kind + 1] for part in (have, said, hits))
    elif average == "micro":
        have, said, hits = (part.sum(axis=1, keepdims=True) for part in (have, said, hits))
    above, below = {"f1": (2 * hits, have + said), "precision": (hits, said), "recall": (hits, have)}[of]
    each = _ratio(above, below)
    if average == "weighted" and kind is None:
        return _ratio((each * have).sum(axis=1), have.sum(axis=1))
    return _ratio(each.sum(axis=1), ((have + said) > 0).sum(axis=1))


def word_accuracy(outcomes: Outcomes, weights: Weights) -> Scores:
    """Share of the words whose tag is right, O included."""
    return _ratio(weights @ outcomes[:, -1], weights @ outcomes[:, -2])


def _parts(outcomes: Outcomes) -> NDArray[Any]:
    """Counts by part: (parts, rows, types)."""
    lines = outcomes[:, :-2].reshape(len(outcomes), len(PARTS), -1)
    return np.moveaxis(lines, 1, 0)


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> NDArray[np.float64]:
    answer = np.zeros(np.shape(below))
    np.divide(above, below, out=answer, where=below > 0)
    return answer


_METRICS: dict[str, Metric] = {
    "span_f1": span_score,
    "span_precision": partial(span_score, of="precision"),
    "span_recall": partial(span_score, of="recall"),
    "span_f1_macro": partial(span_score, average="macro"),
    "span_f1_weighted": partial(span_score, average="weighted"),
    "span_f1_strict": partial(span_score, strict=True),
    "span_precision_strict": partial(span_score, of="precision", strict=True),
    "span_recall_strict": partial(span_score, of="recall", strict=True),
    "word_accuracy": word_accuracy,
}
SPAN = tuple(_METRICS)
