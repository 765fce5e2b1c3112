"""What `pmray deploy render` writes: held against KubeRay's and Kubernetes' own schemas, and against promtool."""

import copy
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jsonschema import Draft7Validator

import pmray
from pmray.deployment.manifests import Options
from pmray.deployment.render import render
from pmray.errors import SpecError

ROOT = Path(__file__).parents[2]
KUBERAY = {
    "RayJob": "ray.io_rayjobs.yaml",
    "RayService": "ray.io_rayservices.yaml",
    "RayCluster": "ray.io_rayclusters.yaml",
}


def spec(**changes):
    values = {
        "name": "Reviews_1",
        "task": "text-classification",
        "data": {"train": "s3://bucket/train.parquet"},
        "candidates": [
            {"model": "bert-base-uncased"},
            {"model": "roberta-base", "resources": {"workers": 2, "cpus_per_worker": 3, "gpus_per_worker": 1}},
        ],
        "storage": "s3://bucket/runs",
        "registry": "postgresql://registry/mlflow",
        "serve": {"replicas": [2, 6], "cpus": 2},
    }
    return pmray.Spec.model_validate({**values, **changes})


def strict(schema):
    """A structural schema as `kubectl --validate=strict` reads it: fields that it does not name are mistakes."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    if "properties" in schema and schema.get("type") == "object":
        free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
        made.setdefault("additionalProperties", bool(free))
    return made


@cache
def validator(file, version):
    # A crd has two megabytes: the parser in C reads it in a tenth of the time.
    crd = yaml.load(file.read_text(), yaml.CSafeLoader)
    schema = next(one["schema"] for one in crd["spec"]["versions"] if one["name"] == version)["openAPIV3Schema"]
    schema = strict(schema)
    # The API server knows these fields, and the CRD leaves them open.
    schema["properties"]["metadata"] = {"type": "object"}
    return Draft7Validator(schema)


def mistakes(manifest, folder):
    """What KubeRay's CRD says against an object."""
    checks = validator(folder / KUBERAY[manifest["kind"]], manifest["apiVersion"].rpartition("/")[2])
    return [f"{error.json_path}: {error.message}" for error in checks.iter_errors(manifest)]


@pytest.fixture(scope="module")
def schemas(shared):
    folder = shared / "schemas" / "kuberay"
    if not folder.is_dir():
        pytest.skip("PMRAY_SHARED holds no schemas of KubeRay")
    return folder


def objects(files):
    return [one for name, text in files.items() if name.endswith(".yaml") and name != "alerts.yaml"
            for one in yaml.safe_load_all(text)]  # fmt: skip


@pytest.mark.parametrize("storage", ["s3://bucket/runs", "/mnt/pmray"])
def test_kuberay_takes_what_is_rendered(schemas, storage):
    made = objects(render(spec(storage=storage), "kuberay", Options(spot={"node.kubernetes.io/lifecycle": "spot"})))
    ours = [one for one in made if one["kind"] in KUBERAY]
    assert {one["kind"] for one in ours} == set(KUBERAY)
    for one in ours:
        assert mistakes(one, schemas) == []
        assert one["metadata"]["name"].startswith("reviews-1-")


def test_a_broken_manifest_is_caught(schemas):
    made = objects(render(spec(), "kuberay"))
    job = next(one for one in made if one["kind"] == "RayJob")
    for path, value, told in (
        (("entrypiont",), "python", "entrypiont"),
        (("shutdownAfterJobFinishes",), "yes", "'yes' is not of type 'boolean'"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"), "8", "'8' is not of type 'integer'"),
        (("rayClusterSpec", "authOptions", "mode"), "tokn", "'tokn' is not one of"),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "resorces"), {}, "resorces"),
    ):
        broken = copy.deepcopy(job)
        place = broken["spec"]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        assert any(told in one for one in mistakes(broken, schemas)), path


def test_kubernetes_takes_the_rest_of_what_is_rendered():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    made = objects(render(spec(storage="/mnt/pmray"), "kuberay"))
    rest = [one for one in made if one["kind"] not in KUBERAY]
    assert {one["kind"] for one in rest} == {"ConfigMap", "CronJob", "NetworkPolicy", "PodDisruptionBudget"}
    job = next(one for one in made if one["kind"] == "RayJob")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "head", **head["metadata"]}, "spec": head["spec"]}
    for one in [*rest, pod]:
        kubernetes_validate.validate(one, "1.31", strict=True)
    broken = {**pod, "spec": {**pod["spec"], "restartPolicies": "Never"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


def test_pods_are_nobody_special_and_find_what_they_need():
    made = objects(render(spec(storage="/mnt/pmray"), "kuberay", Options(spot={"pool": "spot"}, max_workers=5)))
    job = next(one for one in made if one["kind"] == "RayJob")["spec"]["rayClusterSpec"]
    group = job["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["maxReplicas"]) == (0, 5)
    assert group["template"]["spec"]["nodeSelector"] == {"pool": "spot"}
    assert "nodeSelector" not in job["headGroupSpec"]["template"]["spec"]
    container = group["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"cpu": "3", "memory": "4Gi", "nvidia.com/gpu": "1"}
    assert {"name": "storage", "mountPath": "/mnt/pmray"} in container["volumeMounts"]
    service = next(one for one in made if one["kind"] == "RayService")["spec"]
    endpoint = service["rayClusterConfig"]["workerGroupSpecs"][0]
    assert (endpoint["minReplicas"], endpoint["maxReplicas"]) == (2, 6)
    secret = endpoint["template"]["spec"]["containers"][0]["envFrom"][0]["secretRef"]
    assert secret == {"name": "reviews-1-secrets", "optional": False}
    for template in (job["headGroupSpec"]["template"], group["template"], endpoint["template"]):
        assert template["spec"]["securityContext"]["runAsNonRoot"]
    config = yaml.safe_load(service["serveConfigV2"])["applications"][0]
    assert config["args"]["model"] == "Reviews_1@champion"
    assert pmray.spec_from(yaml.safe_load(made[0]["data"]["spec.yaml"])) == spec(storage="/mnt/pmray")


def test_what_no_pod_can_find_is_refused():
    with pytest.raises(SpecError, match="relative to this folder; pods need an absolute one"):
        render(spec(storage="runs"), "kuberay")
    with pytest.raises(SpecError, match=r"rows.csv: relative"):
        render(spec(data={"train": "rows.csv"}), "kuberay")
    with pytest.raises(SpecError, match="Did you mean 'kuberay'"):
        render(spec(), "kubray")


def metrics_in(files, prefix):
    """Names of all metrics with that prefix that the rules and the dashboard ask for."""
    rules = yaml.safe_load(files["alerts.yaml"])["groups"][0]["rules"]
    panels = json.loads(files["dashboard.json"])["panels"]
    asked = [rule["expr"] for rule in rules] + [one["expr"] for panel in panels for one in panel["targets"]]
    assert len(asked) > 10
    return {name for one in asked for name in re.findall(rf"\b{prefix}_[a-z_]+", one)}


def test_the_endpoint_has_every_metric_that_is_asked_for():
    from pmray.serving.live import _Gauges
    from pmray.serving.metrics import ServingMetrics

    writer = SimpleNamespace(waiting=0, dropped=0, failure=None)
    live = _Gauges(SimpleNamespace(writer=writer, skipped=0, seen={})).collect()
    families = [*ServingMetrics().registry.collect(), *live]
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    there = {f"{one.name}{suffix}" for one in families for suffix in suffixes[one.type]}
    assert metrics_in(render(spec(), "serve"), "pmray") <= there


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus)")
def test_promtool_takes_the_rules_and_not_broken_ones(tmp_path):
    rules = tmp_path / "alerts.yaml"
    rules.write_text(render(spec(), "serve")["alerts.yaml"])
    done = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rules.write_text(rules.read_text().replace("sum(rate(", "sum(rate((", 1))
    assert subprocess.run(["promtool", "check", "rules", rules], capture_output=True, check=False).returncode == 1


def test_the_examples_are_what_the_spec_renders_today(tmp_path):
    from typer.testing import CliRunner

    from pmray.cli import app

    for target in ("kuberay", "serve"):
        arguments = [str(ROOT / "jobs/specs/hub_sst2.yaml"), "--target", target, "--out", str(tmp_path)]
        told = CliRunner().invoke(app, ["deploy", "render", *arguments])
        assert told.exit_code == 0, told.output
    for file in tmp_path.iterdir():
        folder = "cluster" if file.name == "raycluster.yaml" else "deploy/example"
        example = ROOT / folder / file.name
        assert file.read_text() == example.read_text(), f"render deploy/example/{file.name} again"
