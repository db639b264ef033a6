"""Small convolutional networks: ``cnn`` with batch norm, and LeNet-5 without."""

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


def cnn(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    hidden: int = 128,
    norm: Norm = "batch",
    batch_norm: bool = True,
) -> nn.Sequential:
    """Two 3x3 convolutions with batch norm and max pooling, and a hidden layer; for 8x8 to 32x32 images.

    Parameters
    ----------
    input_shape
        (C, H, W), H and W at least 4.
    outputs
        Number of values for each image, such as one for each class.
    width
        Scales the channels, 32 and 64 at 1.0, and the hidden layer.
    hidden
        Units of the hidden layer at width 1.0.
    norm
        What follows convolutions: batch, group or layer norm, or none, and then they have a bias each.
    batch_norm
        False is ``norm: none``.
    """
    norm = chosen_norm("cnn", norm, batch_norm)
    require_side("cnn", input_shape, 4)
    channels, height, breadth = input_shape
    first, second, units = scaled(32, width), scaled(64, width), scaled(hidden, width)
    layers = {
        "block1": conv_unit(channels, first),
        "pool1": nn.MaxPool2d(2),
        "block2": conv_unit(first, second),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "hidden": sequence(
            {"linear": nn.Linear(second * (height // 4) * (breadth // 4), units), "relu": nn.ReLU()}
        ),
        "head": nn.Linear(units, outputs),
    }
    return with_norm(initialise(sequence(layers)), norm)


def lenet5(input_shape: tuple[int, ...], outputs: int, *, width: float = 1.0) -> nn.Sequential:
    """LeNet-5 with ReLU and max pooling, without batch norm: 61,706 weights for MNIST.

    LeCun et al. (Proc. IEEE 1998, section II.B) pad the 28x28 images of MNIST to 32x32. So does the first
    convolution here for every image below 32x32; larger ones are not padded.

    Parameters
    ----------
    input_shape
        (C, H, W), H and W at least 12.
    outputs
        Number of values for each image, such as one for each class.
    width
        Scales the channels, 6 and 16 at 1.0, and the hidden layers, 120 and 84.
    """
    require_side("lenet5", input_shape, 12)
    channels, height, breadth = input_shape
    padding = 2 if min(height, breadth) < 32 else 0
    first, second, third, fourth = (scaled(units, width) for units in (6, 16, 120, 84))
    pixels = _side_after(height, padding) * _side_after(breadth, padding)
    layers = {
        "block1": sequence({"conv": nn.Conv2d(channels, first, 5, padding=padding), "relu": nn.ReLU()}),
        "pool1": nn.MaxPool2d(2),
        "block2": sequence({"conv": nn.Conv2d(first, second, 5), "relu": nn.ReLU()}),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "hidden1": sequence({"linear": nn.Linear(second * pixels, third), "relu": nn.ReLU()}),
        "hidden2": sequence({"linear": nn.Linear(third, fourth), "relu": nn.ReLU()}),
        "head": nn.Linear(fourth, outputs),
    }
    return initialise(sequence(layers))


def _side_after(side: int, padding: int) -> int:
    """Return what two 5x5 convolutions, the first one padded, and two poolings leave of a side."""
    return ((side + 2 * padding - 4) // 2 - 4) // 2
