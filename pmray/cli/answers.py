"""What a command answers, and how that is printed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import wraps
from typing import Any

import typer

Answer = tuple[Any, Callable[[Any], None] | None] | tuple[Any, Callable[[Any], None] | None, int]
"""What a command found: values for ``--json``, what shows them on a console, unless that was done on the way, and the
exit code, where it is not 0."""


def answering(command: Callable[..., Answer]) -> Callable[..., None]:
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


def _plain(value: object) -> object:
    return float(value) if hasattr(value, "__float__") else str(value)
