"""Recorded scores are played again: the rules do what they do in a sweep, and cost what they would have cost."""

import json

import numpy as np
import pytest

from pmray.errors import DataError
from pmray.selection.ledger import Outcome
from pmray.selection.replay import Curve, curves_of, read_matrix, replay_halving, replay_matrix


def curves(count=9, noise=0.0, seed=0):
    """Trials whose order at the rungs is that of the end, but for noise."""
    random = np.random.default_rng(seed)
    return [
        Curve(
            str(number),
            "bert" if number % 2 else "gpt",
            {
                rung: number / 10 * share + noise * random.normal()
                for rung, share in ((100, 0.5), (300, 0.8), (900, 1.0))
            },
        )
        for number in range(count)
    ]


def test_where_early_scores_tell_the_end_promotion_is_cheap_and_loses_nothing():
    found = {one.rule: one for one in replay_halving(curves())}
    whole = found["no halving"]
    assert (whole.compute, whole.regret) == (1.0, 0.0)
    promoted = found["promotion 1/3 at 11% and 33%"]
    assert promoted.regret == 0
    # Nine arrive at 100; three of nine go on to 300, and one to 900.
    assert promoted.compute == pytest.approx((6 * 100 + 2 * 300 + 900) / 8100)
    stopped = found["stopping 1/3 at 11% and 33%"]
    assert stopped.regret == 0 and promoted.compute < stopped.compute < 1, "who comes early goes on for want of rivals"


def test_where_early_scores_lie_halving_loses_something():
    late = Curve("late", "gpt", {100: 0.0, 300: 0.0, 900: 1.0})
    found = {one.rule: one for one in replay_halving([*curves(), late])}
    promoted, stopped = (found[f"{rule} 1/3 at 11% and 33%"] for rule in ("promotion", "stopping"))
    assert promoted.regret == promoted.worst == pytest.approx(0.2)
    # Now and then it is among the first to arrive, which nobody stops.
    assert 0 < stopped.regret < stopped.worst == pytest.approx(0.2)
    # From a later rung on it costs more, and here it does not help.
    assert found["promotion 1/3 at 33%"].compute > promoted.compute


def test_only_trials_that_went_to_their_end_can_be_replayed():
    def outcome(key, status, curve):
        return Outcome(key=key, stage="sweep", candidate="bert", status=status, score=0.5, curve=curve)

    ended = [outcome(key, "done", ((10, 0.1), (30, 0.2))) for key in "ab"]
    assert [one.trial for one in curves_of([*ended, outcome("c", "stopped", ((10, 0.1),))])] == ["a", "b"]
    with pytest.raises(DataError, match="1 trials went to their end; a replay needs two"):
        replay_halving(curves_of(ended[:1]))
    with pytest.raises(DataError, match="no rung in common"):
        replay_halving(curves_of([outcome("a", "done", ((30, 0.2),)), ended[0]]))


def test_scores_on_other_data_sets_help_where_models_are_good_in_general():
    random = np.random.default_rng(0)
    talent = random.normal(size=12)
    found = {one.rule: one for one in replay_matrix(talent + 0.3 * random.normal(size=(8, 12)), tried=(1, 3))}
    assert found["3 by mean score elsewhere"].regret < 0.3 * found["3 at random"].regret
    assert found["3 at random"].regret < found["1 at random"].regret
    assert found["3 at random"].compute == 0.25
    # All models tried everywhere: experience is the mean score; from a quarter it is still better than chance.
    assert found["3 by experience, all of it"].regret == pytest.approx(found["3 by mean score elsewhere"].regret)
    assert found["3 by experience, a quarter of it"].regret < 0.6 * found["3 at random"].regret
    # With nothing in common, the others' scores say nothing.
    noise = {one.rule: one for one in replay_matrix(random.normal(size=(60, 12)), tried=(3,))}
    assert noise["3 by mean score elsewhere"].regret == pytest.approx(noise["3 at random"].regret, rel=0.3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\tb\n1\t2\n1\n", "m.txt:3 has 1 scores, but the first line names 2 models"),
        ("a\tb\n1\tx\n", "m.txt:2: could not convert"),
        ("a\tb\n1\t2\n", "holds 1 data sets x 2 models"),
        ("", "holds 0 data sets x 0 models"),
    ],
)
def test_a_damaged_table_is_told_by_its_line(tmp_path, text, said):
    path = tmp_path / "m.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_matrix(path)


def test_the_command_replays_tables_and_ledgers(tmp_path, capsys):
    from typer.testing import CliRunner

    from pmray.cli import app

    (tmp_path / "m.tsv").write_text("a\tb\tc\n" + "0.1\t0.2\t0.3\n" * 3)
    lines = [
        Outcome(key=one.trial, stage="sweep", candidate=one.candidate, status="done", curve=tuple(one.scores.items()))
        for one in curves()
    ]
    run = tmp_path / "runs" / "job"
    run.mkdir(parents=True)
    (run / "ledger.jsonl").write_text("".join(json.dumps(vars(one)) + "\n" for one in lines))
    done = CliRunner().invoke(app, ["replay", str(tmp_path / "m.tsv"), "job", "--storage", str(run.parent), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found[str(tmp_path / "m.tsv")][0]["rule"] == "1 at random"
    assert found["job"][0] == {"rule": "no halving", "compute": 1.0, "regret": 0.0, "worst": 0.0}
