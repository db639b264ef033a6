"""Small federations of every built-in task: data of a few features, models of a few weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedprune.data import Examples, Request, Source
from fedprune.data.inputs import Numbers, Tokens

LENGTH, FEATURES, VOCABULARY, PADDING = 6, 8, 7, 0
NAMES = ("a", "b", "c")
TRAIN, TEST = 240, 80


def _features(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)


def _source(make: Any, **what: Any) -> Source:
    return Source(make(TRAIN, 0), make(TEST, 1), **what)


def classes(request: Request) -> Source:
    """Which third of its values the first feature is in."""

    def make(count: int, seed: int) -> Examples:
        x = _features(count, seed)
        return Examples(x, np.digitize(x[:, 0], [-0.4, 0.4]).astype(np.int64))

    return _source(make, class_names=NAMES, inputs=Numbers((FEATURES,)))


def labels(request: Request) -> Source:
    """Which of three features are positive."""

    def make(count: int, seed: int) -> Examples:
        x = _features(count, seed)
        return Examples(x, (x[:, :3] > 0).astype(np.uint8))

    return _source(make, class_names=NAMES, inputs=Numbers((FEATURES,)), task="multilabel")


def values(request: Request) -> Source:
    """A sum of features."""

    def make(count: int, seed: int) -> Examples:
        x = _features(count, seed)
        return Examples(x, x[:, 0] - 2 * x[:, 1])

    return _source(make, inputs=Numbers((FEATURES,)), task="regression")


def anomalies(request: Request) -> Source:
    """Features that follow from two numbers; of anomalies they do not."""

    def make(count: int, seed: int) -> Examples:
        draws = np.random.default_rng(seed)
        weights = np.random.default_rng(7).normal(size=(2, FEATURES))
        x = draws.normal(size=(count, 2)) @ weights
        odd = (draws.random(count) < 0.4) & bool(seed)
        x[odd] = draws.normal(size=(odd.sum(), FEATURES)) * 2
        return Examples(x.astype(np.float32), odd.astype(np.int64))

    return _source(make, inputs=Numbers((FEATURES,)), task="reconstruction")


def _tokens(count: int, seed: int, length: int) -> np.ndarray:
    """Counting up from a random token, padded where it ends early."""
    draws = np.random.default_rng(seed)
    found = 1 + (draws.integers(0, 6, (count, 1)) + np.arange(length)) % (VOCABULARY - 1)
    found[np.arange(length) >= draws.integers(0, length + 1, count)[:, None]] = PADDING
    return found.astype(np.int16)


def text(request: Request) -> Source:
    """Tokens of which each follows from the one before, in sequences of any length, some of them empty."""

    def make(count: int, seed: int) -> Examples:
        return Examples(_tokens(count, seed, LENGTH + 1), np.zeros(count, dtype=np.int64))

    return _source(make, inputs=Tokens((LENGTH,), VOCABULARY, PADDING), task="next_token")


def tags(request: Request) -> Source:
    """Whether a token is small, middling or large; padding has no tag."""

    def make(count: int, seed: int) -> Examples:
        tokens = _tokens(count, seed, LENGTH)
        return Examples(tokens, np.where(tokens == PADDING, -100, (tokens - 1) // 2).astype(np.int64))

    return _source(make, class_names=NAMES, inputs=Tokens((LENGTH,), VOCABULARY, PADDING), task="tagging")


def masks(request: Request) -> Source:
    """Pictures of one bright rectangle on a dark ground; the border does not count."""

    def make(count: int, seed: int) -> Examples:
        draws = np.random.default_rng(seed)
        pixels = draws.integers(0, 90, (count, 1, 8, 8)).astype(np.uint8)
        where = np.zeros((count, 8, 8), dtype=np.uint8)
        for picture, mask in zip(pixels, where, strict=True):
            top, left = draws.integers(0, 5, 2)
            picture[0, top : top + 3, left : left + 3] += 150
            mask[top : top + 3, left : left + 3] = 1
        where[:, 0] = 255
        return Examples(pixels, where)

    return _source(make, class_names=("ground", "thing"), task="segmentation")


class Dense(nn.Sequential):
    """Three layers with batch norm, for features."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        (features,) = input_shape
        super().__init__(
            nn.Linear(features, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Linear(16, 12),
            nn.ReLU(),
            nn.Linear(12, outputs),
        )


class Words(nn.Module):
    """An embedding and three convolutions over the sequence, with batch norm: an answer at each position."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.conv = nn.Conv1d(8, 16, 3, padding=2)
        self.norm = nn.BatchNorm1d(16)
        self.mixed = nn.Conv1d(16, 16, 1)
        self.head = nn.Conv1d(16, outputs, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, L, K); no position sees a later one."""
        hidden = self.conv(self.embedding(tokens).transpose(1, 2))[..., : tokens.shape[1]]
        hidden = torch.relu(self.mixed(torch.relu(self.norm(hidden))))
        logits: Tensor = self.head(hidden).transpose(1, 2)
        return logits


class Pixelwise(nn.Sequential):
    """Three convolutions with batch norm: an answer for each pixel."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(
            nn.Conv2d(input_shape[0], 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, outputs, 3, padding=1),
        )


#: Task -> its data, its model, and its headline metric.
TASKS = {
    "classification": ("classes", "Dense", "accuracy"),
    "multilabel": ("labels", "Dense", "micro_f1"),
    "regression": ("values", "Dense", "mae"),
    "next_token": ("text", "Words", "accuracy"),
    "tagging": ("tags", "Words", "accuracy"),
    "reconstruction": ("anomalies", "Dense", "auroc"),
    "segmentation": ("masks", "Pixelwise", "mean_iou"),
}
