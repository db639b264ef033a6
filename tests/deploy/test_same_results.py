"""Three SuperNodes over TLS give what a simulation gives, bit for bit, and what its ledger says crosses."""

from __future__ import annotations

import time

from deployment import CountingProxy
from inprocess import same_state
from safetensors.torch import save_file

from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run as simulate
from fedprune.models import build
from fedprune.wire import get_state

VIT = {"name": "vit", "patch": 2, "size": 256, "layers": 3, "heads": 4, "prompts": 4}
#: Strategy, units of the hidden layer of a CNN or a model, and rounds: two where the second sends something
#: else. Each message takes a device a process that imports PyTorch; split training takes two for each batch.
STRATEGIES = {
    "fedavg": ({"name": "fedavg"}, 2048, 1),
    "static": ({"name": "static", "density": 0.2, "criterion": "snip", "distribution": "global"}, 4096, 2),
    "fedtiny": (
        {"name": "fedtiny", "density": 0.2, "candidates": 2, "adjust_every": 1, "pretrain_epochs": 1},
        4096,
        2,
    ),
    "hidenseek": ({"name": "hidenseek", "density": 0.9}, 16384, 1),
    "sfprompt": ({"name": "sfprompt", "prune": 0.3}, VIT, 1),
}
MEASURED = {"wall_seconds": 0, "measured_seconds": 0, "measured_memory_bytes": 0}


def unmeasured(records):
    return [{**record, **MEASURED} for record in records]


def test_three_devices_give_what_a_simulation_gives(deployment, plan, tmp_path):
    """The same model, rounds and ledger, for each strategy; and the ledger's bytes are what a proxy counts.

    A SuperNode asks for messages every three seconds, whether there are any or not: what that takes is
    counted while nothing runs, and left out. A message costs about 10 KB besides its content (headers of 15
    requests for a task, TLS); so the models here are large enough for messages of 200 KB.
    """
    proxies = [CountingProxy(deployment.port) for _ in range(3)]
    for number, proxy in enumerate(proxies):
        deployment.start_node(number, "--superlink", f"127.0.0.1:{proxy.port}")
    deployment.wait_for_nodes(0, 1, 2)
    idle = idle_rates(proxies)
    deployed, crossed = {}, {}
    for name, (strategy, hidden, rounds) in STRATEGIES.items():
        plan["model"] = (
            hidden if isinstance(hidden, dict) else {"name": "cnn", "width": 1.0, "hidden": hidden}
        )
        if name == "static":  # It begins with weights from a file, on the server.
            weights = build("cnn", (1, 8, 8), 10, seed=7, options={"hidden": hidden}).state_dict()
            save_file(weights, deployment.directory / "app" / "begin.safetensors")
            plan["model"]["weights"] = str(deployment.directory / "app" / "begin.safetensors")
        changes = {"name": name, "strategy": strategy, "rounds": rounds}
        path = deployment.write_scenario({**plan, **changes}, f"{name}.yaml")
        before, began = [proxy.total for proxy in proxies], time.monotonic()
        out = tmp_path / name
        deployed[name] = deployment.finish(deployment.submit(out, scenario=path.name), out)
        seconds = time.monotonic() - began
        crossed[name] = [
            proxy.total - count - rate * seconds
            for proxy, count, rate in zip(proxies, before, idle, strict=True)
        ]
    for name, run in deployed.items():
        scenario = deployment.directory / "app" / f"{name}.yaml"
        reference = simulate(
            scenario, out=tmp_path / f"{name}-simulated", progress=False, host=InProcess(), figures=False
        )
        assert same_state(get_state(run.model()), get_state(reference.model())), name
        assert unmeasured(run.rounds) == unmeasured(reference.rounds), name
        assert unmeasured(run.clients) == unmeasured(reference.clients), name
        for number, counted in enumerate(crossed[name]):
            tasks = [task for task in run.clients if task["client"] == number]
            said = sum(task["bytes_down"] + task["bytes_up"] for task in tasks)
            trips = len(tasks) + sum(2 * batches_of(task, run) for task in tasks)
            messages = 2 * trips  # What is sent, and its reply.
            print(f"{name} {number}: {messages} messages, {said} B said, {counted:.0f} B counted")
            assert said < counted <= 1.03 * said + 4096 * messages, name


def batches_of(task, run):
    """Return how many batches of a task crossed to and fro."""
    if not task["smashed_bytes_up"]:
        return 0
    kept = task["examples"] - int(0.3 * task["examples"])
    return -(-kept // run.scenario.clients.training.batch_size)


def idle_rates(proxies: list[CountingProxy]) -> list[float]:
    """Return what crosses in a second when nothing runs, in bytes."""
    before, began = [proxy.total for proxy in proxies], time.monotonic()
    time.sleep(30)  # A heartbeat, and ten questions for messages.
    seconds = time.monotonic() - began
    return [(proxy.total - count) / seconds for proxy, count in zip(proxies, before, strict=True)]
