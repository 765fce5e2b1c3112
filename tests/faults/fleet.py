"""Faults of a fleet, one after the other, on real raylets: ``python -m tests.faults.fleet [NAME ...]``.

Every scenario runs `pmray sweep` on a cluster of several nodes on this machine, does something to it, and holds the end
against a sweep that nothing happened to: the same verdict, nothing finished repeated, no process left behind.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from tests.faults.test_kill import gone
from tests.tiny import RECIPE, tiny_model, tiny_spec

sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))
from local import LocalCluster

STEERING = ("JobSupervisor", "TrainController", "_StatsActor", "_QueueActor", "_Autoscaling", "_Usage", "_ActorPool")
"""Actors of Ray that hold no model and no data."""

PATIENCE = 600
"""Seconds until a scenario is given up."""


def write_spec(folder: Path, epochs: int = 12) -> Path:
    """One recipe for each candidate, so that every order of events must end alike; one asks for two workers."""
    spec = tiny_spec(folder)
    recipe = {**RECIPE, "epochs": epochs, "lr": 1e-3, "precision": "fp32"}
    bert, llama = ({**one, "recipe": recipe, "space": {"epochs": {"choice": [epochs]}}} for one in spec["candidates"])
    spec["candidates"] = [
        bert,
        {**bert, "name": "bert-1-layer", "layers": 1},
        {**llama, "resources": {"workers": 2}},
        {**bert, "name": "roberta", "model": str(tiny_model(folder / "roberta", "roberta"))},
    ]
    spec["search"] = {"trials": 4, "finalists": 2, "seeds": 1, "rank_rows": 60, "rungs": 0, "state_seconds": 1,
                      "keep_after_rank": 1.0}  # fmt: skip
    # Of equally good models the fastest would win, and which that is nobody knows on a busy machine.
    spec["decide"] = {"draws": 200, "prefer": "parameters"}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@dataclass
class Sweep:
    """A driver and the record that it writes."""

    folder: Path
    process: subprocess.Popen[str]

    def outcomes(self) -> list[dict]:
        ledger = self.folder / "runs" / "tiny" / "ledger.jsonl"
        lines = ledger.read_bytes().split(b"\n")[:-1] if ledger.exists() else []
        return [json.loads(line) for line in lines if line]

    def finished(self, *stages: str) -> int:
        return sum(one["stage"] in stages and not one["may_pass"] for one in self.outcomes())

    def wait_for(self, count: int, *stages: str) -> None:
        until = time.monotonic() + PATIENCE
        while self.finished(*stages) < count:
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"it did not come to {count} outcomes of {stages}: {self.end()[-1500:]}")
            time.sleep(0.1)

    def end(self) -> str:
        """Wait for the driver's end; what it said."""
        said, _ = self.process.communicate(timeout=PATIENCE)
        return said


def start(cluster: LocalCluster | None, folder: Path, *more: str, inside: Sequence[str] = ()) -> Sweep:
    command = [*inside, sys.executable, "-m", "pmray", "sweep", str(folder / "tiny.yaml"), *more]
    environment = dict(os.environ) if cluster is None else dict(cluster.environment)
    environment.pop("RAY_ADDRESS", None)
    if cluster is not None:
        command += ["--address", cluster.address]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    # No driver outlives a scenario that was broken off.
    atexit.register(process.kill)
    return Sweep(folder, process)


@dataclass
class Seen:
    """What a scenario left behind."""

    sweep: Sweep
    notes: list[str] = field(default_factory=list)


Scenario = Callable[[Path, ExitStack], Seen]
SCENARIOS: dict[str, Scenario] = {}


def scenario(title: str) -> Callable[[Scenario], Scenario]:
    def keep(function: Scenario) -> Scenario:
        function.__doc__ = title
        SCENARIOS[function.__name__.replace("_", "-")] = function
        return function

    return keep


def ended_well(sweep: Sweep) -> str:
    said = sweep.end()
    assert sweep.process.returncode == 0, f"exit {sweep.process.returncode}: {said[-2500:]}"
    return said


@scenario("nothing happens: 3 workers, candidates of one and of two workers")
def quiet(folder: Path, stack: ExitStack) -> Seen:
    cluster = stack.enter_context(LocalCluster(3, 1, folder=folder / "ray"))
    sweep = start(cluster, folder)
    ended_well(sweep)
    return Seen(sweep)


@scenario("a worker node is killed in mid-sweep, and a new one joins")
def node_lost(folder: Path, stack: ExitStack) -> Seen:
    cluster = stack.enter_context(LocalCluster(3, 1, folder=folder / "ray"))
    sweep = start(cluster, folder)
    sweep.wait_for(1, "sweep")
    cluster.workers[0].kill()
    cluster.add_worker()
    ended_well(sweep)
    cluster.wait_for_nodes(4)
    return Seen(sweep, ["1 of 3 workers killed", "1 joined"])


@scenario("head and all nodes are killed; resumed on a cluster of another shape from the storage")
def head_lost(folder: Path, stack: ExitStack) -> Seen:
    with ExitStack() as first:
        cluster = first.enter_context(LocalCluster(3, 1, folder=folder / "ray"))
        sweep = start(cluster, folder)
        sweep.wait_for(2, "sweep")
        for node in [cluster.head, *cluster.workers]:
            node.kill()
        # The driver finds out, or is killed with its machine.
        sweep.process.kill()
        sweep.end()
        before = sweep.finished("rank", "sweep", "final")
    other = stack.enter_context(LocalCluster(1, 2, folder=folder / "ray-2"))
    again = start(other, folder)
    ended_well(again)
    return Seen(again, [f"{before} outcomes before, 3 x 1 CPU", "then 1 x 2 CPUs"])


@scenario("a node has another version of transformers: refused, and left out with --force")
def wrong_version(folder: Path, stack: ExitStack) -> Seen:
    cluster = stack.enter_context(LocalCluster(2, 1, folder=folder / "ray"))
    other = folder / "other" / "transformers-4.1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.1.0\n")
    path = f"{other.parent}{os.pathsep}{cluster.environment['PYTHONPATH']}"
    bad = _odd_node(cluster, {"PYTHONPATH": path})
    return _refused_then_forced(cluster, folder, bad, "transformers 4.1.0, but the driver has")


@scenario("the disk of a node is full: refused, and left out with --force")
def disk_full(folder: Path, stack: ExitStack) -> Seen:
    cluster = stack.enter_context(LocalCluster(2, 1, folder=folder / "ray"))
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    stack.callback(subprocess.run, ["umount", "-l", str(small)], check=True)
    bad = _odd_node(cluster, {"TMPDIR": str(small)})
    return _refused_then_forced(cluster, folder, bad, "temporary files: 0.00 GB free")


def _odd_node(cluster: LocalCluster, environment: Mapping[str, str]) -> str:
    """Have a node join that differs; its id."""
    known = {one["node_id"] for one in cluster.ask("nodes")}
    cluster.add_worker(environment=environment)
    cluster.wait_for_nodes(4)
    return next(one["node_id"] for one in cluster.ask("nodes") if one["node_id"] not in known)


def _refused_then_forced(cluster: LocalCluster, folder: Path, bad: str, why: str) -> Seen:
    doctor = subprocess.run(
        [sys.executable, "-m", "pmray", "doctor", str(folder / "tiny.yaml"), "--address", cluster.address],
        env=cluster.environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert doctor.returncode == 1 and why in " ".join(doctor.stdout.split()), doctor.stdout + doctor.stderr
    refused = start(cluster, folder)
    said = refused.end()
    assert refused.process.returncode == 1 and why in said, said
    forced = start(cluster, folder, "--force")
    ended_well(forced)
    actors = cluster.ask("actors")
    # What only steers may be anywhere; these open models, tokenizers and data.
    working = [one for one in actors if not one["class_name"].startswith(STEERING)]
    there = sorted({one["class_name"] for one in working if one["node_id"] == bad})
    assert working and not there, f"placed on the node that was to be left out: {there}"
    return Seen(forced, ["doctor and sweep exit 1", f"--force: {len(working)} working actors, none there"])


class NetworkCluster(LocalCluster):
    """Every node in a network namespace with an address of its own, joined by a bridge."""

    host = "10.77.0.1"

    def place(self, number: int) -> tuple[Sequence[str], Sequence[str]]:
        name, address = f"pmray{number}", f"10.77.0.{number + 1}"
        if number == 0:
            _ip("link add pmray-br type bridge")
            _ip("addr add 10.77.0.254/24 dev pmray-br")
            _ip("link set pmray-br up")
        _ip(f"netns add {name}")
        _ip(f"link add pmray-v{number} type veth peer name eth0 netns {name}")
        _ip(f"link set pmray-v{number} master pmray-br up")
        for command in (f"addr add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _ip(f"-n {name} {command}")
        return self.inside(number), ["--node-ip-address", address]

    def inside(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", f"pmray{number}"]

    def cut(self, number: int, seconds: float) -> None:
        """Take a node off the network for a while."""
        _ip(f"link set pmray-v{number} down")
        time.sleep(seconds)
        _ip(f"link set pmray-v{number} up")

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        self.remove()

    def remove(self) -> None:
        for number in range(len(self.workers) + 1):
            with suppress(subprocess.CalledProcessError):
                _ip(f"netns del pmray{number}")
        with suppress(subprocess.CalledProcessError):
            _ip("link del pmray-br")


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)


def networks_here() -> str | None:
    """Why this machine has no network namespaces to test with; None where it has."""
    if shutil.which("ip") is None:
        return "`ip` (iproute2) is not installed"
    try:
        _ip("netns add pmray-try")
        _ip("link add pmray-try-br type bridge")
        return None
    except subprocess.CalledProcessError as error:
        return f"no privilege for network namespaces ({error.stderr.decode().strip()})"
    finally:
        for command in ("netns del pmray-try", "link del pmray-try-br"):
            with suppress(subprocess.CalledProcessError):
                _ip(command)


@scenario("a node is cut off the network for 30 s (network namespaces, addresses of their own)")
def partition(folder: Path, stack: ExitStack) -> Seen:
    if why := networks_here():
        raise Skipped(why)
    cluster = stack.enter_context(NetworkCluster(3, 1, folder=folder / "ray"))
    sweep = start(cluster, folder, inside=cluster.inside(0))
    sweep.wait_for(1, "sweep")
    cluster.cut(2, 30)
    ended_well(sweep)
    return Seen(sweep, ["10.77.0.3 of 10.77.0.1 to .4 cut off", f"{cluster.nodes()} nodes at the end"])


@scenario("a node is cut off for 30 s while it trains with another one")
def partition_of_two(folder: Path, stack: ExitStack) -> Seen:
    if why := networks_here():
        raise Skipped(why)
    cluster = stack.enter_context(NetworkCluster(3, 1, folder=folder / "ray"))
    sweep = start(cluster, folder, inside=cluster.inside(0))
    address = _node_of_two_workers(cluster, sweep)
    cluster.cut(int(address.rpartition(".")[2]) - 1, 30)
    ended_well(sweep)
    return Seen(sweep, [f"{address} cut off", f"{cluster.nodes()} nodes at the end"])


def _node_of_two_workers(cluster: NetworkCluster, sweep: Sweep) -> str:
    """Address of a node with a worker of a group of two that has begun to train."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and sweep.process.poll() is None:
        # One state a second is kept: a young one tells of steps.
        workers = [one for one in cluster.ask("actors") if one["class_name"].startswith("RayTrainWorker")]
        there = [one["node_id"] for one in workers if one["state"] == "ALIVE"]
        states = (sweep.folder / "runs" / "tiny" / "states").glob("*.pt")
        if len(there) == 2 and any(time.time() - one.stat().st_mtime < 2 for one in states):
            return next(str(one["node_ip"]) for one in cluster.ask("nodes") if one["node_id"] == there[1])
    raise AssertionError(f"no two workers began to train: {sweep.end()[-1500:]}")


class Skipped(Exception):
    """A scenario that this machine cannot play."""


def verdict_of(folder: Path) -> dict:
    found: dict = json.loads((folder / "runs" / "tiny" / "verdict.json").read_text())
    return found


def check(seen: Seen, expected: dict) -> None:
    """The same verdict, and nothing finished was done again."""
    verdict = verdict_of(seen.sweep.folder)
    assert verdict["winner"] == expected["winner"], (verdict["winner"], expected["winner"])
    scores = {line["name"]: line["score"]["value"] for line in verdict["lines"]}
    for line in expected["lines"]:
        # Two workers round otherwise than one.
        assert abs(scores[line["name"]] - line["score"]["value"]) < 0.05, (line["name"], scores)
    done = Counter(one["key"] for one in seen.sweep.outcomes() if not one["may_pass"] and one["stage"] != "test")
    assert set(done.values()) == {1}, "an outcome was repeated"


@contextmanager
def no_orphans() -> Iterator[None]:
    """Nothing that was started in the block is left after it."""
    os.environ["PMRAY_FAULT"] = str(os.getpid())
    this = psutil.Process()
    before = {one.pid for one in psutil.process_iter()}
    yield
    ours = [one for one in psutil.process_iter() if one.pid not in before and one.pid != this.pid and _is_ours(one)]
    gone(ours, 30)


def _is_ours(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.environ().get("PMRAY_FAULT") == str(os.getpid())
    return False


def undisturbed(folder: Path) -> dict:
    """The verdict of a sweep on this machine alone, to which nothing happens."""
    write_spec(folder)
    ended_well(start(None, folder))
    return verdict_of(folder)


def play(name: str, expected: dict | None, base: Path) -> tuple[str, float, list[str], dict | None]:
    """One scenario: outcome, seconds, notes, and its verdict."""
    folder = base / name
    write_spec(folder)
    started = time.monotonic()
    try:
        with no_orphans():
            with ExitStack() as stack:
                seen = SCENARIOS[name](folder, stack)
            if expected is not None:
                check(seen, expected)
    except Skipped as why:
        return f"skipped: {why}", time.monotonic() - started, [], None
    except (AssertionError, TimeoutError, subprocess.SubprocessError) as error:
        return f"FAILED: {str(error)[-1500:]}", time.monotonic() - started, [], None
    return "same verdict, nothing repeated, no orphan", time.monotonic() - started, seen.notes, verdict_of(folder)


def main(names: Sequence[str]) -> int:
    console = Console(width=160)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    table = Table("scenario", "what", "outcome", "seconds", "notes", title="Faults of a fleet")
    failed = 0
    with TemporaryDirectory(prefix="pmray-fleet-", dir=os.environ.get("RAY_TMPDIR")) as base:
        expected = undisturbed(Path(base) / "reference")
        for name in names or SCENARIOS:
            outcome, seconds, notes, _ = play(name, expected, Path(base))
            failed += outcome.startswith("FAILED")
            console.print(f"{name}: {outcome} ({seconds:.0f} s)", markup=False)
            table.add_row(name, SCENARIOS[name].__doc__, outcome, f"{seconds:.0f}", "; ".join(notes))
    console.print(table)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
