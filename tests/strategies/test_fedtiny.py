"""FedTiny: selection against a direct computation, adjustments against RigL's rule, both in the ledger."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from inprocess import assemble, copied, federate, plan, same_state
from torch.nn import functional

import fedprune
from fedprune.clients import sparse
from fedprune.costs.memory import forward_memory
from fedprune.data import batches
from fedprune.errors import RunError, UserError
from fedprune.protocol.faults import CODES, Fault
from fedprune.server.check import check
from fedprune.sparsity.distributions import rescale
from fedprune.sparsity.masks import Masks
from fedprune.sparsity.pruning import prunable
from fedprune.wire import get_state, mask_bytes

TINY = {"name": "fedtiny", "density": 0.2, "pretrain_epochs": 0}
MOVING = {**TINY, "selection": False, "adjust_every": 1, "stop_adjusting_at": 6, "swap_fraction": 0.5}
SELECTING = {**TINY, "adjust": False, "candidates": 3}
FEDADAM = {"name": "flwr.serverapp.strategy.FedAdam", "eta": 0.01}
LAYERS = ["block2.conv.weight", "hidden.linear.weight"]
"""What is pruned of the model here: one layer in each of two blocks."""


def kind_of(message):
    return message.metadata.message_type


def exchanged(made, kind):
    return [pair for pair in made.grid.exchanges if kind_of(pair[0]) == kind]


def tasks_of(made, kind):
    return [task for task in made.tasks if task.type == kind]


def prepared(**options):
    """A federation that has met its clients and chosen its masks, and not trained."""
    made = assemble(plan(**{"strategy": TINY, "clients__per_round": 4, **options.pop("plan", {})}), **options)
    made.strategy.roll_call.open(made.grid)
    made.strategy.prepare(made.grid)
    return made


def refusing(kind, node, reason="out of battery", after=0):
    """Return a tamper by which a node fails at a kind of message, from the so-manieth one on."""
    count = iter(range(10**6))

    def tamper(message, reply):
        if (kind_of(message), message.metadata.dst_node_id) == (kind, node) and next(count) >= after:
            return Message(Error(ErrorCode.UNKNOWN, reason), reply_to=message)
        return reply

    return tamper


def module_with(made, state):
    module = copy.deepcopy(made.strategy.module)
    module.load_state_dict(state, strict=False)
    return module


def examples_of(made, indices):
    (batch,) = batches(made.data.train, indices, made.strategy.task, len(indices))
    return batch


# Selection -------------------------------------------------------------------------------------


def norm_inputs(module, parts):
    """All that goes into each batch norm in training mode, part by part; float64 (values, channels)."""
    module, seen = copy.deepcopy(module).train(), {}

    def note(name, x):
        seen.setdefault(name, []).append(x.detach().double().movedim(1, -1).flatten(0, 2))

    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda _, given, name=name: note(name, *given))
    for x in parts:
        module(x)
    return {name: torch.cat(values) for name, values in seen.items()}


def direct_candidates(made, dense, pool, pool_variance):
    """Statistics and loss of each candidate, computed on all clients' examples in one place."""
    clients = [examples_of(made, made.data.client_train.of(number)) for number in range(4)]
    found = []
    for masks in pool:
        module = module_with(made, {**dense, **{name: dense[name] * mask for name, mask in masks.items()}})
        seen = [norm_inputs(module, x.tensor_split(-(-len(x) // 16))) for x, _ in clients]
        statistics = {}
        for name in seen[0]:
            together = torch.cat([inputs[name] for inputs in seen])
            variance = together.var(dim=0, unbiased=False)
            if not pool_variance:
                variances = torch.stack([inputs[name].var(dim=0, unbiased=False) for inputs in seen])
                shares = torch.tensor([len(y) for _, y in clients], dtype=torch.float64)
                variance = shares / shares.sum() @ variances
            statistics |= {f"{name}.running_mean": together.mean(dim=0), f"{name}.running_var": variance}
        module.load_state_dict(statistics, strict=False)
        x, y = (torch.cat(parts) for parts in zip(*clients, strict=True))
        with torch.no_grad():
            loss = functional.cross_entropy(module.eval()(x), y).item()
        found.append((loss, statistics))
    return found


@pytest.mark.parametrize("pool_variance", [True, False], ids=["pooled", "averaged"])
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_the_candidate_of_smallest_loss_on_the_pooled_clients_is_taken(seed, pool_variance):
    strategy = {
        **TINY,
        "candidates": 5,
        "pool_variance": pool_variance,
        "bases": [["random", "erk"]],
        "noise": {"amount": 0.9},
    }
    made = assemble(plan(strategy=strategy, seed=seed))
    dense, pool, losses = made.strategy.state, made.strategy.candidates(), []
    measure = made.strategy.loss_of_candidate
    made.strategy.loss_of_candidate = lambda grid: losses.append(measure(grid)) or losses[-1]
    made.strategy.roll_call.open(made.grid)
    made.strategy.prepare(made.grid)
    expected = direct_candidates(made, dense, pool, pool_variance)
    assert losses == pytest.approx([loss for loss, _ in expected], rel=1e-4)
    best = int(np.argmin([loss for loss, _ in expected]))
    assert made.strategy.masks == pool[best]
    for name, tensor in made.strategy.state.items():
        if name in expected[best][1]:
            statistic = expected[best][1][name].float()
            torch.testing.assert_close(tensor, statistic, rtol=1e-4, atol=1e-5)
        else:
            mask = pool[best].get(name, torch.ones(()))
            assert torch.equal(tensor, dense[name] * mask)
    assert len({masks.version for masks in pool}) == 5


def test_the_two_ways_to_combine_variances_differ():
    def variances(pool_variance):
        made = prepared(plan={"strategy": {**SELECTING, "candidates": 1, "pool_variance": pool_variance}})
        return made.strategy.state["block1.norm.running_var"]

    assert (variances(True) > variances(False)).all()


def statistics_of(content):
    return content["statistics"]["values"].numpy().astype(np.float64)


@pytest.mark.parametrize("examples", [1, 7, 1000])
def test_clients_measure_on_so_many_examples_and_count_with_all(examples):
    strategy = {**SELECTING, "candidates": 1, "calibration_examples": examples, "pool_variance": False}
    made = prepared(plan={"strategy": strategy})
    held = [len(made.data.client_train.of(number)) for number in range(4)]
    measured = [reply.content for _, reply in exchanged(made, "query.bn_statistics")]
    assert [content["metrics"]["num-examples"] for content in measured] == [min(examples, n) for n in held]
    assert [reply.content["metrics"]["num-examples"] for _, reply in exchanged(made, "query.loss")] == held
    mean = sum(n * statistics_of(content) for n, content in zip(held, measured, strict=True)) / sum(held)
    for message, _ in exchanged(made, "query.loss"):
        np.testing.assert_allclose(statistics_of(message.content), mean, rtol=1e-5, atol=1e-6)


def test_statistics_cover_every_example_whatever_the_batch_size():
    """The first batch norm sees the same values however they are cut into batches."""
    for size in (1, 3, 39):
        changes = {"data__partition": {"scheme": "iid"}, "clients__training__batch_size": size}
        made = prepared(plan={"strategy": {**SELECTING, "candidates": 1}, **changes})
        module = module_with(made, made.strategy.state)
        for number, (_, reply) in enumerate(exchanged(made, "query.bn_statistics")):
            x, _ = examples_of(made, made.data.client_train.of(number))
            assert len(x) == 40
            values = norm_inputs(module, [x])["block1.norm"].numpy()
            expected = np.concatenate([values.mean(axis=0), values.var(axis=0)])
            found = statistics_of(reply.content)[: len(expected)]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_selection_is_round_0_of_the_ledger():
    made = federate(plan(strategy=SELECTING, rounds=1))
    strategy, held = made.strategy, [len(made.data.client_train.of(number)) for number in range(4)]
    asked = [task for task in made.tasks if task.type.startswith("query.") and task.type != "query.facts"]
    kinds = (["query.bn_statistics"] * 4 + ["query.loss"] * 4) * 3
    assert [task.type for task in asked] == kinds
    assert [task.client for task in asked] == [0, 1, 2, 3] * 6
    assert {task.round for task in asked} == {0}
    assert {task.status for task in asked} == {"ok"}
    versions = [message.content["config"]["mask-version"] for message, _ in made.grid.exchanges[4:28]]
    assert versions == [version for version in dict.fromkeys(versions) for _ in range(8)]
    pool = {masks.version: masks for masks in assemble(plan(strategy=SELECTING)).strategy.candidates()}
    for task, version in zip(asked, versions, strict=True):
        assert task.flops == strategy.cost.forward_flops(pool[version], held[task.client])
        examples = held[task.client]
        size = 16  # of a training batch: a query never needs the memory of a training step
        batch = min(examples, size) if task.type == "query.loss" else -(-examples // -(-examples // size))
        assert task.peak_memory_bytes == forward_memory(strategy.cost, pool[version], batch).total
        values = 4 * strategy.codec.size if task.type == "query.bn_statistics" else 0
        assert values < task.bytes_down - task.mask_bytes_down < values + 2048 + statistics_bytes(made)
        assert 0 < task.bytes_up < 2048 + statistics_bytes(made)
        assert (task.mask_bytes_down > 0) == (task.type == "query.bn_statistics")
    record = made.rounds[0]
    assert record.flops == sum(task.flops for task in asked)
    assert record.bytes_down == sum(task.bytes_down for task in made.tasks if task.round == 0)
    assert record.device_seconds > 0


def statistics_bytes(made):
    return 4 * sum(tensor.numel() for name, tensor in made.strategy.state.items() if "running" in name)


def test_a_device_holds_one_candidate_at_a_time_and_none_once_it_trains():
    held = []

    def before(message, context):
        held.append((kind_of(message), context))

    def tamper(message, reply):
        kind, context = held[-1]
        values = [name for name in context.state if name != "mask"]
        assert values == (["candidate"] if kind.startswith("query.") and kind != "query.facts" else [])
        if values:
            size = made.strategy.codec.size
            assert context.state["candidate"]["values"].numpy().shape == (size,)
            assert context.state["mask"]["version"] == message.content["config"]["mask-version"]
        return reply

    made = assemble(plan(strategy=SELECTING, rounds=1, clients__per_round=4), before=before, tamper=tamper)
    made.strategy.start(made.grid)
    assert len(held) == 4 + 3 * 8 + 4


def asked_directly(made, change=lambda content: content):
    """The reply of client 0 to the last query.loss of the selection, or to what is changed of it."""
    content = change(copied(exchanged(made, "query.loss")[11][0].content))
    (reply,) = made.grid.send_and_receive([made.strategy.exchange.message(0, content, "query.loss", 0)])
    return reply


def test_a_loss_without_its_candidate_is_refused():
    made = prepared(plan={"strategy": SELECTING})
    assert not asked_directly(made).has_error()
    unpooled = asked_directly(made, lambda content: RecordDict({"config": content["config"]}))
    assert "no batch-norm statistics" in unpooled.error.reason
    context = made.grid.contexts[2]
    other = context.state["mask"]["version"]
    context.state["mask"]["version"] = "0" * 16
    assert asked_directly(made).error.code == CODES[Fault.UNKNOWN_MASK]
    context.state["mask"]["version"] = other
    del context.state["candidate"]
    assert "holds no candidate" in asked_directly(made).error.reason


def test_a_new_candidate_replaces_the_old_one_even_where_measuring_fails():
    made = prepared(plan={"strategy": SELECTING})
    assert not asked_directly(made).has_error()
    content = copied(exchanged(made, "query.bn_statistics")[8][0].content)
    content["config"]["examples"] = 0
    message = made.strategy.exchange.message(0, content, "query.bn_statistics", 0)
    (reply,) = made.grid.send_and_receive([message])
    assert "examples" in reply.error.reason
    assert asked_directly(made).error.code == CODES[Fault.UNKNOWN_MASK]
    assert "holds no candidate" in asked_directly(made).error.reason


def hand_losses(made, left_out=()):
    """Mean loss per candidate, by |D_k|, over what arrived."""
    sums = {}
    for message, reply in exchanged(made, "query.loss"):
        if reply is None or reply.has_error():
            continue
        number = message.metadata.dst_node_id - 2
        examples = len(made.data.client_train.of(number))
        total = sums.setdefault(message.content["config"]["mask-version"], [0.0, 0])
        total[0] += examples * reply.content["metrics"]["loss"]
        total[1] += examples
    return {version: loss / examples for version, (loss, examples) in sums.items()}


def test_a_client_that_drops_out_in_between_counts_in_neither_sum():
    """It fails from the second candidate's loss on: there the others' shares add up to 1."""
    made = assemble(plan(strategy=SELECTING), tamper=refusing("query.loss", 3, after=1))
    losses = []
    measure = made.strategy.loss_of_candidate
    made.strategy.loss_of_candidate = lambda grid: losses.append(measure(grid)) or losses[-1]
    made.strategy.roll_call.open(made.grid)
    made.strategy.prepare(made.grid)
    by_hand = hand_losses(made)
    assert losses == pytest.approx(list(by_hand.values()))
    assert made.strategy.masks.version == min(by_hand, key=by_hand.get)
    failed = [task for task in made.tasks if task.status == "failed"]
    assert [(t.type, t.client, t.reason) for t in failed] == [("query.loss", 1, "out of battery")] * 2


def test_a_client_that_never_answers_is_not_asked_for_a_loss():
    """As if it were not there: its statistics and its loss are in no sum."""
    made = prepared(plan={"strategy": SELECTING}, tamper=refusing("query.bn_statistics", 3))
    others = prepared(plan={"strategy": SELECTING, "engine__timeout": 0.1}, numbers=[0, 2, 3])
    assert same_state(made.strategy.state, others.strategy.state)
    assert made.strategy.masks == others.strategy.masks
    assert {task.client for task in tasks_of(made, "query.loss")} == {0, 2, 3}
    assert len([task for task in made.tasks if task.status == "failed"]) == 3


def test_a_client_that_forgets_in_between_is_one_that_drops_out():
    def before(message, context):
        if kind_of(message) == "query.loss" and message.metadata.dst_node_id == 3:
            context.state.clear()

    made = prepared(plan={"strategy": SELECTING}, before=before)
    dropped = prepared(plan={"strategy": SELECTING}, tamper=refusing("query.loss", 3))
    assert same_state(made.strategy.state, dropped.strategy.state)
    failed = [task for task in made.tasks if task.status == "failed"]
    assert len(failed) == 3
    assert all("holds no candidate" in task.reason for task in failed)


@pytest.mark.parametrize("kind", ["query.bn_statistics", "query.loss"])
def test_without_any_loss_there_is_no_run(kind):
    def tamper(message, reply):
        return Message(Error(1, "out of battery"), reply_to=message) if kind_of(message) == kind else reply

    with pytest.raises(RunError, match=r"no client told the loss of any candidate: 12 x out of battery"):
        federate(plan(strategy=SELECTING), tamper=tamper)


def with_statistics(change):
    def replace_statistics(content):
        values = change(content["statistics"]["values"].numpy().copy())
        return RecordDict({**content, "statistics": ArrayRecord({"values": Array(values)})})

    return replace_statistics


def with_entry(place, value):
    def change(values):
        values[place] = value
        return values

    return change


STATISTICS = {
    "too few": with_statistics(lambda values: values[:-1]),
    "too many": with_statistics(lambda values: np.append(values, np.float32(1))),
    "NaN": with_statistics(with_entry(0, np.nan)),
    "infinite": with_statistics(with_entry(-1, np.inf)),
    "negative variance": with_statistics(with_entry(-1, -1.0)),
    "float64": with_statistics(lambda values: values.astype(np.float64)),
    "none": lambda content: RecordDict({"metrics": content["metrics"]}),
    "nothing": lambda content: RecordDict(),
}
LOSSES = {
    "none": lambda content: RecordDict(),
    "NaN": lambda content: changed_loss(content, float("nan")),
    "text": lambda content: changed_loss(content, [1.0]),
}


def changed_loss(content, loss):
    content["metrics"]["loss"] = loss
    return content


def faulty(kind, node, change):
    def tamper(message, reply):
        if (kind_of(message), message.metadata.dst_node_id) == (kind, node):
            return Message(change(reply.content), reply_to=message)
        return reply

    return tamper


@pytest.fixture(scope="module")
def without_client_1():
    """Selections in which client 1 fails at a kind of query."""
    return {
        kind: prepared(plan={"strategy": SELECTING}, tamper=refusing(kind, 3))
        for kind in ("query.bn_statistics", "query.loss")
    }


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        *(
            pytest.param("query.bn_statistics", fault, id=f"statistics {n}")
            for n, fault in STATISTICS.items()
        ),
        *(pytest.param("query.loss", fault, id=f"loss {name}") for name, fault in LOSSES.items()),
    ],
)
def test_a_faulty_answer_is_as_if_it_were_absent(kind, fault, without_client_1):
    made = prepared(plan={"strategy": SELECTING}, tamper=faulty(kind, 3, fault))
    assert made.strategy.masks == without_client_1[kind].strategy.masks
    assert same_state(made.strategy.state, without_client_1[kind].strategy.state)
    failed = [task for task in made.tasks if task.status == "failed"]
    assert [(task.type, task.client) for task in failed] == [(kind, 1)] * 3
    (reason,) = {task.reason for task in failed}
    assert reason.startswith("WireError: ")


# Candidates ------------------------------------------------------------------------------------


def pool_of(**options):
    made = assemble(plan(strategy={**TINY, **options}))
    return made, made.strategy.candidates()


@pytest.mark.parametrize(("density", "count"), [(0.2, 2), (0.05, 2), (0.02, 5), (0.01, 10), (1.0, 2)])
def test_a_tenth_of_the_inverse_density_is_the_size_of_the_pool(density, count):
    assert len(pool_of(density=density)[1]) == count
    assert len(pool_of(density=density, candidates=4)[1]) == 4


BASES = [["magnitude", "uniform"], ["magnitude", "erk"], ["magnitude", "global"], ["synflow", "global"]]


@pytest.mark.parametrize("noise", [{"amount": 1.0}, {"family": "lognormal", "amount": 1.0}], ids=str)
@pytest.mark.parametrize("density", [0.002, 0.9, 1.0])
def test_every_candidate_keeps_the_density(noise, density):
    made, pool = pool_of(density=density, bases=BASES, noise=noise, candidates=8)
    for masks in pool:
        assert list(masks) == LAYERS
        assert abs(sum(masks.kept.values()) - density * masks.total) <= len(masks)
        assert all(1 <= kept <= masks[name].numel() for name, kept in masks.kept.items())
    for masks in (pool[number] for number in range(8) if number % 4 < 3):  # by magnitude
        for name, mask in masks.items():
            weight = made.strategy.state[name].abs()
            if not mask.all():
                assert weight[mask].min() >= weight[~mask].max()


def test_each_base_comes_first_as_it_is():
    made, pool = pool_of(bases=BASES, candidates=10)
    for number, (criterion, distribution) in enumerate(BASES):
        spec = {"name": "static", "density": 0.2, "criterion": criterion, "distribution": distribution}
        static = assemble(plan(strategy=spec))
        static.strategy.prepare(static.grid)
        assert pool[number] == static.strategy.masks
    assert len({masks.version for masks in pool}) == 10
    assert [masks.version for masks in pool] == [
        masks.version for masks in pool_of(bases=BASES, candidates=10)[1]
    ]
    assert len(made.strategy.candidates()) == 10


@pytest.mark.parametrize("base", BASES, ids=str)
@pytest.mark.parametrize("family", ["uniform", "lognormal"])
def test_a_candidate_differs_from_its_base_by_the_noise_alone(base, family):
    """Its layers have the densities of the base times a factor, rescaled; also where pruning is iterative."""
    made, pool = pool_of(bases=[base], candidates=3, noise={"family": family, "amount": 0.5})
    drawn = []
    noise = made.strategy.options.noise
    object.__setattr__(
        noise, "factors", lambda g, n: drawn.append(type(noise).factors(noise, g, n)) or drawn[-1]
    )
    assert made.strategy.candidates() == pool
    shapes = {name: mask.shape for name, mask in pool[0].items()}
    assert len(drawn) == 2
    for masks, factors in zip(pool[1:], drawn, strict=True):
        scaled = {n: d * f for (n, d), f in zip(pool[0].densities().items(), factors, strict=True)}
        for name, density in rescale(scaled, shapes, 0.2).items():
            assert masks.kept[name] == pytest.approx(density * masks[name].numel(), abs=1)


def test_without_noise_every_candidate_is_its_base():
    _, pool = pool_of(bases=BASES[:3], candidates=7, noise={"amount": 0})
    assert [masks.version for masks in pool] == [pool[number % 3].version for number in range(7)]


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_the_noise_is_of_its_family(amount):
    noise = type(assemble(plan(strategy=TINY)).strategy.options.noise)
    generator = np.random.default_rng(0)
    flat = noise(family="uniform", amount=amount).factors(generator, 20_000)
    assert flat.mean() == pytest.approx(1, abs=0.02)
    assert flat.std() == pytest.approx(amount / math.sqrt(3), abs=0.01)
    assert flat.min() > 0
    assert flat.min() >= 1 - amount
    assert flat.max() <= 1 + amount
    logs = np.log(noise(family="lognormal", amount=amount).factors(generator, 20_000))
    assert logs.mean() == pytest.approx(0, abs=0.03)
    assert logs.std() == pytest.approx(amount, abs=0.03)


# Options ---------------------------------------------------------------------------------------


def test_without_both_modules_it_is_static_pruning():
    strategy = {**TINY, "selection": False, "adjust": False}
    made = federate(plan(strategy=strategy))
    static = {"name": "static", "density": 0.2, "criterion": "magnitude", "distribution": "uniform"}
    assert same_state(made.strategy.state, federate(plan(strategy=static)).strategy.state)
    assert {task.type for task in made.tasks} == {"query.facts", "train"}
    assert not any("growth" in reply.content for _, reply in made.trained())


def test_selection_alone_does_not_move_the_mask():
    made = federate(plan(strategy={**SELECTING, "adjust_every": 1}))
    assert len({tuple(record.layer_densities.items()) for record in made.rounds}) == 1
    masks = {message.content["config"]["mask-version"] for message, _ in exchanged(made, "train")}
    assert masks == {made.strategy.masks.version}


def test_without_pretraining_it_starts_from_the_initial_weights():
    made = prepared(plan={"strategy": {**TINY, "selection": False}})
    initial = assemble(plan(strategy=TINY)).strategy.state
    expected = {name: t * made.strategy.masks.get(name, torch.ones(())) for name, t in initial.items()}
    assert same_state(made.strategy.state, expected)


def test_pretraining_that_diverges_ends_the_run_with_a_reason():
    optimizer = {"name": "sgd", "lr": 1e30}
    with pytest.raises(RunError, match="pretraining diverged"):
        federate(plan(strategy={**TINY, "pretrain_epochs": 1}, clients__training__optimizer=optimizer))


def test_pretraining_sees_public_data_alone_and_all_of_it():
    def state(epochs, blanked):
        strategy = {**TINY, "selection": False, "pretrain_epochs": epochs}
        made = assemble(plan(strategy=strategy))
        pixels = made.data.train.inputs.copy()
        pixels[blanked(made)] = 0
        object.__setattr__(made.data.train, "inputs", pixels)
        if epochs:
            made.strategy.pretrain(epochs)
        return made.strategy.state

    def none(made):
        return []

    def private(made):
        return np.concatenate([made.data.client_train.of(number) for number in range(4)])

    def one_public(made):
        return made.data.server[:1]

    assert same_state(state(1, none), state(1, private))
    assert not same_state(state(1, none), state(1, one_public))
    assert not same_state(state(1, none), state(2, none))
    assert not same_state(state(1, none), state(0, none))


@pytest.mark.parametrize(
    ("options", "changes", "match"),
    [
        ({"pretrain_epochs": 1}, {"data__server_fraction": 0.0}, "pretraining needs public data"),
        ({"bases": [["snip", "erk"]]}, {"data__server_fraction": 0.0}, "snip needs data on the server"),
        ({"bases": [["magnitud", "erk"]]}, {}, "magnitude"),
        ({"bases": [["magnitude", "ekr"]]}, {}, "erk"),
        ({"bases": []}, {}, "bases"),
        ({"bases": [["magnitude"]]}, {}, "bases"),
        ({"noise": {"amount": 2}}, {}, "amount"),
        ({"candidates": 0}, {}, "candidates"),
        ({"swap_fraction": 0.6}, {}, "swap_fraction"),
        ({"granularity": "stage"}, {}, "granularity"),
        ({"density": 0}, {}, "density"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options, changes, match):
    with pytest.raises(UserError, match=match):
        check(plan(strategy={**TINY, **options}, **changes))


@pytest.mark.parametrize(
    ("keep", "names"), [(["first"], [*LAYERS, "head.weight"]), (["block*", "head"], LAYERS[1:])]
)
def test_what_is_kept_is_dense(keep, names):
    assert list(prepared(plan={"strategy": {**SELECTING, "keep": keep}}).strategy.masks) == names


# Adjustments -----------------------------------------------------------------------------------


def asked(made, rounds):
    """The layers and counts that growth looks at in each of these rounds."""
    requests = {number: made.strategy.growth(number) for number in rounds}
    return {number: dict(request.counts) for number, request in requests.items() if request}


def masked(strategy, share=0.2, **changes):
    """A federation whose masks keep a share of each layer at random; nothing is run."""
    made = assemble(plan(strategy={**TINY, **strategy}, **changes))
    generator = torch.Generator().manual_seed(0)
    module = made.strategy.module
    names = prunable(module)
    shapes = {name: module.get_parameter(name).shape for name in names}
    made.strategy.set_masks(Masks({n: torch.rand(s, generator=generator) < share for n, s in shapes.items()}))
    return made


@pytest.mark.parametrize("fraction", [0.15, 0.5])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_the_number_to_swap_falls_along_a_cosine(fraction, share):
    """a_l(t) = floor(fraction (1 + cos(pi t / T)) n_l), at most what is pruned; none at T or later."""
    options = {"granularity": "model", "adjust_every": 5, "stop_adjusting_at": 40, "swap_fraction": fraction}
    made = masked(options, share)
    found = asked(made, range(1, 61))
    assert list(found) == [5, 10, 15, 20, 25, 30, 35]
    cosines = [0.92387953, 0.70710678, 0.38268343, 0, -0.38268343, -0.70710678, -0.92387953]
    for counts, cosine in zip(found.values(), cosines, strict=True):
        assert list(counts) == LAYERS
        for name, count in counts.items():
            kept = int(made.strategy.masks[name].sum())
            pruned = made.strategy.masks[name].numel() - kept
            assert count == min(int(fraction * (1 + cosine) * kept), kept, pruned)


def test_nothing_is_asked_where_nothing_can_be_swapped():
    assert asked(masked({"adjust_every": 1}, share=1.0), range(1, 99)) == {}
    assert asked(masked({"adjust_every": 1, "adjust": False}), range(1, 99)) == {}
    assert asked(masked({"adjust_every": 9, "stop_adjusting_at": 8}), range(1, 99)) == {}


STAGES = [
    [f"stage{s}.unit{u}.conv.weight" for u in units]
    for s, units in ((2, [1]), (3, [1, 2]), (4, [1, 2]), (5, [1, 2]))
]


@pytest.mark.parametrize(
    ("granularity", "groups"),
    [
        ("block", STAGES),
        ("layer", [[n] for stage in STAGES for n in stage]),
        ("model", [[n for stage in STAGES for n in stage]]),
    ],
)
@pytest.mark.parametrize("order", ["backward", "forward"])
def test_adjustments_go_through_the_model_and_start_over(granularity, groups, order):
    options = {"granularity": granularity, "order": order, "adjust_every": 3, "stop_adjusting_at": 1000}
    made = masked(options, model={"name": "vgg11", "width": 0.125})
    found = [list(counts) for counts in asked(made, range(1, 61)).values()]
    assert len(found) == 20
    sequence = groups[::-1] if order == "backward" else groups
    assert found == [sequence[number % len(groups)] for number in range(20)]


def test_adjustments_are_backward_by_blocks_where_nothing_is_said():
    made = masked({"adjust_every": 1})
    assert [list(counts) for counts in asked(made, range(1, 4)).values()] == [
        LAYERS[1:],
        LAYERS[:1],
        LAYERS[1:],
    ]


class Watched:
    """A run of which it is known what clients held and how the masks moved."""

    def __init__(self, scenario, **options):
        self.made = made = assemble(scenario, **options)
        self.device, self.swaps, sites = [], [], []
        inner, inner_tamper = made.grid._app._find_site, made.grid._tamper
        made.grid._app._find_site = lambda context: sites.append(inner(context)) or sites[-1]
        move = made.strategy.update_masks

        def tamper(message, reply):
            if kind_of(message) == "train":
                state = {k: v.clone() for k, v in sites[-1].module.state_dict().items()}
                self.device.append((made.strategy.masks, state))
            return inner_tamper(message, reply) if inner_tamper else reply

        def update_masks(server_round):
            before, state = made.strategy.masks, dict(made.strategy.state)
            move(server_round)
            self.swaps.append((before, made.strategy.masks, state, made.strategy.request))

        made.grid._tamper, made.strategy.update_masks = tamper, update_masks
        made.strategy.start(made.grid)


@pytest.mark.parametrize("aggregator", [None, FEDADAM], ids=["mean", "FedAdam"])
@pytest.mark.parametrize("granularity", ["block", "model"])
def test_adjustments_keep_every_count_and_pruned_weights_are_zero(granularity, aggregator):
    strategy = {**MOVING, "selection": True, "granularity": granularity, "aggregator": aggregator}
    run = Watched(plan(strategy=strategy, rounds=5))
    made, kept = run.made, run.swaps[0][0].kept
    seen = set()
    for before, after, _, request in run.swaps:
        assert after.kept == before.kept == kept
        assert {name for name in LAYERS if not torch.equal(before[name], after[name])} == set(request.counts)
        seen |= set(request.counts)
    assert seen == set(LAYERS)
    assert {record.density for record in made.rounds} == {made.strategy.masks.density}
    assert all(record.layer_densities == made.strategy.masks.densities() for record in made.rounds)
    for masks, state in run.device:
        assert_pruned(state, masks)
    dense = sum(t.numel() for name, t in made.strategy.state.items() if name not in LAYERS)
    for (message, reply), (masks, _) in zip(made.trained(), run.device, strict=True):
        assert message.content["config"]["mask-version"] == masks.version
        assert len(reply.content["arrays"]["values"].numpy()) == dense + sum(kept.values())
    evaluated = [run.swaps[0][0], *(after for _, after, _, _ in run.swaps)]
    for state, masks in zip(made.states, evaluated, strict=True):
        assert_pruned(state, masks)


def assert_pruned(state, masks):
    for name, mask in masks.items():
        assert not state[name][~mask].any(), name


def test_a_grown_weight_starts_at_zero_and_the_rest_stay_as_they_were():
    run = Watched(plan(strategy=MOVING, rounds=2))
    before, after, state, request = run.swaps[0]
    evaluated = run.made.states[1]
    for name, tensor in state.items():
        if name not in request.counts:
            assert torch.equal(evaluated[name], tensor)
            continue
        grown, dropped, stayed = (
            after[name] & ~before[name],
            before[name] & ~after[name],
            after[name] & before[name],
        )
        assert int(grown.sum()) == int(dropped.sum()) == request.counts[name] > 0
        assert not evaluated[name][grown].any()
        assert torch.equal(evaluated[name][stayed], tensor[stayed])
        assert tensor[dropped].abs().max() <= tensor[stayed].abs().min()


@pytest.mark.parametrize("granularity", ["block", "model"])
def test_one_client_with_full_batches_grows_what_rigl_would(granularity):
    """The pruned weights whose gradient by autograd, of all its examples, is largest (Evci et al. 2020)."""
    changes = {"clients__count": 1, "clients__per_round": 1, "clients__training__batch_size": 160}
    run = Watched(plan(strategy={**MOVING, "granularity": granularity}, rounds=4, **changes))
    x, y = examples_of(run.made, run.made.data.client_train.of(0))
    for (before, after, _, request), (_, state) in zip(run.swaps, run.device, strict=True):
        module = module_with(run.made, state).train()
        functional.cross_entropy(module(x), y).backward()
        for name, count in request.counts.items():
            size = (module.get_parameter(name).grad.abs() * ~before[name]).reshape(-1)
            grown = (after[name] & ~before[name]).reshape(-1)
            others = ~(grown | before[name].reshape(-1))
            assert int(grown.sum()) == count
            # The client saw the examples in another order: what is equal but for rounding may change places.
            assert size[grown].min() >= size[others].max() * (1 - 1e-4) - 1e-9
            assert size[grown].sum() > 1.2 * size[others].sort().values[:count].sum()


def test_several_clients_grow_what_they_want_on_average():
    """Weighted by |D_k|; what a client did not report is 0 from it. Replies are read by hand."""
    run = Watched(plan(strategy=MOVING, rounds=2, clients__per_round=4))
    for number, (before, after, _, request) in enumerate(run.swaps, start=1):
        ((name, count),) = request.counts.items()
        sums = {}
        for message, reply in run.made.trained():
            if message.metadata.group_id != str(number):
                continue
            held = len(run.made.data.client_train.of(message.metadata.dst_node_id - 2))
            indices, values = (reply.content["growth"][key].numpy() for key in ("indices", "values"))
            for place, value in zip(indices.tolist(), values.tolist(), strict=True):
                sums[place] = sums.get(place, 0) + held * value
        grown = (after[name] & ~before[name]).reshape(-1).nonzero().reshape(-1).tolist()
        assert len(sums) > count
        assert set(grown) == set(sorted(sums, key=lambda place: -abs(sums[place]))[:count])


@pytest.mark.parametrize(("batch_count", "size"), [(1, 8), (3, 8), (99, 8)])
def test_growth_is_judged_on_so_many_batches(batch_count, size, monkeypatch):
    seen = []
    largest = sparse.largest_gradients

    def watched(module, name, given, mask, count, loss):
        given = list(given)
        seen.append([len(y) for _, y in given])
        return largest(module, name, given, mask, count, loss)

    monkeypatch.setattr(sparse, "largest_gradients", watched)
    made = assemble(
        plan(strategy={**MOVING, "growth_batches": batch_count}, rounds=1, clients__training__batch_size=size)
    )
    made.strategy.start(made.grid)
    clients = [task.client for task in tasks_of(made, "train")]
    for lengths, client in zip(seen, clients, strict=True):
        held = len(made.data.client_train.of(client))
        full = [size] * (held // size) + [held % size] * (held % size > 1)
        assert lengths == full[:batch_count]


def test_clients_report_the_largest_entries_and_nothing_more():
    run = Watched(plan(strategy={**MOVING, "granularity": "model"}, rounds=1))
    before, _, _, request = run.swaps[0]
    entries = sum(request.counts.values())
    for _, reply in run.made.trained():
        assert set(reply.content) == {"arrays", "metrics", "growth"}
        assert {name: array.numpy().shape for name, array in reply.content["growth"].items()} == {
            "indices": (entries,),
            "values": (entries,),
        }
    assert request.counts == {
        name: kept * (1 + math.cos(math.pi / 6)) // 2 for name, kept in before.kept.items()
    }


@pytest.mark.parametrize("density", [0.5, 0.05])
def test_an_adjustment_costs_eight_bytes_an_entry_more(density):
    strategy = {**MOVING, "density": density, "adjust_every": 2}
    made = federate(plan(strategy=strategy, rounds=3, clients__per_round=4))
    shapes, masks = made.strategy.layout.shapes, made.strategy.masks
    unpruned = sum(shape.numel() for name, shape in shapes.items() if name not in masks)
    values = 4 * (round(density * masks.total) + unpruned)
    by_round = {
        number: [task for task in tasks_of(made, "train") if task.round == number] for number in (1, 2, 3)
    }
    replies = {message.metadata.group_id: reply.content for message, reply in made.trained()}
    entries = len(replies["2"]["growth"]["indices"].numpy())
    assert entries > 0
    for number, tasks in by_round.items():
        reported = 8 * entries if number == 2 else 0
        for task in tasks:
            assert values < task.bytes_down - task.mask_bytes_down <= values + 2048
            assert values + reported < task.bytes_up <= values + reported + 2048
            assert (task.mask_bytes_down > 0) == (number != 2)  # rounds 1 and 3 have a new mask
    for plain, adjusted in zip(by_round[1], by_round[2], strict=True):
        assert adjusted.peak_memory_bytes - plain.peak_memory_bytes == 8 * entries
        assert adjusted.flops > plain.flops
    assert [task.flops for task in by_round[1]] == [task.flops for task in by_round[3]]


# Faulty growth reports ---------------------------------------------------------------------------


def with_growth(change):
    def replace_growth(content):
        indices, values = (content["growth"][name].numpy().copy() for name in ("indices", "values"))
        indices, values = change(indices, values)
        growth = ArrayRecord({"indices": Array(indices), "values": Array(values)})
        return RecordDict({**content, "growth": growth})

    return replace_growth


def kept_position(indices, values):
    """The first so many positions: not all of them are pruned."""
    return np.arange(len(indices), dtype=np.uint32), values


GROWTH = {
    "none": lambda content: RecordDict({k: v for k, v in content.items() if k != "growth"}),
    "one too few": with_growth(lambda i, v: (i[1:], v[1:])),
    "one too many": with_growth(lambda i, v: (np.append(i, i[-1] + 1), np.append(v, v[-1]))),
    "out of range": with_growth(lambda i, v: (np.append(i[:-1], np.uint32(10**6)), v)),
    "kept": with_growth(kept_position),
    "descending": with_growth(lambda i, v: (i[::-1].copy(), v)),
    "twice": with_growth(lambda i, v: (np.append(i[:1], i[:-1]), v)),
    "NaN": with_growth(lambda i, v: (i, np.append(v[:-1], np.float32(np.nan)))),
    "signed": with_growth(lambda i, v: (i.astype(np.int64), v)),
}


@pytest.fixture(scope="module")
def run_without_client_1():
    return federate(plan(strategy=MOVING, clients__per_round=4), tamper=faulty_training(None))


def faulty_training(change):
    def tamper(message, reply):
        if kind_of(message) != "train" or message.metadata.dst_node_id != 3:
            return reply
        return Message(change(reply.content), reply_to=message) if change else None

    return tamper


@pytest.mark.parametrize("fault", GROWTH.values(), ids=GROWTH)
def test_a_faulty_growth_report_is_as_if_its_reply_were_absent(fault, run_without_client_1):
    made = federate(plan(strategy=MOVING, clients__per_round=4), tamper=faulty_training(fault))
    assert same_state(made.strategy.state, run_without_client_1.strategy.state)
    assert made.strategy.masks == run_without_client_1.strategy.masks
    assert [(r.clients_ok, r.clients_failed) for r in made.rounds[1:]] == [(3, 1), (3, 1)]
    assert all(t.reason.startswith("WireError: ") for t in made.tasks if t.status == "failed")


# Order, workers, aggregators -----------------------------------------------------------------------

WHOLE = {**MOVING, "selection": True, "pretrain_epochs": 1, "candidates": 3, "bases": BASES[:2]}


def untimed(records):
    return [replace(record, wall_seconds=0.0) for record in records]


def test_neither_order_nor_node_ids_matter():
    scenario = plan(strategy=WHOLE, rounds=3)
    plain = federate(scenario)
    other = federate(scenario, numbers=[2, 0, 3, 1], node_ids=[77, 2**60, 5, 1234], shuffle=random.Random(1))
    assert same_state(plain.strategy.state, other.strategy.state)
    assert plain.strategy.masks == other.strategy.masks
    assert untimed(plain.rounds) == untimed(other.rounds)
    assert untimed(plain.tasks) == untimed(other.tasks)
    assert all(mask_bytes(message.content) == 0 for message, _ in exchanged(plain, "query.loss"))


def test_the_state_of_a_server_optimizer_survives_a_change_of_masks():
    """FedAdam still moves what was dropped in round 2, by its momentum; the masks hold against it."""
    made = assemble(plan(strategy={**MOVING, "adjust_every": 2, "aggregator": FEDADAM}, rounds=3))
    moments, given, finish = [], [], made.strategy.aggregator.finish

    def watched():
        given.append(finish())
        moments.append(copy.deepcopy(made.strategy.aggregator.strategy.m_t))
        return given[-1]

    made.strategy.aggregator.finish = watched
    made.strategy.start(made.grid)
    name, beta = LAYERS[1], made.strategy.aggregator.strategy.beta_1
    before, after = moments[1][name], moments[2][name]
    pruned = ~made.strategy.masks[name].numpy()
    dropped = pruned & (made.states[1][name].numpy() != 0) & (before != 0)
    assert dropped.any()
    np.testing.assert_allclose(after[dropped], beta * before[dropped], rtol=1e-5)
    assert given[2][name].numpy()[dropped].all()
    assert_pruned(made.states[3], made.strategy.masks)


@pytest.mark.slow
def test_on_ray_it_is_the_same(shared_ray, tmp_path):
    """Any number of workers: tests/engine/test_engine_run.py."""
    scenario = plan(strategy=WHOLE, rounds=2)
    local, heard = federate(scenario), Heard()
    done = fedprune.run(scenario, out=tmp_path / "run", listeners=[heard], engine__workers=2)
    assert untimed(heard.tasks) == untimed(local.tasks)
    assert untimed(heard.rounds) == untimed(local.rounds)
    assert same_state(get_state(done.model()), local.strategy.state)


class Heard:
    """What a run's ledger holds."""

    def __init__(self):
        self.tasks, self.rounds = [], []
        self.on_task, self.on_round = self.tasks.append, self.rounds.append


@pytest.mark.parametrize("values", ["float16", "bfloat16", "int8"])
def test_a_candidate_is_held_in_whatever_format_it_travelled(values):
    strategy = {"name": "fedtiny", "density": 0.3, "pretrain_epochs": 0, "candidates": 2}
    made = federate(plan(model={"name": "mlp"}, strategy=strategy, rounds=1, **{"wire.values": values}))
    assert made.rounds[0].clients_failed == 0
    assert made.rounds[1].clients_ok == 3
