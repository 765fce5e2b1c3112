"""Send a command to a cluster as a job, and look after it: the driver runs there, and this machine may go away."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pmray.distributed.address import Address, Kind, address_of, knock, unreachable
from pmray.errors import ClusterError
from pmray.spec import Spec
from pmray.submission import entrypoint

OURS = "pmray"
"""Key of a job's metadata that says which command it is."""

POLL_SECONDS = 1.0
AGENT_SECONDS = 90.0
"""How long a cluster may take to become ready for jobs."""

LOGGERS = (
    *("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"),
    *("ray._private.runtime_env.packaging", "ray._private.authentication.http_token_authentication"),
)
"""Ray's, which tell each step of a submission."""


@dataclass(frozen=True)
class Environment:
    """What a job finds on the cluster."""

    working_dir: Path | None = None
    """Folder that is sent along; by default only the spec."""
    requirements: Path | None = None
    """Requirements file (with ``-c`` for constraints) that is installed for the job; by default what is in the image is
    used."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables."""
    cpus: float = 0.0
    gpus: float = 0.0
    """Of the process that steers the run."""


def submit(
    command: str,
    arguments: Sequence[str],
    *,
    spec: Spec | None = None,
    address: str | None = None,
    environment: Environment | None = None,
    job_id: str | None = None,
) -> str:
    """Send ``pmray COMMAND`` to a cluster.

    Args:
        command: One of ``submission.COMMANDS``.
        arguments: What follows the command, and the spec.
        spec: Goes along as a file; its relative paths must mean the same there, see ``submission.anchored``.
        address: ``http://HOST:8265``, or ``HOST:6379`` or ``auto`` on a node of the cluster.
        environment: What the job finds there.
        job_id: By default Ray makes one.

    Returns:
        The job's id.

    Raises:
        ClusterError: The cluster cannot be reached, or does not take the job.
    """
    asked = environment or Environment()
    with _client(address) as client, TemporaryDirectory() as folder:
        working = asked.working_dir or Path(folder)
        name = f".pmray-{spec.name}-{time.time_ns()}.yaml" if spec else None
        if spec is not None and name is not None:
            (working / name).write_text(spec.to_yaml())
        try:
            runtime: dict[str, Any] = {"working_dir": str(working), "env_vars": dict(asked.variables)}
            if asked.requirements:
                runtime["pip"] = str(asked.requirements)
            request = {
                "entrypoint": entrypoint(command, arguments, name),
                "submission_id": job_id,
                "runtime_env": runtime,
                "metadata": {OURS: command, "run": spec.name if spec else ""},
                "entrypoint_num_cpus": asked.cpus or None,
                "entrypoint_num_gpus": asked.gpus or None,
            }
            until = time.monotonic() + AGENT_SECONDS
            while True:
                try:
                    return str(client.submit_job(**request))
                except RuntimeError as error:
                    # A cluster that has just started answers before it takes jobs.
                    if "No available agent" not in str(error) or time.monotonic() > until:
                        raise
                time.sleep(POLL_SECONDS)
        finally:
            if name is not None:
                (working / name).unlink()


def list_jobs(address: str | None = None) -> list[dict[str, Any]]:
    """The jobs that were submitted to a cluster: id, command, run, status, start and seconds; the newest first.

    Raises:
        ClusterError: The cluster cannot be reached.
    """
    with _client(address) as client:
        found = [one for one in client.list_jobs() if one.submission_id]
    return sorted(map(_described, found), key=lambda one: one["started"] or 0, reverse=True)


def follow(job_id: str, say: Callable[[str], None], address: str | None = None) -> dict[str, Any]:
    """Hand on what a job says until it ends; the job goes on when this stops.

    Args:
        job_id: Of the job.
        say: Called with every piece of its output.
        address: Of the cluster.

    Returns:
        The job as ``list_jobs`` describes it.

    Raises:
        ClusterError: No such job, or the cluster is gone.
    """
    with _client(address) as client:
        _find(client, job_id)
        said = 0
        while True:
            try:
                said = asyncio.run(_stream(client, job_id, say, said))
            except (RuntimeError, ConnectionError, OSError):
                # The connection broke; what was said already is not said again.
                time.sleep(POLL_SECONDS)
            if client.get_job_status(job_id).is_terminal():
                rest = client.get_job_logs(job_id)
                say(rest[said:])
                return _described(client.get_job_info(job_id))
            time.sleep(POLL_SECONDS)


async def _stream(client: JobSubmissionClient, job_id: str, say: Callable[[str], None], said: int) -> int:
    """Say what comes after the first `said` characters; returns how many there are now."""
    seen = 0
    pieces: AsyncIterator[str] = client.tail_job_logs(job_id)
    async for piece in pieces:
        seen += len(piece)
        if seen > said:
            say(piece[-(seen - said) :])
            said = seen
    return said


def logs(job_id: str, address: str | None = None) -> str:
    """All that a job has said so far.

    Raises:
        ClusterError: No such job, or no such cluster.
    """
    with _client(address) as client:
        _find(client, job_id)
        return str(client.get_job_logs(job_id))


def stop(job_id: str, address: str | None = None, *, seconds: float = 60.0) -> dict[str, Any]:
    """End a job as SIGTERM does, and wait for its end; what it has finished stays, and the same command goes on.

    Raises:
        ClusterError: No such job, or it does not end.
    """
    with _client(address) as client:
        _find(client, job_id)
        client.stop_job(job_id)
        until = time.monotonic() + seconds
        while not client.get_job_status(job_id).is_terminal():
            if time.monotonic() > until:
                raise ClusterError(
                    f"job {job_id} has not ended within {seconds:.0f} s; `pmray logs {job_id}` says more."
                )
            time.sleep(POLL_SECONDS / 4)
        return _described(client.get_job_info(job_id))


@contextmanager
def _client(address: str | None) -> Iterator[JobSubmissionClient]:
    """Ray's client of a cluster's jobs; its errors become one sentence."""
    found = address_of(address)
    if found.kind is Kind.here:
        found = Address(Kind.cluster, "auto", "no --address and no RAY_ADDRESS")
    knock(found)
    # Ray lets its variable win over what it is told.
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    for logger in LOGGERS:
        logging.getLogger(logger).setLevel(logging.ERROR)
    os.environ["RAY_API_SERVER_ADDRESS"] = found.value
    try:
        yield JobSubmissionClient(found.value)
    except AuthenticationError as error:
        raise ClusterError(f"{found.value} refuses this process ({' '.join(str(error).split())[:200]})") from None
    except (ConnectionError, ValueError) as error:
        raise ClusterError(unreachable(found, f" ({' '.join(str(error).split())[:200]})")) from None
    except RuntimeError as error:
        raise ClusterError(f"{found.value} did not do it: {' '.join(str(error).split())[:500]}") from None
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _find(client: JobSubmissionClient, job_id: str) -> None:
    known = [one.submission_id for one in client.list_jobs() if one.submission_id]
    if job_id not in known:
        from pmray.errors import nearest

        hint = nearest(job_id, known)
        raise ClusterError(
            f"no job {job_id!r} on this cluster; " + (f"did you mean {hint!r}?" if hint else "`pmray jobs` lists them.")
        )


def _described(job: JobDetails) -> dict[str, Any]:
    metadata = job.metadata or {}
    started = job.start_time / 1000 if job.start_time else None
    ended = job.end_time / 1000 if job.end_time else None
    return {
        "id": job.submission_id,
        "command": metadata.get(OURS) or job.entrypoint,
        "run": metadata.get("run", ""),
        "status": str(job.status.value if isinstance(job.status, JobStatus) else job.status),
        "message": job.message or "",
        "exit_code": job.driver_exit_code,
        "started": started,
        "seconds": None if started is None else round((ended or time.time()) - started, 1),
    }
