"""Unit tests cannot start Ray: what needs it belongs in tests/distributed."""

import sys

import pytest


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)


KNOWN_BUGS = (
    "test_ctrl_c_exits_with_130_and_says",
    "test_a_wrong_score_or_role_is_told_with_its_place",
    "test_all_mistakes_of_a_recipe_are_told",
    "test_a_value_of_no_allowed_kind_is_one_mistake",
    "test_a_mistake_is_blamed_on_the_override",
    "test_a_damaged_run_does_not_hide_the_others",
    "test_a_run_cannot_lie_where_pmray_keeps_its_cache",
    "test_texts_without_usable_words_do_not_end_the_run",
)
"""Tests that say how it should be, of bugs that are open; one that passes leaves this list."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.name.startswith(KNOWN_BUGS):
            item.add_marker(pytest.mark.xfail(reason="open bug", strict=False))
