"""What a trial's end means: try again, try elsewhere, or leave it; and which hosts get no more trials."""

import random

import pytest

from pmray.selection.failures import (
    ATTEMPTS,
    WORKER_DIED,
    Again,
    Attempt,
    Leave,
    after_end,
    avoided,
    cause_of,
)

TRACE = '  File "x.py", line 3, in f\n    g()\n'


@pytest.mark.parametrize(
    ("status", "error", "cause"),
    [
        ("done", None, "none"),
        ("stopped", None, "none"),
        ("infeasible", "bert ran out of memory", "memory"),
        ("unavailable", "bert: no such folder", "candidate"),
        ("failed", f"{WORKER_DIED} on node-1 (killed, or out of memory)", "worker"),
        ("failed", "WorkerCrashedError: The worker died unexpectedly while executing this task", "worker"),
        ("failed", "The actor died unexpectedly before finishing this task.", "worker"),
        ("failed", f"{TRACE}OSError: [Errno 28] No space left on device", "machine"),
        ("failed", f"{TRACE}ConnectionResetError: [Errno 104] Connection reset by peer", "machine"),
        ("failed", f"{TRACE}safetensors.SafetensorError: file is torn", "machine"),
        ("failed", f"{TRACE}RuntimeError: CUDA error: an illegal memory access was encountered", "machine"),
        ("failed", f"{TRACE}RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer", "machine"),
        ("failed", f"{TRACE}RuntimeError: Gloo connectFullMesh failed with timed out connecting", "machine"),
        ("failed", f"{TRACE}torch.distributed.DistNetworkError: The client socket has timed out", "machine"),
        ("failed", f"{TRACE}ValueError: shapes do not match", "program"),
        ("failed", "loss is nan at step 3 with lr 0.1; use a lower lr or more warm-up.", "recipe"),
    ],
)
def test_causes_are_told_apart(status, error, cause):
    assert cause_of(status, error) == cause


def on(*hosts):
    return [Attempt("t", host, False) for host in hosts]


def test_only_what_can_pass_is_tried_again_on_one_host():
    here = {"a"}
    for cause in ("worker", "machine"):
        assert after_end(cause, on("a"), here) == Again(frozenset())
        assert after_end(cause, on(*"a" * ATTEMPTS), here) == Leave(may_pass=True)
    for cause in ("recipe", "program", "memory"):
        assert after_end(cause, on("a"), here) == Leave(may_pass=False)
    assert after_end("candidate", on("a"), here) == Leave(may_pass=True), "a later run looks again"


def test_what_may_lie_in_the_host_is_tried_once_on_another():
    both = {"a", "b"}
    for cause in ("worker", "machine", "program", "memory", "candidate"):
        assert after_end(cause, on("a"), both) == Again(frozenset("a"))
    assert after_end("program", on("a", "b"), {"a", "b", "c"}) == Leave(may_pass=False), "it has itself to blame"
    assert after_end("machine", on("a", "b"), {"a", "b", "c"}) == Again(frozenset("ab"))
    assert after_end("recipe", on("a"), both) == Leave(may_pass=False)
    assert after_end("program", on("bad"), {"good"}) == Again(frozenset({"bad"})), "the bad host is avoided already"
    assert after_end("program", on(""), both) == Leave(may_pass=False), "nobody knows where several workers failed"


def test_a_host_is_avoided_when_others_run_what_it_fails():
    bad, good = [Attempt(t, "bad", False) for t in "abc"], [Attempt(t, "good", True) for t in "abc"]
    assert avoided([*bad, *good]) == {"bad"}
    assert avoided([*bad, *good[:2]]) == frozenset(), "of the third nobody knows yet"
    assert avoided([*bad[:2], Attempt("d", "bad", True), bad[2], *good]) == frozenset(), "it runs others well"
    assert avoided([*bad, *(Attempt(t, "good", False) for t in "abc")]) == frozenset(), "so do the others fail"
    # A trial that fails everywhere in between changes nothing.
    odd = [Attempt("x", "bad", False), Attempt("x", "good", False)]
    assert avoided([*bad[:2], *odd, *bad[2:], *good]) == {"bad"}


@pytest.mark.parametrize("seed", range(5))
def test_a_black_hole_costs_few_trials_and_loses_none(seed):
    """Four hosts, one of which fails everything at once and is therefore always free: without care it gets most."""
    draw = random.Random(seed)
    hosts, attempts, done = ["bad", "x", "y", "z"], [], {}
    waiting = [(f"t{number}", frozenset()) for number in range(60)]
    while waiting:
        trial, without = waiting.pop(0)
        places = [host for host in hosts if host not in without | avoided(attempts)]
        host = "bad" if "bad" in places and draw.random() < 0.8 else draw.choice(places)
        # One in ten has itself to blame.
        well = host != "bad" and int(trial[1:]) % 10 > 0
        attempts.append(Attempt(trial, host, well))
        if well:
            done[trial] = host
            continue
        mine = [one for one in attempts if one.trial == trial]
        decision = after_end("program", mine, set(hosts) - avoided(attempts))
        if isinstance(decision, Again):
            waiting.insert(0, (trial, decision.without))
        else:
            done[trial] = None
    assert {trial for trial, host in done.items() if host is None} == {t for t in done if int(t[1:]) % 10 == 0}
    assert "bad" in avoided(attempts)
    assert sum(one.host == "bad" for one in attempts) <= 10
