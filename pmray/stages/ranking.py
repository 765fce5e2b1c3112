"""The first step of a sweep: order frozen candidates, with what earlier runs know; and what this run adds to that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rich.console import Console

from pmray.distributed.cluster import Capacity, at_a_time
from pmray.distributed.rank import rank_candidates
from pmray.errors import NoVerdict
from pmray.report.console import rank_table
from pmray.report.progress import steps
from pmray.run import Run
from pmray.selection.experience import PROXY as EXPERIENCE
from pmray.selection.experience import (
    Experience,
    Signature,
    add_experience,
    expected,
    read_experience,
    signature_of,
    tell,
    weights_of,
)
from pmray.selection.failures import ATTEMPTS, PASSING, cause_of
from pmray.selection.ledger import Outcome, latest
from pmray.selection.proxies import PROXIES, Agreement, Cost, Limits, Ranked, agreement, thin
from pmray.spec import Recipe
from pmray.stages.preparation import Prepared
from pmray.training.model import Pretrained
from pmray.training.trial import recipe_length


def rank_stage(prepared: Prepared, run: Run, cluster: Capacity, console: Console) -> list[Ranked]:
    """Score frozen candidates, those that the ledger does not know yet."""
    spec = prepared.spec
    resources = {one.name: spec.resources_of(one.candidate) for one in prepared.candidates}
    at_a_time(resources, cluster)
    rows = prepared.ranking_rows()
    asked = {"proxies": PROXIES, "form": 2, **({"experience": True} if spec.experience else {})}
    keys = {one.name: prepared.key("rank", one, asked, spec.search.seed, len(rows)) for one in prepared.candidates}
    known = run.ledger.settled("rank")
    waiting = [one for one in prepared.candidates if keys[one.name] not in known]
    past = experience_of(prepared, console if waiting else None)
    # Written down with the proxies: what other runs find meanwhile does not change this one.
    elsewhere = expected(past, signature(prepared), [weights_of(one) for one in prepared.candidates])

    def ended(
        one: Pretrained, scores: Mapping[str, float] | None, cost: Cost | None, error: str | None, seconds: float
    ) -> None:
        if scores and weights_of(one) in elsewhere:
            scores = {**scores, EXPERIENCE: elsewhere[weights_of(one)]}
        run.ledger.append(
            Outcome(
                key=keys[one.name],
                stage="rank",
                candidate=one.name,
                status="failed" if scores is None else "done",
                seconds=round(seconds, 3),
                facts={"proxies": scores, "rows": len(rows), **asdict(cost)} if scores and cost else {},
                error=error,
                may_pass=scores is None,
            )
        )
        advance()

    for _ in range(ATTEMPTS):
        with steps(console, "ranking", len(waiting)) as advance:
            if waiting:
                targets = prepared.task.targets(prepared.dataset.train)[rows]
                rank_candidates(
                    waiting,
                    resources,
                    prepared.task.to_json(),
                    prepared.metric,
                    spec.location(prepared.cache),
                    {
                        one.name: prepared.encodings[one.name, recipe_length(prepared.arms[one.name].default, one)]
                        for one in waiting
                    },
                    rows,
                    targets,
                    ended,
                )
        told = latest(run.ledger.outcomes)
        waiting = [
            one
            for one in waiting
            if told[keys[one.name]].status == "failed" and cause_of("failed", told[keys[one.name]].error) in PASSING
        ]
        if not waiting:
            break
    known = run.ledger.settled("rank")
    facts = {one.name: known[keys[one.name]].facts for one in prepared.candidates if keys[one.name] in known}
    if not facts:
        raise NoVerdict("no candidate could be ranked; the ledger says why: " + str(run.ledger.path))
    ranked = thin(
        {name: one["proxies"] for name, one in facts.items()},
        {one.name: one.family for one in prepared.candidates},
        {one.name: one.parameters for one in prepared.candidates},
        keep=spec.search.keep_after_rank,
        costs={name: Cost(one["latency_ms"], one["memory_bytes"]) for name, one in facts.items()},
        limits=Limits(spec.decide.max_latency_ms, spec.decide.max_memory),
    )
    console.print(rank_table(ranked))
    if not any(one.kept for one in ranked):
        raise NoVerdict(
            "no candidate is within the limits of `decide`; allow more, or add smaller ones (such as `layers: 3`):\n"
            + "\n".join(f"  {one.candidate}: {one.reason.removeprefix('dropped: ')}" for one in ranked)
        )
    return ranked


def experience_of(prepared: Prepared, console: Console | None) -> list[Experience]:
    """What earlier runs found, where the spec asks for it."""
    path = prepared.spec.experience
    if path is None:
        return []
    past = read_experience(path)
    if console:
        console.print(f"{tell(past, signature(prepared))} ({path})", markup=False)
    return past


def signature(prepared: Prepared) -> Signature:
    """What the training rows are like."""
    train = prepared.dataset.train
    return signature_of(train, len(prepared.task.labels), prepared.spec.task, prepared.metric)


def learn(prepared: Prepared, run: Run, console: Console) -> None:
    """Add what this run has found to the experience, where the spec asks for it."""
    if (path := prepared.spec.experience) is None:
        return
    weights = {one.name: one for one in prepared.candidates}
    swept = current_trials(prepared, run, list(weights))
    new = add_experience(
        path,
        [
            Experience(
                key=one.key,
                data=prepared.dataset.key,
                signature=signature(prepared),
                weights=weights_of(weights[one.candidate]),
                model=weights[one.candidate].candidate.model,
                recipe=one.recipe,
                score=one.score,
                examples=one.examples,
                done=one.status == "done",
            )
            for one in swept
            if one.score is not None
        ],
    )
    if new:
        console.print(f"experience: {new} trials added to {path}", markup=False)


def current_trials(prepared: Prepared, run: Run, kept: Sequence[str]) -> list[Outcome]:
    """Outcomes of these candidates' trials on this data, with the present weights and task."""
    return [
        one
        for one in run.ledger.settled("sweep").values()
        if one.candidate in kept
        and one.status != "unavailable"
        and prepared.work("sweep", one.candidate, Recipe(**one.recipe), one.seed).key == one.key
    ]


def ranking_agreement(prepared: Prepared, run: Run, ranked: Sequence[Ranked], console: Console) -> Agreement | None:
    """Say how well the order before fine-tuning agreed with the scores after it."""
    names = [one.candidate for one in ranked]
    curves: dict[str, list[Mapping[int, float]]] = {name: [] for name in names}
    for one in current_trials(prepared, run, names):
        curves[one.candidate].append(dict(one.curve))
    found = agreement(ranked, curves)
    if found:
        console.print(
            f"ranking against fine-tuning of {found.candidates} candidates, at {found.examples} examples: Spearman "
            f"{found.spearman:.2f}, weighted Kendall tau {found.weighted_tau:.2f}"
        )
    return found
