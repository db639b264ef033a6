"""ShuffleNetV2: half of the channels pass a unit as they are, and a shuffle mixes them with the other half.

Splitting, joining and shuffling channels are no layers: nothing in them is trained, pruned or counted.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fedprune.models.layers import Norm, conv_unit, require_side, scaled
from fedprune.models.mobilenet import classifier_of

# Ma et al. (ECCV 2018, table 5): channels of the three stages and of the last convolution, by width. That of
# 2.0 has 244, 488 and 976 in the authors' code, and so the published number of parameters.
_CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
_STEM = 24
_UNITS = (4, 8, 4)


def shufflenet_v2(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    stem_stride: int = 2,
    norm: Norm = "batch",
) -> nn.Sequential:
    """ShuffleNetV2: units of depthwise convolutions that shuffle channels; 1.25 million weights and the head.

    Ma et al. (ECCV 2018, figure 3 c and d, table 5).

    Parameters
    ----------
    input_shape
        (C, H, W), any; 224x224 there.
    outputs
        Number of values for each image, such as one for each class.
    width
        0.5, 1.0, 1.5 and 2.0 are those of the paper. Another scales the channels of 1.0 to even numbers; the
        last convolution, with 1,024, becomes wider and not narrower. The first always has 24.
    stem_stride
        Of the first convolution and of the pooling after it: 1 for images of about 32 pixels.
    norm
        What follows convolutions: batch, group or layer norm, or none, and then they have a bias each.
    """
    require_side("shufflenet_v2", input_shape, 1)
    *stages, last = _CHANNELS.get(width) or _scaled(width)
    layers: dict[str, nn.Module] = {
        "stem": conv_unit(input_shape[0], _STEM, stride=stem_stride),
        "pool1": nn.MaxPool2d(3, stride=stem_stride, padding=1),
    }
    channels = _STEM
    for number, (units, wanted) in enumerate(zip(_UNITS, stages, strict=True), start=1):
        following = [ShuffleUnit(wanted) for _ in range(units - 1)]
        layers[f"stage{number}"] = nn.Sequential(DownsamplingUnit(channels, wanted), *following)
        channels = wanted
    layers["last"] = conv_unit(channels, last, kernel=1)
    return classifier_of(layers, last, outputs, norm)


class ShuffleUnit(nn.Module):
    """Three convolutions of half of the channels, C / 2: (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.right = _branch(channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the first half as it is and the second convolved, shuffled."""
        left, right = x.chunk(2, dim=1)
        return _shuffled(left, cast(Tensor, self.right(right)))


class DownsamplingUnit(nn.Module):
    """Two branches of all channels, side by side: (B, C_in, H, W) to (B, C_out, H / 2, W / 2), C_out even."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.left = nn.Sequential(
            conv_unit(channels_in, channels_in, stride=2, groups=channels_in, activation=None),
            conv_unit(channels_in, half, kernel=1),
        )
        self.right = _branch(channels_in, half, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return what both branches make, shuffled."""
        return _shuffled(cast(Tensor, self.left(x)), cast(Tensor, self.right(x)))


def _branch(channels_in: int, channels_out: int, *, stride: int) -> nn.Sequential:
    """Return a pointwise, a depthwise and a pointwise convolution; after the depthwise one comes no ReLU."""
    return nn.Sequential(
        conv_unit(channels_in, channels_out, kernel=1),
        conv_unit(channels_out, channels_out, stride=stride, groups=channels_out, activation=None),
        conv_unit(channels_out, channels_out, kernel=1),
    )


def _shuffled(left: Tensor, right: Tensor) -> Tensor:
    """Return the channels of two tensors in turn, one of the left and one of the right."""
    return torch.stack((left, right), dim=2).flatten(1, 2)


def _scaled(width: float) -> tuple[int, ...]:
    *stages, last = _CHANNELS[1.0]
    return *(2 * scaled(each // 2, width) for each in stages), scaled(last, max(1.0, width))
