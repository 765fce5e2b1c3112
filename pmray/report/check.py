"""Tables of a data check."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pmray.checking import Checked
from pmray.report.console import findings_table


def check_table(checked: Checked) -> RenderableType:
    """What is in the data and what was found in it, for people."""
    role_of = {column: role for role, column in checked.roles.items()}
    read_as = checked.task or "no task (only what holds for any rows was checked)"
    rows = ", ".join(f"{count:,} {split}" for split, count in checked.rows.items())
    columns = Table(title=f"{checked.source}: {rows} rows that can be used, read as {read_as}", title_justify="left")
    for heading in ("column", "role", "type", "missing", "distinct", "such as", ""):
        columns.add_column(heading, justify="right" if heading in ("missing", "distinct") else "left", overflow="fold")
    for one in checked.columns:
        columns.add_row(
            Text(one.name),
            role_of.get(one.name, "-"),
            Text(one.kind),
            f"{one.missing:,}",
            "-" if one.distinct is None else f"{one.distinct:,}",
            Text(one.example),
            one.note,
        )
    counts = {
        severity: sum(one.severity == severity for one in checked.findings) for severity in ("error", "warning", "info")
    }
    summary = ", ".join(
        f"{count} {severity}{'s' * (count != 1 and severity != 'info')}" for severity, count in counts.items()
    )
    return Group(columns, findings_table(checked.findings), Text(f"{summary}; {checked.seconds:.1f} s"))
