"""What a round costs the driver does not grow with the clients that are registered: told without a clock."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from inprocess import Federated, assemble, plan

from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.engine import checkpoints
from fedprune.engine.records import pack_state
from fedprune.engine.simulation import remembered
from fedprune.server.columns import from_columns, to_columns

FEW, MANY, SAMPLED = 20, 1000, 5
#: The round that is looked at; sampled clients of the few hold a mask by then, those of the many do not.
ROUND = 3


class Work:
    """Counts calls of Python and C functions in one round, its checkpoint included; a ledger's listener."""

    def __init__(self, made: Federated, directory: Any) -> None:
        self.made, self.directory = made, directory
        self.calls = self.messages = self.manifest = self.arrays = 0

    def on_task(self, task: TaskRecord) -> None:
        self.messages += task.round == ROUND

    def on_round(self, round: RoundRecord) -> None:
        contexts = self.made.grid.contexts.items()
        states = {node: pack_state(context.state) for node, context in contexts if context.state}
        content = remembered(self.made.strategy, states)
        path = checkpoints.write(self.directory, self.made.scenario, round.round, content)
        sys.setprofile(self._count if round.round == ROUND - 1 else None)
        self.manifest = (path / "manifest.json").stat().st_size
        self.arrays = (path / "tensors.safetensors").stat().st_size

    def _count(self, frame: Any, event: str, argument: Any) -> None:
        self.calls += event in ("call", "c_call")


def work(strategy: dict[str, Any], registered: int, directory: Any) -> Work:
    """Run a federation in which each client holds one image, and return what its last round took."""
    made = assemble(
        plan(
            strategy=strategy,
            rounds=ROUND,
            clients__count=registered,
            clients__per_round=SAMPLED,
            clients__training__batch_size=1,
            data__train_examples=registered,
            data__server_fraction=0.0,
            data__partition={"scheme": "iid"},
        )
    )
    watched = Work(made, directory)
    made.strategy.federation.listeners.append(watched)
    try:
        made.strategy.start(made.grid)
    finally:
        sys.setprofile(None)
    return watched


@pytest.mark.parametrize("strategy", [{"name": "fedavg"}, {"name": "static", "density": 0.2}])
def test_a_round_is_as_much_work_with_many_registered_clients(tmp_path, strategy):
    for name in ("few", "many"):
        (tmp_path / name).mkdir()
    few = work(strategy, FEW, tmp_path / "few")
    many = work(strategy, MANY, tmp_path / "many")
    assert few.messages == many.messages == SAMPLED
    assert many.calls < 1.2 * few.calls
    # A checkpoint holds of a client its number, node, examples and device, 8 bytes each, and no text.
    assert many.manifest < 1.1 * few.manifest
    assert many.arrays - few.arrays <= 5 * 8 * (MANY - FEW) + 1024


def test_columns_hold_what_many_share_once_and_give_the_table_back():
    table = {7: "mask", 3: "other", 2**62: "mask"}
    columns = to_columns(table)
    assert columns["values"] == ["mask", "other"]
    assert list(from_columns(columns).items()) == list(table.items())
    assert from_columns(to_columns({})) == {}
