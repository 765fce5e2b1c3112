"""The commands about models: score and compare them, serve one, watch it."""

from __future__ import annotations

import signal
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pmray.cli.answers import Answer
from pmray.cli.options import (
    MODEL_KINDS,
    Address,
    AsJson,
    Columns,
    Labels,
    Registry,
    Report,
    listed,
    pairs,
    registry_of,
    serve_settings,
)
from pmray.cli.signals import terminated


class SliceSearch(StrEnum):
    """How slices are looked for."""

    auto = "auto"


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
    from pmray.evaluation.evaluate import evaluate as evaluate_model
    from pmray.evaluation.evaluate import save_predictions
    from pmray.report.evaluation import evaluation_table
    from pmray.report.progress import counted, people

    console = people()
    with counted(console, "evaluating") as progress:
        found = evaluate_model(
            model,
            data,
            registry=registry_of(registry),
            columns=pairs(column, "--column"),
            labels=listed(labels),
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
    from pmray.evaluation.compare import compare as compare_models
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
            registry=registry_of(registry),
            columns=pairs(column, "--column"),
            labels=listed(labels),
            examples=examples,
            progress=progress,
        )
    if report:
        from pmray.report.evaluation_page import comparison_page
        from pmray.report.html import write_page

        console.print(f"report: {write_page(report, comparison_page(found))}")
    return found.to_json(), lambda console: console.print(comparison_table(found))


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
    uri = registry_of(registry)
    settings = serve_settings({"host": host, "port": port, "replicas": replicas, **pairs(set_, "--set")})
    from pmray.report.progress import people
    from pmray.serving.endpoint import deploy

    console = people()
    with (
        suppress(KeyboardInterrupt),
        deploy(models, serve_spec=settings, registry=uri, address=address, no_auth=no_auth) as deployed,
    ):
        url = deployed.url
        console.print(f"serving {', '.join(models)} at [bold]{url}[/] (documentation: {url}/docs); Ctrl-C ends it")
        signal.signal(signal.SIGTERM, terminated)  # Ray has put its own in place
        signal.pause()


def promote(
    reference: Annotated[str, typer.Argument(help="NAME/VERSION, or NAME@ALIAS.")],
    alias: Annotated[str, typer.Option(help="The alias it gets.")] = "champion",
    registry: Registry = None,
    as_json: AsJson = False,
) -> Answer:
    """Make a registered version the champion."""
    from pmray.live.watch import promote_by_hand
    from pmray.report.console import key_values

    found = promote_by_hand(reference, registry_of(registry), alias=alias)
    shown = {"name": found.name, "version": found.version, "aliases": list(found.aliases), "folder": str(found.folder)}
    return shown, lambda console: console.print(key_values("", shown))


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

    rules, console = rules_from(pairs(rule, "--rule")), people()
    uri = registry_of(registry)
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
