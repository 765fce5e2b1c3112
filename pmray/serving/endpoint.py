"""Start an endpoint on Ray Serve, and end it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

import httpx
from ray import serve
from ray.exceptions import RayError

from pmray.distributed.cluster import connected
from pmray.errors import EndpointError
from pmray.live.store import URL_VARIABLE, default_url
from pmray.serving import haproxy
from pmray.serving.app import application
from pmray.serving.arguments import Arguments, all_served, check_access, is_separate
from pmray.serving.keys import Keys
from pmray.spec import Serve

START_TIMEOUT_S = 180

log = logging.getLogger("ray.serve")


@dataclass
class Deployed:
    """A running endpoint; closing it (or leaving its ``with`` block) ends it."""

    url: str
    _stack: ExitStack

    def close(self) -> None:
        """End the endpoint, and the cluster if it was started for it."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def deploy(
    model: str | Sequence[str],
    *,
    serve_spec: Serve | None = None,
    registry: str | None = None,
    address: str | None = None,
    no_auth: bool = False,
) -> Deployed:
    """Serve a bundle, or several behind one endpoint, and return when it answers.

    API keys come from the environment; see ``pmray.serving.keys``. A model that is given by a name of the registry is
    followed: another version that gets the alias takes over without a pause.

    Args:
        model: Bundle folder, or ``NAME[@alias]`` or ``NAME/VERSION`` in the registry; the first of several is the one
            of ``/v1/predict``.
        serve_spec: Host, port, replicas and limits.
        registry: MLflow tracking URI, for names.
        address: Of a Ray cluster; by default this machine.
        no_auth: Listen beyond this machine although anybody may then ask.

    Raises:
        DataError: The folder is not a bundle.
        RegistryError: There is no such model.
        EndpointError: The port is taken, or the model does not start.
        SpecError: A host beyond this machine without keys or `no_auth`, or keys that are too short.
    """
    settings = serve_spec or Serve()
    models = [model] if isinstance(model, str) else list(model)
    check_access(settings.host, Keys(os.environ), no_auth=no_auth)
    found = all_served(models, registry).values()
    # Processes of Ray have other working folders.
    models = [str(one.folder) if one.version == "-" else one.reference for one in found]
    port = settings.port or haproxy.free_port(settings.host)
    _check_free(settings.host, port)
    keeping = settings.live
    if keeping.store is None and URL_VARIABLE not in os.environ:
        # A path, which processes in other working folders cannot work out. The variable may hold a password: it stays
        # in the environment.
        keeping = keeping.model_copy(update={"store": default_url(registry)})
    separate = is_separate(settings, len(models), on_cluster=address is not None)
    settings = settings.model_copy(update={"port": port, "live": keeping, "separate": separate})
    arguments = Arguments(model=models, registry=registry, serve=settings, no_auth=no_auth)
    for name, value in haproxy.settings().items():
        os.environ.setdefault(name, value)
    stack = ExitStack()
    try:
        stack.enter_context(connected(address))
        stack.callback(_stop_serving)
        log.setLevel(logging.ERROR)
        serve.start(http_options={"host": settings.host, "port": port}, logging_config={"log_level": "ERROR"})
        serve.run(application(arguments), name="pmray", logging_config={"log_level": "ERROR"})
        url = f"http://{'127.0.0.1' if settings.host in ('0.0.0.0', '::') else settings.host}:{port}"
        _wait_ready(url)
    except (RuntimeError, RayError) as error:
        stack.close()
        raise EndpointError(f"{models[0]} could not be served: {str(error).strip()[-500:]}") from None
    except BaseException:
        stack.close()
        raise
    return Deployed(url, stack)


def _stop_serving() -> None:
    """End the endpoint; and Ray Serve with it, unless it serves other people's applications on a shared cluster.

    Serve keeps the address that it was started with: the next endpoint may want another.
    """
    serve.delete("pmray")
    if not serve.status().applications:
        serve.shutdown()


def _wait_ready(url: str) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/readyz", timeout=5).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise EndpointError(
        f"{url} did not answer within {START_TIMEOUT_S} s; where Ray Serve was already running on this cluster, it "
        "listens where it was told to then, so name that host and port"
    )


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise EndpointError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another --port, or 0"
            ) from None
