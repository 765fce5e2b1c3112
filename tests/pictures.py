"""The README's pictures, from a real run: ``python -m tests.pictures runs/NAME``."""

import sys
import tempfile
from pathlib import Path

from PIL import Image

from pmray.reporting import write_report
from tests.browser import browser

FOLDER = Path(__file__).parent.parent / ".readme"
WIDTH = 1180
PARTS = {"leaderboard": ("leaderboard", "leaderboard"), "curves": ("curves", "curves")}
"""Name of a picture -> first and last section in it."""


def main(run: str) -> None:
    """Write the pictures of a run's report."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, browser() as page:
        report = write_report(run, Path(scratch) / "report.html", show_rows=False)
        page.open(report.as_uri(), WIDTH)
        for name, (first, last) in PARTS.items():
            top, bottom = (
                page.run(f"document.getElementById('{one}').getBoundingClientRect().{side} + scrollY")
                for one, side in ((first, "top"), (last, "bottom"))
            )
            path = page.picture(FOLDER / f"{name}.png", clip={"x": 0, "y": top, "width": WIDTH, "height": bottom - top})
            # Few colours: a third of the size.
            Image.open(path).convert("RGB").quantize(64, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
            print(path, path.stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1])
