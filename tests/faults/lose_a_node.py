"""Fit on a cluster of a head and two nodes of one CPU each, and kill one of these in the middle."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import pmray
from pmray.distributed.cluster import SETTINGS


def main(spec_path: str) -> None:
    os.environ.update(SETTINGS)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    spec = pmray.load_spec(spec_path)
    states = Path(spec.storage) / spec.name / "states"

    def kill() -> None:
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
    main(sys.argv[1])
