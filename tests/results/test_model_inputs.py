"""A model file tells how the model's inputs are made of raw data, and is read without knowing it."""

from pathlib import Path

import torch

from fedprune.data.dataset import DataInfo
from fedprune.data.inputs import Inputs
from fedprune.data.series import Windows
from fedprune.data.text import Characters
from fedprune.models import build
from fedprune.results.modelfile import described, load_model, read_info, save_model
from fedprune.sparsity.masks import Masks
from fedprune.tasks.classification import Classification


def saved(folder: Path, inputs: Inputs) -> Path:
    """Save an MLP of these inputs."""
    task = Classification(DataInfo("made", inputs, ("a", "b")))
    module = build("mlp", task.info.input_shape, task.outputs, seed=0)
    path = folder / "model.safetensors"
    save_model(path, module.state_dict(), Masks(), model={"name": "mlp"}, **described(task))
    return path


def test_mean_and_deviation_of_windows_are_in_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, Windows((2, 8), (1.5, -2.0), (0.5, 3.0), ("x", "y")))
    settings = {"mean": [1.5, -2.0], "std": [0.5, 3.0], "channels": ["x", "y"]}
    assert read_info(path).inputs == {"kind": "windows", "settings": settings}
    assert load_model(path)(torch.ones(3, 2, 8)).shape == (3, 2)


def test_the_characters_of_texts_are_in_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, Characters((6,), 5, 0, "abc"))
    expected = {"kind": "tokens", "vocabulary": 5, "padding": 0, "settings": {"characters": "abc"}}
    assert read_info(path).inputs == expected
