"""API keys: from the environment or from files, several at a time, changed without a restart, never in a log."""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pmray.errors import SpecError

KEYS, READ_KEYS = "PMRAY_API_KEYS", "PMRAY_READ_KEYS"
"""Keys, separated by commas or white space; those of the second may only look (GET)."""

FILES = {KEYS: "PMRAY_API_KEYS_FILE", READ_KEYS: "PMRAY_READ_KEYS_FILE"}
"""Files with one key a line (or a comment after ``#``), such as a mounted secret; read again when they change."""

SHORTEST = 16
"""Characters of a key: a shorter one can be guessed."""

LOOK_S = 1.0
"""Seconds between two looks at the files."""

Level = Literal["full", "read"]


class Keys:
    """Who may ask. Without any key, everybody on a machine that listens to itself alone."""

    def __init__(self, environment: Mapping[str, str], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the keys.

        Args:
            environment: Such as ``os.environ``.
            clock: Seconds.

        Raises:
            SpecError: A key is too short, or a file cannot be read.
        """
        self.clock = clock
        names: dict[Level, str] = {"full": KEYS, "read": READ_KEYS}
        plain = {level: environment.get(name, "") for level, name in names.items()}
        given = {level: environment.get(FILES[name], "") for level, name in names.items()}
        self.files = {level: Path(path) for level, path in given.items() if path}
        self.required = bool(self.files) or any(value.strip() for value in plain.values())
        """Whether a key is needed. A file that is empty, or is gone later, lets nobody in; it does not let all in."""
        self._seen: dict[Level, object] = {}
        self._looked = -LOOK_S
        self._hashes = {level: _hashes(value, "in the environment") for level, value in plain.items()}
        self._from_files: dict[Level, list[bytes]] = {}
        self._look(strict=True)

    def level(self, given: str | None) -> Level | None:
        """What a key may do: ``full``, ``read``, or None where it is not known.

        Every known key is compared, each in constant time, so that the time tells nothing.
        """
        self._look(strict=False)
        hashed = sha256((given or "").encode()).digest()
        found: Level | None = None
        levels: tuple[Level, ...] = ("read", "full")
        for level in levels:
            for known in (*self._hashes[level], *self._from_files.get(level, ())):
                if hmac.compare_digest(hashed, known):
                    found = level
        return found if given else None

    def _look(self, *, strict: bool) -> None:
        if not self.files or self.clock() - self._looked < LOOK_S:
            return
        self._looked = self.clock()
        for level, path in self.files.items():
            try:
                state = path.stat()
                seen = (state.st_mtime_ns, state.st_ino, state.st_size)
                if seen != self._seen.get(level):
                    self._from_files[level] = _hashes(path.read_text(), f"in {path.name}")
                    self._seen[level] = seen
            except (OSError, UnicodeDecodeError, SpecError) as error:
                if strict:
                    raise SpecError(f"API keys cannot be read from {path}: {error}") from None
                # Half-written or gone for a moment while it is replaced: the keys read last stay good.


def given_key(headers: Mapping[str, str]) -> str | None:
    """The key of a request: ``Authorization: Bearer KEY``, ``X-API-Key: KEY``, or a browser's password.

    >>> given_key({"authorization": "Bearer abc"}), given_key({"x-api-key": "abc"}), given_key({})
    ('abc', 'abc', None)
    >>> given_key({"authorization": "Basic " + base64.b64encode(b"anyone:abc").decode()})
    'abc'
    """
    if key := headers.get("x-api-key"):
        return key
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip() or None
    if kind.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _hashes(text: str, where: str) -> list[bytes]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    keys = " ".join(lines).replace(",", " ").split()
    if short := [key for key in keys if len(key) < SHORTEST]:
        raise SpecError(
            f"{len(short)} of {len(keys)} API keys {where} have fewer than {SHORTEST} characters; "
            "`python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes a good one."
        )
    return [sha256(key.encode()).digest() for key in keys]
