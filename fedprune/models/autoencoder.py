"""A fully connected autoencoder, whose error in giving back its input tells what is unusual."""

from __future__ import annotations

import math

from torch import nn

from fedprune.models.layers import Norm, initialise, scaled, sequence, with_norm


def autoencoder(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    width: float = 1.0,
    code: int = 8,
    norm: Norm = "batch",
) -> nn.Sequential:
    """The autoencoder of MLPerf Tiny's anomaly detection: four layers to a code of 8 values, four back.

    Banbury et al. (NeurIPS Datasets and Benchmarks 2021, section 4), after the baseline of Koizumi et al.
    (DCASE 2020): 267,000 weights for the 640 values of five frames of sound. Every layer but the last has
    batch norm and ReLU.

    Parameters
    ----------
    input_shape
        Any.
    outputs
        Number of values for each input: as many as it has, where it is to be given back.
    width
        Scales the hidden layers, 128 units each at 1.0; not the code.
    code
        Values in the middle.
    norm
        What follows linear layers: batch, group or layer norm, or none, and then they have a bias each.
    """
    hidden = scaled(128, width)
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    features = math.prod(input_shape)
    names = [*(f"encoder{n}" for n in range(1, 5)), "bottleneck", *(f"decoder{n}" for n in range(1, 5))]
    for name in names:
        units = code if name == "bottleneck" else hidden
        layers[name] = sequence(
            {
                "linear": nn.Linear(features, units, bias=False),
                "norm": nn.BatchNorm1d(units),
                "relu": nn.ReLU(),
            }
        )
        features = units
    layers["head"] = nn.Linear(features, outputs)
    return with_norm(initialise(sequence(layers)), norm)
