"""What a process tells and gives back of its machine."""

import ctypes
import sys
from pathlib import Path
from threading import Thread

import pytest
import torch

from pmray.training.hardware import return_memory


def resident():
    """MiB that this process holds of its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="other C libraries keep nothing"
)
def test_what_is_freed_goes_back_to_the_system():
    last = []

    def work():
        # Too small to be given back one by one, and the last of them stays.
        parts = [torch.ones(25_000) for _ in range(3000)]
        last.append(parts[-1])

    # What other tests have left would be used again.
    return_memory()
    before = resident()
    thread = Thread(target=work)
    thread.start()
    thread.join()
    held = resident()
    assert held > before + 200
    return_memory()
    assert resident() < before + 50
