"""Where rows come from: files, globs, folders, URLs and data sets of the Hub."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import file_digest
from os import environ
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.core import url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import infer_compression

from pmray.data.check import Finding
from pmray.data.columns import each_element, role_columns
from pmray.data.formats import FORMATS, KNOWN_KINDS, File, Part, plain_table, reaching, read_file
from pmray.data.images import SUFFIXES as IMAGE_SUFFIXES
from pmray.data.images import content_keys
from pmray.errors import DataError, first_problems, nearest
from pmray.spec import HubDataset, HubSource, Source
from pmray.storage import filesystem, is_remote

HUB_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""What ``datasets.save_to_disk`` writes beside the rows."""


def read_source(source: Source, split: str, *, drop: bool) -> list[Part]:
    """Read all that a source names.

    Args:
        source: As in a spec.
        split: Which part of the spec it is; ``hub:path`` reads the split of this name.
        drop: Leave out rows that cannot be read (each part says which), instead of refusing the source.

    Raises:
        DataError: Anything cannot be read; the message names every file and row.
    """
    parts, problems = [], []
    origins = _origins(source, split)
    images = [origin for origin in origins if isinstance(origin, File) and origin.suffix in IMAGE_SUFFIXES]
    if images:
        parts.append(_image_part(images))
    for origin in origins:
        if origin in images:
            continue
        try:
            part = _hub_part(origin) if isinstance(origin, HubDataset) else read_file(origin)
        except DataError as error:
            problems += error.problems
            continue
        parts.append(part)
        if part.bad and not drop:
            problems += first_problems(list(part.bad.values()))
            count = "1 row" if len(part.bad) == 1 else f"{len(part.bad)} rows"
            problems.append(f"{part.name}: {count} in all cannot be read; repair them, or set `data.bad_rows: drop`")
    if problems:
        raise DataError(problems)
    return parts


def content_key(source: Source, split: str, images: str | None = None) -> list[list[str]]:
    """Return name and SHA-256 of every file, address and fingerprint of every hub data set.

    Args:
        source: As in a spec.
        split: Which part of the spec it is.
        images: Column of the files that may name images by their paths, which then count by their bytes too.
    """
    keys = []
    for origin in _origins(source, split):
        if isinstance(origin, HubDataset):
            keys.append([origin.model_dump_json(), _hub_dataset(origin)._fingerprint])
            continue
        with reaching(origin.name), origin.system.open(origin.path, "rb") as stream:
            keys.append([origin.name, file_digest(stream, "sha256").hexdigest()])
        if images is not None and origin.suffix in FORMATS:
            keys[-1] += _keys_of_named_images(origin, images)
    return keys


def _keys_of_named_images(file: File, column: str) -> list[str]:
    """SHA-256 of each image that a table names by its path; none where the table holds the images themselves."""
    if FORMATS[file.suffix] == "parquet" and infer_compression(file.path) is None:
        import pyarrow.parquet as pq

        # Only the footer is read: such a file may hold gigabytes of images.
        with reaching(file.path), file.system.open(file.path, "rb") as stream:
            kinds = {field.name: field.type for field in pq.read_schema(stream)}
        if column not in kinds or pa.types.is_binary(kinds[column]) or pa.types.is_large_binary(kinds[column]):
            return []
    part = read_file(file)
    if column not in part.table.column_names:
        return []
    named = role_columns([part], {"image": True}, {"image": column})["image"]
    return [key or "" for key in content_keys(named).to_pylist()] if pa.types.is_string(named.type) else []


SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval"),
}
"""Words in the names of files (or of their folders) that say which split they are."""


def split_files(source: Source) -> tuple[dict[str, Source], list[Finding]]:
    """Sort the files of a source into splits by their names; all is train where no name says train.

    Returns:
        Split -> its files, and what was left out because its name says no split.

    Raises:
        DataError: The source names no file.
    """
    origins = _origins(source, "train")
    files = [origin for origin in origins if isinstance(origin, File)]
    splits: dict[str, list[str]] = {}
    rest = []
    for file in files:
        words = set(re.split(r"[^a-z]+", file.name.lower()))
        split = next((split for split, names in SPLIT_NAMES.items() if words & {*names}), None)
        splits.setdefault(split, []).append(file.address) if split else rest.append(file.name)
    if len(files) < len(origins) or "train" not in splits:
        return {"train": source}, []
    left_out = Finding(
        "info",
        "file left out",
        f"{len(rest)} files whose names say no split are left out: {', '.join(rest[:5])}",
        len(rest),
    )
    return {split: splits[split] for split in SPLIT_NAMES if split in splits}, [left_out] if rest else []


def _origins(source: Source, split: str) -> list[File | HubDataset]:
    """Find the files and hub data sets that a source names, in order, each once."""
    if isinstance(source, HubSource):
        return [source.hub]
    hub, files, problems = [], {}, []
    for given in [source] if isinstance(source, str) else source:
        if given.startswith("hub:"):
            hub.append(HubDataset(path=given.removeprefix("hub:"), split=split))
            continue
        try:
            files.update({file.address: file for file in _files(given)})
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    if not hub and not files:
        raise DataError("an empty list names no rows; give a file, glob, folder, URL or `hub:path`")
    return [*_named(list(files.values())), *hub]


def _named(files: list[File]) -> list[File]:
    """Name files relative to their common parent; paths of different file systems may have none and stay whole."""
    folders = [posixpath.dirname(file.path) for file in files]
    rooted = {folder.startswith("/") for folder in folders}
    common = posixpath.commonpath(folders) if len(rooted) == 1 else ""
    return [replace(file, name=file.path[len(common) :].lstrip("/")) for file in files]


def _files(given: str) -> list[File]:
    if not given.strip():
        raise DataError("an empty path; give a file, glob, folder, URL or `hub:path`")
    path = _expanded(given)
    with reaching(given):
        system, path = _reached(path) if "://" in path else (LocalFileSystem(), _absolute(path))
        if system.isfile(path):
            return [File(system, path)]
        if system.isdir(path):
            matches = [path]
        elif wildcard := re.search(r"[*?\[]", path):
            fixed = path.rfind("/", 0, wildcard.start()) + 1
            matches = [match for match in sorted(system.glob(path)) if not _hidden(match[fixed:], path[fixed:])]
        else:
            raise DataError(_missing(system, path))
        files = []
        for match in matches:
            files += _below(system, match) if system.isdir(match) else [File(system, match)]
    # Images beside a table are what the table tells of; without one, their folders are their classes.
    if found := [file for file in files if file.suffix in FORMATS] or [
        file for file in files if file.suffix in IMAGE_SUFFIXES
    ]:
        return found
    raise DataError(f"{path} holds no data file; known kinds: {KNOWN_KINDS}, or images in folders of their classes")


def _reached(url: str) -> tuple[Any, str]:
    """File system and path of a URL; object stores for which fsspec has no package here are read through PyArrow."""
    try:
        return cast("tuple[Any, str]", url_to_fs(url))
    except ImportError:
        if not is_remote(url):
            raise
        system, path = filesystem(url)
        return _ObjectStore(system, url.partition("://")[0]), path


class _ObjectStore(ArrowFSWrapper):  # type: ignore[misc]
    """PyArrow's file system for fsspec, under the name that the user gave it."""

    # Two of them with other settings are not one.
    cachable = False

    def __init__(self, system: Any, scheme: str) -> None:
        super().__init__(system)
        self.scheme = scheme

    def unstrip_protocol(self, name: str) -> str:
        """The path with the scheme that it was given with."""
        return f"{self.scheme}://{name}"


def _below(system: Any, folder: str) -> list[File]:
    """All data files below a folder, sorted; names that begin with a dot or underscore are none."""
    found = []
    for path in sorted(system.find(folder)):
        if posixpath.basename(path) not in HUB_METADATA and not _hidden(path[len(folder) :], ""):
            found.append(File(system, path))
    return found


def _hidden(path: str, pattern: str) -> bool:
    """Whether a name begins with a dot or underscore that the pattern does not ask for."""
    return any(step[:1] in (".", "_") and f"/{step[:1]}" not in f"/{pattern}" for step in path.split("/") if step)


def _missing(system: Any, path: str) -> str:
    folder, name = posixpath.split(path)
    if not system.isdir(folder):
        return f"{path} does not exist, nor does its folder; relative paths start at {Path.cwd()}"
    hint = nearest(name, [posixpath.basename(other.rstrip("/")) for other in system.ls(folder, detail=False)])
    return f"{path} does not exist; " + (
        f"did you mean {hint!r}, which does?" if hint else f"{folder} has no such file"
    )


def _absolute(path: str) -> str:
    return posixpath.normpath(str(Path(path).absolute()))


def _expanded(path: str) -> str:
    """Put the home folder and environment variables into a path."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in environ:
            raise DataError(f"{path}: the environment variable {name} is not set; set it, or write the path out")
        return environ[name]

    expanded = re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, path)
    return str(Path(expanded).expanduser()) if expanded.split("/")[0] == "~" else expanded


def _image_part(files: Sequence[File]) -> Part:
    """Images of class folders as rows: where each lies, and the folder that it is in as its label."""
    local = [isinstance(file.system, LocalFileSystem) for file in files]
    table = pa.table(
        {
            "image": [file.path if near else file.address for file, near in zip(files, local, strict=True)],
            "label": [posixpath.basename(posixpath.dirname(file.path)) for file in files],
        }
    )
    # Each image is a file of its own: a number after its name would tell nothing.
    return Part("", files[0].address, table, np.arange(1, len(files) + 1), {}, tuple(file.name for file in files))


def _hub_dataset(hub: HubDataset) -> Any:
    import datasets

    local = hub.path.startswith(("~", "/", ".", "$"))
    path = _absolute(_expanded(hub.path)) if local else hub.path
    try:
        return datasets.load_dataset(path, hub.name, split=hub.split, revision=hub.revision)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().rstrip(":.")
        raise DataError(
            f"hub data set {hub.path!r}, split {hub.split!r}, cannot be loaded ({reason}); check path, name and split, "
            "or give files: without a network only what was downloaded before can be loaded"
        ) from error


def _hub_part(hub: HubDataset) -> Part:
    dataset = _hub_dataset(hub)
    table = dataset.with_format("arrow")[:].replace_schema_metadata()
    for index, (name, feature) in enumerate(dataset.features.items()):
        if names := getattr(feature, "names", None):
            table = table.set_column(index, name, _class_names(table[name], names))
        elif names := getattr(getattr(feature, "feature", None), "names", None):
            table = table.set_column(index, name, each_element(table[name], partial(_class_names, names=names)))
    path = posixpath.basename(hub.path.rstrip("/")) if hub.path.startswith(("~", "/", ".", "$")) else hub.path
    return Part(f"{path}/{hub.split}", "", plain_table(table, hub.path), np.arange(1, len(table) + 1), {})


def _class_names(numbers: pa.ChunkedArray, names: Sequence[str]) -> pa.ChunkedArray:
    """Turn class numbers into names; the hub writes -1 where a label is kept secret."""
    known = pc.if_else(pc.and_(pc.greater_equal(numbers, 0), pc.less(numbers, len(names))), numbers, None)
    return pc.take(pa.array(names, pa.string()), known)
