"""States of fits under way, so that an interrupted fit goes on where it was: files that are whole or not there."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from threading import Thread
from typing import Any
from zipfile import BadZipFile

import torch

from pmray import storage

State = dict[str, Any]
"""All that a fit needs to go on as if it had never stopped: tensors, numbers and texts."""

STATE_SECONDS = 30.0
"""Between two states that are kept."""


class StateFile:
    """Keeps the latest state of a fit in a file.

    A disk that is full, or a file that is damaged, costs what an interruption costs without states, never the fit:
    ``problem`` then says what happened.
    """

    def __init__(self, path: Path, *, writes: bool = True, seconds: float = STATE_SECONDS) -> None:
        """Name the file.

        Args:
            path: It, in a folder that need not be there yet.
            writes: Whether this process writes it; of several workers that hold the same, one does.
            seconds: Between two states.
        """
        self.path, self.writes, self.seconds = path, writes, seconds
        self.problem: str | None = None

    def urgent(self) -> bool:
        """Whether this process will soon be ended: nobody tells it."""
        return False

    def load(self) -> State | None:
        """The state that was kept, or None where there is none that can be read."""
        if not self.path.is_file():
            return None
        try:
            return read_state(self.path)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, BadZipFile, pickle.UnpicklingError) as error:
            self.problem = f"{self.path} cannot be read ({_one_line(error)}); the fit started over"
            return None

    def save(self, state: State) -> None:
        """Keep a state in place of the one before."""
        if not self.writes:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_state(self.path, state)
        except (OSError, RuntimeError) as error:
            self.problem = f"no state could be kept in {self.path.parent} ({_one_line(error)})"
            self.seconds = float("inf")

    def settle(self) -> None:
        """Wait until the latest state is where others find it."""

    def discard(self) -> None:
        """Delete what was kept."""
        if self.writes:
            self.path.unlink(missing_ok=True)


class RemoteStateFile(StateFile):
    """Keeps the latest state in an object store too, from where another machine goes on.

    A state is brought there beside the training; one that is due while the last is still on its way stays here.
    """

    def __init__(self, location: str, name: str, *, writes: bool = True, seconds: float = STATE_SECONDS) -> None:
        """Name the object; the other arguments are those of ``StateFile``."""
        super().__init__(storage.local(location) / name, writes=writes, seconds=seconds)
        self.location = location
        self._upload: Thread | None = None

    def load(self) -> State | None:
        """The state that was kept, here or by another machine."""
        try:
            storage.pull(self.location, self.path.name)
        except OSError as error:
            self.problem = f"no state could be had from {self.location} ({_one_line(error)})"
        return super().load()

    def save(self, state: State) -> None:
        """Keep a state here, and begin to bring it to the store."""
        super().save(state)
        if self.writes and not (self._upload and self._upload.is_alive()):
            self._upload = Thread(target=self._push, daemon=True)
            self._upload.start()

    def settle(self) -> None:
        """Bring the latest state to the store, and wait for it."""
        if self._upload:
            self._upload.join()
        self._push()

    def _push(self) -> None:
        try:
            storage.push(self.location, self.path.name)
        except OSError as error:
            self.problem = f"no state could be kept in {self.location} ({_one_line(error)})"


def open_state(states: str, key: str, *, writes: bool, seconds: float) -> StateFile:
    """The state of a fit under way, in a folder or an object store."""
    if storage.is_remote(states):
        return RemoteStateFile(states, f"{key}.pt", writes=writes, seconds=seconds)
    return StateFile(Path(states) / f"{key}.pt", writes=writes, seconds=seconds)


def copy_state(states: str, source: str, target: str) -> bool:
    """Let a fit go on from the state of another one; False where there is none, or no room for a copy."""
    folder = storage.local(states)
    unfinished = folder / f".{target}.pt.{os.getpid()}"
    try:
        storage.pull(states, f"{source}.pt")
        shutil.copyfile(folder / f"{source}.pt", unfinished)
        unfinished.replace(folder / f"{target}.pt")
        storage.push(states, f"{target}.pt")
    except OSError:
        return False
    finally:
        unfinished.unlink(missing_ok=True)
    return True


def write_state(path: Path, state: State) -> None:
    """Write a state; who reads at the same time finds the one before, or this one.

    Raises:
        OSError: It cannot be written, or RuntimeError, which torch raises for a full disk.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(state, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_state(path: Path) -> State:
    """Read what ``write_state`` wrote; tensors and plain values only, no code is run."""
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
