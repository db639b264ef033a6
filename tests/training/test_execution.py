"""Execution of local training: what is chosen, that it computes the same, and that nothing dense is held."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from inprocess import SUBMODELS, copied, federate, plan
from masked import Watched, assert_sound, losing
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedprune import data as datasets
from fedprune import registry
from fedprune.client.site import Site
from fedprune.costs.flops import ModelCost
from fedprune.scenario import TrainingSpec
from fedprune.sparsity.execution import SparseConv2d
from fedprune.sparsity.masks import Masks
from fedprune.tasks import classification_of
from fedprune.training.execution import rule_of, sparse_model, why_not_sparse, with_memory, without_values
from fedprune.wire import Layout, StateCodec, get_state

GROWING = {"name": "fedtiny", "density": 0.1, "adjust_every": 1, "stop_adjusting_at": 2, "candidates": 2}
ADJUSTING = {"name": "feddst", "density": 0.1, "adjust_every": 1, "stop_adjusting_at": 2}
#: Strategies whose clients train on kept weights, with options by which a short run does all they can.
TRAINED_SPARSE = {
    "feddst": ADJUSTING,
    "fedrts": {"name": "fedrts", "density": 0.1, "adjust_every": 1},
    "salientgrads": {"name": "salientgrads", "density": 0.1},
    "flash": {"name": "flash", "density": 0.1, "sensing_epochs": 2},
    "dispfl": {"name": "dispfl", "density": 0.1},
    "fedspa": {"name": "fedspa", "density": 0.1, "swap_fraction": 0.0},
    "fedtiny": GROWING,
    "gradual": {"name": "gradual", "density": 0.1, "end": 2, "regrow": True},
    "lotteryfl": {"name": "lotteryfl", "density": 0.1, "accuracy_threshold": 0.0, "prune_step": 0.5},
    "prunefl": {"name": "prunefl", "density": 0.1, "adjust_every": 1},
    "static": {"name": "static", "density": 0.1},
    **{name: {"name": name, "shares": [0.5]} for name in SUBMODELS},
}
DENSE = {"fedavg", "fedmask", "fedmef", "fedpm", "hidenseek", "sfprompt", "splitfed", "feddip", "complement"}


def executed(execution, strategy, **changes):
    return plan(
        strategy=strategy,
        clients__training__execution=execution,
        data__client_test_fraction=0.2,
        evaluation__clients=True,
        **changes,
    )


def test_every_strategy_is_known_to_train_sparse_or_not():
    assert set(registry.names("strategy")) == {*TRAINED_SPARSE, *DENSE}


@pytest.mark.parametrize("strategy", TRAINED_SPARSE.values(), ids=TRAINED_SPARSE)
def test_a_round_agrees_with_the_dense_one(strategy):
    """In values, accuracy, masks, and to the byte in what it costs."""
    dense, sparse = (federate(executed(way, strategy, rounds=1)) for way in ("dense", "sparse"))
    assert sparse.strategy.masks == dense.strategy.masks
    for name, tensor in dense.strategy.state.items():
        torch.testing.assert_close(sparse.strategy.state[name], tensor, rtol=1e-3, atol=1e-5)
        if name in sparse.strategy.masks:
            assert not sparse.strategy.state[name][~sparse.strategy.masks[name]].any()
    for one, other in zip(dense.tasks, sparse.tasks, strict=True):
        assert replace(one, wall_seconds=0.0) == replace(other, wall_seconds=0.0)
    for one, other in zip(dense.rounds, sparse.rounds, strict=True):
        assert other.personal_scores["accuracy"] == pytest.approx(one.personal_scores["accuracy"], abs=0.03)
        assert other.client_scores["accuracy"] == pytest.approx(one.client_scores["accuracy"], abs=0.03)
    if strategy["name"] not in SUBMODELS:  # A smaller dense model may well round as the whole one does.
        assert not all(torch.equal(sparse.strategy.state[n], t) for n, t in dense.strategy.state.items())


@pytest.mark.parametrize("strategy", TRAINED_SPARSE.values(), ids=TRAINED_SPARSE)
def test_zeros_averages_and_bytes_are_right_where_a_reply_is_lost(strategy):
    if strategy is GROWING:
        strategy = {**GROWING, "selection": False}  # Of one query a client, whose bytes the check can tell.
    assert_sound(Watched(executed("sparse", strategy), tamper=losing(1, ("train",), (1,))), 2)


def test_replies_do_not_depend_on_what_a_site_did_before():
    """Copies are shared by all who use a mask, and made anew where there are too many masks."""
    scenario = executed("sparse", ADJUSTING)
    first = federate(scenario)
    again = federate(scenario)
    site = again.grid._app._find_site(None)
    for message, reply in again.grid.exchanges[::-1]:
        if message.metadata.message_type == "train" and message.metadata.group_id == "1":
            number = message.metadata.dst_node_id - 2
            client = site.client_class(site, number)
            content = client.handle(Message(copied(message.content), 2, "train", group_id="1"), RecordDict())
            assert content["arrays"] == reply.content["arrays"]
    states = first.strategy.state, again.strategy.state
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


class Dense(TorchDispatchMode):
    """Notes floating-point tensors with as many elements as one of some layers has weights."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes, self.found = sizes, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
                continue
            if value.is_floating_point() and value.numel() in self.sizes:
                self.found.append((str(func), tuple(value.shape)))
        return out


@pytest.mark.parametrize("strategy", [TRAINED_SPARSE["static"], GROWING, ADJUSTING], ids=lambda s: s["name"])
def test_a_client_holds_nothing_of_a_pruned_layers_size(strategy):
    """From the message that it gets to its reply: training, growth, a swap, statistics, evaluation."""
    model = {"name": "cnn", "width": 0.27, "hidden": 67}
    made = federate(executed("sparse", strategy, model=model))
    sizes = {mask.numel() for mask in made.strategy.masks.values()}
    app, kinds = made.grid._app, set()
    contexts = {}
    site = app._find_site(None)
    assert "module" not in vars(site)
    with Dense(sizes) as dense:
        torch.zeros(min(sizes))
        assert len(dense.found) == 1
        for message, _ in made.grid.exchanges:
            told = message.metadata
            node = told.dst_node_id
            context = contexts.setdefault(
                node, Context(1, node, {"partition-id": node - 2}, RecordDict(), {})
            )
            again = Message(copied(message.content), node, told.message_type, group_id=told.group_id)
            answer = app(again, context)
            assert not answer.has_error(), answer.error.reason
            kinds.add(told.message_type)
    assert kinds >= {"query.facts", "train", "evaluate"}
    assert dense.found[1:] == []
    assert "module" not in vars(site)


def test_values_move_between_masks_of_one_layout():
    layout = Layout.of(nn.Linear(6, 5))
    old, new = (StateCodec(layout, Masks({"weight": torch.rand(5, 6) < 0.4})) for _ in range(2))
    values = torch.randn(old.size)
    expected = new.flatten(old.unflatten(values))
    assert torch.equal(new.taken_over(values, old), expected)
    empty = StateCodec(layout, Masks({"weight": torch.zeros(5, 6, dtype=torch.bool)}))
    assert torch.equal(new.taken_over(values[-5:], empty)[-5:], values[-5:])
    assert not new.taken_over(values[-5:], empty)[:-5].any()


class Tied(nn.Module):
    """Two names of one parameter, and a tensor that is no part of the state."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.own = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.register_buffer("scale", torch.full((4,), 3.0), persistent=False)

    def forward(self, x):
        return self.own(self.two(self.one(x)) * self.scale)


def test_a_model_is_made_sparse_without_its_values_and_keeps_what_is_no_part_of_them():
    dense = Tied()
    masks = Masks({"own.weight": torch.eye(4, dtype=torch.bool)})
    skeleton = without_values(dense)
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    assert skeleton.scale.tolist() == [3.0] * 4
    assert skeleton.two.weight is skeleton.one.weight
    filled = with_memory(skeleton)
    assert filled.two.weight is filled.one.weight
    assert not any(parameter.any() for parameter in filled.parameters())
    rule = rule_of(TrainingSpec(execution="sparse"), ModelCost.of(dense, (4,)))
    model = sparse_model(skeleton, masks, rule, classification_of((4,)))
    assert isinstance(model.module.own, SparseConv2d)
    codec = StateCodec(Layout.of(dense), masks)
    model.load(codec.flatten(get_state(dense)))
    with torch.no_grad():
        dense.own.weight *= masks["own.weight"]
        torch.testing.assert_close(model.module(torch.eye(4)), dense(torch.eye(4)))
    assert torch.equal(model.values(), codec.flatten(get_state(dense)))
    assert torch.equal(model.kept("own.weight"), dense.own.weight.diagonal())


class Viewing(nn.Module):
    """Views a batch as one row, which takes memory in which an example's values lie side by side."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.conv(x).view(-1).view(-1, 16))


def test_a_model_that_cannot_work_with_sparse_layers_is_executed_dense(caplog):
    dense = Viewing()
    masks = Masks({"conv.weight": torch.ones(4, 1, 3, 3, dtype=torch.bool)})
    rule = rule_of(TrainingSpec(execution="sparse"), ModelCost.of(dense, (1, 4, 4)))
    assert sparse_model(without_values(dense), masks, rule, classification_of((1, 4, 4))) is None
    assert "`reshape` does what `view` cannot" in caplog.text


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


class Reading(Plain):
    def forward(self, x):
        return self.head(self.conv(x).reshape(-1, self.head.in_features))


class Hooked(Plain):
    def __init__(self):
        super().__init__()
        self.conv.register_forward_hook(lambda module, given, made: made.abs())


class Closed(Plain):
    def __init__(self):
        super().__init__()
        self.block = lambda x: self.conv(x)

    def forward(self, x):
        return self.head(self.block(x).flatten(1))


class Scaled(Plain):
    def forward(self, x):
        return super().forward(x) / self.head.weight.std()


@pytest.mark.parametrize("kind", [Plain, Reading, Hooked, Closed, Scaled])
@pytest.mark.parametrize("seed", range(20))
def test_a_model_that_would_compute_something_else_is_executed_dense(kind, seed):
    torch.manual_seed(seed)
    fault = why_not_sparse(without_values(kind()), kind(), classification_of((1, 4, 4)))
    assert (fault is None) == (kind is Plain), fault


def test_without_masks_without_a_rule_or_off_the_cpu_all_is_dense(monkeypatch):
    def site(execution, device="cpu"):
        scenario = plan(clients__training__execution=execution)
        return Site(scenario, datasets.load(scenario), torch.device(device))

    shape = site("dense").module.get_parameter("hidden.linear.weight").shape
    masks = Masks({"hidden.linear.weight": torch.zeros(shape, dtype=torch.bool)})
    assert site("dense").sparse(masks) is None
    assert site("sparse").sparse(Masks()) is None
    assert site("sparse", "meta").sparse(masks) is None
    assert site("sparse").sparse(masks) is not None
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert site("auto").sparse(masks) is None
