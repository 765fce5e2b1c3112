"""What a run shows at work: tables for people, lines for logs, events for machines, or nothing."""

import json
import re
from io import StringIO

import pytest
from rich.console import Console

from pmray.report.progress import Events, TrialBoard, people, steps
from pmray.selection.budget import Spent
from pmray.selection.ledger import Outcome
from pmray.spec import Search


def outcome(key="a", status="done", score=0.8, **values):
    return Outcome(key, "sweep", "bert", status, score, examples=100, seconds=3.2, **values)


def board(console, **values):
    return TrialBoard(console, "sweep", "f1_macro", 3, 300, **values)


def play(shown):
    """Three trials: one ends well, one is stopped, one runs."""
    with shown:
        shown.start("a", "bert", "default recipe", 100)
        shown.start("b", "llama", "lr=0.001", 100)
        shown.start("c", "bert", "lr=0.01", 100)
        shown.rung("b", 30, 0.4)
        shown.rung("a", 100, 0.8)
        shown.end("a", outcome(facts={"interval": [0.75, 0.85]}))
        shown.end("b", Outcome("b", "sweep", "llama", "stopped", 0.4, examples=30, seconds=1.0))
        yield


def lines_of(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_terminal_sees_stage_counts_leader_what_runs_budget_and_pace():
    console = Console(file=StringIO(), width=120, force_terminal=True)
    shown = board(console, budgets=lambda: [("examples", 130.0, 1000.0)])
    for _ in play(shown):
        plain = Console(file=StringIO(), width=120)
        plain.print(shown.render())
        text = plain.file.getvalue()
    assert "rank > sweep > finalists" in text
    assert "2 of 3 ended: 1 running  1 done  1 stopped  0 failed" in text
    best, running = re.split(r"\nrunning *\n", text)
    leader, second = (line for line in best.splitlines() if "bert" in line or "llama" in line)
    assert "0.800 [0.750, 0.850]" in leader
    assert "2" in leader
    assert "llama" in second
    assert "lr=0.01" in running
    assert "0/100" in running
    assert "budget: examples 130 of 1,000" in text
    assert "examples/s" in text
    assert "s left" in text


def test_a_log_has_a_line_a_trial_with_the_leader():
    console = Console(file=StringIO(), width=160)
    for _ in play(board(console)):
        pass
    first, second = console.file.getvalue().splitlines()
    assert first == "sweep 1/3: bert (default recipe) done, f1_macro 0.800 [0.750, 0.850], 100 examples, 3 s"
    assert second.endswith(
        "llama (lr=0.001) stopped, f1_macro 0.400, 30 examples, 1 s; best so far bert 0.800 [0.750, 0.850]"
    )


def test_machines_read_one_event_a_line(capsys):
    console = people(events=True)
    assert isinstance(console, Events)
    console.print("[yellow]some [bold]words[/][/]")
    with steps(console, "encoding", 7) as advance:
        advance(7)
    for _ in play(board(console, budgets=lambda: [("hours", 0.5, 1.0)])):
        pass
    events = lines_of(capsys)
    kinds = [one["event"] for one in events]
    assert kinds == [
        *("note", "stage_started", "stage_ended", "stage_started"),
        *(
            "trial_started",
            "trial_started",
            "trial_started",
            "rung",
            "rung",
            "trial_ended",
            "trial_ended",
            "stage_ended",
        ),
    ]
    assert events[0]["text"] == "some words"
    assert all("time" in one for one in events)
    ended = events[9]
    assert (ended["candidate"], ended["status"], ended["score"], ended["interval"]) == (
        "bert",
        "done",
        0.8,
        [0.75, 0.85],
    )
    assert ended["best"] == {"candidate": "bert", "score": 0.8}
    assert ended["budgets"] == {"hours": {"used": 0.5, "most": 1.0}}
    assert ended["seconds_left"] >= 0
    assert events[-1]["trials"] == {"done": 1, "stopped": 1, "running": 1}


@pytest.mark.parametrize("events", [False, True])
def test_quiet_is_quiet(capsys, events):
    console = people(quiet=True, events=events)
    console.print("words")
    with steps(console, "encoding", 1) as advance:
        advance()
    for _ in play(board(console)):
        pass
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_failure_without_a_score_is_told_and_leads_nothing(capsys):
    shown = board(people(events=True))
    with shown:
        shown.start("a", "bert", "default recipe", 100)
        shown.end("a", outcome(status="failed", score=None, error="Traceback\nit broke"))
    (ended,) = [one for one in lines_of(capsys) if one["event"] == "trial_ended"]
    assert (ended["best"], ended["error"]) == (None, "Traceback\nit broke")
    plain = Console(file=StringIO(), width=120)
    plain.print(shown.render())
    assert "1 failed" in plain.file.getvalue()


def test_a_trial_that_goes_on_is_counted_once(capsys):
    shown = board(people(events=True))
    for _ in play(shown):
        shown.start("b", "llama", "lr=0.001", 100)
        assert shown.ended == 1
        shown.rung("b", 100, 0.6)
    last = [one for one in lines_of(capsys) if one["event"] == "rung"][-1]
    # 200 of 300 examples were seen, and the third trial runs.
    assert last["seconds_left"] == pytest.approx(last["elapsed"] / 2, abs=0.1)


def test_a_variant_of_a_trial_comes_on_top_of_those_that_were_planned():
    shown = board(people(events=True))
    with shown:
        for key in "abcd":
            shown.start(key, "bert", "default recipe", 100)
            shown.end(key, outcome())
    assert (shown.ended, shown.total, shown.examples) == (4, 4, 400)


def test_only_budgets_that_are_set_are_told():
    spent = Spent({"a": (500, 1800.0)})
    assert spent.used(Search(), 60) == []
    assert spent.used(Search(hours=2, examples=1000, gpu_hours=1), 3600) == [
        ("hours", 1.0, 2.0), ("examples", 500.0, 1000.0), ("GPU-hours", 0.5, 1.0)
    ]  # fmt: skip
