"""Tiny models of real architectures, randomly initialised, and data that they can learn: no download, no wait."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    *("good", "great", "fine", "nice", "superb", "bad", "awful", "poor", "dull", "broken"),
    *("phone", "case", "lens", "zoom", "sound", "price", "works", "was", "is", "the"),
]
RECIPE = {"lr": 3e-3, "epochs": 8, "batch_size": 8, "dropout": 0.0}
"""Learns ``tiny_rows`` from nothing, in two seconds."""

SPACE = {"lr": {"log": [1e-3, 6e-3]}}

POSITIVE, NEGATIVE = WORDS[:5], WORDS[5:10]


def tiny_model(folder: Path, family: str = "bert", layers: int = 2) -> Path:
    """Save a model and tokenizer of a family as ``save_pretrained`` folders are; returns the folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        RobertaConfig,
        RobertaModel,
    )

    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    size = {"vocab_size": len(vocabulary), "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
    if family in ("bert", "roberta"):
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        if family == "bert":
            model = BertModel(BertConfig(**size, intermediate_size=64, max_position_embeddings=64))
        else:
            config = RobertaConfig(**size, intermediate_size=64, max_position_embeddings=66, pad_token_id=0)
            model = RobertaModel(config, add_pooling_layer=False)
    elif family == "gpt2":
        named = {"eos_token": "[SEP]"}
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(vocabulary), n_embd=32, n_layer=layers, n_head=2, n_positions=64)
        )
    else:
        named = {"eos_token": "[SEP]"}
        config = LlamaConfig(**size, intermediate_size=64, max_position_embeddings=64, num_key_value_heads=2)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **named).save_pretrained(folder)
    return folder


def tiny_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Sentences whose label is told by one word, with one label in twenty wrong."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = draw.choice(["negative", "positive"])
        words = draw.choices(WORDS[10:], k=draw.randint(3, 12))
        words.insert(draw.randrange(len(words)), draw.choice(POSITIVE if label == "positive" else NEGATIVE))
        # The number keeps texts apart: equal ones would be dropped as leaks.
        words.append(f"n{seed}x{number}")
        if draw.random() < 0.05:
            label = "negative" if label == "positive" else "positive"
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_rows(path: Path, rows: list[dict]) -> Path:
    """Write rows as Parquet or JSON Lines, by the suffix; JSON Lines hold no bytes."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_image_model(folder: Path, family: str = "vit") -> Path:
    """Save an image model of 32 x 32 pixels and its processor; returns the folder."""
    import torch
    from transformers import (
        EfficientNetConfig,
        EfficientNetForImageClassification,
        MobileNetV1Config,
        MobileNetV1ForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    torch.manual_seed(0)
    # Heads of another size than any test needs, as those of published models are.
    if family == "vit":
        config = ViTConfig(
            image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, num_labels=5,
        )  # fmt: skip
        model = ViTForImageClassification(config)
    elif family == "mobilenet_v1":
        model = MobileNetV1ForImageClassification(MobileNetV1Config(image_size=32, depth_multiplier=0.1, num_labels=5))
    else:
        config = EfficientNetConfig(
            image_size=32, hidden_dim=256, width_coefficient=0.2, depth_coefficient=0.2, num_labels=5
        )
        model = EfficientNetForImageClassification(config)
    model.save_pretrained(folder)
    names = {"vit": "ViT", "mobilenet_v1": "MobileNetV1", "efficientnet": "EfficientNet"}
    settings = {
        "image_processor_type": f"{names[family]}ImageProcessor",
        "size": {"height": 32, "width": 32},
        "do_center_crop": False,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.25, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def tiny_image(color: str, seed: int = 0, mode: str = "RGB", form: str = "PNG", size: tuple[int, int] = (40, 24)):
    """An encoded image that is mostly of one colour."""
    import io

    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(seed).integers(0, 60, (size[1], size[0], 3))
    tint = np.array({"red": (180, 0, 0), "green": (0, 180, 0), "blue": (0, 0, 180)}[color])
    image = Image.fromarray((noise + tint).astype(np.uint8)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def tiny_images(count: int, seed: int = 0) -> list[dict]:
    """Images whose label is their colour."""
    colors = ["red", "green", "blue"]
    draw = random.Random(seed)
    labels = [draw.choice(colors) for _ in range(count)]
    return [{"image": tiny_image(label, 1000 * seed + n), "label": label} for n, label in enumerate(labels)]


def tiny_tagged(count: int, seed: int = 0) -> list[dict]:
    """Words in which every good word is a `good` entity and bad ones are `bad`; runs of them are one entity."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        words, tags = [], []
        for _ in range(draw.randint(1, 4)):
            for word in draw.choices(WORDS[10:], k=draw.randint(1, 3)):
                words.append(word)
                tags.append("O")
            kind, pool = draw.choice([("good", POSITIVE), ("bad", NEGATIVE)])
            for place in range(draw.randint(1, 2)):
                words.append(draw.choice(pool))
                tags.append(f"{'I' if place else 'B'}-{kind}")
        rows.append({"words": [*words, f"n{seed}x{number}"], "label": [*tags, "O"]})
    return rows


def tiny_spec(folder: Path, **changes) -> dict:
    """A spec of two tiny candidates on tiny rows that a sweep finishes in seconds, as a dictionary."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "name": "tiny",
        "task": "text-classification",
        "data": {
            "train": str(write_rows(folder / "train.parquet", tiny_rows(160))),
            "validation": str(write_rows(folder / "validation.parquet", tiny_rows(60, seed=1))),
            "test": str(write_rows(folder / "test.parquet", tiny_rows(80, seed=2))),
        },
        "candidates": [
            {"model": str(tiny_model(folder / "bert")), "name": "bert", "recipe": RECIPE, "space": SPACE},
            {"model": str(tiny_model(folder / "llama", "llama")), "name": "llama", "recipe": RECIPE, "space": SPACE},
        ],
        "search": {"trials": 4, "finalists": 2, "seeds": 1, "rank_rows": 100},
        "decide": {"draws": 200},
        "storage": str(folder / "runs"),
    }
    return {**spec, **changes}


def tiny_bundle(folder: Path) -> Path:
    """A bundle as ``pmray sweep`` exports it, of an untrained tiny model."""
    import numpy as np
    import torch

    from pmray.bundle import open_bundle, write_settings
    from pmray.serving.scorer import Scorer
    from pmray.tasks.text import TextClassification

    source = tiny_model(folder.with_name(f"{folder.name}-source"))
    task = TextClassification(labels=("negative", "positive"), positive="negative")
    from transformers import AutoConfig

    torch.manual_seed(0)
    processor = task.processor(str(source))
    model = task.build(str(source), AutoConfig.from_pretrained(source), pad=processor.pad_token_id)
    # Untrained weights are so small that all rows come out alike, and what tells them apart is rounding.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    settings = {
        "name": "tiny",
        "key": "0",
        "task": task.to_json(),
        "metric": "f1_macro",
        "max_length": 32,
        "columns": {},
    }
    (folder / "pmray.json").write_text(json.dumps(settings))
    rows = pa.Table.from_pylist([{"row_id": f"golden:{n}", "text": row["text"]} for n, row in enumerate(tiny_rows(8))])
    scores = Scorer(open_bundle(folder)).scores(rows)
    golden = rows.append_column("scores", pa.array(list(np.asarray(scores)), pa.list_(pa.float32())))
    write_settings(folder, settings, golden, "# tiny\n")
    return folder
