"""FedAvg against a training loop in plain PyTorch, and what its costs are relative to."""

from __future__ import annotations

import copy

import pytest
import torch
from inprocess import PLAN, assemble, federate, plan
from torch.nn import functional

from fedprune import data as datasets
from fedprune import models, seeds
from fedprune.data import batches
from fedprune.results.records import relative_costs, strict, total_costs
from fedprune.tasks import Classification

INTEGER_COSTS = ("bytes_down", "bytes_up", "flops", "peak_memory_bytes")


def plain_fedavg(scenario):
    """McMahan et al. 2017, algorithm 1, for SGD with momentum; nothing of the strategy or the client."""
    data = datasets.load(scenario)
    training = scenario.clients.training
    lr, momentum, decay = (getattr(training.optimizer, k) for k in ("lr", "momentum", "weight_decay"))
    task = Classification(data.info)
    server = models.build(
        scenario.model.name,
        data.info.input_shape,
        data.info.classes,
        seed=scenario.seed,
        options=scenario.model.options,
    )
    for server_round in range(1, scenario.rounds + 1):
        drawn = seeds.numpy_generator(scenario.seed, "sample", server_round).choice(
            range(scenario.clients.count), size=scenario.clients.per_round, replace=False
        )
        total, weights = None, 0
        for number in sorted(drawn.tolist()):
            model = copy.deepcopy(server).train()
            indices = data.client(number).train
            generator = seeds.torch_generator(scenario.seed, "batches", server_round, number)
            velocities = [torch.zeros_like(p) for p in model.parameters()]
            for _ in range(training.epochs):
                for x, y in batches(data.train, indices, task, training.batch_size, generator):
                    model.zero_grad()
                    functional.cross_entropy(model(x), y).backward()
                    with torch.no_grad():
                        for parameter, velocity in zip(model.parameters(), velocities, strict=True):
                            velocity.mul_(momentum).add_(parameter.grad + decay * parameter)
                            parameter.sub_(lr * velocity)
            state = {k: v.double() * len(indices) for k, v in model.state_dict().items()}
            total = state if total is None else {k: total[k] + v for k, v in state.items()}
            weights += len(indices)
        server.load_state_dict({k: (v / weights).to(server.state_dict()[k].dtype) for k, v in total.items()})
    return {k: v for k, v in server.state_dict().items() if v.is_floating_point()}


@pytest.mark.parametrize(
    "strategy",
    [{"name": "fedavg"}, {"name": "flwr.serverapp.strategy.FedAvg"}],
    ids=["fedprune", "stock Flower"],
)
def test_it_is_a_plain_training_loop(strategy):
    scenario = plan(
        strategy=strategy, clients__training__epochs=2, clients__training__optimizer__weight_decay=0.01
    )
    found, expected = federate(scenario).strategy.state, plain_fedavg(scenario)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def test_a_model_that_did_not_train_would_be_told_apart():
    scenario = plan()
    start = assemble(scenario).strategy.state
    trained = federate(scenario).strategy.state
    assert min((start[name] - trained[name]).abs().max() for name in start) > 1e-4


def test_the_mean_has_no_rounding_but_the_last():
    """The new state is the exact mean of what arrived, rounded once to float32."""
    made = federate(plan(rounds=1))
    codec = made.strategy.codec
    replies = [reply.content for _, reply in made.trained()]
    weights = [int(content["metrics"]["num-examples"]) for content in replies]
    values = [codec.decode(content["arrays"]).double() for content in replies]
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert torch.equal(codec.flatten(made.strategy.state), mean.float())


def relative(made):
    rounds = [strict(record.columns()) for record in made.rounds]
    return relative_costs(total_costs(rounds), made.strategy.dense.tally.totals())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluation__clients": True, "data__client_test_fraction": 0.3},
        {"wire__values": "int8", "clients__training__proximal_mu": 0.1},
        {"clients__training__optimizer": {"name": "adam", "lr": 0.001}},
    ],
    ids=["plain", "clients evaluate", "int8 and FedProx", "Adam"],
)
def test_its_costs_relative_to_itself_are_one(changes):
    ratios = relative(federate(plan(**changes)))
    for cost in INTEGER_COSTS:
        assert ratios[cost] == 1.0, cost
    assert ratios["device_seconds"] == pytest.approx(1.0, rel=1e-12)


def test_its_relative_costs_stay_one_in_a_long_run():
    """A round's number takes two bytes from 64 on."""
    model = {"name": "mlp", "hidden": [2]}
    small = {"data__train_examples": 40, "clients__count": 2, "clients__per_round": 2}
    ratios = relative(federate(plan(model=model, rounds=66, evaluation__every=100, **small)))
    assert [ratios[cost] for cost in INTEGER_COSTS] == [1.0] * len(INTEGER_COSTS)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"evaluation__clients": True, "data__client_test_fraction": 0.3},
        {"wire__values": "float16"},
        {"clients__training__optimizer": {"name": "adam", "lr": 0.001}},
    ],
    ids=["plain", "clients evaluate", "float16", "Adam"],
)
def test_relative_costs_of_pruning_are_the_ratio_to_a_real_dense_run(changes):
    sparse = federate(plan(strategy={"name": "static", "density": 0.1}, **changes))
    dense = federate(plan(strategy=PLAN["strategy"], **changes))
    found = relative(sparse)
    costs = [total_costs([strict(record.columns()) for record in made.rounds]) for made in (sparse, dense)]
    for cost in INTEGER_COSTS:
        assert found[cost] == costs[0][cost] / costs[1][cost], cost
        assert found[cost] < 1, cost
    expected = costs[0]["device_seconds"] / costs[1]["device_seconds"]
    assert found["device_seconds"] == pytest.approx(expected, rel=1e-9)
