"""What an endpoint is started with: which models, on which settings, and who may ask it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from pmray.bundle import open_bundle
from pmray.errors import SpecError
from pmray.evaluation.predictors import resolve
from pmray.serving.guard import Limits
from pmray.serving.keys import KEYS, Keys
from pmray.spec import Section, Serve


class Arguments(Section):
    """``args`` of a Serve config; keys come from the environment of the nodes, never from here."""

    model: list[str] = Field(min_length=1)
    """Bundle folders, or ``NAME[@alias]`` or ``NAME/VERSION`` in the registry; the first is the one of /v1/predict."""
    registry: str | None = None
    """MLflow tracking URI, for names."""
    serve: Serve = Serve()
    no_auth: bool = False
    """Answer beyond this machine although no key is set."""

    @field_validator("model", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


@dataclass(frozen=True)
class Served:
    """One model that the endpoint knows."""

    name: str
    """In ``/v1/models/{name}``."""
    reference: str
    folder: Path
    version: str


def served(reference: str, registry: str | None) -> Served:
    """Find a model, as it is now.

    Raises:
        DataError: The folder is not a bundle.
        RegistryError: There is no such model.
    """
    folder, version = resolve(reference, registry)
    name = open_bundle(folder).name if version == "-" else reference.partition("@")[0].partition("/")[0]
    return Served(name, reference, folder, version)


def all_served(references: Sequence[str], registry: str | None) -> dict[str, Served]:
    """Find several models, name -> model.

    Raises:
        SpecError: Two have the same name.
        DataError, RegistryError: As ``served``.
    """
    found: dict[str, Served] = {}
    for reference in references:
        one = served(reference, registry)
        if one.name in found:
            raise SpecError(
                f"{found[one.name].reference} and {reference} are both called {one.name!r}, and a name leads to one "
                "model; serve them as two endpoints."
            )
        found[one.name] = one
    return found


def follows(one: Served) -> bool:
    """Whether another version may take its place: it was asked for by a name, without a version."""
    return one.version != "-" and "/" not in one.reference


def check_access(host: str, keys: Keys, *, no_auth: bool) -> None:
    """Refuse to listen beyond this machine without keys, unless that was said aloud.

    Raises:
        SpecError: Others can reach the endpoint, and nobody needs a key.
    """
    if not is_loopback(host) and not keys.required and not no_auth:
        raise SpecError(
            f"serve.host is {host}, which others can reach, and no API key is set; put keys into {KEYS} (or a file of "
            f"them into {KEYS}_FILE), use 127.0.0.1, or say --no-auth."
        )


def limits_of(arguments: Arguments, keys: Keys) -> Limits:
    """The limits of a request."""
    settings = arguments.serve
    return Limits(
        max_body=settings.max_body,
        max_upload=settings.max_upload,
        max_rows=settings.max_rows,
        timeout_s=settings.timeout_s,
        local_only=is_loopback(settings.host) and not keys.required and not arguments.no_auth,
    )


def replicas_of(settings: Serve) -> tuple[int, int]:
    """Fewest and most processes of the model."""
    return settings.replicas if isinstance(settings.replicas, tuple) else (settings.replicas,) * 2


def is_separate(settings: Serve, models: int, *, on_cluster: bool) -> bool:
    """Whether the model gets processes of its own: as the settings say, or else unless one process does all well.

    >>> is_separate(Serve(), 1, on_cluster=False), is_separate(Serve(replicas=2), 1, on_cluster=False)
    (False, True)
    """
    if settings.separate is not None:
        return settings.separate
    one = replicas_of(settings) == (1, 1) and settings.ingress_replicas == 1 and models == 1
    # An endpoint of a cluster is to be updated without a pause.
    return on_cluster or not one or settings.gpus > 0


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
