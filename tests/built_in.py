"""The built-in models, each with inputs that it is for, small; and a task that any of them can learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fedprune.data import DataInfo
from fedprune.data.inputs import Inputs, Numbers, Tokens
from fedprune.models import MODELS, build
from fedprune.tasks import Accuracy, Task

#: Those that take images of 16 pixels and classify them, and have an option ``width``.
PICTURES = (
    "resnet18",
    "vgg11",
    "cnn",
    "lenet5",
    "mlp",
    "resnet8",
    "mobilenet_v1",
    "mobilenet_v2",
    "efficientnet_lite0",
    "shufflenet_v2",
    "ds_cnn",
)

_TOKENS = Tokens((7,), vocabulary=11, padding=0)


class Squares(Task):
    """The mean square of what a model returns, of whatever shape that is."""

    def losses(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        return outputs.flatten(1).square().mean(dim=1)

    def headline(self) -> Accuracy:
        return Accuracy()


@dataclass(frozen=True)
class Case:
    """A built-in model with inputs that it is for.

    ``shape`` is that of its outputs for one input.
    """

    name: str
    inputs: Inputs
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def build(self, seed: int = 0) -> nn.Module:
        """Return the model, as a scenario has it."""
        outputs = self.shape[0] if self.name == "unet" else self.shape[-1]
        known = self.inputs.known()
        return build(self.name, self.inputs.shape, outputs, seed=seed, options=self.options, known=known)

    def task(self) -> Task:
        """Return what to learn from its inputs."""
        return Squares(DataInfo("made", self.inputs))

    def examples(self, count: int, seed: int = 0) -> Tensor:
        """Return inputs with random values, (count, ...)."""
        return self.inputs.random(count, torch.Generator().manual_seed(seed))


_IMAGES, _SERIES, _NARROW = Numbers((3, 16, 16)), Numbers((3, 24)), {"width": 0.125}

_SMALL_VIT = {"patch": 4, "size": 16, "layers": 2, "heads": 2}

#: Models that are another one with the sizes of a paper, too large to be built in test after test.
PRESETS = ("vit_tiny", "vit_small", "vit_base")

CASES: dict[str, Case] = {
    **{name: Case(name, _IMAGES, (4,), _NARROW) for name in PICTURES},
    **{
        f"resnet8 with {norm} norm": Case("resnet8", _IMAGES, (4,), {"norm": norm})
        for norm in ("group", "layer", "none")
    },
    "keywords": Case("ds_cnn", Numbers((1, 49, 10)), (12,), {"width": 0.25}),
    "table": Case("mlp", Numbers((14,)), (2,), {"hidden": [9, 8]}),
    "cnn1d": Case("cnn1d", _SERIES, (6,), _NARROW),
    "cnn1d with group norm": Case("cnn1d", _SERIES, (6,), {**_NARROW, "norm": "group"}),
    "gru": Case("gru", _SERIES, (6,), {"hidden": 8, "layers": 2}),
    "gru of tokens": Case("gru", _TOKENS, (4,), {"hidden": 8}),
    "gru of each token": Case("gru", _TOKENS, (7, 11), {"hidden": 8, "per_position": True}),
    "lstm": Case("lstm", _SERIES, (6,), {"hidden": 8}),
    "lstm of tokens": Case("lstm", _TOKENS, (4,), {"hidden": 8, "layers": 2}),
    "transformer": Case("transformer", _SERIES, (6,), {"size": 16, "layers": 1}),
    "transformer of tokens": Case("transformer", _TOKENS, (4,), {"size": 16, "layers": 1}),
    "causal transformer": Case("transformer", _TOKENS, (7, 11), {"size": 16, "layers": 1, "causal": True}),
    "vit": Case("vit", _IMAGES, (4,), _SMALL_VIT),
    "vit with prompts": Case("vit", _IMAGES, (4,), {**_SMALL_VIT, "prompts": 3}),
    "autoencoder": Case("autoencoder", Numbers((4, 5)), (20,), _NARROW),
    "unet": Case("unet", Numbers((1, 16, 8)), (3, 16, 8), {"width": 0.25, "levels": 2}),
}
assert {case.name for case in CASES.values()} == set(MODELS) - set(PRESETS), "a built-in model has no case"
