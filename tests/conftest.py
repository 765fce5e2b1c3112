"""What all tests share."""

import os
from pathlib import Path

import pytest

# Before anything imports the libraries that read them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models: a second thread costs more in waiting than it computes, above all beside Ray's processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def ray_cluster():
    """One local cluster of two CPUs for the whole session."""
    import ray

    from pmray.distributed.cluster import SETTINGS, start_here
    from pmray.serving import haproxy

    os.environ.update(SETTINGS | haproxy.settings())
    start_here(num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of larger data sets and models; tests that need it are skipped without it."""
    folder = Path(os.environ.get("PMRAY_SHARED", "../shared"))
    if not (folder / "data").is_dir():
        pytest.skip("PMRAY_SHARED (default ../shared) holds no data sets")
    return folder.absolute()
