"""Storage that is no folder: ``s3://``, ``gs://`` and ``abfs://``, each worked on in a copy on the local disk.

Data is memory-mapped and models are opened from files, so everything is used in a local copy, whose path is the same
on every machine of one user. What is named by its content (loaded and encoded data, models) is fetched once a machine;
what grows (a run folder) is written locally by one process and brought to the storage after every change. A plain path
is its own copy: all functions here then have nothing to do.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import platform
import posixpath
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from pmray.errors import LedgerError, SpecError

SCHEMES = ("s3", "gs", "abfs", "abfss")
COPIES = "PMRAY_LOCAL_COPIES"
"""Environment variable: the folder of local copies; by default one of this user's among the temporary files."""

WHOLE = "manifest.json"
"""Written last into a folder of the cache, so that who finds it finds all of the folder."""

LEASE_SECONDS = 60.0
"""How long a process that has stopped renewing its claim on a run keeps others out."""


def is_remote(location: str) -> bool:
    """Whether a location is an object store, not a folder.

    >>> is_remote("s3://bucket/runs"), is_remote("runs")
    (True, False)
    """
    return location.partition("://")[0] in SCHEMES and "://" in location


def check_location(location: str) -> str:
    """A storage as the spec has it: a folder, or a URL of a known kind.

    Raises:
        SpecError: Another kind of URL.
    """
    location = location.removeprefix("file://")
    if "://" in location and not is_remote(location):
        raise SpecError(f"must be a folder, s3://, gs:// or abfs://, but got {location!r}")
    if not is_remote(location):
        return location
    if not location.partition("://")[2].partition("/")[0]:
        raise SpecError(f"{location!r} names no bucket; give s3://BUCKET/PATH")
    return location.rstrip("/")


def local(location: str | Path) -> Path:
    """The folder that stands for a location on this machine: itself, or its local copy."""
    if not is_remote(str(location)):
        return Path(location).expanduser()
    scheme, _, rest = str(location).partition("://")
    return copies() / scheme / rest.partition("?")[0]


def location_of(folder: Path, storage: str) -> str:
    """The location that a folder in the local copy of `storage` stands for; for a plain storage the folder itself."""
    if not is_remote(storage):
        return str(folder)
    url, mark, options = storage.partition("?")
    inside = folder.relative_to(local(storage)).as_posix()
    return (url if inside == "." else f"{url}/{inside}") + mark + options


def copies() -> Path:
    """The folder of local copies."""
    given = os.environ.get(COPIES)
    return Path(given) if given else Path(tempfile.gettempdir()) / f"pmray-{getpass.getuser()}" / "storage"


def fetched(location: str, *names: str) -> Path:
    """The local folder of a location, in which these entries are whole: named by their content, so brought once.

    Several processes of a machine may ask for the same at once; one of them brings it.

    Args:
        location: Storage, or a folder in it.
        names: Folders in it that have a manifest.

    Raises:
        OSError: The storage cannot be reached, or has no such entry.
    """
    folder = local(location)
    if not is_remote(location):
        return folder
    for name in names:
        if (folder / name / WHOLE).is_file():
            continue
        with locked(folder / name):
            if not (folder / name / WHOLE).is_file():
                pull(location, name)
    return folder


def publish(location: str, name: str) -> None:
    """Bring a folder with a manifest to the storage, unless it is there; the manifest last."""
    if not is_remote(location) or exists(location, f"{name}/{WHOLE}"):
        return
    system, root = filesystem(location)
    folder = local(location) / name
    for file in sorted(folder.rglob("*"), key=lambda file: file == folder / WHOLE):
        if file.is_file():
            _put(system, file, f"{root}/{name}/{file.relative_to(folder).as_posix()}")


def push(location: str, *names: str) -> None:
    """Bring files and folders to the storage as they are now; names that are not there are left out."""
    if not is_remote(location):
        return
    system, root = filesystem(location)
    for name in names:
        source = local(location) / name
        for file in [source] if source.is_file() else sorted(source.rglob("*")):
            if file.is_file():
                _put(system, file, f"{root}/{file.relative_to(local(location)).as_posix()}")


def pull(location: str, name: str = "") -> bool:
    """Bring a file or folder from the storage, whole or not at all, in place of the local one.

    Returns:
        Whether the storage has it.
    """
    from pyarrow import fs

    if not is_remote(location):
        return True
    system, root = filesystem(location)
    source = f"{root}/{name}".rstrip("/")
    target = local(location) / name
    found = system.get_file_info(source)
    if found.type == fs.FileType.File:
        files = [found]
    else:
        files = [one for one in system.get_file_info(fs.FileSelector(source, recursive=True, allow_not_found=True))
                 if one.type == fs.FileType.File]  # fmt: skip
    if not files:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for one in files:
            inside = posixpath.relpath(one.path, source)
            there = partial / ("it" if inside == "." else inside)
            there.parent.mkdir(parents=True, exist_ok=True)
            fs.copy_files(one.path, str(there), source_filesystem=system, destination_filesystem=fs.LocalFileSystem())
        if found.type == fs.FileType.File:
            (partial / "it").replace(target)
        else:
            shutil.rmtree(target, ignore_errors=True)
            partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def names_in(location: str) -> list[str]:
    """Names of the files and folders right below a location; none where it does not exist."""
    from pyarrow import fs

    if not is_remote(location):
        folder = local(location)
        return sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    system, root = filesystem(location)
    return sorted(one.base_name for one in system.get_file_info(fs.FileSelector(root, allow_not_found=True)))


def exists(location: str, name: str) -> bool:
    """Whether the storage has a file."""
    from pyarrow import fs

    if not is_remote(location):
        return (local(location) / name).is_file()
    system, root = filesystem(location)
    return bool(system.get_file_info(f"{root}/{name}").type == fs.FileType.File)


def delete(location: str, *names: str) -> None:
    """Delete files and folders, here and in the storage; those that are not there are no mistake."""
    from pyarrow import fs

    for name in names:
        here = local(location) / name
        if here.is_dir():
            shutil.rmtree(here, ignore_errors=True)
        else:
            here.unlink(missing_ok=True)
        if not is_remote(location):
            continue
        system, root = filesystem(location)
        kind = system.get_file_info(f"{root}/{name}").type
        with suppress(FileNotFoundError):
            if kind == fs.FileType.File:
                system.delete_file(f"{root}/{name}")
            elif kind == fs.FileType.Directory:
                system.delete_dir(f"{root}/{name}")


def filesystem(location: str) -> tuple[Any, str]:
    """PyArrow's file system of a URL, and the path in it.

    ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` name an S3-compatible server, as they do for AWS's own tools.

    Raises:
        SpecError: PyArrow does not know the URL.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return _filesystem(location, endpoint)


@lru_cache(maxsize=32)
def _filesystem(location: str, endpoint: str) -> tuple[Any, str]:
    from pyarrow import fs

    if location.startswith("s3://") and endpoint and "endpoint_override" not in location:
        scheme, _, host = endpoint.rstrip("/").rpartition("://")
        mark = "&" if "?" in location else "?"
        location += f"{mark}endpoint_override={host}&scheme={scheme or 'https'}"
        if "region=" not in location:
            location += f"&region={os.environ.get('AWS_DEFAULT_REGION', 'us-east-1')}"
    try:
        system, root = fs.FileSystem.from_uri(location)
    except (ValueError, OSError, NotImplementedError) as error:
        raise SpecError(f"storage {location!r} cannot be opened ({' '.join(str(error).split())[:200]})") from None
    return system, root.rstrip("/")


def _put(system: Any, file: Path, path: str) -> None:
    with file.open("rb") as source, system.open_output_stream(path) as target:
        shutil.copyfileobj(source, target, 8 * 2**20)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    locks = copies() / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / sha256(str(target).encode()).hexdigest()[:16]).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Lease:
    """A claim on a run in an object store, where no file can be locked: an object that its owner keeps renewing.

    Two owners who claim within the same moment are told apart by reading back after writing; what an object store
    without conditional writes leaves open is a window of one round trip.
    """

    def __init__(self, location: str, name: str) -> None:
        self.location, self.name = location, name
        self.owner = f"pid {os.getpid()} on {platform.node()} {time.time_ns()}"
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Lease:
        """Claim.

        Raises:
            LedgerError: Somebody else's claim is fresh.
        """
        held = self._read()
        if held and held["owner"] != self.owner and time.time() - held["time"] < LEASE_SECONDS:
            left = LEASE_SECONDS - (time.time() - held["time"])
            raise LedgerError(
                f"another process ({held['owner'].rpartition(' ')[0]}) is working on {self.location}; wait for it, "
                f"give this run another `name`, or, if that process is dead, try again in {left:.0f} s."
            )
        self._write()
        if (now := self._read()) and now["owner"] != self.owner:
            raise LedgerError(f"another process ({now['owner'].rpartition(' ')[0]}) has just begun on {self.location}.")
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._end.set()
        self._thread.join()
        with suppress(OSError):
            delete(self.location, self.name)

    def _renew(self) -> None:
        while not self._end.wait(LEASE_SECONDS / 4):
            # A storage that is away for a moment is tried again; the run's own writes say when it stays away.
            with suppress(OSError):
                self._write()

    def _write(self) -> None:
        system, root = filesystem(self.location)
        with system.open_output_stream(f"{root}/{self.name}") as stream:
            stream.write(json.dumps({"owner": self.owner, "time": time.time()}).encode())

    def _read(self) -> dict[str, Any] | None:
        system, root = filesystem(self.location)
        try:
            with system.open_input_stream(f"{root}/{self.name}") as stream:
                found: dict[str, Any] = json.loads(stream.read())
        except (FileNotFoundError, ValueError):
            return None
        return found
