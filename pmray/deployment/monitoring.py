"""Grafana dashboard and Prometheus rules of an endpoint: every metric here is one that pmray or Ray really exports."""

from __future__ import annotations

from typing import Any

from pmray.spec import Spec

MODEL = 'model=~"$model"'


def rules(spec: Spec) -> dict[str, Any]:
    """Prometheus alert rules.

    Args:
        spec: Its endpoint's limits and name.
    """
    slow = spec.decide.max_latency_ms
    # Ten times the model's own time, or half a second: what people feel.
    limit = round(max(0.5, 10 * slow / 1000), 3) if slow else 0.5
    return {
        "groups": [
            {
                "name": f"pmray-{spec.name}",
                "rules": [
                    _alert(
                        "PmrayEndpointDown",
                        "absent(pmray_model_info) == 1",
                        "3m",
                        "critical",
                        "No endpoint tells that it serves a model.",
                        "kubectl get rayservice; the Serve controller's log says why no replica is healthy.",
                    ),
                    _alert(
                        "PmrayRequestsFail",
                        'sum(rate(pmray_requests_total{status=~"5..",status!="503"}[5m]))'
                        " / sum(rate(pmray_requests_total[5m])) > 0.01",
                        "5m",
                        "critical",
                        "More than 1 % of the requests fail by the server's fault.",
                        "The endpoint's log has the cause of each.",
                    ),
                    _alert(
                        "PmrayOverloaded",
                        'sum(rate(pmray_requests_total{status="503"}[5m]))'
                        " / sum(rate(pmray_requests_total[5m])) > 0.05",
                        "5m",
                        "warning",
                        "More than 5 % of the requests are refused, because the queue is full.",
                        "Raise serve.replicas, or the upper end of its range.",
                    ),
                    _alert(
                        "PmraySlow",
                        f"histogram_quantile(0.99, sum by (le) (rate(pmray_request_seconds_bucket[5m]))) > {limit:g}",
                        "10m",
                        "warning",
                        f"One request in a hundred takes more than {limit:g} s.",
                        "Look at the batches' fill and time: full batches ask for replicas, slow ones for a smaller "
                        "serve.max_batch_tokens.",
                    ),
                    _alert(
                        "PmrayTwoVersions",
                        "count by (model) (count by (model, version) (pmray_model_info)) > 1",
                        "1h",
                        "warning",
                        "Two versions of a model have been serving side by side for an hour.",
                        "A rolling update hangs, or a canary was forgotten: pmray promote, or roll back.",
                    ),
                    _alert(
                        "PmrayLiveScoreBelowPromise",
                        'pmray_live_score{end="live_high"} < ignoring(end) pmray_live_score{end="promised_low"}',
                        "30m",
                        "critical",
                        "The whole interval of the live score is below that of the promised one.",
                        "pmray watch says what has changed; promote another version, or sweep again on new labels.",
                    ),
                    _alert(
                        "PmrayLiveAlert",
                        "pmray_live_alert == 1",
                        "15m",
                        "warning",
                        "The live score reports {{ $labels.alert }} of {{ $labels.model }}.",
                        "GET /v1/live tells the numbers behind it.",
                    ),
                    _alert(
                        "PmrayLiveStoreDown",
                        "pmray_live_store_up == 0",
                        "5m",
                        "critical",
                        "The live store does not answer; feedback is refused meanwhile.",
                        "Look at the database that PMRAY_LIVE_URL names.",
                    ),
                    _alert(
                        "RayNodeDiskFull",
                        "ray_node_disk_free / (ray_node_disk_free + ray_node_disk_usage) < 0.05",
                        "10m",
                        "warning",
                        "A Ray node has less than 5 % of its disk left.",
                        "pmray runs lists what takes it; search.max_disk caps a run.",
                    ),
                    _alert(
                        "RayNodeMemoryFull",
                        "ray_node_mem_available / ray_node_mem_total < 0.05",
                        "5m",
                        "warning",
                        "A Ray node has less than 5 % of its memory left; Ray will end processes.",
                        "Fewer trials a node (resources.cpus_per_worker), or larger nodes.",
                    ),
                ],
            }
        ]
    }


def _alert(name: str, expression: str, lasting: str, severity: str, summary: str, fix: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": lasting,
        "labels": {"severity": severity},
        "annotations": {"summary": summary, "description": fix},
    }


def dashboard(spec: Spec) -> dict[str, Any]:
    """A Grafana dashboard: traffic, time, batches, versions, and the nodes below."""
    panels = [
        ("Requests a second, by status", "reqps", {"sum by (status) (rate(pmray_requests_total[1m]))": "{{status}}"}),
        (
            "Time of a request",
            "s",
            {
                f"histogram_quantile({share}, sum by (le) (rate(pmray_request_seconds_bucket[1m])))": name
                for name, share in {"p50": 0.5, "p95": 0.95, "p99": 0.99}.items()
            },
        ),
        (
            "Rows a second, by what became of them",
            "rps",
            {f"sum by (outcome) (rate(pmray_rows_total{{{MODEL}}}[1m]))": "{{outcome}}"},
        ),
        (
            "Mean fill of a batch",
            "percentunit",
            {"sum(rate(pmray_batch_fill_sum[1m])) / sum(rate(pmray_batch_fill_count[1m]))": "fill"},
        ),
        (
            "Time of a batch",
            "s",
            {"histogram_quantile(0.95, sum by (le) (rate(pmray_batch_seconds_bucket[1m])))": "p95"},
        ),
        ("Wait that a request must expect", "s", {"max(pmray_expected_wait_seconds)": "longest"}),
        (
            "Versions that are served",
            "short",
            {"count by (model, version) (pmray_model_info)": "{{model}} {{version}}"},
        ),
        (
            "Live score on labels, and what was promised",
            "percentunit",
            {f'pmray_live_score{{{MODEL},end=~"(live|promised|estimate)_value"}}': "{{model}} {{version}} {{end}}"},
        ),
        ("Predictions with a label", "percentunit", {f"pmray_live_coverage{{{MODEL}}}": "{{model}}"}),
        ("Change of inputs and predictions", "percentunit", {f"pmray_live_drift{{{MODEL}}}": "{{model}} {{what}}"}),
        ("CPU of the nodes", "percent", {"ray_node_cpu_utilization": "{{instance}}"}),
        ("Memory of the nodes in use", "bytes", {"ray_node_mem_used": "{{instance}}"}),
        ("Disk of the nodes, free", "bytes", {"ray_node_disk_free": "{{instance}}"}),
    ]
    return {
        "uid": f"pmray-{spec.name}"[:40],
        "title": f"pmray: {spec.name}",
        "tags": ["pmray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "type": "datasource",
                    "query": "prometheus",
                    "label": "Prometheus",
                },
                {
                    "name": "model",
                    "type": "query",
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "query": "label_values(pmray_model_info, model)",
                    "includeAll": True,
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": [
            {
                "id": number + 1,
                "title": title,
                "type": "timeseries",
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend}
                    for place, (expression, legend) in enumerate(queries.items())
                ],
            }
            for number, (title, unit, queries) in enumerate(panels)
        ],
    }
