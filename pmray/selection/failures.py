"""What the end of a trial says about its cause: whether it is worth another try, where, and which hosts to avoid."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

Cause = Literal["none", "recipe", "memory", "worker", "machine", "program", "candidate"]
"""Why a trial has no result: nothing went wrong; its hyper-parameters; it did not fit into memory; its process died;
disk, network or device; an error in code; the model could not be had."""

PASSING = frozenset({"worker", "machine", "candidate"})
"""Causes that can be gone the next time. The same recipe on the same data diverges again, and programs fail again."""

PLACE = frozenset({"memory", "worker", "machine", "program", "candidate"})
"""Causes that may lie in the host: it has less memory, another driver, a full disk, no way to the storage."""

ATTEMPTS = 3
"""How often a trial is started at most."""

IN_A_ROW = 3
"""Trials that a host must fail, one after the other, and others run well, before nothing is placed there any more."""

WORKER_DIED = "the trial's worker process died"

_DIED = re.compile(
    rf"{WORKER_DIED}|WorkerCrashedError|ActorDiedError|ActorUnavailableError|NodeDiedError|RayActorError|"
    r"\bactor (?:died|is dead)|\bworker (?:died|crashed)",
    re.IGNORECASE,
)
"""Ours, and how Ray tells of tasks, actors and worker groups that lost their process."""

_MACHINE = re.compile(
    r"^(?:[\w.]*\b)?(?:OSError|IOError|FileNotFoundError|PermissionError|ConnectionError|ConnectionResetError|"
    r"ConnectionRefusedError|BrokenPipeError|TimeoutError|AcceleratorError|DistBackendError|SafetensorError)\b"
    r"|CUDA error|NCCL|cuDNN|CUBLAS|Gloo|gloo/transport|DistNetworkError|DistStoreError",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Attempt:
    """One start of a trial, and where it ended."""

    trial: str
    host: str
    """Empty where nothing tells it."""
    well: bool


@dataclass(frozen=True)
class Again:
    """Try it once more, though not on these hosts."""

    without: frozenset[str]


@dataclass(frozen=True)
class Leave:
    """Take the end as it is."""

    may_pass: bool
    """Whether a later run is to try again."""


def cause_of(status: str, error: str | None) -> Cause:
    r"""Tell causes apart by how a trial ended and the last lines of its error.

    >>> cause_of("failed", "  File ...\nOSError: [Errno 28] No space left on device")
    'machine'
    >>> cause_of("failed", "loss is nan at step 3 with lr 0.1; use a lower lr or more warm-up.")
    'recipe'
    """
    if status in ("done", "stopped"):
        return "none"
    if status == "infeasible":
        return "memory"
    if status == "unavailable":
        return "candidate"
    told = error or ""
    if _DIED.search(told):
        return "worker"
    if _MACHINE.search(told):
        return "machine"
    # What a trial raises on purpose comes as its message alone; anything else comes with its lines of code.
    return "program" if 'File "' in told or not told else "recipe"


def after_end(cause: Cause, attempts: Sequence[Attempt], hosts: Collection[str]) -> Again | Leave:
    """Decide what becomes of a trial that has just ended without a result.

    What can pass is tried again; what may lie in the host, once more on another one, where there is another. A trial
    that fails on two hosts has itself to blame.

    Args:
        cause: Of this end.
        attempts: Its starts that failed so far, this one last.
        hosts: Where it could run, those where it has run included.
    """
    here = frozenset(one.host for one in attempts)
    if len(attempts) == ATTEMPTS:
        return Leave(may_pass=cause in PASSING)
    if attempts[-1].host and cause in PLACE and set(hosts) - here and (cause in PASSING or len(here) == 1):
        return Again(here)
    # A model that cannot be had here will not come while one waits.
    if cause in PASSING and cause != "candidate":
        return Again(frozenset())
    return Leave(may_pass=cause in PASSING)


def avoided(attempts: Sequence[Attempt], *, in_a_row: int = IN_A_ROW) -> frozenset[str]:
    """Hosts that failed several trials in a row which ran well elsewhere.

    One bad machine otherwise takes the whole sweep: it is free again first, since it fails fast, and so gets the next
    trial (wandb/wandb#5088: 470 of 500 runs). A failure that nobody has repeated elsewhere yet says nothing about the
    host; a trial that it ran well starts the count anew.

    Args:
        attempts: Of all trials, in the order of their ends.
        in_a_row: Failures that are enough.

    >>> bad = [Attempt(trial, "bad", False) for trial in "abc"]
    >>> avoided(bad), sorted(avoided([*bad, *(Attempt(trial, "good", True) for trial in "abc")]))
    (frozenset(), ['bad'])
    """
    found = set()
    for host in {one.host for one in attempts if one.host}:
        well = {one.trial for one in attempts if one.well and one.host != host}
        row = 0
        for one in attempts:
            if one.host != host or not (one.well or one.trial in well):
                continue
            row = 0 if one.well else row + 1
        if row >= in_a_row:
            found.add(host)
    return frozenset(found)
