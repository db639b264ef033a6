"""What RayGrid promises when clients fail, workers die and tasks hang. Processes are really killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest
from flwr.common.constant import ErrorCode

from engine.apps import make_broken, make_obedient, scaled_after_death
from engine.conftest import WORKERS, echoes, message, metrics
from fedprune.engine.grid import CHUNK_SECONDS, RayGrid, _Pace
from fedprune.errors import RunError
from fedprune.protocol.faults import CODES, Fault

pytestmark = pytest.mark.slow  # Each starts processes of its own, to kill them.

BAD = {
    "raise": ({"act": "raise"}, "LookupError: no such thing", ErrorCode.CLIENT_APP_RAISED_EXCEPTION),
    "nan": (
        {"act": "replace", "with": "nan"},
        "array 'w' holds values that are not finite",
        CODES[Fault.NOT_FINITE],
    ),
    "inf": (
        {"act": "replace", "with": "inf"},
        "array 'w' holds values that are not finite",
        CODES[Fault.NOT_FINITE],
    ),
    "shape": (
        {"act": "replace", "with": "shape"},
        "array 'w' has shape [3, 1], expected [3]",
        CODES[Fault.WRONG_SHAPE],
    ),
    "garbage": ({"act": "replace", "with": "garbage"}, "array 'w' cannot be read", CODES[Fault.UNREADABLE]),
    "lie": (
        {"act": "replace", "with": "lie"},
        "says float32[3] but holds float64[4]",
        CODES[Fault.UNREADABLE],
    ),
    "metric": ({"act": "metric"}, "metric 'loss' is not finite", CODES[Fault.NOT_FINITE]),
}


def attempts(file: Path) -> int:
    return len(file.read_text().split())


def test_each_fault_of_a_client_is_an_error_reply_with_its_reason_and_hurts_no_other(grid):
    nodes = list(grid.get_node_ids())
    faults = list(BAD.values())
    messages = [message(node) for node in nodes]
    for position, (config, _, _) in enumerate(faults):
        messages[3 * position] = message(nodes[3 * position], **config)
    replies = list(grid.send_and_receive(messages))
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    for position, (_, reason, code) in enumerate(faults):
        reply = replies[3 * position]
        assert reply.has_error()
        assert reason in reply.error.reason
        assert "\n" not in reply.error.reason
        assert reply.error.code == code
    bad = {3 * position for position in range(len(faults))}
    assert all(echoes(r, n) for p, (r, n) in enumerate(zip(replies, nodes, strict=True)) if p not in bad)


def test_shapes_are_the_strategys_matter_where_it_says_so(shared_ray):
    with RayGrid(make_obedient, [{}], workers=1, same_shapes=False) as grid:
        node = next(iter(grid.get_node_ids()))
        shaped, garbage = grid.send_and_receive(
            [message(node, **{"act": "replace", "with": each}) for each in ("shape", "garbage")]
        )
    assert shaped.has_content()
    assert garbage.has_error()


def test_a_client_keeps_its_state_whichever_worker_runs_it_and_though_one_is_killed(grid, tmp_path):
    nodes = list(grid.get_node_ids())[:6]
    pids = []
    for wanted in (1, 2, 3, 4):
        order = nodes if wanted % 2 else nodes[::-1]
        config = {"act": "count"}
        replies = list(grid.send_and_receive([message(node, **config) for node in order]))
        assert [metrics(reply)["count"] for reply in replies] == [wanted] * len(nodes)
        pids.append({reply.metadata.src_node_id: metrics(reply)["pid"] for reply in replies})
        if wanted == 3:
            dying = message(nodes[0], "die", file=str(tmp_path / "deaths"), times=1)
            assert next(iter(grid.send_and_receive([dying]))).has_content()
    assert any(len({each[node] for each in pids}) > 1 for node in nodes)


def test_equal_states_are_held_once(grid):
    nodes = list(grid.get_node_ids())[6:]
    assert all(r.has_content() for r in grid.send_and_receive([message(node, "remember") for node in nodes]))
    assert len({id(grid._states[node]) for node in nodes}) == 1


def test_a_killed_workers_messages_run_again_and_only_one_that_kills_twice_is_lost(grid, tmp_path):
    """With many messages in a call, the innocent ones of the same call are not lost."""
    nodes = list(grid.get_node_ids())
    for act, times, good in (("die", 1, True), ("die", 99, False)):
        grid._paces["train"] = _Pace(seconds=CHUNK_SECONDS / 20)
        file = tmp_path / f"{act}{times}"
        messages = [message(node) for node in nodes]
        messages[17] = message(nodes[17], act, file=str(file), times=times)
        replies = list(grid.send_and_receive(messages))
        if not good:
            assert "died twice" in replies.pop(17).error.reason
        survivors = nodes if good else nodes[:17] + nodes[18:]
        assert all(echoes(reply, node) for reply, node in zip(replies, survivors, strict=True))
        assert attempts(file) == 2
    assert len(grid._workers) == WORKERS


def test_an_app_that_asks_to_exit_is_an_error_reply_and_its_worker_stays(grid, tmp_path):
    nodes = list(grid.get_node_ids())[:4]
    before = [worker.actor for worker in grid._workers]
    asked = [message(nodes[0], "exit", file=str(tmp_path / "exit"), times=99), *map(message, nodes[1:])]
    first, *others = grid.send_and_receive(asked)
    assert first.error.reason == "SystemExit: 3"
    assert all(echoes(reply, node) for reply, node in zip(others, nodes[1:], strict=True))
    assert [worker.actor for worker in grid._workers] == before


@pytest.mark.parametrize("times", [1, 2])
def test_map_survives_one_death_and_says_so_after_two(grid, tmp_path, times):
    common = (str(tmp_path / "deaths"), times)
    items = [float(item) for item in range(6)]
    if times == 1:
        assert grid.map(scaled_after_death, common, items) == [2 * item for item in items]
    else:
        with pytest.raises(RunError, match="died twice"):
            grid.map(scaled_after_death, common, items)
    assert attempts(tmp_path / "deaths") == 2


def gone(pid: int) -> bool:
    """Wait a moment for a process to end, and say whether it did."""
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return not psutil.pid_exists(pid)


def test_a_task_that_hangs_gets_no_reply_and_all_others_do(shared_ray, tmp_path):
    with RayGrid(make_obedient, [{}] * 30, workers=2) as grid:
        nodes = list(grid.get_node_ids())
        hung = tmp_path / "hung"
        messages = [message(node) for node in nodes[:8]]
        messages[2] = message(nodes[2], "hang", file=str(hung))
        began = time.monotonic()
        replies = list(grid.send_and_receive(messages, timeout=6.0))
        assert 6.0 <= time.monotonic() - began < 20.0
        assert [r.metadata.src_node_id for r in replies] == nodes[:2] + nodes[3:8]
        assert all(echoes(reply, reply.metadata.src_node_id) for reply in replies)
        assert all(gone(int(pid)) for pid in hung.read_text().split())
        # The grid goes on, and a hanging task among many in one call takes none of them along. It has its
        # own time, not the exchange's: on a busy machine a fresh worker starts slower than any bound here.
        assert all(reply.has_content() for reply in grid.send_and_receive([message(n) for n in nodes]))
        grid._paces["train"] = _Pace(seconds=CHUNK_SECONDS / 20)
        grid._task_timeout = 4.0
        messages = [message(node) for node in nodes]
        messages[9] = message(nodes[9], "hang", file=str(hung))
        replies = list(grid.send_and_receive(messages, timeout=120.0))
        assert [r.metadata.src_node_id for r in replies] == nodes
        assert [r.metadata.src_node_id for r in replies if r.has_error()] == [nodes[9]]
        assert all(gone(int(pid)) for pid in hung.read_text().split())


def test_an_app_that_cannot_be_built_ends_the_run_with_its_cause(shared_ray):
    with pytest.raises(RunError, match=r"could not start: LookupError: the model's file is missing"):
        RayGrid(make_broken, [{}] * 3, workers=2)


def test_closing_the_grid_ends_its_processes(shared_ray):
    with RayGrid(make_obedient, [{}], workers=1) as grid:
        (pid,) = grid.worker_pids
        assert psutil.pid_exists(pid)
        assert pid != os.getpid()
    assert gone(pid)
