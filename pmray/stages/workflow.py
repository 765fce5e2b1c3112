"""The story from a spec to a registered winner: rank, sweep, re-fit finalists, open the test rows, decide, register.

Every step first looks into the ledger for what is already known, so a run that was killed goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pmray.bundle import open_bundle
from pmray.data.load import read_sealed
from pmray.distributed.cluster import connected
from pmray.distributed.doctor import checked
from pmray.distributed.searchers import check_algorithm
from pmray.errors import NoVerdict, RegistryError
from pmray.registry import CHAMPION, Version, keep, register
from pmray.report.console import failures_table, verdict_panel
from pmray.report.progress import people
from pmray.reporting import write_report
from pmray.run import Run, open_run
from pmray.selection.ledger import Outcome, latest
from pmray.selection.proxies import Ranked
from pmray.selection.verdict import Verdict
from pmray.spec import Spec
from pmray.stages import preparation
from pmray.stages.export import export, has_weights, is_exported
from pmray.stages.finals import best_fit, choose_finalists, decide_winner, fit_baselines, outcomes_on_test_rows, refit
from pmray.stages.fitting import encode, fit_works, prepare_run, share_gpus, share_models, within_disk
from pmray.stages.preparation import Prepared
from pmray.stages.ranking import learn, rank_stage, ranking_agreement
from pmray.stages.searching import search, tell_reuse
from pmray.storage import is_remote
from pmray.tracking import describe_model, story_of, track
from pmray.training.trial import checkpoint_folder


@dataclass(frozen=True)
class Swept:
    """What a sweep gave."""

    verdict: Verdict
    bundle: Path
    version: Version
    folder: Path
    """The run folder."""
    outcomes: Sequence[Outcome]
    report: Path | None = None
    """One HTML file; None where it could not be written."""


def rank(
    spec: Spec,
    *,
    address: str | None = None,
    strict: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> list[Ranked]:
    """Order the candidates by how well their frozen features suit the data; minutes, no fine-tuning.

    Args:
        spec: The job.
        address: Of a Ray cluster; by default this machine.
        strict: A candidate that cannot be had is an error.
        force: Leave out nodes of the cluster that are not fit for the run, in place of refusing.
        console: For progress; standard error by default.

    Raises:
        DataError: The data cannot be used.
        NoVerdict: No candidate can be had.
    """
    preparation.check_command(spec, labels=True)
    console = console or people()
    with open_run(spec) as run:
        prepared = prepare_run(spec, run, console, strict)
        with connected(address) as cluster:
            cluster = checked(spec, cluster, force=force)
            prepared = share_models(prepared, cluster, console)
            encode(prepared, cluster, console)
            return rank_stage(prepared, run, cluster, console)


def sweep(
    spec: Spec,
    *,
    address: str | None = None,
    fresh: bool = False,
    strict: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> Swept:
    """Find, prove, export and register the best model; run again to continue after any interruption.

    Args:
        spec: The job.
        address: Of a Ray cluster; by default this machine.
        fresh: Put an earlier run of this name aside instead of continuing it.
        strict: A candidate that cannot be had is an error.
        force: Leave out nodes of the cluster that are not fit for the run, in place of refusing.
        console: For progress; standard error by default.

    Raises:
        DataError: The data cannot be used; nothing was started.
        ClusterError: The plan does not fit the cluster.
        NoVerdict: No trial gave a score.
    """
    preparation.check_command(spec, labels=True)
    check_algorithm(spec.search)
    console = console or people()
    with open_run(spec, fresh=fresh) as run:
        prepared = prepare_run(spec, run, console, strict)
        fit_baselines(prepared, run, console)
        with connected(address) as cluster:
            cluster = checked(spec, cluster, force=force)
            prepared = share_models(prepared, cluster, console)
            encode(prepared, cluster, console)
            prepared = within_disk(prepared, cluster, console)
            ranked = rank_stage(prepared, run, cluster, console)
            kept = [one.candidate for one in ranked if one.kept]
            prepared = share_gpus(prepared, kept, console)
            tell_reuse(prepared, run, console)
            search(prepared, run, kept, cluster, console)
            learn(prepared, run, console)
            agreed = ranking_agreement(prepared, run, ranked, console)
            chosen = choose_finalists(prepared, run)
            works = refit(prepared, run, chosen, console)
            verdict = decide_winner(prepared, run, works, ranked, agreed, console)
            winner = best_fit(works[verdict.winner])
            if not has_weights(run, winner):
                # The run had been decided for another winner, and this one's weights deleted.
                works = refit(prepared, run, chosen, console, again={winner.key})
        bundle = _export(prepared, run, winner, verdict)
        report = _report(run, console)
        version = _register(prepared, run, bundle, verdict, winner, console)
        _tidy(run)
        console.print(verdict_panel(verdict))
        if table := failures_table(list(latest(run.ledger.outcomes).values())):
            console.print(table)
        console.print(
            f"winner: {bundle}\nregistered: {_registered_as(version)} in {spec.registry_uri}\nrun: {run.folder}"
        )
        if report:
            console.print(f"report: {report}")
        return Swept(verdict, bundle, version, run.folder, tuple(run.ledger.outcomes), report)


def fit(
    spec: Spec,
    candidate: str,
    *,
    recipe: Mapping[str, Any] | None = None,
    seed: int = 0,
    address: str | None = None,
    force: bool = False,
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
        force: Leave out nodes of the cluster that are not fit for the run, in place of refusing.
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
        prepared = prepare_run(one, run, console, strict=True)
        with connected(address) as cluster:
            cluster = checked(spec, cluster, force=force)
            prepared = within_disk(share_models(prepared, cluster, console), cluster, console)
            encode(prepared, cluster, console)
            work = prepared.work(
                "final", candidate, prepared.arms[candidate].default, seed, run.folder, states=run.states
            )
            facts = fit_works(prepared, run, [work], console, title="fit")[work.key]
        if facts.status != "done":
            raise NoVerdict(f"{candidate}: {facts.error}")
        folder = run.folder / "fits" / work.key
        return export(prepared, run, _latest(run, work.key), folder)


def _latest(run: Run, key: str) -> Outcome:
    return latest(run.ledger.outcomes)[key]


def _export(prepared: Prepared, run: Run, winner: Outcome, verdict: Verdict) -> Path:
    if is_exported(run, winner):
        return run.bundle
    outcomes = outcomes_on_test_rows(run, winner, read_sealed(prepared.cache, prepared.dataset.key))
    deployed = float(prepared.task.score(prepared.metric, outcomes, np.ones((1, len(outcomes))))[0])
    return export(prepared, run, winner, run.bundle, verdict=verdict, deployed_score=deployed)


def _registered_as(version: Version) -> str:
    """What became of a winner in the registry.

    >>> _registered_as(Version("tickets", "2", Path(), ("champion",)))
    'tickets version 2 as champion'
    >>> _registered_as(Version("tickets", "1", Path(), ("previous",)))
    'tickets version 1 as previous, as before; `pmray promote tickets/1` makes it champion'
    """
    if CHAMPION in version.aliases:
        return f"{version} as champion"
    told = ", ".join(version.aliases) or "no alias"
    return f"{version} as {told}, as before; `pmray promote {version.name}/{version.version}` makes it champion"


def _register(
    prepared: Prepared, run: Run, bundle: Path, verdict: Verdict, winner: Outcome, console: Console
) -> Version:
    line = verdict.line(verdict.winner)
    metrics = {f"test_{name}": interval.value for name, interval in line.metrics.items()}
    metrics |= {f"test_{verdict.metric}_low": line.score.low, f"test_{verdict.metric}_high": line.score.high}
    params = {"candidate": winner.candidate, "seed": winner.seed, **winner.recipe}
    uri = prepared.spec.registry_uri
    runs: dict[str, str] = {}
    try:
        with console.status("writing to MLflow"):
            runs = track(story_of(prepared, run), uri)
    except RegistryError as error:
        # What stands in the ledger can be written again; the winner is registered in any case.
        console.print(f"[yellow]{error}[/]")
    source = prepared.spec.location(bundle) if is_remote(prepared.spec.storage) else ""
    opened = open_bundle(bundle)
    run.keep(*(f"{bundle.name}/{name}" for name in describe_model(opened)))
    if not source:
        # `bundle` is replaced by the next winner; a version that is rolled back to must still be there.
        opened = keep(opened, prepared.spec.registered / str(opened.settings["key"]))
    return register(opened, uri, metrics=metrics, params=params, run_id=runs.get(winner.key), source=source)


def _report(run: Run, console: Console) -> Path | None:
    """Write the report; what goes wrong there does not undo a decision."""
    try:
        path = write_report(run.folder)
        run.keep(path.name)
        return path
    except Exception as error:  # noqa: BLE001
        console.print(f"[yellow]the report could not be written ({error}); `pmray report {run.folder}` tries again[/]")
        return None


def _tidy(run: Run) -> None:
    """Delete the weights of the losers; the winner's are in the bundle, and every prediction is kept."""
    run.discard(checkpoint_folder(run.folder, ""))
