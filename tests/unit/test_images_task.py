"""Images of all kinds are read, damaged ones are counted, and pixels are what transformers makes of them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoConfig

import pmray
from pmray import load_data
from pmray.data.encode import encode_table
from pmray.data.images import decode, from_base64, problem_of, thumbnails, to_base64
from pmray.data.load import data_key
from pmray.errors import DataError
from pmray.spec import Data, Recipe
from pmray.tasks.images import ImageClassification
from pmray.training import loop
from pmray.training.prediction import predict
from tests.tiny import tiny_image, tiny_image_model, tiny_images, write_rows

TASK = ImageClassification(("blue", "green", "red"))


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist([{"row_id": f"r:{number}", **row} for number, row in enumerate(rows)])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    form = "TIFF" if mode in ("I;16", "CMYK") else "PNG"
    grey, red = Image.fromarray(np.full((4, 6), 40_000, np.uint16)), Image.new("RGB", (6, 4), "red")
    image = grey if mode == "I;16" else red.convert(mode)
    stream = io.BytesIO()
    image.save(stream, form)
    found = decode(stream.getvalue())
    assert (found.mode, found.size) == ("RGB", (6, 4))
    if mode in ("RGB", "P", "RGBA", "CMYK"):
        red, green, blue = found.getpixel((2, 2))
        assert red > 200 > 60 > max(green, blue)
    if mode == "I;16":
        assert 120 < found.getpixel((0, 0))[0] < 190


def test_transparency_is_white_and_exif_turns_are_made():
    stream = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(stream, "PNG")
    assert decode(stream.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    stream = io.BytesIO()
    Image.new("RGB", (8, 4), "red").save(stream, "JPEG", exif=exif)
    assert decode(stream.getvalue()).size == (4, 8)


GOOD = tiny_image("red", form="JPEG", size=(64, 64))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "an empty file"),
        (b"GIF89a", "cannot be decoded"),
        (b"no image at all", "cannot identify"),
        (GOOD[: len(GOOD) // 2], "truncated"),
        (tiny_image("red")[:40], "cannot be decoded"),
        ("/no/such/file.png", "No such file"),
    ],
)
def test_damaged_images_are_told_in_a_sentence(content, told):
    assert told in problem_of(content)


def test_damaged_images_are_counted_and_stop_only_who_asks_for_it(tmp_path):
    rows = tiny_images(40)
    rows[3]["image"], rows[7]["image"] = b"broken", GOOD[:200]
    source = str(write_rows(tmp_path / "rows.parquet", rows))
    loaded = load_data(Data(train=source), TASK.columns)
    finding = next(one for one in loaded.findings if one.check == "unreadable image")
    assert (finding.severity, finding.count, finding.examples) == ("warning", 2, ("rows.parquet:4", "rows.parquet:8"))
    assert len(loaded.train) + len(loaded.validation) + len(loaded.test) == 38
    with pytest.raises(DataError, match=r"2 rows have an image that cannot be read \(rows.parquet:4, rows.parquet:8\)"):
        load_data(Data(train=source, bad_rows="error"), TASK.columns)


def folders(place, rows, broken=False):
    for number, row in enumerate(rows):
        folder = place / row["label"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(row["image"])
    if broken:
        (place / "red" / "broken.jpg").write_bytes(GOOD[:100])


def test_folders_of_class_folders(tmp_path):
    folders(tmp_path / "train", tiny_images(40), broken=True)
    folders(tmp_path / "test", tiny_images(20, seed=1))
    loaded = load_data(Data(train=str(tmp_path / "train"), test=str(tmp_path / "test")), TASK.columns)
    assert set(loaded.train["label"].to_pylist()) == {"red", "green", "blue"}
    assert loaded.test["row_id"].to_pylist()[0].endswith(".png")
    assert any("red/broken.jpg" in finding.examples for finding in loaded.findings)
    # One image under two names is one image.
    (tmp_path / "test" / "red" / "copy.png").write_bytes(next((tmp_path / "train" / "red").glob("*.png")).read_bytes())
    again = load_data(Data(train=str(tmp_path / "train"), test=str(tmp_path / "test")), TASK.columns)
    assert any("test" in finding.check and "train" in finding.check for finding in again.findings)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_image_that_changes_under_the_same_name_is_other_data(tmp_path, suffix):
    (tmp_path / "pictures").mkdir()
    for name, color in (("a", "red"), ("b", "blue")):
        (tmp_path / f"pictures/{name}.png").write_bytes(tiny_image(color))
    columns = {"image": ["pictures/a.png", "pictures/b.png"], "label": ["red", "blue"]}
    rows = tmp_path / f"rows.{suffix}"
    pa.csv.write_csv(pa.table(columns), rows) if suffix == "csv" else pq.write_table(pa.table(columns), rows)
    data = Data(train=str(rows))
    key = data_key(data, ImageClassification.columns)
    assert data_key(data, ImageClassification.columns) == key
    (tmp_path / "pictures/a.png").write_bytes(tiny_image("green"))
    assert data_key(data, ImageClassification.columns) != key


def test_paths_in_a_table_begin_at_the_table(tmp_path):
    rows = tiny_images(30)
    folders(tmp_path / "images", rows)
    lines = [f"images/{row['label']}/{number}.png,{row['label']}" for number, row in enumerate(rows)]
    (tmp_path / "rows.csv").write_text("\n".join(["file_name,label", *lines]))
    with pytest.raises(DataError, match=r"no column 'image' for image.*`data.columns: {image: file_name}`"):
        load_data(Data(train=str(tmp_path / "rows.csv")), TASK.columns)
    loaded = load_data(Data(train=str(tmp_path / "rows.csv"), columns={"image": "file_name"}), TASK.columns)
    assert thumbnails(loaded.train).shape == (len(loaded.train), 768)


@pytest.mark.parametrize("family", ["vit", "mobilenet_v1", "efficientnet"])
def test_pixels_are_those_of_the_processor_and_heads_of_another_size_are_replaced(family, tmp_path):
    folder = str(tiny_image_model(tmp_path / family, family))
    processor, rows = TASK.processor(folder), table(tiny_images(7))
    encoded = encode_table(TASK, rows, processor, 128)
    expected = processor([decode(value) for value in rows["image"].to_pylist()], return_tensors="pt")["pixel_values"]
    batch = TASK.collate(encoded.rows(np.arange(7)), 0)
    assert torch.allclose(batch["pixel_values"], expected, atol=1e-5)
    model = TASK.build(folder, AutoConfig.from_pretrained(folder), 0, dtype=torch.float32)
    assert predict(model, TASK, encoded).shape == (7, 3)


def test_training_images_are_changed_a_little_and_the_same_way_for_the_same_numbers(tmp_path):
    processor = TASK.processor(str(tiny_image_model(tmp_path / "vit")))
    encoded = encode_table(TASK, table(tiny_images(6)), processor, 128).table
    plain = TASK.collate(encoded, 0)["pixel_values"]
    changed, again, other = (
        TASK.collate(encoded, 0, np.random.default_rng(seed))["pixel_values"] for seed in (1, 1, 2)
    )
    assert torch.equal(changed, again)
    assert not torch.equal(changed, other)
    assert not torch.equal(changed, plain)
    assert float(changed.mean()) == pytest.approx(float(plain.mean()), abs=0.05)


def test_it_learns_colours(tmp_path):
    folder = str(tiny_image_model(tmp_path / "vit"))
    processor = TASK.processor(folder)
    train, test = table(tiny_images(60)), table(tiny_images(30, seed=1))
    torch.manual_seed(0)
    model = TASK.build(folder, AutoConfig.from_pretrained(folder), 0, dtype=torch.float32)
    found = loop.fit(
        model, TASK, Recipe(lr=1e-3, batch_size=10, augment=True), encode_table(TASK, train, processor, 8),
        TASK.targets(train), encode_table(TASK, test, processor, 8), TASK.targets(test),
        metric="f1_macro", rungs=[300], seed=0,
    )  # fmt: skip
    assert found.score > 0.9


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({}, "`image` is missing"),
        ({"image": 5}, "must be base64 text, but is int"),
        ({"image": "/etc/passwd"}, "not base64"),
        ({"image": "aGVsbG8="}, "cannot be decoded"),
    ],
)
def test_rows_that_cannot_be_answered_are_told_why_and_no_path_is_opened(row, told):
    assert told in TASK.problem(row)


def test_images_travel_as_base64_also_with_a_prefix():
    assert from_base64("data:image/png;base64," + to_base64(GOOD)) == GOOD
    assert TASK.problem(TASK.sent({"image": GOOD})) is None


def test_an_image_model_that_pmray_did_not_train_is_scored_as_its_pipeline_says(tmp_path):
    from transformers import AutoModelForImageClassification, pipeline

    folder = tiny_image_model(tmp_path / "vit")
    model = AutoModelForImageClassification.from_pretrained(folder)
    model.config.id2label = dict(enumerate(["red", "green", "blue", "black", "white"]))
    model.save_pretrained(folder)
    rows = tiny_images(12)
    found = pmray.evaluate(str(folder), str(write_rows(tmp_path / "rows.parquet", rows)), draws=100, latency_rows=2)
    alone = pipeline("image-classification", model=str(folder))
    said = [max(alone(decode(row["image"])), key=lambda one: one["score"])["label"] for row in rows]
    assert list(found.said) == said
    assert found.labels == ("red", "green", "blue", "black", "white")
