"""Injected faults: drawn by the scenario alone, each counted as its kind, and without effect on the rest."""

from __future__ import annotations

import io
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from inprocess import Federated, assemble, federate, plan, same_state
from rich.console import Console

from engine.apps import make_obedient
from engine.conftest import echoes, message
from fedprune.cli.run import print_summary
from fedprune.cli.validate import describe
from fedprune.engine import simulation
from fedprune.engine.fault_injection import COUNTED_AS, damaged, injected
from fedprune.engine.grid import CHUNK_SECONDS, RayGrid, _Pace
from fedprune.protocol.faults import CODES, Fault
from fedprune.scenario import Scenario
from fedprune.wire.values import to_array

SHARES = {
    "exception": 0.05,
    "hang": 0.02,
    "late": 0.05,
    "corrupt": 0.06,
    "not_finite": 0.05,
    "wrong_shape": 0.03,
    "huge": 0.02,
    "kill_worker": 0.02,
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "static": {"name": "static", "density": 0.2},
    "fedtiny": {
        "name": "fedtiny",
        "density": 0.2,
        "candidates": 2,
        "adjust_every": 1,
        "stop_adjusting_at": 9,
        "swap_fraction": 0.5,
    },
}


def faulty_plan(**changes: Any) -> Scenario:
    """A small federation in which 30 % of all tasks are faulty."""
    return plan(**{
        "seed": 60,
        "rounds": 5,
        "clients__count": 10,
        "clients__per_round": 8,
        "data__train_examples": 300,
        "faults": SHARES,
        "engine__task_timeout": 6.0,
        **changes,
    })  # fmt: skip


def without_the_faulty(scenario: Scenario) -> Federated:
    """Run a scenario without faults, in this process, where no client with a fault is sampled."""
    made = assemble(scenario.override(faults={}))
    sample = made.strategy.sample
    made.strategy.sample = lambda server_round: [
        number for number in sample(server_round) if injected(scenario, server_round, number) is None
    ]
    made.strategy.start(made.grid)
    return made


def drawn(scenario: Scenario, made: Federated) -> list[Counter[str]]:
    """Return how many faults of each kind the draws put into each round, by the names of results."""
    return [
        Counter(
            COUNTED_AS[fault].value
            for number in type(made.strategy).sample(made.strategy, server_round)
            if (fault := injected(scenario, server_round, number)) is not None
        )
        for server_round in range(1, scenario.rounds + 1)
    ]


# Draws ------------------------------------------------------------------------------------------


def test_shares_are_the_chances_of_a_draw_and_named_tasks_have_their_fault():
    scenario = faulty_plan(rounds=100, clients__count=100, clients__per_round=100)
    found = Counter(injected(scenario, r, n) for r in range(1, 101) for n in range(100))
    for fault, share in {**SHARES, None: 0.7}.items():
        assert abs(found[fault] - 10_000 * share) < 4 * math.sqrt(10_000 * share * (1 - share))
    named = scenario.override(faults__at=[{"round": 3, "client": 4, "fault": "huge"}])
    assert injected(named, 3, 4) == "huge"
    others = [(r, n) for r in range(1, 9) for n in range(9) if (r, n) != (3, 4)]
    assert [injected(named, *each) for each in others] == [injected(scenario, *each) for each in others]
    reseeded = scenario.override(seed=1)
    assert [injected(reseeded, *each) for each in others] != [injected(scenario, *each) for each in others]


def test_a_scenario_without_faults_has_none_and_says_none():
    scenario = faulty_plan(faults={})
    assert {injected(scenario, r, n) for r in range(1, 6) for n in range(10)} == {None}
    assert "Faults" not in describe(scenario)
    named = scenario.override(faults={"late": 0.25, "at": [{"round": 3, "client": 4, "fault": "hang"}]})
    assert "Faults injected into training tasks: late 0.25, hang for client 4 in round 3." in describe(named)


# Replies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "uint16"])
def test_damage_changes_bytes_and_makes_no_number_infinite(dtype):
    values = np.linspace(-5, 5, 200).astype(dtype)
    array = to_array(values)
    flipped = 0
    for seed in range(200):
        bad = damaged(array, np.random.default_rng(seed))
        assert bad.data != array.data
        if len(bad.data) == len(array.data) and bad.data[:128] == array.data[:128]:
            flipped += 1
            assert np.isfinite(np.frombuffer(bad.data[128:], values.dtype)).all()
    assert flipped > 20


REPLIES = ["late", "corrupt", "not_finite", "wrong_shape", "huge"]


@pytest.mark.parametrize(
    ("strategy", "values"),
    [
        (STRATEGIES["static"], "float32"),
        (STRATEGIES["static"], "bfloat16"),
        (STRATEGIES["static"], "int8"),
        ({"name": "hidenseek", "density": 0.5, "iterations": 1, "keep_scores": False}, "float32"),
    ],
    ids=["float32", "bfloat16", "int8", "signs"],
)
def test_each_fault_of_a_reply_is_counted_as_its_kind_and_changes_no_model(strategy, values):
    """In this process: the server alone notices, as in a deployment. A client is faulty in both rounds."""
    faults = [{"round": r, "client": n, "fault": f} for r in (1, 2) for n, f in enumerate(REPLIES)]
    changes = {"clients__count": 7, "clients__per_round": 7, "wire__values": values, "rounds": 3}
    scenario = plan(strategy=strategy, faults={"at": faults}, **changes)
    made = federate(scenario)
    expected = {COUNTED_AS[fault]: 1 for fault in REPLIES}
    assert [record.faults for record in made.rounds] == [{}, expected, expected, {}]
    assert [record.clients_ok for record in made.rounds[1:]] == [2, 2, 7]
    assert all(task.fault == COUNTED_AS[REPLIES[task.client]] for task in made.tasks if task.fault)
    # They did train, and hold the mask, which the server can not know: it sends it once more.
    sent = {(task.round, task.client): task.mask_bytes_down > 0 for task in made.tasks if task.round}
    assert [sent[3, number] for number in range(7)] == [True] * 5 + [False] * 2
    assert all("mask" in context.state for context in made.grid.contexts.values())
    reference = without_the_faulty(scenario)
    assert same_state(made.strategy.state, reference.strategy.state)
    assert made.strategy.masks == reference.strategy.masks


# Whole runs -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_with_30_percent_of_replies_faulty_a_run_equals_one_without_them(
    shared_ray, tmp_path, monkeypatch, name
):
    scenario = faulty_plan(strategy=STRATEGIES[name])
    reference = without_the_faulty(scenario)
    expected = drawn(scenario, reference)
    total = sum(expected, Counter())
    assert set(total) == {kind.value for kind in COUNTED_AS.values()}  # The seed was chosen for this.
    tasks = scenario.rounds * scenario.clients.per_round
    assert 0.25 < total.total() / tasks < 0.4

    made, build = [], simulation.make_strategy

    def noted(*given, **options):
        made.append(build(*given, **options))
        return made[0]

    monkeypatch.setattr(simulation, "make_strategy", noted)
    done = simulation.run(scenario, out=tmp_path / "run", progress=False, engine__workers=2)
    (strategy,) = made
    assert same_state(strategy.state, reference.strategy.state)
    assert strategy.masks == reference.strategy.masks
    assert [Counter(record["faults"]) for record in done.rounds[1:]] == expected
    assert done.summary["faults"] == dict(total)
    assert done.summary["clients_ok"] == scenario.clients.count + tasks - total.total() + asked(done)
    for record in done.clients:
        fault = injected(scenario, record["round"], record["client"]) if record["type"] == "train" else None
        assert record["fault"] == (COUNTED_AS[fault] if fault else None)
        assert (record["status"], record["reason"] is None) == (("failed", False) if fault else ("ok", True))
    said = io.StringIO()
    print_summary(done, Console(file=said, width=1000))
    (line,) = [line for line in said.getvalue().splitlines() if line.strip().startswith("faults")]
    assert all(f"{count} {kind}" in line for kind, count in total.items())


def asked(done: Any) -> int:
    """Return how many questions a method asked before round 1, besides who the clients are."""
    kinds = Counter(record["type"] for record in done.clients)
    return sum(count for kind, count in kinds.items() if kind not in ("train", "query.facts"))


# Time limits ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_task_that_hangs_has_its_time_and_takes_no_other_along(shared_ray, tmp_path):
    with RayGrid(make_obedient, [{}] * 30, workers=2, task_timeout=1.5) as grid:
        nodes = list(grid.get_node_ids())
        for others in ([], nodes[1:]):
            file = tmp_path / f"beside{len(others)}"
            grid._paces["train"] = _Pace(seconds=CHUNK_SECONDS / 20)
            messages = [*map(message, others[:9]), message(nodes[0], "hang", file=str(file))]
            messages += map(message, others[9:])
            replies = list(grid.send_and_receive(messages, timeout=120.0))
            assert [r.metadata.src_node_id for r in replies] == [*others[:9], nodes[0], *others[9:]]
            hung = replies.pop(len(others[:9]))
            assert hung.error.code == CODES[Fault.NO_REPLY]
            assert "no reply within 1.5 s" in hung.error.reason
            assert all(echoes(reply, node) for reply, node in zip(replies, others, strict=True))
            # It runs once alone, and before that with the others in whose call it was.
            assert len(file.read_text().split()) == (2 if others else 1)


@pytest.mark.slow
def test_waiting_behind_others_and_the_start_of_a_worker_take_no_task_its_time(shared_ray, tmp_path):
    with RayGrid(make_obedient, [{}] * 8, workers=1, task_timeout=1.0) as grid:
        nodes = list(grid.get_node_ids())
        (pid,) = grid.worker_pids
        grid._paces["train"] = _Pace(seconds=CHUNK_SECONDS)  # One task a call, two calls a worker.
        replies = list(grid.send_and_receive([message(n, "sleep", seconds=0.3) for n in nodes], timeout=60.0))
        assert {reply.content["metrics"]["pid"] for reply in replies} == {pid}
        dying = [message(nodes[0], "die", file=str(tmp_path / "dead"), times=1), *map(message, nodes[1:])]
        # A fresh worker takes longer than that to import PyTorch.
        assert all(reply.has_content() for reply in grid.send_and_receive(dying, timeout=120.0))
