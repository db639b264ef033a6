"""Federations whose clients compress updates: the rules end to end, and what nobody else notices."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inprocess import PLAN, Federated, assemble, density_of, federate, plan, same_state

from fedprune import registry
from fedprune.compression import COMPRESSORS
from fedprune.engine import simulation
from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run as simulate
from fedprune.errors import ScenarioError
from fedprune.protocol.supermasks import LearningOptions
from fedprune.results.run import Run
from fedprune.scenario import Scenario
from fedprune.server.check import check, resolve
from fedprune.server.snapshot import restore, snapshot
from fedprune.wire import content_bytes
from fedprune.wire.values import VALUES

STATIC = {"name": "static", "density": 0.2, "criterion": "magnitude", "distribution": "erk"}
#: Strategies whose clients have updates, with options that let a short run move its masks.
STRATEGIES: dict[str, dict[str, Any]] = {
    "feddst": {"adjust_every": 1, "stop_adjusting_at": 3},
    "fedmef": {"adjust_every": 1, "stop_adjusting_at": 3},
    "fedtiny": {"adjust_every": 1, "candidates": 2},
    "gradual": {"end": 2, "regrow": True},
    "prunefl": {"adjust_every": 1},
}


def with_updates(name: str, strategy: dict[str, Any] | None = None, **changes: Any) -> Scenario:
    options = changes.pop("options", {})
    changes["wire.updates"] = {"name": name, **options}
    return plan(strategy=strategy or {"name": "fedavg"}, **changes)


def trained_by(made: Federated) -> dict[int, dict[str, torch.Tensor]]:
    """Return the state that each client of a federation without compression has sent, by node."""
    codec = made.strategy.codec
    return {
        message.metadata.dst_node_id: codec.unflatten(codec.decode(reply.content["arrays"]))
        for message, reply in made.trained()
    }


def test_a_round_is_that_without_compression_with_each_update_cut_to_its_largest() -> None:
    """Computed from what the clients of a plain federation send in its first round."""
    plain = federate(plan(strategy={"name": "fedavg"}, rounds=1))
    options = {"density": 0.1, "feedback": "none"}
    found = federate(with_updates("topk", options=options, rounds=1))
    parameters = [name for name, _ in plain.strategy.module.named_parameters()]
    total, weight = {}, 0
    for message, reply in plain.trained():
        examples = reply.content["metrics"]["num-examples"]
        before, after = plain.states[0], trained_by(plain)[message.metadata.dst_node_id]
        delta = np.concatenate([(after[name] - before[name]).numpy().ravel() for name in parameters])
        largest = np.argsort(-np.abs(delta), kind="stable")[: round(0.1 * len(delta))]
        cut = np.zeros_like(delta)
        cut[largest] = delta[largest]
        ends = np.cumsum([before[name].numel() for name in parameters])[:-1]
        pieces = dict(zip(parameters, np.split(cut, ends), strict=True))
        for name, value in after.items():
            own = before[name].numpy().ravel() + pieces[name] if name in pieces else value.numpy().ravel()
            total[name] = total.get(name, 0) + examples * own.astype(np.float64)
        weight += examples
    for name, value in found.states[-1].items():
        assert np.allclose(value.numpy().ravel(), total[name] / weight, atol=1e-7)


def test_signsgd_is_a_majority_vote_of_the_clients() -> None:
    step = 0.01
    plain = federate(plan(strategy={"name": "fedavg"}, rounds=1))
    found = federate(with_updates("signsgd", options={"step": step}, rounds=1))
    before, after = found.states[0], found.states[-1]
    for name, _ in plain.strategy.module.named_parameters():
        votes = sum((state[name] - before[name]).sign() for state in trained_by(plain).values())
        moved = [(state[name] != before[name]).all() for state in trained_by(plain).values()]
        if all(moved):  # What has not moved votes at random.
            assert torch.allclose(after[name], before[name] + step * votes.sign(), atol=1e-7)


def test_an_aggregation_rule_that_the_scenario_names_is_given_the_signs() -> None:
    named = federate(
        with_updates("signsgd", strategy={"name": "fedavg", "aggregator": "fedmedian"}, rounds=1)
    )
    assert type(named.strategy.aggregator).__name__ == "FlowerAggregator"
    assert same_state_but_not(named.states[0], named.states[-1])


def same_state_but_not(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and not same_state(one, other)


@pytest.mark.parametrize("strategy", [{"name": "fedavg"}, STATIC], ids=["whole", "pruned"])
def test_a_pruned_weight_costs_nothing(strategy: dict[str, Any]) -> None:
    """What is sent is bounded by the kept weights: half of their values, a bit each, and batch norm's."""
    made = federate(with_updates("topk", strategy=strategy, rounds=1, options={"density": 0.5}))
    names = {name for name, _ in made.strategy.module.named_parameters()}
    sizes = {
        name: len(part) for name, part in made.strategy.codec.parts(torch.zeros(made.strategy.codec.size))
    }
    kept = sum(size for name, size in sizes.items() if name in names)
    rest = sum(sizes.values()) - kept
    for _, reply in made.trained():
        length = len(reply.content["arrays"][VALUES].data)
        assert length <= 4 * round(0.5 * kept) + kept / 8 + 4 * rest + 200
    masks = made.strategy.masks
    assert all(not made.states[-1][name][~mask].any() for name, mask in masks.items())


@pytest.mark.parametrize("name", COMPRESSORS)
def test_the_ledger_has_the_bytes_that_crossed(name: str) -> None:
    made = federate(with_updates(name, rounds=2))
    sent = {}
    for message, reply in made.trained():
        key = int(message.metadata.group_id), made.strategy.registry.number_of(reply)
        sent[key] = content_bytes(reply.content)
    noted = {(task.round, task.client): task.bytes_up for task in made.tasks if task.type == "train"}
    assert noted == sent
    assert made.rounds[-1].clients_failed == 0


def has_updates(name: str) -> bool:
    """Say whether the clients of a strategy send what can be compressed, by what the strategy says itself."""
    strategy = registry.load("strategy", name)
    return not (strategy.no_updates or issubclass(strategy.Options, LearningOptions))


@pytest.mark.parametrize("name", list(filter(has_updates, registry.names("strategy"))))
def test_every_strategy_works_with_it_or_says_that_it_does_not(name: str) -> None:
    """With an estimate for each client, also where masks move or are each client's own."""
    strategy = {"name": name, **density_of(name, 0.3), **STRATEGIES.get(name, {})}
    scenario = plan(strategy=strategy, rounds=3, **{"wire.updates": {"name": "topk", "feedback": "ef21"}})
    made = federate(scenario.override(data__client_test_fraction=0.2))
    assert [record.clients_failed for record in made.rounds] == [0] * 4
    assert all(state.isfinite().all() for state in made.states[-1].values())
    assert same_state_but_not(made.states[0], made.states[-1])


def test_a_basis_is_kept_while_masks_move() -> None:
    strategy = {"name": "feddst", "density": 0.3, **STRATEGIES["feddst"]}
    made = federate(plan(strategy=strategy, rounds=4, **{"wire.updates": {"name": "powersgd"}}))
    assert [record.clients_failed for record in made.rounds] == [0] * 5


@pytest.mark.parametrize("aggregator", ["fedadam", "krum"])
def test_stock_rules_see_whole_states(aggregator: str) -> None:
    made = federate(with_updates("qsgd", strategy={**STATIC, "aggregator": aggregator}))
    assert made.rounds[-1].clients_failed == 0
    assert same_state_but_not(made.states[0], made.states[-1])


def test_values_of_16_bits_halve_what_topk_sends_and_both_sides_agree_on_what_was_sent() -> None:
    lengths = []
    for values in ("float32", "bfloat16"):
        scenario = with_updates("topk", options={"density": 0.3}, rounds=3, **{"wire.values": values})
        made = federate(scenario)
        assert made.rounds[-1].clients_failed == 0
        lengths.append(made.rounds[1].bytes_up)
    assert lengths[1] < 0.7 * lengths[0]


# What clients and the server keep --------------------------------------------------------


def kept_by(made: Federated, number: int) -> dict[str, bytes]:
    state = made.grid.contexts[2 + number].state
    tensors = state.array_records.get("update-tensors", {})
    return {name: bytes(array.data) for name, array in tensors.items()}


def test_a_client_that_is_not_sampled_keeps_what_it_has() -> None:
    """Seen where a client is away for a round or more, and goes on from its estimate when it is back."""
    seen: dict[int, list[int]] = {}
    scenario = with_updates("topk", options={"feedback": "ef21", "density": 0.1}, rounds=5)
    made = assemble(scenario.override(clients__per_round=2))
    held: dict[int, dict[str, bytes]] = {}

    def before(message: Any, context: Any) -> None:
        if message.metadata.message_type == "train":
            number = context.node_config["partition-id"]
            assert kept_by(made, number) == held.get(number, {})
            seen.setdefault(number, []).append(int(message.metadata.group_id))
            assert message.content["config"]["update-round"] == ([0, *seen[number][:-1]][-1])

    made.grid._before = before
    made.grid._tamper = lambda message, reply: note(message, reply)

    def note(message: Any, reply: Any) -> Any:
        if message.metadata.message_type == "train":
            number = message.metadata.dst_node_id - 2
            held[number] = kept_by(made, number)
            payload = reply.content["arrays"][VALUES].numpy()
            assert payload[0] == (len(seen[number]) > 1)  # It goes on from the estimate that it has.
        return reply

    made.strategy.start(made.grid)
    assert any(later - sooner > 1 for rounds in seen.values() for sooner, later in pairwise(rounds))
    assert sum(record.clients_failed for record in made.rounds) == 0


def test_a_reply_that_gets_lost_does_no_harm() -> None:
    """With EF21 the client has gone a step further than the server: it starts anew and both agree again."""
    begins: dict[int, list[int]] = {}

    def tamper(message: Any, reply: Any) -> Any:
        if message.metadata.message_type != "train":
            return reply
        number = message.metadata.dst_node_id - 2
        begins.setdefault(number, []).append(int(reply.content["arrays"][VALUES].numpy()[0]))
        return None if number == 0 and len(begins[0]) == 2 else reply

    scenario = with_updates("topk", rounds=4, options={"feedback": "ef21", "density": 0.1})
    made = federate(scenario.override(clients__per_round=4), tamper=tamper)
    assert begins == {0: [0, 1, 0, 1], **{number: [0, 1, 1, 1] for number in (1, 2, 3)}}
    assert [record.clients_failed for record in made.rounds] == [0, 0, 1, 0, 0]
    for number, estimate in made.strategy.updates._estimates.items():
        ours = made.grid.contexts[2 + number].state.array_records["update-tensors"]["residual"].numpy()
        assert np.array_equal(estimate.values.numpy(), ours)


@pytest.mark.parametrize(
    "compressor",
    [
        {"name": "topk", "feedback": "ef21"},
        {"name": "topk", "feedback": "ef"},
        {"name": "powersgd"},
        {"name": "signsgd"},
    ],
    ids=str,
)
def test_a_server_that_goes_on_from_a_snapshot_ends_as_one_that_never_stopped(
    compressor: dict[str, Any],
) -> None:
    strategy = {"name": "gradual", "density": 0.3, "end": 3}
    scenario = plan(strategy=strategy, rounds=4, **{"wire.updates": compressor})
    whole = federate(scenario)
    first = assemble(scenario)
    first.strategy.start(first.grid, num_rounds=2)
    second = assemble(scenario)
    restore(second.strategy, snapshot(first.strategy))
    for node, context in second.grid.contexts.items():
        context.state = first.grid.contexts[node].state
    second.strategy.start(second.grid)
    assert same_state(whole.states[-1], second.states[-1])
    assert [r.bytes_up for r in whole.rounds[3:]] == [r.bytes_up for r in second.rounds]


class _Stop:
    """Ends a run after a round, before its checkpoint."""

    def __init__(self, last: int) -> None:
        self.last = last

    def on_task(self, task: Any) -> None:
        pass

    def on_round(self, record: Any) -> None:
        if record.round == self.last:
            raise KeyboardInterrupt


def lines(run: Run) -> list[dict[str, Any]]:
    text = (run.directory / "rounds.jsonl").read_text()
    return [
        {key: value for key, value in json.loads(line).items() if key != "wall_seconds"}
        for line in text.splitlines()
    ]


def test_one_process_and_two_workers_and_a_resumed_run_give_the_same_bits(
    shared_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that can be kept: a basis and an estimate for each client, under masks that they move."""
    compressor = {"name": "powersgd", "feedback": "ef21"}
    feddst = {"name": "feddst", "density": 0.3, **STRATEGIES["feddst"]}
    scenario = resolve(plan(strategy=feddst, rounds=4, **{"wire.updates": compressor, "engine.workers": 2}))
    one = simulate(scenario, out=tmp_path / "one", progress=False, host=InProcess(), figures=False)
    two = simulate(scenario, out=tmp_path / "two", progress=False, figures=False)
    with pytest.raises(KeyboardInterrupt):
        simulate(
            scenario,
            out=tmp_path / "cut",
            progress=False,
            host=InProcess(),
            figures=False,
            listeners=[_Stop(3)],
        )
    monkeypatch.setattr(simulation, "OnRay", InProcess)
    cut = simulation.resume(tmp_path / "cut", progress=False)
    assert lines(one) == lines(two) == lines(cut)
    for other in (two, cut):
        assert same_state(one.model().state_dict(), other.model().state_dict())


# What is refused -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hidenseek", "fedmask", "fedpm", "lotteryfl", "sfprompt", "splitfed"])
def test_strategies_whose_clients_have_no_updates_are_refused_with_a_sentence(name: str) -> None:
    scenario = plan(
        strategy={"name": name, **density_of(name)},
        **{"wire.updates": "topk", "data.client_test_fraction": 0.2},
    )
    with pytest.raises(ScenarioError) as refused:
        check(scenario)
    (line,) = str(refused.value).splitlines()
    assert "leave wire.updates out" in line


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        ({"updates": "topq"}, "no compressor 'topq'; did you mean 'topk'"),
        ({"updates": {"name": "topk", "density": 2}}, "2 is out of range: must be more than 0 and at most 1"),
        ({"updates": {"name": "topk", "share": 0.1}}, "no such key"),
        ({"updates": {"name": "dare", "feedback": "ef"}}, "no such key"),
        ({"updates": {"name": "compeft", "alpha": 2, "feedback": "ef"}}, "alpha: with error feedback"),
        ({"updates": "topk", "values": "int8"}, "int8 rounds whole states"),
    ],
)
def test_what_does_not_fit_is_found_before_anything_runs(wire: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        check(Scenario.from_mapping({**PLAN, "wire": wire}))


def test_a_scenario_without_updates_has_the_digest_that_it_had() -> None:
    scenario = plan()
    assert "updates" not in scenario.model_dump(mode="json")["wire"]
    assert with_updates("topk").digest != scenario.digest
    assert Scenario.from_mapping({**PLAN, "wire": {"updates": "topk"}}) == with_updates("topk")
