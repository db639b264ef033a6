"""How sequences come into a model that reads them position by position, and which positions count.

A sequence is one of tokens, int64 (B, L), or of vectors, (B, channels, L). Not for text: characters and words
have become tokens before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedprune.errors import UserError
from fedprune.models.layers import require_sequences


def require_positions(model: str, input_shape: tuple[int, ...], vocabulary: int | None) -> None:
    """Raise a ``UserError`` unless inputs are tokens, (L,) of a ``vocabulary``, or vectors, (channels, L)."""
    if vocabulary is None:
        require_sequences(model, input_shape)
    elif len(input_shape) != 1:
        raise UserError(
            f"{model} takes tokens of shape (length,), and an input here has the shape {input_shape}"
        )


def by_position(x: Tensor) -> Tensor:
    """Return a batch with the positions second: tokens as they are, vectors as (B, L, channels)."""
    return x if x.dim() == 2 else x.transpose(1, 2)


def embedding(vocabulary: int, size: int, padding: int | None) -> nn.Embedding:
    """Return a vector of ``size`` values for each token; that of the padding is 0 and stays so."""
    return nn.Embedding(vocabulary, size, padding_idx=padding)


def present(x: Tensor, padding: int | None) -> Tensor | None:
    """Return which positions hold something, bool (B, L); None where all do."""
    return None if padding is None or x.dim() != 2 else x != padding


def last_of(states: Tensor, there: Tensor | None) -> Tensor:
    """Return the state of each sequence's last position that counts, (B, H) of (B, L, H).

    Of a sequence in which none does it is that of the first.
    """
    if there is None:
        return states[:, -1]
    last = (torch.arange(there.shape[1], device=there.device) * there).amax(dim=1)
    return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)


def mean_of(states: Tensor, there: Tensor | None) -> Tensor:
    """Return the mean over the positions that count, (B, H) of (B, L, H); 0 where none does."""
    if there is None:
        return states.mean(dim=1)
    weights = there.to(states.dtype)[:, :, None]
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
