"""One round of watching a model: look, decide, carry out, write down; ``pmray watch`` and ``jobs/watch.py``.

Endpoint, registry and rounds agree through the registry's aliases: a round moves ``champion``, ``challenger`` and
``previous``, and an endpoint that serves a name follows them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from pmray import registry
from pmray.bundle import open_bundle
from pmray.errors import LiveStoreError, RegistryError, SpecError
from pmray.live.promotion import Decision, Rules, rules_from
from pmray.live.records import Record
from pmray.live.status import DAY_S, DAYS, Served, Status, status
from pmray.live.store import Store, default_url, exists, open_default
from pmray.registry import CHALLENGER, CHAMPION, PREVIOUS

log = logging.getLogger(__name__)

KEEP_DAYS, KEEP_INPUTS_DAYS = 90.0, 30.0

WEBHOOK_TIMEOUT_S = 10.0

WAIT_EVERY_S = 20 * 3_600
"""That nothing was done is written down once a night, not at every look."""


@dataclass(frozen=True)
class Round:
    """What a round found and did."""

    status: Status
    decision: Decision
    done: tuple[str, ...]
    """Aliases that moved, in words."""
    forgotten: int
    """Predictions that were too old to be kept."""
    webhook: str | None
    """``sent``, or why it was not; None where nobody is to be told."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def watch(
    name: str,
    *,
    registry_uri: str | None = None,
    live: str | None = None,
    rules: Rules | Mapping[str, Any] | None = None,
    days: float = DAYS,
    keep_days: float = KEEP_DAYS,
    keep_inputs_days: float = KEEP_INPUTS_DAYS,
    webhook: str | None = None,
    dry_run: bool = False,
) -> Round:
    """Join labels, score live, compare the challenger, decide, move aliases, and write the decision down.

    Safe to run again and at any time: a round that was cut short is repeated by the next.

    Args:
        name: Of the registered model.
        registry_uri: MLflow tracking URI; by default the file in ``runs``.
        live: URL of the live store; by default ``PMRAY_LIVE_URL``, or the file beside the registry.
        rules: For decisions; or changes to the default ones, such as ``{"min_labels": 500}``.
        days: How far back live scores go.
        keep_days: Predictions and labels are deleted after so many days ...
        keep_inputs_days: ... and inputs, where they were kept, after so many.
        webhook: URL that gets a JSON document when there is a decision or an alert.
        dry_run: Decide, but change and write nothing.

    Raises:
        RegistryError: There is no such model, or it has no champion.
        LiveStoreError: The store cannot be reached.
        SpecError: The days make no sense.
    """
    if keep_days <= 0 or keep_inputs_days < 0:
        raise SpecError(f"days to keep must be positive, but got {keep_days:g} and {keep_inputs_days:g}")
    registry_uri = registry_uri or registry.default_uri()
    if not isinstance(rules, Rules):
        rules = rules_from(rules or {})
    now = time.time()
    versions = {
        alias: served(f"{name}@{alias}", registry_uri)
        for alias in registry.aliases(name, registry_uri)
        if alias in (CHAMPION, CHALLENGER, PREVIOUS)
    }
    if CHAMPION not in versions:
        raise RegistryError(f"{name} has no champion; `pmray promote {name}/VERSION` makes one")
    challenger = versions.get(CHALLENGER)
    if challenger and challenger.version == versions[CHAMPION].version:
        challenger = None
    store = open_default(live, registry_uri)
    try:
        forgotten = 0
        if not dry_run:
            forgotten = store.forget(before=now - keep_days * DAY_S, inputs_before=now - keep_inputs_days * DAY_S)
        found = status(
            store,
            versions[CHAMPION],
            name=name,
            now=now,
            challenger=challenger,
            previous=versions.get(PREVIOUS),
            days=days,
            rules=rules,
        )
        done: tuple[str, ...] = ()
        if not dry_run:
            _write_down(store, found)
            done = carry_out(name, found.decision, registry_uri)
    finally:
        store.close()
    told = None
    if webhook and not dry_run and (found.alerts or found.decision.kind != "wait"):
        told = _tell(webhook, found, done)
    return Round(found, found.decision, done, forgotten, told)


def served(reference: str, registry_uri: str) -> Served:
    """A version from the registry, with its bundle."""
    version = registry.find(reference, registry_uri)
    return Served(version.version, open_bundle(version.folder))


def carry_out(name: str, decision: Decision, registry_uri: str) -> tuple[str, ...]:
    """Move aliases as a decision says; the order leaves a champion at every moment, and the next round a second try."""
    facts = decision.numbers["facts"]
    champion, challenger, previous = (facts[key] for key in ("champion", "challenger", "previous"))
    if decision.kind == "promote":
        registry.promote(f"{name}/{challenger}", registry_uri)
        registry.withdraw(name, CHALLENGER, registry_uri)
        return (f"champion: version {champion} -> {challenger}", f"previous: version {champion}")
    if decision.kind in ("reject", "keep"):
        registry.withdraw(name, CHALLENGER, registry_uri)
        return (f"challenger: version {challenger} -> none",)
    if decision.kind == "roll back":
        registry.promote(f"{name}/{previous}", registry_uri)
        # What was rolled back from is nothing to go back to.
        registry.withdraw(name, PREVIOUS, registry_uri)
        return (f"champion: version {champion} -> {previous}",)
    return ()


def rounds(name: str, *, every: float | None = None, **options: Any) -> Iterator[Round]:
    """Rounds of ``watch`` with these options: one, or one every so many seconds until somebody stops asking.

    A round that fails because store or registry are away is told and tried again at the next; the first one must work.
    """
    yield watch(name, **options)
    while every is not None:
        time.sleep(every)
        try:
            yield watch(name, **options)
        except (LiveStoreError, RegistryError) as error:
            log.warning("a round was left out: %s", error)


def promote_by_hand(reference: str, registry_uri: str, *, alias: str = CHAMPION) -> registry.Version:
    """As ``registry.promote``; and write it down among the decisions, where there is a live store.

    Raises:
        RegistryError: There is no such version, or its bundle is not whole.
        LiveStoreError: The store cannot be reached; then nothing was promoted.
    """
    version = registry.find(reference, registry_uri)
    before = registry.aliases(version.name, registry_uri)
    url = default_url(registry_uri)
    if url is None or not exists(url):
        return registry.promote(reference, registry_uri, alias=alias)
    store = Store(url)
    try:
        found = registry.promote(reference, registry_uri, alias=alias)
        reasons = [f"by hand: version {found.version} became {alias}"]
        numbers = {"alias": alias, "before": before}
        kind = "promote" if alias == CHAMPION else f"{alias} by hand"
        store.note(Record(found.name, kind, time.time(), before.get(CHAMPION), found.version, reasons, numbers))
    finally:
        store.close()
    return found


def _write_down(store: Store, found: Status) -> None:
    decision = found.decision
    last = found.decisions[0] if found.decisions else None
    again = last is not None and last.kind == decision.kind and found.time - last.time < WAIT_EVERY_S
    if decision.kind in ("wait", "alert") and again:
        return
    store.note(
        Record(
            name=found.name,
            kind=decision.kind,
            time=found.time,
            champion=found.version,
            challenger=found.challenger,
            reasons=list(decision.reasons),
            numbers={**decision.numbers, "alerts": list(found.alerts)},
        )
    )


def _tell(url: str, found: Status, done: tuple[str, ...]) -> str:
    """Send what happened; chat programs show the field ``text``."""
    alerts = f"; alerts: {', '.join(found.alerts)}" if found.alerts else ""
    body = {
        "text": f"pmray {found.name}: {found.decision.kind} ({'; '.join(found.decision.reasons)}){alerts}",
        "name": found.name,
        "version": found.version,
        "decision": found.decision.kind,
        "reasons": list(found.decision.reasons),
        "alerts": list(found.alerts),
        "done": list(done),
    }
    try:
        httpx.post(url, json=body, timeout=WEBHOOK_TIMEOUT_S).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"not sent ({type(error).__name__}: {str(error)[:200]})"
    return "sent"
