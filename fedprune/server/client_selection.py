"""Client selection: who trains in a round, who of them under a part of the masks, and who evaluates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import ConfigRecord
from torch import Tensor

from fedprune.costs.flops import ModelCost
from fedprune.costs.memory import forward_memory
from fedprune.errors import RunError
from fedprune.server.accounts import RoundAccounts
from fedprune.server.budgets import Budgets
from fedprune.server.client_registry import ClientRegistry
from fedprune.server.exchange import Exchange
from fedprune.sparsity.masks import Masks


class ClientSelection:
    """The clients of the current round.

    A client is eligible when its device is online, and has the memory and the examples to train. A strategy
    samples the participants from these.

    Parameters
    ----------
    registry : ClientRegistry
        The clients.
    exchange : Exchange
        Which knows who vanished inside the round.
    accounts : RoundAccounts
        Where clients that cannot take part are counted.
    budgets : Budgets
        Which clients have the memory.
    cost : ModelCost
        What the model needs to evaluate.
    seed : int
        The scenario's seed, for availability.
    masks_for : Callable[[int], Masks]
        The masks of a client, by number, whatever its memory.

    Attributes
    ----------
    eligible : list[int]
        The clients that can take part in the current round, by number, ascending.
    participants : list[int]
        Those of them that are asked to train.
    nested : Mapping[int, Masks]
        The masks of those that train a part of theirs, by number.
    """

    def __init__(
        self,
        registry: ClientRegistry,
        exchange: Exchange,
        accounts: RoundAccounts,
        budgets: Budgets,
        cost: ModelCost,
        *,
        seed: int,
        masks_for: Callable[[int], Masks],
    ) -> None:
        self.eligible: list[int] = []
        self.participants: list[int] = []
        self.nested: Mapping[int, Masks] = {}
        self._registry = registry
        self._exchange = exchange
        self._accounts = accounts
        self._budgets = budgets
        self._cost = cost
        self._seed = seed
        self._masks_for = masks_for

    def select(
        self,
        server_round: int,
        config: ConfigRecord,
        sample: Callable[[int], list[int]],
        state: Mapping[str, Tensor],
    ) -> list[int]:
        """Return the numbers of the clients that train in a round, ascending.

        Parameters
        ----------
        server_round : int
            The round.
        config : ConfigRecord
            What training messages say; a step's memory depends on it.
        sample : Callable[[int], list[int]]
            Chooses, in a round, of ``eligible``.
        state : Mapping[str, Tensor]
            The global state, by whose magnitudes nested masks are chosen.

        Raises
        ------
        RunError
            Where ``sample`` returns other clients, or one twice.
        """
        clients = self._registry.able
        online = [n for n in self._registry.online(self._seed, server_round) if n in clients]
        verdict = self._budgets.judge(list(clients.values()), config, self._masks_for)
        self.eligible = [number for number in online if number not in verdict.excluded]
        offline = clients.keys() - set(online) - verdict.excluded if len(online) < len(clients) else ()
        self._accounts.note_unable(offline, verdict.excluded | self._registry.idle)
        numbers = sample(server_round) if self.eligible else []
        if len(set(numbers)) < len(numbers) or not set(numbers) <= set(self.eligible):
            raise RunError(
                f"sample({server_round}) gave {numbers}: expected clients of self.eligible, each once"
            )
        self.nested = self._budgets.nest(numbers, verdict, self._masks_for, state)
        self.participants = numbers
        return numbers

    def evaluators(self, server_round: int, *, everyone: bool) -> list[int]:
        """Return the clients that evaluate: the participants, or all online, if they have the memory.

        A client with too few examples to train evaluates nothing either.
        """
        asked = self._registry.online(self._seed, server_round) if everyone else self.participants
        left_out = self._exchange.vanished | self._registry.idle
        return [number for number in asked if number not in left_out and self._can_evaluate(number)]

    def end_training(self) -> None:
        """Let nested masks go: from here on the round is about the global model."""
        self.nested = {}

    def _can_evaluate(self, number: int) -> bool:
        """Return whether a client has the memory for the whole model, and one example."""
        needed = forward_memory(self._cost, self._masks_for(number), 1).total
        return needed <= self._registry.clients[number].profile.memory
