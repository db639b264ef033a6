"""Networks of depthwise separable convolutions, for microcontrollers and phones: DS-CNN and MobileNets.

A depthwise convolution looks at one channel at a time, a pointwise one, 1x1, mixes channels. Both are pruned
as any convolution; what is executed sparse is the pointwise one, which holds nearly all weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from torch import Tensor, nn

from fedprune.models.layers import Norm, conv_unit, initialise, require_side, scaled, sequence, with_norm

# Howard et al. (2017, table 1): channels of each pointwise convolution, and the stride before it.
_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class Stage(NamedTuple):
    """A row of a table of inverted residuals: how many with what, and the stride of the first of them."""

    expansion: int
    channels: int
    blocks: int
    stride: int
    kernel: int = 3


# Sandler et al. (CVPR 2018, table 2).
_V2 = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


def ds_cnn(
    input_shape: tuple[int, ...], outputs: int, *, width: float = 1.0, norm: Norm = "batch"
) -> nn.Sequential:
    """DS-CNN for keyword spotting: a convolution and four separable ones, 23,000 weights.

    The small network of Zhang et al. ("Hello Edge", 2017) in the form of MLPerf Tiny, for 49 frames of 10
    features of a second of sound; any number of frames and features will do. Without the dropout there; an
    odd row of padding lies at both ends, and convolutions have no bias.

    Parameters
    ----------
    input_shape
        (C, frames, features), at least 2 features: C is 1 for one microphone.
    outputs
        Number of values for each input, such as one for each word.
    width
        Scales the channels, 64 at 1.0.
    norm
        What follows convolutions: batch, group or layer norm, or none, and then they have a bias each.
    """
    require_side("ds_cnn", input_shape, 2)
    channels = scaled(64, width)
    stem = {
        "conv": nn.Conv2d(input_shape[0], channels, (10, 4), stride=2, padding=(5, 1), bias=False),
        "norm": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(),
    }
    layers: dict[str, nn.Module] = {"stem": sequence(stem)}
    for number in range(1, 5):
        layers[f"block{number}"] = _separable(channels, channels, 1)
    return classifier_of(layers, channels, outputs, norm)


def mobilenet_v1(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 0.25,
    stem_stride: int = 2,
    norm: Norm = "batch",
) -> nn.Sequential:
    """MobileNet, a quarter wide as for MLPerf Tiny's visual wake words: 214,000 weights.

    Howard et al. (2017, table 1).

    Parameters
    ----------
    input_shape
        (C, H, W), any; 96x96 in MLPerf Tiny.
    outputs
        Number of values for each image, such as one for each class.
    width
        Scales the channels, 32 to 1,024 at 1.0.
    stem_stride
        Of the first convolution: 1 for images of about 32 pixels.
    norm
        What follows convolutions: batch, group or layer norm, or none, and then they have a bias each.
    """
    require_side("mobilenet_v1", input_shape, 1)
    channels = scaled(32, width)
    layers: dict[str, nn.Module] = {"stem": conv_unit(input_shape[0], channels, stride=stem_stride)}
    for number, (full, stride) in enumerate(_V1, start=1):
        layers[f"block{number}"] = _separable(channels, scaled(full, width), stride)
        channels = scaled(full, width)
    return classifier_of(layers, channels, outputs, norm)


def mobilenet_v2(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    stem_stride: int = 2,
    norm: Norm = "batch",
) -> nn.Sequential:
    """MobileNetV2: inverted residuals with linear bottlenecks, 2.2 million weights and the head.

    Sandler et al. (CVPR 2018, table 2). Without the dropout before the head.

    Parameters
    ----------
    input_shape
        (C, H, W), any; 224x224 there.
    outputs
        Number of values for each image, such as one for each class.
    width
        Scales the channels; the last convolution, with 1,280, becomes wider and not narrower.
    stem_stride
        Of the first convolution: 1 for images of about 32 pixels.
    norm
        What follows convolutions: batch, group or layer norm, or none, and then they have a bias each.
    """
    require_side("mobilenet_v2", input_shape, 1)
    return inverted_residuals(_V2, input_shape[0], outputs, width=width, stem_stride=stem_stride, norm=norm)


def inverted_residuals(
    stages: Sequence[Stage], channels_in: int, outputs: int, *, width: float, stem_stride: int, norm: Norm
) -> nn.Sequential:
    """Return a network of such stages, between a convolution to 32 channels and one to 1,280 (at 1.0)."""
    channels, last = scaled(32, width), scaled(1280, max(1.0, width))
    stem = conv_unit(channels_in, channels, stride=stem_stride, activation=nn.ReLU6)
    layers: dict[str, nn.Module] = {"stem": stem}
    for number, each in enumerate(stages, start=1):
        blocks = []
        for block in range(each.blocks):
            stride, wanted = each.stride if block == 0 else 1, scaled(each.channels, width)
            blocks.append(InvertedResidual(channels, wanted, stride, each.expansion, each.kernel))
            channels = wanted
        layers[f"stage{number}"] = nn.Sequential(*blocks)
    layers["last"] = conv_unit(channels, last, kernel=1, activation=nn.ReLU6)
    return classifier_of(layers, last, outputs, norm)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project: (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, expansion: int, kernel: int = 3
    ) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.expand = (
            conv_unit(channels_in, inner, kernel=1, activation=nn.ReLU6) if expansion > 1 else nn.Identity()
        )
        self.depthwise = conv_unit(
            inner, inner, kernel=kernel, stride=stride, groups=inner, activation=nn.ReLU6
        )
        self.project = conv_unit(inner, channels_out, kernel=1, activation=None)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection, and the input with it where both have one shape."""
        y = cast(Tensor, self.project(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


def _separable(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """Return a 3x3 convolution of each channel and a 1x1 one of all, each with batch norm and ReLU."""
    return sequence(
        {
            "depthwise": conv_unit(channels_in, channels_in, stride=stride, groups=channels_in),
            "pointwise": conv_unit(channels_in, channels_out, kernel=1),
        }
    )


def classifier_of(layers: Mapping[str, nn.Module], channels: int, outputs: int, norm: Norm) -> nn.Sequential:
    """Return layers with a classifier of the means of their ``channels``, and new weights."""
    head: dict[str, nn.Module] = {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(channels, outputs),
    }
    return with_norm(initialise(sequence({**layers, **head})), norm)
