"""Budgets of memory, as the server sees them: who can train in a round, and under which masks.

What a step needs and what fits is arithmetic on the cost model (`fedprune.costs.fit`); the client does the
same sums with its own mask and batch before it trains, and refuses what its device has no memory for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from flwr.app import ConfigRecord
from torch import Tensor, nn

from fedprune.client import Client, training_step
from fedprune.costs.fit import TrainingStep, micro_batch, nested_counts
from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import optimizer_slots
from fedprune.errors import UserError
from fedprune.exchange import Facts
from fedprune.scenario import Scenario
from fedprune.sparsity.masks import Masks, keep_highest
from fedprune.sparsity.pruning import prunable
from fedprune.units import format_bytes
from fedprune.wire import decode_masks, encode_masks

_NAMED = 5  # Clients that a refusal names.


@dataclass(frozen=True)
class Verdict:
    """What budgets leave of a round's clients.

    Parameters
    ----------
    excluded
        Numbers of the clients that cannot train, ascending.
    nested
        The masks of those that train a part of theirs, by number.
    """

    excluded: Sequence[int] = ()
    nested: Mapping[int, Masks] = field(default_factory=dict)


class Budgets:
    """Which clients have the memory for a round's training, by ``clients.over_budget``.

    Parameters
    ----------
    scenario : Scenario
        What is run.
    cost : ModelCost
        The model.
    client : type[Client]
        The clients' way of training.
    """

    def __init__(self, scenario: Scenario, cost: ModelCost, client: type[Client]) -> None:
        self._scenario, self._cost, self._client = scenario, cost, client
        self._nested: dict[tuple[str, int], Masks] = {}

    @property
    def policy(self) -> str:
        """What becomes of a client whose memory is too small."""
        return self._scenario.clients.over_budget

    def judge(
        self,
        clients: Iterable[Facts],
        config: ConfigRecord,
        masks_for: Callable[[int], Masks],
        state: Mapping[str, Tensor],
    ) -> Verdict:
        """Return who can train, and under which nested masks.

        Parameters
        ----------
        clients : Iterable of Facts
            Those that may be asked, in the order of their numbers.
        config : ConfigRecord
            What the round's messages ask for.
        masks_for : Callable[[int], Masks]
            The masks under which a client, by number, would train with memory enough.
        state : Mapping[str, Tensor]
            The global state: nested masks keep the weights of largest magnitude in it.

        Raises
        ------
        UserError
            Where the policy is "error" and a client cannot, or no client can.
        """
        clients = list(clients)
        if self._all_fit(clients, config, masks_for):
            self._nested = {}
            return Verdict()
        found: dict[tuple[str, int, int], Masks | None] = {}
        steps: dict[str, TrainingStep] = {}
        excluded, nested = [], {}
        used: dict[tuple[str, int], Masks] = {}
        for facts in clients:
            masks = masks_for(facts.number)
            batch = min(self._scenario.clients.training.batch_size, facts.examples)
            key = (masks.version, batch, facts.profile.memory)
            if key not in found:
                if masks.version not in steps:
                    steps[masks.version] = training_step(
                        self._client, self._scenario, self._cost, config, masks
                    )
                found[key] = self._fitting(steps[masks.version], masks, batch, facts.profile.memory, state)
            fitting = found[key]
            if fitting is None:
                excluded.append(facts)
            elif fitting != masks:
                nested[facts.number] = fitting
                used[masks.version, sum(fitting.kept.values())] = fitting
        if excluded and (self.policy == "error" or len(excluded) == len(clients)):
            least = min(excluded, key=lambda facts: facts.profile.memory)
            masks = masks_for(least.number)
            raise UserError(
                self._refusal(excluded, len(clients), steps[masks.version], masks.kept, masks.total)
            )
        # While the masks that they are part of stay, they serve again: also those of who is away now.
        self._nested = {key: part for key, part in self._nested.items() if key[0] in steps} | used
        return Verdict([facts.number for facts in excluded], nested)

    def refuse_hopeless(
        self, clients: Iterable[Facts], module: nn.Module, options: Mapping[str, Any]
    ) -> None:
        """Refuse, before anything is computed, a run in which no mask would fit a client.

        Parameters
        ----------
        clients : Iterable of Facts
            All of them.
        module : nn.Module
            The model.
        options : Mapping
            Those of the strategy.

        Raises
        ------
        UserError
            Where the policy is "error" and one weight a layer is too much.
        """
        if self.policy != "error":
            return
        prunes = options["density"] < 1
        sizes = (
            {n: module.get_parameter(n).numel() for n in prunable(module, options["keep"])} if prunes else {}
        )
        training = self._scenario.clients.training
        step = TrainingStep(
            self._cost,
            slots=optimizer_slots(training.optimizer.name, training.optimizer.momentum),
            overhead=self._client.overhead(training.proximal_mu, options),
        )
        fewest = dict.fromkeys(sizes, 1)
        members = list(clients)
        hopeless = [
            facts
            for facts in members
            if (batch := min(training.batch_size, facts.examples)) > 1
            and step.memory_of(fewest, batch).total > facts.profile.memory
        ]
        if hopeless:
            raise UserError(self._refusal(hopeless, len(members), step, fewest, sum(sizes.values())))

    def memory(self) -> list[dict[str, Any]]:
        """Return the nested masks in use, for a checkpoint: they were chosen by an earlier state."""
        return [
            {"of": of, "kept": kept, "masks": encode_masks(masks)}
            for (of, kept), masks in self._nested.items()
        ]

    def recall(self, memory: Sequence[Mapping[str, Any]], shapes: Mapping[str, torch.Size]) -> None:
        """Take back what ``memory`` returned, for a model whose tensors have these shapes."""
        self._nested = {
            (entry["of"], entry["kept"]): decode_masks(entry["masks"], shapes) for entry in memory
        }

    def _all_fit(
        self, clients: Sequence[Facts], config: ConfigRecord, masks_for: Callable[[int], Masks]
    ) -> bool:
        """Return whether the smallest device has the memory for the largest batch on a dense model.

        That is so mostly, and spares a look at every client's masks.
        """
        if not clients:
            return True
        most = max(facts.examples for facts in clients)
        batch = min(self._scenario.clients.training.batch_size, most)
        step = training_step(self._client, self._scenario, self._cost, config, masks_for(clients[0].number))
        return batch > 1 and step.memory_of({}, batch).total <= min(f.profile.memory for f in clients)

    def _fitting(
        self, step: TrainingStep, masks: Masks, batch: int, memory: int, state: Mapping[str, Tensor]
    ) -> Masks | None:
        """Return the masks under which a client trains: those given where they fit; None: it cannot."""
        try:
            if step.memory_of(masks.kept, batch).total <= memory:
                return masks
        except ValueError:  # A batch of one that the model can't train on: the client says so itself.
            return masks
        if self.policy == "shrink_batch":
            return masks if micro_batch(step, masks.kept, batch, memory) else None
        if self.policy == "nest":
            counts = nested_counts(step, masks.kept, batch, memory)
            return None if counts is None else self._nest(masks, counts, state)
        return None

    def _nest(self, masks: Masks, counts: Mapping[str, int], state: Mapping[str, Tensor]) -> Masks:
        """Return the nested masks with these counts; those in use stay, so that they are sent once."""
        key = (masks.version, sum(counts.values()))
        if key not in self._nested:
            self._nested[key] = nested(masks, counts, state)
        return self._nested[key]

    def _refusal(
        self,
        excluded: Sequence[Facts],
        count: int,
        step: TrainingStep,
        kept: Mapping[str, int],
        prunable_weights: int,
    ) -> str:
        """Return who cannot train, what a step needs, and what would fit."""
        least = min(excluded, key=lambda facts: facts.profile.memory)
        batch = min(self._scenario.clients.training.batch_size, least.examples)
        needed = step.memory_of(kept, batch)
        counts = nested_counts(step, kept, batch, least.profile.memory)
        if counts:
            now, fits = (sum(numbers.values()) / prunable_weights for numbers in (kept, counts))
            advice = f"the largest density that fits them all is {fits:.3g} (now {now:.3g}): that"
            policies = "exclude, shrink_batch or nest"
        else:
            of_batch = format_bytes(needed.activations + needed.workspace)
            advice = f"no density fits, {of_batch} are the batch's: a smaller clients.training.batch_size"
            policies = "exclude or shrink_batch"
        named = ", ".join(f"{facts.number} ({facts.profile.name})" for facts in excluded[:_NAMED])
        more = f" and {len(excluded) - _NAMED} more" if len(excluded) > _NAMED else ""
        return (
            f"{len(excluded)} of {count} clients have too little memory: {named}{more}. A training step on "
            f"{batch} examples needs {format_bytes(needed.total)}, the smallest has "
            f"{format_bytes(least.profile.memory)}; {advice}, or clients.over_budget: {policies} "
            "would do (see `fedprune devices`)"
        )


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
