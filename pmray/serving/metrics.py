"""What the endpoint tells Prometheus. One registry a process that speaks HTTP; others add their own metrics to it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.samples import Sample

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

ROUTES = ("/v1/predict", "/v1/evaluate", "/v1/feedback", "/v1/live", "/v1/model", "/v1/models", "/healthz", "/readyz")
"""Paths that are counted by name; all others are one, or a stranger could fill the memory with names."""


class ServingMetrics:
    """Counters, gauges and histograms of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pmray_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.rows = Counter(
            "pmray_rows", "Rows by model and what became of them.", ["model", "outcome"], registry=self.registry
        )
        self.seconds = Histogram(
            "pmray_request_seconds", "Time of /v1/predict, in the endpoint.", buckets=SECONDS, registry=self.registry
        )
        self.batches = Counter("pmray_batches", "Batches by model.", ["model"], registry=self.registry)
        self.batch_rows = Counter("pmray_batch_rows", "Rows of all batches.", ["model"], registry=self.registry)
        self.batch_fill = Histogram(
            "pmray_batch_fill",
            "Share of the budget of rows or tokens, whichever is nearer to its end, that a batch uses.",
            buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "pmray_batch_seconds",
            "Time of a batch, its way to the model and back included.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "pmray_expected_wait_seconds", "How long a request that comes now would wait.", registry=self.registry
        )
        self.info = Gauge(
            "pmray_model_info", "1 for each version that is served.", ["model", "version"], registry=self.registry
        )

    def request(self, path: str, status: int) -> None:
        """Count a reply."""
        known = next((one for one in ROUTES if path == one), None)
        if known is None:
            known = "/v1/models/{name}" if path.startswith("/v1/models/") else "other"
        self.requests.labels(known, str(status)).inc()

    def told(self) -> dict[str, str]:
        """Rows, latency and batch fill since the start, in words, for people."""
        rows = sum(sample.value for sample in _samples(self.rows, "_total") if sample.labels["outcome"] == "answered")
        batches = sum(sample.value for sample in _samples(self.batches, "_total"))
        if not batches:
            return {}
        in_batches = sum(sample.value for sample in _samples(self.batch_rows, "_total"))
        fill, count = (next(_samples(self.batch_fill, end)).value for end in ("_sum", "_count"))
        found = {
            "rows answered": f"{rows:,.0f}",
            "rows in a batch": f"{in_batches / batches:.1f}",
            "batch fill": f"{fill / max(1, count):.0%} of the budget",
        }
        if asked := next(_samples(self.seconds, "_count")).value:
            for share in (0.5, 0.95):
                below = next(
                    (
                        float(sample.labels["le"])
                        for sample in _samples(self.seconds, "_bucket")
                        if sample.value >= share * asked
                    ),
                    float("inf"),
                )
                found[f"latency, p{100 * share:.0f}"] = f"at most {1000 * below:g} ms"
        return found

    def batch(self, model: str, rows: int, tokens: int, seconds: float, fill: float) -> None:
        """Count a batch."""
        self.batches.labels(model).inc()
        self.batch_rows.labels(model).inc(rows)
        self.batch_fill.observe(fill)
        self.batch_seconds.observe(seconds)


def _samples(metric: MetricWrapperBase, end: str) -> Iterator[Sample]:
    """The samples of a metric whose names have this ending."""
    return (sample for family in metric.collect() for sample in family.samples if sample.name.endswith(end))
