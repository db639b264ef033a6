"""Tasks with an answer at each position of a sequence: the next token, and tags."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from fedprune.data.dataset import DataInfo, Examples
from fedprune.data.inputs import Tokens
from fedprune.errors import UserError
from fedprune.tasks.base import Task
from fedprune.tasks.metrics import Accuracy, Metric, Perplexity

#: The target at a position that does not count, as PyTorch's cross entropy has it.
IGNORED = -100


class _PerPosition(Task):
    """Cross entropy at each position of a sequence: logits (B, L, K), targets int64 (B, L).

    The loss of an example is the mean over the positions that count; 0 where none does.
    """

    def losses(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        """Return each sequence's mean cross entropy in nats."""
        each = functional.cross_entropy(
            outputs.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
        )
        return each.sum(dim=1) / (targets != IGNORED).sum(dim=1).clamp(min=1)

    def compared(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (P, K) and targets (P,) of the P positions that count."""
        counts = targets != IGNORED
        return outputs[counts], targets[counts]

    def headline(self) -> Metric:
        """Return the share of positions with the right answer."""
        return Accuracy(one_each=False)

    def known(self) -> dict[str, object]:
        """Return besides that each position has outputs."""
        return {**super().known(), "per_position": True}

    def output_shape(self, examples: int) -> tuple[int, ...]:
        """Return (B, L, K)."""
        return (examples, self.info.input_shape[-1], self.outputs)

    def blank_targets(self, inputs: Tensor) -> Tensor:
        """Return zeros, int64 (B, L)."""
        return inputs.new_zeros((len(inputs), self.info.input_shape[-1])).long()


class NextToken(_PerPosition):
    """The token that follows, at each position of a sequence; padding is ignored.

    Sequences are stored one token longer than what the model takes: (N, L + 1).
    """

    def __init__(self, info: DataInfo, options: Any = None) -> None:
        if not isinstance(info.inputs, Tokens):
            raise UserError(
                f"task next_token: data set {info.name!r} has {info.inputs.kind}, expected tokens"
            )
        self.tokens = info.inputs
        super().__init__(info, options)

    @property
    def outputs(self) -> int:
        """Size of the vocabulary."""
        return self.tokens.vocabulary

    def batch(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, y): all tokens but the last, and all but the first."""
        tokens = self.tokens.tensor(inputs)
        following = tokens[:, 1:]
        if self.tokens.padding is not None:
            following = following.masked_fill(following == self.tokens.padding, IGNORED)
        return tokens[:, :-1], following

    def known(self) -> dict[str, object]:
        """Return besides that no position may see a later one."""
        return {**super().known(), "causal": True}

    def others(self) -> tuple[Metric, ...]:
        """Return the perplexity of a token."""
        return (Perplexity(),)

    def fault(self, examples: Examples) -> str | None:
        """Refuse other sequences than of L + 1 known tokens."""
        stored, length = examples.inputs, self.info.input_shape[0] + 1
        if stored.ndim != 2 or stored.shape[1] != length:
            return f"sequences of shape {stored.shape}: expected (N, {length})"
        if stored.size and not 0 <= stored.min() <= stored.max() < self.outputs:
            return f"tokens from {stored.min()} to {stored.max()}: expected 0 to {self.outputs - 1}"
        return None


class Tagging(_PerPosition):
    """A class at each position of a sequence; positions with the target -100 are ignored."""

    def batch(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (x, y) with y int64 (B, L)."""
        return self.info.inputs.tensor(inputs), targets.long()

    def fault(self, examples: Examples) -> str | None:
        """Refuse other targets than a class at each position."""
        targets, length = examples.targets, self.info.input_shape[-1]
        if targets.ndim != 2 or targets.shape[1] != length:
            return f"targets of shape {targets.shape}: expected (N, {length}), a class at each position"
        known = targets[targets != IGNORED]
        if known.size and not 0 <= known.min() <= known.max() < self.outputs:
            return f"tags from {known.min()} to {known.max()}: expected 0 to {self.outputs - 1}, or {IGNORED}"
        return None
