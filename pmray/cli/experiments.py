"""The commands from data to a winner."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pmray.cli.answers import Answer
from pmray.cli.options import (
    DEFAULT_STORAGE,
    Address,
    AsEvents,
    AsJson,
    Columns,
    Force,
    Overrides,
    Quiet,
    SpecFile,
    Strict,
    pairs,
    read_spec,
)


def init(task: Annotated[str, typer.Argument(help="Such as text-classification.")]) -> None:
    """Print a commented starter spec for a task."""
    from pmray.starter import starter_spec

    sys.stdout.write(starter_spec(task))


def check(
    target: Annotated[
        str,
        typer.Argument(
            help="Spec file (.yaml), or labelled rows: file, glob, folder with train, validation and test files, URL.",
            metavar="DATA|SPEC",
        ),
    ],
    task: Annotated[str | None, typer.Option(help="Read data for this task. Default: the first that fits.")] = None,
    column: Columns = None,
    full: Annotated[
        bool, typer.Option("--full", help="Look for near-duplicates and wrong labels however many rows there are.")
    ] = False,
    set_: Overrides = None,
    as_json: AsJson = False,
) -> Answer:
    """Say what is wrong with data, or with a spec's data, before anything is paid for; exit code 1 on errors."""
    is_spec = target.endswith((".yaml", ".yml"))
    if is_spec and (task or column):
        raise typer.BadParameter("--task and --column are for data; a spec names its own (`--set` changes it)")
    if set_ and not is_spec:
        raise typer.BadParameter("--set is for a spec; `--task` and `--column` say how data is read")
    source = read_spec(Path(target), set_) if is_spec else target
    from pmray.checking import check as check_data
    from pmray.report.check import check_table

    found = check_data(source, task=task, columns=pairs(column, "--column"), full=full)
    return found.to_json(), lambda console: console.print(check_table(found)), int(found.errors > 0)


def plan(spec: SpecFile, set_: Overrides = None, address: Address = None, as_json: AsJson = False) -> Answer:
    """Print what a spec will run, how long that may take and how much disk it needs; run nothing."""
    checked = read_spec(spec, set_)  # before the imports, which take seconds
    from dataclasses import asdict

    from pmray.report.plan import plan_table
    from pmray.stages.planning import plan as make_plan

    made = make_plan(checked, address=address)
    return asdict(made), lambda console: console.print(plan_table(made))


def rank(
    spec: SpecFile,
    set_: Overrides = None,
    address: Address = None,
    strict: Strict = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsEvents = False,
) -> Answer:
    """Order the candidates without fine-tuning them."""
    checked = read_spec(spec, set_)  # before the imports, which take seconds
    from dataclasses import asdict

    from pmray.report.console import rank_table
    from pmray.report.progress import people
    from pmray.stages.workflow import rank as rank_candidates

    console = people(events=as_json, quiet=quiet)
    ranked = rank_candidates(checked, address=address, strict=strict, force=force, console=console)
    # The table stands among the notes, unless these are not wanted.
    return [asdict(one) for one in ranked], (lambda answer: answer.print(rank_table(ranked))) if quiet else None


def sweep(
    spec: SpecFile,
    set_: Overrides = None,
    address: Address = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Put an earlier run aside and start over.")] = False,
    until_sure: Annotated[
        bool,
        typer.Option("--until-sure", help="Start no trial once the leading candidates can hardly change any more."),
    ] = False,
    strict: Strict = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsEvents = False,
) -> Answer:
    """Find, prove, export and register the best model. Run it again to continue after any interruption."""
    changes = [*(set_ or ()), *(["search.until_sure=true"] if until_sure else [])]
    checked = read_spec(spec, changes)  # before the imports, which take seconds
    from pmray.report.console import key_values
    from pmray.report.progress import people
    from pmray.stages.workflow import sweep as run_sweep

    console = people(events=as_json, quiet=quiet)
    swept = run_sweep(checked, address=address, fresh=fresh, strict=strict, force=force, console=console)
    made = {"folder": swept.folder, "bundle": swept.bundle, "version": str(swept.version), "report": swept.report}
    result = {**made, **swept.verdict.to_json()}
    # The verdict stands among the notes, unless these are not wanted.
    told = {"verdict": swept.verdict.words[0], **made}
    return result, (lambda answer: answer.print(key_values("", told))) if quiet else None


def fit(
    spec: SpecFile,
    candidate: Annotated[str, typer.Option(help="Name of the candidate.")],
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="Change the default recipe, such as lr=3e-5.", metavar="KEY=VALUE"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the fit.")] = 0,
    set_: Overrides = None,
    address: Address = None,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsEvents = False,
) -> Answer:
    """Fine-tune one candidate and export it; the test rows stay sealed."""
    changes = pairs(recipe, "--recipe")
    checked = read_spec(spec, set_)  # before the imports, which take seconds
    checked.candidate(candidate)
    from pmray.bundle import open_bundle
    from pmray.report.console import key_values
    from pmray.report.progress import people
    from pmray.stages.workflow import fit as fit_candidate

    console = people(events=as_json, quiet=quiet)
    folder = fit_candidate(checked, candidate, recipe=changes, seed=seed, address=address, force=force, console=console)
    settings = dict(open_bundle(folder).settings)
    shown = {"bundle": folder, "metric": settings["metric"], "validation_score": settings["validation_score"]}
    return {**shown, "settings": settings}, lambda console: console.print(key_values("", shown))


def pretrain(
    spec: SpecFile,
    seed: Annotated[int, typer.Option(help="Seed of batch order, masks and dropout.")] = 0,
    set_: Overrides = None,
    address: Address = None,
    strict: Strict = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: AsEvents = False,
) -> Answer:
    """Go on with the pre-training of models on texts without labels; each becomes a folder that is a candidate."""
    checked = read_spec(spec, set_)
    from dataclasses import asdict

    from pmray.report.console import pretraining_table
    from pmray.report.progress import people
    from pmray.stages.pretraining import pretrain as pretrain_candidates

    console = people(events=as_json, quiet=quiet)
    adapted = pretrain_candidates(checked, seed=seed, address=address, strict=strict, force=force, console=console)
    return [asdict(one) for one in adapted], lambda console: console.print(pretraining_table(adapted))


def demo(
    storage: Annotated[Path, typer.Option(help="Folder for the demo's runs.")] = Path(DEFAULT_STORAGE),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    as_json: AsJson = False,
) -> Answer:
    """Run the whole story on embedded product reviews: rank, sweep, decide, register, serve, evaluate."""
    from pmray.demo.story import tell

    result = tell(storage, fresh=fresh)
    return result, None
