"""VGG-11 with batch norm, for small images.

Not the ImageNet form: one linear layer follows the convolutions, in place of three with 4,096 units.
"""

from __future__ import annotations

from torch import nn

from fedprune.models.layers import (
    Norm,
    chosen_norm,
    conv_unit,
    initialise,
    require_side,
    scaled,
    sequence,
    with_norm,
)

# Configuration A of Simonyan and Zisserman (ICLR 2015, table 1): channels of the convolutions in each stage.
STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def vgg11(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    norm: Norm = "batch",
    batch_norm: bool = True,
) -> nn.Sequential:
    """VGG-11 with batch norm: five stages of 3x3 convolutions with max pooling, about 9 million weights.

    A pooling that a side of one pixel can't take is left out, so that 8x8 images work as well as 32x32;
    larger ones are averaged over what is left of them.

    Parameters
    ----------
    input_shape
        (C, H, W), H and W at least 8.
    outputs
        Number of values for each image, such as one for each class.
    width
        Scales the channels of all stages.
    norm
        What follows convolutions: batch, group or layer norm, or none, and then they have a bias each.
    batch_norm
        False is ``norm: none``.
    """
    norm = chosen_norm("vgg11", norm, batch_norm)
    require_side("vgg11", input_shape, 8)
    channels, side = input_shape[0], min(input_shape[1:])
    layers: dict[str, nn.Module] = {}
    for number, stage in enumerate(STAGES, start=1):
        units: dict[str, nn.Module] = {}
        for unit, full in enumerate(stage, start=1):
            units[f"unit{unit}"] = conv_unit(channels, scaled(full, width))
            channels = scaled(full, width)
        if side > 1:
            units["pool"] = nn.MaxPool2d(2)
            side //= 2
        layers[f"stage{number}"] = sequence(units)
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(channels, outputs)}
    return with_norm(initialise(sequence(layers)), norm)
