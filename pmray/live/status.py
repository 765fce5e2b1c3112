"""All that is known of a served model at one moment, for ``/v1/live``, the page, Prometheus and ``pmray watch``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pmray.bundle import Bundle
from pmray.live.drift import Shift, drift
from pmray.live.estimate import Estimate
from pmray.live.promotion import Decision, Facts, Health, Rules, decide
from pmray.live.records import Record
from pmray.live.reference import Reference, reference_of
from pmray.live.score import (
    MIN_LABELS,
    Lag,
    Pairing,
    Window,
    anytime,
    estimated,
    intervals,
    lag,
    pairing,
    per_class,
    profile,
    scored,
    windows,
)
from pmray.live.sequential import Anytime
from pmray.live.store import Answered, Counts, Store
from pmray.scoring.intervals import Interval

DAYS = 7.0

NEWEST = 2_000
"""Predictions that estimate, drift and latency look at."""

DAY_S = 86_400.0


@dataclass(frozen=True)
class Served:
    """A version, and its bundle."""

    version: str
    bundle: Bundle

    @property
    def promised(self) -> Interval | None:
        """The score on the test rows, without the luck of having been picked on them where that is known."""
        settings = self.bundle.settings
        found = settings.get("corrected_score") or settings.get("score")
        return Interval(**found) if found else None

    @property
    def memory_mb(self) -> float:
        """Of the weights, MiB."""
        return sum(path.stat().st_size for path in self.bundle.folder.glob("*.safetensors")) / 2**20


@dataclass(frozen=True)
class Status:
    """One moment of a served model."""

    name: str
    version: str
    time: float
    since: float
    """Where what is counted begins, seconds since 1970."""
    metric: str
    promised: Interval | None
    """On the sweep's test rows; None for bundles that no sweep has decided on."""
    counts: Counts
    coverage: float
    """Share of the predictions that have a label."""
    unusable: int
    """Labels that are none of this version's."""
    lag: Lag | None
    score: Interval | None
    """On labelled rows of this version; None with fewer than `score.MIN_LABELS`."""
    anytime: Anytime | None
    """The same over all time, with an interval that stays valid however often one looks."""
    metrics: Mapping[str, Interval]
    per_class: Mapping[str, Interval]
    """F1."""
    estimate: Estimate | None
    """Without labels, of the newest predictions."""
    windows: Sequence[Window]
    """Over time, whichever version answered."""
    drift: Sequence[Shift]
    reference: str | None
    """What drift is measured against: ``validation``, or ``first live rows``; None while there is nothing yet."""
    p50_ms: float | None
    p95_ms: float | None
    challenger: str | None
    pairing: Pairing | None
    decision: Decision
    """What would be decided now."""
    decisions: Sequence[Record]
    """What was decided, newest first."""
    alerts: Sequence[str] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def status(
    store: Store,
    champion: Served,
    *,
    name: str,
    now: float,
    challenger: Served | None = None,
    previous: Served | None = None,
    days: float = DAYS,
    rules: Rules | None = None,
) -> Status:
    """Look at a model.

    Args:
        store: Its predictions and labels.
        champion: What is served.
        name: Under which it is registered.
        now: Seconds since 1970.
        challenger: What is compared with it.
        previous: The champion before.
        days: How far back scores and windows go. Comparisons go back to their beginning.
        rules: For decisions.

    Raises:
        LiveStoreError: The store cannot be read.
    """
    rules = rules or Rules()
    since = now - days * DAY_S
    task, metric = champion.bundle.task, str(champion.bundle.settings["metric"])
    version = champion.version
    rows = store.answered(name, since, now, served=True)
    labelled = store.answered(name, 0.0, now, version=version, labelled=True)
    mine = [row for row in rows if row.version == version]
    counts = store.counts(name, since, now)
    found = scored(task, [row for row in labelled if row.time >= since])
    metrics = intervals(task, found) if found and len(found.rows) >= MIN_LABELS else {}
    reference = reference_of(champion.bundle, store, name, version)
    latencies = [row.latency_ms for row in mine[-NEWEST:] if row.latency_ms is not None]
    paired = _paired(store, name, champion, challenger, rules) if challenger else None
    live = anytime(task, metric, labelled, rules.level)
    facts = Facts(
        champion=version,
        challenger=challenger.version if challenger else None,
        previous=previous.version if previous else None,
        difference=paired.difference if paired else None,
        class_drops=paired.class_drops if paired else {},
        health={one.version: health_of(store, name, one) for one in (champion, challenger) if one},
        promised=champion.promised,
        live=live,
        previous_live=_previous(store, name, previous, rules) if previous else None,
    )
    decision = decide(facts, rules)
    shifts = _shifts(champion, reference, mine)
    return Status(
        name=name,
        version=version,
        time=now,
        since=since,
        metric=metric,
        promised=champion.promised,
        counts=counts,
        coverage=counts.labelled / counts.predictions if counts.predictions else 0.0,
        unusable=found.unusable if found else 0,
        lag=lag(rows),
        score=metrics.get(metric),
        anytime=live,
        metrics=metrics,
        per_class=per_class(task, found) if metrics and found else {},
        estimate=estimated(task, metric, mine[-NEWEST:]),
        windows=windows(task, metric, rows, since=since, until=now),
        drift=shifts,
        reference=reference.origin if reference else None,
        p50_ms=float(np.quantile(latencies, 0.5)) if latencies else None,
        p95_ms=float(np.quantile(latencies, 0.95)) if latencies else None,
        challenger=challenger.version if challenger else None,
        pairing=paired,
        decision=decision,
        decisions=store.decisions(name),
        alerts=alerts_of(facts, rules, shifts),
    )


def health_of(store: Store, name: str, one: Served) -> Health:
    """What is known of a version's health: checks, latency of the newest answers, memory."""
    checks = store.checks(name, one.version)
    failed = next((place for place, one in enumerate(checks) if one.problem is None), len(checks))
    newest = store.answered(name, 0.0, version=one.version, limit=NEWEST)
    latencies = [row.latency_ms for row in newest if row.latency_ms is not None]
    return Health(
        failed_in_a_row=failed,
        problem=checks[0].problem if checks else None,
        p95_ms=float(np.quantile(latencies, 0.95)) if latencies else None,
        memory_mb=one.memory_mb,
    )


def alerts_of(facts: Facts, rules: Rules, shifts: Sequence[Shift]) -> list[str]:
    """What people should look at, as short names: of Prometheus labels, and of messages."""
    found = []
    if facts.live and facts.promised and facts.live.rows >= rules.min_labels and facts.live.high < facts.promised.low:
        found.append("score_below_promise")
    found += [f"drift_of_{one.what}" for one in shifts if one.drifted]
    found += [
        f"health_of_{side}"
        for side, version in (("champion", facts.champion), ("challenger", facts.challenger))
        if version is not None and facts.health.get(version, Health()).failed_in_a_row >= rules.failed_checks
    ]
    return found


def _paired(store: Store, name: str, champion: Served, challenger: Served, rules: Rules) -> Pairing:
    pairs = store.pairs(name, champion.version, challenger.version)
    metric = str(champion.bundle.settings["metric"])
    return pairing(champion.bundle.task, metric, pairs, challenger.bundle.task, rules.level)


def _previous(store: Store, name: str, previous: Served, rules: Rules) -> Anytime | None:
    rows = store.answered(name, 0.0, version=previous.version, labelled=True)
    return anytime(previous.bundle.task, str(previous.bundle.settings["metric"]), rows, rules.level)


def _shifts(champion: Served, reference: Reference | None, rows: Sequence[Answered]) -> list[Shift]:
    if reference is None:
        return []
    later = [row for row in rows if row.time >= reference.until]
    return drift(reference.profile, profile(champion.bundle.task, later[-NEWEST:]))
