"""Building a model from a scenario's words: seeds, options, models of a user's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from built_in import PICTURES
from torch import nn

from fedprune.errors import PluginError, UserError
from fedprune.models import build, check

SHAPE = (1, 12, 12)


def state(seed: int, name: str = "cnn", **options: Any) -> dict[str, torch.Tensor]:
    return build(name, SHAPE, 3, seed=seed, options=options).state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", PICTURES)
def test_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(1)
    first = state(5, name, width=0.1)
    torch.manual_seed(2)
    assert equal(first, state(5, name, width=0.1))
    assert not equal(first, state(6, name, width=0.1))


def test_global_generator_is_left_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    build("cnn", SHAPE, 3, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_global_generator_is_left_as_it_was_by_a_build_that_fails() -> None:
    before = torch.get_rng_state()
    with pytest.raises(UserError):
        build("lenet5", (1, 8, 8), 3, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_model_is_in_training_mode_on_the_cpu_and_has_its_options() -> None:
    model = build("cnn", SHAPE, 3, seed=0, options={"width": 2, "hidden": 5})
    assert model.training
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert model.get_submodule("hidden.linear").weight.shape[0] == 10


def test_tuple_options_take_the_lists_of_a_scenario() -> None:
    model = build("mlp", SHAPE, 3, seed=0, options={"hidden": [4, 5]})
    assert [m.out_features for m in model.modules() if isinstance(m, nn.Linear)] == [4, 5, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widht": 1.0}, r"no option 'widht'; did you mean 'width'\? \(its options: width, hidden, "),
        ({"width": "wide"}, "option 'width' is 'wide'.*number"),
        ({"width": True}, "option 'width' is True.*number"),
        ({"hidden": 1.5}, "option 'hidden' is 1.5.*integer"),
    ],
)
def test_wrong_options_are_refused_with_what_is_right(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("cnn", SHAPE, 3, seed=0, options=options)


def test_unknown_model_is_refused_with_the_nearest() -> None:
    with pytest.raises(PluginError, match="resnet18"):
        build("resnet81", SHAPE, 3, seed=0)


OWN = """
from __future__ import annotations
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, classes, units: tuple[int, int], scale: float = 1.0, anything=None):
        super().__init__()
        self.units, self.anything = units, anything
        self.head = nn.Linear(input_shape[1] * input_shape[2], classes)

def open_ended(input_shape, classes, **options):
    return nn.Linear(len(options), classes)

def not_a_model(input_shape, classes):
    return "net"

def takes_nothing():
    return nn.Identity()
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path


def test_model_of_a_file_is_built_reproducibly_and_its_options_are_checked(own: Path) -> None:
    def net(**options: Any) -> nn.Module:
        return build("./mine.py:Net", SHAPE, 3, seed=4, options=options, directory=own)

    assert equal(net(units=[1, 2]).state_dict(), net(units=[1, 2], anything={"a": object}).state_dict())
    assert net(units=[1, 2]).units == (1, 2)
    with pytest.raises(UserError, match=r"needs the option 'units' .*units, scale, anything"):
        net()
    with pytest.raises(UserError, match="option 'units'"):
        net(units=[1, 2, 3])


def test_factory_with_open_options_takes_any(own: Path) -> None:
    model = build("./mine.py:open_ended", SHAPE, 3, seed=0, options={"a": 1, "b": 2}, directory=own)
    assert isinstance(model, nn.Linear)
    assert model.in_features == 2


@pytest.mark.parametrize(
    ("name", "message"), [("not_a_model", "returned a str"), ("takes_nothing", "can't be called as")]
)
def test_what_is_no_model_factory_is_refused(own: Path, name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        build(f"./mine.py:{name}", SHAPE, 3, seed=0, directory=own)


NETWORKS = Path(__file__).resolve().parents[1] / "networks.py"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "ReturnsDict",
            r"returns a dict with 'logits', 'hidden'; its forward must return one tensor of shape.*10\)",
        ),
        (
            "ReturnsTwoInTraining",
            r"returns a tuple of 2 in training mode; its forward must return one tensor",
        ),
    ],
)
def test_a_model_must_return_its_logits_alone(name: str, message: str) -> None:
    module = build(f"{NETWORKS}:{name}", (1, 8, 8), 10, seed=0)
    with pytest.raises(UserError, match=message):
        check(module, torch.zeros(2, 1, 8, 8), (2, 10), name)


def test_a_check_leaves_a_model_as_it_is() -> None:
    module = build("cnn", (1, 8, 8), 10, seed=0)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    check(module, torch.zeros(2, 1, 8, 8), (2, 10), "cnn")
    assert equal(module.state_dict(), before)
    assert module.training
