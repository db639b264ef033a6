"""A small U-Net: a label for each pixel of an image."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

from fedprune.errors import UserError
from fedprune.models.layers import Norm, conv_unit, initialise, require_side, scaled, sequence, with_norm


class Up(nn.Module):
    """Double the sides of an image and join it with the one that was halved: two images to one."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2)
        self.units = _two(2 * channels_out, channels_out)

    def forward(self, x: Tensor, fine: Tensor) -> Tensor:
        """Return (B, C_out, 2 H, 2 W) of (B, C_in, H, W) and (B, C_out, 2 H, 2 W)."""
        return cast(Tensor, self.units(torch.cat([fine, self.up(x)], dim=1)))


class UNet(nn.Module):
    """Stages of two convolutions down to small images, and back up with what was there on the way."""

    def __init__(self, channels: int, stages: list[int], outputs: int) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(stages))
        self.stem = _two(channels, stages[0])
        self.down = nn.ModuleList(
            sequence({"pool": nn.MaxPool2d(2), "units": _two(before, after)}) for before, after in pairs
        )
        self.up = nn.ModuleList(Up(after, before) for before, after in reversed(pairs))
        self.head = nn.Conv2d(stages[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W) of (B, C, H, W)."""
        images = [self.stem(x)]
        for stage in self.down:
            images.append(stage(images[-1]))
        coarse = images.pop()
        for stage in self.up:
            coarse = stage(coarse, images.pop())
        return cast(Tensor, self.head(coarse))


def unet(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    levels: int = 3,
    norm: Norm = "batch",
) -> nn.Module:
    """A U-Net for segmentation (Ronneberger et al., MICCAI 2015), a quarter as wide and one level less.

    Convolutions are padded, so that every pixel has outputs, and have batch norm: 480,000 weights.

    Parameters
    ----------
    input_shape
        (C, H, W); H and W are multiples of 2 to the power of ``levels``.
    outputs
        Number of values for each pixel, such as one for each class.
    width
        Scales the channels, 16 at first and twice as many on each level at 1.0.
    levels
        How often images are halved.
    norm
        What follows convolutions: batch, group or layer norm, or none, and then they have a bias each.
    """
    require_side("unet", input_shape, 1)
    if levels < 0 or any(side % 2**levels for side in input_shape[1:]):
        raise UserError(
            f"unet halves images {levels} times, and these are {input_shape[1]}x{input_shape[2]}: resize "
            f"them to multiples of {2 ** max(levels, 0)} pixels, or give the model fewer levels"
        )
    stages = [scaled(16 * 2**level, width) for level in range(levels + 1)]
    return with_norm(initialise(UNet(input_shape[0], stages, outputs)), norm)


def _two(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(conv_unit(channels_in, channels_out), conv_unit(channels_out, channels_out))
