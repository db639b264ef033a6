"""Client apps for the tests of the engine. Workers import this module, so it needs no pytest."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

# The stock app: what Flower's PyTorch quickstart shows, on made-up data ----------------------


def make_data(partition: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a client's examples: (n, 4) inputs and labels of 3 classes; n differs by client."""
    generator = torch.Generator().manual_seed(100 + partition)
    inputs = torch.randn(12 + 4 * partition, 4, generator=generator)
    return inputs, (inputs @ torch.arange(12.0).reshape(4, 3).sin()).argmax(dim=1)


def fit(model: nn.Module, partition: int, lr: float, epochs: int) -> float:
    """Train on a client's examples; return the last loss."""
    inputs, labels = make_data(partition)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss = torch.zeros(())
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


def make_quickstart() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        model = nn.Linear(4, 3)
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        partition = context.node_config["partition-id"]
        loss = fit(model, partition, msg.content["config"]["lr"], context.run_config["local-epochs"])
        metrics = MetricRecord({"train_loss": loss, "num-examples": len(make_data(partition)[0])})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        model = nn.Linear(4, 3)
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        inputs, labels = make_data(context.node_config["partition-id"])
        accuracy = float((model(inputs).argmax(dim=1) == labels).float().mean())
        metrics = MetricRecord({"eval_acc": accuracy, "num-examples": len(labels)})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)

    return app


# The app that does as it is told -------------------------------------------------------------


def make_obedient(**resources: Any) -> ClientApp:
    """Return an app whose clients do what a message's config says under "act"."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content.config_records.get("config", ConfigRecord())
        arrays = message.content.array_records.get("arrays", ArrayRecord())
        arrays, metrics = ACTS[str(config.get("act", "echo"))](config, arrays, context)
        known = {"node": context.node_id, "pid": os.getpid(), "ended": time.time()}
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({**known, **metrics})})
        return Message(content, reply_to=message)

    return app


def _echo(config: Any, arrays: ArrayRecord, context: Context) -> Any:
    return arrays, {}


def _sum(config: Any, arrays: ArrayRecord, context: Context) -> Any:
    total = sum(float(array.numpy().sum()) for array in arrays.values())
    arrays.clear()  # Clients of the same worker must not notice.
    return arrays, {"sum": total}


def _sleep(config: Any, arrays: ArrayRecord, context: Context) -> Any:
    time.sleep(config["seconds"])
    return arrays, {}


def _hang(config: Any, arrays: ArrayRecord, context: Context) -> Any:
    _note(config)
    time.sleep(600)


def _raise(config: Any, arrays: ArrayRecord, context: Context) -> Any:
    raise LookupError("no such thing\nand more lines")


def _exit(config: Any, arrays: ArrayRecord, context: Context) -> Any:
    _note(config)
    raise SystemExit(3)


def _replace_array(config: Any, arrays: ArrayRecord, context: Context) -> Any:
    """Change, in place, the record that was received: it must be judged by what was sent."""
    arrays["w"] = {
        "nan": Array(np.array([1, np.nan, 3], np.float32)),
        "inf": Array(np.array([1, -np.inf, 3], np.float16)),
        "shape": Array(np.zeros((3, 1), np.float32)),
        "garbage": Array("float32", (3,), "numpy.ndarray", b"no array at all"),
        "lie": Array("float32", (3,), "numpy.ndarray", Array(np.zeros(4)).data),
    }[config["with"]]
    return arrays, {}


def _metric(config: Any, arrays: ArrayRecord, context: Context) -> Any:
    return arrays, {"loss": [0.5, float("nan")]}


def _count(config: Any, arrays: ArrayRecord, context: Context) -> Any:
    before = context.state.config_records.get("seen", ConfigRecord({"count": 0}))["count"]
    context.state["seen"] = ConfigRecord({"count": before + 1})
    return arrays, {"count": before + 1}


def _remember(config: Any, arrays: ArrayRecord, context: Context) -> Any:
    context.state["mask"] = ConfigRecord({"payload": bytes(10_000)})
    return arrays, {}


def _die(config: Any, arrays: ArrayRecord, context: Context) -> Any:
    """Die at the first attempts, as many as the config says."""
    if _note(config) <= config["times"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return arrays, {}


def _note(config: Any) -> int:
    """Add this process to the file that the config names; return how many stand there now."""
    return _noted(Path(config["file"]))


def _noted(path: Path) -> int:
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return len(path.read_text().split())


ACTS = {
    "echo": _echo,
    "sum": _sum,
    "sleep": _sleep,
    "hang": _hang,
    "raise": _raise,
    "exit": _exit,
    "replace": _replace_array,
    "metric": _metric,
    "count": _count,
    "remember": _remember,
    "die": _die,
}


def make_broken(**resources: Any) -> ClientApp:
    raise LookupError("the model's file is missing")


# What `map` computes -------------------------------------------------------------------------


def scaled(resources: Any, common: float, item: float) -> float:
    return float(resources["table"].sum()) * common * item


def scaled_after_death(resources: Any, common: tuple[str, int], item: float) -> float:
    """Kill the worker that computes item 3, as often as asked."""
    file, times = common
    if item == 3 and _noted(Path(file)) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item
