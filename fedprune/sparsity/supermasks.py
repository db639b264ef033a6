"""Supermasks: a network whose weights stay as they were drawn, and whose signs or {0, 1} mask are learned.

Zhou et al. (NeurIPS 2019) learn which of the frozen weights to use, HideNseek (arXiv 2206.04385) their
signs. Here are the frozen weights, the same on any machine for a seed, and a module that trains a
score for each kept weight. Who trains it, and what of it travels, is not for this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedprune import seeds
from fedprune.sparsity.masks import Masks

MaskKind = Literal["sign", "binary", "bernoulli"]
"""What a score stands for: a sign; a weight that is used or not; or the chance, its sigmoid, that it is."""

StraightThrough = Literal["identity", "clipped"]
"""Which scores get their gradient straight through the threshold: all, or those within [-1, 1]."""

_UNIFORMS = 12  # 16-bit numbers that are added up for one draw
_SPAN = 2**16 - 1


def normal_draws(count: int, seed: int) -> np.ndarray:
    """Return nearly normal draws, mean 0 and variance 1, float64 of shape (count,), none of them 0.

    Each is the centred sum of twelve uniform 16-bit integers (Irwin-Hall), four from each number of the
    counter-based generator Philox (Salmon et al., SC 2011). That is integer arithmetic and one rounded
    division, so that every machine draws the same bits, which no formula with a logarithm promises.
    """
    raw = np.random.Philox(key=seed).random_raw(_UNIFORMS // 4 * count)
    sums = raw.astype("<u8").view("<u2").reshape(count, _UNIFORMS).sum(axis=1, dtype=np.int64)
    centred = 2 * sums - _UNIFORMS * _SPAN
    centred[centred == 0] = 1  # A frozen weight needs a sign.
    # A uniform integer from 0 to n has variance n (n + 2) / 12; twice the sum has four times theirs.
    draws: np.ndarray = centred / math.sqrt(4 * _UNIFORMS * (_SPAN * (_SPAN + 2)) / 12)
    return draws


def initial_weights(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """Return weights drawn as He et al. (ICCV 2015) do for ReLU, float32, the same for a seed anywhere.

    Parameters
    ----------
    shapes
        Weights of linear layers and convolutions, output channels first. The order of the names
        does not count.
    seed
        From 0 up to 2**63.
    """
    weights = {}
    for name, shape in shapes.items():
        draws = normal_draws(shape.numel(), seeds.derive(seed, name))
        scaled = (draws * _he_deviation(shape)).astype(np.float32)
        weights[name] = torch.from_numpy(scaled).reshape(shape)
    return weights


def constant_magnitudes(weights: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Return the weights with their signs, and in each layer one magnitude.

    It is the deviation that He et al. draw with, over the root of the layer's density: a layer's kept
    weights then carry as much signal as all of them would.
    """
    densities = masks.densities()
    return {
        name: weight.sign() * (_he_deviation(weight.shape) / math.sqrt(densities.get(name, 1.0) or 1.0))
        for name, weight in weights.items()
    }


def _he_deviation(shape: torch.Size) -> float:
    return math.sqrt(2 * shape[0] / shape.numel())


class Supermask(nn.Module):
    """A module whose masked weights are frozen weights times what scores stand for.

    Its parameters are one 1-D tensor of scores for each masked weight, float32 of shape (kept,), in
    row-major order of the kept positions, and those of the module's that need a gradient. So gradients
    and optimizer state have the size of what is kept.

    Parameters
    ----------
    module
        The network; it is only read, but for its buffers and the parameters that need a gradient.
    masks
        Which weights are kept; these must not need a gradient.
    frozen
        What their scores multiply, float32 of shape (kept,) by name.
    scores
        The scores to start from, of the same shapes.
    kind, straight_through
        What a score stands for, and which scores get a gradient.
    """

    def __init__(
        self,
        module: nn.Module,
        masks: Masks,
        frozen: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        *,
        kind: MaskKind = "sign",
        straight_through: StraightThrough = "identity",
    ) -> None:
        super().__init__()
        self.module = module
        self.kind = kind
        self.straight_through = straight_through
        device = next(module.parameters()).device
        self._names = list(masks)
        self._shapes = {name: mask.shape for name, mask in masks.items()}
        self._positions = {name: mask.reshape(-1).nonzero()[:, 0].to(device) for name, mask in masks.items()}
        self._frozen = {name: frozen[name].to(device) for name in masks}
        self.score_parameters = nn.ParameterList(scores[name].clone().to(device) for name in masks)

    @property
    def scores(self) -> dict[str, Tensor]:
        """The scores by name, on the CPU."""
        return {name: s.detach().cpu() for name, s in zip(self._names, self.score_parameters, strict=True)}

    def numbers(self) -> dict[str, Tensor]:
        """Return what the scores stand for now, by name, of shape (kept,); bernoulli draws anew."""
        return {name: self._numbers(s) for name, s in zip(self._names, self.score_parameters, strict=True)}

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that a forward pass uses; a gradient to them goes on to the scores."""
        dense = {}
        for name, numbers in self.numbers().items():
            flat = torch.zeros(self._shapes[name].numel(), device=numbers.device)
            kept = flat.index_put((self._positions[name],), numbers * self._frozen[name])
            dense[name] = kept.view(self._shapes[name])
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output."""
        output: Tensor = functional_call(self.module, self.weights(), (x,))
        return output

    def _numbers(self, scores: Tensor) -> Tensor:
        """Return the numbers that scores stand for; their gradient passes straight through to the scores."""
        passed = scores
        if self.kind == "bernoulli":
            passed = scores.sigmoid()
            hard = torch.bernoulli(passed.detach())
        else:
            hard = threshold(scores.detach(), self.kind)
            if self.straight_through == "clipped":
                passed = scores.clamp(-1, 1)
        return hard + (passed - passed.detach())  # The bracket is exactly 0.

    def train(self, mode: bool = True) -> Self:
        """Set the network's mode."""
        self.module.train(mode)
        return super().train(mode)


def threshold(scores: Tensor, kind: MaskKind) -> Tensor:
    """Return 1 where a score is at least 0, elsewhere -1 for signs and 0 for masks; float32."""
    low = -1.0 if kind == "sign" else 0.0
    return torch.where(scores >= 0, 1.0, low)


@contextmanager
def frozen_but(module: nn.Module, trained: frozenset[str]) -> Iterator[None]:
    """Let only the named parameters of a module need gradients while the block runs."""
    before = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    try:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in trained)
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None
