"""Pretraining on the server's public data, before masks are chosen."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from torch import Tensor

from fedprune import seeds
from fedprune.data import batches
from fedprune.errors import RunError
from fedprune.server.federation import Federation
from fedprune.sparsity.masks import Masks
from fedprune.training.loop import train
from fedprune.wire import get_state


def pretrain(federation: Federation, epochs: int, masks: Masks) -> dict[str, Tensor]:
    """Train ``federation.module`` on the public data as a client trains; return its state.

    Raises
    ------
    RunError
        When the loss or a weight is no longer finite.
    """
    spec = federation.scenario.clients.training
    generator = seeds.torch_generator(federation.scenario.seed, "pretrain")

    def public() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(epochs):
            yield from batches(
                federation.images,
                federation.public,
                federation.info,
                spec.batch_size,
                generator=generator,
                augment=federation.scenario.data.augment,
            )

    trained = train(federation.module, public(), spec.optimizer, lr=spec.optimizer.lr, masks=masks)
    state = get_state(federation.module)
    if not (isfinite(trained.loss) and all(tensor.isfinite().all() for tensor in state.values())):
        raise RunError(f"pretraining diverged (loss {trained.loss:g}): lower clients.training.optimizer.lr")
    return state
