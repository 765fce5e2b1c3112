"""The command line: one thin command a verb. Parse, call, print.

The answer goes to standard output, as a table or with ``--json`` as one JSON document; notes and progress go to
standard error. Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 3 the run ended without a
verdict, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pmray import cli_cluster
from pmray.errors import NoVerdict, PmrayError

if TYPE_CHECKING:
    from pmray.spec import Serve, Spec

app = typer.Typer(
    name="pmray",
    help="Picks the right pre-trained model for a job and proves the choice, on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

SpecFile = Annotated[Path, typer.Argument(help="Spec file (YAML); `pmray init TASK` prints a starter.", metavar="SPEC")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a key of the spec, such as search.trials=4. May be repeated.", metavar="KEY=VALUE"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")]
AsEvents = Annotated[
    bool,
    typer.Option(
        "--json", help="Write one JSON document to standard output, and progress to standard error, one event a line."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster, such as auto or ray://head:10001. Default: RAY_ADDRESS, or this machine."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Leave out nodes that are not fit for the run, in place of refusing.")
]
Strict = Annotated[bool, typer.Option("--strict", help="A candidate that cannot be had is an error.")]
Registry = Annotated[
    str | None, typer.Option(help="MLflow tracking URI. Default: sqlite:///runs/registry.db.", metavar="URI")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", help="Role=column of the data, such as text=message. May be repeated.", metavar="ROLE=NAME"
    ),
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Write neither notes nor progress, only the answer.")]

MODEL_KINDS = (
    "Bundle folder, NAME[@alias] in the registry, URL of an endpoint, folder or Hub id of a transformers model with a "
    "classification head, or file of predictions (.csv, .parquet)."
)
Labels = Annotated[
    str | None,
    typer.Option(
        help="Names of the outputs, in order, of a model that calls them LABEL_0; for predictions, all labels.",
        metavar="A,B",
    ),
]


Report = Annotated[
    Path | None, typer.Option(help="Also write what was found as an HTML file that needs no network.", metavar="FILE")
]


def _runs_in(location: str) -> Path:
    from pmray.run import runs_in

    return runs_in(location)


Storage = Annotated[
    Path, typer.Option(help="Folder of the runs, or s3://, gs://, abfs://.", parser=_runs_in, metavar="FOLDER|URL")
]


class SliceSearch(StrEnum):
    """How slices are looked for."""

    auto = "auto"


DEFAULT_STORAGE = "runs"
INTERRUPTED = 130
"""What typer ends with after Ctrl-C; shells write 128 + the signal's number."""


Answer = tuple[Any, Callable[[Any], None] | None] | tuple[Any, Callable[[Any], None] | None, int]
"""What a command found: values for ``--json``, what shows them on a console, unless that was done on the way, and the
exit code, where it is not 0."""


def _answering(command: Callable[..., Answer]) -> Callable[..., None]:
    """Print a command's answer. Nothing else reaches standard output, where Ray reports workers that died."""

    @wraps(command)
    def answer(*, as_json: bool, **given: Any) -> None:
        with redirect_stdout(sys.stderr):
            values, show, *code = command(as_json=as_json, **given)
        if as_json:
            sys.stdout.write(json.dumps(values, indent=2, default=_plain) + "\n")
        elif show:
            from pmray.report.progress import people

            show(people(answer=True))
        if code:
            raise typer.Exit(code[0])

    return answer


@app.command()
def init(task: Annotated[str, typer.Argument(help="Such as text-classification.")]) -> None:
    """Print a commented starter spec for a task."""
    from pmray.starter import starter_spec

    sys.stdout.write(starter_spec(task))


@app.command()
@_answering
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
    source = _spec(Path(target), set_) if is_spec else target
    from pmray.checking import check as check_data
    from pmray.report.check import check_table

    found = check_data(source, task=task, columns=_pairs(column, "--column"), full=full)
    return found.to_json(), lambda console: console.print(check_table(found)), int(found.errors > 0)


@app.command()
@_answering
def plan(spec: SpecFile, set_: Overrides = None, address: Address = None, as_json: AsJson = False) -> Answer:
    """Print what a spec will run, how long that may take and how much disk it needs; run nothing."""
    checked = _spec(spec, set_)  # before the imports, which take seconds
    from dataclasses import asdict

    from pmray.planning import plan as make_plan
    from pmray.report.plan import plan_table

    made = make_plan(checked, address=address)
    return asdict(made), lambda console: console.print(plan_table(made))


@app.command()
@_answering
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
    checked = _spec(spec, set_)  # before the imports, which take seconds
    from dataclasses import asdict

    from pmray.report.console import rank_table
    from pmray.report.progress import people
    from pmray.workflow import rank as rank_candidates

    console = people(events=as_json, quiet=quiet)
    ranked = rank_candidates(checked, address=address, strict=strict, force=force, console=console)
    # The table stands among the notes, unless these are not wanted.
    return [asdict(one) for one in ranked], (lambda answer: answer.print(rank_table(ranked))) if quiet else None


@app.command()
@_answering
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
    checked = _spec(spec, changes)  # before the imports, which take seconds
    from pmray.report.console import key_values
    from pmray.report.progress import people
    from pmray.workflow import sweep as run_sweep

    console = people(events=as_json, quiet=quiet)
    swept = run_sweep(checked, address=address, fresh=fresh, strict=strict, force=force, console=console)
    made = {"folder": swept.folder, "bundle": swept.bundle, "version": str(swept.version), "report": swept.report}
    result = {**made, **swept.verdict.to_json()}
    # The verdict stands among the notes, unless these are not wanted.
    told = {"verdict": swept.verdict.words[0], **made}
    return result, (lambda answer: answer.print(key_values("", told))) if quiet else None


@app.command()
@_answering
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
    changes = _pairs(recipe, "--recipe")
    checked = _spec(spec, set_)  # before the imports, which take seconds
    checked.candidate(candidate)
    from pmray.bundle import open_bundle
    from pmray.report.console import key_values
    from pmray.report.progress import people
    from pmray.workflow import fit as fit_candidate

    console = people(events=as_json, quiet=quiet)
    folder = fit_candidate(checked, candidate, recipe=changes, seed=seed, address=address, force=force, console=console)
    settings = dict(open_bundle(folder).settings)
    shown = {"bundle": folder, "metric": settings["metric"], "validation_score": settings["validation_score"]}
    return {**shown, "settings": settings}, lambda console: console.print(key_values("", shown))


@app.command()
@_answering
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
    checked = _spec(spec, set_)
    from dataclasses import asdict

    from pmray.pretraining import pretrain as pretrain_candidates
    from pmray.report.console import pretraining_table
    from pmray.report.progress import people

    console = people(events=as_json, quiet=quiet)
    adapted = pretrain_candidates(checked, seed=seed, address=address, strict=strict, force=force, console=console)
    return [asdict(one) for one in adapted], lambda console: console.print(pretraining_table(adapted))


@app.command()
@_answering
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_KINDS)],
    data: Annotated[str, typer.Argument(help="Labelled rows: file, glob, folder, URL or hub:NAME.")],
    column: Columns = None,
    labels: Labels = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Score every value of this column of the data, or of length. May be repeated."),
    ] = None,
    slices: Annotated[
        SliceSearch | None, typer.Option(help="Look for the slices with the most errors: columns, lengths, words.")
    ] = None,
    min_slice_rows: Annotated[int, typer.Option(min=2, help="Rows of the smallest slice.")] = 30,
    errors: Annotated[int, typer.Option(min=0, help="Show so many wrong rows, the most confident first.")] = 0,
    registry: Registry = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Also write every row's prediction (.parquet or .csv).")
    ] = None,
    report: Report = None,
    as_json: AsJson = False,
) -> Answer:
    """Score a model, or predictions in a file, on labelled rows: metrics, calibration, slices, errors."""
    from pmray.evaluation import evaluate as evaluate_model
    from pmray.evaluation import save_predictions
    from pmray.report.evaluation import evaluation_table
    from pmray.report.progress import counted, people

    console = people()
    with counted(console, "evaluating") as progress:
        found = evaluate_model(
            model,
            data,
            registry=_registry(registry),
            columns=_pairs(column, "--column"),
            labels=_listed(labels),
            by=by or (),
            slices=slices.value if slices else None,
            min_slice_rows=min_slice_rows,
            errors=errors,
            progress=progress,
        )
    if predictions:
        save_predictions(found, predictions)
    if report:
        from pmray.report.evaluation_page import evaluation_page
        from pmray.report.html import write_page

        console.print(f"report: {write_page(report, evaluation_page(found))}")
    return found.to_json(), lambda console: console.print(evaluation_table(found))


@app.command()
@_answering
def compare(
    models: Annotated[
        list[str],
        typer.Argument(help=f"Two or more models, then the labelled data. {MODEL_KINDS}", metavar="MODEL... DATA"),
    ],
    column: Columns = None,
    labels: Labels = None,
    examples: Annotated[int, typer.Option(min=0, help="Show so many rows on which they disagree.")] = 5,
    registry: Registry = None,
    report: Report = None,
    as_json: AsJson = False,
) -> Answer:
    """Compare models on the same labelled rows, with paired tests."""
    from pmray.comparison import compare as compare_models
    from pmray.report.evaluation import comparison_table
    from pmray.report.progress import counted, people

    if len(models) < 3:
        raise typer.BadParameter("give two or more models, and the data last")
    *names, data = models
    console = people()
    with counted(console, "comparing") as progress:
        found = compare_models(
            names,
            data,
            registry=_registry(registry),
            columns=_pairs(column, "--column"),
            labels=_listed(labels),
            examples=examples,
            progress=progress,
        )
    if report:
        from pmray.report.evaluation_page import comparison_page
        from pmray.report.html import write_page

        console.print(f"report: {write_page(report, comparison_page(found))}")
    return found.to_json(), lambda console: console.print(comparison_table(found))


@app.command()
def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Bundle folder, or NAME[@alias] or NAME/VERSION in the registry; more are served at /v1/models/NAME.",
            metavar="MODEL...",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 picks a free one.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Processes of the model.")] = 1,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A key of the spec's section `serve`, such as max_wait_s=2. May be repeated.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Listen beyond this machine although anybody may then ask.")
    ] = False,
    registry: Registry = None,
    address: Address = None,
) -> None:
    """Serve a model over HTTP until Ctrl-C (or SIGTERM), which ends it with exit code 0.

    API keys come from PMRAY_API_KEYS or PMRAY_API_KEYS_FILE. A model served by its name follows the registry's alias.
    """
    settings = _serve_settings({"host": host, "port": port, "replicas": replicas, **_pairs(set_, "--set")})
    from pmray.report.progress import people
    from pmray.serving.endpoint import deploy

    console = people()
    with (
        suppress(KeyboardInterrupt),
        deploy(models, serve_spec=settings, registry=_registry(registry), address=address, no_auth=no_auth) as deployed,
    ):
        url = deployed.url
        console.print(f"serving {', '.join(models)} at [bold]{url}[/] (documentation: {url}/docs); Ctrl-C ends it")
        signal.signal(signal.SIGTERM, _terminated)  # Ray has put its own in place
        signal.pause()


@app.command()
@_answering
def promote(
    reference: Annotated[str, typer.Argument(help="NAME/VERSION, or NAME@ALIAS.")],
    alias: Annotated[str, typer.Option(help="The alias it gets.")] = "champion",
    registry: Registry = None,
    as_json: AsJson = False,
) -> Answer:
    """Make a registered version the champion."""
    from pmray.live.watch import promote_by_hand
    from pmray.report.console import key_values

    found = promote_by_hand(reference, _registry(registry), alias=alias)
    shown = {"name": found.name, "version": found.version, "aliases": list(found.aliases), "folder": str(found.folder)}
    return shown, lambda console: console.print(key_values("", shown))


@app.command()
@_answering
def watch(
    name: Annotated[str, typer.Argument(help="Name of the registered model.", metavar="NAME")],
    every: Annotated[
        float | None, typer.Option(min=1, help="Seconds from round to round, until Ctrl-C. Default: one round.")
    ] = None,
    live: Annotated[
        str | None,
        typer.Option(help="The live store. Default: PMRAY_LIVE_URL, or live.db beside the registry.", metavar="URL"),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="Change a rule, such as min_labels=500. May be repeated.", metavar="KEY=VALUE"),
    ] = None,
    days: Annotated[float, typer.Option(min=0.01, help="How far back live scores go.")] = 7.0,
    keep_days: Annotated[float, typer.Option(min=0.01, help="Older predictions and labels are deleted.")] = 90.0,
    keep_inputs_days: Annotated[float, typer.Option(min=0, help="Older inputs, where they are kept, too.")] = 30.0,
    webhook: Annotated[
        str | None, typer.Option(help="Gets a JSON document when there is a decision or an alert.", metavar="URL")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide, but change nothing.")] = False,
    registry: Registry = None,
    as_json: AsJson = False,
) -> Answer:
    """Score a served model on labels that came; promote its challenger, reject it, or roll back; write it down."""
    from pmray.live.console import round_table, told
    from pmray.live.promotion import rules_from
    from pmray.live.watch import rounds
    from pmray.report.progress import people

    rules, console = rules_from(_pairs(rule, "--rule")), people()
    uri = _registry(registry)
    found = None
    with suppress(KeyboardInterrupt):
        for found in rounds(
            name,
            every=every,
            registry_uri=uri,
            live=live,
            rules=rules,
            days=days,
            keep_days=keep_days,
            keep_inputs_days=keep_inputs_days,
            webhook=webhook,
            dry_run=dry_run,
        ):
            if every:
                console.print(told(found))
    if found is None:
        raise KeyboardInterrupt
    last = found
    return last.to_json(), lambda console: console.print(round_table(last))


@app.command()
@_answering
def runs(storage: Storage = Path(DEFAULT_STORAGE), as_json: AsJson = False) -> Answer:
    """List runs, their state and their winners."""
    from pmray.report.plan import runs_table
    from pmray.run import list_runs

    found = list_runs(storage)
    return found, lambda console: console.print(runs_table(found))


@app.command()
@_answering
def show(
    run: Annotated[str, typer.Argument(help="Name of a run, or its folder.", metavar="RUN")],
    storage: Storage = Path(DEFAULT_STORAGE),
    as_json: AsJson = False,
) -> Answer:
    """Tell one run: the verdict in words, its table, every trial and what became of it."""
    from pmray.report.plan import run_told
    from pmray.run import find_run, read_run

    found = read_run(find_run(run, storage))
    return found, lambda console: console.print(run_told(found))


@app.command()
@_answering
def report(
    run: Annotated[str, typer.Argument(help="Name of a run, or its folder.", metavar="RUN")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: report.html in the run folder.", metavar="FILE")
    ] = None,
    without_rows: Annotated[
        bool, typer.Option("--without-rows", help="Show no texts and images, for readers who may not see the data.")
    ] = False,
    storage: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path(DEFAULT_STORAGE),
    as_json: AsJson = False,
) -> Answer:
    """Write the report of a run, decided or under way, as one HTML file that needs no network."""
    from pmray.reporting import write_report
    from pmray.run import find_run

    path = write_report(find_run(run, storage), output, show_rows=not without_rows)
    shown = {"report": path, "bytes": path.stat().st_size}
    return shown, lambda console: console.print(f"report: {path}", soft_wrap=True)


@app.command()
@_answering
def leaderboard(
    runs: Annotated[list[str], typer.Argument(help="Names of runs, or their folders.", metavar="RUN...")],
    storage: Storage = Path(DEFAULT_STORAGE),
    as_json: AsJson = False,
) -> Answer:
    """Put the models of several runs into one table."""
    from pmray.report.plan import leaderboard_table
    from pmray.run import find_run
    from pmray.run import leaderboard as lines_of

    lines = lines_of([find_run(one, storage) for one in runs])
    return lines, lambda console: console.print(leaderboard_table(lines))


@app.command()
@_answering
def replay(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Names or folders of runs whose trials went to their end (search.stop: false), or tables of scores "
            "(a line of model names, then one of numbers for each data set, between tabs).",
            metavar="RUN|TABLE...",
        ),
    ],
    storage: Storage = Path(DEFAULT_STORAGE),
    as_json: AsJson = False,
) -> Answer:
    """Play other rules of choosing on recorded scores: what they would have found, and at which cost."""
    from dataclasses import asdict

    from rich.console import Group

    from pmray.report.plan import replay_table
    from pmray.run import LEDGER, find_run
    from pmray.selection.ledger import read_ledger
    from pmray.selection.replay import curves_of, read_matrix, replay_halving, replay_matrix

    found = {}
    for source in sources:
        path = Path(source).expanduser()
        if path.is_file() and path.suffix != ".jsonl":
            replayed = replay_matrix(read_matrix(path))
        else:
            ledger = path if path.is_file() else find_run(source, storage) / LEDGER
            replayed = replay_halving(curves_of(read_ledger(ledger)))
        found[source] = [asdict(one) for one in replayed]
    return found, lambda console: console.print(Group(*(replay_table(*item) for item in found.items())))


@app.command()
@_answering
def demo(
    storage: Annotated[Path, typer.Option(help="Folder for the demo's runs.")] = Path(DEFAULT_STORAGE),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    as_json: AsJson = False,
) -> Answer:
    """Run the whole story on embedded product reviews: rank, sweep, decide, register, serve, evaluate."""
    from pmray.demo.story import tell

    result = tell(storage, fresh=fresh)
    return result, None


cli_cluster.add_commands(app, _answering)


def main() -> NoReturn:
    """Run the command line; known errors become one message, never a traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(standalone_mode=True)
    except PmrayError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(3 if isinstance(error, NoVerdict) else 1)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            sys.stderr.write("interrupted; what was finished is in the run folder, and the same command continues\n")
        raise
    sys.exit(0)


def _terminated(*_: object) -> NoReturn:
    """SIGTERM leaves the way that Ctrl-C does, so that Ray and its processes are closed."""
    raise KeyboardInterrupt


def _spec(path: Path, overrides: list[str] | None) -> Spec:
    from pmray.spec_file import load_spec

    return load_spec(path, overrides or ())


def _serve_settings(values: dict[str, Any]) -> Serve:
    """The section `serve` of a spec; what is wrong with it is one error."""
    from pydantic import ValidationError

    from pmray.errors import SpecError, UnknownName
    from pmray.spec import Serve

    for key in values:
        if key not in Serve.model_fields:
            raise UnknownName("key of serve", key, Serve.model_fields)
    try:
        return Serve.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, ("serve", *first["loc"])))
        raise SpecError(f"{where}: {first['msg']}, but got {first['input']!r}") from None


def _pairs(given: list[str] | None, option: str) -> dict[str, Any]:
    """``key=value`` strings as a dictionary; values are read as YAML."""
    import yaml

    pairs = {}
    for one in given or ():
        key, equals, value = one.partition("=")
        if not equals:
            raise typer.BadParameter(f"{option} needs KEY=VALUE, but got {one!r}")
        try:
            pairs[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise typer.BadParameter(f"{option} {one}: the value is not YAML ({error})") from None
    return pairs


def _listed(given: str | None) -> list[str] | None:
    """``a, b`` as a list; None stays None."""
    return None if given is None else [one.strip() for one in given.split(",")]


def _registry(uri: str | None) -> str:
    from pmray.registry import default_uri

    return uri or default_uri()


def _plain(value: object) -> object:
    return float(value) if hasattr(value, "__float__") else str(value)
