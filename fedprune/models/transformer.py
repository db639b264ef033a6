"""A small transformer over sequences of tokens or vectors: an encoder, or one that sees the past alone."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fedprune.models.attention import Block, glorot, require_heads
from fedprune.models.embedding import by_position, embedding, mean_of, present, require_positions


class Transformer(nn.Module):
    """Embedded positions, blocks, a norm, and a linear head on their mean or on each."""

    def __init__(
        self,
        embed: nn.Module,
        length: int,
        outputs: int,
        *,
        size: int,
        layers: int,
        heads: int,
        causal: bool,
        per_position: bool,
    ) -> None:
        super().__init__()
        self.embed = embed
        self.positions = nn.Embedding(length, size)
        self.blocks = nn.ModuleList(Block(size, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, outputs)
        self.causal = causal
        self.per_position = per_position

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs), or (B, L, outputs), of tokens (B, L) or vectors (B, channels, L)."""
        there = present(x, self.embed.padding_idx if isinstance(self.embed, nn.Embedding) else None)
        places = torch.arange(x.shape[-1], device=x.device)
        hidden = None if there is None else ~there[:, None, :]
        if self.causal:
            later = (places > places[:, None])[None]
            hidden = later if hidden is None else hidden | later
        states = self.embed(by_position(x)) + self.positions(places)
        for block in self.blocks:
            states = block(states, hidden)
        states = self.norm(states)
        return cast(Tensor, self.head(states if self.per_position else mean_of(states, there)))


def transformer(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    size: int = 64,
    layers: int = 2,
    heads: int = 4,
    causal: bool = False,
    per_position: bool = False,
    vocabulary: int | None = None,
    padding: int | None = None,
) -> nn.Module:
    """A transformer encoder, or with ``causal`` a decoder as in GPT, with learnt positions.

    Vaswani et al. (NeurIPS 2017), with the norm first and GELU as in GPT-2 (Radford et al., 2019). Weights of
    linear layers are drawn as Glorot and Bengio (AISTATS 2010) do, as in the former.

    Parameters
    ----------
    input_shape
        (length,) of tokens, (channels, length) of vectors.
    outputs
        Number of values for each sequence, or for each position of it.
    size
        Values that stand for a position; the layer for each position has four times as many units.
    layers
        Blocks.
    heads
        Of attention; ``size`` is a multiple.
    causal
        Whether a position sees itself and those before it alone, and has outputs of its own: for the next
        token.
    per_position
        Whether each position has outputs, (B, length, outputs), as for tagging; without, their mean does.
    vocabulary, padding
        Number of tokens, and the one that fills sequences up; the data say both.
    """
    require_positions("transformer", input_shape, vocabulary)
    require_heads("transformer", size, heads)
    embed = nn.Linear(input_shape[0], size) if vocabulary is None else embedding(vocabulary, size, padding)
    model = Transformer(
        embed,
        input_shape[-1],
        outputs,
        size=size,
        layers=layers,
        heads=heads,
        causal=causal,
        per_position=causal or per_position,
    )
    return glorot(model)
