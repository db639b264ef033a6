"""Residual networks for small images: ResNet-18, and the ResNet-8 of MLPerf Tiny.

Not their ImageNet form: the stem is one 3x3 convolution without max pooling, so a 32x32 image reaches the
last stage of ResNet-18 at 4x4 (He et al., CVPR 2016, section 4.2 uses this stem for CIFAR-10).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from fedprune.models.layers import (
    Norm,
    chosen_norm,
    conv3x3,
    conv_unit,
    initialise,
    require_side,
    scaled,
    sequence,
    with_norm,
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels_out, stride)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(channels_out, channels_out)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = _shortcut(channels_in, channels_out, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(residual(x) + shortcut(x))."""
        residual = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return cast(Tensor, self.relu2(residual + self.shortcut(x)))


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    projection = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
    return sequence({"conv": projection, "norm": nn.BatchNorm2d(channels_out)})


def resnet18(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    norm: Norm = "batch",
    batch_norm: bool = True,
) -> nn.Sequential:
    """ResNet-18 for small images: a 3x3 stem, four stages of two blocks, about 11 million weights.

    Parameters
    ----------
    input_shape
        (C, H, W), H and W at least 8, so that the last stage still sees a pixel of its own.
    outputs
        Number of values for each image, such as one for each class.
    width
        Scales the channels of all stages, 64, 128, 256 and 512 at 1.0.
    norm
        What follows convolutions: batch, group or layer norm, or none, and then they have a bias each.
    batch_norm
        False is ``norm: none``.
    """
    norm = chosen_norm("resnet18", norm, batch_norm)
    require_side("resnet18", input_shape, 8)
    return _resnet(input_shape, outputs, [scaled(64 * 2**stage, width) for stage in range(4)], 2, norm)


def resnet8(
    input_shape: tuple[int, ...], outputs: int, *, width: float = 1.0, norm: Norm = "batch"
) -> nn.Sequential:
    """ResNet-8 of MLPerf Tiny's picture classification: three stages of one block, 78,000 weights.

    Banbury et al. (NeurIPS Datasets and Benchmarks 2021, section 4) and the code beside it. Here shortcuts
    that change the size have batch norm too, as in `resnet18`, and convolutions no bias.

    Parameters
    ----------
    input_shape
        (C, H, W), H and W at least 4; 32x32 there.
    outputs
        Number of values for each image, such as one for each class.
    width
        Scales the channels of all stages, 16, 32 and 64 at 1.0.
    norm
        What follows convolutions: batch, group or layer norm, or none, and then they have a bias each.
    """
    require_side("resnet8", input_shape, 4)
    return _resnet(input_shape, outputs, [scaled(16 * 2**stage, width) for stage in range(3)], 1, norm)


def _resnet(
    input_shape: tuple[int, ...], outputs: int, channels: Sequence[int], blocks: int, norm: Norm
) -> nn.Sequential:
    """Return a stem, a stage of so many blocks for each number of channels, and a linear head."""
    layers: dict[str, nn.Module] = {"stem": conv_unit(input_shape[0], channels[0])}
    for stage, (before, after) in enumerate(zip([channels[0], *channels], channels, strict=False)):
        first = BasicBlock(before, after, 1 if stage == 0 else 2)
        layers[f"layer{stage + 1}"] = nn.Sequential(
            first, *(BasicBlock(after, after, 1) for _ in range(blocks - 1))
        )
    layers |= {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(channels[-1], outputs),
    }
    return with_norm(initialise(sequence(layers)), norm)
