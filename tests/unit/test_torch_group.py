"""Which network card a worker group talks over."""

import os

import psutil
import pytest

from pmray.distributed import torch_group
from pmray.distributed.torch_group import INTERFACE, interface_with, use_interface_of_node


def test_the_card_is_found_by_its_address():
    cards = psutil.net_if_addrs().items()
    loopback = next(name for name, found in cards if any(one.address == "127.0.0.1" for one in found))
    assert interface_with("127.0.0.1") == loopback
    assert interface_with("203.0.113.7") is None, "kept for documentation: no card has it"


@pytest.mark.parametrize(("before", "after"), [({}, "eth7"), ({INTERFACE: "ib0"}, "ib0")])
def test_what_the_user_says_is_kept(monkeypatch, before, after):
    monkeypatch.delenv(INTERFACE, raising=False)
    for key, value in before.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch_group.ray.util, "get_node_ip_address", lambda: "10.1.2.3")
    monkeypatch.setattr(torch_group, "interface_with", {"10.1.2.3": "eth7"}.get)
    use_interface_of_node()
    assert os.environ[INTERFACE] == after
    monkeypatch.delenv(INTERFACE)
