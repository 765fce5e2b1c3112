"""The files of cluster/ and the Serve config, held against Ray's own schemas; no cluster is started."""

import copy
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import ray
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

import pmray
from pmray.deployment.render import render

CLUSTER = Path(__file__).parents[2] / "cluster"


@pytest.mark.parametrize("name", ["onprem", "aws", "gcp"])
def test_ray_s_launcher_takes_the_files(name):
    config = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    validate_config(prepare_config(copy.deepcopy(config)))
    commands = " ".join([*config["head_start_ray_commands"], *config["worker_start_ray_commands"]])
    assert commands.count("RAY_AUTH_MODE=token") == 2
    assert "--dashboard-host=127.0.0.1" in commands
    assert "~/.ray/auth_token" in config["file_mounts"]
    if name != "onprem":
        types = config["available_node_types"]
        assert types[config["head_node_type"]]["resources"] == {"CPU": 0}, "the head holds no trial"
        assert "spot" in yaml.safe_dump(types["gpu-spot"]).lower()
        assert config["idle_timeout_minutes"] and config["max_workers"] <= 8
    broken = {**config, "max_wrokers": 3}
    with pytest.raises(ValidationError, match="max_wrokers"):
        validate_config(prepare_config(broken))


def test_ray_serve_takes_the_config_and_not_a_broken_one():
    spec = pmray.Spec.model_validate(
        {"task": "text-classification", "data": {"train": "a"}, "candidates": ["b"], "storage": "/mnt/pmray"}
    )
    config = yaml.safe_load(render(spec, "serve")["serve.yaml"])
    ServeDeploySchema.model_validate(config)
    config["applications"][0]["import_path"] = "pmray"
    with pytest.raises(ValueError, match="import_path"):
        ServeDeploySchema.model_validate(config)


@pytest.mark.parametrize(("shell", "name"), [("sh", "local.sh"), ("bash", "slurm.sh")])
def test_shells_can_read_the_scripts(shell, name):
    assert subprocess.run([shell, "-n", CLUSTER / name], check=False).returncode == 0


def test_ray_exports_every_metric_that_dashboard_and_alerts_ask_for(ray_cluster):
    from tests.unit.test_deployment import metrics_in, spec

    asked = metrics_in(render(spec(), "serve"), "ray")
    assert len(asked) > 3
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    told, until = "", time.monotonic() + 60
    # A node tells of itself every few seconds.
    while not all(f"\n{name}{{" in told for name in asked) and time.monotonic() < until:
        time.sleep(0.5)
        told = httpx.get(url, timeout=10).text
    assert [name for name in asked if f"\n{name}{{" not in told] == []
