"""Tables of evaluations and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pmray.scoring.intervals import Interval
from pmray.selection.verdict import show

MOST_CLASSES = 12
"""Larger confusion matrices are no longer read; the most frequent confusions are listed instead."""
TEXT = 100
"""Characters of a text that are shown."""


def evaluation_table(found: Any) -> RenderableType:
    """A model's scores on labelled rows, for people.

    Args:
        found: A ``pmray.evaluation.evaluate.Evaluation``.
    """
    rows = f"{found.rows} rows" + (f" in {found.groups} groups" if found.groups else "")
    overall = _table(f"{found.source} on {rows}", "metric", f"value [{found.score.level:.0%} interval]")
    for name, interval in found.metrics.items():
        overall.add_row(name, show(interval), style="bold" if name == found.metric else "")
    classes = _table("class by class", "class", "precision", "recall", "f1")
    for label, values in found.per_class.items():
        classes.add_row(Text(label), *(show(values[name]) for name in ("precision", "recall", "f1")))
    parts: list[RenderableType] = [overall, classes]
    if found.confusion is not None:
        parts.append(_confusion(found.confusion, found.labels))
    if found.calibration is not None:
        parts.append(_calibration(found.calibration))
    for column, slices in found.slices.items():
        title = f"by {column} (p: share of errors against all other rows, Fisher's exact test, Holm-corrected)"
        parts.append(_slices(title, slices, found.metric))
    if found.worst_slices is not None:
        parts += _worst(found.worst_slices, found.metric)
    if found.mistakes:
        parts.append(_mistakes(found.mistakes))
    if found.speed is not None:
        parts.append(Text(f"speed: {_speed(found.speed)}; {found.speed.rows_per_second:,.0f} rows/s many at a time"))
    if found.refused:
        first = found.refused[0]
        told = f"{len(found.refused)} rows were refused and not counted, such as {first['row_id']}: {first['error']}"
        parts.append(Text(told))
    return Group(*parts)


def comparison_table(found: Any) -> RenderableType:
    """Models on the same rows, for people.

    Args:
        found: A ``pmray.evaluation.compare.Compared``.
    """
    table = _table(f"{found.metric} on {found.rows} rows", "group", "model", "score", "speed")
    for line in found.lines:
        group = next(number for number, members in enumerate(found.groups, start=1) if line.name in members)
        table.add_row(str(group), Text(line.name), show(line.score), _speed(line.speed) if line.speed else "-")
    headings = ("first", "second", "difference", "p", "only first right", "only second right", "McNemar p")
    pairs = _table(f"pairs (p: paired bootstrap of {found.metric}; both p are Holm-corrected)", *headings)
    for one in found.comparisons:
        difference = f"{one.paired.difference:+.3f} [{one.paired.low:+.3f}, {one.paired.high:+.3f}]"
        counts = (str(one.first_right), str(one.second_right))
        pairs.add_row(
            Text(one.first), Text(one.second), difference, f"{one.adjusted_p:.2g}", *counts, f"{one.mcnemar_p:.2g}"
        )
    parts: list[RenderableType] = [table, pairs, f"they disagree on {found.disagreements} of {found.rows} rows"]
    if found.examples:
        parts.append(_disagreements(found.examples))
    if found.left_out:
        parts.append(f"{found.left_out} rows were refused by at least one model and left out for all")
    return Group(*parts)


def _confusion(cells: Sequence[Sequence[int]], labels: Sequence[str]) -> RenderableType:
    if len(labels) <= MOST_CLASSES:
        table = _table("confusion (true label down, predicted across)", "", *labels)
        for number, (label, line) in enumerate(zip(labels, cells, strict=True)):
            table.add_row(
                Text(label),
                *(f"[bold]{count}[/]" if place == number else str(count) for place, count in enumerate(line)),
            )
        return table
    table = _table("most frequent confusions", "true", "predicted", "rows")
    wrong = [
        (count, true, said)
        for true, line in enumerate(cells)
        for said, count in enumerate(line)
        if count and true != said
    ]
    for count, true, said in sorted(wrong, reverse=True)[:MOST_CLASSES]:
        table.add_row(Text(labels[true]), Text(labels[said]), str(count))
    return table


def _calibration(found: Any) -> RenderableType:
    promise = "promises too much" if found.overconfidence > 0 else "promises too little"
    title = (
        f"calibration: expected error {found.ece:.3f}, largest {found.mce:.3f}; "
        f"on average it {promise} by {abs(found.overconfidence):.3f}"
    )
    table = _table(title, "confidence", "predictions", "mean confidence", "right")
    for one in found.bins:
        table.add_row(f"{one.low:.1f} to {one.high:.1f}", str(one.count), f"{one.confidence:.3f}", f"{one.right:.3f}")
    return table


def _slices(title: str, slices: Sequence[Any], metric: str) -> RenderableType:
    table = _table(title, "slice", "rows", metric, "errors", "elsewhere", "adjusted p")
    for one in slices:
        name = Text(f"{one.column} = {one.value}")
        errors, elsewhere = _percent(one.errors), f"{one.errors_elsewhere:.1%}"
        table.add_row(name, str(one.rows), show(one.score), errors, elsewhere, f"{one.p_value:.2g}")
    return table


def _worst(found: Any, metric: str) -> list[RenderableType]:
    if not found.slices:
        return ["worst slices: none is large enough to be looked at"]
    title = f"worst slices of {found.tested} (intervals widened to {found.slices[0].errors.level:.1%} for the picking)"
    told = (
        f"{found.significant} of {found.tested} slices have more errors than the other rows "
        f"(Benjamini-Hochberg, false discovery rate {found.alpha:g})"
    )
    return [_slices(title, found.slices, metric), told]


def _mistakes(mistakes: Sequence[Any]) -> RenderableType:
    table = _table("most confident errors", "row", "true", "predicted", "confidence", "input")
    for one in mistakes:
        confidence = "-" if one.confidence is None else f"{one.confidence:.3f}"
        table.add_row(Text(one.row_id), Text(one.true), Text(one.said), confidence, _inputs(one.inputs))
    return table


def _disagreements(examples: Sequence[Any]) -> RenderableType:
    table = _table("where they disagree", "row", "true", *examples[0].said, "input")
    for one in examples:
        said = (Text(value, style="" if value == one.true else "red") for value in one.said.values())
        table.add_row(Text(one.row_id), Text(one.true), *said, _inputs(one.inputs))
    return table


def _inputs(inputs: Mapping[str, str]) -> Text:
    return Text(" | ".join(text if len(text) <= TEXT else f"{text[:TEXT]}…" for text in inputs.values()))


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _speed(speed: Any) -> str:
    if speed.p50_ms is None:
        return f"{speed.rows_per_second:,.0f} rows/s"
    return f"{speed.p50_ms:.1f} ms a row (p95 {speed.p95_ms:.1f})"


def _table(title: str, *headings: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for heading in headings:
        table.add_column(escape(heading))
    return table
