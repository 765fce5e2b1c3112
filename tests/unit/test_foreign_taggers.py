"""Token classifiers and tags in files that pmray did not make, scored with the tags of the data."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from seqeval.metrics import f1_score

from pmray.errors import DataError
from pmray.evaluation.compare import compare
from pmray.evaluation.evaluate import evaluate, save_predictions
from tests.tiny import tiny_model, tiny_tagged, write_rows

BIO = ("I-GOOD", "B-bad", "O", "B-GOOD", "I-bad")
BIOES = ("O", "S-good", "B-good", "I-good", "E-good", "S-bad", "B-bad", "I-bad", "E-bad")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("tagged") / "rows.parquet", tiny_tagged(40, seed=5))


def tagger(folder, labels, seed=1):
    """A folder as `save_pretrained` of somebody else writes it; its head is random, and says all of its labels."""
    from transformers import AutoConfig, AutoModelForTokenClassification

    tiny_model(folder)
    config = AutoConfig.from_pretrained(folder)
    config.num_labels, config.id2label = len(labels), dict(enumerate(labels))
    torch.manual_seed(seed)
    model = AutoModelForTokenClassification.from_config(config)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    return folder


def quick(model, data, **options):
    return evaluate(str(model), str(data), draws=50, latency_rows=1, **options)


def said_by_pipeline(folder, data):
    """The tag that transformers says of each word; every word of these rows is one token."""
    from transformers import pipeline

    told = pipeline("token-classification", model=str(folder), device="cpu", ignore_labels=[])
    return [[one["entity"] for one in told(" ".join(words))] for words in pq.read_table(data)["words"].to_pylist()]


def test_a_tagger_with_its_tags_in_another_order_says_what_its_pipeline_says(tmp_path, data):
    folder = tagger(tmp_path / "model", BIO)
    found = quick(folder, data)
    said = said_by_pipeline(folder, data)
    assert {tag for row in said for tag in row} == set(BIO)
    assert [row.lower().split() for row in found.said] == [[tag.lower() for tag in row] for row in said]
    true = pq.read_table(data)["label"].to_pylist()
    same_case = [[tag[:2] + tag[2:].lower() for tag in row] for row in said]
    assert found.metric == "span_f1"
    assert found.score.value == pytest.approx(f1_score(true, same_case), abs=1e-9)
    assert set(found.per_class) == {"good", "bad"}


def test_a_tagger_in_bioes_keeps_its_decisions(tmp_path, data):
    folder = tagger(tmp_path / "model", BIOES)
    as_bio = {"S": "B", "B": "B", "I": "I", "E": "I"}
    expected = [
        " ".join("O" if tag == "O" else as_bio[tag[0]] + tag[1:] for tag in row)
        for row in said_by_pipeline(folder, data)
    ]
    assert list(quick(folder, data).said) == expected


def test_a_type_that_the_data_lacks_can_only_be_wrong(tmp_path, data):
    found = quick(tagger(tmp_path / "model", (*BIO, "B-other", "I-other")), data)
    assert found.per_class["other"]["precision"].value == 0
    assert any("B-other" in row for row in found.said)


def test_unnamed_outputs_need_tags_and_take_them_in_order(tmp_path, data):
    unnamed = tagger(tmp_path / "unnamed", [f"LABEL_{number}" for number in range(5)])
    with pytest.raises(DataError, match=r"does not name its outputs: .*--labels B-bad,B-good,I-bad,I-good,O"):
        quick(unnamed, data)
    named = quick(unnamed, data, labels=list(BIO))
    assert list(named.said) == list(quick(tagger(tmp_path / "named", BIO), data).said)
    with pytest.raises(DataError, match="do not cover those of the data either, or repeat one"):
        quick(unnamed, data, labels=["O", "B-good", "I-good", "B-good", "I-bad"])


def test_a_tagger_of_other_types_is_refused(tmp_path, data):
    with pytest.raises(DataError, match=r"has other labels than the data: found O, B-PER, I-PER; the data has B-bad"):
        quick(tagger(tmp_path / "model", ("O", "B-PER", "I-PER")), data)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tags_that_were_written_to_a_file_are_read_again(tmp_path, data, suffix):
    found = quick(tagger(tmp_path / "model", BIO), data)
    save_predictions(found, tmp_path / f"said.{suffix}")
    again = quick(tmp_path / f"said.{suffix}", data)
    assert list(again.said) == list(found.said) and again.speed is None
    assert again.metrics["span_f1"].value == pytest.approx(found.metrics["span_f1"].value, abs=1e-12)


def test_a_file_may_write_tags_as_lists_in_another_scheme(tmp_path, data):
    true = pq.read_table(data)["label"].to_pylist()
    bioes = [
        [
            tag if tag == "O" else {"BO": "S", "BI": "B", "IO": "E", "II": "I"}[tag[0] + next_one[0]] + tag[1:]
            for tag, next_one in zip(row, [*("O" if one[0] == "B" else one for one in row[1:]), "O"], strict=True)
        ]
        for row in true
    ]
    pq.write_table(pa.table({"prediction": bioes}), tmp_path / "said.parquet")
    assert quick(tmp_path / "said.parquet", data).metrics["span_f1_strict"].value == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tags: tags[:-1], r"row 3: found \d+ tags for \d+ words"),
        (lambda tags: ["B-gold", *tags[1:]], r"row 3: prediction 'B-gold' is no tag of the data"),
        (lambda tags: ["good", *tags[1:]], r"row 3: prediction 'good' is no tag of the data"),
        (lambda tags: None, r"row 3: found 0 tags"),
    ],
)
def test_tags_that_do_not_fit_are_named_by_row(tmp_path, data, change, message):
    said = pq.read_table(data)["label"].to_pylist()
    said[2] = change(said[2])
    pq.write_table(pa.table({"prediction": said}), tmp_path / "said.parquet")
    with pytest.raises(DataError, match=message):
        quick(tmp_path / "said.parquet", data)


def test_a_type_of_predictions_alone_can_be_named(tmp_path, data):
    said = pq.read_table(data)["label"].to_pylist()
    said[2][0] = "B-gold"
    pq.write_table(pa.table({"prediction": said}), tmp_path / "said.parquet")
    found = quick(tmp_path / "said.parquet", data, labels=["gold"])
    assert found.per_class["gold"]["precision"].value == 0 and found.score.value < 1


def test_taggers_and_files_are_compared(tmp_path, data):
    one, other = tagger(tmp_path / "one", BIO), tagger(tmp_path / "other", BIOES, seed=2)
    pq.write_table(pa.table({"prediction": pq.read_table(data)["label"]}), tmp_path / "truth.parquet")
    found = compare([str(one), str(other), str(tmp_path / "truth.parquet")], str(data), draws=200, latency_rows=0)
    assert found.lines[0].name.endswith("truth.parquet") and found.lines[0].score.value == 1
    assert found.groups[0] == [found.lines[0].name]
    assert np.isfinite([pair.adjusted_p for pair in found.comparisons]).all()
