"""What a fresh interpreter loads, and what pmray makes public."""

import importlib
import json
import pkgutil
import subprocess
import sys
import time

import pytest

import pmray

HEAVY = ("torch", "ray", "mlflow", "transformers", "optuna", "datasets", "sklearn")


def loaded_by(code: str) -> list[str]:
    told = f"{code}\nimport json, sys; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout
    return json.loads(out.strip().splitlines()[-1])


@pytest.mark.parametrize(
    "code",
    [
        "import pmray",
        "from typer.testing import CliRunner; from pmray.cli import app; CliRunner().invoke(app, ['--help'])",
        "import pmray; pmray.check",
        "import pmray; pmray.load_spec; pmray.Spec(task='text-classification', data={'train': 'a'}, candidates=['a'])",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code):
    assert loaded_by(code) == []


def test_help_answers_at_once():
    started = time.perf_counter()
    out = subprocess.run([sys.executable, "-m", "pmray", "--help"], capture_output=True, text=True, check=True).stdout
    # 0.15 s on two quiet cores; the bound only catches a heavy import that crept in.
    assert time.perf_counter() - started < 5
    for verb in [
        "init",
        "check",
        "plan",
        "rank",
        "sweep",
        "fit",
        "evaluate",
        "compare",
        "serve",
        "promote",
        "runs",
        "demo",
    ]:
        assert f"  {verb} " in out


def test_public_names_are_those_of_the_table():
    assert set(pmray.__all__) == set(pmray._HOME)
    assert set(dir(pmray)) >= set(pmray.__all__)
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        _ = pmray.swep


def test_no_public_name_is_also_a_module():
    assert set(pmray.__all__) & {module.name for module in pkgutil.iter_modules(pmray.__path__)} == set()


def test_the_pure_rooms_import_without_ray():
    for name in (
        "selection.verdict",
        "training.trial",
        "stages.preparation",
        "checking",
        "evaluation.predictors",
        "evaluation.prediction_files",
        "evaluation.foreign_models",
        "evaluation.evaluate",
        "evaluation.compare",
        "registry",
        "run",
    ):
        importlib.import_module(f"pmray.{name}")
