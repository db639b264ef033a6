"""A model file gives back exactly the model and says what it is, at nearly the entropy of what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from fedprune.errors import UserError, WireError
from fedprune.results.modelfile import load_model, read_info, read_model, save_model
from fedprune.sparsity.masks import Masks, apply_masks
from fedprune.wire import get_state

from .made_runs import INFO, entropy_bound, pruned_state, stored_model


def save(path: Path, state, masks, model=None) -> dict[str, int]:
    return save_model(
        path,
        state,
        masks,
        model=model or {"name": "cnn"},
        input_shape=INFO.input_shape,
        classes=INFO.classes,
        class_names=INFO.class_names,
        mean=INFO.inputs.mean,
        std=INFO.inputs.std,
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


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01])
@pytest.mark.parametrize(("name", "options"), [("cnn", {}), ("resnet18", {"width": 0.25})])
def test_a_safetensors_file_takes_its_values_and_the_entropy_of_its_masks(tmp_path, name, options, density):
    stored = stored_model(name, density, **options)
    path = tmp_path / "model.safetensors"
    save_model(path, get_state(stored.module), stored.masks, **vars(stored.info))
    assert path.stat().st_size <= 1.1 * entropy_bound(stored)
    assert read_model(path).masks.version == stored.masks.version


def write_first_format(path: Path, state, masks) -> None:
    """Write a file as fedprune did at first; every other pruned tensor has a bitmap, the rest positions."""
    arrays = {name: tensor.numpy() for name, tensor in state.items() if name not in masks}
    for place, (name, mask) in enumerate(masks.items()):
        flat = mask.numpy().reshape(-1)
        arrays[f"{name}::values"] = state[name].numpy().reshape(-1)[flat]
        if place % 2:
            arrays[f"{name}::bitmap"] = np.packbits(flat)
        else:
            arrays[f"{name}::positions"] = np.flatnonzero(flat).astype(np.uint16)
    about = {
        "model": {"name": "cnn"},
        "input_shape": INFO.input_shape,
        "classes": INFO.classes,
        "class_names": INFO.class_names,
        "mean": INFO.inputs.mean,
        "std": INFO.inputs.std,
        "pruned": {name: list(mask.shape) for name, mask in masks.items()},
    }
    save_file(arrays, path, metadata={"fedprune-model-1": json.dumps(about)})


def test_files_of_the_first_format_are_still_read(tmp_path):
    state, masks = pruned_state(0.3)
    write_first_format(tmp_path / "old", state, masks)
    save(tmp_path / "new", state, masks)
    old, new = read_model(tmp_path / "old"), read_model(tmp_path / "new")
    assert old.info == new.info == read_info(tmp_path / "old")
    assert old.masks.version == new.masks.version == masks.version
    for name, tensor in apply_masks(state, masks).items():
        assert torch.equal(old.module.state_dict()[name], tensor), name


def test_a_model_that_is_not_pruned_is_stored_by_its_names(tmp_path):
    state, _ = pruned_state(1.0)
    state["block1.norm.weight"], state["block1.norm.bias"] = torch.randn(64).split(32)  # views of one storage
    save(tmp_path / "m", state, Masks())
    stored = load_file(tmp_path / "m")
    assert stored.keys() == state.keys()
    assert all(np.array_equal(stored[name], tensor.numpy()) for name, tensor in state.items())


def test_half_precision_stays_what_it_is(tmp_path):
    """A module of another dtype than float32 beside float32 tensors, as a model of a user's own may have."""
    (tmp_path / "mine.py").write_text(OWN.replace("bias=bias)", "bias=bias).bfloat16()"))
    state = {"head.weight": torch.randn(10, 64).bfloat16(), "head.bias": torch.randn(10).bfloat16()}
    masks = Masks({"head.weight": torch.rand(10, 64) < 0.5})
    save(tmp_path / "m", state, masks, {"name": f"{tmp_path / 'mine.py'}:Net"})
    assert torch.equal(load_model(tmp_path / "m").state_dict()["head.bias"], state["head.bias"])
    with pytest.raises(WireError, match="missing"):
        save(
            tmp_path / "m", {"head.weight": state["head.weight"]}, masks, {"name": f"{tmp_path}/mine.py:Net"}
        )


def test_info_says_what_is_needed_to_use_the_model(tmp_path):
    state, masks = pruned_state(0.1)
    sizes = save(tmp_path / "m.safetensors", state, masks, {"name": "cnn", "width": 1.0})
    info = read_info(tmp_path / "m.safetensors")
    assert info.model == {"name": "cnn", "width": 1.0}
    assert (info.input_shape, info.classes, info.class_names) == (INFO.input_shape, 10, INFO.class_names)
    assert (info.mean, info.std) == (INFO.inputs.mean, INFO.inputs.std)
    assert read_model(tmp_path / "m.safetensors").masks.version == masks.version
    assert sizes == {name: p.numel() for name, p in load_model(tmp_path / "m.safetensors").named_parameters()}


FORMAT = "fedprune-model-2"


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


def described(**changes):
    """Return a change of a file's description."""
    return lambda a, m: m.update({FORMAT: json.dumps({**json.loads(m[FORMAT]), **changes})})


DAMAGES = {
    "a value too few": lambda a, m: a.update(float32=a["float32"][:-1]),
    "values of another dtype": lambda a, m: a.update(float32=a["float32"].astype(np.float64)),
    "no values": lambda a, m: a.pop("float32"),
    "short masks": lambda a, m: a.update(masks=a["masks"][:-1]),
    "long masks": lambda a, m: a.update(masks=np.append(a["masks"], np.uint8(0))),
    "no masks": lambda a, m: a.pop("masks"),
    "masks of other tensors": described(pruned=[0, 1, 2]),
    "masks of no tensors": described(pruned=[99]),
    "another model": described(model={"name": "cnn", "width": 0.5}),
    "another version of the model": described(layout="00000000"),
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
