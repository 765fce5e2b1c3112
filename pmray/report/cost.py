"""What a run cost: time of processors, and the energy that this probably took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pmray.selection.ledger import Outcome
from pmray.spec import Resources

CORE_WATTS = 12.0
GPU_WATTS = 200.0
"""Of a busy core and a busy GPU: what Green Algorithms assumes of those that it does not know (Lannelongue, Grealey &
Inouye 2021, "Green Algorithms: quantifying the carbon footprint of computation", Advanced Science 8)."""


class Cost(NamedTuple):
    """Compute of all fits of a run together."""

    fits: int
    core_hours: float
    gpu_hours: float

    @property
    def kilowatt_hours(self) -> float:
        """An estimate from assumed watts, not a measurement; memory, disks and cooling come on top."""
        return (self.core_hours * CORE_WATTS + self.gpu_hours * GPU_WATTS) / 1000

    def told(self) -> str:
        """The cost in words.

        >>> Cost(12, 0.5, 0.0).told()
        '12 fits, 0.50 core-hours, 0.00 GPU-hours: about 0.006 kWh, assuming 12 W a core and 200 W a GPU'
        """
        return (
            f"{self.fits} fits, {self.core_hours:.2f} core-hours, {self.gpu_hours:.2f} GPU-hours: about "
            f"{self.kilowatt_hours:.2g} kWh, assuming {CORE_WATTS:g} W a core and {GPU_WATTS:g} W a GPU"
        )


def cost_of(outcomes: Iterable[Outcome], resources: Mapping[str, Resources]) -> Cost:
    """Add up what ranking and fits took of processors.

    Args:
        outcomes: Of a run, the latest of each key.
        resources: Candidate -> what one fit of it gets; others count as one core.
    """
    fits, cores, gpus = 0, 0.0, 0.0
    for one in outcomes:
        if one.stage not in ("rank", "sweep", "final"):
            continue
        demand = resources.get(one.candidate, Resources())
        fits += one.stage != "rank" and one.status in ("done", "stopped")
        cores += one.seconds * demand.most * demand.cpus_per_worker / 3600
        gpus += one.seconds * demand.most * demand.gpus_per_worker / 3600
    return Cost(fits, cores, gpus)


def resources_of(spec: Mapping[str, Any]) -> dict[str, Resources]:
    """Candidate -> resources, from a spec as plain values (``spec.yaml``)."""
    every = spec.get("resources") or {}
    return {one["name"]: Resources.model_validate(one.get("resources") or every) for one in spec.get("candidates", ())}
