"""SplitFed (Thapa et al., AAAI 2022): SplitFed: When Federated Learning Meets Split Learning.

Clients hold the first and the last stages of a model, the server those between. For each batch a client sends
its head's output and, back from its tail, the gradient at the body's outputs; the server sends the body's
outputs, and the gradient at its inputs. After a round the clients' parts are averaged by examples. In version
1 the server trains a copy of the body for each client, and averages these as well. In version 2 one body is
trained with the clients in turn, in random order.

Differences from the paper
--------------------------
- The last stages are the client's, too, so that labels stay there: the paper's U-shaped variant.
- Version 2: of a client that vanishes the body keeps nothing. Of one whose reply is late, or is refused for
  what it says of head and tail, it keeps what that client's batches made of it: the next one went on from it.
- There is no differential privacy, and no PixelDP layer.

References
----------
- C. Thapa, M. A. P. Chamikara, S. Camtepe, L. Sun: SplitFed: When Federated Learning Meets Split Learning.
  AAAI 2022, arXiv 2004.12088.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fedprune.server.federation import Federation
from fedprune.server.split import SplitStrategy


class SplitFed(SplitStrategy):
    """SplitFed (Thapa et al., AAAI 2022): head and tail on clients, body on the server; all is trained."""

    client = "splitfed"

    class Options(SplitStrategy.Options):
        """Where the model is cut, and how the server trains its part."""

        version: Literal[1, 2] = Field(
            1,
            description="1: a copy of the body for each client, averaged; 2: one body, with clients in turn.",
        )

    options: Options

    def __init__(self, federation: Federation, options: Options, **arguments: Any) -> None:
        super().__init__(federation, options, **arguments)
        self.in_turn = options.version == 2
