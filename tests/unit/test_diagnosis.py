"""Places of trials and problems of nodes: arithmetic on plain facts."""

import pytest

from pmray.diagnosis import MUST_AGREE, SHOULD_AGREE, Diagnosis, NodeFacts, diagnose
from pmray.distributed import probe
from pmray.errors import ClusterError
from pmray.placement import Node, check_memory, places, workers_on
from pmray.report.cluster import doctor_table
from pmray.spec import Resources

ASK = {"packages": [*MUST_AGREE, *SHOULD_AGREE], "storage": None, "mark": "m", "said": "s", "models": {}, "hosts": {},
       "gpus": False}  # fmt: skip


def told(**changes):
    healthy = {
        "python": "3.11",
        "versions": {"pmray": "1", "ray": "2.60.0", "torch": "2.9.0+cpu", "transformers": "5.1", "numpy": "2.1"},
        "memory_free": 8e9, "memory": 16e9, "temporary_free": 1e12, "problems": {}, "time": 0.0,
    }  # fmt: skip
    return {**healthy, **changes}


def node(address="b", skew=0.0, **changes):
    return NodeFacts(f"id-{address}", address, 2, 0, told(**changes), skew=skew)


def test_equal_nodes_have_no_problems_and_gpu_builds_are_equal():
    gpu = node("gpu", versions={**told()["versions"], "torch": "2.9.0+cu128"})
    assert diagnose([node("a"), gpu], told()) == []


@pytest.mark.parametrize(
    ("bad", "level", "what"),
    [
        (node(python="3.12"), "error", "Python 3.12, but the driver has 3.11"),
        (node(versions={**told()["versions"], "transformers": "4.9"}), "error", "transformers 4.9, but"),
        (node(versions={**told()["versions"], "pmray": None}), "error", "pmray is not installed"),
        (node(versions={**told()["versions"], "numpy": "1.26"}), "warning", "numpy 1.26"),
        (node(memory_free=1e8), "error", "memory: 0.10 GB free"),
        (node(memory_free=1e9), "warning", "memory: 1.00 GB free"),
        (node(disk_free=1e8), "error", "storage: 0.10 GB free"),
        (node(skew=-8), "warning", "its clock is 8 s behind"),
        (node(skew=900), "error", "its clock is 900 s ahead"),
        (node(problems={"storage": "FileNotFoundError: /x"}), "error", "storage: FileNotFoundError: /x"),
        (node(problems={"model bert": "no such folder"}), "error", "model bert: no such folder"),
        (node(problems={"port of 10.0.0.1": "refused"}), "error", "port of 10.0.0.1"),
        (NodeFacts("id-b", "b", 2, 0, None, "gone"), "error", "no answer (gone)"),
    ],
)  # fmt: skip
def test_each_problem_is_told_with_a_fix(bad, level, what):
    problems = diagnose([node("a"), bad], told())
    assert [(one.level, one.where) for one in problems] == [(level, "b")]
    assert what in problems[0].what
    assert len(problems[0].fix) > 10
    found = Diagnosis("x:1", (node("a"), bad), tuple(problems))
    assert found.bad_nodes == (("id-b",) if level == "error" else ())
    doctor_table(found)


def test_errors_come_first():
    problems = diagnose([node("a", memory_free=1e9), node("b", memory_free=1e7)], told())
    assert [one.level for one in problems] == ["error", "warning"]


def test_the_probe_tells_what_is_here(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "driver").write_text("s")
    (tmp_path / "model").mkdir()
    models = {"here": str(tmp_path / "model"), "gone": str(tmp_path / "none"), "package": "package:json/x"}
    found = probe.probe({**ASK, "storage": str(tmp_path), "models": models, "hosts": {"port of x": ("127.0.0.1", 1)}})
    assert found["versions"]["pmray"] and found["memory_free"] > 0 and found["disk_free"] > 0
    assert set(found["problems"]) == {"model gone", "port of x"}
    assert [file.name for file in (tmp_path / "m").iterdir()] == ["driver"], "it cleans up"


def test_the_probe_tells_another_folder_from_the_driver_s(tmp_path):
    assert "is missing here" in probe.probe({**ASK, "storage": str(tmp_path)})["problems"]["storage"]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "driver").write_text("of somebody else")
    assert "something else" in probe.probe({**ASK, "storage": str(tmp_path)})["problems"]["storage"]


NODES = (Node("1", "big", 8, 1), Node("2", "small", 2, 0), Node("3", "small too", 2, 0))


@pytest.mark.parametrize(
    ("demand", "expected"),
    [
        ({}, 12),
        ({"cpus_per_worker": 2}, 6),
        ({"cpus_per_worker": 3}, 2),
        ({"workers": 2, "cpus_per_worker": 2}, 3),
        ({"gpus_per_worker": 0.5}, 2),
        ({"workers": [2, 8], "cpus_per_worker": 4}, 1),
    ],
)
def test_trials_are_counted_node_by_node(demand, expected):
    assert places("one", Resources(**demand), NODES) == expected


@pytest.mark.parametrize(
    ("demand", "told"),
    [
        ({"workers": 64, "cpus_per_worker": 2}, r"64 workers x 2 CPUs = 128, but the cluster has 12 on 3 node"),
        ({"gpus_per_worker": 2}, r"1 workers x 2 GPUs = 2, but the cluster has 1"),
        ({"cpus_per_worker": 10}, r"room for 0 \(big: 0, small: 0, small too: 0\)"),
        ({"workers": 3, "cpus_per_worker": 4}, r"room for 2 \(big: 2"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_arithmetic(demand, told):
    with pytest.raises(ClusterError, match=told):
        places("one", Resources(**demand), NODES)


def test_a_model_that_no_node_can_hold_is_refused_with_the_arithmetic():
    small = [Node("1", "a", 8, 0, memory=10**10), Node("2", "b", 8, 0, memory=8 * 10**9)]
    check_memory("fits", 6 * 10**8, Resources(), small)
    with pytest.raises(ClusterError, match=r"16.0 GB a worker \(1000 M parameters x 16 bytes\), but .* 10.0 GB"):
        check_memory("large", 10**9, Resources(workers=2), small)
    check_memory("adapters", 10**9, Resources(), small, frozen=True)
    check_memory("sharded", 10**9, Resources(workers=2, shard=True), small)
    check_memory("on GPUs, whose memory Ray does not know", 10**9, Resources(gpus_per_worker=1), small)


def test_a_third_of_a_gpu_fits_three_times():
    assert workers_on(Node("", "", 3, 1), Resources(gpus_per_worker=1 / 3)) == 3
