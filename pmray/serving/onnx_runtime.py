"""A bundle's model carried out by ONNX Runtime (``pip install 'pmray[onnx]'``): the same scores, sooner.

torch spends as long between the operations of a small model as in them where one row is answered at a time: a sentence
takes MiniLM-L6 10 to 15 ms there and 4 to 8 ms here, in eight bits 2 to 5. The conversion takes ten seconds and more,
so its files are kept, once a machine.
"""

from __future__ import annotations

import json
import logging
import platform
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from pmray import storage
from pmray.bundle import Bundle
from pmray.data.encode import MANIFEST, finished_folder
from pmray.errors import EndpointError
from pmray.training.first_token import first_token_only

PACKAGES = ("onnxruntime", "onnx", "onnxscript")
FILES = {"fp32": "model.onnx", "int8": "int8.onnx"}
"""Precision -> file. Eight bits: weights of linear layers for good, their inputs as they come."""

KEPT = 8
"""Converted models that a machine keeps."""

LARGEST_FILE = 2**31 - 2**20
"""Bytes; weights of a larger model lie beside its graph, since a file of ONNX ends at two gigabytes. Its conversion
takes minutes, and memory for several copies of it."""


def missing() -> list[str]:
    """Packages that it takes and that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def is_large(model: nn.Module) -> bool:
    """Whether a model's weights do not fit into a file of ONNX."""
    return sum(one.numel() * one.element_size() for one in model.parameters()) > LARGEST_FILE


class OnnxModel(nn.Module):
    """Stands where the torch model stood that it was made of: takes a batch by names, gives ``logits``."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait would take the cores of the processes beside this one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.inputs = [one.name for one in self.session.get_inputs()]
        # Tells those who ask a model where it computes and in what.
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, **batch: torch.Tensor) -> SimpleNamespace:
        """Logits of a batch, as the torch model gives them."""
        (logits,) = self.session.run(["logits"], {name: batch[name].numpy() for name in self.inputs})
        return SimpleNamespace(logits=torch.from_numpy(logits))


def converted(bundle: Bundle, model: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, OnnxModel]:
    """The bundle's model in fp32 and with linear layers in eight bits, by precision.

    Args:
        bundle: What the files are kept for.
        model: Its model, on the CPU in fp32.
        batch: At least two rows, as the task makes them.

    Raises:
        EndpointError: The model has operations that cannot be converted or carried out, or the disk has no room.
    """
    folder = storage.copies() / "onnx" / _key(bundle)
    try:
        with storage.locked(folder):
            if not (folder / MANIFEST).is_file():
                with finished_folder(folder) as unfinished:
                    _convert(model, batch, unfinished)
                    (unfinished / MANIFEST).write_text(json.dumps({"bundle": str(bundle.folder)}) + "\n")
            (folder / MANIFEST).touch()
            _make_room(folder.parent)
            made = {precision: OnnxModel(folder / name) for precision, name in FILES.items()}
        for one in made.values():
            one(**batch)
    except Exception as error:  # noqa: BLE001 - converters raise what they please
        told = str(error).strip().splitlines() or [""]
        raise EndpointError(
            f"serve.runtime: this {type(model).__name__} cannot be converted for ONNX Runtime "
            f"({type(error).__name__}: {told[0][:200]}); use torch"
        ) from None
    return made


def _convert(model: nn.Module, batch: Mapping[str, torch.Tensor], folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    rows_vary = torch.export.Dim.DYNAMIC
    # Of texts and sounds the length varies too.
    shapes = {name: {0: rows_vary, 1: rows_vary} if one.ndim == 2 else {0: rows_vary} for name, one in batch.items()}
    large = is_large(model)
    plain = folder / FILES["fp32"]
    with _quiet(), torch.no_grad(), first_token_only(model):
        program = torch.onnx.export(
            _Logits(model, list(batch)),
            tuple(batch.values()),
            input_names=list(batch),
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=(tuple(shapes.values()),),
            verbose=False,
        )
        assert program is not None
        # The export has inferred shapes and folded constants already; else it is asked for with a warning.
        program.model.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"
        program.save(plain, external_data=large)
        quantize_dynamic(
            plain,
            folder / FILES["int8"],
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            # Without VNNI the sums of two products of eight bits would not fit into sixteen.
            reduce_range=not _sums_of_bytes_fit(),
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )


class _Logits(nn.Module):
    """A model as a function of tensors in an order, which is what a converter takes."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.names, batch, strict=True))).logits
        return logits


def _key(bundle: Bundle) -> str:
    """Names what the files were made from and with."""
    made = sha256()
    for name in [*sorted(one.name for one in bundle.folder.glob("*.safetensors")), "config.json"]:
        with (bundle.folder / name).open("rb") as file:
            while part := file.read(2**20):
                made.update(part)
    versions = [version(name) for name in ("torch", "transformers", *PACKAGES)]
    made.update(json.dumps([versions, platform.machine(), _sums_of_bytes_fit()]).encode())
    return made.hexdigest()[:16]


def _make_room(folder: Path) -> None:
    """Forget the models that were asked for longest ago; who has them open keeps them."""
    kept = sorted(folder.glob(f"*/{MANIFEST}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for one in kept[KEPT:]:
        shutil.rmtree(one.parent, ignore_errors=True)


def _sums_of_bytes_fit() -> bool:
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_vnni") or found.get("amx_int8") or platform.machine() == "aarch64")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what converters say of packages that they miss, and of their own future, from the endpoint's log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
