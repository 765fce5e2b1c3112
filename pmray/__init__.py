"""pmray picks the right pre-trained model for a job, proves the choice, and keeps proving it in production.

Everything public is listed here and loaded when it is first used, so that ``import pmray`` loads neither torch nor ray
nor mlflow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmray.checking import Checked, check
    from pmray.client import Client
    from pmray.data.load import Dataset, load_data
    from pmray.errors import (
        CandidateUnavailable,
        ClusterError,
        DataError,
        EndpointError,
        LedgerError,
        NoVerdict,
        PmrayError,
        RegistryError,
        SpecError,
        TrialError,
        UnknownName,
    )
    from pmray.evaluation.compare import Compared, compare
    from pmray.evaluation.evaluate import Evaluation, evaluate
    from pmray.live.watch import Round, watch
    from pmray.registry import promote
    from pmray.reporting import write_report
    from pmray.serving.endpoint import Deployed, deploy
    from pmray.spec import Candidate, Data, Decide, Recipe, Resources, Search, Serve, Spec
    from pmray.spec_file import load_spec, spec_from
    from pmray.stages.planning import Plan, plan
    from pmray.stages.pretraining import Adapted, pretrain
    from pmray.stages.workflow import Swept, fit, rank, sweep

_HOME = {
    **dict.fromkeys(("Checked", "check"), "checking"),
    **dict.fromkeys(("Dataset", "load_data"), "data.load"),
    **dict.fromkeys(
        (
            *("CandidateUnavailable", "ClusterError", "DataError", "EndpointError", "LedgerError", "NoVerdict"),
            *("PmrayError", "RegistryError", "SpecError", "TrialError", "UnknownName"),
        ),
        "errors",
    ),
    "Client": "client",
    **dict.fromkeys(("Compared", "compare"), "evaluation.compare"),
    **dict.fromkeys(("Evaluation", "evaluate"), "evaluation.evaluate"),
    **dict.fromkeys(("Round", "watch"), "live.watch"),
    **dict.fromkeys(("Plan", "plan"), "stages.planning"),
    "promote": "registry",
    "write_report": "reporting",
    **dict.fromkeys(("Deployed", "deploy"), "serving.endpoint"),
    **dict.fromkeys(("Candidate", "Data", "Decide", "Recipe", "Resources", "Search", "Serve", "Spec"), "spec"),
    **dict.fromkeys(("load_spec", "spec_from"), "spec_file"),
    **dict.fromkeys(("Adapted", "pretrain"), "stages.pretraining"),
    **dict.fromkeys(("Swept", "fit", "rank", "sweep"), "stages.workflow"),
}

__all__ = [
    "Adapted",
    "Candidate",
    "CandidateUnavailable",
    "Checked",
    "Client",
    "ClusterError",
    "Compared",
    "Data",
    "DataError",
    "Dataset",
    "Decide",
    "Deployed",
    "EndpointError",
    "Evaluation",
    "LedgerError",
    "NoVerdict",
    "Plan",
    "PmrayError",
    "Recipe",
    "RegistryError",
    "Resources",
    "Round",
    "Search",
    "Serve",
    "Spec",
    "SpecError",
    "Swept",
    "TrialError",
    "UnknownName",
    "check",
    "compare",
    "deploy",
    "evaluate",
    "fit",
    "load_data",
    "load_spec",
    "plan",
    "pretrain",
    "promote",
    "rank",
    "spec_from",
    "sweep",
    "watch",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"pmray.{_HOME[name]}"), name)
    raise AttributeError(f"module 'pmray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
