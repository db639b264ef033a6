"""``SubmodelStrategy``: what methods share whose clients train a part of the global model, by their devices.

A submodel has a share of the channels of every place. It is one dense model, smaller by that share, and takes
less memory, time and bytes; a client gets the largest for which its device has the memory and the time. Where
the clients' parts overlap they are averaged. Which channels a part has is what methods differ in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import torch
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from pydantic import Field, field_validator

from fedprune.costs.clock import task_seconds
from fedprune.costs.devices import profiles
from fedprune.protocol import batch_norm
from fedprune.scenario import Scenario
from fedprune.server.aggregation import OverlapMean
from fedprune.server.client_registry import ClientInfo
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.structure import Group, masks_of
from fedprune.wire import get_state, set_state


class SubmodelStrategy(PruningStrategy):
    """Clients train submodels that their devices can hold; overlaps are averaged.

    A subclass says in ``first_of`` at which channel a part begins.
    """

    mean = OverlapMean
    units = ("channel",)

    class Options(PruningStrategy.Options):
        """Which submodels there are, and who has which."""

        unit: Literal["channel"] = Field("channel", description="Submodels have whole channels.")
        keep: tuple[str, ...] = Field(
            (), strict=False, description="Layers that every submodel has whole: name patterns."
        )
        shares: tuple[float, ...] = Field(
            (1.0, 0.5, 0.25, 0.125, 0.0625),
            min_length=1,
            strict=False,
            description="Of the channels of every place, what submodels have: those that there are.",
        )
        share_of: dict[str, float] = Field(
            default_factory=dict,
            description="Share of the clients on a device profile, by its name; of others, the largest for "
            "which their device has the memory and, with clients.deadline, the time.",
        )
        static_batch_norm: bool = Field(
            False,
            description="Whether, after a round, the clients that hold the whole model measure its "
            "batch-norm statistics on their examples, in place of averages of what training left.",
        )
        statistics_examples: int = Field(
            256, ge=1, description="Examples on which a client measures them, at most."
        )

        @field_validator("shares")
        @classmethod
        def _in_order(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
            if not all(0 < share <= 1 for share in shares) or len(set(shares)) < len(shares):
                raise ValueError("shares are numbers above 0 and at most 1, each once")
            return tuple(sorted(shares, reverse=True))

    options: Options

    @classmethod
    def validation_errors(cls, scenario: Scenario, options: Options) -> Iterator[tuple[str, str]]:
        """Find what does not go with submodels."""
        yield from super().validation_errors(scenario, options)
        if options.density < 1:
            yield "density", "submodels are chosen by shares: leave density out"
        if scenario.clients.over_budget == "nest":
            yield "name", "its clients have submodels by their memory: leave clients.over_budget out"
        named = {*profiles(scenario.clients.profiles), *(device.name for device in scenario.clients.devices)}
        for name in options.share_of.keys() - named:
            yield "share_of", f"no client of the scenario, and no profile, is on {name!r}"
        for name, share in options.share_of.items():
            if share not in options.shares:
                yield "share_of", f"{name} has {share:g}, which is none of shares: {list(options.shares)}"

    # Who has which -----------------------------------------------------------------------

    @cached_property
    def part(self) -> Callable[[float, int], Masks]:
        """A function from share and round to the masks of that submodel."""

        @lru_cache(maxsize=64)
        def make(share: float, server_round: int) -> Masks:
            if share == 1:
                return Masks()
            kept = {group: self.channels(group, share, server_round) for group in self.groups}
            return masks_of(kept, self.module)

        return make

    def channels(self, group: Group, share: float, server_round: int) -> torch.Tensor:
        """Return which units of a group a submodel has, bool (units,): one at least."""
        return part_of(group, share, self.first_of(group, server_round))

    def first_of(self, group: Group, server_round: int) -> int:
        """Return the unit of a group at which submodels begin in a round; after the last comes the first."""
        return 0

    def share(self, number: int) -> float:
        """Return the share of a client: the largest that its device can train, else the smallest there is."""
        if number not in self._shares:
            client = self.clients[number]
            given = self.options.share_of.get(client.profile.name)
            fitting = (share for share in self.options.shares if self._fits(client, share))
            self._shares[number] = given or next(fitting, self.options.shares[-1])
        return self._shares[number]

    @cached_property
    def _shares(self) -> dict[int, float]:
        return {}

    def _fits(self, client: ClientInfo, share: float) -> bool:
        """Say whether a device has the memory for a submodel, and the time where rounds have a deadline."""
        masks, training = self.part(share, 1), self.scenario.clients.training
        config = ConfigRecord(dict(self.aggregator.client_config()))
        if not self.budgets.fits(client, masks, config):
            return False
        if (deadline := self.scenario.clients.deadline) is None:
            return True
        codec = self.model.codec_of(masks)
        sent = int(codec.size * codec.itemsize)
        flops = self.cost.training_flops(masks, training.epochs * client.examples)
        return task_seconds(client.profile, sent, flops, sent) <= deadline

    def masks_for(self, number: int) -> Masks:
        """Return the submodel of a client in the current round."""
        return self.part(self.share(number), self.completed_round + 1)

    # Batch norm --------------------------------------------------------------------------

    def settle(self, grid: Grid, server_round: int) -> None:
        """Measure the whole model's batch-norm statistics on those who hold it."""
        if not self.options.static_batch_norm or not batch_norm.layers(self.module):
            return
        holders = [n for n in self.selection.participants if self.share(n) == 1]

        def read(reply: Message) -> batch_norm.Vector:
            return batch_norm.read_statistics(reply.content.array_records.get("statistics"), self.module)

        content = self.state_contents(server_round, {"examples": self.options.statistics_examples})
        found = self.ask(grid, holders, "query.bn_statistics", content, read, server_round=server_round)
        if not found:
            return
        examples = [self.clients[number].examples for number in found]
        pooled = batch_norm.pool(
            [np.asarray(each) for each in found.values()],
            examples,
            batch_norm.sizes(self.module),
            pool_variance=True,
        )
        set_state(self.module, self.state)
        batch_norm.put_statistics(self.module, batch_norm.statistics_record(pooled))
        self.state = get_state(self.module)

    def shares_now(self) -> Mapping[float, int]:
        """Return how many clients there are of each share."""
        return {share: sum(self.share(n) == share for n in self.clients) for share in self.options.shares}


def part_of(group: Group, share: float, first: int = 0) -> torch.Tensor:
    """Return which units of a group a submodel has, bool (units,): from ``first`` on, one at least.

    Examples
    --------
    >>> part_of(Group("conv.weight", 5, ()), 0.5, first=3)
    tensor([ True, False, False,  True,  True])
    """
    count = max(1, math.ceil(share * group.units - 1e-9))
    kept = torch.zeros(group.units, dtype=torch.bool)
    kept[(torch.arange(count) + first) % group.units] = True
    return kept
