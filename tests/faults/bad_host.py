"""Sweep on a cluster of a head and two nodes of one CPU each, one of which fails all its trials at once."""

import json
import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

import pmray
from pmray.distributed.cluster import SETTINGS, avoided_nodes

BAD = "PMRAY_TEST_BAD_HOST"


def break_trials() -> None:
    """Run in every worker process: on the bad node, all fits fail."""
    from pmray.training import trial

    fit = trial._fit

    def fit_or_fail(*rest):
        if ray.get_runtime_context().get_node_id() == Path(os.environ[BAD]).read_text():
            raise RuntimeError("the driver of this device is too old")
        return fit(*rest)

    trial._fit = fit_or_fail


def main(spec_path: str) -> None:
    spec = pmray.load_spec(spec_path)
    told = Path(spec_path).with_name("bad")
    os.environ.update(SETTINGS | {BAD: str(told)})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    hook = {"worker_process_setup_hook": "tests.faults.bad_host.break_trials"}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=hook)
    cluster.wait_for_nodes()
    bad = next(one["NodeID"] for one in ray.nodes() if one["Resources"].get("CPU"))
    told.write_text(bad)
    swept = pmray.sweep(spec)
    print(
        json.dumps(
            {
                "bad": bad,
                "avoided": avoided_nodes(),
                "trials": [one.status for one in swept.outcomes if one.stage == "sweep"],
                "fits": [one.status for one in swept.outcomes if one.stage == "final"],
                "retried": sum(len(one.facts.get("retried_after", [])) for one in swept.outcomes),
            }
        )
    )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
