"""Write the files of a deployment from a spec, so that what runs never drifts from what was decided."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pmray.deployment import monitoring
from pmray.deployment.manifests import Options, kuberay, serve_config
from pmray.errors import SpecError, UnknownName
from pmray.spec import Spec
from pmray.storage import is_remote

TARGETS = ("kuberay", "serve")

HEADER = "# Made by `pmray deploy render` from the spec of {name}; change that and render again.\n"


def render(spec: Spec, target: str, options: Options | None = None) -> dict[str, str]:
    """File name -> text.

    Args:
        spec: The run whose winner is served.
        target: ``kuberay``: what Kubernetes with KubeRay's operator runs. ``serve``: a config for ``serve deploy`` on a
            cluster that is there. Both with a Grafana dashboard and Prometheus rules.
        options: What the spec does not know of the place.

    Raises:
        UnknownName: Another target.
        SpecError: The spec keeps something where a pod cannot find it.
    """
    if target not in TARGETS:
        raise UnknownName("target", target, TARGETS)
    header = HEADER.format(name=spec.name)
    files = {
        "alerts.yaml": header + _yaml(monitoring.rules(spec)),
        "dashboard.json": json.dumps(monitoring.dashboard(spec), indent=2) + "\n",
    }
    if target == "serve":
        return {"serve.yaml": header + _yaml(serve_config(spec)), **files}
    chosen = options or Options()
    _check_shared(spec)
    made: Mapping[str, list[Any]] = kuberay(spec, chosen)
    return {name: header + "---\n".join(map(_yaml, objects)) for name, objects in made.items()} | files


def write(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write rendered files, each whole or not at all; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in files.items():
        partial = folder / f".{name}"
        partial.write_text(text)
        written.append(partial.replace(folder / name))
    return written


def options_of(**given: Any) -> Options:
    """Options with what was given; None leaves a default."""
    return replace(Options(), **{key: value for key, value in given.items() if value is not None})


def _check_shared(spec: Spec) -> None:
    """Pods come and go: what outlives them must be outside of them."""
    if not is_remote(spec.storage) and not Path(spec.storage).is_absolute():
        raise SpecError(
            f"storage is {spec.storage!r}, a path relative to this folder; pods need an absolute one, where their "
            "volume claim is mounted (such as /mnt/pmray), or s3://, gs://, abfs://."
        )
    relative = [one for one in _paths(spec) if not one.startswith("/") and "://" not in one]
    if relative:
        raise SpecError(
            f"{', '.join(relative[:3])}: relative to this folder, which no pod has; give an absolute path in the "
            "storage's volume, a URL, or hub:NAME."
        )


def _paths(spec: Spec) -> list[str]:
    found: list[str] = []
    for source in (spec.data.train, spec.data.validation, spec.data.test):
        found += [source] if isinstance(source, str) else source if isinstance(source, list) else []
    return [one for one in found if not one.startswith("hub:")]


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))
