"""A vision transformer: a picture as a sequence of patches, read out at a token of its own.

Plain ViT (Dosovitskiy et al., ICLR 2021): no distillation token, no layer scale, no pooling over patches. The
model is a sequence of sequences, ``embedding``, ``blocks`` (0, 1, ...), ``norm``, ``pool``, ``head``: what
runs a part of it, up to a child or from one on, computes the same.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from fedprune.errors import UserError
from fedprune.models.attention import Block, glorot, require_heads
from fedprune.models.layers import require_side, sequence


class PatchEmbedding(nn.Module):
    """Pictures as tokens: the class token, prompts, and a vector for each patch with its position's added.

    Parameters
    ----------
    input_shape
        (C, H, W), with sides that are multiples of ``patch``.
    patch
        Side of a patch in pixels.
    size
        Values of a token.
    prompts
        Number of prompts: tokens that are trained and stand for nothing in the picture. They have no
        position, and each is of the input alone: "shallow" prompt tuning (Jia et al., ECCV 2022).

    Attributes
    ----------
    class_token
        (1, 1, size).
    prompts
        (1, prompts, size), or None where there are none.
    positions
        (1, 1 + patches, size): that of the class token, then those of the patches, row by row.
    """

    def __init__(self, input_shape: tuple[int, ...], patch: int, size: int, prompts: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        #: Rows and columns of patches.
        self.grid = (height // patch, width // patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size))
        self.prompts = nn.Parameter(torch.empty(1, prompts, size)) if prompts else None
        self.positions = nn.Parameter(torch.empty(1, 1 + math.prod(self.grid), size))
        self.patch = nn.Conv2d(channels, size, patch, stride=patch)
        nn.init.normal_(self.positions, std=0.02)
        nn.init.normal_(self.patch.weight, std=self.patch.weight[0].numel() ** -0.5)
        assert self.patch.bias is not None
        nn.init.zeros_(self.patch.bias)
        if self.prompts is not None:
            bound = math.sqrt(6 / (channels * patch**2 + size))
            nn.init.uniform_(self.prompts, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1 + prompts + patches, size) of pictures (B, C, H, W)."""
        patches = self.patch(x).flatten(2).transpose(1, 2) + self.positions[:, 1:]
        front = self.class_token + self.positions[:, :1]
        if self.prompts is not None:
            front = torch.cat([front, self.prompts], dim=1)
        return torch.cat([front.expand(x.shape[0], -1, -1), patches], dim=1)


class ClassToken(nn.Module):
    """What stands at the class token, the first."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, size) of (B, tokens, size)."""
        return x[:, 0]


class VisionTransformer(nn.Sequential):
    """Embedded patches, blocks, a norm, and a linear head on the class token; see `vit`."""


def vit(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    patch: int = 4,
    size: int = 64,
    layers: int = 4,
    heads: int = 4,
    prompts: int = 0,
    epsilon: float = 1e-6,
) -> nn.Module:
    """A vision transformer of any size; as it stands a small one, for pictures of 32 pixels a side.

    Dosovitskiy et al. (ICLR 2021), with exact GELU. Initial weights are those of the authors' code: linear
    layers as Glorot and Bengio (AISTATS 2010) have them, patches as LeCun, positions normal with a deviation
    of 0.02, class token and biases 0. Only the head, 0 there, is drawn as well: criteria that score weights
    before training see no gradient through zeros. Prompts are uniform, as Jia et al. (ECCV 2022) draw them.

    Parameters
    ----------
    input_shape
        (channels, height, width).
    outputs
        Number of values for each picture.
    patch
        Side of a patch in pixels; the sides of the pictures are multiples.
    size
        Values that stand for a patch; the layer for each position has four times as many units.
    layers
        Blocks.
    heads
        Of attention; ``size`` is a multiple.
    prompts
        Soft prompts between the class token and the patches.
    epsilon
        Of the layer norms: 1e-6 in the authors' code and timm, 1e-12 in Hugging Face's ``transformers``.
    """
    return _built("vit", input_shape, outputs, patch, size, layers, heads, prompts, epsilon)


def vit_tiny(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    patch: int = 16,
    prompts: int = 0,
    epsilon: float = 1e-6,
) -> nn.Module:
    """ViT-Ti (Touvron et al., ICML 2021): `vit` with 12 blocks of 192 values and 3 heads."""
    return _built("vit_tiny", input_shape, outputs, patch, 192, 12, 3, prompts, epsilon)


def vit_small(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    patch: int = 16,
    prompts: int = 0,
    epsilon: float = 1e-6,
) -> nn.Module:
    """ViT-S (Touvron et al., ICML 2021): `vit` with 12 blocks of 384 values and 6 heads."""
    return _built("vit_small", input_shape, outputs, patch, 384, 12, 6, prompts, epsilon)


def vit_base(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    patch: int = 16,
    prompts: int = 0,
    epsilon: float = 1e-6,
) -> nn.Module:
    """ViT-B (Dosovitskiy et al., ICLR 2021): `vit` with 12 blocks of 768 values and 12 heads."""
    return _built("vit_base", input_shape, outputs, patch, 768, 12, 12, prompts, epsilon)


def _built(
    model: str,
    input_shape: tuple[int, ...],
    outputs: int,
    patch: int,
    size: int,
    layers: int,
    heads: int,
    prompts: int,
    epsilon: float,
) -> VisionTransformer:
    require_side(model, input_shape, 1)
    require_heads(model, size, heads)
    _, height, width = input_shape
    if patch < 1 or height % patch or width % patch:
        raise UserError(
            f"{model}: patch is {patch} and pictures are {height}x{width}: their sides must be multiples of "
            "patch (data.resize changes them)"
        )
    for name, value, least in (("layers", layers, 1), ("prompts", prompts, 0)):
        if value < least:
            raise UserError(f"{model}: {name} is {value}, expected at least {least}")
    if not 0 < epsilon < math.inf:
        raise UserError(f"{model}: epsilon is {epsilon}, expected a small number above 0, such as 1e-6")
    blocks = {str(number): Block(size, heads, epsilon=epsilon) for number in range(layers)}
    parts = {
        "embedding": PatchEmbedding(input_shape, patch, size, prompts),
        "blocks": sequence(blocks),
        "norm": nn.LayerNorm(size, eps=epsilon),
        "pool": ClassToken(),
        "head": nn.Linear(size, outputs),
    }
    return glorot(VisionTransformer(OrderedDict(parts)))
