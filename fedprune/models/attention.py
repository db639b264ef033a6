"""Attention, and the block of a transformer: what `fedprune.models.transformer` and `vit` are made of.

Attention is written as the products that it consists of, not as PyTorch's fused operation: its four matrices
are linear layers, each pruned and executed as such, and what it costs is the same on every processor.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from fedprune.errors import UserError
from fedprune.models.layers import sequence

M = TypeVar("M", bound=nn.Module)


def require_heads(model: str, size: int, heads: int) -> None:
    """Raise a ``UserError`` unless ``size`` values can be shared out among so many heads of attention."""
    if heads < 1 or size < 1 or size % heads:
        raise UserError(f"{model}: size is {size} and heads is {heads}: size must be a multiple of heads")


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., NeurIPS 2017, section 3.2)."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        #: Outputs of query, key and value that make a head: they can only be pruned together.
        self.head_size = size // heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return (B, L, size) of the same; ``hidden``, bool (B or 1, L or 1, L), is what is not looked at."""
        query, key, value = (
            layer(x).unflatten(2, (-1, self.head_size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
        if hidden is not None:
            # Not -inf, of which the softmax is NaN where nothing is looked at: a sequence of padding alone.
            scores = scores.masked_fill(hidden[:, None], torch.finfo(scores.dtype).min)
        return cast(Tensor, self.out((scores.softmax(dim=3) @ value).transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and a layer for each position, each behind a layer norm and added to what comes in.

    With the norm first it trains without a warm-up (Xiong et al., ICML 2020). ``epsilon`` is that of the
    layer norms.
    """

    def __init__(self, size: int, heads: int, *, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps=epsilon)
        self.attention = Attention(size, heads)
        self.norm2 = nn.LayerNorm(size, eps=epsilon)
        self.forward_layers = sequence(
            {"linear1": nn.Linear(size, 4 * size), "gelu": nn.GELU(), "linear2": nn.Linear(4 * size, size)}
        )

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Return (B, L, size) of the same."""
        x = x + self.attention(self.norm1(x), hidden)
        return x + cast(Tensor, self.forward_layers(self.norm2(x)))


def glorot(model: M) -> M:
    """Draw the weights of all linear layers as Glorot and Bengio (AISTATS 2010) do, biases 0; return it."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return model
