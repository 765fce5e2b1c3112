"""A host that fails what others run well costs a few trials, and loses none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import tiny_spec

pytestmark = pytest.mark.slow


def test_a_host_that_fails_everything_costs_a_few_starts_and_no_trial(tmp_path):
    spec = tiny_spec(tmp_path, search={"trials": 7, "finalists": 1, "seeds": 2, "rank_rows": 60, "rungs": 0})
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(spec))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.bad_host", str(path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["trials"] == ["done"] * 7
    assert told["fits"] == ["done"] * 2
    assert 3 <= told["retried"] <= 5
    assert told["avoided"] == [told["bad"]]
    assert "gets no more trials: it failed 3 in a row that others ran well" in done.stderr
