"""How long a report takes and how large it is: 100 trials, 1,800 test rows."""

import tempfile
from pathlib import Path
from time import perf_counter, process_time

from pmray.reporting import write_report
from tests.made_run import made_run
from tests.tiny import tiny_images, tiny_rows, tiny_tagged

TIMES = 20
"""As many rows as a made run has by itself."""


def main(trials: int = 100) -> None:
    """Print one line a task."""
    kinds = {
        "text-classification": tiny_rows,
        "token-classification": tiny_tagged,
        "image-classification": tiny_images,
    }
    for task, rows in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            spec = made_run(
                Path(folder), task, trials=trials, rows=lambda count, seed=0, rows=rows: rows(TIMES * count, seed)
            )
            walls, cpus = [], []
            for _ in range(3):
                began, used = perf_counter(), process_time()
                path = write_report(spec.folder)
                walls.append(f"{perf_counter() - began:.2f}")
                cpus.append(f"{process_time() - used:.2f}")
            size = path.stat().st_size / 1e3
            print(f"{task}: {trials} trials, {', '.join(walls)} s ({', '.join(cpus)} s of CPU time), {size:.0f} kB")


if __name__ == "__main__":
    main()
