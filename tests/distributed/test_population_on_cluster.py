"""Population based training, on a real cluster."""

import json

import pytest

import pmray
from pmray.selection.ledger import read_ledger
from pmray.selection.population import born
from pmray.spec import Recipe
from tests.tiny import tiny_spec

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]


def test_variants_take_the_place_of_the_worst_and_are_recipes_like_any_other(tmp_path):
    spec = tiny_spec(tmp_path)
    # From rates that learn nothing to good ones, so that there are worse and better.
    for one in spec["candidates"]:
        one["space"] = {"lr": {"log": [1e-6, 6e-3]}}
    spec["search"] |= {"algorithm": "pbt", "trials": 8, "rungs": 3, "keep_after_rank": 1.0}
    swept = pmray.sweep(pmray.spec_from(spec))
    trials = {one.key: one for one in swept.outcomes if one.stage == "sweep"}
    variants = [one for one in trials.values() if one.recipe.get("lr_changes")]
    assert len(trials) - len(variants) == 8
    assert variants and any(one.status == "done" for one in variants)
    stopped = [one for one in trials.values() if one.status == "stopped"]
    done = [one for one in trials.values() if one.status == "done"]
    assert len(done) == 8, "the population keeps its size"
    assert len(stopped) == len(variants)
    for one in variants:
        seen = born(Recipe(**one.recipe), one.facts["budget"])
        assert seen > 0
        if one.status == "done":
            assert one.facts["resumed_at"] >= seen, "it went on from its parent's state"
        parent = next(
            other
            for other in trials.values()
            if list(other.recipe["lr_changes"]) == list(one.recipe["lr_changes"])[:-1]
            and {**other.recipe, "lr_changes": ()} == {**one.recipe, "lr_changes": ()}
            and other.candidate == one.candidate
        )
        before = [point for point in one.curve if point[0] <= seen]
        assert before == [point for point in parent.curve if point[0] <= seen] != []
    assert swept.verdict.line("bert").score.value > 0.8
    assert not any(swept.folder.joinpath("states").glob("*.pt"))
    count = len(read_ledger(swept.folder / "ledger.jsonl"))
    again = pmray.sweep(pmray.spec_from(spec))
    assert len(read_ledger(swept.folder / "ledger.jsonl")) == count, "nothing is done twice"
    assert json.dumps(again.verdict.winner) == json.dumps(swept.verdict.winner)
