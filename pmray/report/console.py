"""Tables of a run in the terminal; ``progress`` shows it while it works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pmray.data.check import Finding
from pmray.report.progress import STATUS_STYLE
from pmray.selection.ledger import Outcome
from pmray.selection.proxies import Ranked, concordance
from pmray.selection.verdict import Verdict, show


def findings_table(findings: Sequence[Finding]) -> Table:
    """What the data check found."""
    table = Table(title="Data", title_justify="left")
    for heading in ("severity", "check", "rows", "what was found and done"):
        table.add_column(heading, justify="right" if heading == "rows" else "left", overflow="fold")
    style = {"error": "red", "warning": "yellow", "info": "dim"}
    for one in findings:
        ids = [row_id for row_id in one.examples[:3] if row_id not in one.message]
        told = f"{one.message} (see {', '.join(ids)})" if ids else one.message
        table.add_row(Text(one.severity, style=style[one.severity]), one.check, str(one.count), Text(told))
    return table


def rank_table(ranked: Sequence[Ranked]) -> Table:
    """Candidates before fine-tuning, best first."""
    proxies = list(dict.fromkeys(proxy for one in ranked for proxy in one.proxies))
    whole = [proxy for proxy in proxies if all(proxy in one.proxies for one in ranked)]
    agreed = concordance([[one.proxies[proxy] for one in ranked] for proxy in whole])
    told = f"Rank (frozen features, no fine-tuning; agreement of the proxies {agreed:.2f} of 1)"
    table = Table(title=told, title_justify="left")
    for heading in ("#", "candidate", "family", "parameters", "ms/row", "MB", *proxies, "mean rank", ""):
        table.add_column(heading, justify="left" if heading in ("candidate", "family", "") else "right")
    for place, one in enumerate(ranked, start=1):
        table.add_row(
            str(place),
            one.candidate,
            one.family,
            f"{one.parameters / 1e6:.1f} M",
            *((f"{one.cost.latency_ms:.1f}", f"{one.cost.memory_bytes / 1e6:.0f}") if one.cost else ("-", "-")),
            *(_or_dash(one.proxies.get(proxy), "{:.3f}") for proxy in proxies),
            f"{one.mean_rank:.1f}",
            Text(one.reason, style="green" if one.kept else "dim"),
        )
    return table


def verdict_panel(verdict: Verdict) -> RenderableType:
    """The verdict for people: the table, the words, the winner class by class."""
    table = Table(title=f"Verdict on {verdict.rows} sealed test rows", title_justify="left")
    others = _also_shown(verdict)
    for heading in ("group", "model", verdict.metric, *others, "validation", "ms/row", "parameters", "training", "p"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=heading == verdict.metric)
    for line in verdict.lines:
        style = "bold green" if line.name == verdict.winner else "dim" if line.baseline else ""
        table.add_row(
            str(line.group),
            line.name + (" (winner)" if line.name == verdict.winner else ""),
            show(line.score),
            *(f"{line.metrics[name].value:.3f}" for name in others),
            _or_dash(line.validation_score, "{:.3f}"),
            "-" if line.baseline else f"{line.latency_ms:.1f}",
            "-" if line.baseline else f"{line.parameters / 1e6:.1f} M",
            "-" if line.baseline else f"{line.training_seconds:.0f} s",
            _p_value(verdict, line.name),
            style=style,
        )
    classes = Table(title=f"{verdict.winner}, class by class", title_justify="left")
    for heading in ("class", "precision", "recall", "f1"):
        classes.add_column(heading, justify="left" if heading == "class" else "right")
    for label, values in verdict.per_class.items():
        classes.add_row(label, *(show(values[name]) for name in ("precision", "recall", "f1")))
    corrected = (
        f"Corrected for having been picked on these rows (Tsamardinos et al. 2018): "
        f"{verdict.metric} {show(verdict.corrected)}."
    )
    words = Panel("\n".join([*verdict.words, corrected]), title="Why", title_align="left")
    return Group(table, classes, words)


def failures_table(outcomes: Sequence[Outcome]) -> Table | None:
    """Trials and candidates without a result, and why; None when there are none."""
    failed = [one for one in outcomes if one.status in ("failed", "infeasible", "unavailable")]
    retried = [one for one in outcomes if one not in failed and one.facts.get("retried_after")]
    if not failed and not retried:
        return None
    table = Table(title="Without a result" if failed else "Started anew", title_justify="left")
    for heading in ("candidate", "stage", "status", "host", "why"):
        table.add_column(heading, overflow="fold")
    for one in (*failed, *retried):
        why = (one.error or one.facts.get("retried_after", [""])[-1]).strip().splitlines()
        table.add_row(
            one.candidate,
            one.stage,
            Text(f"{one.status}, started anew" if one in retried else one.status, style=STATUS_STYLE[one.status]),
            str(one.facts.get("host", "")),
            why[-1] if why else "",
        )
    return table


def pretraining_table(adapted: Sequence[Any]) -> Table:
    """What pre-training on the user's texts changed.

    Args:
        adapted: Each a ``pmray.stages.pretraining.Adapted``.
    """
    table = Table(title="Continued pre-training (perplexity of the test texts)", title_justify="left")
    for heading in ("candidate", "before", "now", "rows/s", "time", "folder (a candidate for another spec)"):
        table.add_column(heading, justify="left" if heading[0] in "cf" else "right", overflow="fold")
    for one in adapted:
        table.add_row(
            one.candidate,
            f"{one.before:.4g}",
            f"{one.perplexity:.4g}",
            f"{one.examples_per_second:.1f}",
            f"{one.seconds:.0f} s",
            str(one.folder),
        )
    return table


def key_values(title: str, values: Mapping[str, Any]) -> Table:
    """Two columns: what and its value."""
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in values.items():
        table.add_row(key, str(value))
    return table


def recipe_text(recipe: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    """The values of a recipe that differ from the candidate's default.

    >>> recipe_text({"lr": 3e-05, "epochs": 3}, {"lr": 1e-04, "epochs": 3})
    'lr=3e-05'
    >>> recipe_text({"lr": 3e-05, "lr_changes": [[0.25, 0.8]]}, {"lr": 3e-05, "lr_changes": []})
    'lr x 0.8 from 25%'
    """
    changed = [f"{key}={value}" for key, value in recipe.items() if key != "lr_changes" and default.get(key) != value]
    changed += [f"lr x {factor:g} from {share:.0%}" for share, factor in recipe.get("lr_changes") or ()]
    return ", ".join(changed) or "default recipe"


def _also_shown(verdict: Verdict) -> list[str]:
    known = verdict.lines[0].metrics
    wanted = ("accuracy", "f1_positive", "precision_macro", "recall_macro", "subset_accuracy", "f1_macro")
    return [name for name in wanted if name in known and name != verdict.metric][:4]


def _p_value(verdict: Verdict, name: str) -> str:
    if name == verdict.winner:
        return ""
    found = next((one for one in verdict.comparisons if {one.first, one.second} == {name, verdict.winner}), None)
    return "" if found is None else f"{found.adjusted_p:.2g}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
