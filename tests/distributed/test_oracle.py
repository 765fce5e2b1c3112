"""The cluster and ``jobs/mini.py``, which knows no cluster, must say the same of the same work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pmray
from pmray.selection.ledger import read_ledger
from tests.tiny import tiny_spec

pytestmark = pytest.mark.usefixtures("ray_cluster")

MINI = """
import json, runpy, sys
mini = runpy.run_path(sys.argv[1])
outcomes, verdict = mini["sweep"](mini["load_spec"](sys.argv[2]))
scores = {one.key: one.score for one in outcomes if one.status == "done"}
print(json.dumps({"scores": scores, "ray": "ray" in sys.modules}))
"""


def test_a_trial_on_the_cluster_scores_as_in_one_process(tmp_path):
    spec = tiny_spec(tmp_path, search={"trials": 2, "finalists": 1, "seeds": 1, "rank_rows": 60, "rungs": 0})
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(spec))
    script = Path(__file__).parents[2] / "jobs" / "mini.py"
    told = subprocess.run(
        [sys.executable, "-c", MINI, str(script), str(path)],
        # A trial of one CPU computes with one thread; more would round sums differently.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    alone = yaml.safe_load(told.stdout.strip().splitlines()[-1])
    assert not alone["ray"]
    pmray.sweep(pmray.load_spec(path))
    ledger = read_ledger(tmp_path / "runs" / "tiny" / "ledger.jsonl")
    together = {one.key: one.score for one in ledger if one.stage in ("sweep", "final") and one.status == "done"}
    assert set(together) == set(alone["scores"])
    assert together == pytest.approx(alone["scores"], abs=1e-9)
