"""signSGD: one bit for each weight, the sign of its update; the server takes a majority vote.

A weight moves in the direction that most clients have voted for. In the paper the step is a learning rate;
here it is the mean magnitude of the update, which a client sends for each tensor, or ``step``. The vote is
`fedprune.server.majority_vote`, which takes the place of the mean; where a scenario names an aggregation
rule, that one is given signs times magnitudes.

Differences from the paper
--------------------------
- Voted on is the update of a round's local training, not a gradient.
- The mean magnitude as the step is that of scaled signs (Karimireddy et al., ICML 2019), averaged over the
  clients; votes count the same, magnitudes by examples.
- The server's answer is the new state, as without compression, not the votes' signs.
- A weight that has not moved votes at random.

References
----------
- J. Bernstein, Y.-X. Wang, K. Azizzadenesheli, A. Anandkumar: signSGD: Compressed Optimisation for
  Non-Convex Problems. ICML 2018, arXiv 1802.04434.
- J. Bernstein, J. Zhao, K. Azizzadenesheli, A. Anandkumar: signSGD with Majority Vote is Communication
  Efficient and Fault Tolerant. ICLR 2019, arXiv 1810.05291.
- S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi: Error Feedback Fixes SignSGD and other Gradient
  Compression Schemes. ICML 2019, arXiv 1901.09847.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedprune.compression.base import Compressor, Frame, Memory
from fedprune.compression.message import Source, Writer


class SignSGD(Compressor):
    """The sign of every value; the server takes a majority vote (Bernstein et al., ICML 2018)."""

    majority = True

    class Options(Compressor.Options):
        """How far a weight moves."""

        step: float | None = Field(
            None,
            gt=0,
            description="How far each weight moves in a round; the mean magnitude of the updates of its "
            "tensor where not given.",
        )

    def write(self, update: Tensor, frame: Frame, out: Writer, memory: Memory) -> None:
        """Write the mean magnitude of each tensor, and a bit for each weight."""
        if self.options.step is None:
            means = [values.abs().double().sum() / max(part.size, 1) for part, values in frame.split(update)]
            out.floats(torch.tensor(means), "float32")
        coin = torch.rand(frame.size, generator=frame.generator()) < 0.5
        out.bits(torch.where(update == 0, coin, update > 0))

    def read(self, frame: Frame, source: Source) -> Tensor:
        """Return each sign times its tensor's magnitude."""
        step, sizes = self.options.step, [part.size for part in frame.parts]
        steps = torch.full((len(sizes),), step) if step else source.floats(len(sizes), "float32")
        spread = steps.repeat_interleave(torch.tensor(sizes, dtype=torch.long))
        return torch.where(source.bits(frame.size), spread, -spread)
