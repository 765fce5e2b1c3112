"""What a sweep survives, and what it leaves behind: ``python -m tests.bench.sweep_faults [failures|kills|many]``.

``failures`` makes 30 % of all trials and finalists' fits fail: by an error of the disk, by SIGKILL of the worker, by
memory that runs out. ``kills`` ends the driver with SIGKILL ten times. ``many`` runs 500 very short trials, most of
them stopped early. All with tiny models, so that what is measured is not training.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from tests.tiny import RECIPE, SPACE, tiny_model, tiny_spec

FOLDER = "PMRAY_BENCH_FOLDER"
"""Where workers note what they have trained."""
SHARE = "PMRAY_BENCH_FAILURES"
"""Part of all trials and fits that are made to fail."""
KILLS = 10
TRIALS = 10
MANY = 500
EPOCHS = 8
CONSOLE = Console(width=140, highlight=False)


def prepare_worker() -> None:
    """Run in every worker process of Ray: note examples that are trained, and make work fail."""
    import torch

    from pmray.errors import OutOfMemory
    from pmray.training import loop, trial

    folder, share = Path(os.environ[FOLDER]), float(os.environ.get(SHARE, "0"))
    # Before anything else uses them: two processes at once would otherwise each take both cores.
    torch.set_num_threads(1)
    train, accumulate, fit = loop.Loop._train, loop.Loop.add_gradients, trial._fit
    state: dict[str, Any] = {"key": "", "fault": ""}

    def noted_fit(work: Any, *rest: Any) -> Any:
        started = folder / f"{work.key}.starts"
        with started.open("a") as file:
            file.write("x")
        chance = random.Random(f"{work.key} {started.stat().st_size}")
        fault = chance.choice(["disk", "kill", "memory"]) if chance.random() < share else ""
        state.update(key=work.key, fault=fault)
        if fault:
            with (folder / "faults").open("a") as file:
                file.write(f"{fault}\n")
        if fault == "disk":
            raise OSError(28, "No space left on device")
        return fit(work, *rest)

    def noted_train(self: Any, rows: Any) -> None:
        if state["fault"] == "kill" and self.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        train(self, rows)
        with (folder / f"{state['key']}.examples").open("ab") as file:
            file.write(b"x" * len(rows))

    def noted_accumulate(self: Any, mine: Any, batch_rows: int) -> float:
        if state["fault"] == "memory" and len(mine) > 1:
            state["fault"] = ""
            raise OutOfMemory(self.name, len(mine), 16, "cpu")
        return accumulate(self, mine, batch_rows)

    loop.Loop._train, loop.Loop.add_gradients, trial._fit = noted_train, noted_accumulate, noted_fit


def write_spec(folder: Path, **search: Any) -> Path:
    spec = tiny_spec(folder)
    recipe = {**RECIPE, "epochs": EPOCHS}
    spec["candidates"] = [{**one, "recipe": recipe} for one in spec["candidates"]]
    spec["candidates"].append(
        {"model": str(tiny_model(folder / "bert")), "name": "bert-1", "layers": 1, "recipe": recipe, "space": SPACE}
    )
    spec["search"] = {"trials": TRIALS, "finalists": 2, "seeds": 2, "rank_rows": 100, "state_seconds": 0.5, **search}
    # Latency is measured anew each time; the number of parameters stays.
    spec["decide"]["prefer"] = "parameters"
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def child(spec: str) -> None:
    """Run a sweep on a cluster whose workers are prepared."""
    from pmray.cli import main
    from pmray.distributed.cluster import SETTINGS, start_here

    os.environ.update(SETTINGS)
    hook = {"worker_process_setup_hook": "tests.bench.sweep_faults.prepare_worker"}
    start_here(num_cpus=2, include_dashboard=False, runtime_env=hook)
    sys.argv = ["pmray", "sweep", spec, "--json"]
    main()


def start(spec: Path, notes: Path, share: float = 0.0) -> subprocess.Popen[str]:
    notes.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench.sweep_faults", "child", str(spec)],
        env={**os.environ, FOLDER: str(notes), SHARE: str(share), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcomes(folder: Path) -> list[dict[str, Any]]:
    ledger = folder / "runs" / "tiny" / "ledger.jsonl"
    lines = ledger.read_bytes().split(b"\n")[:-1] if ledger.exists() else []
    return [json.loads(line) for line in lines if line]


def failures() -> None:
    """Goal 4: the same winner with 30 % of failures as without, exit code 0, every failure explained."""
    table = Table(title="30 % of all trials and fits fail")
    for heading in ("failures", "exit code", "winner", "trials done or stopped", "made to fail", "told in the verdict"):
        table.add_column(heading)
    for share in (0.0, 0.3):
        with TemporaryDirectory() as name:
            folder = Path(name)
            run = start(write_spec(folder, algorithm="random"), folder / "notes", share)
            out, err = run.communicate()
            if run.returncode:
                CONSOLE.print(err[-3000:])
            verdict = json.loads((folder / "runs" / "tiny" / "verdict.json").read_text())
            # A trial that waits at a rung and goes on has several lines.
            trials = {one["key"]: one for one in outcomes(folder) if one["stage"] == "sweep"}.values()
            faults = (folder / "notes" / "faults").read_text().split() if share else []
            table.add_row(
                f"{share:.0%}",
                str(run.returncode),
                json.loads(out)["winner"],
                f"{sum(one['status'] in ('done', 'stopped') for one in trials)} of {TRIALS}",
                ", ".join(f"{count} x {fault}" for fault, count in Counter(faults).items()) or "-",
                str(len(verdict["failures"])),
            )
    CONSOLE.print(table)


def kills() -> None:
    """Goal 5: ten times SIGKILL for the driver; how much is trained twice, and whether the verdict is the same."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        whole = start(write_spec(folder / "whole", algorithm="random"), folder / "whole" / "notes")
        verdict = json.loads(whole.communicate(timeout=500)[0])
        spec = write_spec(folder / "killed", algorithm="random")
        chance, ended = random.Random(0), 0
        while ended < KILLS:
            run = start(spec, folder / "killed" / "notes")
            before = len(outcomes(folder / "killed"))
            until = time.monotonic() + 60
            # Once it is under way again, at any moment.
            while len(outcomes(folder / "killed")) == before and run.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(chance.uniform(0, 2))
            if run.poll() is not None:
                break
            family = psutil.Process(run.pid).children(recursive=True)
            run.kill()
            run.communicate()
            ended += 1
            # Ray's reaper needs a moment; what outlives it is ended, so that it does not slow the next down.
            psutil.wait_procs(family, timeout=10)
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        last = start(spec, folder / "killed" / "notes")
        again = json.loads(last.communicate(timeout=500)[0])
        done = {one["key"]: one for one in outcomes(folder / "killed") if one["stage"] in ("sweep", "final")}
        trained = {path.stem: path.stat().st_size for path in (folder / "killed" / "notes").glob("*.examples")}
        repeated = {key: count - done[key]["examples"] for key, count in trained.items() if key in done}
        longest = 160 * EPOCHS
        CONSOLE.print(
            f"{ended} kills; {sum(max(0, one) for one in repeated.values()):,} of {sum(trained.values()):,} examples "
            f"trained twice, at most {max(repeated.values(), default=0):,} of one fit of up to {longest:,} (rungs at "
            f"{longest // 5} and {longest // 3}); winner {again['winner']}, without kills {verdict['winner']}; scores "
            f"equal: {[one['score'] for one in again['lines']] == [one['score'] for one in verdict['lines']]}"
        )


def many() -> None:
    """Goal 6: 500 very short trials; memory of the driver and of the trials' processes, and what is left of them."""
    import math

    import ray

    from pmray.distributed.cluster import connected
    from pmray.distributed.tune import run_trials
    from pmray.selection.search import Search
    from pmray.spec_file import load_spec
    from pmray.stages.fitting import encode
    from pmray.stages.preparation import prepare
    from pmray.stages.searching import leaders_of

    with TemporaryDirectory() as name:
        folder = Path(name)
        spec = load_spec(write_spec(folder, algorithm="random"), ["search.rungs=2"])
        short = [one.model_copy(update={"recipe": {**RECIPE, "epochs": 2}}) for one in spec.candidates]
        spec = spec.model_copy(update={"candidates": short})
        prepared, ends = prepare(spec, Console(stderr=True)), Counter()
        driver, of_driver, of_trials = psutil.Process(), {}, {}

        def actors() -> list[psutil.Process]:
            return [one for one in driver.children(recursive=True) if "ImplicitFunc" in "".join(one.cmdline()[:1])]

        def ended(work: Any, facts: Any, may_pass: bool) -> None:
            ends[facts.status] += 1
            of_driver[ends.total()] = driver.memory_info().rss
            of_trials[ends.total()] = sum(one.memory_info().rss for one in actors())

        with connected() as cluster:
            encode(prepared, cluster, Console(stderr=True))
            started = time.perf_counter()
            run_trials(
                Search(list(prepared.arms.values()), algorithm="random"),
                lambda proposal: prepared.work("sweep", proposal.candidate, proposal.recipe, 0),
                {one.name: spec.resources for one in prepared.candidates},
                trials=MANY,
                at_a_time=2,
                reduction=spec.search.reduction,
                leaders=leaders_of(prepared, list(prepared.arms)),
                enough=lambda: False,
                scratch=folder / "scratch",
                on_start=lambda work: None,
                on_rung=lambda work, rung: None,
                on_end=ended,
            )
            seconds = time.perf_counter() - started
            until = time.monotonic() + 30
            held = math.inf
            while held and time.monotonic() < until:
                held = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)
                time.sleep(0.5)
            groups = [one for one in ray.util.placement_group_table().values() if one["state"] != "REMOVED"]
            scratch = sum(path.stat().st_size for path in (folder / "scratch").rglob("*") if path.is_file())
            left = len(actors())
        last = max(of_driver)
        grown, processes = ((one[last] - one[20]) / 2**20 for one in (of_driver, of_trials))
        CONSOLE.print(
            f"{dict(ends)} in {seconds:.0f} s; from trial 20 to {last} the driver grew by {grown:.0f} MiB (aim: 200), "
            f"the trials' processes by {processes:.0f}; left: {held:g} CPUs held, {len(groups)} placement groups, "
            f"{left} actors, {scratch / 2**20:.1f} MiB of Tune's files (deleted with the run)"
        )


def main(*what: str) -> None:
    """Measure what is asked for, or all."""
    if what[:1] == ("child",):
        child(what[1])
        return
    for name in what or ("failures", "kills", "many"):
        {"failures": failures, "kills": kills, "many": many}[name]()


if __name__ == "__main__":
    main(*sys.argv[1:])
