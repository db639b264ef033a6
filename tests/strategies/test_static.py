"""Static pruning: what is pruned stays exactly 0 everywhere, whatever trains and aggregates."""

from __future__ import annotations

import pytest
import torch
from inprocess import assemble, federate, plan, same_state

from fedprune.errors import UserError
from fedprune.sparsity.criteria import CRITERIA
from fedprune.sparsity.distributions import DISTRIBUTIONS
from fedprune.sparsity.pruning import prunable

STATIC = {"name": "static", "density": 0.2}
STOCK = "flwr.serverapp.strategy."
OPTIMIZERS = {
    "SGD": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
    "Adam": {"name": "adam", "lr": 0.01, "weight_decay": 0.01},
}


def assert_pruned_everywhere(made):
    """Every reply, every evaluated model and the final state are 0 where the masks prune."""
    strategy = made.strategy
    masks = strategy.masks
    assert masks.density == pytest.approx(STATIC["density"], abs=1e-3)
    replies = [
        strategy.codec.unflatten(strategy.codec.decode(r.content["arrays"])) for _, r in made.trained()
    ]
    states = [*replies, *made.states, strategy.state]
    assert len(states) == made.scenario.rounds * (made.scenario.clients.per_round + 1) + 2
    for state in states:
        for name, mask in masks.items():
            assert not state[name][~mask].any(), name
            assert state[name][mask].any(), name
    assert {record.density for record in made.rounds} == {masks.density}
    assert all(record.layer_densities == masks.densities() for record in made.rounds)
    assert not same_state(made.states[0], strategy.state)


@pytest.mark.parametrize("mu", [0.0, 0.5], ids=["no proximal term", "FedProx"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_pruned_weights_stay_zero(optimizer, mu):
    scenario = plan(
        strategy=STATIC, clients__training__optimizer=optimizer, clients__training__proximal_mu=mu
    )
    assert_pruned_everywhere(federate(scenario))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_device_holds_no_pruned_weight_either(optimizer):
    """The wire can't carry a pruned weight, so look at the client's own model after it has trained."""
    made = assemble(plan(strategy=STATIC, rounds=1, clients__training__optimizer=optimizer))
    sites = []
    inner = made.grid._app._find_site
    made.grid._app._find_site = lambda context: sites.append(inner(context)) or sites[-1]
    trained = []
    made.grid._tamper = lambda message, reply: (
        trained.append({k: v.clone() for k, v in sites[-1].module.state_dict().items()}) or reply
    )
    made.strategy.start(made.grid)
    for state in trained[made.scenario.clients.count :]:
        for name, mask in made.strategy.masks.items():
            assert not state[name][~mask].any()
            assert state[name][mask].any()


@pytest.mark.parametrize(
    "aggregator",
    [
        {"name": STOCK + "FedAdam", "eta": 0.01},
        {"name": STOCK + "FedAvgM", "server_learning_rate": 0.9, "server_momentum": 0.5},
        {"name": STOCK + "FedYogi", "eta": 0.01, "tau": 0.01},
        STOCK + "FedMedian",
        {"name": STOCK + "Krum", "num_malicious_nodes": 0},
    ],
    ids=lambda option: str(option)[-30:],
)
def test_pruned_weights_stay_zero_under_stock_aggregators(aggregator):
    made = federate(plan(strategy={**STATIC, "aggregator": aggregator}))
    assert_pruned_everywhere(made)
    assert not same_state(made.strategy.state, federate(plan(strategy=STATIC)).strategy.state)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_with_every_distribution(criterion, distribution):
    strategy = {**STATIC, "criterion": criterion, "distribution": distribution, "iterations": 3}
    made = assemble(plan(strategy=strategy))
    again = assemble(plan(strategy=strategy))
    for federation in (made, again):
        federation.strategy.prepare(federation.grid)
    masks, state = made.strategy.masks, made.strategy.state
    assert list(masks) == prunable(made.strategy.module)
    assert sum(masks.kept.values()) == round(0.2 * masks.total)
    assert all(masks.kept.values())
    assert masks == again.strategy.masks
    for name, tensor in made.strategy.module.state_dict().items():
        if name in masks:
            assert torch.equal(state[name], tensor * masks[name])
        elif tensor.is_floating_point():
            assert torch.equal(state[name], tensor)


def test_masks_of_other_settings_differ():
    """The tests above would pass if an option were not looked at."""

    def version(**options):
        made = assemble(plan(strategy={**STATIC, **options}))
        made.strategy.prepare(made.grid)
        return made.strategy.masks.version

    found = [
        version(),
        version(density=0.3),
        version(criterion="random"),
        version(distribution="uniform"),
        version(keep=["first"]),
    ]
    assert len(set(found)) == len(found)


def test_a_criterion_that_needs_data_says_so():
    scenario = plan(strategy={**STATIC, "criterion": "snip"}, data__server_fraction=0.0)
    with pytest.raises(UserError, match=r"'snip' needs data on the server: set data\.server_fraction"):
        federate(scenario)


def test_density_one_is_dense_training():
    sparse = federate(plan(strategy={"name": "static", "density": 1.0}))
    assert same_state(sparse.strategy.state, federate(plan()).strategy.state)
