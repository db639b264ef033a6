"""What the built-in models are put together from: widths, a convolution unit, a weight initialisation.

Not for layers that a method needs (supermasks, normalised convolutions): those belong to the method.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from fedprune.errors import UserError


def scaled(channels: int, width: float) -> int:
    """Return ``channels`` times ``width`` to the nearest integer, at least 1.

    Raises
    ------
    UserError
        Where ``width`` is not a positive number.
    """
    if not 0 < width < math.inf:
        raise UserError(f"model width is {width}: it must be a number above 0, and 1.0 is the usual model")
    return max(1, math.floor(channels * width + 0.5))


def require_side(model: str, input_shape: tuple[int, int, int], smallest: int) -> None:
    """Raise a ``UserError`` where images of shape (C, H, W) are lower or narrower than ``smallest``."""
    _, height, breadth = input_shape
    if min(height, breadth) < smallest:
        raise UserError(
            f"{model} needs images of at least {smallest}x{smallest} pixels, and these are "
            f"{height}x{breadth}: use larger images or a model that takes small ones (cnn, mlp)"
        )


def sequence(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    """Return the layers as one module, run in the order of the mapping, under the names in it."""
    return nn.Sequential(OrderedDict(layers))


def conv_unit(channels_in: int, channels_out: int) -> nn.Sequential:
    """Return a 3x3 convolution that keeps the size, batch norm and ReLU: ``conv``, ``norm``, ``relu``."""
    return sequence(
        {
            "conv": conv3x3(channels_in, channels_out),
            "norm": nn.BatchNorm2d(channels_out),
            "relu": nn.ReLU(),
        }
    )


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution with padding 1; without a bias, since batch norm follows and has one."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def without_batch_norm(model: nn.Sequential) -> nn.Sequential:
    """Take batch norm out of a model and give every convolution a bias, 0, in its place; return the model.

    The layers' names stay; where a batch norm was nothing is done.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.Conv2d) and child.bias is None:
                child.bias = nn.Parameter(torch.zeros(child.out_channels))
    return model


def initialise(model: nn.Sequential) -> nn.Sequential:
    """Draw all weights anew, as He et al. (ICCV 2015, section 2.2) do for ReLU, and return the model.

    Weights are normal with variance 2 / fan_in, biases 0. Batch norm keeps its own: scale 1, shift 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
