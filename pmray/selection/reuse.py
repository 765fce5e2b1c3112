"""What a run of a changed spec can still use of its ledger, and what not, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from pmray.selection.ledger import Outcome


def reuse_told(
    outcomes: Iterable[Outcome],
    usable: Collection[str],
    *,
    data: str,
    metric: str,
    revisions: Mapping[str, str],
) -> str | None:
    """Say in words how many trials can be used again, and why others cannot; None where all can or there are none.

    Args:
        outcomes: Settled trials of the sweep.
        usable: Keys of those that the spec would give again.
        data: Key of the data as it is now.
        metric: The score that decides now.
        revisions: Candidate -> its weights now.
    """
    trials = [one for one in outcomes if one.status != "unavailable"]
    lost: Counter[str] = Counter()
    for one in trials:
        if one.key in usable:
            continue
        if one.candidate not in revisions:
            lost[f"of {one.candidate}, which is not in the spec any more"] += 1
        elif one.facts.get("data", data) != data:
            lost["on other data"] += 1
        elif one.facts.get("score", metric) != metric:
            lost[f"by {one.facts['score']} instead of {metric}"] += 1
        elif one.facts.get("revision", revisions[one.candidate]) != revisions[one.candidate]:
            lost[f"of other weights of {one.candidate}"] += 1
        else:
            lost["of other settings of the task, or another version of pmray"] += 1
    if not lost:
        return None
    told = ", ".join(f"{count} {why}" for why, count in lost.most_common())
    return f"{len(trials) - sum(lost.values())} of {len(trials)} trials in the ledger can be used; not used: {told}"
