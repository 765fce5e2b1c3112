"""In which runtime and precision a bundle is served."""

import logging

import numpy as np
import pytest
import torch

from pmray import storage
from pmray.bundle import open_bundle
from pmray.errors import EndpointError
from pmray.serving import onnx_runtime
from pmray.serving.precision import Tried, choose, open_weights
from tests.tiny import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(autouse=True)
def own_copies(tmp_path_factory, monkeypatch):
    """Converted models of this module's tests, which are made once."""
    monkeypatch.setenv(storage.COPIES, str(tmp_path_factory.getbasetemp() / "copies"))


def golden_inputs(weights, bundle):
    golden = weights.bundle.golden()
    return weights.task.encode(golden, weights.task.processor(str(bundle)), 32), golden


def test_the_fastest_way_that_keeps_the_golden_rows_is_served(bundle):
    plain = Tried("torch", "fp32", 0.0, 100.0, 10.0)
    assert choose([plain, Tried("torch", "bf16", 0.004, 105.0, 10.0)], 0.01) == plain
    # Twice as fast with one row, and no slower with many.
    onnx = Tried("onnx", "fp32", 0.0, 100.0, 5.0)
    assert choose([plain, onnx], 0.01) == onnx
    assert choose([plain, onnx, Tried("onnx", "int8", 0.05, 300.0, 2.0)], 0.01) == onnx
    assert choose([Tried("torch", "fp32", 0.02, 100.0, 1.0), Tried("torch", "bf16", 0.5, 105.0, 1.0)], 0.01) is None
    chosen = open_weights(open_bundle(bundle), "fp32", 0.01, "torch")
    assert (chosen.precision, chosen.best.runtime, len(chosen.tried)) == ("fp32", "torch", 1)
    assert chosen.rows_per_second > 0
    assert chosen.best.latency_ms > 0
    weights = open_weights(open_bundle(bundle), "bf16", 0.5).weights
    assert str(next(weights.model.parameters()).dtype) == "torch.bfloat16"
    inputs, golden = golden_inputs(weights, bundle)
    assert np.abs(weights.scores(inputs) - np.array(golden["scores"].to_pylist())).max() < 0.5
    with pytest.raises(EndpointError, match="max_difference"):
        open_weights(open_bundle(bundle), "bf16", 0.0)
    # Whatever else was measured, weights that are served by default have lost nothing that counts.
    plain = open_weights(open_bundle(bundle), "auto", 1e-5).weights
    assert np.abs(plain.scores(inputs) - np.array(golden["scores"].to_pylist())).max() < 1e-5


def test_linear_layers_can_be_served_in_eight_bits(bundle):
    chosen = open_weights(open_bundle(bundle), "int8", 0.3, "torch")
    (tried,) = chosen.tried
    # Something was rounded, and not much.
    assert 0 < tried.difference < 0.3
    kinds = {type(one).__module__ for one in chosen.weights.model.modules()}
    assert "torch.ao.nn.quantized.dynamic.modules.linear" in kinds
    with pytest.raises(EndpointError, match="in int8"):
        open_weights(open_bundle(bundle), "int8", 0.0)


def test_onnx_runtime_gives_the_scores_that_torch_gives(bundle):
    ours = open_weights(open_bundle(bundle), "fp32", 0.01, "torch").weights
    chosen = open_weights(open_bundle(bundle), "fp32", 1e-5, "onnx")
    assert chosen.to_json()["runtime"] == "onnx"
    assert isinstance(chosen.weights.model, onnx_runtime.OnnxModel)
    inputs, golden = golden_inputs(ours, bundle)
    # Batches of other sizes and lengths than that of the conversion.
    for rows in (slice(0, 1), slice(0, 3), slice(0, len(golden))):
        part = inputs.slice(rows.start, rows.stop)
        assert np.abs(ours.scores(part) - chosen.weights.scores(part)).max() < 1e-5
    rounded = open_weights(open_bundle(bundle), "int8", 0.3, "onnx")
    assert 0 < rounded.best.difference < 0.3
    # Both in one process, and in turn.
    assert np.abs(rounded.weights.scores(inputs) - ours.scores(inputs)).max() == pytest.approx(
        rounded.best.difference, abs=1e-4
    )


def test_a_model_is_converted_once_a_machine_and_few_are_kept(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv(storage.COPIES, str(tmp_path))
    opened = open_bundle(bundle)
    old = []
    for number in range(onnx_runtime.KEPT):
        one = tmp_path / "onnx" / f"old{number}"
        one.mkdir(parents=True)
        (one / "manifest.json").write_text("{}")
        old.append(one)
    open_weights(opened, "fp32", 0.01, "onnx")
    (made,) = [one for one in (tmp_path / "onnx").iterdir() if not one.name.startswith("old")]
    assert len(list((tmp_path / "onnx").glob("*/manifest.json"))) == onnx_runtime.KEPT
    monkeypatch.setattr(onnx_runtime, "_convert", lambda *_: pytest.fail("converted twice"))
    open_weights(opened, "int8", 0.3, "onnx")
    assert made.is_dir()


def test_a_large_model_is_converted_only_on_request_and_has_its_weights_in_files_of_their_own(
    bundle, tmp_path, monkeypatch
):
    monkeypatch.setenv(storage.COPIES, str(tmp_path))
    monkeypatch.setattr(onnx_runtime, "LARGEST_FILE", 1000)
    assert {one.runtime for one in open_weights(open_bundle(bundle), "auto", 0.3).tried} == {"torch"}
    ours = open_weights(open_bundle(bundle), "fp32", 0.01, "torch").weights
    inputs, _ = golden_inputs(ours, bundle)
    weights = open_weights(open_bundle(bundle), "fp32", 1e-5, "onnx").weights
    assert np.abs(ours.scores(inputs) - weights.scores(inputs)).max() < 1e-5
    assert open_weights(open_bundle(bundle), "int8", 0.3, "onnx").best.difference > 0
    (folder,) = [one for one in (tmp_path / "onnx").iterdir() if one.is_dir()]
    assert len(list(folder.glob("*.data"))) == 2


def test_a_model_that_cannot_be_converted_is_served_by_torch(bundle, monkeypatch, caplog):
    def export(*_, **__):
        raise torch.onnx.errors.OnnxExporterError("no such operator: fft\nand a long trace")

    monkeypatch.setenv(storage.COPIES, str(bundle / "none"))
    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(EndpointError, match=r"cannot be converted for ONNX Runtime .*no such operator: fft"):
        open_weights(open_bundle(bundle), "auto", 0.01, "onnx")
    with caplog.at_level(logging.WARNING):
        chosen = open_weights(open_bundle(bundle), "fp32", 0.01)
    assert chosen.best.runtime == "torch"
    assert "no such operator: fft" in caplog.text


def test_a_converted_model_that_cannot_be_opened_or_kept_is_served_by_torch(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_runtime.OnnxModel, "forward", lambda self, **batch: 1 / 0)
    assert open_weights(open_bundle(bundle), "fp32", 0.01).best.runtime == "torch"
    monkeypatch.undo()
    (tmp_path / "file").touch()
    monkeypatch.setenv(storage.COPIES, str(tmp_path / "file"))
    assert open_weights(open_bundle(bundle), "fp32", 0.01).best.runtime == "torch"


def test_what_cannot_be_asked_for_is_said_in_one_sentence(bundle, monkeypatch):
    from pmray.spec import Serve

    with pytest.raises(ValueError, match="runtime: onnx computes in fp32 and int8"):
        Serve(runtime="onnx", precision="bf16")
    monkeypatch.setattr(onnx_runtime, "missing", lambda: ["onnxscript"])
    with pytest.raises(EndpointError, match=r"onnx needs onnxscript: pip install 'pmray\[onnx\]'"):
        open_weights(open_bundle(bundle), "auto", 0.01, "onnx")
    assert open_weights(open_bundle(bundle), "fp32", 0.01).best.runtime == "torch"
