"""How a command ends when it is told to."""

from __future__ import annotations

from typing import NoReturn

INTERRUPTED = 130
"""What typer ends with after Ctrl-C; shells write 128 + the signal's number."""


def terminated(*_: object) -> NoReturn:
    """SIGTERM leaves the way that Ctrl-C does, so that Ray and its processes are closed."""
    raise KeyboardInterrupt
