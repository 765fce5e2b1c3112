"""What `pmray submit` sends: the command, a spec whose paths mean the same elsewhere, and the environment."""

import sys
import types
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pmray.cli import app
from pmray.errors import ClusterError, SpecError, UnknownName
from pmray.spec import Spec
from pmray.submission import anchored, variables


def spec(**changes):
    values = {"name": "one", "task": "text-classification", "data": {"train": "a.csv"}, "candidates": ["a/bert"]}
    return Spec.model_validate({**values, **changes})


def test_relative_paths_are_made_absolute_as_a_command_here_reads_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    train = ["a.csv", "${DATA}/b.csv", "s3://bucket/c.csv", "hub:d"]
    found = anchored(
        spec(
            data={"train": train, "validation": 0.1, "test": "e/*.csv"},
            candidates=["a/bert", "models/mine", "package:x/y"],
            registry="sqlite:///reg.db",
        ),
        tmp_path,
    )  # fmt: skip
    assert found.data.train == [f"{tmp_path}/a.csv", "/data/b.csv", "s3://bucket/c.csv", "hub:d"]
    assert (found.data.validation, found.data.test) == (0.1, f"{tmp_path}/e/*.csv")
    assert [one.model for one in found.candidates] == ["a/bert", f"{tmp_path}/models/mine", "package:x/y"]
    assert [one.name for one in found.candidates] == ["bert", "mine", "x"]
    assert (found.storage, found.registry) == (f"{tmp_path}/runs", f"sqlite:///{tmp_path}/reg.db")
    remote = spec(storage="s3://bucket/runs", registry="postgresql://host/db")
    assert (anchored(remote, tmp_path).storage, anchored(remote, tmp_path).registry) == (
        remote.storage,
        remote.registry,
    )
    sent_along = anchored(spec(), tmp_path, everything=False)
    assert (sent_along.data.train, sent_along.storage) == ("a.csv", f"{tmp_path}/runs")


def test_the_environment_is_what_was_named_and_what_a_run_needs(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("MINE", "1")
    found = variables(["MINE", "OTHER=2=3"])
    assert {"HF_TOKEN": "secret", "MINE": "1", "OTHER": "2=3"}.items() <= found.items()
    with pytest.raises(ClusterError, match="--env NOT_SET: it is not set here"):
        variables(["NOT_SET"])


@pytest.fixture
def sent(monkeypatch, tmp_path):
    """What the command line hands to Ray's side, which these tests do not have."""
    calls = []

    def submit(command, arguments, **options):
        calls.append((command, arguments, options))
        return "job-1"

    jobs = types.ModuleType("pmray.distributed.jobs")
    jobs.submit, jobs.Environment = submit, lambda *given: given
    monkeypatch.setitem(sys.modules, "pmray.distributed.jobs", jobs)
    monkeypatch.setattr("pmray.distributed.jobs", jobs, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(yaml.safe_dump(spec().model_dump(mode="json", exclude_defaults=True)))
    return calls


def test_options_of_the_command_go_along_and_those_of_submit_stay(sent):
    told = CliRunner().invoke(
        app,
        ["submit", "fit", "spec.yaml", "--candidate", "bert", "--force", "--set", "search.trials=3", "--address",
         "http://h:8265", "--cpus", "1"],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    (command, arguments, options) = sent[0]
    assert (command, arguments, options["address"]) == ("fit", ["--candidate", "bert", "--force"], "http://h:8265")
    assert options["spec"].search.trials == 3
    assert options["environment"][3] == 1
    assert "job-1" in told.output


def test_commands_without_a_spec_are_sent_as_they_are(sent):
    told = CliRunner().invoke(app, ["submit", "watch", "reviews", "--rule", "min_labels=5"])
    assert told.exit_code == 0, told.output
    assert sent[0][:2] == ("watch", ["reviews", "--rule", "min_labels=5"])


def test_what_cannot_be_sent_is_said_before_anything_is(sent):
    for arguments, kind, message in (
        (["swep", "spec.yaml"], UnknownName, "Did you mean 'sweep'"),
        (["sweep"], SpecError, "needs a spec file"),
        (["sweep", "spec.yaml", "--working-dir", "nowhere"], SpecError, "is not a folder"),
        (["sweep", "spec.yaml", "--pip", "nowhere.txt"], SpecError, "is not a file"),
    ):
        told = CliRunner().invoke(app, ["submit", *arguments])
        assert isinstance(told.exception, kind) and message in str(told.exception)
    assert sent == []
