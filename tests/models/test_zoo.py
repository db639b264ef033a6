"""Models of timm by name. Where timm cannot be imported a stand-in has the functions of it that are used."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fedprune import registry
from fedprune.errors import PluginError, UserError
from fedprune.models import MODELS, build

SHAPE = (3, 16, 24)


class Made(nn.Module):
    """What timm was asked for."""

    def __init__(self, variant: str, **asked: Any) -> None:
        super().__init__()
        self.variant, self.asked = variant, asked
        self.head = nn.Linear(asked["in_chans"], asked["num_classes"])


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    timm: Any = ModuleType("timm")
    timm.__version__ = "1.0"
    timm.list_models = lambda: ["mobilenetv2_100", "vit_tiny_patch16_224"]
    timm.is_model = lambda name: name in timm.list_models()
    timm.get_pretrained_cfg = lambda name: SimpleNamespace(fixed_input_size=name.startswith("vit"))
    timm.create_model = Made
    monkeypatch.setitem(sys.modules, "timm", timm)


@pytest.mark.usefixtures("stand_in")
def test_timm_is_asked_for_the_data_s_shapes_the_options_and_no_weights() -> None:
    model: Any = build("timm:mobilenetv2_100", SHAPE, 5, seed=0, options={"drop_rate": 0.1})
    assert model.variant == "mobilenetv2_100"
    assert model.asked == {"pretrained": False, "num_classes": 5, "in_chans": 3, "drop_rate": 0.1}
    fixed: Any = build("timm:vit_tiny_patch16_224", SHAPE, 5, seed=0)
    assert fixed.asked["img_size"] == (16, 24)


@pytest.mark.usefixtures("stand_in")
def test_values_depend_on_the_seed_alone() -> None:
    weights = [
        build("timm:mobilenetv2_100", SHAPE, 5, seed=seed).get_parameter("head.weight") for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.usefixtures("stand_in")
def test_what_timm_has_not_is_refused_with_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"no model 'mobilenet_v2_100'; did you mean 'mobilenetv2_100'"):
        registry.load("model", "timm:mobilenet_v2_100")


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": True}, "pretrained is no option: weights are never downloaded, and model.weights"),
        ({"checkpoint_path": "x.pth"}, "checkpoint_path is no option: weights"),
        ({"num_classes": 7}, "num_classes is no option: the data say it"),
        ({"features_only": True}, "must return one tensor"),
    ],
)
def test_what_the_data_or_other_keys_say_is_no_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build("timm:mobilenetv2_100", SHAPE, 5, seed=0, options=options)


@pytest.mark.usefixtures("stand_in")
def test_images_alone_are_taken() -> None:
    with pytest.raises(UserError, match="timm:mobilenetv2_100 needs images"):
        build("timm:mobilenetv2_100", (9, 128), 5, seed=0)


def test_without_timm_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PluginError, match=r"'timm:resnet18' needs timm.*: install timm, and the torchvision"):
        registry.load("model", "timm:resnet18")


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_timm_itself() -> None:
    model = build("timm:mobilenetv2_100", (3, 224, 224), 1000, seed=0)
    ours = MODELS["mobilenet_v2"]((3, 224, 224), 1000)
    assert [p.shape for p in model.parameters()] == [p.shape for p in ours.parameters()]
    for name in ("shufflenet_v2_x0_5", "vit_tiny_patch16_224"):
        if name in sys.modules["timm"].list_models():
            assert build(f"timm:{name}", (1, 32, 32), 4, seed=0)(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    with pytest.raises(PluginError, match="no model 'mobilenet_v2_1000'"):
        registry.load("model", "timm:mobilenet_v2_1000")
