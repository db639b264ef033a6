"""What a checkpoint holds of a strategy: all that later rounds depend on.

Draws need none of it: each is seeded by the scenario's seed and the round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedprune.costs.ledger import Tally
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.masks import Masks


def snapshot(strategy: PruningStrategy) -> dict[str, Any]:
    """Return all that later rounds depend on, when a round has ended; nothing is copied.

    A tree as `PruningStrategy.state_dict` describes it. What clients keep is for the grid.
    """
    return {
        "round": strategy.completed_round,
        "state": strategy.state,
        "masks": strategy.masks,
        "exchange": {"clients": strategy.registry.state_dict(), "held": strategy.exchange.state_dict()},
        "nested": strategy.budgets.state_dict(),
        "dense": strategy.dense.tally.totals(),
        "aggregator": strategy.aggregator.state_dict(),
        "updates": {} if strategy.updates is None else strategy.updates.state_dict(),
        "sent": {} if strategy.states is None else strategy.states.state_dict(),
        "method": strategy.state_dict(),
    }


def restore(strategy: PruningStrategy, snapshot: Mapping[str, Any]) -> None:
    """Put a strategy where one of the same scenario was at its ``snapshot``; ``start`` then goes on."""
    strategy.completed_round = snapshot["round"]
    strategy.registry.load_state_dict(snapshot["exchange"]["clients"])
    strategy.exchange.load_state_dict(snapshot["exchange"]["held"])
    strategy.budgets.load_state_dict(snapshot["nested"], strategy.layout.shapes)
    strategy.model.restore(snapshot["state"], Masks(snapshot["masks"]))
    strategy.dense.restore(Tally.of(snapshot["dense"]))
    strategy.aggregator.load_state_dict(snapshot["aggregator"])
    if strategy.states is not None:
        shapes = strategy.layout.shapes
        strategy.states.load_state_dict(snapshot["sent"], strategy.model.codec_of, shapes)
    if strategy.updates is not None:
        strategy.updates.load_state_dict(snapshot["updates"])
    strategy.load_state_dict(snapshot["method"])
