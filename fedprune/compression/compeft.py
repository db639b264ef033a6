"""ComPEFT: the largest values of an update, each as its sign; one magnitude for all of them.

Differences from the paper
--------------------------
- The paper compresses the difference of a fine-tuned and a pre-trained model, once. Here it is each client's
  update in each round.
- Its magnitude is alpha times the standard deviation of all values, with alpha chosen on validation data. A
  client has none to spare for that: where ``alpha`` is not given, the magnitude is the mean of those sent,
  which is the nearest to them, as in sparse ternary compression (Sattler et al., 2020).
- Error feedback can be applied, and is not by default.

References
----------
- P. Yadav, L. Choshen, C. Raffel, M. Bansal: ComPEFT: Compression for Communicating Parameter Efficient
  Updates via Sparsification and Quantization. 2023, arXiv 2311.13171.
- F. Sattler, S. Wiedemann, K.-R. Müller, W. Samek: Robust and Communication-Efficient Federated Learning
  from Non-IID Data. IEEE Transactions on Neural Networks and Learning Systems, 2020, arXiv 1903.02891.
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedprune.compression.base import Compressor, Feedback, FeedbackOptions, Frame, Memory
from fedprune.compression.message import Source, Writer
from fedprune.compression.topk import count_of
from fedprune.scenario.validation import refuse
from fedprune.sparsity.masks import highest


class ComPEFT(Compressor):
    """The signs of the largest values, and one magnitude (Yadav et al., 2023)."""

    class Options(FeedbackOptions):
        """How many signs are sent, and what they stand for."""

        density: float = Field(0.05, gt=0, le=1, description="Share of the kept weights that is sent.")
        alpha: float | None = Field(
            None,
            gt=0,
            description="Magnitude as a multiple of the standard deviation of all values; the mean magnitude "
            "of those sent where not given.",
        )
        feedback: Feedback = Field(
            "none", description="Error feedback: none, ef or ef21, as topk's; not with alpha."
        )

        @model_validator(mode="after")
        def _nears(self) -> Self:
            if self.alpha is not None and self.feedback != "none":
                raise refuse(
                    "alpha",
                    "with error feedback what is sent has to come nearer to the update, which only the mean "
                    "magnitude is sure to: leave it out, or set feedback: none",
                )
            return self

    def write(self, update: Tensor, frame: Frame, out: Writer, memory: Memory) -> None:
        """Write the magnitude, the positions and the signs."""
        magnitudes, alpha = update.abs(), self.options.alpha
        chosen = highest(magnitudes, count_of(self.options.density, frame.size), "update")
        if alpha is None:
            size = magnitudes[chosen].double().sum() / max(int(chosen.sum()), 1)
        else:
            size = alpha * update.double().std(correction=0).nan_to_num(0.0)
        out.floats(size.reshape(1), "float32")
        out.bits(chosen)
        out.bits(update[chosen] < 0)

    def read(self, frame: Frame, source: Source) -> Tensor:
        """Return each sign times the magnitude, and 0 elsewhere."""
        size = source.floats(1, "float32")
        chosen = source.bits(frame.size)
        update = torch.zeros(frame.size)
        update[chosen] = torch.where(source.bits(int(chosen.sum())), -size, size)
        return update
