"""The cheapest of the fleet's faults; ``python -m tests.faults.fleet`` plays all."""

import os

import pytest

from tests.faults.fleet import play, undisturbed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "PMRAY_FLEET_TESTS" not in os.environ,
        reason="takes many minutes; PMRAY_FLEET_TESTS=1 runs it",
    ),
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("reference"))


@pytest.mark.parametrize("name", ["node-lost", "wrong-version"])
def test_a_fleet_with_a_fault_comes_to_the_same_verdict(name, expected, tmp_path):
    outcome, *_ = play(name, expected, tmp_path)
    assert outcome == "same verdict, nothing repeated, no orphan"
