"""Tables of evaluations and comparisons."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from pmray.selection.verdict import show


def evaluation_table(found: Any) -> RenderableType:
    """A model's scores on labelled rows, for people.

    Args:
        found: A ``pmray.evaluation.Evaluation``.
    """
    overall = Table(title=f"{found.source} on {found.rows} rows", title_justify="left")
    overall.add_column("metric")
    overall.add_column(f"value [{found.score.level:.0%} interval]")
    for name, interval in found.metrics.items():
        overall.add_row(name, show(interval), style="bold" if name == found.metric else "")
    classes = Table(title="class by class", title_justify="left")
    for heading in ("class", "precision", "recall", "f1"):
        classes.add_column(heading)
    for label, values in found.per_class.items():
        classes.add_row(label, *(show(values[name]) for name in ("precision", "recall", "f1")))
    parts: list[RenderableType] = [overall, classes]
    if found.refused:
        first = found.refused[0]
        parts.append(
            f"{len(found.refused)} rows were refused and not counted, such as {first['row_id']}: {first['error']}"
        )
    return Group(*parts)


def comparison_table(found: Any) -> RenderableType:
    """Models on the same rows, for people.

    Args:
        found: A ``pmray.evaluation.Compared``.
    """
    table = Table(title=f"{found.metric} on {found.rows} rows", title_justify="left")
    for heading in ("group", "model", "score"):
        table.add_column(heading)
    for line in found.lines:
        group = next(number for number, members in enumerate(found.groups, start=1) if line.name in members)
        table.add_row(str(group), line.name, show(line.score))
    pairs = Table(title="pairs (paired bootstrap, Holm-corrected)", title_justify="left")
    for heading in ("first", "second", "difference", "p"):
        pairs.add_column(heading)
    for one in found.comparisons:
        difference = f"{one.paired.difference:+.3f} [{one.paired.low:+.3f}, {one.paired.high:+.3f}]"
        pairs.add_row(one.first, one.second, difference, f"{one.adjusted_p:.2g}")
    return Group(table, pairs, f"they disagree on {found.disagreements} of {found.rows} rows")
