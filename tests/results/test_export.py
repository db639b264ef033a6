"""An exported model computes what the run's model computes, in a file near the entropy of what it holds."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedprune
from fedprune.cli import main
from fedprune.data import batches, load
from fedprune.engine.hosts import InProcess
from fedprune.errors import UserError
from fedprune.results.bench_model import bench
from fedprune.results.export import export, onnx_bytes
from fedprune.results.modelfile import StoredModel, load_model, read_model, save_model
from fedprune.results.run import Run
from fedprune.tasks import Classification
from fedprune.wire import get_state

from .made_runs import entropy_bound, stored_model, write_run

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

from fedprune.results.onnx_weights import OPSET, pack, unpack  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def session(model: bytes | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def logits(model: bytes | Path, x: np.ndarray) -> np.ndarray:
    runner = session(model)
    return runner.run(["logits"], {runner.get_inputs()[0].name: x})[0]


def images(stored: StoredModel, count: int) -> torch.Tensor:
    return torch.randn(count, *stored.info.input_shape, generator=torch.Generator().manual_seed(1))


# How weights are stored.


def holding(weight: np.ndarray) -> onnx.ModelProto:
    """Return a model that returns its only weight."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["weight"], ["same"])],
        "graph",
        [],
        [helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, weight.shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def sparse(shape: tuple[int, ...], density: float, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    weight = random.standard_normal(shape, dtype=np.float32)
    weight[random.random(shape) >= density] = 0
    return weight


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_any_sparse_weight_is_put_together_by_onnxruntime_as_it_was(shape, density, seed):
    weight = sparse(tuple(shape), density, seed)
    model = holding(weight)
    pack(model)
    onnx.checker.check_model(model, full_check=True)
    assert np.array_equal(session(model.SerializeToString()).run(None, {})[0], weight)
    unpack(model)
    assert model == holding(weight)


@pytest.mark.parametrize("density", [0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("quantize", [False, True])
def test_a_large_weight_takes_its_values_and_the_entropy_of_its_mask(density, quantize):
    weight = sparse((256, 32, 3, 3), density)
    model = holding(weight)
    pack(model, quantize=quantize)
    assert np.allclose(session(model.SerializeToString()).run(None, {})[0], weight, atol=0.03 * quantize)
    if not quantize:
        share = np.count_nonzero(weight) / weight.size
        mask = -sum(p * math.log2(p) for p in (share, 1 - share) if p) * weight.size / 8
        overhead = 2500  # of the graph and its functions
        assert model.ByteSize() <= 1.06 * (weight.nbytes * share + mask) + overhead


def test_quantised_weights_are_off_by_half_a_step_and_zeros_are_zeros():
    weight = sparse((8, 3, 5, 5), 0.2)
    weight[3] = 0
    model = holding(weight)
    pack(model, quantize=True)
    quantised = session(model.SerializeToString()).run(None, {})[0]
    steps = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    assert (np.abs(quantised - weight) <= steps * 0.5001).all()
    assert not quantised[weight == 0].any()
    unpack(model)
    (back,) = model.graph.initializer
    assert np.array_equal(numpy_helper.to_array(back), quantised)


# What is computed.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cnn", {"width": 0.5}),
        ("resnet18", {"width": 0.125}),
        ("vgg11", {"width": 0.125}),
        ("lenet5", {}),
        ("mlp", {}),
    ],
)
def test_onnxruntime_computes_the_logits_of_pytorch(name, options, tmp_path):
    stored = stored_model(name, 0.2, **options)
    content = onnx_bytes(stored)
    for count in (1, 5):
        x = images(stored, count)
        with torch.no_grad():
            expected = stored.module(x).numpy()
        assert np.abs(logits(content, x.numpy()) - expected).max() <= 1e-5
    # onnxruntime has put the weights together when it had read the file, not at each inference.
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "folded.onnx")
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
    computed = {node.op_type for node in onnx.load(tmp_path / "folded.onnx").graph.node}
    assert not computed & {"Unpack", "TopK", "ScatterElements", "Cast", "CumSum"}


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.1, 0.01])
def test_an_onnx_file_takes_its_values_and_the_entropy_of_its_masks(density):
    stored = stored_model("resnet18", density, width=0.25)
    content = onnx_bytes(stored)
    assert len(content) <= 1.1 * entropy_bound(stored)
    model = onnx.load_from_string(content)
    unpack(model)
    assert model.ByteSize() > 5 * len(content)
    pack(model, quantize=True)
    assert model.ByteSize() < 0.8 * len(content)


# From a run.


@pytest.fixture(scope="module")
def pruned_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run whose model has learned something."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    plan = fedprune.load_scenario(ROOT / "scenarios/quickstart-static.yaml", {"rounds": 8})
    return fedprune.run(plan, out=out, strategy__density=0.1, host=InProcess(), figures=False)


@pytest.mark.slow
@pytest.mark.xdist_group("export")
def test_a_runs_files_compute_what_its_model_computes(pruned_run, tmp_path):
    """On the test data: all formats the same and 8-bit weights nearly, also from pixels."""
    data = load(pruned_run.scenario)
    everything = np.arange(len(data.test.targets))
    ((x, y),) = batches(data.test, everything, Classification(data.info), batch_size=len(everything))
    with torch.no_grad():
        expected = pruned_run.model()(x).numpy()

    def accuracy(found: np.ndarray) -> float:
        return float((found.argmax(axis=1) == y.numpy()).mean())

    assert accuracy(expected) > 0.6
    files = {
        form: export(pruned_run.directory, form, out=tmp_path / form) for form in ("onnx", "safetensors")
    }
    assert files["safetensors"].stat().st_size <= 1.1 * entropy_bound(read_model(files["safetensors"]))
    assert np.abs(logits(files["onnx"], x.numpy()) - expected).max() <= 1e-5
    assert torch.equal(load_model(files["safetensors"])(x[:3]), pruned_run.model()(x[:3]))

    quantised = export(pruned_run.directory, "onnx", out=tmp_path / "q.onnx", quantize="int8", pixels=True)
    found = logits(quantised, data.test.inputs)
    assert abs(accuracy(found) - accuracy(expected)) <= 0.02
    assert quantised.stat().st_size < 0.6 * files["onnx"].stat().st_size

    plain = onnx.load(
        export(pruned_run.directory, "onnx", out=tmp_path / "plain.onnx", dense=True, pixels=True)
    )
    assert not plain.functions
    assert np.abs(logits(plain.SerializeToString(), data.test.inputs) - expected).max() <= 1e-5
    said = {entry.key: entry.value for entry in plain.metadata_props}
    assert said["fedprune"] == fedprune.__version__
    assert json.loads(said["classes"]) == list(data.info.class_names)
    assert (json.loads(said["mean"]), json.loads(said["std"])) == (
        [*data.info.inputs.mean],
        [*data.info.inputs.std],
    )
    assert float(said["density"]) == pytest.approx(0.1, abs=1e-3)


@pytest.mark.slow
@pytest.mark.xdist_group("export")
def test_a_torch_program_runs_in_a_process_without_fedprune(pruned_run, tmp_path):
    program = export(pruned_run.directory, "torch-export", out=tmp_path / "model.pt2")
    x = torch.randn(3, 1, 8, 8)
    torch.save(x, tmp_path / "x")
    code = (
        "import sys, torch; f = {'fedprune.json': ''};"
        "m = torch.export.load('model.pt2', extra_files=f).module();"
        "torch.save(m(torch.load('x')), 'y'); assert 'fedprune' not in sys.modules; print(f['fedprune.json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["model"] == "cnn"
    with torch.no_grad():
        assert torch.allclose(torch.load(tmp_path / "y"), pruned_run.model()(x), rtol=0, atol=1e-6)
    ours, dense = bench(program, turns=1)
    assert ours.size == pytest.approx(dense.size, rel=0.02)


@pytest.mark.slow
@pytest.mark.xdist_group("export")
def test_the_commands(pruned_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(pruned_run.directory), "--format", "onnx"]) == 0
    assert capsys.readouterr().out.startswith("digits.onnx: ")
    assert main(["bench-model", "digits.onnx"]) == 0
    table = capsys.readouterr().out
    size, latency, memory = (
        re.search(rf"{row} .* ([\d.]+)x", table) for row in ("size", "latency", "peak memory")
    )
    assert size is not None
    assert float(size[1]) < 0.25
    assert latency is not None
    assert memory is not None
    assert main(["export", str(pruned_run.directory)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", str(pruned_run.directory), "--overwrite"]) == 0


@pytest.mark.slow
def test_bench_compares_with_the_same_model_without_zeros(tmp_path):
    stored = stored_model("mlp", 0.05, (1, 8, 8))
    path = tmp_path / "model.safetensors"
    save_model(path, get_state(stored.module), stored.masks, **vars(stored.info))
    ours, dense = bench(path, turns=2)
    weights = sum(tensor.numel() for tensor in get_state(stored.module).values())
    assert ours.size == path.stat().st_size
    assert 4 * weights < dense.size < 4 * weights + 3000
    assert min(ours.seconds, dense.seconds) > 0


# Mistakes.


@pytest.fixture(scope="module")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "run"
    write_run(path, 0.3, {})
    return path


@pytest.mark.parametrize(
    ("form", "options", "said"),
    [
        ("tflite", {}, "onnx, torch-export, safetensors"),
        ("onnx", {"quantize": "int4"}, "int8"),
        ("torch-export", {"quantize": "int8"}, "for onnx"),
        ("safetensors", {"dense": True}, "for onnx"),
        ("safetensors", {"pixels": True}, "normalisation"),
        ("safetensors", {"out": "there"}, "--overwrite"),
        ("safetensors", {"out": "none/there"}, "folder"),
    ],
)
def test_a_mistake_is_refused_with_what_would_be_right(made_run, tmp_path, monkeypatch, form, options, said):
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("")
    with pytest.raises(UserError, match=said):
        export(made_run, form, **options)


def test_a_run_without_a_model_is_refused(made_run, tmp_path):
    shutil.copy(made_run / "scenario.yaml", tmp_path)
    with pytest.raises(UserError, match="unfinished and left no model"):
        export(tmp_path, "onnx", out=tmp_path / "x")


def test_a_missing_extra_is_named_with_its_command(made_run, tmp_path, monkeypatch, capsys):
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "model.onnx").write_bytes(b"")
    for command in (
        ["export", str(made_run), "--out", str(tmp_path / "x")],
        ["bench-model", str(tmp_path / "model.onnx")],
    ):
        assert main(command) == 2
        assert "pip install 'fedprune[export]'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["none.onnx", "model.tflite", "damaged.onnx", "damaged.safetensors"])
def test_what_cannot_be_measured_is_named(tmp_path, name):
    if "none" not in name:
        (tmp_path / name).write_bytes(b"not a model at all")
    with pytest.raises(UserError, match=name):
        bench(tmp_path / name)
