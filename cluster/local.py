"""A Ray cluster of this machine, from Python: a head that steers, and workers that are raylets of their own.

python cluster/local.py [WORKERS [CPUS_OF_EACH]]      Ctrl-C ends it; the same as cluster/local.sh
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 180


class Node:
    """A raylet (and on the head the control store and dashboard) with all its processes."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, inside: Sequence[str] = ()
    ) -> None:
        self.command = [*inside, sys.executable, "-m", "ray.scripts.scripts", *command]
        self.environment, self.log = dict(environment), log
        self.ended = False
        """Whether somebody ended it."""
        self.start()

    def start(self) -> None:
        """Begin, or begin again."""
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def family(self) -> list[psutil.Process]:
        """All its processes."""
        with suppress(psutil.NoSuchProcess):
            this = psutil.Process(self.process.pid)
            return [this, *this.children(recursive=True)]
        return []

    def kill(self) -> None:
        """End it as a power cut does."""
        self.ended = True
        for one in self.family():
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it in good order, and what does not end by itself."""
        self.ended = True
        family = self.family()
        self.process.terminate()
        _, alive = psutil.wait_procs(family, timeout=15)
        for one in alive:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait()


class LocalCluster:
    """Starts with a block, and ends with it.

    A subclass can put every node into a network of its own: ``host`` is where the head is, ``place`` where others are.

    Args:
        workers: Nodes beside the head; with none the head has the CPUs.
        cpus: Of each.
        folder: For the logs.
        token: Of the cluster; by default a new one. Who talks to it needs ``environment``.
        environment: What all nodes get beside this process's.
        port: Of the head; by default a free one.
        dashboard_port: Likewise.
    """

    host = "127.0.0.1"

    def place(self, number: int) -> tuple[Sequence[str], Sequence[str]]:
        """What a node's command stands inside of, and further options of it; the head is number 0."""
        return (), ()

    def __init__(
        self,
        workers: int = 0,
        cpus: float = 1,
        *,
        folder: Path,
        token: str | None = None,
        environment: Mapping[str, str] | None = None,
        port: int = 0,
        dashboard_port: int = 0,
    ) -> None:
        self.workers: list[Node] = []
        self.count, self.cpus, self.folder = workers, cpus, folder
        self.port, self.dashboard_port = port or free_port(), dashboard_port or free_port()
        self.token = token or secrets.token_hex(16)
        # Paths of sockets may have 107 bytes, and Ray's own part of them is long.
        self.scratch = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.environment = {
            **{key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")},
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_TMPDIR": str(self.scratch),
            **(environment or {}),
        }

    @property
    def address(self) -> str:
        """``host:port`` of the control store."""
        return f"{self.host}:{self.port}"

    @property
    def dashboard(self) -> str:
        """Where jobs are sent."""
        return f"http://{self.host}:{self.dashboard_port}"

    def __enter__(self) -> "LocalCluster":
        self.folder.mkdir(parents=True, exist_ok=True)
        head_cpus = 0 if self.count else self.cpus
        inside, options = self.place(0)
        self.head = Node(
            [
                *("start", "--head", "--block", "--disable-usage-stats", "--include-dashboard", "true"),
                *("--port", str(self.port), "--num-cpus", str(head_cpus)),
                *("--dashboard-host", self.host, "--dashboard-port", str(self.dashboard_port)),
                # A free one each: several clusters of one machine would meet at the fixed ones.
                *("--ray-client-server-port", str(free_port()), "--dashboard-agent-listen-port", "0"),
                *options,
            ],
            self.environment,
            self.folder / "head.log",
            inside,
        )
        try:
            self._wait(self.dashboard_port)
            for _ in range(self.count):
                self.add_worker()
            self.wait_for_nodes(self.count + 1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def add_worker(self, cpus: float | None = None, environment: Mapping[str, str] | None = None) -> Node:
        """Have one more node join; ``wait_for_nodes`` says when it has."""
        number = len(self.workers) + 1
        inside, options = self.place(number)
        node = Node(
            [
                *("start", "--block", "--disable-usage-stats", "--address", self.address),
                # Of its own, as on a machine of its own: where nodes share one, each that unpacks a job's working
                # directory deletes the one that the others are in.
                *("--temp-dir", str(self.scratch / str(number)), "--dashboard-agent-listen-port", "0"),
                *("--num-cpus", str(self.cpus if cpus is None else cpus)),
                *options,
            ],
            {**self.environment, **(environment or {})},
            self.folder / "workers.log",
            inside,
        )
        self.workers.append(node)
        return node

    def nodes(self) -> int:
        """Nodes that are alive, as the control store knows them."""
        return sum(one["state"] == "ALIVE" for one in self.ask("nodes"))

    def ask(self, what: str) -> list[dict[str, Any]]:
        """What the dashboard's state API lists: ``nodes``, ``actors`` …"""
        headers = {"Authorization": f"Bearer {self.token}"}
        found = httpx.get(f"{self.dashboard}/api/v0/{what}?limit=1000&detail=true", headers=headers, timeout=10)
        listed: list[dict[str, Any]] = found.raise_for_status().json()["data"]["result"]["result"]
        return listed

    def wait_for_nodes(self, count: int) -> None:
        """Wait until so many nodes are alive.

        Raises:
            TimeoutError: They do not come.
        """
        until = time.monotonic() + START_SECONDS
        found = -1
        while found != count:
            if time.monotonic() > until:
                raise TimeoutError(f"{found} nodes are alive, not {count}; see {self.folder}/*.log")
            for node in self.workers:
                # Ray gives a node 30 seconds to start, which a busy machine does not.
                if node.process.poll() is not None and not node.ended:
                    node.start()
            with suppress(httpx.HTTPError):
                found = self.nodes()
            time.sleep(0.5)

    def _wait(self, port: int) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            with suppress(OSError), socket.create_connection((self.host, port), timeout=1):
                return
            if self.head.process.poll() is not None or time.monotonic() > until:
                raise TimeoutError(f"the head does not answer; see {self.folder / 'head.log'}")
            time.sleep(0.2)

    def __exit__(self, *raised: object) -> None:
        for node in [*self.workers, self.head]:
            node.stop()
        shutil.rmtree(self.scratch, ignore_errors=True)


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(workers: str = "0", cpus: str = "") -> None:
    """Start, say how it is talked to, and wait for Ctrl-C."""
    cores = os.cpu_count() or 1
    each = float(cpus) if cpus else max(1, cores // max(1, int(workers)))
    folder = Path(os.environ.get("RAY_TMPDIR", "/tmp/pmray-cluster"))
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    with (
        suppress(KeyboardInterrupt),
        LocalCluster(int(workers), each, folder=folder, port=6379, dashboard_port=8265) as cluster,
    ):
        print(
            f"A cluster of {workers} workers with {each:g} CPUs each. In another shell:\n\n"
            f"  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={cluster.token}\n"
            f"  pmray doctor --address {cluster.address}\n"
            f"  pmray submit sweep jobs/specs/reviews.yaml --address {cluster.dashboard} --follow\n\n"
            "Ctrl-C ends the cluster.",
            flush=True,
        )
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
