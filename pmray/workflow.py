"""The story from a spec to a registered winner: rank, sweep, re-fit finalists, open the test rows, decide, register.

Every step first looks into the ledger for what is already known, so a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from pmray import preparation
from pmray.bundle import open_bundle
from pmray.data.encode import Shard, open_encoded
from pmray.data.load import read_sealed
from pmray.data.split import group_numbers
from pmray.distributed.cluster import Capacity, at_a_time, connected
from pmray.distributed.encode import encode_shards
from pmray.distributed.train import fit_all
from pmray.distributed.tune import rank_candidates, run_trials
from pmray.errors import NoVerdict, SpecError
from pmray.export import export, has_weights, is_exported
from pmray.preparation import Prepared
from pmray.registry import Version, register
from pmray.report.console import (
    TrialBoard,
    failures_table,
    findings_table,
    people,
    rank_table,
    recipe_text,
    steps,
    verdict_panel,
)
from pmray.run import Run, open_run
from pmray.scoring.calibration import rescaled
from pmray.scoring.probabilities import lines_of, probability_metrics
from pmray.scoring.ragged import flat
from pmray.selection.budget import Spent
from pmray.selection.halving import finalists
from pmray.selection.ledger import Outcome, latest, outcome_of
from pmray.selection.proxies import PROXIES, Agreement, Ranked, agreement, thin
from pmray.selection.search import Search, Tried
from pmray.selection.verdict import Contender, Verdict, decide
from pmray.spec import Recipe, Spec, digest
from pmray.tasks.base import Outcomes
from pmray.tasks.baselines import fit_baseline
from pmray.tasks.pretraining import Pretraining
from pmray.training.loop import Rung
from pmray.training.model import Pretrained
from pmray.training.trial import (
    FACTS,
    Facts,
    Work,
    checkpoint_folder,
    open_task,
    predictions_folder,
    read_predictions,
    recipe_length,
    save_predictions,
)


@dataclass(frozen=True)
class Swept:
    """What a sweep gave."""

    verdict: Verdict
    bundle: Path
    version: Version
    folder: Path
    """The run folder."""
    outcomes: Sequence[Outcome]


@dataclass(frozen=True)
class Adapted:
    """A model whose pre-training was continued."""

    candidate: str
    folder: Path
    """A plain ``transformers`` folder with its language-modelling head; another spec takes it as a candidate."""
    before: float
    """Perplexity of the test texts before."""
    perplexity: float
    """Perplexity of the test texts now."""
    curve: tuple[tuple[int, float], ...]
    """(packed rows seen, perplexity of the validation texts) after every epoch."""
    seconds: float
    examples_per_second: float
    """Packed rows."""


def rank(
    spec: Spec, *, address: str | None = None, strict: bool = False, console: Console | None = None
) -> list[Ranked]:
    """Order the candidates by how well their frozen features suit the data; minutes, no fine-tuning.

    Args:
        spec: The job.
        address: Of a Ray cluster; by default this machine.
        strict: A candidate that cannot be had is an error.
        console: For progress; standard error by default.

    Raises:
        DataError: The data cannot be used.
        NoVerdict: No candidate can be had.
    """
    preparation.check_command(spec, labels=True)
    console = console or people()
    with open_run(spec) as run:
        prepared = _prepare(spec, run, console, strict)
        with connected(address) as cluster:
            _encode(prepared, cluster, console)
            return _rank(prepared, run, cluster, console)


def sweep(
    spec: Spec,
    *,
    address: str | None = None,
    fresh: bool = False,
    strict: bool = False,
    console: Console | None = None,
) -> Swept:
    """Find, prove, export and register the best model; run again to continue after any interruption.

    Args:
        spec: The job.
        address: Of a Ray cluster; by default this machine.
        fresh: Put an earlier run of this name aside instead of continuing it.
        strict: A candidate that cannot be had is an error.
        console: For progress; standard error by default.

    Raises:
        DataError: The data cannot be used; nothing was started.
        ClusterError: The plan does not fit the cluster.
        NoVerdict: No trial gave a score.
    """
    preparation.check_command(spec, labels=True)
    console = console or people()
    with open_run(spec, fresh=fresh) as run:
        prepared = _prepare(spec, run, console, strict)
        _baselines(prepared, run, console)
        with connected(address) as cluster:
            _encode(prepared, cluster, console)
            prepared = _within_disk(prepared, cluster, console)
            ranked = _rank(prepared, run, cluster, console)
            _search(prepared, run, [one.candidate for one in ranked if one.kept], cluster, console)
            agreed = _ranking_agreement(prepared, run, ranked, console)
            chosen = _finalists(prepared, run)
            works = _refit(prepared, run, chosen, cluster, console)
            verdict = _decide(prepared, run, works, agreed, console)
            winner = _best_fit(works[verdict.winner])
            if not has_weights(run, winner):
                # The run had been decided for another winner, and this one's weights deleted.
                works = _refit(prepared, run, chosen, cluster, console, again={winner.key})
        bundle = _export(prepared, run, winner, verdict)
        version = _register(prepared, bundle, verdict, winner)
        _tidy(run)
        console.print(verdict_panel(verdict))
        if table := failures_table(list(latest(run.ledger.outcomes).values())):
            console.print(table)
        console.print(f"winner: {bundle}\nregistered: {version} as champion in {spec.registry_uri}\nrun: {run.folder}")
        return Swept(verdict, bundle, version, run.folder, tuple(run.ledger.outcomes))


def fit(
    spec: Spec,
    candidate: str,
    *,
    recipe: Mapping[str, Any] | None = None,
    seed: int = 0,
    address: str | None = None,
    console: Console | None = None,
) -> Path:
    """Fine-tune one candidate with its default recipe (or a changed one) on its workers, and export it.

    The test rows stay sealed; the score is on validation rows.

    Args:
        spec: The job; its search part is not used.
        candidate: Name of the candidate.
        recipe: Values that differ from the default recipe.
        seed: Seed of the fit.
        address: Of a Ray cluster; by default this machine.
        console: For progress; standard error by default.

    Returns:
        Folder of the bundle.

    Raises:
        UnknownName: No such candidate.
        NoVerdict: The fit failed; says why.
    """
    preparation.check_command(spec, labels=True)
    console = console or people()
    asked = spec.candidate(candidate)
    merged = asked.model_copy(update={"recipe": {**asked.recipe, **(recipe or {})}, "space": {}})
    one = Spec.model_validate({**spec.model_dump(), "candidates": [merged.model_dump()]})
    with open_run(one) as run:
        prepared = _prepare(one, run, console, strict=True)
        with connected(address) as cluster:
            prepared = _within_disk(prepared, cluster, console)
            _encode(prepared, cluster, console)
            work = prepared.work(
                "final", candidate, prepared.arms[candidate].default, seed, run.folder, states=run.states
            )
            facts = _fit_all(prepared, run, [work], cluster, console, title="fit")[work.key]
        if facts.status != "done":
            raise NoVerdict(f"{candidate}: {facts.error}")
        folder = run.folder / "fits" / work.key
        return export(prepared, run, _latest(run, work.key), folder)


def pretrain(
    spec: Spec,
    *,
    seed: int = 0,
    address: str | None = None,
    strict: bool = False,
    console: Console | None = None,
) -> list[Adapted]:
    """Go on with the pre-training of every candidate on texts without labels; run again to continue.

    Args:
        spec: The job, of task ``pretraining``.
        seed: Seed of batch order, masks and dropout.
        address: Of a Ray cluster; by default this machine.
        strict: A candidate that cannot be had is an error.
        console: For progress; standard error by default.

    Returns:
        What came of each candidate, lowest perplexity first; perplexities of different tokenizers cannot be compared.

    Raises:
        SpecError: The task is another one, or a recipe has values that say nothing without labels.
        DataError: The texts cannot be used.
        NoVerdict: No candidate could be trained.
    """
    preparation.check_command(spec, labels=False)
    for candidate in spec.candidates:
        Pretraining().check_recipe(candidate.recipe)
    console = console or people()
    with open_run(spec) as run:
        prepared = _prepare(spec, run, console, strict)
        with connected(address) as cluster:
            _encode(prepared, cluster, console)
            packed = {}
            for one in prepared.candidates:
                key = prepared.encodings[one.name, recipe_length(prepared.arms[one.name].default, one)]
                packed[one.name] = len(open_encoded(prepared.cache, key, "train"))
            prepared = _within_disk(replace(prepared, packed=packed), cluster, console)
            works = {
                name: prepared.work("final", name, arm.default, seed, run.folder, states=run.states)
                for name, arm in prepared.arms.items()
            }
            known = run.ledger.settled("final")
            left = [work for work in works.values() if not (work.key in known and _is_kept(run, known[work.key]))]
            if left:
                _fit_all(prepared, run, left, cluster, console, title="pre-training")
        known = run.ledger.settled("final")
        done = [known[work.key] for work in works.values() if work.key in known and known[work.key].status == "done"]
        for outcome in done:
            _keep_adapted(run, outcome)
        if table := failures_table(list(latest(run.ledger.outcomes).values())):
            console.print(table)
        if not done:
            raise NoVerdict(f"no candidate could be trained; {run.ledger.path} says why.")
        return sorted((_adapted(run, outcome) for outcome in done), key=lambda one: one.perplexity)


def _adapted_folder(run: Run, candidate: str) -> Path:
    return run.folder / "pretrained" / candidate


def _is_kept(run: Run, outcome: Outcome) -> bool:
    """Whether the weights of a fit are there, moved or not."""
    try:
        facts = json.loads((_adapted_folder(run, outcome.candidate) / FACTS).read_text())
    except OSError:
        facts = {}
    return outcome.status != "done" or facts.get("key") == outcome.key or has_weights(run, outcome)


def _keep_adapted(run: Run, outcome: Outcome) -> None:
    """Move the weights to where people look for them, with what was measured, whole or not at all."""
    weights, folder = checkpoint_folder(run.folder, outcome.key), _adapted_folder(run, outcome.candidate)
    if weights.is_dir():
        (weights / FACTS).write_text(json.dumps(asdict(outcome), indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        weights.replace(folder)


def _adapted(run: Run, outcome: Outcome) -> Adapted:
    facts = outcome.facts
    return Adapted(
        candidate=outcome.candidate,
        folder=_adapted_folder(run, outcome.candidate),
        before=math.exp(-facts["test_score_before"]),
        perplexity=math.exp(-facts["test_score"]),
        curve=tuple((examples, math.exp(-score)) for examples, score in outcome.curve),
        seconds=outcome.seconds,
        examples_per_second=facts["examples_per_second"],
    )


def _prepare(spec: Spec, run: Run, console: Console, strict: bool) -> Prepared:
    prepared = preparation.prepare(spec, console, strict=strict)
    run.write_findings([asdict(finding) for finding in prepared.findings])
    if prepared.findings:
        console.print(findings_table(prepared.findings))
    if spec.score is None:
        console.print(f"score: {prepared.metric} (the task's default; `score:` names another)")
    known = latest(run.ledger.outcomes)
    for outcome in preparation.unavailable_outcomes(prepared):
        if outcome.key not in known or known[outcome.key].error != outcome.error:
            run.ledger.append(outcome)
    return prepared


def _within_disk(prepared: Prepared, cluster: Capacity, console: Console) -> Prepared:
    """Refuse a run whose weights cannot stay below ``search.max_disk``; do without states where they alone cannot.

    Raises:
        SpecError: With the arithmetic.
    """
    spec = prepared.spec
    if spec.search.max_disk is None:
        return prepared
    resources = {one.name: spec.resources_of(one.candidate) for one in prepared.candidates}
    parallel = at_a_time(resources, cluster, spec.search.concurrency)
    sizes = sorted((4 * one.parameters for one in prepared.candidates), reverse=True)
    # Of every finalist the best seed so far, and what is being saved.
    weights = sum(sizes[: spec.search.finalists]) + parallel * sizes[0]
    # Weights, their best so far, and the optimizer's two moments.
    states = 4 * parallel * sizes[0]
    if weights > spec.search.max_disk:
        raise SpecError(
            f"search.max_disk is {spec.search.max_disk / 1e9:g} GB, but the weights of {spec.search.finalists} "
            f"finalists and {parallel} fits under way take {weights / 1e9:.2g} GB; raise it, or lower "
            "search.finalists or search.concurrency."
        )
    if weights + states <= spec.search.max_disk:
        return prepared
    console.print(
        f"[yellow]states of fits are not kept: {states / 1e9:.2g} GB beside {weights / 1e9:.2g} GB of weights would be "
        f"over search.max_disk = {spec.search.max_disk / 1e9:g} GB[/]"
    )
    return replace(prepared, keep_states=False)


def _encode(prepared: Prepared, cluster: Capacity, console: Console) -> None:
    """Encode what the cache lacks: a lot of rows on the cluster, a few here, where no worker need be started."""
    data = prepared.dataset
    rows = len(data.train) + len(data.validation) + len(data.test)

    def elsewhere(
        one: Pretrained, key: str, length: int, progress: Callable[[int], None], shards: Sequence[Shard]
    ) -> None:
        encode_shards(
            shards,
            one,
            prepared.task.to_json(),
            cache=prepared.cache,
            data=data.key,
            key=key,
            max_length=length,
            workers=int(cluster.cpus),
            progress=progress,
        )

    spread = rows >= prepared.spec.encode.cluster_rows or cluster.nodes > 1
    preparation.encode_all(prepared, console, elsewhere if spread else None)


def _baselines(prepared: Prepared, run: Run, console: Console) -> None:
    """Fit what needs no transformer, unless the ledger has it."""
    known = run.ledger.settled("baseline")
    for name, kind in prepared.task.baselines.items():
        key = _baseline_key(prepared, kind)
        if key in known:
            continue
        started = time.perf_counter()
        data = prepared.dataset
        with console.status(f"baseline: {name}"):
            validation, (test,) = fit_baseline(
                kind, prepared.task, data.train, data.validation, [data.test], metric=prepared.metric
            )
        task = prepared.task.tuned(validation, prepared.task.targets(data.validation), prepared.metric)
        folder = predictions_folder(run.folder, key)
        save_predictions(folder / "validation.parquet", data.validation["row_id"].to_pylist(), validation)
        save_predictions(folder / "test.parquet", data.test["row_id"].to_pylist(), test)
        outcomes = task.outcome(validation, task.targets(data.validation))
        run.ledger.append(
            Outcome(
                key=key,
                stage="baseline",
                candidate=name,
                status="done",
                score=float(task.score(prepared.metric, outcomes, np.ones((1, len(outcomes))))[0]),
                seconds=round(time.perf_counter() - started, 3),
                facts={"task": task.to_json()},
            )
        )


def _rank(prepared: Prepared, run: Run, cluster: Capacity, console: Console) -> list[Ranked]:
    """Score frozen candidates, those that the ledger does not know yet."""
    spec = prepared.spec
    resources = {one.name: spec.resources_of(one.candidate) for one in prepared.candidates}
    at_a_time(resources, cluster)
    rows = prepared.ranking_rows()
    keys = {
        one.name: prepared.key("rank", one, {"proxies": PROXIES}, spec.search.seed, len(rows))
        for one in prepared.candidates
    }
    known = run.ledger.settled("rank")
    waiting = [one for one in prepared.candidates if keys[one.name] not in known]

    def ended(one: Any, scores: Mapping[str, float] | None, error: str | None, seconds: float) -> None:
        run.ledger.append(
            Outcome(
                key=keys[one.name],
                stage="rank",
                candidate=one.name,
                status="failed" if scores is None else "done",
                seconds=round(seconds, 3),
                facts={"proxies": scores, "rows": len(rows)} if scores else {},
                error=error,
                may_pass=scores is None,
            )
        )
        advance()

    with steps(console, "ranking", len(waiting)) as advance:
        if waiting:
            targets = prepared.task.targets(prepared.dataset.train)[rows]
            rank_candidates(
                waiting,
                resources,
                prepared.task.to_json(),
                prepared.metric,
                prepared.cache,
                {
                    one.name: prepared.encodings[one.name, recipe_length(prepared.arms[one.name].default, one)]
                    for one in waiting
                },
                rows,
                targets,
                ended,
            )
    known = run.ledger.settled("rank")
    scored = {
        one.name: known[keys[one.name]].facts["proxies"] for one in prepared.candidates if keys[one.name] in known
    }
    if not scored:
        raise NoVerdict("no candidate could be ranked; the ledger says why: " + str(run.ledger.path))
    ranked = thin(
        scored,
        {one.name: one.family for one in prepared.candidates},
        {one.name: one.parameters for one in prepared.candidates},
        keep=spec.search.keep_after_rank,
    )
    console.print(rank_table(ranked))
    return ranked


def _search(prepared: Prepared, run: Run, kept: Sequence[str], cluster: Capacity, console: Console) -> None:
    """Run what is left of the sweep's trials."""
    spec = prepared.spec
    arms = [prepared.arms[name] for name in kept]
    tried = _tried(prepared, run, kept)
    left = spec.search.trials - len(tried)
    if spec.search.trials >= len(kept):
        # A candidate or a recipe that has been added to the spec since then is tried in any case.
        known = {(one.candidate, one.recipe) for one in tried}
        left = max(left, sum((arm.candidate, arm.default) not in known for arm in arms))
    if left <= 0:
        console.print(f"sweep: all {len(tried)} trials are in the ledger")
        return
    if tried:
        console.print(f"sweep: {len(tried)} trials are in the ledger, {left} to go")
    if spec.search.trials < len(kept):
        console.print(
            f"[yellow]search.trials = {spec.search.trials} is less than {len(kept)} candidates: some are not tried[/]"
        )
    resources = {name: spec.resources_of(spec.candidate(name)) for name in kept}
    parallel = at_a_time(resources, cluster, spec.search.concurrency)
    search = Search(arms, algorithm=spec.search.algorithm, seed=spec.search.seed, tried=tried)
    spent = Spent.of(run.ledger.settled("sweep").values(), resources)
    started = time.time()
    if reason := spent.reached(spec.search, 0):
        # By an earlier run of this folder.
        console.print(f"[yellow]no further trial is started: {reason}[/]")
        return
    board = TrialBoard(console, "sweep", prepared.metric, left, left * prepared.rungs[-1])
    with board:

        def ended(work: Work, facts: Facts, may_pass: bool) -> None:
            outcome = outcome_of(work, facts, "sweep", may_pass=may_pass)
            run.ledger.append(outcome)
            run.discard_state(work.key)
            spent.add(outcome, resources)
            board.end(work.key, outcome)

        run_trials(
            search,
            lambda proposal: prepared.work(
                "sweep", proposal.candidate, proposal.recipe, spec.search.seed, states=run.states
            ),
            resources,
            trials=left,
            at_a_time=parallel,
            reduction=spec.search.reduction if spec.search.stop else math.inf,
            enough=lambda: spent.reached(spec.search, time.time() - started) is not None,
            scratch=run.scratch,
            on_start=lambda work: board.start(work.key, *_described(prepared, work)),
            on_rung=lambda work, rung: board.rung(work.key, rung.examples, rung.score),
            on_end=ended,
        )
    if reason := spent.reached(spec.search, time.time() - started):
        console.print(f"[yellow]the sweep ended early: {reason}[/]")


def _tried(prepared: Prepared, run: Run, kept: Sequence[str]) -> list[Tried]:
    """Trials of these candidates on this data that the ledger has settled."""
    return [Tried(one.candidate, Recipe(**one.recipe), one.score) for one in _current(prepared, run, kept)]


def _current(prepared: Prepared, run: Run, kept: Sequence[str]) -> list[Outcome]:
    """Outcomes of these candidates' trials on this data, with the present weights and task."""
    return [
        one
        for one in run.ledger.settled("sweep").values()
        if one.candidate in kept
        and one.status != "unavailable"
        and prepared.work("sweep", one.candidate, Recipe(**one.recipe), one.seed).key == one.key
    ]


def _ranking_agreement(prepared: Prepared, run: Run, ranked: Sequence[Ranked], console: Console) -> Agreement | None:
    """Say how well the order before fine-tuning agreed with the scores after it."""
    names = [one.candidate for one in ranked]
    curves: dict[str, list[Mapping[int, float]]] = {name: [] for name in names}
    for one in _current(prepared, run, names):
        curves[one.candidate].append(dict(one.curve))
    found = agreement(ranked, curves)
    if found:
        console.print(
            f"ranking against fine-tuning of {found.candidates} candidates, at {found.examples} examples: Spearman "
            f"{found.spearman:.2f}, weighted Kendall tau {found.weighted_tau:.2f}"
        )
    return found


def _finalists(prepared: Prepared, run: Run) -> list[Outcome]:
    names = [one.name for one in prepared.candidates]
    outcomes = [one for one in _current(prepared, run, names) if one.status in ("done", "stopped")]
    chosen = finalists(outcomes, prepared.spec.search.finalists)
    if not chosen:
        raise NoVerdict(f"no trial gave a score; {run.ledger.path} says why each one failed.")
    return chosen


def _refit(
    prepared: Prepared,
    run: Run,
    chosen: Sequence[Outcome],
    cluster: Capacity,
    console: Console,
    *,
    again: set[str] = frozenset(),  # type: ignore[assignment]
) -> dict[str, list[Outcome]]:
    """Fit each finalist with several seeds; returns their outcomes, by candidate.

    Args:
        prepared: The job.
        run: Where to.
        chosen: Finalists, best first.
        cluster: Where.
        console: For progress.
        again: Keys that are fitted although the ledger has them.
    """
    groups: dict[str, list[Work]] = {}
    for one in chosen:
        # Seeds of the fits are not that of the search: the search has already picked by that one.
        seeds = [prepared.spec.search.seed + 1 + index for index in range(prepared.spec.search.seeds)]
        groups[one.candidate] = [
            prepared.work("final", one.candidate, Recipe(**one.recipe), seed, run.folder, states=run.states)
            for seed in seeds
        ]
    known = run.ledger.settled("final")
    left = [work for works in groups.values() for work in works if work.key in again or not _is_settled(work, known)]
    if left:
        _fit_all(
            prepared, run, left, cluster, console, title="finalists", on_done=partial(_drop_losing_seeds, run, groups)
        )
    known = run.ledger.settled("final")
    done = {
        name: [known[work.key] for work in works if work.key in known and known[work.key].status == "done"]
        for name, works in groups.items()
    }
    if not any(done.values()):
        raise NoVerdict(f"no finalist could be fitted again; {run.ledger.path} says why.")
    return {name: outcomes for name, outcomes in done.items() if outcomes}


def _is_settled(work: Work, known: Mapping[str, Outcome]) -> bool:
    """A finished fit counts only with its predictions on disk."""
    return work.key in known and (known[work.key].status != "done" or (work.predictions / "test.parquet").is_file())


def _drop_losing_seeds(run: Run, groups: Mapping[str, Sequence[Work]], ended: Work) -> None:
    """Delete the weights of all fits of a candidate but its best so far: they can no longer be exported."""
    known = run.ledger.settled("final")
    same = [known[work.key] for work in groups[ended.pretrained.name] if work.key in known]
    done = [one for one in same if one.status == "done"]
    for one in done:
        if one.key != _best_fit(done).key:
            shutil.rmtree(checkpoint_folder(run.folder, one.key), ignore_errors=True)


def _fit_all(
    prepared: Prepared,
    run: Run,
    works: Sequence[Work],
    cluster: Capacity,
    console: Console,
    *,
    title: str,
    on_done: Callable[[Work], None] = lambda work: None,
) -> dict[str, Facts]:
    """Carry out works with Ray Train, with a live table and a ledger line each."""
    spec = prepared.spec
    resources = {work.key: spec.resources_of(spec.candidate(work.pretrained.name)) for work in works}
    parallel = at_a_time(
        {work.pretrained.name: resources[work.key] for work in works}, cluster, spec.search.concurrency
    )
    results: dict[str, Facts] = {}
    board = TrialBoard(console, title, prepared.metric, len(works), sum(work.budget for work in works))
    with board:

        def reached(work: Work, rung: Rung) -> None:
            if work.key not in board.rows:
                board.start(work.key, *_described(prepared, work))
            board.rung(work.key, rung.examples, rung.score)

        def ended(work: Work, facts: Facts) -> None:
            outcome = outcome_of(work, facts, "final", may_pass=facts.status != "done")
            results[work.key] = facts
            run.ledger.append(outcome)
            run.discard_state(work.key)
            board.end(work.key, outcome)
            if facts.status == "done":
                on_done(work)

        fit_all(works, resources, at_a_time=parallel, scratch=run.scratch, on_rung=reached, on_end=ended)
    return results


def _described(prepared: Prepared, work: Work) -> tuple[str, str, int]:
    """A trial's candidate, what is special about its recipe, and its budget."""
    name = work.pretrained.name
    detail = recipe_text(work.recipe.model_dump(), prepared.arms[name].default.model_dump())
    return name, f"{detail}, seed {work.seed}" if work.run else detail, work.budget


def _decide(
    prepared: Prepared,
    run: Run,
    works: Mapping[str, Sequence[Outcome]],
    agreed: Agreement | None,
    console: Console,
) -> Verdict:
    """Open the test rows, for all finalists and baselines together, and decide."""
    data = prepared.dataset
    keys = sorted(one.key for outcomes in works.values() for one in outcomes)
    opened = digest("\n".join([data.key, prepared.metric, *keys]))
    known = [one for one in run.ledger.outcomes if one.stage == "test"]
    labels = read_sealed(prepared.cache, data.key)
    if opened not in {one.key for one in known}:
        run.ledger.append(
            Outcome(key=opened, stage="test", candidate="", status="done", facts={"data": data.key, "fits": keys})
        )
    times = len({one.key for one in run.ledger.outcomes if one.stage == "test" and one.facts.get("data") == data.key})
    swept = _current(prepared, run, list(works))
    contenders = []
    for name, outcomes in works.items():
        searched = [
            one.score
            for one in swept
            if one.candidate == name and one.recipe == outcomes[0].recipe and one.score is not None
        ]
        default = prepared.arms[name].default.model_dump()
        defaults = [
            one.score
            for one in swept
            if one.candidate == name and one.status == "done" and one.recipe == default and one.score is not None
        ]
        contenders.append(
            Contender(
                name=name,
                outcomes=[_test_outcomes(run, one, labels) for one in outcomes],
                search_score=max(searched, default=None),
                default_score=max(defaults, default=None),
                validation_score=float(np.mean([one.score for one in outcomes])),
                latency_ms=float(np.median([one.facts["latency_ms"] for one in outcomes])),
                parameters=int(outcomes[0].facts["parameters"]),
                training_seconds=float(np.mean([one.facts["train_seconds"] for one in outcomes])),
            )
        )
    for name, kind in prepared.task.baselines.items():
        outcome = run.ledger.settled("baseline")[_baseline_key(prepared, kind)]
        contenders.append(
            Contender(
                name=name,
                outcomes=[_test_outcomes(run, outcome, labels)],
                baseline=True,
                validation_score=outcome.score,
                training_seconds=outcome.seconds,
            )
        )
    with console.status("comparing on the test rows"):
        # Groups are no secret: they lie beside the sealed labels.
        verdict = decide(contenders, prepared.task, prepared.metric, prepared.spec.decide, group_numbers(data.test))
    if times > 1:
        console.print(
            f"[yellow]The test labels of this data were opened {times} times for different fits: "
            "the more often, the less the number is worth.[/]"
        )
    calibration = {
        name: _calibration(run, _best_fit(outcomes), labels, prepared.metric) for name, outcomes in works.items()
    }
    if told := calibration[verdict.winner]:
        effects = ", ".join(
            f"{name} {one['before']:.3f} -> {one['after']:.3f}" for name, one in told.items() if isinstance(one, dict)
        )
        console.print(f"calibration of {verdict.winner} (fitted on validation; its effect on the test rows): {effects}")
    trials = [one for one in latest(run.ledger.outcomes).values() if one.stage in ("rank", "sweep", "final")]
    run.write_verdict(
        {
            **verdict.to_json(),
            "test_opened": times,
            "calibration": calibration,
            "ranking": asdict(agreed) if agreed else None,
            "seconds": {
                stage: round(sum(one.seconds for one in trials if one.stage == stage), 1)
                for stage in ("rank", "sweep", "final")
            },
            "failures": [
                {"candidate": one.candidate, "stage": one.stage, "status": one.status, "error": one.error}
                for one in trials
                if one.error
            ],
        }
    )
    return verdict


def _calibration(run: Run, fit: Outcome, labels: pa.Table, metric: str) -> dict[str, Any] | None:
    """What temperature and thresholds, fitted on validation, change on the test rows; None for a model without them."""
    if (temperature := fit.facts.get("temperature")) is None:
        return None
    task = open_task(fit.facts["task"])
    truth = task.targets(labels)
    _, predicted = read_predictions(predictions_folder(run.folder, fit.key) / "test.parquet")
    targets, calm = flat(truth), flat(predicted)
    multi_label = targets.ndim == 2
    sure = rescaled(calm, 1 / temperature, multi_label=multi_label)
    one = np.ones((1, len(targets)))
    changed = {
        name: {
            "before": float(of(lines_of(targets, sure), one)[0]),
            "after": float(of(lines_of(targets, calm), one)[0]),
        }
        for name, of in probability_metrics(len(task.labels), multi_label=multi_label).items()
        if name in ("log_loss", "brier", "ece")
    }
    if multi_label:
        # Without thresholds of its own, a task says a label at 0.5.
        plain = open_task({**fit.facts["task"], "thresholds": []})
        changed[metric] = {
            "before": float(plain.score(metric, plain.outcome(sure, targets), one)[0]),
            "after": float(task.score(metric, task.outcome(calm, targets), one)[0]),
        }
    return {"temperature": temperature, **changed}


def _test_outcomes(run: Run, outcome: Outcome, labels: pa.Table) -> Outcomes:
    """Outcome lines of a fit's predictions on the test rows, with the thresholds it tuned on validation."""
    task = open_task(outcome.facts["task"])
    row_ids, scores = read_predictions(predictions_folder(run.folder, outcome.key) / "test.parquet")
    if row_ids != labels["row_id"].to_pylist():
        raise NoVerdict(f"the predictions of {outcome.candidate} are not of these test rows; run with --fresh.")
    return task.outcome(scores, task.targets(labels))


def _best_fit(outcomes: Sequence[Outcome]) -> Outcome:
    """The seed that is exported: the best on validation rows, so that the test rows stay untouched by this choice."""
    return max(outcomes, key=lambda one: (one.score, -one.seed))


def _latest(run: Run, key: str) -> Outcome:
    return latest(run.ledger.outcomes)[key]


def _export(prepared: Prepared, run: Run, winner: Outcome, verdict: Verdict) -> Path:
    if is_exported(run, winner):
        return run.bundle
    outcomes = _test_outcomes(run, winner, read_sealed(prepared.cache, prepared.dataset.key))
    deployed = float(prepared.task.score(prepared.metric, outcomes, np.ones((1, len(outcomes))))[0])
    return export(prepared, run, winner, run.bundle, verdict=verdict, deployed_score=deployed)


def _register(prepared: Prepared, bundle: Path, verdict: Verdict, winner: Outcome) -> Version:
    line = verdict.line(verdict.winner)
    metrics = {f"test_{name}": interval.value for name, interval in line.metrics.items()}
    metrics |= {f"test_{verdict.metric}_low": line.score.low, f"test_{verdict.metric}_high": line.score.high}
    params = {"candidate": winner.candidate, "seed": winner.seed, **winner.recipe}
    return register(open_bundle(bundle), prepared.spec.registry_uri, metrics=metrics, params=params)


def _tidy(run: Run) -> None:
    """Delete the weights of the losers; the winner's are in the bundle, and every prediction is kept."""
    shutil.rmtree(checkpoint_folder(run.folder, ""), ignore_errors=True)


def _baseline_key(prepared: Prepared, kind: str) -> str:
    return digest(f"baseline {prepared.dataset.key} {prepared.task.to_json()} {prepared.metric} {kind}")
