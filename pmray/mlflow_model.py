"""A bundle as ``mlflow.pyfunc.load_model("models:/NAME@champion")`` opens it; see ``tracking.describe_model``."""

from __future__ import annotations

from typing import Any

from pmray.bundle import open_bundle
from pmray.serving.scorer import Refused, Scorer


class BundleModel:
    """What ``mlflow.pyfunc`` wraps."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def predict(self, rows: Any, params: dict[str, Any] | None = None) -> Any:
        """Answer rows as the endpoint does.

        Args:
            rows: A ``pandas.DataFrame`` with a column a role, such as ``text``.
            params: Not used.

        Returns:
            A ``pandas.DataFrame`` of as many rows; a row that cannot be answered has an ``error``.
        """
        import pandas as pd

        answers = self.scorer(rows.to_dict("records"))
        told = [{"error": one.error} if isinstance(one, Refused) else dict(one.values) for one in answers]
        return pd.DataFrame(told, index=rows.index)


def _load_pyfunc(path: str) -> BundleModel:
    """Open a bundle; MLflow calls this by its name."""
    return BundleModel(Scorer(open_bundle(path)))
