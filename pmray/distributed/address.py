"""Where a Ray cluster is: one rule for all commands, and a knock at its door before Ray is asked to come in.

Ray itself takes 20 to 45 seconds to say that it cannot connect (2.60), and says the same whether nobody is there or the
token was refused. One empty call to the port tells these apart within a second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx

from pmray.errors import ClusterError

KNOCK_SECONDS = 5.0

TOKEN_HELP = (
    "set RAY_AUTH_MODE=token and give the cluster's token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
)


class Kind(StrEnum):
    """What stands at an address."""

    here = "here"
    """No cluster yet: one of this machine is started for the command."""
    cluster = "cluster"
    """The control store (GCS) of a running cluster: ``auto`` or ``host:port``."""
    client = "client"
    """A Ray Client server, ``ray://host:port``."""
    dashboard = "dashboard"
    """A dashboard, ``http://host:port``, which takes jobs."""


@dataclass(frozen=True)
class Address:
    """Where a cluster is, and how it is talked to."""

    kind: Kind
    value: str = ""
    origin: str = ""
    """What it was read from, for messages."""


def address_of(given: str | None, environment: Mapping[str, str] = os.environ) -> Address:
    """What ``--address``, or else ``RAY_ADDRESS``, means; by default a cluster that is started for the command.

    Args:
        given: From the command line; wins over the environment.
        environment: Of the process.

    Raises:
        ClusterError: It is none of the known forms.

    >>> address_of("auto").kind, address_of(None, {"RAY_ADDRESS": "head:6379"}).value
    (<Kind.cluster: 'cluster'>, 'head:6379')
    """
    origin = "--address" if given else "RAY_ADDRESS"
    value = (given or environment.get("RAY_ADDRESS") or "").strip()
    if value in ("", "local"):
        return Address(Kind.here, value, origin)
    if value == "auto":
        return Address(Kind.cluster, value, origin)
    scheme, split, rest = value.rpartition("://")
    kind = {"ray": Kind.client, "http": Kind.dashboard, "https": Kind.dashboard, "": Kind.cluster}.get(scheme)
    has_port = re.fullmatch(r"[^\s/]+:\d{1,5}", rest.rstrip("/"))
    if kind is None or not (has_port or (kind is Kind.dashboard and rest)) or (split and not scheme):
        raise ClusterError(
            f"{origin} is {value!r}, but a cluster's address is auto, HOST:6379, http://HOST:8265 or ray://HOST:10001."
        )
    return Address(kind, value.rstrip("/"), origin)


def for_driver(address: Address, *, short: bool = False) -> Address:
    """Refuse an address that this process cannot work on a cluster through.

    Args:
        address: What was given.
        short: The command only looks at the cluster, for which a Ray Client will do.

    Raises:
        ClusterError: Says which command is meant.
    """
    if address.kind is Kind.dashboard:
        raise ClusterError(
            f"{address.value} takes jobs, and the process that steers a run must be on the cluster: send it there with "
            f"`pmray submit COMMAND … --address {address.value}`, or give the cluster's own HOST:6379 on one of its "
            "nodes."
        )
    if address.kind is Kind.client and not short:
        host = urlsplit(address.value).hostname
        raise ClusterError(
            f"{address.value} is a Ray Client, which ends a run with the connection: send the run to the cluster with "
            f"`pmray submit COMMAND … --address http://{host}:8265`; `pmray doctor` and `pmray plan` work through it."
        )
    return address


def knock(address: Address) -> None:
    """Ask whether a cluster answers at an address and takes the token of this process.

    Raises:
        ClusterError: One sentence: nobody answers, no token, or a wrong one.
    """
    if address.kind is Kind.dashboard:
        _knock_dashboard(address)
    elif address.kind is Kind.client:
        _knock_grpc(address, address.value.removeprefix("ray://"), "/ray.rpc.RayletDriver/ClusterInfo")
    elif address.kind is Kind.cluster and (target := _running_here() if address.value == "auto" else address.value):
        _knock_grpc(address, target, "/ray.rpc.NodeInfoGcsService/CheckAlive")


def _running_here() -> str:
    """The cluster that ``auto`` means, where Ray has written it down on this machine; Ray itself looks further."""
    try:
        return (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def _knock_grpc(address: Address, target: str, method: str) -> None:
    """An empty call: whatever comes back but these two says that somebody is there who lets us in."""
    headers = tuple((name.lower(), value) for name, value in auth_headers().items())
    with grpc.insecure_channel(target, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=KNOCK_SECONDS, metadata=headers)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise ClusterError(_refused(address)) from None
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ClusterError(unreachable(address)) from None


def _knock_dashboard(address: Address) -> None:
    try:
        status = httpx.get(
            f"{address.value}/api/version", timeout=KNOCK_SECONDS, headers=auth_headers(), follow_redirects=True
        ).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ClusterError(unreachable(address, f" ({error})")) from None
    if status in (401, 403):
        raise ClusterError(_refused(address))
    if status != 200:
        raise ClusterError(f"{address.value} is no Ray dashboard: it answers {status} to /api/version.")


def auth_headers() -> dict[str, str]:
    """The header that carries this process's token; none without ``RAY_AUTH_MODE=token``.

    Ray's own order: the variable, the file it names, the file in the home folder.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return {}
    token = _token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _token() -> str:
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _refused(address: Address) -> str:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return f"the cluster at {address.value} asks for a token, and none was sent; {TOKEN_HELP}."
    if not _token():
        return f"the cluster at {address.value} asks for a token, and this process has none; {TOKEN_HELP}."
    return f"the cluster at {address.value} refuses the token of this process; {TOKEN_HELP}."


def unreachable(address: Address, why: str = "") -> str:
    """The sentence for a cluster that does not answer."""
    return (
        f"no Ray cluster answers at {address.value!r} (from {address.origin}){why}; start one with `ray start --head`, "
        "or leave the address out to use this machine."
    )
