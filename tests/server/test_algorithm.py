"""The clients' training algorithm: the scenario's choice before the strategy's, on server and clients."""

from __future__ import annotations

import pytest
from inprocess import density_of, federate, plan

from fedprune import registry
from fedprune.client.site import Site
from fedprune.data import open_shares
from fedprune.errors import ScenarioError
from fedprune.server.algorithm import algorithm, client_class
from fedprune.server.check import check, resolve
from fedprune.server.sizing import sizing

CLIENTS = """
from dataclasses import replace

from fedprune import Client, FitResult
from fedprune.clients.supermask import SupermaskClient


class Still(Client):
    \"\"\"Trains nothing, and needs the memory of three more models.\"\"\"

    @classmethod
    def overhead(cls, proximal_mu, options):
        return replace(super().overhead(proximal_mu, options), slots=3)

    def fit(self, task):
        return FitResult(values=task.values, masks=task.masks, loss=0.25, examples_seen=1)


class Hidden(SupermaskClient):
    \"\"\"A supermask client of one's own.\"\"\"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(CLIENTS)
    return tmp_path


@pytest.mark.parametrize("strategy", ["fedavg", "flwr.serverapp.strategy.FedAdam"])
def test_a_scenario_chooses_the_algorithm(folder, strategy):
    """One that trains nothing leaves the model as it is, whoever aggregates."""
    scenario = plan(folder, strategy={"name": strategy}, clients__algorithm="./mine.py:Still")
    known = resolve(scenario)
    assert known.clients.algorithm == f"{folder}/mine.py:Still"
    for each in (scenario, known):
        done = federate(each)
        assert [record.train_loss for record in done.rounds] == [None, 0.25, 0.25]
    dense, still = sizing(plan(strategy={"name": strategy})).step, sizing(scenario).step
    assert still.overhead.slots == dense.overhead.slots + 3


@pytest.mark.parametrize("name", registry.names("strategy"))
def test_what_is_resolved_says_what_a_strategy_names(name):
    scenario = plan(strategy={"name": name, **density_of(name)}, data__client_test_fraction=0.2, rounds=20)
    strategy = registry.load("strategy", name)
    known = resolve(scenario)
    assert known.clients.algorithm == getattr(strategy, "client", "sparse")
    assert resolve(known) == known
    own = registry.load("client", known.clients.algorithm)
    data = open_shares(scenario)
    assert Site(known, data).client_class is Site(scenario, data).client_class is own
    assert client_class(known, strategy) is client_class(scenario, strategy) is own
    assert algorithm(known, strategy) == algorithm(scenario, strategy)


def test_what_no_strategy_of_a_kind_can_work_with_is_refused(folder):
    hidden = plan(folder, strategy={"name": "hidenseek", "density": 0.5})
    check(hidden.override(clients__algorithm="./mine.py:Hidden"))
    for wrong in ("sparse", "./mine.py:Still"):
        with pytest.raises(ScenarioError, match=r"clients\.algorithm: .* name a subclass of SupermaskClient"):
            check(hidden.override(clients__algorithm=wrong))
    with pytest.raises(ScenarioError, match=r"clients\.algorithm: no client 'sparce'; did you mean 'sparse'"):
        check(hidden.override(clients__algorithm="sparce"))
    with pytest.raises(ScenarioError, match=r"clients\.algorithm: .*has no 'Stil'; did you mean 'Still'"):
        check(hidden.override(clients__algorithm="./mine.py:Stil"))
