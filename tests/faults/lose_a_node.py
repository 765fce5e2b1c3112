"""Fit on a cluster of a head and two nodes of one CPU each, and kill one of these in the middle.

With ``--announced`` the cluster says so first, as a cloud does that wants its spot instance back.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

import pmray
from pmray.distributed.cluster import SETTINGS
from tests.faults.test_kill import titled


def training() -> list[psutil.Process]:
    """Workers of the fit that are at it."""
    return [one for one in psutil.Process().children(recursive=True) if titled(one, "ray::RayTrainWorker")]


def announce(address: str, node_id: str) -> None:
    """Tell the cluster that a node will be taken away."""
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the spot instance is wanted back"]
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node_id]
    subprocess.run([*command, *reason, "--deadline-remaining-seconds", "300"], check=True, capture_output=True)


def main(spec_path: str, *options: str) -> None:
    os.environ.update(SETTINGS, RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="1")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    spec = pmray.load_spec(spec_path)
    states = Path(spec.storage) / spec.name / "states"

    def kill() -> None:
        if "--announced" in options:
            while len(training()) < 2:
                time.sleep(0.1)
            announce(cluster.address, nodes[1].node_id)
        while not any(states.rglob("checkpoint_manager_snapshot.json")):
            time.sleep(0.05)
        cluster.remove_node(nodes[1], allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    pmray.fit(spec, "bert", seed=3)
    killer.join(10)
    print(json.dumps({"nodes_left": sum(node["Alive"] for node in ray.nodes())}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
