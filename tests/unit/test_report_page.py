"""Reports as files: every section, nothing from elsewhere, and honest where something is missing."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from pmray.errors import DataError, LedgerError
from pmray.report.evaluation_page import comparison_page, evaluation_page
from pmray.report.html import write_page
from pmray.reporting import write_report
from pmray.run import LEDGER, VERDICT
from tests.made_run import made_run
from tests.tiny import tiny_rows

SECTIONS = (
    *("verdict", "leaderboard", "cost", "curves", "ranking", "parameters", "classes", "calibration", "slices"),
    *("mistakes", "disagreement", "data", "failures", "environment"),
)
OPEN = ("cost", "curves", "ranking", "parameters", "data", "failures", "environment")
"""Sections of a run that is not decided."""


def sections(page):
    return tuple(re.findall(r'<section id="([\w-]+)"', page))


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    return made_run(tmp_path_factory.mktemp("decided"), trials=21)


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "image-classification"])
def test_a_report_has_every_section_and_needs_nothing_but_itself(tmp_path, task):
    spec = made_run(tmp_path, task)
    path = write_report(spec.folder)
    page = path.read_text()
    assert path == spec.folder / "report.html"
    assert sections(page) == SECTIONS
    assert len(page) < 6_000_000
    assert not re.search(r'(?:src|href)="(?!data:|#)|<script|@import|url\(', page)
    # Names, reasons and findings may hold anything.
    assert "nothing &lt;b&gt;real&lt;/b&gt;" in page
    assert "&lt;no&gt; such model" in page
    assert page.count('role="img"') >= 6
    assert ("data:image/jpeg" in page) == (task == "image-classification")


def test_texts_are_escaped(tmp_path):
    def rows(count, seed=0):
        return [
            {**row, "text": f"<script>alert({n})</script> {row['text']}"}
            for n, row in enumerate(tiny_rows(count, seed))
        ]

    page = write_report(made_run(tmp_path, rows=rows).folder).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(" in page


def test_a_run_that_is_not_decided_is_told_as_far_as_it_came_and_stays_sealed(tmp_path, monkeypatch):
    spec = made_run(tmp_path, decided=False)
    monkeypatch.setattr("pmray.reporting.read_sealed", lambda *_: pytest.fail("the test labels were opened"))
    page = write_report(spec.folder).read_text()
    assert sections(page) == OPEN
    assert "not decided" in page


def test_a_run_with_nothing_but_a_first_line_has_a_report(tmp_path):
    spec = made_run(tmp_path, decided=False)
    ledger = spec.folder / LEDGER
    ledger.write_text(ledger.read_text().split("\n")[0] + "\n")
    for name in ("findings.json", "environment.json", "spec.yaml"):
        (spec.folder / name).unlink()
    assert sections(write_report(spec.folder).read_text()) == ("data", "failures", "environment")


def test_without_rows_no_row_is_shown(decided, tmp_path):
    page = write_report(decided.folder, tmp_path / "shared.html", show_rows=False).read_text()
    assert sections(page) == SECTIONS
    assert "Rows are not shown" in page
    assert not re.search(r"n2x\d", page)  # every row ends in such a number
    assert re.search(r"n2x\d", write_report(decided.folder, tmp_path / "own.html").read_text())


def test_where_rows_are_gone_the_report_says_so(tmp_path):
    spec = made_run(tmp_path)
    shutil.rmtree(spec.cache)
    page = write_report(spec.folder).read_text()
    assert "nothing can be said row by row" in page
    assert {"leaderboard", "classes", "curves"} < set(sections(page))


def test_what_cannot_be_read_or_written_is_one_message(decided, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written to .*file/report\.html"):
        write_report(decided.folder, tmp_path / "file" / "report.html")
    damaged = shutil.copytree(decided.folder, tmp_path / "damaged")
    (damaged / VERDICT).write_text("{")
    with pytest.raises(LedgerError, match=r"verdict\.json is damaged"):
        write_report(damaged)


def test_the_report_tells_how_to_repeat_the_run(decided):
    page = write_report(decided.folder).read_text()
    assert f"pmray sweep {decided.folder / 'spec.yaml'} --fresh" in page
    assert re.search(r"&#39;torch==[\d.]+", page)
    assert "revision of bert" in page


def test_the_command_names_the_file_and_answers_json(decided, tmp_path):
    command = [sys.executable, "-m", "pmray", "report", decided.name, "--storage", decided.folder.parent]
    done = subprocess.run(
        [*command, "-o", "x.html", "--json"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert json.loads(done.stdout)["bytes"] == (tmp_path / "x.html").stat().st_size
    lost = subprocess.run([*command[:4], "lost", *command[5:]], capture_output=True, text=True, check=False)
    assert lost.returncode == 1
    assert lost.stderr.startswith("error: Unknown run")


def small_reports(folder):
    """An evaluation and a comparison of made-up predictions, and the files of their reports."""
    from pmray.evaluation.compare import compare
    from pmray.evaluation.evaluate import evaluate

    rows = tiny_rows(120)
    data = folder / "rows.csv"
    data.write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    for name, every in (("good", 10), ("bad", 3)):
        said = [row["label"] if n % every else "negative" for n, row in enumerate(rows)]
        (folder / f"{name}.csv").write_text("prediction\n" + "".join(f"{one}\n" for one in said))
    good, bad = str(folder / "good.csv"), str(folder / "bad.csv")
    evaluated = evaluate(bad, str(data), errors=3, slices="auto", min_slice_rows=10, draws=100)
    compared = compare([good, bad], str(data), draws=200)
    first = write_page(folder / "evaluation.html", evaluation_page(evaluated))
    return evaluated, first, write_page(folder / "comparison.html", comparison_page(compared))


def test_evaluations_and_comparisons_have_reports_in_small(tmp_path):
    evaluated, first, second = small_reports(tmp_path)
    page = first.read_text()
    assert {"metrics", "classes", "mistakes"} <= set(sections(page))
    assert evaluated.mistakes[0].inputs["text"] in page
    assert sections(second.read_text()) == ("scores", "pairs", "disagreements")
    assert "bad.csv" in second.read_text()


def test_rows_with_several_labels_count_each_label(tmp_path):
    def rows(count, seed=0):
        return [
            {**row, "label": [row["label"], *(["long"] if len(row["text"]) > 50 else [])]}
            for row in tiny_rows(count, seed)
        ]

    page = write_report(made_run(tmp_path, rows=rows).folder).read_text()
    assert sections(page) == SECTIONS
    assert "said but false" in page


def test_of_many_classes_the_worst_and_the_most_frequent_confusions_are_shown(tmp_path):
    def rows(count, seed=0):
        return [
            {**row, "label": f"class {(7 * n) % 24}", "group": f"g{seed}-{n // 2}"}
            for n, row in enumerate(tiny_rows(2 * count, seed))
        ]

    page = write_report(made_run(tmp_path, rows=rows).folder).read_text()
    assert "the 20 worst" in page
    assert "Most frequent confusions" in page
    assert 'class="matrix"' not in page.split("<body>")[1]
