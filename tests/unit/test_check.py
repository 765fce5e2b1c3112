"""What the generic checks find, and what they leave alone."""

import time

import pyarrow as pa

from pmray.data import check

LONG = [f"text number {row}" for row in range(20)]


def table(texts, labels, file="train.csv", **columns):
    ids = [f"{file}:{row}" for row in range(1, len(texts) + 1)]
    several = any(isinstance(label, list) for label in labels)
    kind = pa.list_(pa.string()) if several else pa.string()
    columns = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    return pa.table({"row_id": ids, "text": pa.array(texts, pa.string()), "label": pa.array(labels, kind), **columns})


def splits(train, validation=None, test=None):
    spare = table(["spare"], ["a"], "spare.csv")
    return {"train": train, "validation": validation or spare.slice(0, 0), "test": test or spare.slice(0, 0)}


def found(findings):
    return {finding.check: (finding.severity, finding.count, finding.examples) for finding in findings}


def test_unusable_rows_are_errors_that_name_them():
    rows = table(["fine", None, " \n", "x", "y"], ["a", "a", "b", None, "c"], text_pair=["p", "p", "p", "p", ""])
    usable, findings = check.usable_rows(rows, "train", labels=["a", "b"], drop=False)
    assert found(findings) == {
        "empty text": ("error", 2, ("train.csv:2", "train.csv:3")),
        "empty text_pair": ("error", 1, ("train.csv:5",)),
        "no label": ("error", 1, ("train.csv:4",)),
        "unknown label": ("error", 1, ("train.csv:5",)),
    }
    assert usable["row_id"].to_pylist() == ["train.csv:1"]
    assert findings[0].message == (
        "train: 2 rows have no text (train.csv:2, train.csv:3); fill them in, or set `data.bad_rows: drop`"
    )
    assert "'a', 'b'" in findings[-1].message and "'c'" in findings[-1].message


def test_dropped_rows_are_warnings():
    _, findings = check.usable_rows(table(["fine", ""], ["a", "b"]), "test", labels=None, drop=True)
    assert found(findings) == {"empty text": ("warning", 1, ("train.csv:2",))}
    assert findings[0].message == "test: 1 row has no text (train.csv:2); dropped"


def test_at_most_five_rows_are_named():
    _, findings = check.usable_rows(table([""] * 9, ["a"] * 9), "train", labels=None, drop=False)
    assert len(findings[0].examples) == 5
    assert "train.csv:5, …)" in findings[0].message


def test_an_empty_list_of_labels_is_a_label_but_null_is_not():
    rows = table(["x", "y", "z", "u"], [[], ["a"], None, ["a", None]])
    usable, findings = check.usable_rows(rows, "train", labels=["a"], drop=False)
    assert found(findings) == {"no label": ("error", 2, ("train.csv:3", "train.csv:4"))}
    assert len(usable) == 2


def test_labels_that_train_never_shows():
    given = splits(table(["x", "y"], ["a", "b"]), test=table(["z", "u"], ["c", "a"], "test.csv"))
    kept, findings = check.known_labels(given, drop=False)
    assert found(findings) == {"unknown label": ("error", 1, ("test.csv:1",))}
    assert kept["test"]["label"].to_pylist() == ["a"]
    several = splits(table(["x"], [["a", "b"]]), validation=table(["z", "u"], [["a", "c"], []], "v.csv"))
    assert found(check.known_labels(several, drop=True)[1]) == {"unknown label": ("warning", 1, ("v.csv:1",))}


def test_leaks_are_dropped_test_first_then_validation():
    given = splits(
        table(["t", "v", "own", "t"], ["a", "b", "a", "a"]),
        table(["v", "t", "vown"], ["b", "a", "a"], "validation.csv"),
        table(["t", "town"], ["a", "b"], "test.csv"),
    )
    kept, findings = check.drop_leaks(given)
    assert [kept[split]["text"].to_pylist() for split in kept] == [["own"], ["v", "vown"], ["t", "town"]]
    assert found(findings) == {
        "test rows in validation": ("warning", 1, ("test.csv:1",)),
        "test rows in train": ("warning", 1, ("test.csv:1",)),
        "validation rows in train": ("warning", 1, ("validation.csv:1",)),
    }
    assert "dropped 2 from train" in findings[1].message


def test_a_pair_leaks_only_as_a_pair():
    pairs = splits(table(["x"], ["a"], text_pair=["y"]), test=table(["x"], ["a"], "test.csv", text_pair=["z"]))
    assert check.drop_leaks(pairs)[1] == []


def test_too_few_rows_and_labels():
    assert found(check.check_train(table(["x"], ["a"]), None)) == {
        "too few rows": ("error", 1, ()),
        "single label": ("error", 1, ()),
        "rare label": ("warning", 1, ()),
    }
    assert check.check_train(table(LONG, ["a", "b"] * 10), None) == []
    absent = check.check_train(table(LONG, ["a", "b"] * 10), ["a", "b", "c"])
    assert found(absent) == {"absent label": ("warning", 1, ())}
    assert check.check_train(table(LONG, [["a"], []] * 10), None) == []
    assert "single label" in found(check.check_train(table(LONG, [[]] * 20), None))


def test_repeated_rows_and_contradictions():
    findings = check.check_train(table([*LONG, LONG[3], LONG[4]], ["a", "b"] * 10 + ["b", "b"]), None)
    assert found(findings) == {
        "repeated row": ("info", 2, ("train.csv:21", "train.csv:22")),
        "contradictory labels": ("warning", 2, ("train.csv:5", "train.csv:22")),
    }
    same = check.check_train(table([*LONG, LONG[0]], [["a", "b"], ["b"]] * 10 + [["b", "a"]]), None)
    assert "contradictory labels" not in found(same), "the order of labels says nothing"


def test_empty_splits_and_shared_groups():
    given = splits(
        table(["x", "y"], ["a", "b"], group=["ann", None]),
        test=table(["z", "u"], ["a", "b"], "t.csv", group=["ann", None]),
    )
    findings = check.check_splits(given)
    assert found(findings) == {"empty split": ("error", 0, ()), "group in two splits": ("warning", 1, ("t.csv:1",))}
    assert "data.validation" in findings[0].message


def test_inputs_that_are_no_text_are_left_alone():
    rows = table(LONG, ["a", "b"] * 10).drop_columns("text").append_column("audio", pa.array([b"x"] * 20))
    assert check.check_train(rows, None) == []
    assert check.drop_leaks({"train": rows, "validation": rows, "test": rows})[1] == []


def test_a_hundred_thousand_rows_take_seconds():
    texts = [f"a text that is number {row % 90_000}" for row in range(100_000)]
    rows = table(texts, [str(row % 77) for row in range(100_000)])
    given = splits(rows, rows.slice(0, 5000), rows.slice(5000, 5000))
    begin = time.perf_counter()
    usable, _ = check.usable_rows(rows, "train", labels=None, drop=True)
    kept, _ = check.drop_leaks({**given, "train": usable})
    check.check_train(kept["train"], None)
    assert time.perf_counter() - begin < 15
