"""API keys: several, of two kinds, changed without a restart, and never guessed from an empty file."""

import pytest

from pmray.errors import SpecError
from pmray.serving.keys import Keys

A, B, C = "a" * 20, "b" * 20, "c" * 20


def test_without_keys_nobody_needs_one():
    keys = Keys({})
    assert not keys.required
    assert keys.level(None) is None


def test_several_keys_and_those_that_may_only_look():
    keys = Keys({"PMRAY_API_KEYS": f"{A}, {B}", "PMRAY_READ_KEYS": C})
    assert keys.required
    assert [keys.level(key) for key in (A, B, C, "d" * 20, "", None)] == ["full", "full", "read", None, None, None]


def test_a_file_is_read_again_when_it_changes_and_an_empty_one_lets_nobody_in(tmp_path):
    file, now = tmp_path / "keys", [0.0]
    file.write_text(f"# of this week\n{A}\n{B}\n")
    keys = Keys({"PMRAY_API_KEYS_FILE": str(file)}, clock=lambda: now[0])
    assert (keys.level(A), keys.level(C), keys.level("#")) == ("full", None, None)
    (tmp_path / "new").write_text(f"{B}\n{C}\n")
    (tmp_path / "new").replace(file)
    assert keys.level(C) is None  # not at every request
    now[0] = 2.0
    assert (keys.level(A), keys.level(B), keys.level(C)) == (None, "full", "full")
    file.unlink()
    now[0] = 4.0
    assert keys.level(C) == "full"  # gone while it is replaced
    file.write_text("")
    now[0] = 6.0
    assert keys.required
    assert keys.level(C) is None


@pytest.mark.parametrize("given", [{"PMRAY_API_KEYS": "short"}, {"PMRAY_API_KEYS_FILE": "/nowhere/keys"}])
def test_keys_that_cannot_be_used_are_one_clear_error_without_the_key(given):
    with pytest.raises(SpecError) as refused:
        Keys(given)
    assert "short" not in str(refused.value).replace("shorter", "")
