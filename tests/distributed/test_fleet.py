"""A cluster of several raylets with token authentication, on which jobs run whose storage is an object store."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from pyarrow import fs

from pmray import storage
from pmray.registry import find
from tests.tiny import tiny_bundle, tiny_spec

sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))
from local import LocalCluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "PMRAY_FLEET_TESTS" not in os.environ,
        reason="takes many minutes; PMRAY_FLEET_TESTS=1 runs it",
    ),
]


class Fleet:
    """Two workers that share nothing but an object store: each has local copies of its own."""

    def __init__(self, folder, object_store):
        self.folder = folder
        self.aws = {
            "AWS_ENDPOINT_URL": object_store,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        host = object_store.removeprefix("http://")
        options = {"endpoint_override": host, "scheme": "http", "region": "us-east-1", "access_key": "test"}
        fs.S3FileSystem(**options, secret_key="test", allow_bucket_creation=True).create_dir("fleet")
        self.cluster = LocalCluster(
            0, 1, folder=folder / "ray", environment={**self.aws, storage.COPIES: str(folder / "head")}
        )
        spec = tiny_spec(folder, storage="s3://fleet/runs", registry=f"sqlite:///{folder / 'registry.db'}")
        spec["search"] |= {"trials": 4, "rungs": 0}
        # Two workers, and one node has one CPU: the files of a fit go from machine to machine.
        spec["candidates"][1]["resources"] = {"workers": 2}
        self.spec = folder / "tiny.yaml"
        self.spec.write_text(yaml.safe_dump(spec))

    def environment(self, **changes):
        mine = {**self.cluster.environment, storage.COPIES: str(self.folder / "laptop")}
        return {key: value for key, value in {**mine, **changes}.items() if value is not None}

    def pmray(self, *arguments, **changes):
        command = [sys.executable, "-m", "pmray", *map(str, arguments)]
        return subprocess.run(
            command, env=self.environment(**changes), capture_output=True, text=True, timeout=300, check=False
        )


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, object_store):
    fleet = Fleet(tmp_path_factory.mktemp("fleet"), object_store)
    with fleet.cluster as cluster:
        for number in (1, 2):
            cluster.add_worker(environment={storage.COPIES: str(fleet.folder / f"worker-{number}")})
        cluster.wait_for_nodes(3)
        yield fleet


def test_doctor_finds_nothing_wrong_with_equal_nodes(fleet):
    done = fleet.pmray("doctor", fleet.spec, "--address", fleet.cluster.address, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert len(found["nodes"]) == 3
    assert not [one for one in found["problems"] if one["level"] == "error"]
    left = subprocess.run(
        [sys.executable, "-c", "from pmray.storage import names_in; print(names_in('s3://fleet/runs'))"],
        env=fleet.environment(), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert left.strip() == "[]"


EVERY_VERB = """
import sys
from typer.testing import CliRunner
from pmray.cli import app
spec, texts, bundle, address, dashboard = sys.argv[1:]
at, to = ["--address", address], ["--address", dashboard]
for verb in (["doctor", *at], ["plan", spec, *at], ["rank", spec, *at], ["sweep", spec, *at],
             ["fit", spec, "--candidate", "bert", *at], ["pretrain", texts, *at],
             ["serve", bundle, "--port", "0", *at], ["submit", "sweep", spec, *to], ["jobs", *to],
             ["jobs", *at], ["logs", "x", *to], ["stop", "x", *to]):
    told = CliRunner().invoke(app, verb)
    print(verb[0], "|", type(told.exception).__name__, "|", told.exception)
"""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": None}, "asks for a token, and none was sent"),
        ({"RAY_AUTH_TOKEN": "wrong"}, "refuses the token of this process"),
    ],
)
def test_without_the_token_every_verb_fails_with_one_sentence(fleet, tmp_path, changes, sentence):
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump({**yaml.safe_load(fleet.spec.read_text()), "storage": str(tmp_path / "runs")}))
    texts, told = tmp_path / "texts.yaml", yaml.safe_load(spec.read_text())
    models = [{"model": one["model"], "name": one["name"]} for one in told["candidates"]]
    data = {"train": told["data"]["train"]}
    shown = {"task": "pretraining", "data": data, "candidates": models, "storage": told["storage"]}
    texts.write_text(yaml.safe_dump(shown))
    bundle = tiny_bundle(tmp_path / "bundle")
    command = [sys.executable, "-c", EVERY_VERB, spec, texts, bundle, fleet.cluster.address, fleet.cluster.dashboard]
    environment = fleet.environment(HOME=str(tmp_path), **changes)
    command = [str(one) for one in command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    told = [line.split(" | ") for line in done.stdout.splitlines() if " | " in line]
    assert len(told) == 12, done.stdout + done.stderr
    for verb, kind, message in told:
        assert kind == "ClusterError" and sentence in message, (verb, kind, message)


def test_a_job_outlives_its_submitter_and_leaves_its_result_in_the_object_store(fleet):
    command = ["submit", "sweep", fleet.spec, "--address", fleet.cluster.dashboard, "--follow", "--id", "one"]
    submitter = subprocess.Popen(
        [sys.executable, "-m", "pmray", *map(str, command)], env=fleet.environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    ledger = fleet.folder / "head" / "s3" / "fleet" / "runs" / "tiny" / "ledger.jsonl"
    until = time.monotonic() + 200
    while not (ledger.exists() and '"sweep"' in ledger.read_text()):
        assert time.monotonic() < until and submitter.poll() is None
        time.sleep(0.1)
    submitter.kill()
    submitter.wait()
    done = fleet.pmray("logs", "one", "--follow", "--json", "--address", fleet.cluster.dashboard)
    assert done.returncode == 0, done.stderr[-3000:]
    ended = json.loads(done.stdout)
    assert (ended["status"], ended["command"], ended["run"]) == ("SUCCEEDED", "sweep", "tiny")
    assert "winner" in done.stderr and "sweep" in done.stderr
    # Another machine finds the result in the store and the registry alone.
    os.environ |= {**fleet.aws, storage.COPIES: str(fleet.folder / "elsewhere")}
    try:
        version = find("tiny@champion", f"sqlite:///{fleet.folder / 'registry.db'}")
        assert version.folder == fleet.folder / "elsewhere" / "s3" / "fleet" / "runs" / "tiny" / "bundle"
        assert (version.folder / "model.safetensors").is_file()
        names = storage.names_in("s3://fleet/runs/tiny")
    finally:
        for name in (*fleet.aws, storage.COPIES):
            del os.environ[name]
    assert {"bundle", "ledger.jsonl", "predictions", "verdict.json"} <= set(names)
    assert not {"checkpoints", "states", "claim.json"} & set(names)


def test_a_stopped_job_is_gone_on_with_and_repeats_nothing(fleet):
    more = ["--set", "name=two", "--set", "search.trials=6", "--address", fleet.cluster.dashboard]
    assert fleet.pmray("submit", "sweep", fleet.spec, "--id", "two", *more).returncode == 0
    ledger = fleet.folder / "head" / "s3" / "fleet" / "runs" / "two" / "ledger.jsonl"
    until = time.monotonic() + 200
    while not (ledger.exists() and '"sweep"' in ledger.read_text()):
        assert time.monotonic() < until
        time.sleep(0.1)
    stopped = fleet.pmray("stop", "two", "--address", fleet.cluster.dashboard, "--json")
    assert json.loads(stopped.stdout)["status"] == "STOPPED", stopped.stderr
    unknown = fleet.pmray("logs", "tow", "--address", fleet.cluster.dashboard)
    assert (unknown.returncode, "did you mean 'two'?" in unknown.stderr) == (1, True)
    again = fleet.pmray("submit", "sweep", fleet.spec, "--follow", *more)
    assert again.returncode == 0, again.stderr[-3000:]
    keys = [json.loads(line)["key"] for line in ledger.read_text().splitlines() if '"may_pass":false' in line]
    assert len(keys) == len(set(keys))
    listed = json.loads(fleet.pmray("jobs", "--json", "--address", fleet.cluster.dashboard).stdout)
    assert [one["status"] for one in listed][:2] == ["SUCCEEDED", "STOPPED"]


def test_several_nodes_refuse_a_storage_that_is_not_shared(fleet, tmp_path):
    """A folder that the other nodes see as another one: what a local path is on real machines."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    hidden = tmp_path / "runs"
    hidden.mkdir()
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump({**yaml.safe_load(fleet.spec.read_text()), "storage": str(hidden)}))
    # In this process's namespace the folder is a disk of its own, that no node has.
    inside = f'mount -t tmpfs tmpfs {hidden} && exec {sys.executable} -m pmray sweep {spec} --address "$0"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside, fleet.cluster.address],
        env=fleet.environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-2000:]
    assert "is missing here, or is not the folder that the driver sees" in done.stderr
    assert "mount the same folder at the same path on every node, or use s3://" in done.stderr
