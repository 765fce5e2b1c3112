"""Any model on labelled rows: bundles, transformers folders and files of predictions, and what they get wrong."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score

import pmray
from pmray.errors import CandidateUnavailable, DataError, PmrayError, UnknownName
from pmray.evaluation.evaluate import evaluate, save_predictions
from pmray.evaluation.foreign_models import match_labels
from tests.tiny import tiny_bundle, tiny_model, tiny_rows, write_rows

ROWS = 90


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [{**row, "domain": "ab"[n % 2], "stars": n} for n, row in enumerate(tiny_rows(ROWS, seed=3))]
    return write_rows(tmp_path_factory.mktemp("data") / "rows.parquet", rows)


def foreign(folder, family="bert", labels=("NEGATIVE", "POSITIVE"), **changes):
    """A folder as `save_pretrained` of somebody else writes it: a classifier that pmray did not train."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tiny_model(folder, family)
    config = AutoConfig.from_pretrained(folder)
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(1)
    config.pad_token_id = 0 if family == "bert" else None
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def texts_and_labels(data):
    table = pq.read_table(data)
    return table["text"].to_pylist(), table["label"].to_pylist()


def predictions(path, **columns):
    table = pa.table(columns)
    pyarrow.csv.write_csv(table, path) if path.suffix == ".csv" else pq.write_table(table, path)
    return path


def quick(model, data, **options):
    return evaluate(str(model), str(data), draws=100, latency_rows=2, **options)


def test_a_bundle_is_scored_as_scikit_learn_scores_it(bundle, data):
    found = quick(bundle, data, by=["domain", "length"], slices="auto", min_slice_rows=10, errors=5)
    true, said = found.outcomes.T
    assert found.score.value == pytest.approx(f1_score(true, said, average="macro", zero_division=0))
    assert found.confusion == confusion_matrix(true, said, labels=[0, 1]).tolist()
    assert {one.value: one.rows for one in found.slices["domain"]} == {"a": 45, "b": 45}
    assert sum(one.rows for one in found.slices["length"]) == ROWS
    assert found.worst_slices.tested > 5
    assert sum(one.count for one in found.calibration.bins) == ROWS
    assert found.speed.single_rows == 2 and 0 < found.speed.p50_ms <= found.speed.p95_ms
    assert [one.confidence for one in found.mistakes] == sorted((m.confidence for m in found.mistakes), reverse=True)
    texts, labels = texts_and_labels(data)
    for one in found.mistakes:
        place = int(one.row_id.rpartition(":")[2]) - 1
        assert (one.true, one.inputs["text"]) == (labels[place], texts[place])
        assert one.said != one.true
    assert json.loads(json.dumps(found.to_json()))["slices"]["domain"][0]["score"]["level"] == 0.95


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_transformers_folder_says_what_its_pipeline_says(tmp_path, data, family):
    from transformers import pipeline

    folder = foreign(tmp_path / "model", family)
    found = quick(folder, data)
    assert found.labels == ("negative", "positive")
    told = pipeline("text-classification", model=str(folder), device="cpu")
    texts, _ = texts_and_labels(data)
    expected = [one["label"].lower() for one in (told(text)[0] for text in texts)]
    assert [found.labels[number] for number in found.outcomes[:, 1]] == expected


def test_unnamed_outputs_need_labels_and_take_them_in_order(tmp_path, data):
    folder = foreign(tmp_path / "model", labels=("LABEL_0", "LABEL_1"))
    with pytest.raises(DataError, match=r"does not name its outputs: found LABEL_0, LABEL_1; .*--labels negative,pos"):
        quick(folder, data)
    one, other = (quick(folder, data, labels=order) for order in (["negative", "positive"], ["positive", "negative"]))
    assert one.metrics["accuracy"].value == pytest.approx(1 - other.metrics["accuracy"].value)


def test_an_output_that_the_data_lacks_can_only_be_wrong(tmp_path, data):
    found = quick(foreign(tmp_path / "model", labels=("Positive", "neutral", "Negative")), data)
    assert found.labels == ("positive", "neutral", "negative")
    assert np.asarray(found.confusion).shape == (3, 3)


def test_several_labels_a_row(tmp_path):
    rows = [{"text": row["text"], "labels": [row["label"]][: n % 3]} for n, row in enumerate(tiny_rows(30))]
    data = write_rows(tmp_path / "rows.parquet", rows)
    found = quick(foreign(tmp_path / "model", problem_type="multi_label_classification"), data, errors=3)
    assert found.confusion is None and found.metric == "f1_micro"
    assert sum(one.count for one in found.calibration.bins) == 60
    save_predictions(found, tmp_path / "said.csv")
    again = quick(tmp_path / "said.csv", data)
    assert (again.outcomes == found.outcomes).all()
    with pytest.raises(DataError, match=r"says one label a row .* but the data has lists of them"):
        quick(foreign(tmp_path / "single", problem_type="single_label_classification"), data)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: tiny_model(folder), CandidateUnavailable, "has no classification head .*BertModel"),
        (lambda folder: foreign(folder, labels=("one",)), CandidateUnavailable, "predicts one number"),
        (lambda folder: foreign(folder, labels=("a", "b")), DataError, "has other labels than the data: found a, b"),
        (lambda folder: folder / "nothing", PmrayError, "nothing"),
    ],
)
def test_models_that_cannot_be_scored_are_one_clear_error(tmp_path, data, make, error, message):
    with pytest.raises(error, match=message):
        quick(make(tmp_path / "model"), data)


def test_a_head_without_weights_is_refused(tmp_path, data):
    from safetensors.torch import load_file, save_file

    weights = foreign(tmp_path / "model") / "model.safetensors"
    body = {name: value for name, value in load_file(weights).items() if not name.startswith("classifier")}
    save_file(body, weights, metadata={"format": "pt"})
    with pytest.raises(CandidateUnavailable, match=r"lacks the weights of its head \(classifier.weight, "):
        quick(weights.parent, data)


def test_pickled_weights_are_not_opened(tmp_path, data):
    folder = foreign(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CandidateUnavailable, match="pickle"):
        quick(folder, data)


def test_matching_of_labels():
    assert match_labels(["B", "a"], ["A", "b"], None, model="m") == ("b", "A")
    # Labels that differ in case alone are never mixed up.
    assert match_labels(["a", "A"], ["A", "a"], None, model="m") == ("a", "A")
    for found, given in [(["x", "y"], None), (["x", "y"], ["a"]), (["x", "y"], ["a", "a"]), (["a", "A"], None)]:
        with pytest.raises(DataError, match="m has other labels than the data"):
            match_labels(found, ["a", "b"], given, model="m")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_saved_predictions_give_the_same_numbers_in_any_order(bundle, data, tmp_path, suffix):
    found = quick(bundle, data, errors=3)
    path = tmp_path / f"said{suffix}"
    save_predictions(found, path)
    table = pyarrow.csv.read_csv(path) if suffix == ".csv" else pq.read_table(path)
    shuffled = table.take(np.random.default_rng(0).permutation(ROWS))
    predictions(path, **{name: shuffled[name] for name in shuffled.column_names})
    again = quick(path, data, errors=3)
    assert again.metrics == found.metrics
    assert again.calibration.ece == pytest.approx(found.calibration.ece, abs=1e-6)
    assert [one.row_id for one in again.mistakes] == [one.row_id for one in found.mistakes]
    assert again.speed is None


def test_predictions_in_row_order_in_every_form(data, tmp_path):
    _, labels = texts_and_labels(data)
    said = ["POSITIVE" if n % 4 else "negative" for n in range(ROWS)]
    vectors = [[0.9, 0.1] if one == "negative" else [0.3, 0.7] for one in said]
    right = np.mean([one.lower() == label for one, label in zip(said, labels, strict=True)])
    forms = {
        "labels.csv": {"prediction": said},
        "unnamed.csv": {"prediction": [f"LABEL_{int(one == 'POSITIVE')}" for one in said]},
        "columns.csv": {"Negative": [one[0] for one in vectors], "Positive": [one[1] for one in vectors]},
        "lists.parquet": {"scores": vectors},
        "objects.parquet": {"scores": [{"positive": b, "negative": a} for a, b in vectors]},
        "json.csv": {"scores": [json.dumps({"positive": b, "negative": a}) for a, b in vectors]},
    }
    for name, columns in forms.items():
        named = ["negative", "positive"] if name in ("unnamed.csv", "lists.parquet") else None
        found = quick(predictions(tmp_path / name, **columns), data, labels=named, errors=2)
        assert found.metrics["accuracy"].value == pytest.approx(right), name
        assert (found.calibration is None) == ("scores" not in columns and "Negative" not in columns), name
        assert len(found.mistakes) == 2


def test_margins_are_no_probabilities(data, tmp_path):
    path = predictions(tmp_path / "p.parquet", negative=[2.0] * ROWS, positive=[-1.5] * ROWS)
    assert quick(path, data).calibration is None


GOOD = ["negative"] * ROWS
IDS = [f"rows.parquet:{n}" for n in range(1, ROWS + 1)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prediction": GOOD[1:]}, "has 89 predictions, but the data has 90 rows"),
        ({"prediction": GOOD, "row_id": [*IDS[:-1], IDS[0]]}, "has rows twice: 1, such as 'rows.parquet:1'"),
        ({"prediction": GOOD[1:], "row_id": IDS[1:]}, "lacks rows: 1, such as 'rows.parquet:1'"),
        ({"prediction": GOOD, "row_id": [f"other:{n}" for n in range(ROWS)]}, "predicts rows that the data does not"),
        ({"prediction": GOOD, "text": ["no"] * ROWS}, "predicts other rows: in row 1 its 'text' is 'no'"),
        ({"prediction": ["postive", *GOOD[1:]]}, "row 1: prediction 'postive' is no label of the data"),
        ({"prediction": [None, *GOOD[1:]]}, "row 1: expected one label, found none"),
        ({"said": GOOD}, "has neither a column 'prediction' nor scores of all labels; found: 'said'"),
        ({"negative": [0.1] * ROWS}, "1 labels found, of 2 expected"),
        ({"scores": [[0.1, 0.9]] * ROWS}, "row 1: `scores` is a list, whose order only `--labels` can tell"),
        ({"scores": ["{"] * ROWS}, "expected an object or list of numbers in JSON"),
        ({"scores": ['{"a": 1, "b": 0}'] * ROWS}, "`scores` has a, b; expected one of each of: negative, positive"),
        ({"negative": [math.nan] * ROWS, "positive": [0.5] * ROWS}, "row 1: a score is nan, expected a number"),
        ({"negative": ["x"] * ROWS, "positive": ["0.5"] * ROWS}, "row 1: a score is 'x', expected a number"),
    ],
)
def test_predictions_that_do_not_fit_are_one_clear_error(data, tmp_path, columns, message):
    with pytest.raises(DataError) as raised:
        quick(predictions(tmp_path / "p.parquet", **columns), data)
    assert message in str(raised.value)
    assert "p.parquet" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"by": "domian"}, DataError, "no column 'domian' .*did you mean 'domain'"),
        ({"by": "text"}, DataError, "column 'text' is none to slice by"),
        ({"slices": "auto", "min_slice_rows": 50}, DataError, "needs 100 rows, but 90 were scored"),
        ({"slices": "best"}, DataError, "the only search is 'auto'"),
        ({"columns": {"txt": "text"}}, UnknownName, "Unknown column role 'txt'. Did you mean 'text'"),
        ({"columns": {"label": "topic"}}, DataError, "no column 'topic' for label"),
    ],
)
def test_questions_that_the_data_cannot_answer(data, tmp_path, options, error, message):
    path = predictions(tmp_path / "p.csv", prediction=GOOD)
    with pytest.raises(error, match=message):
        quick(path, data, **options)


def test_missing_files_are_named(data, tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv does not exist"):
        quick(tmp_path / "gone.csv", data)


def test_predictions_need_no_texts(tmp_path):
    data = write_rows(tmp_path / "labels.jsonl", [{"label": "ab"[n % 2]} for n in range(10)])
    path = predictions(tmp_path / "p.csv", prediction=["a"] * 10)
    found = quick(path, data, errors=1)
    assert found.metrics["accuracy"].value == 0.5
    assert (found.mistakes[0].inputs, found.mistakes[0].confidence) == ({}, None)
    with pytest.raises(DataError, match="slices by length need the texts"):
        quick(path, data, by="length")


def test_a_column_that_is_the_label_in_numbers_is_no_slice(tmp_path):
    rows = [{**row, "y": int(row["label"] == "positive")} for row in tiny_rows(ROWS)]
    data = write_rows(tmp_path / "rows.parquet", rows)
    found = quick(predictions(tmp_path / "p.csv", prediction=GOOD), data, slices="auto", min_slice_rows=5)
    assert "y" not in {one.column for one in found.worst_slices.slices}


def compared(models, data, **options):
    return pmray.compare([str(model) for model in models], str(data), draws=200, latency_rows=1, **options)


def test_bundle_folder_and_file_in_one_comparison(bundle, data, tmp_path):
    _, labels = texts_and_labels(data)
    oracle = predictions(tmp_path / "oracle.csv", prediction=labels)
    # The outputs in another order and one more than the others have: rows still mean the same.
    folder = foreign(tmp_path / "model", labels=("Positive", "neutral", "Negative"))
    alone = {str(model): quick(model, data) for model in (bundle, folder, oracle)}
    found = compared([bundle, folder, oracle], data, examples=4)
    assert found.lines[0].name == str(oracle) and found.lines[0].score.value == 1
    assert {one.name: one.score.value for one in found.lines} == pytest.approx(
        {name: one.score.value for name, one in alone.items()}
    )
    assert found.groups[0] == [str(oracle)]
    for pair in found.comparisons:
        assert pair.both_right + pair.first_right + pair.second_right + pair.both_wrong == ROWS
    assert len(found.examples) == 4
    for one in found.examples:
        assert one.said[str(oracle)] == one.true
        assert len(set(one.said.values())) > 1
    json.dumps(found.to_json())


def test_groups_are_drawn_whole_where_the_rows_have_them(bundle, tmp_path):
    # Ten copies of each row, one group each: ten times the rows, and no more to know.
    rows = [{**row, "who": f"author {n}"} for n, row in enumerate(tiny_rows(40, seed=3)) for _ in range(10)]
    source = str(write_rows(tmp_path / "rows.jsonl", rows))
    alone, grouped = (pmray.evaluate(str(bundle), source, columns=columns) for columns in ({}, {"group": "who"}))
    assert (alone.groups, grouped.groups) == (None, 40)
    assert alone.score.value == grouped.score.value

    def width(one):
        return one.high - one.low

    assert 2 < width(grouped.score) / width(alone.score) < 5
    assert 2 < width(grouped.metrics["log_loss"]) / width(alone.metrics["log_loss"]) < 5
    settings = json.loads((bundle / "pmray.json").read_text())
    trained = shutil.copytree(bundle, tmp_path / "trained")
    (trained / "pmray.json").write_text(json.dumps({**settings, "columns": {"group": "who"}}))
    assert pmray.evaluate(str(trained), source).groups == 40
    plain = str(write_rows(tmp_path / "plain.jsonl", tiny_rows(20)))
    assert pmray.evaluate(str(trained), plain).groups is None
    compared = [pmray.compare([str(trained), str(bundle)], data, draws=200).lines[0].score for data in (source, plain)]
    assert width(compared[0]) > 0


def test_a_model_and_its_saved_predictions_are_a_tie(bundle, data, tmp_path):
    save_predictions(quick(bundle, data), tmp_path / "said.parquet")
    found = compared([bundle, tmp_path / "said.parquet"], data)
    pair = found.comparisons[0]
    assert (found.disagreements, len(found.groups), pair.adjusted_p, pair.mcnemar_p) == (0, 1, 1, 1)
    assert [line.speed is None for line in sorted(found.lines, key=lambda line: line.name.endswith("parquet"))] == [
        False,
        True,
    ]


def test_foreign_models_read_the_columns_of_the_bundle_beside_them(tmp_path, bundle, data):
    table = pq.read_table(data).rename_columns({"text": "message", "label": "topic"})
    pq.write_table(table, tmp_path / "rows.parquet")
    settings = json.loads((bundle / "pmray.json").read_text())
    mapped = shutil.copytree(bundle, tmp_path / "mapped")
    (mapped / "pmray.json").write_text(json.dumps({**settings, "columns": {"text": "message", "label": "topic"}}))
    said = predictions(tmp_path / "p.csv", prediction=GOOD)
    assert compared([said, mapped], tmp_path / "rows.parquet").rows == ROWS


def test_comparisons_that_make_no_sense(bundle, data, tmp_path):
    with pytest.raises(DataError, match="needs two models"):
        compared([bundle], data)
    rows = [{"text": row["text"], "label": [row["label"]]} for row in tiny_rows(ROWS)]
    several = write_rows(tmp_path / "several.parquet", rows)
    with pytest.raises(DataError, match="says one label a row, but the data has lists of them in column 'label'"):
        compared([bundle, bundle], several)
    two, three = (foreign(tmp_path / str(n), labels=("negative", "positive", "c")[:n]) for n in (2, 3))
    with pytest.raises(DataError, match=r"has the labels negative, positive, but .* has negative, positive, c"):
        compared([two, three], several)


def test_labels_from_different_columns_are_not_compared(bundle, data, tmp_path):
    table = pq.read_table(data)
    flipped = ["positive" if label == "negative" else "negative" for label in table["label"].to_pylist()]
    pq.write_table(table.append_column("other", pa.array(flipped)), tmp_path / "rows.parquet")
    settings = json.loads((bundle / "pmray.json").read_text())
    mapped = shutil.copytree(bundle, tmp_path / "mapped")
    (mapped / "pmray.json").write_text(json.dumps({**settings, "columns": {"label": "other"}}))
    with pytest.raises(DataError, match=r"read other labels in the same rows \(columns 'label' and 'other'"):
        compared([bundle, mapped], tmp_path / "rows.parquet")


def test_real_models_on_real_rows(shared, tmp_path):
    data = pq.read_table(shared / "data/text_classification/sst2/test.parquet").slice(0, 400)
    pq.write_table(data, tmp_path / "rows.parquet")
    words = {"bad", "not", "no", "too", "dull", "worst", "never", "only", "nothing", "lacks"}
    said = ["negative" if words & set(text.split()) else "positive" for text in data["text"].to_pylist()]
    path = predictions(tmp_path / "lexicon.csv", prediction=said)
    found = quick(path, tmp_path / "rows.parquet", columns={"label": "label_name"}, slices="auto", errors=2)
    assert 0.5 < found.metrics["accuracy"].value < 0.8
    assert found.worst_slices.tested > 20
    # The label's number stands in the file too; a slice by it would only repeat the classes.
    assert "label" not in {one.column for one in found.worst_slices.slices}
