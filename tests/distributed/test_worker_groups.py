"""What becomes of workers that do not find each other."""

import time

import pytest
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.placement_group import placement_group_table

from pmray.distributed.torch_group import INTERFACE, NodeAddresses
from pmray.selection.failures import cause_of

pytestmark = pytest.mark.slow


def test_workers_that_do_not_find_each_other_give_their_place_back(ray_cluster, tmp_path):
    wrong = {"env_vars": {INTERFACE: "nosuchcard"}}
    trainer = TorchTrainer(
        lambda: None,
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        torch_config=NodeAddresses(),
        run_config=RunConfig(
            storage_path=str(tmp_path),
            worker_runtime_env=wrong,
            failure_config=FailureConfig(controller_failure_limit=0),
        ),
    )
    with pytest.raises(ray.train.TrainingFailedError) as caught:
        trainer.fit()
    assert "nosuchcard" in str(caught.value)
    assert cause_of("failed", str(caught.value)) == "machine", "another place may do"
    until = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < until:
        time.sleep(0.2)
    assert {one["state"] for one in placement_group_table().values()} == {"REMOVED"}
    assert ray.available_resources()["CPU"] == 2
