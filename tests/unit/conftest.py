"""Unit tests cannot start Ray: what needs it belongs in tests/distributed."""

import logging
import sys

import pytest


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    for name in [name for name in sys.modules if name == "ray" or name.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    # Where an earlier test of this process has loaded Ray, its handler stayed behind, and would import it.
    monkeypatch.setattr(logging.getLogger("ray"), "handlers", [])
