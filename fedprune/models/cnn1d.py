"""A convolutional network over time, for windows of sensor data."""

from __future__ import annotations

from torch import nn

from fedprune.models.layers import Norm, initialise, require_sequences, scaled, sequence, with_norm


def cnn1d(
    input_shape: tuple[int, ...], outputs: int, *, width: float = 1.0, norm: Norm = "batch"
) -> nn.Sequential:
    """Three 1-D convolutions and the mean over time, for windows of any length.

    The fully convolutional network of Wang, Yan and Oates (IJCNN 2017, section II.B): kernels of 8, 5 and 3,
    each with batch norm and ReLU. For 9 channels and 6 classes it has 273,000 weights. The even kernel makes
    the window one step longer.

    Parameters
    ----------
    input_shape
        (channels, length), such as (9, 128) for acceleration and rotation in 128 steps.
    outputs
        Number of values for each window, such as one for each activity.
    width
        Scales the channels, 128, 256 and 128 at 1.0.
    norm
        What follows convolutions: batch, group or layer norm, or none, and then they have a bias each.
    """
    require_sequences("cnn1d", input_shape)
    channels = input_shape[0]
    layers: dict[str, nn.Module] = {}
    for number, (full, kernel) in enumerate(((128, 8), (256, 5), (128, 3)), start=1):
        units = scaled(full, width)
        layers[f"block{number}"] = sequence(
            {
                "conv": nn.Conv1d(channels, units, kernel, padding=kernel // 2, bias=False),
                "norm": nn.BatchNorm1d(units),
                "relu": nn.ReLU(),
            }
        )
        channels = units
    layers |= {
        "pool": nn.AdaptiveAvgPool1d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(channels, outputs),
    }
    return with_norm(initialise(sequence(layers)), norm)
