"""How much of a GPU the fits of each candidate take, measured on the cluster."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from pmray.distributed.cluster import elsewhere
from pmray.errors import PmrayError
from pmray.spec import Resources
from pmray.training.memory import gpu_memory
from pmray.training.trial import Work


def measure_gpu_memory(works: Mapping[str, Work], resources: Mapping[str, Resources]) -> dict[str, tuple[int, int]]:
    """Bytes that a fit takes of a GPU, and those of the GPU, by candidate; each has a GPU alone meanwhile.

    Args:
        works: A fit of each candidate.
        resources: Candidate -> what its trials ask for.

    Returns:
        Without candidates whose step failed: their trials will say why.
    """
    asked = {
        name: _measure.options(
            num_cpus=resources[name].cpus_per_worker,
            num_gpus=resources[name].gpus_per_worker,
            label_selector=elsewhere(),
        ).remote(work)
        for name, work in works.items()
    }
    found = {}
    for name, answer in asked.items():
        try:
            measured = ray.get(answer)
        except (PmrayError, ray.exceptions.RayError):
            continue
        if measured is not None:
            found[name] = measured
    return found


@ray.remote(max_retries=1, max_calls=1)
def _measure(work: Work) -> tuple[int, int] | None:
    # The process ends after it (`max_calls`), and gives all of the GPU's memory back.
    return gpu_memory(work)
