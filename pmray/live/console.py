"""What a round of watching found, in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pmray.live.sequential import Anytime
from pmray.live.watch import Round
from pmray.scoring.intervals import Interval


def told(found: Round) -> str:
    """A round in one line."""
    status, decision = found.status, found.decision
    at = datetime.fromtimestamp(status.time, UTC).strftime("%Y-%m-%d %H:%M:%S")
    score = f"{status.metric} {_interval(status.score)}, " if status.score else ""
    alerts = f"; alerts: {', '.join(status.alerts)}" if status.alerts else ""
    labels = f"{status.counts.labelled} of {status.counts.predictions} labelled"
    why = "; ".join(decision.reasons)
    return f"{at} {status.name}/{status.version}: {score}{labels}; {decision.kind}: {why}{alerts}"


def round_table(found: Round) -> RenderableType:
    """A round as a table: scores, coverage, drift, challenger, decision."""
    status, decision = found.status, found.decision
    table = Table(title=f"{status.name} version {status.version}", show_header=False)
    rows = {
        f"live {status.metric}": _interval(status.score) if status.score else "too few labels",
        "promised": _interval(status.promised) if status.promised else "no sweep chose it",
        "estimate without labels": _interval(status.estimate.score) if status.estimate else "not to be had yet",
        "predictions": f"{status.counts.predictions:,}",
        "labelled": f"{status.counts.labelled:,} ({status.coverage:.1%})",
        "label lag": f"{status.lag.median_s:,.0f} s in the median" if status.lag else "",
    }
    if status.p95_ms is not None:
        rows["latency"] = f"{status.p50_ms:.1f} ms in the median, {status.p95_ms:.1f} ms at 95 %"
    for shift in status.drift:
        mark = " DRIFT" if shift.drifted else ""
        rows[f"drift of {shift.what}"] = f"effect {shift.effect:.2f}, p {shift.p_value:.2g} ({shift.test}){mark}"
    if status.challenger:
        apart = status.pairing.difference if status.pairing else None
        rows[f"challenger, version {status.challenger}"] = _difference(apart) if apart else "too few labels"
    rows["decision"] = decision.kind
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    notes = [*decision.reasons, *found.done]
    if status.alerts:
        notes.append(f"alerts: {', '.join(status.alerts)}")
    if found.forgotten:
        notes.append(f"{found.forgotten} predictions were too old and are deleted")
    if found.webhook:
        notes.append(f"webhook: {found.webhook}")
    return Group(table, *(Text(f"• {note}") for note in notes))


def _interval(one: Interval) -> str:
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def _difference(one: Anytime) -> str:
    return f"{one.value:+.4f} ({one.low:+.4f} to {one.high:+.4f}) on {one.rows} labels"
