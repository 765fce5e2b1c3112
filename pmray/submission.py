"""What is sent to a cluster: which commands, with which spec and environment; ``distributed.jobs`` sends it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from pmray.errors import ClusterError
from pmray.spec import Spec

COMMANDS = ("sweep", "fit", "pretrain", "rank", "evaluate", "watch", "doctor")
"""What can be sent."""

SPEC_COMMANDS = ("sweep", "fit", "pretrain", "rank", "doctor")
"""Those of which the first argument is a spec."""

PASSED = (
    *("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "PMRAY_LIVE_URL", "MLFLOW_TRACKING_USERNAME"),
    *("MLFLOW_TRACKING_PASSWORD", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"),
)
"""Environment variables that a job gets from the submitter, beside those that the spec names."""


def entrypoint(command: str, arguments: Sequence[str], spec_file: str | None) -> str:
    """The job's command line.

    >>> entrypoint("fit", ["--candidate", "my bert"], "spec.yaml")
    "python -m pmray fit spec.yaml --candidate 'my bert'"
    """
    return shlex.join(["python", "-m", "pmray", command, *([spec_file] if spec_file else []), *arguments])


def anchored(spec: Spec, folder: Path, *, everything: bool = True) -> Spec:
    """The spec with relative paths made absolute, as a command here would read it.

    Args:
        spec: As it was read.
        folder: Where relative paths start.
        everything: Also data and models, not only the storage and a registry in a file.
    """
    values = spec.model_dump(mode="json", exclude_defaults=True)
    values["storage"] = _absolute(spec.storage, folder)
    if spec.registry and spec.registry.startswith("sqlite:///") and not spec.registry.startswith("sqlite:////"):
        values["registry"] = f"sqlite:///{folder / spec.registry.removeprefix('sqlite:///')}"
    if not everything:
        return Spec.model_validate(values)
    for split in ("train", "validation", "test"):
        source = values["data"].get(split)
        if isinstance(source, str):
            values["data"][split] = _absolute(source, folder)
        elif isinstance(source, list):
            values["data"][split] = [_absolute(one, folder) for one in source]
    for candidate in values["candidates"]:
        model = os.path.expandvars(candidate["model"])
        if not model.startswith("package:") and Path(model).expanduser().is_dir():
            candidate["model"] = str((folder / Path(model).expanduser()).absolute())
    return Spec.model_validate(values)


def _absolute(path: str, folder: Path) -> str:
    """A path from the root; URLs and data sets of the Hub as they are."""
    if "://" in path or path.startswith("hub:"):
        return path
    return str(folder / Path(os.path.expandvars(path)).expanduser())


def variables(named: Sequence[str]) -> dict[str, str]:
    """Environment of a job: ``KEY=VALUE`` as given, ``KEY`` and what a run needs of this process's own.

    Raises:
        ClusterError: A ``KEY`` that is not set here.
    """
    found = {key: os.environ[key] for key in PASSED if key in os.environ}
    for one in named:
        key, equals, value = one.partition("=")
        if not equals and key not in os.environ:
            raise ClusterError(f"--env {key}: it is not set here; give KEY=VALUE.")
        found[key] = value if equals else os.environ[key]
    return found
