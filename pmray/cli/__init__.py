"""The command line: one thin command a verb. Parse, call, print.

The answer goes to standard output, as a table or with ``--json`` as one JSON document; notes and progress go to
standard error. Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 3 the run ended without a
verdict, 130 Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from pmray.cli import clusters, experiments, models, runs
from pmray.cli.answers import Answer, answering
from pmray.cli.signals import INTERRUPTED, terminated
from pmray.errors import NoVerdict, PmrayError

app = typer.Typer(
    name="pmray",
    help="Picks the right pre-trained model for a job and proves the choice, on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

COMMANDS: tuple[Callable[..., Answer], ...] = (
    experiments.check,
    experiments.plan,
    experiments.rank,
    experiments.sweep,
    experiments.fit,
    experiments.pretrain,
    models.evaluate,
    models.compare,
    models.promote,
    models.watch,
    runs.runs,
    runs.show,
    runs.report,
    runs.leaderboard,
    runs.replay,
    experiments.demo,
    clusters.doctor,
    clusters.jobs,
    clusters.logs,
    clusters.stop,
)
# What they say is no answer: a spec to be kept, and an endpoint until Ctrl-C.
for plain in (experiments.init, models.serve):
    app.command()(plain)
for command in COMMANDS:
    app.command()(answering(command))
app.add_typer(clusters.deployment)
# What follows the submitted command is its own.
app.command(context_settings={"ignore_unknown_options": True})(answering(clusters.submit))


def main() -> NoReturn:
    """Run the command line; known errors become one message, never a traceback."""
    signal.signal(signal.SIGTERM, terminated)
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
