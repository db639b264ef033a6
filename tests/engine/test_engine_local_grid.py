"""A run within one process gives what a run on Ray gives, and asks as little of the process."""

from __future__ import annotations

import json
from itertools import count

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from inprocess import plan

from engine.apps import make_obedient, scaled
from engine.conftest import echoes, message, metrics
from fedprune.data import read, read_key
from fedprune.engine.hosts import InProcess, OnRay, can_run_in_process
from fedprune.engine.local_grid import LocalGrid
from fedprune.engine.simulation import run
from fedprune.errors import RunError

WALL = {"wall_seconds", "startup_seconds", "total_seconds"}
FEDTINY = {"name": "fedtiny", "density": 0.2, "candidates": 2, "adjust_every": 1, "stop_adjusting_at": 2}


def lines(path):
    """Return the records of a run without what the clock says."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in WALL} for record in records]


def test_it_gives_what_ray_gives_also_from_data_that_were_read_before(shared_ray, tmp_path):
    """For every strategy: tests/strategies/test_every_strategy.py."""
    scenario = plan(strategy=FEDTINY, data__client_test_fraction=0.2, evaluation__clients=True)
    hosts = {"ray": OnRay(), "here": InProcess(), "read": InProcess(source=read(scenario))}
    one, *others = (
        run(scenario, out=tmp_path / kind, progress=False, host=host, figures=False, engine__workers=1)
        for kind, host in hosts.items()
    )
    for other in others:
        for file in ("rounds.jsonl", "clients.jsonl"):
            assert lines(one.directory / file) == lines(other.directory / file)
        state = other.model().state_dict()
        assert all(torch.equal(value, state[key]) for key, value in one.model().state_dict().items())


def test_it_resumes_from_a_checkpoint_of_a_run_on_ray(shared_ray, tmp_path):
    class Stop:
        def on_task(self, task):
            pass

        def on_round(self, round):
            if round.round == 1:
                raise KeyboardInterrupt

    scenario = plan(strategy={"name": "hidenseek", "density": 0.2})
    whole = run(scenario, out=tmp_path / "whole", progress=False, host=InProcess(), figures=False)
    with pytest.raises(KeyboardInterrupt):
        # The checkpoint is made after all listeners: the round before it is the last that is kept.
        run(
            scenario,
            out=tmp_path / "cut",
            progress=False,
            listeners=[Stop()],
            figures=False,
            engine__workers=1,
        )
    cut = run(scenario, out=tmp_path / "cut", resume=True, progress=False, host=InProcess(), figures=False)
    assert lines(cut.directory / "rounds.jsonl") == lines(whole.directory / "rounds.jsonl")


def test_messages_are_computed_when_their_replies_are_asked_for():
    grid = LocalGrid(make_obedient, [{}] * 4, resources={"table": np.arange(5.0)})
    taken = count()
    nodes = list(grid.get_node_ids())
    replies = grid.send_and_receive(message(node) for node in nodes if next(taken) >= 0)
    assert echoes(next(replies), nodes[0])
    assert next(taken) == 1
    assert all(echoes(reply, node) for reply, node in zip(replies, nodes[1:], strict=True))
    ids = list(grid.push_messages([message(node) for node in nodes]))
    assert [reply.metadata.reply_to_message_id for reply in grid.pull_messages(ids)] == ids
    assert list(grid.pull_messages(ids)) == []
    assert grid.map(scaled, 3.0, [1.0, 2.0]) == [30.0, 60.0]


def test_a_record_changed_between_exchanges_arrives_changed():
    grid = LocalGrid(make_obedient, [{}] * 2)
    node = next(iter(grid.get_node_ids()))
    record = ArrayRecord({"w": Array(torch.ones(4096).numpy())})
    sums = []
    for value in (1.0, 2.0):
        record["w"] = Array(torch.full((4096,), value).numpy())
        (reply,) = grid.send_and_receive([message(node, "sum", arrays=record)])
        sums.append(metrics(reply)["sum"])
    assert sums[1] == 2 * sums[0] > 0


def test_after_the_time_no_message_is_answered():
    grid = LocalGrid(make_obedient, [{}] * 3)
    nodes = list(grid.get_node_ids())
    assert list(grid.send_and_receive([message(node) for node in nodes], timeout=0.0)) == []
    late = list(grid.send_and_receive([message(node, "sleep", seconds=0.2) for node in nodes], timeout=0.1))
    assert len(late) == 1


def test_an_app_that_raises_is_an_error_reply():
    grid = LocalGrid(make_obedient, [{}] * 2)
    first, second = grid.get_node_ids()
    replies = list(grid.send_and_receive([message(first, "raise"), message(second)]))
    assert replies[0].has_error()
    assert echoes(replies[1], second)


def test_what_may_end_or_hang_its_process_has_one_of_its_own():
    assert can_run_in_process(plan())
    assert not can_run_in_process(plan(engine__task_timeout=5.0))
    assert not can_run_in_process(plan(faults={"kill_worker": 0.1}))
    assert can_run_in_process(plan(faults={"corrupt": 0.1}))


def test_a_data_set_is_read_once_for_all_seeds_unless_its_images_are_chosen():
    whole = plan(data={"name": "digits", "server_fraction": 0.1})
    assert read_key(whole) == read_key(whole.override(seed=9, clients__count=5))
    few = plan()
    assert read_key(few) != read_key(few.override(seed=9))
    assert read_key(few) == read_key(few.override(rounds=5))


@pytest.mark.parametrize("change", ["seed", "lr", "server_fraction", "epochs", "nothing", "strategy"])
def test_runs_that_begin_alike_share_their_pretraining(tmp_path, change):
    host = InProcess(pretrained=tmp_path / "kept")
    base = plan(strategy={"name": "static", "density": 0.2, "pretrain_epochs": 1}, rounds=1)
    other = {
        "seed": base.override(seed=4),
        "lr": base.override(clients__training__optimizer__lr=0.02),
        "server_fraction": base.override(data__server_fraction=0.3),
        "epochs": base.override(strategy__pretrain_epochs=2),
        "nothing": base,
        "strategy": base.override(strategy={"name": "fedavg", "pretrain_epochs": 1}),
    }[change]
    run(base, out=tmp_path / "one", progress=False, host=host, figures=False)
    shared = run(other, out=tmp_path / "two", progress=False, host=host, figures=False)
    alone = run(other, out=tmp_path / "alone", progress=False, host=InProcess(), figures=False)
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 1 + (change not in ("nothing", "strategy"))
    assert lines(shared.directory / "rounds.jsonl") == lines(alone.directory / "rounds.jsonl")


def test_a_damaged_pretrained_model_is_made_anew(tmp_path):
    host = InProcess(pretrained=tmp_path / "kept")
    scenario = plan(strategy={"name": "static", "density": 0.2, "pretrain_epochs": 1}, rounds=1)
    one = run(scenario, out=tmp_path / "one", progress=False, host=host, figures=False)
    (kept,) = (tmp_path / "kept").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-100])
    two = run(scenario, out=tmp_path / "two", progress=False, host=host, figures=False)
    assert lines(one.directory / "rounds.jsonl") == lines(two.directory / "rounds.jsonl")


def test_a_run_that_fails_says_so_as_on_ray(tmp_path):
    scenario = plan(clients__training__optimizer__lr=1e30)
    with pytest.raises(RunError):
        run(scenario, out=tmp_path / "run", progress=False, host=InProcess(), figures=False)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
