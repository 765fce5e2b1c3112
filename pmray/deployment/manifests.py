"""Kubernetes objects of a spec: a RayJob that finds the model, a RayService that serves it, and what guards them.

Plain dictionaries; ``pmray.deployment.render`` writes them as YAML. Field names are those of KubeRay's CRDs (v1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from pmray.spec import Resources, Spec
from pmray.storage import is_remote

Manifest = dict[str, Any]

MOUNT = "/etc/pmray"
"""Where the spec lies in a pod."""

PORTS = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080, "serve": 8000}

USER = 1000
"""Of the image's own user, who is not root."""

DRIVER_MEMORY_GB, WORKER_MEMORY_GB = 4, 4


@dataclass(frozen=True)
class Options:
    """What a spec does not know of the place where it will run."""

    image: str = ""
    """One image for head, workers and endpoint; by default ``pmray:VERSION``."""
    namespace: str = "pmray"
    max_workers: int = 8
    """Nodes that a sweep may have at a time: the limit of its bill."""
    claim: str = "pmray-storage"
    """ReadWriteMany volume claim that is mounted where the spec's storage is; not used with an object store."""
    spot: Mapping[str, str] | None = None
    """Label of cheap nodes that may be taken away, such as ``{cloud.google.com/gke-spot: "true"}``; trials go there."""
    memory_gb: int = WORKER_MEMORY_GB
    """Of a worker of a trial."""

    @property
    def image_name(self) -> str:
        """The image, with its tag."""
        return self.image or f"pmray:{version('pmray')}"


def kuberay(spec: Spec, options: Options) -> dict[str, list[Manifest]]:
    """File name -> objects in it."""
    return {
        "rayjob.yaml": [_spec_map(spec, options), _ray_job(spec, options)],
        "rayservice.yaml": [_ray_service(spec, options), _disruption_budget(spec, options)],
        "watch.yaml": [_watch(spec, options)],
        "raycluster.yaml": [_ray_cluster(spec, options)],
        "networkpolicy.yaml": _network_policies(spec, options),
    }


def serve_config(spec: Spec, *, host: str | None = None) -> Manifest:
    """Config of Ray Serve: ``serve deploy FILE``, or part of a RayService.

    Args:
        spec: Its endpoint and registry.
        host: Where to listen; by default what the spec says.
    """
    settings = spec.serve.model_dump(mode="json", exclude_defaults=True, exclude={"host", "port"})
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host or spec.serve.host, "port": spec.serve.port or PORTS["serve"]},
        "logging_config": {"encoding": "JSON", "log_level": "INFO", "enable_access_log": False},
        "applications": [
            {
                "name": "pmray",
                "route_prefix": "/",
                "import_path": "pmray.serving.app:application",
                "args": {
                    "model": f"{spec.name}@champion",
                    "registry": spec.registry_uri,
                    # What the limits are of is said in the spec; keys and the live store come from the environment.
                    "serve": {**settings, "host": host or spec.serve.host},
                },
            }
        ],
    }


def _spec_map(spec: Spec, options: Options) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(spec, options, "spec", "sweep"),
        "data": {"spec.yaml": spec.to_yaml()},
    }


def _ray_job(spec: Spec, options: Options) -> Manifest:
    """One sweep on a cluster of its own, which ends with it; a new attempt goes on where the last one was."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(spec, options, "sweep", "sweep"),
        "spec": {
            "entrypoint": f"python -m pmray sweep {MOUNT}/spec.yaml",
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": 3,
            "metadata": {"pmray": "sweep", "run": spec.name},
            "submitterPodTemplate": {
                "spec": {
                    "restartPolicy": "Never",
                    "securityContext": _pod_security(),
                    "containers": [
                        {
                            "name": "ray-job-submitter",
                            "image": options.image_name,
                            "securityContext": _security(),
                            "resources": _resources(0.5, 0, 1),
                        }
                    ],
                }
            },
            "rayClusterSpec": _cluster(spec, options, "sweep", [_trial_group(spec, options, "sweep")]),
        },
    }


def _ray_service(spec: Spec, options: Options) -> Manifest:
    """The endpoint; a new version starts beside the old one, which answers until the new one does."""
    serve = spec.serve
    low, high = serve.replicas if isinstance(serve.replicas, tuple) else (serve.replicas,) * 2
    group = _group(
        spec, options, "endpoint", cpus=serve.cpus + 1, gpus=serve.gpus, low=low, high=max(low, high),
        memory=options.memory_gb, spot=False,
    )  # fmt: skip
    container = group["template"]["spec"]["containers"][0]
    container["ports"].append({"name": "serve", "containerPort": PORTS["serve"]})
    # A node without a replica answers 503 and gets no traffic.
    container["readinessProbe"] = _probe(PORTS["serve"], "/-/healthz", period=5, failures=2)
    # Requests under way end before the pod does.
    group["template"]["spec"]["terminationGracePeriodSeconds"] = 90
    group["template"]["metadata"]["annotations"] |= {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(PORTS["serve"]),
        "prometheus.io/path": "/metrics",
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": _metadata(spec, options, "endpoint", "endpoint"),
        "spec": {
            "serveConfigV2": yaml.safe_dump(serve_config(spec, host="0.0.0.0"), sort_keys=False),
            "upgradeStrategy": {"type": "NewCluster"},
            "excludeHeadPodFromServeSvc": True,
            "rayClusterDeletionDelaySeconds": 120,
            "rayClusterConfig": _cluster(spec, options, "endpoint", [group]),
        },
    }


def _watch(spec: Spec, options: Options) -> Manifest:
    """The nightly round: labels are joined, the live score is told, the challenger promoted or rejected."""
    command = ["python", "-m", "pmray", "watch", spec.name, "--registry", spec.registry_uri, "--json"]
    pod = _pod(spec, options, "watch", "watch", cpus=1, gpus=0, memory=options.memory_gb)
    container = pod["spec"]["containers"][0] | {"command": command, "ports": []}
    # There is no Ray in it.
    del container["livenessProbe"]
    pod["spec"] |= {"containers": [container], "restartPolicy": "Never"}
    del pod["metadata"]["annotations"]
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": _metadata(spec, options, "watch", "watch"),
        "spec": {
            "schedule": "0 3 * * *",
            # Two rounds at a time would decide twice.
            "concurrencyPolicy": "Forbid",
            "jobTemplate": {"spec": {"backoffLimit": 2, "activeDeadlineSeconds": 3600, "template": pod}},
        },
    }


def _disruption_budget(spec: Spec, options: Options) -> Manifest:
    """Nodes may be drained one at a time, and never the last replica."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(spec, options, "endpoint", "endpoint"),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": _labels(spec, "endpoint")},
        },
    }


def _network_policies(spec: Spec, options: Options) -> list[Manifest]:
    """Whoever reaches Ray's ports can run code, so only a cluster's own pods and its operator do."""
    policies = []
    for part in ("sweep", "cluster", "endpoint"):
        own = {"podSelector": {"matchLabels": _labels(spec, part)}}
        ingress: list[Manifest] = [
            {"from": [own]},
            {
                "from": [
                    {
                        "namespaceSelector": {},
                        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay"}},
                    },
                    # The pod that submits the job.
                    {"podSelector": {"matchLabels": {"app.kubernetes.io/created-by": "kuberay-operator"}}},
                ],
                "ports": [{"protocol": "TCP", "port": PORTS["dashboard"]}],
            },
            {
                "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
                "ports": [{"protocol": "TCP", "port": PORTS[one]} for one in ("metrics", "serve")],
            },
        ]
        if part == "endpoint":
            ingress.append(
                {
                    "from": [{"podSelector": {"matchLabels": {"pmray/client": "true"}}}],
                    "ports": [{"protocol": "TCP", "port": PORTS["serve"]}],
                }
            )
        policies.append(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": _metadata(spec, options, part, part),
                "spec": {
                    "podSelector": {"matchLabels": _labels(spec, part)},
                    "policyTypes": ["Ingress"],
                    "ingress": ingress,
                },
            }
        )
    return policies


def _ray_cluster(spec: Spec, options: Options) -> Manifest:
    """A cluster that stays, for several runs: `pmray submit` through a forwarded port sends them there."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(spec, options, "cluster", "cluster"),
        "spec": _cluster(spec, options, "cluster", [_trial_group(spec, options, "cluster")]),
    }


def _cluster(spec: Spec, options: Options, part: str, groups: list[Manifest]) -> Manifest:
    head = _pod(spec, options, part, "ray-head", cpus=2, gpus=0, memory=DRIVER_MEMORY_GB)
    container = head["spec"]["containers"][0]
    container["ports"] += [
        {"name": name, "containerPort": PORTS[name]} for name in ("gcs", "dashboard", "client")
    ]  # fmt: skip
    return {
        "rayVersion": version("ray"),
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "idleTimeoutSeconds": 120,
            "upscalingMode": "Default",
            "securityContext": _security(),
            "resources": _resources(0.5, 0, 1),
        },
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # The head steers and holds no trial: it must not be the one that is lost.
            "rayStartParams": {
                "num-cpus": "0",
                "dashboard-host": "0.0.0.0",
                "metrics-export-port": str(PORTS["metrics"]),
            },
            "serviceType": "ClusterIP",
            "template": head,
        },
        "workerGroupSpecs": groups,
    }


def _trial_group(spec: Spec, options: Options, part: str) -> Manifest:
    """Nodes for trials: each holds the largest worker of any candidate."""
    demands: list[Resources] = [spec.resources_of(one) for one in spec.candidates]
    cpus = max(one.cpus_per_worker for one in demands)
    gpus = max(one.gpus_per_worker for one in demands)
    least = max(one.fewest for one in demands)
    return _group(
        spec, options, part, cpus=cpus, gpus=gpus, low=0, high=max(least, options.max_workers),
        memory=options.memory_gb, spot=options.spot is not None,
    )  # fmt: skip


def _group(
    spec: Spec,
    options: Options,
    part: str,
    *,
    cpus: float,
    gpus: float,
    low: int,
    high: int,
    memory: float,
    spot: bool,
) -> Manifest:
    template = _pod(spec, options, part, "ray-worker", cpus=cpus, gpus=gpus, memory=memory)
    if spot and options.spot:
        template["spec"]["nodeSelector"] = dict(options.spot)
        template["spec"]["tolerations"] = [
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
            for key, value in options.spot.items()
        ]
    return {
        "groupName": f"{part}-workers",
        "replicas": low,
        "minReplicas": low,
        "maxReplicas": high,
        "rayStartParams": {"metrics-export-port": str(PORTS["metrics"])},
        "template": template,
    }


def _pod(
    spec: Spec, options: Options, part: str, name: str, *, cpus: float, gpus: float, memory: float
) -> Manifest:  # fmt: skip
    volumes: list[Manifest] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}]
    mounts: list[Manifest] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    if part == "sweep":
        volumes.append({"name": "spec", "configMap": {"name": _name(spec, "spec")}})
        mounts.append({"name": "spec", "mountPath": MOUNT, "readOnly": True})
    if not is_remote(spec.storage):
        volumes.append({"name": "storage", "persistentVolumeClaim": {"claimName": options.claim}})
        mounts.append({"name": "storage", "mountPath": str(spec.folder.parent)})
    return {
        "metadata": {
            "labels": _labels(spec, part),
            "annotations": {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(PORTS["metrics"]),
                "prometheus.io/path": "/metrics",
            },
        },
        "spec": {
            "securityContext": _pod_security(),
            "automountServiceAccountToken": name == "ray-head",
            "containers": [
                {
                    "name": name,
                    "image": options.image_name,
                    "env": [
                        # A process that is told to end has time to write what it knows.
                        {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "30"},
                        {"name": "HOME", "value": "/home/pmray"},
                    ],
                    # API keys, URL of the live store, credentials of storage and registry.
                    "envFrom": [
                        {"secretRef": {"name": _name(spec, "secrets"), "optional": part in ("sweep", "cluster")}}
                    ],
                    "ports": [{"name": "metrics", "containerPort": PORTS["metrics"]}],
                    "resources": _resources(cpus, gpus, memory),
                    "securityContext": _security(),
                    "livenessProbe": _probe(52365, "/api/local_raylet_healthz", period=10, failures=12),
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        },
    }


def _resources(cpus: float, gpus: float, memory: float) -> Manifest:
    """The same as request and limit: Ray hands out what it was promised, and nothing is taken back."""
    one = {"cpu": f"{cpus:g}", "memory": f"{memory:g}Gi"}
    if gpus:
        # Kubernetes hands out whole GPUs; Ray shares one between trials.
        one["nvidia.com/gpu"] = str(max(1, round(gpus)))
    return {"requests": dict(one), "limits": dict(one)}


def _probe(port: int, path: str, *, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": port},
        "initialDelaySeconds": 20,
        "timeoutSeconds": 5,
        "periodSeconds": period,
        "failureThreshold": failures,
    }


def _pod_security() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _security() -> Manifest:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _metadata(spec: Spec, options: Options, kind: str, part: str) -> Manifest:
    return {"name": _name(spec, kind), "namespace": options.namespace, "labels": _labels(spec, part)}


def _labels(spec: Spec, part: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "pmray",
        "app.kubernetes.io/instance": _plain(spec.name),
        "app.kubernetes.io/component": part,
    }


def _name(spec: Spec, kind: str) -> str:
    return f"{_plain(spec.name)}-{kind}"


def _plain(name: str) -> str:
    """A run's name as Kubernetes allows names: lower case letters, digits and dashes, and short.

    >>> _plain("Reviews_2.b")
    'reviews-2-b'
    """
    plain = "".join(one if one.isalnum() else "-" for one in name.lower()).strip("-")
    return plain[:40].rstrip("-")
