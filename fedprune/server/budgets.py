"""Budgets of memory, as the server sees them: who can train in a round, and under which masks.

What a step needs and what fits is arithmetic on the cost model (`fedprune.costs.fit`). Before it trains,
the client repeats the calculation with its own mask and batch, and refuses a step that exceeds its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flwr.app import ConfigRecord
from torch import Tensor

from fedprune import registry
from fedprune.costs.fit import TrainingStep, micro_batch, nested_counts
from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import optimizer_slots
from fedprune.errors import UserError
from fedprune.protocol.training_step import TrainingAlgorithm, proximal_mu, training_step
from fedprune.scenario import Scenario
from fedprune.server.client_registry import ClientInfo
from fedprune.sparsity.distributions import DISTRIBUTIONS, Distribution
from fedprune.sparsity.masks import Masks, keep_highest
from fedprune.units import floor_to, format_bytes
from fedprune.wire import decode_masks, encode_masks

_NAMED = 5  # Clients that a refusal names.


@dataclass(frozen=True)
class Verdict:
    """What budgets leave of a federation's clients.

    Parameters
    ----------
    excluded
        Numbers of the clients that cannot train.
    counts
        How many weights of each tensor fit those that train a part of theirs, by number.
    """

    excluded: frozenset[int] = frozenset()
    counts: Mapping[int, Mapping[str, int]] = field(default_factory=dict)


class Budgets:
    """Which clients have the memory for a round's training, by ``clients.over_budget``.

    Parameters
    ----------
    scenario : Scenario
        What is run.
    cost : ModelCost
        The model.
    client : type[TrainingAlgorithm]
        The clients' training algorithm.
    whole : Masks
        Those that keep every weight which may be pruned: parts of them are nested where a strategy prunes
        nothing.
    """

    def __init__(
        self, scenario: Scenario, cost: ModelCost, client: type[TrainingAlgorithm], whole: Masks
    ) -> None:
        self._scenario, self._cost, self._client, self._whole = scenario, cost, client, whole
        self._nested: dict[tuple[str, int], Masks] = {}

    @property
    def policy(self) -> str:
        """What is done about a client with too little memory."""
        return self._scenario.clients.over_budget

    def judge(
        self, clients: Sequence[ClientInfo], config: ConfigRecord, masks_for: Callable[[int], Masks]
    ) -> Verdict:
        """Return who can train a round, and how much of the masks.

        Parameters
        ----------
        clients : Sequence of ClientInfo
            All clients, whether they are there or not.
        config : ConfigRecord
            What the round's messages ask for.
        masks_for : Callable[[int], Masks]
            The masks under which a client, by number, would train with memory enough.

        Raises
        ------
        UserError
            Where the policy is "error" and a client cannot, or no client can.
        """
        if self._all_fit(clients, config, masks_for):
            return Verdict()
        found: dict[tuple[str, int, int], Mapping[str, int] | None] = {}
        steps: dict[str, TrainingStep] = {}
        excluded, counts = [], {}
        for facts in clients:
            masks = self._base(masks_for(facts.number))
            batch = min(self._scenario.clients.training.batch_size, facts.examples)
            key = (masks.version, batch, facts.profile.memory)
            if key not in found:
                if masks.version not in steps:
                    steps[masks.version] = training_step(
                        self._client, self._scenario, self._cost, config, masks
                    )
                found[key] = self._fitting(steps[masks.version], masks.kept, batch, facts.profile.memory)
            fitting = found[key]
            if fitting is None:
                excluded.append(facts)
            elif fitting != masks.kept:
                counts[facts.number] = fitting
        if excluded and (self.policy == "error" or len(excluded) == len(clients)):
            least = min(excluded, key=lambda facts: facts.profile.memory)
            masks = masks_for(least.number)
            step = steps[self._base(masks).version]
            raise UserError(self._refusal(excluded, len(clients), step, masks.kept))
        return Verdict(frozenset(facts.number for facts in excluded), counts)

    def fits(self, client: ClientInfo, masks: Masks, config: ConfigRecord) -> bool:
        """Return whether a client has the memory to train under masks what a message asks for."""
        step = training_step(self._client, self._scenario, self._cost, config, masks)
        batch = min(self._scenario.clients.training.batch_size, client.examples)
        return self._fitting(step, masks.kept, batch, client.profile.memory) is not None

    def nest(
        self,
        numbers: Iterable[int],
        verdict: Verdict,
        masks_for: Callable[[int], Masks],
        state: Mapping[str, Tensor],
    ) -> dict[int, Masks]:
        """Return the nested masks of those of these clients that have any, by number.

        They keep the weights of largest magnitude in the global state. While the masks that they are part
        of stay, they stay as well, so that they are sent once.
        """
        result, versions = {}, set()
        for number in numbers:
            masks = self._base(masks_for(number))
            versions.add(masks.version)
            if number in verdict.counts:
                counts = verdict.counts[number]
                key = (masks.version, sum(counts.values()))
                if key not in self._nested:
                    self._nested[key] = nested(masks, counts, state)
                result[number] = self._nested[key]
        self._nested = {key: part for key, part in self._nested.items() if key[0] in versions}
        return result

    def _base(self, masks: Masks) -> Masks:
        """Return the masks of which parts are nested."""
        return masks or (self._whole if self.policy == "nest" else masks)

    def refuse_hopeless(
        self, clients: Sequence[ClientInfo], config: ConfigRecord, options: Mapping[str, Any]
    ) -> None:
        """Refuse, before anything is computed, a run in which no mask would fit a client.

        Parameters
        ----------
        clients : Sequence of ClientInfo
            All of them.
        config : ConfigRecord
            What every training message says.
        options : Mapping
            Those of the strategy.

        Raises
        ------
        UserError
            Where the policy is "error" and one weight a layer is too much.
        """
        if self.policy != "error" or options["unit"] == "channel":
            return  # What the smallest number of channels needs is seen when there are masks.
        training, pruned = self._scenario.clients.training, options["density"] < 1
        shapes = {name: tuple(mask.shape) for name, mask in self._whole.items()}
        step = TrainingStep(
            self._cost,
            shapes=shapes,
            distribution=assumed_distribution(self._scenario, options.get("distribution"), shapes)[1],
            slots=optimizer_slots(training.optimizer.name, training.optimizer.momentum),
            overhead=self._client.overhead(proximal_mu(self._scenario, config), options),
        )
        fewest = dict.fromkeys(self._whole, 1) if pruned else {}
        hopeless = [
            facts
            for facts in clients
            if (batch := min(training.batch_size, facts.examples)) > 1
            and step.memory_of(fewest, batch).total > facts.profile.memory
        ]
        if hopeless:
            kept = step.kept(options["density"]) if pruned else {}
            raise UserError(self._refusal(hopeless, len(clients), step, kept))

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the nested masks in use, for a checkpoint: they were chosen by an earlier state."""
        return [
            {"of": of, "kept": kept, "masks": encode_masks(masks)}
            for (of, kept), masks in self._nested.items()
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]], shapes: Mapping[str, torch.Size]) -> None:
        """Restore what ``state_dict`` returned, for a model whose tensors have these shapes."""
        self._nested = {(entry["of"], entry["kept"]): decode_masks(entry["masks"], shapes) for entry in state}

    def _all_fit(
        self, clients: Sequence[ClientInfo], config: ConfigRecord, masks_for: Callable[[int], Masks]
    ) -> bool:
        """Return whether the smallest device has the memory for the largest batch on a dense model.

        That is so mostly, and spares a look at every client's masks.
        """
        if not clients:
            return True
        most = max(facts.examples for facts in clients)
        batch = min(self._scenario.clients.training.batch_size, most)
        step = training_step(self._client, self._scenario, self._cost, config, masks_for(clients[0].number))
        whole = replace(step, cost=self._cost)  # Nobody's part of it takes more.
        return batch > 1 and whole.memory_of({}, batch).total <= min(f.profile.memory for f in clients)

    def _fitting(
        self, step: TrainingStep, kept: Mapping[str, int], batch: int, memory: int
    ) -> Mapping[str, int] | None:
        """Return how many weights a client trains: those given where they fit; None: it cannot."""
        try:
            if step.memory_of(kept, batch).total <= memory:
                return kept
        except ValueError:  # A batch of one that the model can't train on: the client says so itself.
            return kept
        if self.policy == "shrink_batch":
            return kept if micro_batch(step, kept, batch, memory) else None
        return nested_counts(step, kept, batch, memory) if self.policy == "nest" else None

    def _refusal(
        self, excluded: Sequence[ClientInfo], count: int, step: TrainingStep, kept: Mapping[str, int]
    ) -> str:
        """Return who cannot train, what a step needs, and what would do.

        What it needs is what `fedprune devices` shows: the peak memory of a training step at this density,
        before the first masks are chosen that of the scenario.
        """
        least = min(excluded, key=lambda facts: facts.profile.memory)
        batch = min(self._scenario.clients.training.batch_size, least.examples)
        memory, whole = least.profile.memory, self._whole.total
        needed = step.memory_of(kept, batch)
        counts = nested_counts(step, kept or self._whole.kept, batch, memory)
        density = sum(kept.values()) / whole if kept else 1.0
        policies = ["exclude"] if len(excluded) < count else []
        if step.cost is not self._cost:
            advice = "fewer channels (strategy.density or strategy.shares)"
            policies += ["shrink_batch"]
        elif counts:
            fits = floor_to(sum(counts.values()) / whole, 3)
            advice = f"the largest density that fits them all is {fits:g} (now {density:.3g}): that"
            policies += ["shrink_batch", "nest"]
        else:
            of_batch = format_bytes(needed.activations + needed.workspace)
            advice = f"no density fits, {of_batch} are the batch's: a smaller clients.training.batch_size"
            policies += ["shrink_batch"]
        others = " or ".join(policy for policy in policies if policy != self.policy)
        instead = f", or clients.over_budget: {others}," if others else ""
        named = ", ".join(f"{facts.number} ({facts.profile.name})" for facts in excluded[:_NAMED])
        more = f" and {len(excluded) - _NAMED} more" if len(excluded) > _NAMED else ""
        return (
            f"{len(excluded)} of {count} clients have too little memory: {named}{more}. The peak memory of a "
            f"training step at density {density:.3g} in batches of {batch} is {format_bytes(needed.total)}, "
            f"the smallest has {format_bytes(memory)}; "
            f"{advice}{instead} would do (see `fedprune devices`)"
        )


def assumed_distribution(
    scenario: Scenario, name: str | None, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, Distribution]:
    """Return the layer distribution by which memory is predicted, and its name.

    The one that a strategy names; uniform for none, or for one that needs scores.
    """
    uniform = ("uniform", DISTRIBUTIONS["uniform"])
    if name is None or not shapes:
        return uniform
    found: Distribution = registry.load("distribution", name, scenario.directory)
    try:
        found(shapes, 1.0, {})
    except KeyError:
        return uniform
    return name, found


def nested(masks: Masks, counts: Mapping[str, int], state: Mapping[str, Tensor]) -> Masks:
    """Return masks that keep, of what others keep, the weights of largest magnitude.

    Parameters
    ----------
    masks : Masks
        Of which the result is a part.
    counts : Mapping[str, int]
        How many weights of each tensor to keep, at most as many as ``masks`` keeps.
    state : Mapping[str, Tensor]
        The weights.
    """
    scores = {name: torch.where(mask, state[name].abs(), -1.0) for name, mask in masks.items()}
    return keep_highest(scores, counts)
