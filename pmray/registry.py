"""Versions of bundles and who is champion, in MLflow: any tracking URI, an SQLite file by default."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from pmray import storage
from pmray.bundle import SETTINGS, Bundle, open_bundle
from pmray.errors import RegistryError, nearest

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
"""Alias of the version that is served."""

CHALLENGER = "challenger"
"""Alias of a version that answers the same rows unseen, to be compared."""

PREVIOUS = "previous"
"""Alias of the version that was champion before, for going back."""


@dataclass(frozen=True)
class Version:
    """A registered bundle."""

    name: str
    version: str
    folder: Path
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def default_uri() -> str:
    """An SQLite file in the folder ``runs``."""
    return f"sqlite:///{Path('runs').absolute() / 'registry.db'}"


def register(
    bundle: Bundle,
    uri: str,
    *,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    alias: str = CHAMPION,
    source: str = "",
    run_id: str | None = None,
) -> Version:
    """Add a bundle as a new version and give it the alias; the same bundle again is the version it has.

    Such a version keeps the aliases that it has by now: it may have been rolled back since, and a sweep that is run
    again has found nothing new. Only an alias that nobody has is given.

    Args:
        bundle: What to register.
        uri: MLflow tracking URI.
        metrics: Numbers for MLflow's run page, such as the test score and its interval.
        params: Recipe and candidate.
        alias: Whom it replaces.
        source: URL of the bundle where it is kept in an object store; by default its folder.
        run_id: MLflow's run that made the bundle, where there is one; by default a new one gets metrics and params.

    Raises:
        RegistryError: The registry cannot be reached.
    """
    client = open_client(uri)
    from mlflow.exceptions import MlflowException

    name, key = bundle.name, str(bundle.settings["key"])
    try:
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, tags={"task": bundle.settings["task"]["task"]})
        version = next(
            (one for one in client.search_model_versions(f"name = '{name}'") if one.tags.get("pmray.key") == key), None
        )
        is_new = version is None
        if version is None:
            made_by = run_id or _own_run(client, name, key, metrics, params)
            version = client.create_model_version(
                name, source=source or bundle.folder.as_uri(), run_id=made_by, tags={"pmray.key": key}
            )
        if is_new or alias not in _aliases(client, name):
            _give(client, name, alias, str(version.version))
        has = sorted(one for one, owner in _aliases(client, name).items() if owner == str(version.version))
    except MlflowException as error:
        raise RegistryError(f"the registry at {uri} refused {name!r}: {error.message}") from None
    return Version(name, str(version.version), bundle.folder, tuple(has))


def _own_run(client: MlflowClient, name: str, key: str, metrics: Mapping[str, float], params: Mapping[str, Any]) -> str:
    experiment = client.get_experiment_by_name(name)
    run = client.create_run(experiment.experiment_id if experiment else client.create_experiment(name), run_name=key)
    for metric, value in metrics.items():
        client.log_metric(run.info.run_id, metric, value)
    for param, value in params.items():
        client.log_param(run.info.run_id, param, value)
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def find(reference: str, uri: str) -> Version:
    """Find ``name``, ``name@alias`` or ``name/version`` (a name alone means its champion).

    Raises:
        RegistryError: There is no such model, alias or version, or its folder is gone.
    """
    client = open_client(uri)
    from mlflow.exceptions import MlflowException

    name, _, alias = reference.partition("@")
    name, _, number = name.partition("/")
    known = [model.name for model in client.search_registered_models()]
    if name not in known:
        hint = nearest(name, known)
        told = f"did you mean {hint!r}?" if hint else f"known: {', '.join(known) or 'none yet'}"
        raise RegistryError(f"{reference}: neither a bundle's folder nor a model in {uri}; {told}")
    try:
        if number:
            found = client.get_model_version(name, number)
        else:
            found = client.get_model_version_by_alias(name, alias or CHAMPION)
    except MlflowException:
        aliases = {
            alias: version for one in [client.get_registered_model(name)] for alias, version in one.aliases.items()
        }
        shown = ", ".join(f"@{alias} (version {version})" for alias, version in aliases.items()) or "none"
        wanted = f"version {number}" if number else f"alias {alias or CHAMPION!r}"
        raise RegistryError(f"{name} has no {wanted}; aliases: {shown}") from None
    folder = Path(unquote(urlparse(found.source).path))
    if storage.is_remote(found.source):
        folder = _brought(found.source)
    if not folder.is_dir():
        raise RegistryError(f"{name} version {found.version} points to {folder}, which is gone; run its sweep again.")
    key = found.tags.get("pmray.key")
    if key is not None and (folder / SETTINGS).is_file() and str(open_bundle(folder).settings["key"]) != key:
        raise RegistryError(
            f"{name} version {found.version} points to {folder}, which a later sweep has replaced; run its sweep again "
            "under another name, or use the later version."
        )
    return Version(name, str(found.version), folder, tuple(found.aliases))


def keep(bundle: Bundle, folder: Path) -> Bundle:
    """Give a bundle a second folder, which stays when the first is replaced; hard links where the disk has them.

    Args:
        bundle: Whole.
        folder: Of its own, such as one named after its key; what is there already stays.
    """
    if not (folder / SETTINGS).is_file():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(bundle.folder, partial, copy_function=_linked)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    return open_bundle(folder)


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _brought(source: str) -> Path:
    """The copy on this machine of a bundle in an object store; the bundle may have been replaced, so it is fetched."""
    try:
        storage.pull(source)
    except OSError as error:
        raise RegistryError(f"{source} cannot be fetched ({' '.join(str(error).split())[:200]})") from None
    return storage.local(source)


def promote(reference: str, uri: str, *, alias: str = CHAMPION) -> Version:
    """Give a version the alias; whoever had it loses it. A champion that loses it becomes ``previous``.

    Args:
        reference: ``name/version`` or ``name@other-alias``.
        uri: MLflow tracking URI.
        alias: Such as ``champion`` or ``challenger``.

    Raises:
        RegistryError: There is no such version, or its bundle is not whole.
    """
    version = find(reference, uri)
    open_bundle(version.folder)
    client = open_client(uri)
    _give(client, version.name, alias, version.version)
    has = sorted(one for one, owner in _aliases(client, version.name).items() if owner == version.version)
    return Version(version.name, version.version, version.folder, tuple(has))


def aliases(name: str, uri: str) -> dict[str, str]:
    """Alias -> version of a registered model.

    Raises:
        RegistryError: There is no such model.
    """
    from mlflow.exceptions import MlflowException

    try:
        return _aliases(open_client(uri), name)
    except MlflowException:
        known = [model.name for model in open_client(uri).search_registered_models()]
        hint = nearest(name, known)
        told = f"did you mean {hint!r}?" if hint else f"known: {', '.join(known) or 'none yet'}"
        raise RegistryError(f"{name} is no model in {uri}; {told}") from None


def withdraw(name: str, alias: str, uri: str) -> None:
    """Take an alias away from whoever has it."""
    client = open_client(uri)
    if alias in _aliases(client, name):
        client.delete_registered_model_alias(name, alias)


def _give(client: MlflowClient, name: str, alias: str, version: str) -> None:
    before = _aliases(client, name).get(alias)
    if alias == CHAMPION and before not in (None, version):
        client.set_registered_model_alias(name, PREVIOUS, before)
    client.set_registered_model_alias(name, alias, version)


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()}


def reach(uri: str) -> None:
    """Open the registry and ask it something.

    Raises:
        RegistryError: It cannot be reached.
    """
    open_client(uri)


def open_client(uri: str) -> MlflowClient:
    """Open MLflow, quietly.

    Raises:
        RegistryError: It cannot be reached.
    """
    # MLflow reports its database migrations, one line each, at INFO; and it looks for a git binary.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_registered_models(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise RegistryError(f"the registry at {uri} cannot be opened ({' '.join(str(error).split())[:200]})") from None
    return client
