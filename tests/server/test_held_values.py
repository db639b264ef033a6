"""Clients that are sent what has changed since what they hold: the same results from fewer bytes."""

from __future__ import annotations

from typing import Any

import pytest
from inprocess import Federated, assemble, density_of, federate, plan, same_state

from fedprune.errors import ScenarioError
from fedprune.protocol.held_values import BASE
from fedprune.server.check import check
from fedprune.server.snapshot import restore, snapshot

GRADUAL = {"name": "gradual", "density": 0.3, "end": 3}
FEDDST = {"name": "feddst", "density": 0.3, "adjust_every": 1, "stop_adjusting_at": 3}


def runs(history: int, **changes: Any) -> Federated:
    given = {"rounds": 4, "strategy": {"name": "fedavg"}, **changes}
    return federate(plan(**given, **{"wire.history": history} if history else {}))


def down(made: Federated) -> list[int]:
    return [record.bytes_down for record in made.rounds]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strategy": GRADUAL},
        {"strategy": FEDDST},
        {"wire.values": "bfloat16"},
        {"wire.updates": "topk"},
        {"data.client_test_fraction": 0.2, "evaluation.clients": "all"},
        {"strategy": {"name": "splitfed", **density_of("splitfed")}},
        {"strategy": {"name": "lotteryfl", "density": 0.2}, "data.client_test_fraction": 0.2},
    ],
    ids=str,
)
def test_nothing_but_the_bytes_is_different(changes: dict[str, Any]) -> None:
    """Where masks are each client's own, they are sent all values as ever."""
    plain, told = runs(0, **changes), runs(4, **changes)
    assert all(same_state(one, other) for one, other in zip(plain.states, told.states, strict=True))
    assert [record.scores for record in plain.rounds] == [record.scores for record in told.rounds]
    assert told.rounds[-1].clients_failed == 0
    for before, after in zip(down(plain)[1:], down(told)[1:], strict=True):
        assert after <= before + 800  # The versions' names.


def test_a_client_that_holds_the_last_state_is_sent_less() -> None:
    plain, told = (runs(history, **{"clients.per_round": 4}) for history in (0, 1))
    assert all(after < 0.9 * before for before, after in zip(down(plain)[2:], down(told)[2:], strict=True))


def test_with_updates_of_few_values_it_is_sent_next_to_nothing_new() -> None:
    topk = {"wire.updates": {"name": "topk", "feedback": "none"}, "clients.per_round": 4}
    plain, told = runs(0, **topk), runs(1, **topk)
    assert down(told)[-1] < 0.5 * down(plain)[-1]


def test_a_client_that_has_lost_what_it_held_is_sent_all_of_it() -> None:
    lost: list[int] = []

    def before(message: Any, context: Any) -> None:
        if message.metadata.message_type == "train" and message.content["config"].get(BASE) and not lost:
            del context.state["held-values"]
            lost.append(context.node_config["partition-id"])

    scenario = plan(strategy={"name": "fedavg"}, rounds=3, **{"wire.history": 2, "clients.per_round": 4})
    made, whole = federate(scenario, before=before), federate(scenario)
    assert lost == [0]
    assert same_state(made.states[-1], whole.states[-1])
    assert [record.clients_failed for record in made.rounds] == [0] * 4
    costs = {task.client: task.bytes_down for task in made.tasks if task.round == 2 and task.type == "train"}
    assert costs[0] > 1.5 * costs[1]  # It paid for both messages.


def test_a_server_that_goes_on_from_a_snapshot_knows_what_clients_hold() -> None:
    scenario = plan(strategy=GRADUAL, rounds=4, **{"wire.history": 3})
    whole = federate(scenario)
    first, second = assemble(scenario), assemble(scenario)
    first.strategy.start(first.grid, num_rounds=2)
    restore(second.strategy, snapshot(first.strategy))
    for node, context in second.grid.contexts.items():
        context.state = first.grid.contexts[node].state
    second.strategy.start(second.grid)
    assert same_state(whole.states[-1], second.states[-1])
    assert down(whole)[3:] == down(second)


def test_what_does_not_change_a_little_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"leave wire\.history out"):
        check(plan(strategy={"name": "fedpm"}, **{"wire.history": 2}))
    with pytest.raises(ScenarioError, match=r"int8 rounds whole states, and wire\.history sends none"):
        plan(**{"wire.history": 2, "wire.values": "int8"})
