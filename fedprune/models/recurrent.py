"""Recurrent networks: a GRU and an LSTM over sequences of tokens or vectors."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from fedprune.models.embedding import by_position, embedding, last_of, present, require_positions
from fedprune.models.layers import initialise


class Recurrent(nn.Module):
    """Recurrent layers over a sequence, and a linear head on the last state or on each."""

    def __init__(self, embed: nn.Module, rnn: nn.RNNBase, outputs: int, *, per_position: bool) -> None:
        super().__init__()
        self.embed = embed
        self.rnn = rnn
        self.head = nn.Linear(rnn.hidden_size, outputs)
        self.per_position = per_position

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs), or (B, L, outputs), of tokens (B, L) or vectors (B, channels, L)."""
        states, _ = self.rnn(self.embed(by_position(x)))
        if not self.per_position:
            padding = self.embed.padding_idx if isinstance(self.embed, nn.Embedding) else None
            states = last_of(states, present(x, padding))
        return cast(Tensor, self.head(states))


def gru(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    hidden: int = 64,
    layers: int = 1,
    embedding_size: int = 32,
    per_position: bool = False,
    vocabulary: int | None = None,
    padding: int | None = None,
) -> nn.Module:
    """A GRU (Cho et al., EMNLP 2014) over tokens or vectors, and a linear layer on its last state.

    Parameters
    ----------
    input_shape
        (length,) of tokens, (channels, length) of vectors.
    outputs
        Number of values for each sequence, or for each position of it.
    hidden
        Values of a state.
    layers
        Recurrent layers, one on the other.
    embedding_size
        Values that stand for a token.
    per_position
        Whether each position has outputs, (B, length, outputs), as for tagging or the next token; without,
        the last position does that isn't padding.
    vocabulary, padding
        Number of tokens, and the one that fills sequences up; the data say both.
    """
    return _recurrent(
        nn.GRU, "gru", input_shape, outputs, hidden, layers, embedding_size, per_position, vocabulary, padding
    )


def lstm(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    hidden: int = 64,
    layers: int = 1,
    embedding_size: int = 32,
    per_position: bool = False,
    vocabulary: int | None = None,
    padding: int | None = None,
) -> nn.Module:
    """An LSTM (Hochreiter and Schmidhuber, 1997) over tokens or vectors, with a linear layer.

    With two layers of 256 and an embedding of 8 it is the network of LEAF for the next character
    (Caldas et al., 2018). Its parameters are those of `gru`.
    """
    return _recurrent(
        nn.LSTM,
        "lstm",
        input_shape,
        outputs,
        hidden,
        layers,
        embedding_size,
        per_position,
        vocabulary,
        padding,
    )


def _recurrent(
    kind: type[nn.GRU] | type[nn.LSTM],
    name: str,
    input_shape: tuple[int, ...],
    outputs: int,
    hidden: int,
    layers: int,
    embedding_size: int,
    per_position: bool,
    vocabulary: int | None,
    padding: int | None,
) -> nn.Module:
    require_positions(name, input_shape, vocabulary)
    embed, features = (
        (nn.Identity(), input_shape[0])
        if vocabulary is None
        else (embedding(vocabulary, embedding_size, padding), embedding_size)
    )
    rnn = kind(features, hidden, layers, batch_first=True)
    return initialise(Recurrent(embed, rnn, outputs, per_position=per_position))
