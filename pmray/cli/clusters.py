"""The commands for clusters: what is there, what runs on it, and what puts a model into production."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pmray.cli.answers import Answer
from pmray.cli.options import AsJson, Overrides
from pmray.cli.signals import INTERRUPTED

ClusterAddress = Annotated[
    str | None,
    typer.Option(help="Cluster: http://HOST:8265, or HOST:6379 or auto on one of its nodes. Default: RAY_ADDRESS."),
]
JobId = Annotated[str, typer.Argument(help="As `pmray jobs` lists it.", metavar="ID")]
Follow = Annotated[bool, typer.Option("--follow", help="Show what it says until it ends. Ctrl-C leaves it running.")]


def doctor(
    spec: Annotated[
        Path | None, typer.Argument(help="Its storage, registry and models are tried from every node.", metavar="SPEC")
    ] = None,
    set_: Overrides = None,
    address: ClusterAddress = None,
    as_json: AsJson = False,
) -> Answer:
    """Look at every node of a cluster: versions, memory, disk, clocks, ports, storage; exit code 1 on errors."""
    from dataclasses import asdict

    checked = None
    if spec is not None:
        from pmray.spec_file import load_spec

        checked = load_spec(spec, set_ or ())
    from pmray.distributed.doctor import doctor as look
    from pmray.report.cluster import doctor_table

    found = look(address, spec=checked)
    return asdict(found), lambda console: console.print(doctor_table(found)), int(bool(found.errors))


def submit(
    command: Annotated[str, typer.Argument(help="sweep, fit, pretrain, rank, evaluate, watch or doctor.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="What follows the command there: SPEC and options; `--` ends this command's own."),
    ] = None,
    set_: Overrides = None,
    address: ClusterAddress = None,
    follow: Follow = False,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder that is sent along, for data with relative paths. Default: the spec alone."),
    ] = None,
    pip: Annotated[
        Path | None,
        typer.Option(help="Requirements (with -c for constraints) to install. Default: what the image has."),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(help="Environment variable of the job. May be repeated.", metavar="KEY[=VALUE]")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs of the process that steers the run.")] = 0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of the process that steers the run.")] = 0,
    job_id: Annotated[str | None, typer.Option("--id", help="Name of the job. Default: Ray makes one.")] = None,
    as_json: AsJson = False,
) -> Answer:
    """Send a command to a cluster as a job; the result is in the storage and the registry, and this shell may end."""
    from pmray import submission
    from pmray.errors import SpecError, UnknownName

    if command not in submission.COMMANDS:
        raise UnknownName("command", command, submission.COMMANDS)
    given = list(arguments or ())
    spec = None
    if command in submission.SPEC_COMMANDS and given and given[0].endswith((".yaml", ".yml")):
        from pmray.spec_file import load_spec

        spec = load_spec(Path(given.pop(0)), set_ or ())
        # What is sent along keeps its relative paths; where runs are kept is never what is sent along.
        spec = submission.anchored(spec, Path.cwd(), everything=working_dir is None)
    elif command not in ("evaluate", "watch", "doctor"):
        raise SpecError(f"`pmray submit {command}` needs a spec file (.yaml) as its first argument.")
    if working_dir is not None and not working_dir.is_dir():
        raise SpecError(f"--working-dir {working_dir} is not a folder.")
    if pip is not None and not pip.is_file():
        raise SpecError(f"--pip {pip} is not a file; give one of requirements.")
    from pmray.distributed import jobs

    environment = jobs.Environment(working_dir, pip, submission.variables(env or ()), cpus, gpus)
    name = jobs.submit(command, given, spec=spec, address=address, environment=environment, job_id=job_id)
    sys.stderr.write(f"job {name}; `pmray logs {name} --follow` shows it, `pmray stop {name}` ends it\n")
    if follow:
        return _follow(name, address)
    values = {"id": name, "command": command, "run": spec.name if spec else "", "status": "PENDING"}
    return values, lambda console: console.print(name)


def jobs(address: ClusterAddress = None, as_json: AsJson = False) -> Answer:
    """List the jobs of a cluster, the newest first."""
    from pmray.distributed.jobs import list_jobs
    from pmray.report.cluster import jobs_table

    found = list_jobs(address)
    return found, lambda console: console.print(jobs_table(found))


def logs(job: JobId, follow: Follow = False, address: ClusterAddress = None, as_json: AsJson = False) -> Answer:
    """Show what a job has said; exit code 1 where a followed job failed."""
    from pmray.distributed.jobs import logs as said

    if follow:
        return _follow(job, address)
    text = said(job, address)
    return {"id": job, "logs": text}, lambda console: console.out(text, end="")


def stop(job: JobId, address: ClusterAddress = None, as_json: AsJson = False) -> Answer:
    """End a job; what it has finished stays, and submitting it again goes on."""
    from pmray.distributed.jobs import stop as end
    from pmray.report.cluster import jobs_table

    found = end(job, address)
    return found, lambda console: console.print(jobs_table([found]))


deployment = typer.Typer(
    name="deploy", help="Files that put a run and its winner onto other machines.", no_args_is_help=True
)


@deployment.command()
def render(
    spec: Annotated[Path, typer.Argument(help="Spec file of the run whose winner is served.", metavar="SPEC")],
    target: Annotated[str, typer.Option(help="kuberay, or serve for a Ray cluster that is there.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("deployment"),
    image: Annotated[str | None, typer.Option(help="Image of all pods. Default: pmray:VERSION.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Of Kubernetes. Default: pmray.")] = None,
    max_workers: Annotated[int | None, typer.Option(min=1, help="Most nodes of a sweep. Default: 8.")] = None,
    memory_gb: Annotated[int | None, typer.Option(min=1, help="Memory of a worker. Default: 4.")] = None,
    claim: Annotated[
        str | None, typer.Option(help="Volume claim that holds the storage. Default: pmray-storage.")
    ] = None,
    spot: Annotated[
        str | None,
        typer.Option(help="Label of nodes that may be taken away, for trials.", metavar="KEY=VALUE"),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Write manifests, Serve config, dashboard and alerts from a spec."""
    from pmray.deployment.render import options_of, write
    from pmray.deployment.render import render as made
    from pmray.spec_file import load_spec

    if spot is not None and "=" not in spot:
        raise typer.BadParameter(f"--spot needs KEY=VALUE, but got {spot!r}")
    label = None if spot is None else dict([spot.split("=", 1)])
    options = options_of(
        image=image, namespace=namespace, max_workers=max_workers, memory_gb=memory_gb, claim=claim, spot=label
    )
    for path in write(made(load_spec(spec, set_ or ()), target, options), out):
        sys.stdout.write(f"{path}\n")


def _follow(job: str, address: str | None) -> Answer:
    """Hand on to standard error what the job says, as its own process would; the answer is what became of it."""
    from pmray.distributed.jobs import follow
    from pmray.report.cluster import jobs_table

    def say(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    try:
        ended = follow(job, say, address)
    except KeyboardInterrupt:
        sys.stderr.write(f"\njob {job} goes on; `pmray logs {job} --follow` shows it, `pmray stop {job}` ends it\n")
        # Not the way of an interrupted run, whose message would be untrue here.
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    failed = ended["status"] != "SUCCEEDED"
    code = (ended["exit_code"] or 1) if failed else 0
    return ended, lambda console: console.print(jobs_table([ended])), code
