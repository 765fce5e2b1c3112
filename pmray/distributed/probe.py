"""What one node of a cluster says about itself.

These functions are sent to the node by value, so they run there whatever pmray the node has, or none: they use the
standard library alone, and import what they ask about where they ask.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def probe(ask: dict[str, Any]) -> dict[str, Any]:
    """Look around on this node.

    Args:
        ask: ``packages``: names whose versions are told. ``storage``: folder or URL, or None. ``mark``: name of the
            folder in it that the driver has made, and ``said``: what the driver wrote there. ``models``: candidate ->
            model as in the spec. ``hosts``: name -> (host, port) that must answer.

    Returns:
        Plain values: ``python versions cuda gpus driver memory memory_free disk disk_free time problems`` (subject ->
        what went wrong).
    """
    problems: dict[str, str] = {}
    found: dict[str, Any] = {"time": time.time(), "host": platform.node(), "pid": os.getpid(), "problems": problems}
    found["python"] = ".".join(map(str, sys.version_info[:2]))
    versions = found["versions"] = {}
    for package in ask["packages"]:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    found |= _memory()
    temporary = shutil.disk_usage(tempfile.gettempdir())
    found["temporary_free"] = temporary.free
    if ask["gpus"]:
        found |= _gpus(problems)
    if ask["storage"] is not None:
        try:
            found |= _storage(ask["storage"], ask["mark"], ask["said"])
        except Exception as error:  # noqa: BLE001  (whatever it is, it is this node's answer)
            problems["storage"] = f"{type(error).__name__}: {error}"
    for name, model in ask["models"].items():
        try:
            _model(model)
        except Exception as error:  # noqa: BLE001
            problems[f"model {name}"] = " ".join(str(error).split())[:300]
    for name, (host, port) in ask["hosts"].items():
        if problem := _answers(host, port):
            problems[name] = problem
    return found


def _memory() -> dict[str, int]:
    """Bytes of memory in all and free, within the container's limit where there is one; none where it is not Linux."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines}
        total, free = known["MemTotal"], known["MemAvailable"]
    except (OSError, KeyError):
        return {}
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return {"memory": total, "memory_free": free}
    return {"memory": min(total, limit), "memory_free": min(free, limit - used)}


def _gpus(problems: dict[str, str]) -> dict[str, Any]:
    """What torch sees of the GPUs that Ray hands out here."""
    told: dict[str, Any] = {"cuda": None, "gpus": [], "driver": None}
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told["driver"] = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.split("\n")[0] or None
    except (OSError, subprocess.SubprocessError) as error:
        problems["driver"] = f"nvidia-smi does not answer ({error})"
    try:
        import torch

        told["cuda"] = torch.version.cuda
        if torch.cuda.is_available():
            told["gpus"] = [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())]
        else:
            problems["cuda"] = f"Ray hands out GPUs here, but torch {torch.__version__} cannot use them"
    except Exception as error:  # noqa: BLE001
        problems["cuda"] = f"torch cannot be asked ({error})"
    return told


def _storage(location: str, mark: str, said: str) -> dict[str, int]:
    """Read what the driver wrote, and write, list, read and delete a file of this node's own."""
    name = f"{platform.node()}-{os.getpid()}"
    if "://" in location:
        from pmray.storage import filesystem, names_in

        system, root = filesystem(location)
        with system.open_input_stream(f"{root}/{mark}/driver") as stream:
            if stream.read().decode() != said:
                raise OSError("it holds something else than the driver has just written")
        with system.open_output_stream(f"{root}/{mark}/{name}") as stream:
            stream.write(b"pmray doctor")
        url, question, options = location.partition("?")
        if name not in names_in(f"{url}/{mark}{question}{options}"):
            raise OSError("what was written is not listed")
        system.delete_file(f"{root}/{mark}/{name}")
        return {}
    folder = Path(location) / mark
    if not folder.is_dir():
        raise FileNotFoundError(f"{location} is missing here, or is not the folder that the driver sees")
    if (folder / "driver").read_text() != said:
        raise OSError(f"{location} holds something else than the driver has just written")
    with (folder / name).open("w") as stream:
        stream.write("pmray doctor")
        stream.flush()
        os.fsync(stream.fileno())
    if name not in [file.name for file in folder.iterdir()]:
        raise OSError(f"a file written to {location} is not listed")
    (folder / name).unlink()
    usage = shutil.disk_usage(location)
    return {"disk": usage.total, "disk_free": usage.free}


def _model(model: str) -> None:
    """Find a candidate as a trial here would; nothing is downloaded."""
    if model.startswith("package:"):
        package = model.removeprefix("package:").partition("/")[0]
        if find_spec(package) is None:
            raise FileNotFoundError(f"no installed package {package!r}")
        return
    if Path(os.path.expandvars(model)).expanduser().is_dir():
        return
    if model.startswith((".", "/", "~", "$")) or model.count("/") > 1:
        raise FileNotFoundError(f"no such folder ({model})")
    from huggingface_hub import HfApi, try_to_load_from_cache

    name, _, revision = model.partition("@")
    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision or None), str):
        return
    HfApi().model_info(name, revision=revision or None, timeout=10)


def _answers(host: str, port: int) -> str | None:
    try:
        with socket.create_connection((host, port), timeout=3):
            return None
    except OSError as error:
        return f"{host}:{port} cannot be reached ({error})"
