"""What all commands that fit do: prepare, encode, stay within the disk, carry out works with a live table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from pmray.data.encode import Shard
from pmray.distributed.cluster import Capacity, at_a_time, capacity
from pmray.distributed.encode import encode_shards
from pmray.distributed.memory import measure_gpu_memory
from pmray.distributed.train import fit_all
from pmray.errors import SpecError
from pmray.placement import gpu_share
from pmray.report.console import findings_table, recipe_text
from pmray.report.progress import TrialBoard, steps
from pmray.run import Run
from pmray.selection.ledger import latest, outcome_of
from pmray.spec import Spec
from pmray.stages import preparation
from pmray.stages.preparation import Prepared
from pmray.storage import is_remote, publish
from pmray.training.loop import Rung
from pmray.training.model import Pretrained, copied
from pmray.training.trial import Facts, Work


def prepare_run(spec: Spec, run: Run, console: Console, strict: bool) -> Prepared:
    """Do everything that can fail cheaply, and write down and show what was found; see ``preparation.prepare``."""
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


def within_disk(prepared: Prepared, cluster: Capacity, console: Console) -> Prepared:
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


def encode(prepared: Prepared, cluster: Capacity, console: Console) -> None:
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

    remote = is_remote(prepared.spec.storage)
    # Into an object store the driver alone writes encoded data: it would have to fetch what others encoded.
    spread = not remote and (rows >= prepared.spec.encode.cluster_rows or cluster.nodes > 1)
    preparation.encode_all(prepared, console, elsewhere if spread else None)
    if remote:
        cache = prepared.spec.location(prepared.cache)
        names = [f"data-{data.key}", *(f"encoded-{key}" for key in sorted(set(prepared.encodings.values())))]
        with steps(console, "bringing data to the storage", len(names)) as advance:
            for name in names:
                publish(cache, name)
                advance()


def share_models(prepared: Prepared, cluster: Capacity, console: Console) -> Prepared:
    """Put the candidates' files where all nodes see them, so that only this process ever asks the Hub for them.

    A cluster of one node with its storage in a folder sees them already. Models of installed packages stay where they
    are: every node has to have the package.
    """
    if cluster.nodes == 1 and not is_remote(prepared.spec.storage):
        return prepared
    cache = prepared.spec.location(prepared.cache)
    shared = []
    with steps(console, "sharing models", len(prepared.candidates)) as advance:
        for one in prepared.candidates:
            if not one.candidate.model.startswith("package:"):
                one = copied(one, prepared.cache, cache)
                publish(cache, Path(one.folder).name)
            shared.append(one)
            advance()
    return replace(prepared, candidates=shared)


def share_gpus(prepared: Prepared, names: Sequence[str], console: Console) -> Prepared:
    """Let trials share GPUs where their candidate says so (``share_gpu``), by a step that is measured."""
    spec = prepared.spec
    resources = {name: spec.resources_of(spec.candidate(name)) for name in names}
    works = {
        name: prepared.work("sweep", name, prepared.arms[name].default, spec.search.seed)
        for name in names
        if resources[name].share_gpu
    }
    if not works:
        return prepared
    with console.status("measuring the memory of a step"):
        measured = measure_gpu_memory(works, resources)
    shares = {name: gpu_share(needed, total) for name, (needed, total) in measured.items()}
    for name, (needed, total) in measured.items():
        console.print(
            f"{name}: a step takes {needed / 1e9:.1f} of {total / 1e9:.1f} GB of a GPU, which {1 / shares[name]:.0f} "
            "trial(s) share"
        )
    return replace(prepared, spec=spec.with_gpus(shares))


def fit_works(
    prepared: Prepared,
    run: Run,
    works: Sequence[Work],
    console: Console,
    *,
    title: str,
    on_done: Callable[[Work], None] = lambda work: None,
) -> dict[str, Facts]:
    """Carry out works with Ray Train, with a live table and a ledger line each."""
    spec = prepared.spec
    resources = {work.key: spec.resources_of(spec.candidate(work.pretrained.name)) for work in works}
    # Asked anew: since the run began, a host may have been left out.
    parallel = at_a_time(
        {work.pretrained.name: resources[work.key] for work in works}, capacity(), spec.search.concurrency
    )
    results: dict[str, Facts] = {}
    board = TrialBoard(console, title, prepared.metric, len(works), sum(work.budget for work in works))
    with board:

        def reached(work: Work, rung: Rung) -> None:
            if work.key not in board.rows:
                board.start(work.key, *described(prepared, work))
            board.rung(work.key, rung.examples, rung.score)

        def ended(work: Work, facts: Facts) -> None:
            outcome = outcome_of(work, facts, "final", may_pass=facts.status != "done")
            results[work.key] = facts
            if facts.status == "done":
                run.fetch(f"predictions/{work.key}", f"checkpoints/{work.key}")
            run.ledger.append(outcome)
            run.discard_state(work.key)
            board.end(work.key, outcome)
            if facts.status == "done":
                on_done(work)

        fit_all(works, resources, at_a_time=parallel, scratch=run.scratch, on_rung=reached, on_end=ended)
    return results


def described(prepared: Prepared, work: Work) -> tuple[str, str, int]:
    """A trial's candidate, what is special about its recipe, and its budget."""
    name = work.pretrained.name
    detail = recipe_text(work.recipe.model_dump(), prepared.arms[name].default.model_dump())
    return name, f"{detail}, seed {work.seed}" if work.run else detail, work.budget
