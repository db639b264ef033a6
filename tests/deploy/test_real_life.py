"""What happens to real devices: a run goes on with the others, and its results say what happened."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import psutil
from deployment import BIN, CountingProxy, Deployment, wait_until
from inprocess import same_state

from fedprune import load_run
from fedprune.deployment.credentials import make_key_pair
from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run as simulate
from fedprune.scenario import Scenario
from fedprune.wire import get_state

STATIC = {"name": "static", "density": 0.2, "criterion": "snip", "distribution": "global"}


def of_two(plan):
    """Return the federation with two devices: each message takes a process that imports PyTorch."""
    return {**plan, "clients": {**plan["clients"], "count": 2, "per_round": 2}}


def of_client(run, number, kind="train"):
    """Return the tasks of a client, by round."""
    tasks = [task for task in run.clients if task["client"] == number and task["type"] == kind]
    return {task["round"]: task for task in tasks}


def wait_for_round(deployment, out, number, seconds=300):
    wait_until(lambda: deployment.rounds(out) >= number, seconds, f"round {number} has ended")


def wait_for_task(deployment, name, seconds=60):
    """Wait until a device is sent something that it was not sent before."""
    before = deployment.log(name).count("Receiving")
    wait_until(lambda: deployment.log(name).count("Receiving") > before, seconds, f"{name} has a task")


def test_a_device_that_is_killed_and_one_that_joins_late(deployment, plan, tmp_path):
    out = tmp_path / "out"
    deployment.write_scenario({**plan, "rounds": 6, "strategy": STATIC})
    deployment.start_nodes(0, 1)
    run_id = deployment.submit(out, min_clients=2)
    wait_for_round(deployment, out, 1)
    wait_for_task(deployment, "device-1")
    deployment.kill("device-1")
    # The SuperLink takes no second SuperNode with the same key until it has missed the first for a minute.
    deployment.start_node(1, keep=True)
    deployment.start_node(2)
    run = deployment.finish(run_id, out)

    tasks = of_client(run, 1)
    assert [task["fault"] for task in tasks.values() if task["status"] == "failed"] == ["gone"]
    assert tasks[2]["status"] == "failed"
    assert "out of reach" in tasks[2]["reason"]
    again = [task for number, task in tasks.items() if number > 2]
    assert all(task["status"] == "ok" for task in again)
    assert again[0]["mask_bytes_down"] > 0  # It has forgotten the masks, and is sent them.
    joined = min(of_client(run, 2, "query.facts"))
    assert joined > 1
    assert list(of_client(run, 2)) == list(range(joined, 7))
    assert all(task["status"] == "ok" for task in of_client(run, 2).values())
    for record in run.rounds[1:]:
        known = 2 if record["round"] < joined else 3
        trained = known - record["clients_offline"] - record["faults"].get("gone", 0)
        assert record["classes"]["raspberry-pi-4"]["ok"] == trained
    assert run.summary["faults"] == {"gone": 1}


def test_a_connection_that_is_lost_for_a_minute(deployment, plan, tmp_path):
    out = tmp_path / "out"
    deployment.write_scenario({**of_two(plan), "rounds": 100, "strategy": STATIC})
    proxy = CountingProxy(deployment.port)
    deployment.start_nodes(0)
    deployment.start_node(1, "--superlink", f"127.0.0.1:{proxy.port}", keep=True)
    deployment.submit(out)
    wait_for_round(deployment, out, 1)
    wait_for_task(deployment, "device-1")
    proxy.cut()
    wait_for_round(deployment, out, 2)  # The SuperLink gives a node up after a minute without a heartbeat.
    proxy.mend()
    # Rounds go on with the other device until this one asks again: its pauses between questions have grown.
    wait_until(lambda: "ok" in statuses_after(2, load_run(out)), 240, "the device trains again")
    lost = of_client(load_run(out), 1)[2]
    assert (lost["status"], lost["fault"]) == ("failed", "gone")
    assert "out of reach" in lost["reason"]


def statuses_after(number, run):
    """Return how the training tasks of the second device ended after a round."""
    return [task["status"] for at, task in of_client(run, 1).items() if at > number]


def test_a_run_goes_on_when_its_server_was_killed(deployment, plan, tmp_path):
    out = tmp_path / "out"
    content = {**of_two(plan), "rounds": 4, "strategy": STATIC}
    deployment.write_scenario(content)
    deployment.start_nodes(0, 1)
    deployment.submit(out)
    wait_for_round(deployment, out, 1)
    deployment.kill("superlink")  # With the ServerApp that it has started.
    deployment.start_superlink()
    wait_until(lambda: deployment.online() == 2, 120, "the SuperNodes are back")
    first = deployment.rounds(out)
    run_id = deployment.submit(out, resume=True)
    wait_for_round(deployment, out, first + 1)
    subprocess.run(["pkill", "-KILL", "-f", f"flwr-serverapp.*127.0.0.1:{deployment.port}"], check=True)
    assert deployment.end(run_id, out) == "finished:failed"
    run = deployment.finish(deployment.submit(out, resume=True), out)

    assert [record["round"] for record in run.rounds] == [0, 1, 2, 3, 4]
    unbroken = simulate(
        Scenario.from_mapping(content),
        out=tmp_path / "simulated",
        progress=False,
        host=InProcess(),
        figures=False,
    )
    assert same_state(get_state(run.model()), get_state(unbroken.model()))
    assert [record["accuracy"] for record in run.rounds] == [record["accuracy"] for record in unbroken.rounds]


def test_a_supernode_is_restarted_in_its_task_and_the_superlink_stopped_in_the_run(
    deployment, plan, tmp_path
):
    """Stopped as the guide says, with one signal: no process is left, and the run folder is complete."""
    out = tmp_path / "out"
    deployment.write_scenario({**of_two(plan), "rounds": 100, "strategy": STATIC})
    deployment.start_nodes(0, 1)
    deployment.submit(out)
    wait_for_round(deployment, out, 1)
    wait_for_task(deployment, "device-1")
    deployment.kill("device-1", signal.SIGTERM)
    deployment.start_node(1)
    wait_for_round(deployment, out, 3)
    superlink = deployment.processes["superlink"]
    ours = psutil.Process(superlink.pid).children(recursive=True)
    assert any("serverapp" in " ".join(process.cmdline()) for process in ours)
    superlink.terminate()
    superlink.wait(20)
    _, alive = psutil.wait_procs(ours, timeout=3)
    assert [" ".join(process.cmdline()) for process in alive] == []
    run = load_run(out)
    assert run.summary["status"] == "interrupted"
    assert run.summary["rounds"] == run.rounds[-1]["round"] >= 3
    tasks = of_client(run, 1)
    assert (tasks[2]["status"], tasks[2]["fault"]) == ("failed", "gone")
    assert tasks[2]["wall_seconds"] < 45  # The server does not wait for its heartbeats.
    assert tasks[3]["status"] == "ok"


FORGETFUL = """
from fedprune.client.base import Client
hold = Client._hold
def hold_others(masks, state, encoded=None):
    hold(masks, state, encoded)
    state["mask"]["version"] = "0" * len(state["mask"]["version"])
Client._hold = staticmethod(hold_others)
"""

OLDER = """
import fedprune.wire
fedprune.wire.CODEC = "fedprune-1"
"""


def test_devices_that_are_not_as_they_should_be(plan, tmp_path):
    """One with other masks, one with an older fedprune, one without the memory, one with wrong data."""
    plan["clients"] |= {"count": 5, "per_round": 5, "over_budget": "exclude"}
    out = tmp_path / "out"
    deployment = Deployment(
        tmp_path / "deployment", Scenario.from_mapping({**plan, "rounds": 3, "strategy": STATIC})
    )
    for name, code in (("forgetful", FORGETFUL), ("older", OLDER)):
        (tmp_path / name).mkdir()
        # Python imports `sitecustomize` before all else; the change waits for the module that it is to.
        (tmp_path / name / "sitecustomize.py").write_text(
            f"import sys\nif 'clientapp' in sys.argv[0]:{_indented(code)}"
        )
    deployment.node_config(3, device="raspberry-pi-4", memory="64 KiB")
    deployment.node_config(4, data=str(tmp_path / "nothing.npz"))
    try:
        deployment.start_superlink()
        deployment.register()
        deployment.start_node(0)
        deployment.start_node(1, PYTHONPATH=str(tmp_path / "forgetful"))
        deployment.start_node(2, PYTHONPATH=str(tmp_path / "older"))
        deployment.start_node(3)
        deployment.start_node(4)
        run = deployment.finish(deployment.submit(out), out)
    finally:
        deployment.close()

    assert all(task["status"] == "ok" for task in of_client(run, 0).values())
    forgetful = of_client(run, 1)
    assert all(task["status"] == "ok" for task in forgetful.values())
    assert all(task["mask_bytes_down"] > 0 for task in forgetful.values())  # Sent again each time.
    assert of_client(run, 0)[2]["mask_bytes_down"] == 0
    assert not of_client(run, 3)
    assert [record["clients_excluded"] for record in run.rounds[1:]] == [1, 1, 1]
    refused = [task for task in run.clients if task["client"] is None]
    reasons = "\n".join(sorted(task["reason"] for task in refused))
    assert len(refused) == 2, reasons
    assert "this client 'fedprune-1'" in reasons
    assert "nothing.npz" in reasons
    assert [record["clients_ok"] for record in run.rounds[1:]] == [2, 2, 2]


def _indented(code: str) -> str:
    return code.replace("\n", "\n    ")


def test_who_is_not_known_or_does_not_use_tls_is_refused(deployment):
    device = deployment.directory / "devices" / "device-0"
    stranger = deployment.directory / "devices" / "device-9"
    shutil.copytree(device, stranger)
    private, _ = make_key_pair()
    (stranger / "device.key").write_bytes(private)
    deployment.start_node(9)
    process = deployment.processes["device-9"]
    assert process.wait(60) != 0
    assert "not" in deployment.log("device-9").lower()

    plain = [BIN / "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{deployment.port}"]
    deployment.start("plain", *map(str, plain), "--port", "0", "--max-retries", "1")
    assert deployment.processes["plain"].wait(60) != 0
    assert deployment.online() == 0
    Path(stranger / "device.key").unlink()
