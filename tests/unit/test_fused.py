"""Several fits as one computation: each gives what it gives alone, whatever the others do."""

import dataclasses
import time
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch

from pmray.data.encode import encode_table
from pmray.errors import Diverged, OutOfMemory, TrialError
from pmray.spec import Candidate, Recipe
from pmray.training import fused, loop
from pmray.training.fused import run_together
from pmray.training.model import locate, open_model
from pmray.training.state import StateFile
from pmray.training.trial import carry_out
from tests.tiny import tiny_tagged
from tests.unit.test_loop import Setting
from tests.unit.test_resume import AtStep, Killed
from tests.unit.test_tokens_task import TASK as TAGS
from tests.unit.test_trial import work  # noqa: F401  (a fixture)

RATES = (3e-3, 1e-3, 1e-4)


def recipes(**changes):
    base = {"epochs": 2, "batch_size": 16, "dropout": 0.1, "precision": "fp32", "lr": 0.0, **changes}
    return [Recipe(**{**base, "lr": rate}) for rate in RATES]


def alone(folder, recipe, **options):
    setting = Setting(folder, recipe=recipe)
    return setting.fit(recipe, **options), setting.weights()


def together(folder, each, options=lambda place: {}):
    """What each fit gave, or the error that it ended with, and the members."""
    found, members = {}, {}

    def job(place, member):
        members[place] = member
        setting = Setting(folder, recipe=each[place])
        try:
            found[place] = setting.fit(each[place], together=member, **options(place)), setting.weights()
        except (TrialError, InterruptedError) as error:
            found[place] = error

    run_together([partial(job, place) for place in range(len(each))])
    return [found[place] for place in range(len(each))], [members[place] for place in range(len(each))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "bert")


@pytest.mark.parametrize(
    "kind", [{}, {"head_only": True}, {"freeze_layers": 1}, {"lora_rank": 2}, {"precision": "bf16"}]
)
def test_each_fit_gives_what_it_gives_alone(folder, kind, monkeypatch):
    if "lora_rank" in kind:
        pytest.importorskip("peft", reason="peft is not installed")
    each = recipes(**kind)
    with monkeypatch.context() as patched:
        # Scores come from one computation too.
        patched.setattr(loop, "predict", None)
        found, members = together(folder, each)
    assert all((one.problem, one.fused_steps) == (None, 16) for one in members)
    near = 2e-2 if "precision" in kind else 1e-3
    for recipe, (fitted, weights) in zip(each, found, strict=True):
        single, expected = alone(folder, recipe)
        assert fitted.loss == pytest.approx(single.loss, rel=near)
        assert [rung.score for rung in fitted.curve] == pytest.approx([rung.score for rung in single.curve], abs=0.04)
        assert max(float((weights[name] - expected[name]).abs().max()) for name in weights) < near
        assert fitted.validation == pytest.approx(single.validation, abs=near)
    assert found[0][0].loss < found[2][0].loss


def test_a_fit_that_ends_before_the_others_leaves_them_alone(folder):
    each = recipes()

    def options(place):
        def report(rung):
            if place == 0:
                raise InterruptedError("enough")

        return {"report": report}

    found, members = together(folder, each, options)
    assert isinstance(found[0], InterruptedError)
    single, _ = alone(folder, each[1])
    assert found[1][0].loss == pytest.approx(single.loss, rel=1e-3)
    assert members[0].fused_steps < members[1].fused_steps == 16


def test_fits_of_unequal_length_take_the_steps_that_they_share(folder):
    each = [recipes()[0], recipes(epochs=1)[1]]
    found, members = together(folder, each)
    assert [one.fused_steps for one in members] == [8, 8]
    single, _ = alone(folder, each[0])
    assert found[0][0].loss == pytest.approx(single.loss, rel=1e-3)


def test_fits_that_go_on_from_different_steps_go_on_together_from_the_furthest(folder, tmp_path):
    each = recipes()
    for place, step in ((0, 3), (1, 11)):
        with pytest.raises(Killed):
            Setting(folder, recipe=each[place]).fit(each[place], keeper=AtStep(tmp_path / str(place), step, later=1))
    found, members = together(folder, each, lambda place: {"keeper": StateFile(tmp_path / str(place))})
    assert [fitted.resumed_at > 0 for fitted, _ in found] == [True, True, False]
    assert [one.fused_steps for one in members] == [13, 5, 13]
    for recipe, (fitted, _) in zip(each, found, strict=True):
        assert fitted.loss == pytest.approx(alone(folder, recipe)[0].loss, rel=1e-3)


def test_a_fit_that_diverges_ends_alone(folder):
    each = [recipes()[0], recipes()[1].changed({"weight_decay": 1e30})]
    found, _ = together(folder, each)
    single, _ = alone(folder, each[0])
    assert isinstance(found[1], Diverged)
    assert found[0][0].loss == pytest.approx(single.loss, rel=1e-3)


def test_passes_that_do_not_fit_become_smaller_for_all_and_at_last_one_by_one(folder, monkeypatch):
    each = recipes()
    seen = []

    def limited(rows):
        computed = fused.Stack.logits

        def logits(self, inputs):
            seen.append(len(inputs["input_ids"]))
            if seen[-1] > rows:
                raise torch.OutOfMemoryError("no room")
            return computed(self, inputs)

        monkeypatch.setattr(fused.Stack, "logits", logits)

    limited(8)
    found, members = together(folder, each)
    single, _ = alone(folder, each[0])
    assert found[0][0].loss == pytest.approx(single.loss, rel=1e-3)
    assert found[0][0].micro_batch_tokens < each[0].max_batch_tokens
    assert all((one.problem, one.fused_steps) == (None, 16) for one in members)
    monkeypatch.undo()
    limited(0)
    found, members = together(folder, each)
    assert found[0][0].loss == pytest.approx(single.loss, rel=1e-3)
    assert all("memory" in one.problem and one.fused_steps == 0 for one in members)


def test_a_model_whose_steps_cannot_be_fused_is_trained_all_the_same(folder, monkeypatch):
    def logits(self, inputs):
        raise RuntimeError("vmap: no data-dependent flow")

    monkeypatch.setattr(fused.Stack, "logits", logits)
    each = recipes()
    found, members = together(folder, each)
    single, _ = alone(folder, each[1])
    assert found[1][0].loss == pytest.approx(single.loss, rel=1e-3)
    assert [one.problem for one in members] == ["RuntimeError: vmap: no data-dependent flow"] * 3


def test_taggers_are_scored_together_though_rows_have_different_numbers_of_words(folder):
    processor = TAGS.processor(str(folder))
    tables = [pa.Table.from_pylist(tiny_tagged(count, seed)) for seed, count in enumerate((64, 21))]
    train, validation = (encode_table(TAGS, one, processor, 16) for one in tables)
    targets, validation_targets = map(TAGS.targets, tables)
    each = recipes(dropout=0.0)
    found = {}

    def fit(place, member=None):
        torch.manual_seed(0)
        model = open_model(locate(Candidate(model=str(folder))), TAGS, pad=train.pad, recipe=each[place])
        found[place, member is None] = loop.fit(
            model, TAGS, each[place], train, targets, validation, validation_targets,
            metric="span_f1", rungs=[64, 128], seed=0, together=member,
        )  # fmt: skip
        assert member is None or (member.problem, member.fused_steps) == (None, 8)

    run_together([partial(fit, place) for place in range(3)])
    for place in range(3):
        fit(place)
        fused, single = found[place, False], found[place, True]
        assert [len(row) for row in fused.validation] == [len(row) for row in single.validation]
        assert np.concatenate(fused.validation) == pytest.approx(np.concatenate(single.validation), abs=1e-3)


def test_models_that_differ_in_what_is_not_trained_are_not_fused(folder):
    models = [Setting(folder, recipe=Recipe(head_only=True)).model for _ in range(2)]
    with torch.no_grad():
        models[1].get_input_embeddings().weight += 1
    with pytest.raises(ValueError, match="is not trained, and differs"):
        fused.Stack(models)
    norm = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="batch norms"):
        fused.Stack([norm, norm])


def test_each_is_charged_its_share_of_the_time(folder):
    began = time.perf_counter()
    found, members = together(folder, recipes())
    wall = time.perf_counter() - began
    spent = [one.clock() for one in members]
    assert sum(spent) <= wall
    assert all(fitted.train_seconds <= one for (fitted, _), one in zip(found, spent, strict=True))


def test_an_interrupt_of_one_ends_all_and_each_gives_back_what_it_holds(folder):
    settings = [Setting(folder, recipe=recipes()[0]) for _ in range(2)]
    hooks = [dict(one.model.named_modules()) for one in settings]

    def job(place, member):
        def report(rung):
            raise KeyboardInterrupt

        settings[place].fit(recipes()[0], together=member, **({"report": report} if place == 0 else {}))

    with pytest.raises(KeyboardInterrupt):
        run_together([partial(job, 0), partial(job, 1)])
    for before, one in zip(hooks, settings, strict=True):
        # Its own dropout is back.
        assert all(module is before[name] for name, module in one.model.named_modules())


def test_a_trial_that_waited_goes_on_with_others_and_alone(work, tmp_path, monkeypatch):  # noqa: F811
    """States of fused fits and of fits alone are one kind."""
    # After every step, so that all are at the same one.
    monkeypatch.setattr(loop, "KEEPING", 0.0)

    class Cut(Exception):
        pass

    def works(name):
        changed = [work.recipe.changed({"lr": rate}) for rate in RATES]
        return [
            dataclasses.replace(work, key=f"{name}{place}", recipe=recipe, states=str(tmp_path), state_seconds=1e-9)
            for place, recipe in enumerate(changed)
        ]

    def run(works, cut):
        found = {}

        def job(one, member):
            def report(rung):
                if cut and rung.examples == 192:
                    raise OutOfMemory("bert", 1, 16, "cpu")

            found[one.key] = carry_out(one, report, together=member)

        run_together([partial(job, one) for one in works])
        return found

    expected = [carry_out(dataclasses.replace(one, states=None)) for one in works("x")]
    first = works("a")
    assert {one.status for one in run(first, cut=True).values()} == {"infeasible"}
    found = [carry_out(first[0]), *run(first[1:], cut=False).values()]
    for facts, other in zip(found, expected, strict=True):
        assert facts.status == "done"
        assert facts.measured["resumed_at"] == 176
        assert facts.measured["loss"] == pytest.approx(other.measured["loss"], rel=1e-3)
    assert [facts.measured.get("fused_steps") for facts in found] == [None, 1, 1]
