"""Sub-words and windows: every word is read where the model sees most around it."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoConfig

from pmray.data.encode import encode_table
from pmray.scoring.ragged import flat
from pmray.spec import Recipe
from pmray.tasks.tokens import TokenClassification
from pmray.training import loop
from pmray.training.prediction import predict
from pmray.training.state import StateFile, read_state, write_state
from tests.tiny import tiny_model, tiny_tagged

TASK = TokenClassification(("O", "B-bad", "I-bad", "B-good", "I-good"))


def rows(words: list[list[str]], labels: list[list[str]] | None = None) -> pa.Table:
    columns = {"row_id": [f"r:{n}" for n in range(len(words))], "words": words}
    return pa.table(columns | ({"label": labels} if labels else {}))


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def folder(request, tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param))


def test_long_rows_are_windows_and_no_word_is_lost(folder):
    processor = TASK.processor(folder)
    words = ["phone ", "was ", "good "] * 20
    encoded = encode_table(TASK, rows([words, ["good "]]), processor, 16)
    windows = encoded.table["windows"].to_pylist()
    assert len(windows[0]) > 3
    assert max(windows[0]) <= 16
    assert len(windows[1]) == 1
    places, ids = encoded.table["places"].to_pylist()[0], encoded.table["input_ids"].to_pylist()[0]
    assert processor.convert_ids_to_tokens([ids[place] for place in places]) == [word.strip() for word in words]
    # Away from the edges, except where the row itself begins or ends.
    starts = np.cumsum([0, *windows[0]])
    for place in places[3:-3]:
        window = np.searchsorted(starts, place, side="right") - 1
        assert min(place - starts[window], starts[window + 1] - 1 - place) >= 1
    assert encoded.lengths.tolist() == [sum(window) for window in windows]


def test_a_word_without_a_token_is_still_answered(folder):
    processor = TASK.processor(folder)
    encoded = encode_table(TASK, rows([["\u200b ", "good "], [" "]]), processor, 16)
    assert [len(row) for row in encoded.table["places"].to_pylist()] == [2, 1]
    model = TASK.build(folder, AutoConfig.from_pretrained(folder), 0)
    assert [len(row) for row in predict(model, TASK, encoded)] == [2, 1]


def test_it_learns_tags_in_windows_too(folder):
    train, test = tiny_tagged(120), tiny_tagged(40, seed=1)
    spaced = [[f"{word} " for word in row["words"]] for row in train + test]
    table = rows(spaced, [row["label"] for row in train + test])
    processor = TASK.processor(folder)
    encoded = encode_table(TASK, table, processor, 8)
    assert max(len(row) for row in encoded.table["windows"].to_pylist()) > 1
    torch.manual_seed(0)
    model = TASK.build(folder, AutoConfig.from_pretrained(folder), 0, dtype=torch.float32)
    fit, held = (
        encode_table(TASK, table.slice(0, 120), processor, 8),
        encode_table(TASK, table.slice(120), processor, 8),
    )
    targets = TASK.targets(table)
    recipe = Recipe(lr=5e-3, epochs=16, batch_size=8)
    found = loop.fit(
        model, TASK, recipe, fit, targets[:120], held, targets[120:], metric="span_f1", rungs=[960, 1920], seed=0
    )  # fmt: skip
    assert found.score > (0.9 if "bert" in folder else 0.5)  # a decoder sees only what comes before
    assert flat(found.validation).shape == (flat(targets[120:]).size, 5)


def test_a_fit_that_goes_on_has_the_scores_of_its_best_rung(folder, tmp_path):
    class Once(StateFile):
        reached = False

        def urgent(self):
            return self.reached

        def save(self, state):
            super().save(state)
            raise KeyboardInterrupt

    table = pa.Table.from_pylist([{"row_id": str(n), **row} for n, row in enumerate(tiny_tagged(24))])
    encoded, targets = encode_table(TASK, table, TASK.processor(folder), 16), TASK.targets(table)
    recipe, rungs = Recipe(lr=1e-3, epochs=2, batch_size=8), [24, 48]

    def fit(keeper, report=lambda rung: None):
        torch.manual_seed(0)
        model = TASK.build(folder, AutoConfig.from_pretrained(folder), 0, dtype=torch.float32)
        options = {"metric": "span_f1", "rungs": rungs, "seed": 0, "keeper": keeper, "report": report}
        return loop.fit(model, TASK, recipe, encoded, targets, encoded, targets, **options)

    once = Once(tmp_path / "state.pt")
    with pytest.raises(KeyboardInterrupt):
        fit(once, lambda rung: setattr(once, "reached", True))
    state = read_state(once.path)
    state["best"]["score"] = 2.0  # whatever comes is worse
    write_state(once.path, state)
    found = fit(StateFile(once.path))
    assert (found.score, found.resumed_at) == (2.0, 24)
    assert flat(found.validation).tobytes() == state["best"]["scores"].numpy().tobytes()
    assert [len(row) for row in found.validation] == [len(row) for row in targets]


def test_answers_give_tags_and_where_they_are_in_the_text():
    row = {"words": "A very good, good phone"}
    numbers = [0, 0, 3, 0, 3, 4]
    answer = TASK.answer(np.eye(5, dtype=np.float32)[numbers], row)
    assert answer["tags"] == ["O", "O", "B-good", "O", "B-good", "I-good"]
    assert [(one["type"], one["text"], one["start"], one["end"]) for one in answer["entities"]] == [
        ("good", "good", 7, 11),
        ("good", "good phone", 13, 23),
    ]
    assert [row["words"][one["start"] : one["end"]] for one in answer["entities"]] == ["good", "good phone"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({}, "`words` is missing"),
        ({"words": "  "}, "`words` is empty"),
        ({"words": [" "]}, "`words` is empty"),
        ({"words": 5}, "must be a text or a list of texts, but is int"),
        ({"words": ["a", 5]}, "must be a text or a list of texts"),
        ({"words": ["a"], "space_after": [True, False]}, "`space_after` must say true or false for each word"),
    ],
)
def test_rows_that_cannot_be_answered_are_told_why(row, told):
    assert told in TASK.problem(row)


def test_a_tokenizer_that_cannot_tell_positions_is_refused(monkeypatch):
    class Slow:
        is_fast = False

    monkeypatch.setattr("pmray.tasks.tokens.open_tokenizer", lambda folder: Slow())
    with pytest.raises(ValueError, match=r"tokenizer\.json is needed"):
        TASK.processor("folder")
