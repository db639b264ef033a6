"""Split training: the same wherever the body runs, what went to and fro, and clients that vanish on the way.

The grid of these tests carries every message (`inprocess.InProcessGrid`), as one of real devices does: the
server runs the body. `InProcess` is a simulation's host: the body runs beside the client.
"""

from __future__ import annotations

import copy
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Error, Message
from inprocess import assemble, federate, plan, same_state
from torch.utils._python_dispatch import TorchDispatchMode

from fedprune.engine.fault_injection import COUNTED_AS
from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run
from fedprune.errors import ScenarioError, UserError
from fedprune.protocol.faults import CODES, Fault
from fedprune.protocol.split import pack, unpack
from fedprune.server.check import resolve
from fedprune.server.split import SplitStrategy
from fedprune.sparsity.masks import Masks
from fedprune.training.split import Body
from fedprune.wire import Layout, content_bytes, get_state
from fedprune.wire.values import to_array

VIT: dict[str, Any] = {"name": "vit", "patch": 4, "size": 16, "layers": 3, "heads": 2, "prompts": 2}
CNN: dict[str, Any] = {"name": "cnn", "width": 0.25, "hidden": 16}
ON_CNN = {"body": "block2", "tail": "hidden"}
METHODS: dict[str, dict[str, Any]] = {
    "sfprompt": {"model": VIT, "strategy": {"name": "sfprompt"}},
    "sfprompt in int8": {"model": VIT, "strategy": {"name": "sfprompt", "smashed": "int8"}},
    "sfprompt with adam": {
        "model": VIT,
        "strategy": {"name": "sfprompt"},
        "clients__training__optimizer": {"name": "adam", "lr": 0.003},
    },
    "no local update, no data pruning": {
        "model": {**VIT, "prompts": 0},
        "strategy": {"name": "sfprompt", "local_epochs": 0, "prune": 0.0},
    },
    "splitfed": {"model": CNN, "strategy": {"name": "splitfed", **ON_CNN}},
    "splitfed 2": {"model": CNN, "strategy": {"name": "splitfed", "version": 2, **ON_CNN}},
    "splitfed in float16": {"model": CNN, "strategy": {"name": "splitfed", "smashed": "float16", **ON_CNN}},
}
TESTED = {"evaluation__clients": True, "data__client_test_fraction": 0.2}
NOT_COMPARED = {"wall_seconds", "measured_seconds", "measured_memory_bytes"}


def scenario(method: str, **changes: Any):
    return resolve(plan(**{**METHODS[method], **changes}))


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in NOT_COMPARED} for record in found]


class Last:
    """Keeps the last global state that a simulation makes."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def on_task(self, task: Any) -> None:
        pass

    def on_round(self, round: Any) -> None:
        self.records.append(round)


@pytest.mark.parametrize("method", METHODS)
def test_a_simulation_and_a_grid_of_devices_give_the_same(method: str, tmp_path: Path):
    """Bits, bytes, FLOPs, virtual time: of every task and every round."""
    asked = scenario(method)
    simulated = run(asked, out=tmp_path / "run", host=InProcess(), progress=False, figures=False)
    devices = federate(asked)
    for record, line in zip(devices.tasks, lines(tmp_path / "run" / "clients.jsonl"), strict=True):
        assert {key: record.columns()[key] for key in line} == line
    for round_, line in zip(devices.rounds, simulated.rounds, strict=True):
        assert round_.columns()["accuracy"] == line["accuracy"]
        assert round_.loss == line["loss"]
    kinds = {message.metadata.message_type for message, _ in devices.grid.exchanges}
    assert kinds == {"query.facts", "train", "train.split_forward", "train.split_backward"}


@pytest.mark.parametrize("method", ["sfprompt", "splitfed"])
def test_a_client_answers_in_whatever_process(method: str):
    """Flower starts a process for each message: nothing but the context may be kept."""
    fresh = []

    class Forgetful:
        def __call__(self, message, context):
            from fedprune.engine.hosts import build_client_app

            app = build_client_app(made.scenario, made.data, "cpu")
            fresh.append(message.metadata.message_type)
            return app(message, context)

    made = assemble(scenario(method, rounds=1))
    made.grid._app = Forgetful()
    made.strategy.start(made.grid)
    assert len(fresh) > 8
    assert same_state(made.strategy.state, federate(scenario(method, rounds=1)).strategy.state)


def test_bytes_are_those_of_the_messages():
    made = federate(scenario("sfprompt", clients__per_round=1, rounds=1))
    task = made.tasks[-1]
    own = [(m, r) for m, r in made.grid.exchanges if m.metadata.message_type != "query.facts"]
    assert task.bytes_down == sum(content_bytes(message.content) for message, _ in own)
    assert task.bytes_up == sum(content_bytes(reply.content) for _, reply in own)
    between = [m for m, _ in own if m.metadata.message_type != "train"]
    assert task.smashed_bytes_down == sum(content_bytes(message.content) for message in between)
    assert task.smashed_bytes_up == sum(content_bytes(reply.content) for _, reply in own[:-1])
    values = made.strategy.local.body_shapes[0].numel() * 4
    examples = task.server_flops // made.strategy.accounts.server.flops(1)
    floats = 2 * values * examples  # Activations and gradients, each way.
    assert floats < task.smashed_bytes_up < 1.3 * floats
    assert examples == task.examples - task.examples // 2


def test_virtual_time_counts_the_server_and_each_trip():
    quick = federate(scenario("splitfed", rounds=1, server={"compute": 1e30, "round_trip": 0.0}))
    slow = federate(scenario("splitfed", rounds=1, server={"compute": 1e6, "round_trip": 0.5}))
    for one, other in zip(quick.tasks, slow.tasks, strict=True):
        if one.type == "train":
            trips = 1 + 2 * -(-one.examples // 16)
            waited = other.device_seconds - one.device_seconds
            assert waited == pytest.approx(one.server_flops / 1e6 + trips * 0.5)


def test_splitfed_with_one_client_is_training_the_whole_model():
    """An independent computation: the unsplit model on the same batches, by PyTorch's SGD."""
    made = assemble(scenario("splitfed", rounds=1, clients__count=1, clients__per_round=1))
    whole = copy.deepcopy(made.strategy.module)
    whole.load_state_dict(made.strategy.state, strict=False)
    client = client_of(made)
    optimizer = torch.optim.SGD(whole.train().parameters(), lr=0.05, momentum=0.9)
    for step, chosen in enumerate(client.plan(1, client.data.train)):
        x, y = client.one_batch(1, step, chosen)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(whole(x), y).backward()
        optimizer.step()
    made.strategy.start(made.grid)
    for name, value in get_state(whole).items():
        assert torch.allclose(made.strategy.state[name], value, rtol=1e-4, atol=1e-6), name


def client_of(made: Any, number: int = 0) -> Any:
    from fedprune.client.site import Site

    site = Site(made.scenario, made.data)
    return site.client_class(site, number)


def test_sfprompt_trains_prompts_and_tail_alone():
    made = assemble(scenario("sfprompt"))
    before = dict(made.strategy.state)
    made.strategy.start(made.grid)
    moved = {name for name, value in made.strategy.state.items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith(("blocks.2", "norm", "head"))} | {
        "embedding.prompts"
    }
    sent = [m for m, _ in made.grid.exchanges if m.metadata.message_type == "train"]
    assert all(not name.startswith("blocks.0") for name in made.strategy.model.travelling.shapes)
    assert "frozen" in sent[0].content


def test_el2n_keeps_the_examples_of_which_the_shortcut_is_least_sure():
    from clients.sfprompt import el2n

    logits, labels = torch.randn(9, 4), torch.arange(9) % 4
    direct = [
        float(np.linalg.norm(np.exp(row) / np.exp(row).sum() - np.eye(4)[label]))
        for row, label in zip(logits.double().numpy(), labels, strict=True)
    ]
    assert el2n(logits, labels).tolist() == pytest.approx(direct, rel=1e-5)

    made = assemble(scenario("sfprompt", strategy={"name": "sfprompt", "local_epochs": 0, "prune": 0.3}))
    client = client_of(made)
    state = made.strategy.state
    client.part.load_state_dict({n: state[n] for n in Layout.of(client.part).shapes}, strict=False)
    kept = client.prepare(None).examples
    scores = client.scores(client.data.train)
    left_out = ~np.isin(client.data.train, kept)
    assert left_out.sum() == int(0.3 * len(client.data.train))
    assert scores[left_out].max() <= scores[~left_out].min()


def test_what_rounding_loses_is_reported():
    exact, rounded = (
        federate(scenario("sfprompt", rounds=1)),
        federate(scenario("sfprompt in int8", rounds=1)),
    )
    assert {task.smashed_error for task in exact.tasks if task.type == "train"} == {0.0}
    errors = [task.smashed_error for task in rounded.tasks if task.type == "train"]
    assert all(0 < error < 0.02 for error in errors)
    bytes_ = [sum(t.smashed_bytes_up for t in made.tasks) for made in (exact, rounded)]
    assert 2 < bytes_[0] / bytes_[1] < 4  # Messages of so few values have an envelope as large.


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_activations_come_back_within_their_precision(precision):
    values = torch.randn(5, 3, 4) * torch.tensor([1e-3, 1.0, 100.0, 0.0, 7.0])[:, None, None]
    back = unpack(pack(values, precision), precision, values.shape)
    step = {"float32": 0.0, "float16": 2**-11, "int8": 0.5 / 127}[precision]
    bound = values.abs().amax(dim=(1, 2), keepdim=True) * step * 1.001
    assert ((back - values).abs() <= bound).all()


@pytest.mark.parametrize("kind", ["train.split_backward", "train.split_forward"])
def test_a_client_that_vanishes_in_a_batch_is_freed_and_the_round_goes_on(kind, monkeypatch):
    alive: list[int] = []
    bodies = watched(monkeypatch)

    def vanishes(message: Message, reply: Message) -> Message:
        alive.append(sum(body._held is not None for body in bodies))
        if (message.metadata.message_type, message.metadata.dst_node_id) == (kind, first[0]):
            return Message(Error(CODES[Fault.GONE], "the device is gone"), reply_to=message)
        return reply

    asked = scenario("splitfed", rounds=1, clients__per_round=4)
    first = [2]
    made = federate(asked, tamper=vanishes)
    failed = [task for task in made.tasks if task.status == "failed"]
    assert [(task.client, task.fault, task.reason) for task in failed] == [(0, "gone", "the device is gone")]
    assert failed[0].smashed_bytes_up > 0
    assert made.rounds[1].clients_ok == 3
    assert max(alive) == 4
    gc.collect()
    assert not [body for body in bodies if body._held is not None]


def watched(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[Body]:
    """Return the bodies that there are, as they come and go."""
    bodies: weakref.WeakSet[Body] = weakref.WeakSet()
    begin = Body.__init__

    def noted(self, *arguments, **options):
        begin(self, *arguments, **options)
        bodies.add(self)

    monkeypatch.setattr(Body, "__init__", noted)
    return bodies


def test_a_server_holds_few_clients_at_once(monkeypatch):
    most, bodies = 0, watched(monkeypatch)

    def looks(message: Message, reply: Message) -> Message:
        nonlocal most
        most = max(most, sum(body._held is not None for body in bodies))
        return reply

    strategy = {"name": "splitfed", **ON_CNN, "at_once": 2}
    few = federate(scenario("splitfed", rounds=1, clients__per_round=4, strategy=strategy), tamper=looks)
    assert most == 2
    many = federate(scenario("splitfed", rounds=1, clients__per_round=4))
    assert same_state(few.strategy.state, many.strategy.state)


def test_a_device_that_forgot_its_round_fails_with_a_sentence():
    def forgets(message, context):
        if message.metadata.message_type == "train.split_backward" and message.metadata.dst_node_id == 2:
            context.state.clear()

    made = federate(scenario("splitfed", rounds=1, clients__per_round=4), before=forgets)
    (failed,) = [task for task in made.tasks if task.status == "failed"]
    assert "client 0 is in no round of split training" in failed.reason


def test_a_resumed_run_is_the_same(tmp_path: Path):
    asked = scenario("splitfed", rounds=3, engine__workers=1)
    host = InProcess()
    whole = run(asked, out=tmp_path / "whole", host=host, progress=False, figures=False)

    class Stop(Last):
        def on_task(self, task):
            if task.round == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(asked, out=tmp_path / "cut", host=host, progress=False, listeners=[Stop()])
    run(asked, out=tmp_path / "cut", host=host, progress=False, resume=True, figures=False)
    for name in ("rounds.jsonl", "clients.jsonl"):
        assert lines(tmp_path / "cut" / name) == lines(tmp_path / "whole" / name)
    assert whole.summary["server_flops"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": {"name": "splitfed", "density": 0.5}}, "split training prunes no weights"),
        ({"strategy": {"name": "splitfed", "version": 3}}, "strategy.version: 3 is none of 1, 2"),
        ({"strategy": {"name": "splitfed"}, **TESTED}, "no whole model to evaluate"),
        ({"strategy": {"name": "splitfed"}, "clients__over_budget": "nest"}, "can be error or exclude"),
        (
            {"strategy": {"name": "splitfed"}, "clients__training__proximal_mu": 0.1},
            "split training has no proximal term",
        ),
        (
            {"strategy": {"name": "sfprompt"}, "model": {**VIT, "frozen": ["norm"]}},
            "leave model.frozen and model.trainable out",
        ),
    ],
)
def test_what_has_no_place_in_split_training_is_refused(changes, said):
    with pytest.raises(ScenarioError, match=said):
        resolve(plan(**{"model": VIT, **changes}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": CNN, "strategy": {"name": "splitfed"}}, "has no stages 'blocks.0'"),
        ({"model": CNN, "strategy": {"name": "splitfed", **ON_CNN, "body": "blok2"}}, "no stage 'blok2'"),
        ({"model": CNN, "strategy": {"name": "sfprompt", **ON_CNN}}, "they do not fit together"),
        (
            {
                "model": VIT,
                "strategy": {"name": "sfprompt"},
                "clients__devices": [
                    {"name": "tiny", "memory": "9 KiB", "compute": 1e6, "downlink": 1e6, "uplink": 1e6}
                ],
            },
            "tiny",
        ),
    ],
)
def test_what_cannot_be_cut_or_held_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        federate(resolve(plan(**changes)))


def test_budgets_bind_on_head_and_tail_without_the_body():
    made, whole = federate(scenario("sfprompt", rounds=1)), federate(plan(model=VIT, rounds=1))
    assert isinstance(made.strategy, SplitStrategy)
    peak = max(task.peak_memory_bytes for task in made.tasks)
    assert peak < 0.7 * max(task.peak_memory_bytes for task in whole.tasks)
    cost = made.strategy.cost
    assert {p.name for p in cost.parameters} == {n for n, _ in made.strategy.local.named_parameters()}
    assert not any(parameter.name.startswith("blocks.0") for parameter in cost.parameters)
    assert cost.training_flops(Masks(), 1) < whole.strategy.cost.training_flops(Masks(), 1)


@pytest.mark.parametrize("method", ["sfprompt", "splitfed 2"])
def test_injected_faults_fail_their_tasks_alone(method, tmp_path: Path):
    faults = ("exception", "late", "corrupt", "not_finite", "wrong_shape", "huge")
    at = [{"round": number, "client": 0, "fault": fault} for number, fault in enumerate(faults, start=1)]
    asked = scenario(method, rounds=len(faults), clients__per_round=4, faults__at=at)
    run(asked, out=tmp_path / "run", host=InProcess(), progress=False, figures=False)
    failed = [task for task in lines(tmp_path / "run" / "clients.jsonl") if task["status"] != "ok"]
    assert [(task["client"], task["fault"]) for task in failed] == [(0, COUNTED_AS[name]) for name in faults]


class Largest(TorchDispatchMode):
    """The largest tensor with memory that is made inside, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not out.is_meta:
            self.elements = max(self.elements, out.numel())
        return out


def test_a_device_never_makes_the_body():
    model = {"name": "mlp", "hidden": [8, 3000, 3000, 8]}
    strategy = {"name": "splitfed", "body": "hidden2", "tail": "hidden4"}
    made = assemble(resolve(plan(model=model, strategy=strategy)))
    client = client_of(made)
    with Largest() as seen:
        held = client.build_model(made.scenario, made.strategy.task)
        client.part.run_head(torch.zeros(2, 1, 8, 8))
    assert Layout.of(held) == Layout.of(made.strategy.local)
    assert seen.elements == 8 * 3000  # Of the tail's first layer; the body's second has 9,000,000.


def lies(kind: str, change: Any) -> Any:
    """Return what changes client 0's replies to messages of a kind."""

    def tamper(message: Message, reply: Message) -> Message:
        metadata = message.metadata
        if (metadata.message_type, metadata.dst_node_id) == (kind, 2) and "smashed" in reply.content:
            change(reply.content)
        return reply

    return tamper


def other_values(make: Any) -> Any:
    def change(content: Any) -> None:
        values = content["smashed"]["values"].numpy()
        content["smashed"]["values"] = to_array(np.ascontiguousarray(make(values)))

    return change


def fewer_examples(content: Any) -> None:
    other_values(lambda values: values[:3])(content)
    content["metrics"]["examples"] = 3


FORWARD, BACKWARD = "train.split_forward", "train.split_backward"


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("train", other_values(lambda v: v[:, 1:]), "array 'values' has shape (16, 127)"),
        ("train", other_values(lambda v: v * np.nan), "not finite as they travel"),
        ("train", other_values(lambda v: v * 0 + 1e30), "values of the body that are not finite"),
        ("train", lambda c: c["metrics"].update(examples=10**15), "expected at most 16"),
        ("train", lambda c: c["metrics"].update(lost=-1.0), "'lost' is -1 of"),
        (BACKWARD, lambda c: c["metrics"].update(lost=1e9), "'lost' is 1e+09 of"),
        (BACKWARD, lambda c: c.pop("smashed"), "the message has no record 'smashed'"),
        (BACKWARD, fewer_examples, "array 'values' has shape (3, 64), expected (16, 64)"),
        (FORWARD, lambda c: c.pop("smashed"), "the message has no record 'smashed'"),
    ],
)
def test_a_client_that_lies_within_a_batch_fails_alone(kind, change, said):
    """In version 2, where what a client made of the body is there for the next one."""
    made = federate(scenario("splitfed 2", rounds=1, clients__per_round=4), tamper=lies(kind, change))
    (failed,) = [task for task in made.tasks if task.status == "failed"]
    assert failed.client == 0
    assert said in failed.reason
    assert made.rounds[1].clients_ok == 3
    assert all(value.isfinite().all() for value in made.strategy.state.values())
    assert failed.server_flops < sum(task.server_flops for task in made.tasks if task.status == "ok")
    json.dumps(failed.columns())


def test_a_client_that_never_ends_is_left():
    """It sends its last activations and gradients again, in the place of its last reply."""
    last: dict[str, Any] = {}
    asked = 0

    def goes_on(message: Message, reply: Message) -> Message:
        nonlocal asked
        if message.metadata.dst_node_id != 2:
            return reply
        asked += 1
        assert asked < 100
        if reply.has_content() and "smashed" in reply.content:
            last[message.metadata.message_type] = reply.content
            return reply
        if message.metadata.message_type not in last:
            return reply
        return Message(copy.deepcopy(last[message.metadata.message_type]), reply_to=message)

    made = federate(scenario("splitfed", rounds=1, clients__per_round=4), tamper=goes_on)
    (failed,) = [task for task in made.tasks if task.status == "failed"]
    assert "more batches than its examples make" in failed.reason


NETS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, input_shape, outputs, inplace: bool = False):
        super().__init__(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(inplace), nn.BatchNorm1d(8), nn.Linear(8, 8),
                         nn.ReLU(inplace), nn.Dropout(0.5), nn.Linear(8, outputs))
"""


def test_stages_may_work_in_place(tmp_path: Path):
    """The first ones of body and tail get tensors that nothing else reads."""
    (tmp_path / "nets.py").write_text(NETS)
    states = []
    for inplace in (False, True):
        model = {"name": "./nets.py:Net", "inplace": inplace}
        strategy = {"name": "splitfed", "body": "2", "tail": "5"}
        states.append(federate(resolve(plan(tmp_path, model=model, strategy=strategy))).strategy.state)
    assert same_state(*states)


def test_a_batch_that_the_body_does_not_take_fails_its_client_alone(tmp_path: Path):
    """A batch norm refuses to train on one value for each channel."""
    (tmp_path / "nets.py").write_text(NETS)
    changes = {"model": {"name": "./nets.py:Net"}, "strategy": {"name": "splitfed", "body": "2", "tail": "5"}}
    made = assemble(resolve(plan(tmp_path, **changes, rounds=1, clients__per_round=4)))

    def one(content: Any) -> None:
        other_values(lambda values: values[:1])(content)
        content["metrics"]["examples"] = 1

    made.grid._tamper = lies("train", one)
    made.strategy.start(made.grid)
    (failed,) = [task for task in made.tasks if task.status == "failed"]
    assert (failed.client, failed.fault) == (0, "raised")
    assert "in the body: ValueError: Expected more than 1 value per channel" in failed.reason
