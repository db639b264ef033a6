"""A model file gives back exactly the model, is as small as its density, and says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fedprune.errors import UserError
from fedprune.results.modelfile import load_model, read_info, save_model
from fedprune.sparsity.masks import Masks, apply_masks

from .made_runs import INFO, pruned_state


def save(path: Path, state, masks, model=None) -> dict[str, int]:
    return save_model(
        path,
        state,
        masks,
        model=model or {"name": "cnn"},
        input_shape=INFO.input_shape,
        classes=INFO.classes,
        class_names=INFO.class_names,
        mean=INFO.mean,
        std=INFO.std,
    )


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
def test_the_model_reads_back_exactly(tmp_path, density):
    state, masks = pruned_state(density)
    save(tmp_path / "model.safetensors", state, masks)
    module = load_model(tmp_path / "model.safetensors")
    assert not module.training
    loaded = module.state_dict()
    for name, tensor in apply_masks(state, masks).items():
        assert torch.equal(loaded[name], tensor), name


@settings(max_examples=25, deadline=None)
@given(density=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_any_mask_reads_back_exactly(tmp_path_factory, density, seed):
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    state, _ = pruned_state(1.0, "mlp")
    generator = torch.Generator().manual_seed(seed)
    masks = Masks(
        {k: torch.rand(v.shape, generator=generator) < density for k, v in state.items() if v.dim() > 1}
    )
    save(path, state, masks, {"name": "mlp"})
    loaded = load_model(path).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in apply_masks(state, masks).items())


def test_size_follows_density(tmp_path):
    sizes = {}
    for density in (1.0, 0.3, 0.01):
        state, masks = pruned_state(density)
        save(tmp_path / f"{density}.safetensors", state, masks)
        sizes[density] = (tmp_path / f"{density}.safetensors").stat().st_size
        kept = sum(masks.kept.values()) if masks else None
    weights = sum(tensor.numel() for name, tensor in state.items() if name in masks)
    rest = sizes[1.0] - 4 * weights
    # A bitmap costs an eighth of a byte a weight; positions are taken where they cost less.
    assert sizes[0.3] < rest + (4 * 0.33 + 1 / 8) * weights + 2000
    assert sizes[0.01] < rest + 4 * kept + min(4 * kept, weights / 8) + 2000
    stored = load_file(tmp_path / "0.01.safetensors")
    assert {name.rpartition("::")[2] for name in stored if "::" in name} == {"values", "positions"}


def test_info_says_what_is_needed_to_use_the_model(tmp_path):
    state, masks = pruned_state(0.1)
    sizes = save(tmp_path / "m.safetensors", state, masks, {"name": "cnn", "width": 1.0})
    info = read_info(tmp_path / "m.safetensors")
    assert info.model == {"name": "cnn", "width": 1.0}
    assert (info.input_shape, info.classes, info.class_names) == (INFO.input_shape, 10, INFO.class_names)
    assert (info.mean, info.std) == (INFO.mean, INFO.std)
    assert info.pruned == {name: tuple(mask.shape) for name, mask in masks.items()}
    assert sizes == {name: p.numel() for name, p in load_model(tmp_path / "m.safetensors").named_parameters()}


FORMAT = "fedprune-model-1"


def test_the_same_model_gives_the_same_file(tmp_path):
    state, masks = pruned_state(0.3)
    files = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for path in files:
        save(path, state, masks)
    assert len({path.read_bytes() for path in files}) == 1


def damaged(path: Path, change) -> Path:
    """Write a model, change its arrays and description, and write it again."""
    state, masks = pruned_state(0.3)
    save(path, state, masks)
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    arrays = load_file(path)
    change(arrays, metadata)
    save_file(arrays, path, metadata=metadata)
    return path


def first(arrays, kind: str) -> str:
    return next(name for name in arrays if name.endswith(f"::{kind}"))


DAMAGES = {
    "a value too few": lambda a, m: a.update({first(a, "values"): a[first(a, "values")][:-1]}),
    "short bitmap": lambda a, m: a.update({first(a, "bitmap"): a[first(a, "bitmap")][:-1]}),
    "no bitmap": lambda a, m: a.pop(first(a, "bitmap")),
    "no values": lambda a, m: a.pop(first(a, "values")),
    "no dense tensor": lambda a, m: a.pop(next(n for n in a if "::" not in n)),
    "a tensor too many": lambda a, m: a.update({"other": np.zeros(3, np.float32)}),
    "a wrong shape": lambda a, m: a.update({next(n for n in a if "::" not in n): np.zeros(3, np.float32)}),
    "another format": lambda a, m: m.update({"fedprune-model-0": m.pop(FORMAT)}),
    "no description": lambda a, m: m.clear(),
    "not JSON": lambda a, m: m.update({FORMAT: "{"}),
    "half a description": lambda a, m: m.update({FORMAT: json.dumps({"classes": 3})}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    path = damaged(tmp_path / "m.safetensors", DAMAGES[damage])
    with pytest.raises(UserError, match=r"m\.safetensors"):
        load_model(path)


def test_what_is_no_model_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such model file"):
        load_model(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("hello, this is not a model")
    with pytest.raises(UserError, match="not a model file"):
        load_model(tmp_path / "text")
    state, masks = pruned_state(0.3)
    save(tmp_path / "m", state, masks)
    (tmp_path / "cut").write_bytes((tmp_path / "m").read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path / "cut")


OWN = """
from torch import nn
class Net(nn.Module):
    def __init__(self, input_shape, classes, *, bias: bool = True):
        super().__init__()
        self.head = nn.Linear(64, classes, bias=bias)
    def forward(self, x):
        return self.head(x.flatten(1))
"""


def test_a_model_of_ones_own_is_found_again_or_asked_for(tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "mine.py").write_text(OWN)
    state = {"head.weight": torch.randn(10, 64)}
    masks = Masks({"head.weight": torch.rand(10, 64) < 0.5})
    save(tmp_path / "m", state, masks, {"name": f"{home / 'mine.py'}:Net", "bias": False})
    expected = apply_masks(state, masks)["head.weight"]
    assert torch.equal(load_model(tmp_path / "m").state_dict()["head.weight"], expected)
    (home / "mine.py").rename(elsewhere / "mine.py")
    with pytest.raises(UserError, match="directory="):
        load_model(tmp_path / "m")
    moved = load_model(tmp_path / "m", directory=elsewhere)
    assert torch.equal(moved.state_dict()["head.weight"], expected)
