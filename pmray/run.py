"""A run folder: one at a time may write it, and anybody may read it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pmray import storage
from pmray.errors import LedgerError, UnknownName
from pmray.selection.ledger import Ledger, latest, read_ledger
from pmray.spec import CACHE, Spec

LEDGER = "ledger.jsonl"
VERDICT = "verdict.json"
FINDINGS = "findings.json"
CLAIM = "claim.json"
"""In an object store: who is writing the run."""
REPORT = "report.html"
PACKAGES = ("pmray", "ray", "torch", "transformers", "datasets", "scikit-learn", "optuna", "mlflow", "numpy", "pyarrow")


class Run:
    """The folder of a run and the record in it."""

    def __init__(self, folder: Path, location: str = "") -> None:
        """Open a run.

        Args:
            folder: Where it is worked on.
            location: Where it is kept; the folder itself, or its place in an object store.
        """
        self.folder, self.location = folder, location or str(folder)
        self.ledger = Ledger(folder / LEDGER, on_append=lambda: self.keep(LEDGER))

    @property
    def bundle(self) -> Path:
        """The winner."""
        return self.folder / "bundle"

    @property
    def scratch(self) -> Path:
        """Ray's own files; gone when the run ends."""
        return self.folder / ".ray"

    @property
    def states(self) -> Path:
        """States of fits under way, by key; what an interrupted run goes on from."""
        return self.folder / "states"

    def discard_state(self, key: str) -> None:
        """Delete the state of a fit that has ended."""
        for kept in self.states.glob(f"*{key}*"):
            self.discard(kept)
        if storage.is_remote(self.location):
            storage.delete(f"{self.location}/states", f"{key}.pt")

    def keep(self, *names: str) -> None:
        """Bring files and folders of the run to where it is kept; a run in a folder is there already."""
        storage.push(self.location, *names)

    def keep_files(self) -> None:
        """Bring all files right in the run folder to where it is kept."""
        if storage.is_remote(self.location):
            self.keep(*(file.name for file in self.folder.iterdir() if file.is_file() and file.name[0] != "."))

    def fetch(self, *names: str) -> None:
        """Have what workers on other machines made; a run in a folder has it already."""
        for name in names:
            storage.pull(self.location, name)

    def discard(self, path: Path) -> None:
        """Delete a file or folder of the run, here and where it is kept."""
        storage.delete(self.location, path.relative_to(self.folder).as_posix())

    def write_verdict(self, values: dict[str, Any]) -> None:
        """Write ``verdict.json`` whole or not at all."""
        self._write(VERDICT, values)

    def write_findings(self, values: Sequence[Mapping[str, Any]]) -> None:
        """Write what the data checks found, ``findings.json``, whole or not at all."""
        self._write(FINDINGS, list(values))

    def _write(self, name: str, values: object) -> None:
        partial = self.folder / f".{name}"
        partial.write_text(json.dumps(values, indent=2, default=float) + "\n")
        partial.replace(self.folder / name)
        self.keep(name)


@contextmanager
def open_run(spec: Spec, *, fresh: bool = False) -> Iterator[Run]:
    """Open a spec's run folder for writing; a folder that exists is continued.

    Args:
        spec: Names the folder and is written into it.
        fresh: Put what is there aside, and start over.

    Raises:
        LedgerError: Another process is writing this run, or its record cannot be read.
    """
    folder, location = spec.folder, spec.location(spec.folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The lock lies beside the folder, so that `fresh` can move the folder away while holding it.
    lock_path = folder.parent / f".{folder.name}.lock"
    with lock_path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise LedgerError(
                f"another process ({lock.read().strip() or 'unknown'}) is working on {folder}; wait for it, or give "
                "this run another `name`."
            ) from None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {platform.node()}")
        lock.flush()
        with ExitStack() as stack:
            if storage.is_remote(location):
                stack.enter_context(storage.Lease(location, CLAIM))
                storage.pull(location)
                (folder / CLAIM).unlink(missing_ok=True)
            if fresh and any(folder.iterdir()):
                aside = folder.with_name(f"{folder.name}.before-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S-%f')}")
                folder.rename(aside)
                folder.mkdir()
                if storage.is_remote(location):
                    storage.push(spec.location(folder.parent), aside.name)
                    storage.delete(location, *(one for one in storage.names_in(location) if one != CLAIM))
            run = Run(folder, location)
            stack.callback(shutil.rmtree, run.scratch, ignore_errors=True)
            # Also what was written beside the record: a report, for one.
            stack.callback(run.keep_files)
            (folder / "spec.yaml").write_text(spec.to_yaml())
            (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
            run.keep("spec.yaml", "environment.json")
            yield run


def environment() -> dict[str, Any]:
    """Versions, hardware and git commit: what a result depends on beside spec and data."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "git_commit": git.stdout.strip() or None,
        "versions": versions,
    }


def runs_in(location: str) -> Path:
    """The folder of the runs of a storage; of an object store a fresh copy of what tells of them, without predictions.

    Raises:
        LedgerError: The object store cannot be reached.
    """
    if storage.is_remote(location):
        try:
            for name in storage.names_in(location):
                for file in (LEDGER, VERDICT, FINDINGS, "spec.yaml") if name != CACHE else ():
                    storage.pull(f"{location.rstrip('/')}/{name}", file)
        except OSError as error:
            raise LedgerError(f"{location} cannot be read ({' '.join(str(error).split())[:200]})") from None
    return storage.local(location)


def find_run(name: str, storage: Path) -> Path:
    """The folder of a run, by its name in `storage` or its path.

    Raises:
        UnknownName: There is no ledger in either.
    """
    for folder in (storage / name, Path(name).expanduser()):
        if (folder / LEDGER).is_file():
            return folder
    known = [str(one["name"]) for one in list_runs(storage)]
    raise UnknownName(f"run in {storage}", name, known)


def read_run(folder: Path) -> dict[str, Any]:
    """What a run folder tells: its state, spec, findings, every trial (latest word of each), and the verdict.

    ``lines`` are the models and baselines of the verdict, best first, as ``leaderboard`` gives them.

    Raises:
        LedgerError: A file in it cannot be read.
    """
    outcomes = list(latest(read_ledger(folder / LEDGER)).values())
    found = {name: read_json(folder / file) for name, file in (("verdict", VERDICT), ("findings", FINDINGS))}
    verdict = found["verdict"] or {"lines": ()}
    # Which test rows were opened: scores of other rows cannot be compared with these.
    data = next((one.facts.get("data") for one in reversed(outcomes) if one.stage == "test"), None)
    lines = [
        {
            "run": folder.name,
            "model": line["name"],
            "winner": line["name"] == verdict["winner"],
            "baseline": line["baseline"],
            "metric": verdict["metric"],
            **{key: line["score"][key] for key in ("value", "low", "high")},
            "rows": verdict["rows"],
            "data": data,
            **{key: line[key] for key in ("latency_ms", "parameters", "training_seconds")},
        }
        for line in verdict["lines"]
    ]
    return {
        "name": folder.name,
        "folder": str(folder),
        "state": "decided" if found["verdict"] else "unfinished",
        "spec": (folder / "spec.yaml").read_text() if (folder / "spec.yaml").is_file() else None,
        **found,
        "trials": [asdict(one) for one in outcomes if one.stage != "test"],
        "lines": lines,
    }


def read_json(path: Path) -> Any:
    """What a JSON file of a run folder holds; None where there is no such file.

    Raises:
        LedgerError: It is damaged.
    """
    try:
        return json.loads(path.read_text()) if path.is_file() else None
    except ValueError as error:
        raise LedgerError(f"{path} is damaged ({error}); run again to write it anew") from None


def leaderboard(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """The models and baselines of several decided runs, best first; undecided runs have none yet.

    Raises:
        LedgerError: A file in a folder cannot be read.
    """
    lines = [line for folder in folders for line in read_run(folder)["lines"]]
    return sorted(lines, key=lambda line: (str(line["metric"]), -line["value"]))


def list_runs(storage: Path) -> list[dict[str, Any]]:
    """One line a run folder: name, state (decided, unfinished, damaged), winner, trials, change; the newest first."""
    lines = []
    for folder in storage.iterdir() if storage.is_dir() else ():
        if not (folder / LEDGER).is_file():
            continue
        try:
            outcomes = read_ledger(folder / LEDGER)
            verdict = json.loads((folder / VERDICT).read_text()) if (folder / VERDICT).is_file() else {}
            state = "decided" if verdict else "unfinished"
        except (LedgerError, ValueError):
            # The others are still worth a list; opening this one says what is wrong with it.
            outcomes, verdict, state = [], {}, "damaged"
        winner = next((line for line in verdict.get("lines", ()) if line["name"] == verdict["winner"]), None)
        lines.append(
            {
                "name": folder.name,
                "state": state,
                "winner": verdict.get("winner"),
                "metric": verdict.get("metric"),
                "score": winner["score"]["value"] if winner else None,
                "trials": sum(one.stage == "sweep" and one.status in ("done", "stopped") for one in outcomes),
                "failed": sum(one.status in ("failed", "infeasible", "unavailable") for one in outcomes),
                "changed": datetime.fromtimestamp((folder / LEDGER).stat().st_mtime, UTC).isoformat(timespec="seconds"),
                "folder": str(folder),
            }
        )
    return sorted(lines, key=lambda line: str(line["changed"]), reverse=True)
