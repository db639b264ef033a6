"""Every built-in model, pruned, as a file: it computes what PyTorch computes, for a batch of any size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from built_in import CASES, Case

from fedprune.data import DataInfo
from fedprune.data.inputs import Pixels
from fedprune.models import build
from fedprune.results.bench_model import bench
from fedprune.results.export import onnx_bytes, program_bytes
from fedprune.results.modelfile import StoredModel, described, read_model, save_model
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.sparsity.pruning import prunable
from fedprune.tasks import Classification
from fedprune.wire import get_state

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.slow

#: But for those whose export test_export tests.
OTHERS = {
    name: case for name, case in CASES.items() if name not in ("resnet18", "vgg11", "cnn", "lenet5", "mlp")
}


def write(case: Case, path: Path) -> StoredModel:
    """Write and read a pruned model with statistics of batch norm as after training."""
    module, draws = case.build(), torch.Generator().manual_seed(0)
    state = get_state(module)
    for value in state.values():
        if value.dim() == 1:
            value.uniform_(0.5, 1.5, generator=draws)
    names = prunable(module, keep=())
    masks = Masks({name: torch.rand(state[name].shape, generator=draws) < 0.3 for name in names})
    model = {"name": case.name, **case.options}
    outputs = case.shape[0] if case.name == "unet" else case.shape[-1]
    info = {**described(case.task()), "classes": outputs}
    save_model(path, apply_masks(state, masks), masks, model=model, **info)
    return read_model(path)


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_a_model_computes_the_same_in_every_format(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    stored = write(case, path)
    content = onnx_bytes(stored)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(tmp_path / "folded.onnx")
    session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    program = torch.export.load(io.BytesIO(program_bytes(stored))).module()
    for count in (1, 5):
        x = case.examples(count)
        with torch.no_grad():
            expected, exported = stored.module(x).numpy(), program(x).numpy()
        scale = max(1.0, float(np.abs(expected).max()))
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        assert found.shape == (count, *case.shape)
        assert np.abs(expected).max() > 1e-3
        assert np.abs(found - expected).max() <= 1e-5 * scale
        assert np.abs(exported - expected).max() <= 1e-5 * scale
    # Weights were put together when the file was read, not at each inference.
    computed = {node.op_type for node in onnx.load(tmp_path / "folded.onnx").graph.node}
    assert not computed & {"Unpack", "TopK", "ScatterElements", "CumSum"}


@pytest.mark.parametrize("depth", [255, 65535])
def test_pixels_of_any_depth_are_normalised_in_the_model(depth: int, tmp_path: Path) -> None:
    inputs = Pixels((1, 8, 8), (0.3,), (0.2,), depth=depth)
    task = Classification(DataInfo("made", inputs, ("a", "b", "c")))
    module, path = build("cnn", inputs.shape, 3, seed=0).eval(), tmp_path / "model.safetensors"
    save_model(path, get_state(module), Masks(), model={"name": "cnn"}, **described(task))
    content = onnx_bytes(read_model(path), pixels=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    dtype = np.uint8 if depth == 255 else np.uint16
    pixels = np.random.default_rng(0).integers(0, depth + 1, (3, 1, 8, 8)).astype(dtype)
    with torch.no_grad():
        expected = module(inputs.tensor(torch.from_numpy(pixels))).numpy()
    np.testing.assert_allclose(session.run(None, {"pixels": pixels})[0], expected, atol=1e-5)
    path.with_suffix(".onnx").write_bytes(content)
    assert bench(path.with_suffix(".onnx"), turns=1)[0].seconds > 0


@pytest.mark.parametrize("name", ["gru of tokens", "causal transformer", "cnn1d", "autoencoder", "unet"])
@pytest.mark.parametrize("suffix", [".onnx", ".safetensors"])
def test_what_a_model_costs_can_be_measured(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    stored = write(CASES[name], path)
    if suffix == ".onnx":
        path = path.with_suffix(suffix)
        path.write_bytes(onnx_bytes(stored))
    ours, dense = bench(path, turns=1)
    assert ours.size == path.stat().st_size < dense.size
    assert min(ours.seconds, dense.seconds) > 0
