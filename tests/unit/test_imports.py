"""What ``import pmray`` offers and what it costs."""

import ast
import inspect
import pkgutil
import subprocess
import sys

import pytest

import pmray

HEAVY = ("torch", "ray", "transformers", "mlflow", "datasets", "sklearn", "optuna")


def in_a_fresh_interpreter(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


def loaded_by(code):
    done = in_a_fresh_interpreter("-c", f"{code}\nimport sys\nprint(*sorted(set({HEAVY}) & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def test_importing_pmray_loads_nothing_heavy():
    assert loaded_by("import pmray; dir(pmray)") == []


def test_help_loads_nothing_heavy():
    code = "from typer.testing import CliRunner; from pmray.cli import app; CliRunner().invoke(app, ['--help'])"
    assert loaded_by(code) == []


def test_help_exits_with_0_and_names_every_verb():
    done = in_a_fresh_interpreter("-m", "pmray", "--help")
    assert done.returncode == 0
    for verb in "init plan rank sweep fit evaluate compare serve promote runs demo".split():
        assert f"\n  {verb} " in done.stdout


def test_the_public_names_are_those_of_the_table():
    assert sorted(pmray._HOME) == sorted(pmray.__all__) == sorted(dir(pmray))
    assert len(set(pmray.__all__)) == len(pmray.__all__)


def test_type_checkers_see_the_same_names():
    (block,) = (node for node in ast.parse(inspect.getsource(pmray)).body if isinstance(node, ast.If))
    names = {alias.name: one.module for one in block.body for alias in one.names}
    assert names == {name: f"pmray.{home}" for name, home in pmray._HOME.items()}


def test_every_public_name_resolves_in_the_module_of_the_table():
    code = "import pmray\nfor name in pmray.__all__: print(name, getattr(pmray, name).__module__)"
    done = in_a_fresh_interpreter("-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stderr
    found = dict(line.split() for line in done.stdout.splitlines())
    assert found == {name: f"pmray.{home}" for name, home in pmray._HOME.items()}


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sweeep'"):
        pmray.sweeep  # noqa: B018


def test_no_public_name_is_also_a_module():
    modules = {module.name for module in pkgutil.iter_modules(pmray.__path__)}
    assert not modules & set(pmray.__all__)


def test_unit_tests_cannot_import_ray():
    with pytest.raises(ImportError):
        import ray  # noqa: F401
