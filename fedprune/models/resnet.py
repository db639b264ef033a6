"""ResNet-18 in its form for small images.

Not the ImageNet form: the stem is one 3x3 convolution without max pooling, so a 32x32 image reaches the
last stage at 4x4 (He et al., CVPR 2016, section 4.2 uses this stem for CIFAR-10).
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from fedprune.models.layers import (
    conv3x3,
    conv_unit,
    initialise,
    require_side,
    scaled,
    sequence,
    without_batch_norm,
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
    input_shape: tuple[int, int, int], classes: int, *, width: float = 1.0, batch_norm: bool = True
) -> nn.Sequential:
    """ResNet-18 for small images: a 3x3 stem, four stages of two blocks, about 11 million weights.

    Parameters
    ----------
    input_shape
        (C, H, W), H and W at least 8, so that the last stage still sees a pixel of its own.
    classes
        Number of logits.
    width
        Scales the channels of all stages, 64, 128, 256 and 512 at 1.0.
    batch_norm
        Whether convolutions are followed by batch norm; without it they have a bias each.
    """
    require_side("resnet18", input_shape, 8)
    channels = [scaled(64 * 2**stage, width) for stage in range(4)]
    layers: dict[str, nn.Module] = {"stem": conv_unit(input_shape[0], channels[0])}
    for stage, (before, after) in enumerate(zip([channels[0], *channels], channels, strict=False)):
        stride = 1 if stage == 0 else 2
        layers[f"layer{stage + 1}"] = nn.Sequential(
            BasicBlock(before, after, stride), BasicBlock(after, after, 1)
        )
    layers |= {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(channels[-1], classes),
    }
    model = initialise(sequence(layers))
    return model if batch_norm else without_batch_norm(model)
