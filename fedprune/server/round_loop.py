"""The round loop: what happens in a run, in which order, for every strategy.

Round 0 prepares: the roll call, pretraining, the strategy's ``prepare``. Every further round is roll call,
client selection, training, aggregation, moving masks, evaluation and a record of what all of it cost. The
strategy says what is done in each step (`fedprune.server.strategy`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedprune.costs.ledger import RoundRecord
from fedprune.errors import RunError
from fedprune.protocol.faults import Fault
from fedprune.protocol.messages import real
from fedprune.server.accounts import RoundAccounts
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Metric, Score, columns

if TYPE_CHECKING:
    from fedprune.server.strategy import PruningStrategy

#: Faults of devices, not of code: a round in which there are no others may end without a reply.
_OF_DEVICES = {Fault.LATE, Fault.DROPPED_OUT, Fault.GONE}

Extra = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True, kw_only=True)
class RoundLoop:
    """Runs a strategy's rounds on a grid.

    Parameters
    ----------
    strategy : PruningStrategy
        What is run; it says which round it has come to.
    grid : Grid
        Who carries messages.
    rounds : int
        The last round.
    train_config, evaluate_config : ConfigRecord
        What training and evaluation messages say besides what the strategy does.
    evaluate_fn : Callable, optional
        Flower's own hook: scores a round's arrays for the result.
    """

    strategy: PruningStrategy
    grid: Grid
    rounds: int
    train_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_fn: Extra | None = None

    def run(self, initial_arrays: ArrayRecord | None = None) -> Result:
        """Run the rounds that are left; return what Flower's strategies return.

        Raises
        ------
        UserError
            When clients have too little memory, and ``clients.over_budget`` does not say what to do.
        RunError
            When a round ends without a single good reply, and not because devices were away or too slow:
            the model then stays as it is for a round.
        """
        result = Result()
        if self.strategy.completed_round < 0:
            self._prepare(initial_arrays)
        for server_round in range(self.strategy.completed_round + 1, self.rounds + 1):
            self._round(server_round, result)
        return result

    def _prepare(self, initial_arrays: ArrayRecord | None) -> None:
        """Do what comes before training: round 0."""
        strategy, began = self.strategy, self._begin()
        strategy.roll_call.open(self.grid)
        strategy.check_budgets()
        if initial_arrays is not None:
            strategy.model.take(strategy.model.decode(initial_arrays))
        if epochs := strategy.options.pretrain_epochs:
            strategy.federation.announce("round 0: pretraining on the server's public data")
            strategy.pretrain(epochs)
        strategy.model.load_into_module()
        strategy.prepare(self.grid)
        self._end(0, began, None, None)

    def _round(self, server_round: int, result: Result) -> None:
        strategy, began = self.strategy, self._begin()
        strategy.roll_call.hold(self.grid, server_round)
        strategy.model.load_into_module()  # What a hook finds there must not depend on earlier rounds.
        sent = strategy.model.encode(server_round)
        messages = strategy.configure_train(server_round, sent, self.train_config, self.grid)
        replies = strategy.converse(self.grid, server_round, messages)
        arrays, metrics = strategy.aggregate_train(server_round, replies)
        trained_under, aggregated = strategy.masks, strategy.state
        if metrics is not None:
            strategy.update_masks(server_round)
            strategy.settle(self.grid, server_round)
        elif strategy.accounts.faults.keys() - _OF_DEVICES:
            total, reasons = sum(strategy.accounts.failures.values()), strategy.accounts.reasons
            raise RunError(f"round {server_round}: none of {total} clients gave a usable reply: {reasons}")
        strategy.selection.end_training()
        if arrays is None or strategy.masks != trained_under or strategy.state is not aggregated:
            arrays = strategy.model.encode(server_round)
        client_metrics = self._evaluate_on_clients(server_round, arrays)
        record = self._end(server_round, began, metrics, client_metrics)
        result.arrays = arrays
        if metrics is not None:
            result.train_metrics_clientapp[server_round] = metrics
        if client_metrics is not None:
            result.evaluate_metrics_clientapp[server_round] = client_metrics
        if record.loss is not None:
            known = {name: value for name, value in record.scores.items() if value is not None}
            measured = MetricRecord({**known, "loss": record.loss})
            result.evaluate_metrics_serverapp[server_round] = measured
        if self.evaluate_fn is not None and (extra := self.evaluate_fn(server_round, arrays)) is not None:
            result.evaluate_metrics_serverapp[server_round] = extra

    def _evaluate_on_clients(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if not self._evaluates(server_round):
            return None
        strategy = self.strategy
        messages = list(strategy.configure_evaluate(server_round, arrays, self.evaluate_config, self.grid))
        return strategy.aggregate_evaluate(server_round, self._send(messages)) if messages else None

    def _send(self, messages: Iterable[Message]) -> Iterable[Message]:
        return self.strategy.exchange.send(self.grid, messages)

    def _evaluates(self, server_round: int) -> bool:
        return server_round % self.strategy.scenario.evaluation.every == 0 or server_round == self.rounds

    def _begin(self) -> float:
        self.strategy.exchange.start_round()
        self.strategy.accounts.start_round()
        return time.perf_counter()

    def _end(
        self, server_round: int, began: float, train: MetricRecord | None, clients: MetricRecord | None
    ) -> RoundRecord:
        strategy = self.strategy
        federation, masks = strategy.federation, strategy.masks
        score = federation.evaluate(strategy.state, masks) if self._evaluates(server_round) else None
        strategy.score = score or strategy.score
        record = round_record(
            server_round,
            strategy.accounts,
            masks,
            judged_by=strategy.task.metrics,
            score=score,
            train=train,
            clients=clients,
            wall_seconds=time.perf_counter() - began,
        )
        strategy.dense.end_round()
        strategy.completed_round = server_round
        for listener in federation.listeners:
            listener.on_round(record)
        return record


def round_record(
    server_round: int,
    accounts: RoundAccounts,
    masks: Masks,
    *,
    judged_by: Sequence[Metric],
    score: Score | None,
    train: MetricRecord | None,
    clients: MetricRecord | None,
    wall_seconds: float,
) -> RoundRecord:
    """Return a round's line of ``rounds.jsonl``.

    Parameters
    ----------
    server_round : int
        The round.
    accounts : RoundAccounts
        Its tasks: their results and costs.
    masks : Masks
        The global masks at its end.
    judged_by : Sequence[Metric]
        By what models are judged.
    score : Score, optional
        Of the global model, where it was evaluated.
    train, clients : MetricRecord, optional
        What `PruningStrategy.aggregate_train` and ``aggregate_evaluate`` returned.
    wall_seconds : float
        How long the round took.
    """
    tally, counts = accounts.tally, accounts.participation.total
    names = columns(judged_by)
    return RoundRecord(
        round=server_round,
        scores=score.values(judged_by) if score else dict.fromkeys(names),
        loss=score.loss if score else None,
        train_loss=real(train, "train-loss") if train else None,
        client_scores={name: _known(clients, name) for name in names},
        personal_scores={name: _known(train, f"personal-{name}") for name in names},
        density=masks.density,
        layer_densities={name: kept for name, kept in masks.densities().items() if masks[name].dim() > 1},
        wall_seconds=wall_seconds,
        clients_ok=accounts.ok,
        clients_failed=accounts.faults.total(),
        clients_surplus=counts["surplus"],
        clients_excluded=counts["excluded"],
        clients_offline=counts["offline"],
        faults=dict(sorted(accounts.faults.items())),
        classes=accounts.participation.records(),
        bytes_down=tally.bytes_down,
        bytes_up=tally.bytes_up,
        flops=tally.flops,
        peak_memory_bytes=tally.peak_memory_bytes,
        device_seconds=tally.device_seconds,
        joules=tally.joules,
        server_flops=tally.server_flops,
        smashed_bytes_down=tally.smashed_bytes_down,
        smashed_bytes_up=tally.smashed_bytes_up,
    )


def _known(record: MetricRecord | None, key: str) -> float | None:
    """Return a number of a record; None where there is none."""
    return real(record, key) if record is not None and key in record else None
