"""What a scenario is predicted to need is what its clients then report."""

from __future__ import annotations

import pytest
from inprocess import density_of, federate, plan

from fedprune import data, registry
from fedprune.costs.devices import profiles
from fedprune.errors import UserError
from fedprune.server.check import resolve
from fedprune.server.sizing import Fit, clients_of, devices_of, sizing

STATIC = {"name": "static", "density": 0.2, "criterion": "magnitude"}
ADAM = {"name": "adam", "lr": 0.01}
PROX = {"name": "flwr.serverapp.strategy.FedProx", "proximal_mu": 0.1}

PLANS = {
    "dense": {"strategy": {"name": "fedavg"}},
    "erk": {"strategy": {**STATIC, "distribution": "erk"}},
    "uniform": {"strategy": {**STATIC, "distribution": "uniform"}, "clients__training__optimizer": ADAM},
    "FedProx": {"strategy": STATIC, "clients__training__proximal_mu": 0.1},
    "Flower's FedProx": {"strategy": {**STATIC, "aggregator": PROX}},
    "Flower's FedProx alone": {"strategy": PROX},
    "signs": {"strategy": {"name": "hidenseek", "density": 0.5, "distribution": "erk"}},
    "signs of drawn weights": {
        "strategy": {"name": "hidenseek", "density": 0.5, "distribution": "uniform", "init": "kaiming_normal"}
    },
    "masks": {"strategy": {"name": "fedpm"}},
    "pruned activations": {"strategy": {"name": "fedmef", "density": 0.2, "activation_density": 0.3}},
}


@pytest.mark.parametrize("changes", PLANS.values(), ids=PLANS.keys())
def test_the_predicted_peak_is_the_one_that_clients_report(changes):
    scenario = plan(rounds=1, **changes)
    made = federate(scenario)
    reported = {task.peak_memory_bytes for task in made.tasks if task.type == "train" and task.round == 1}
    asked = sizing(scenario)
    assert {asked.step.memory(asked.density, asked.batch).total} == reported


def test_what_is_asked_for_takes_the_place_of_the_scenario_s():
    asked = sizing(plan(strategy=STATIC), density=0.5, batch=3)
    assert (asked.density, asked.batch) == (0.5, 3)
    for wrong in ({"density": 0.0}, {"density": 1.1}, {"density": float("nan")}, {"batch": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            sizing(plan(strategy=STATIC), **wrong)


def test_a_distribution_that_needs_scores_is_taken_as_uniform():
    scored = sizing(plan(strategy={**STATIC, "distribution": "global"}))
    even = sizing(plan(strategy={**STATIC, "distribution": "uniform"}))
    assert scored.distribution == "uniform"
    assert scored.step.kept(0.1) == even.step.kept(0.1)


def test_a_fit_is_of_its_device():
    board = profiles()["portenta-h7"]
    fit = sizing(plan(strategy=STATIC)).on(board)
    assert fit.fits == (fit.peak <= board.memory)
    assert (fit.density, fit.batch >= 16) == (1.0, True)
    assert not Fit(board, board.memory + 1, None, None).fits


@pytest.mark.parametrize("name", sorted(registry.names("strategy")))
def test_every_strategy_is_sized(name):
    options = density_of(name)
    asked = sizing(resolve(plan(strategy={"name": name, **options}, data__client_test_fraction=0.2)))
    assert asked.density == options.get("density", 1.0)
    assert asked.step.memory(asked.density, 2).total < asked.step.memory(1.0, 4).total


LOOKS = '''\
from torch import nn

class Looks(nn.Module):
    """A model that can't be traced without data."""

    def __init__(self, input_shape, classes):
        super().__init__()
        self.head = nn.Linear(64, classes)

    def forward(self, x):
        return self.head(x.flatten(1) * (2.0 if x.sum().item() > 0 else 1.0))
'''


def test_a_model_that_has_to_be_run_is_run_on_small_batches_only(tmp_path):
    (tmp_path / "nets.py").write_text(LOOKS)
    asked = sizing(plan(tmp_path, model={"name": "nets.py:Looks"}))
    fit = asked.on(profiles()["laptop"])
    # It has nothing to prune but its only layer, which is kept.
    assert (fit.density, fit.batch, asked.most) == (1.0, 256, 256)
    with pytest.raises(UserError, match="nothing is left to prune"):
        sizing(plan(tmp_path, model={"name": "nets.py:Looks"}), density=0.5)


def test_devices_are_the_profiles_and_what_a_scenario_has_besides(tmp_path):
    kinds = [
        {"profile": "laptop", "count": 3},
        {"memory": 1024, "compute": 1.0, "downlink": 1, "uplink": 1.0},
    ]
    kinds[1] |= {"count": 1}
    names = [device.name for device in devices_of(plan(clients__devices=kinds))]
    assert names == [*profiles(), "custom-1"]
    rows = ["memory,compute,downlink,uplink", *(f"{20 + number},1,1,1" for number in range(12))]
    (tmp_path / "trace.csv").write_text("\n".join(rows))
    trace = plan(tmp_path, clients__count=12, clients__trace="trace.csv")
    assert [device.memory for device in clients_of(trace)] == list(range(20, 32))
    assert [device.name for device in devices_of(trace)] == [*profiles(), "custom-1"]


def test_data_is_described_as_it_is_loaded():
    scenario = plan()
    assert data.describe(scenario) == data.load(scenario).info
