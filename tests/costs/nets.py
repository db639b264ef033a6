"""Networks with what fedprune's own models lack: groups, shared weights, attention, dropout."""

from __future__ import annotations

from functools import partial

import torch
from networks import Encoder, RowByRow, SeparateAttention, Tied, Volumes
from torch import Tensor, nn

SHAPE = (3, 16, 16)


class SharedWeight(nn.Module):
    """Uses one convolution twice, the first time on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(x).relu()).mean((2, 3)))


class Attention(nn.Module):
    """Patches, one transformer layer, a linear head: products of activations among the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class LooksAtValues(nn.Module):
    """Cannot run without data."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        scale = 2.0 if x.sum().item() > 0 else 1.0
        return self.head(torch.flatten(x, 1) * scale)


def norm_first() -> nn.Module:
    """Starts with a trained batch norm, so the first convolution needs a gradient to its input."""
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 10))


def frozen_stem() -> nn.Module:
    """Trains its head alone."""
    stem = nn.Conv2d(3, 4, 3).requires_grad_(False)
    return nn.Sequential(stem, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 10))


def assorted() -> nn.Module:
    """In-place activation, dropout, both poolings, a transposed convolution, group norm, GELU."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.3),
        nn.ConvTranspose2d(8, 4, 3, stride=2),
        nn.GroupNorm(2, 4),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


NETS = {
    "shared": SharedWeight,
    "attention": Attention,
    "looks": LooksAtValues,
    "norm_first": norm_first,
    "frozen": frozen_stem,
    "assorted": assorted,
    "gru": partial(RowByRow, SHAPE, 10, kind="GRU"),
    "rnn": partial(RowByRow, SHAPE, 10, kind="RNN"),
    "encoder": partial(Encoder, SHAPE, 10),
    "separate": partial(SeparateAttention, SHAPE, 10),
    "tied": partial(Tied, SHAPE, 10),
    "volumes": partial(Volumes, SHAPE, 10),
}
