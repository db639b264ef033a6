"""What the built-in models are put together from: widths, units, normalisation, a weight initialisation.

Not for layers that a method needs (supermasks, normalised convolutions): those belong to the method.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fedprune.errors import UserError

#: What follows a convolution.
Norm = Literal["batch", "group", "layer", "none"]

M = TypeVar("M", bound=nn.Module)

_GROUP = 16  # Channels in a group of group norm.


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


def require_side(model: str, input_shape: tuple[int, ...], smallest: int) -> None:
    """Raise a ``UserError`` unless inputs are images, (C, H, W), of at least ``smallest`` pixels a side."""
    if len(input_shape) != 3:
        raise UserError(
            f"{model} needs images, (channels, height, width), and an input here has the shape "
            f"{input_shape}: take a model for such inputs (mlp; for sequences cnn1d, gru, transformer)"
        )
    _, height, breadth = input_shape
    if min(height, breadth) < smallest:
        raise UserError(
            f"{model} needs images of at least {smallest}x{smallest} pixels, and these are "
            f"{height}x{breadth}: use larger images or a model that takes small ones (cnn, mlp)"
        )


def require_sequences(model: str, input_shape: tuple[int, ...]) -> None:
    """Raise a ``UserError`` unless inputs are sequences of vectors, (channels, length)."""
    if len(input_shape) != 2:
        raise UserError(
            f"{model} needs sequences, (channels, length), and an input here has the shape "
            f"{input_shape}: take a model for such inputs (mlp; for images cnn)"
        )


def sequence(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    """Return the layers as one module, run in the order of the mapping, under the names in it."""
    return nn.Sequential(OrderedDict(layers))


def conv_unit(
    channels_in: int,
    channels_out: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Return a padded convolution, batch norm and, if any, an activation: ``conv``, ``norm``, ``relu``.

    With stride 1 it keeps the size. The convolution has no bias, since batch norm follows and has one.
    """
    conv = nn.Conv2d(
        channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    layers: dict[str, nn.Module] = {"conv": conv, "norm": nn.BatchNorm2d(channels_out)}
    return sequence(layers if activation is None else layers | {"relu": activation()})


def conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution with padding 1; without a bias, since batch norm follows and has one."""
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


def chosen_norm(model: str, norm: Norm, batch_norm: bool) -> Norm:
    """Return what two options of a model say together; ``batch_norm: false`` is ``norm: none``.

    Raises
    ------
    UserError
        Where they contradict each other.
    """
    if batch_norm:
        return norm
    if norm in ("group", "layer"):
        raise UserError(f"{model}: norm: {norm} and batch_norm: false contradict each other; leave one out")
    return "none"


def with_norm(model: M, norm: Norm) -> M:
    """Put another normalisation in the place of each batch norm of a model; return the model.

    "group" is group norm (Wu and He, ECCV 2018) with 16 channels a group, or as few more as the number of
    channels allows, as in their table 3; "layer" is layer norm over all channels and positions of an
    example, which is group norm with one group. Neither looks at other examples or keeps statistics. With
    "none" each convolution or linear layer without a bias has one, 0. The layers' names stay.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if norm != "batch" and isinstance(child, _BatchNorm):
                setattr(module, name, _instead(child.num_features, norm))
            elif norm == "none" and isinstance(child, nn.Linear | _ConvNd) and child.bias is None:
                width = child.out_features if isinstance(child, nn.Linear) else child.out_channels
                child.bias = nn.Parameter(torch.zeros(width))
    return model


def _instead(channels: int, norm: Norm) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    groups = [number for number in range(1, channels // _GROUP + 1) if channels % number == 0]
    return nn.GroupNorm(max(groups, default=1) if norm == "group" else 1, channels)


def initialise(model: M) -> M:
    """Draw all weights anew, as He et al. (ICCV 2015, section 2.2) do for ReLU, and return the model.

    Those of convolutions and linear layers are normal with variance 2 / fan_in, biases 0. Normalisation keeps
    its own, scale 1 and shift 0, and recurrent layers and embeddings keep those that PyTorch draws.
    """
    for module in model.modules():
        if isinstance(module, _ConvTransposeNd):
            # Each value that it returns is a sum over this many weights, not over those of one input.
            fan_in = module.weight[:, 0].numel() / math.prod(module.stride)
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_in))
        elif isinstance(module, _ConvNd | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return model
