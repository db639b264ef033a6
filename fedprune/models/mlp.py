"""Fully connected networks: inputs of any shape, no convolution, no batch norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from fedprune.errors import UserError
from fedprune.models.layers import initialise, scaled, sequence


def mlp(
    input_shape: tuple[int, ...], outputs: int, *, width: float = 1.0, hidden: Sequence[int] = (200, 200)
) -> nn.Sequential:
    """A fully connected network with ReLU; by default the "2NN" of McMahan et al. (AISTATS 2017).

    Parameters
    ----------
    input_shape
        Any; for rows of a table the number of columns.
    outputs
        Number of values for each input, such as one for each class.
    width
        Scales the hidden layers.
    hidden
        Units of each hidden layer at width 1.0; empty for a linear model.
    """
    if any(units < 1 for units in hidden):
        raise UserError(f"mlp's hidden is {list(hidden)}: every hidden layer needs at least 1 unit")
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    features = math.prod(input_shape)
    for number, full in enumerate(hidden, start=1):
        units = scaled(full, width)
        layers[f"hidden{number}"] = sequence({"linear": nn.Linear(features, units), "relu": nn.ReLU()})
        features = units
    layers["head"] = nn.Linear(features, outputs)
    return initialise(sequence(layers))
