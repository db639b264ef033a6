"""Clients with fewer examples than a batch: they train on what they have, and who can't is left out."""

import logging

import numpy as np
import pytest

from fedprune.data import FederatedData, Shares
from fedprune.errors import DataError, UserError
from tests import inprocess
from tests.inprocess import Federated, assemble, federate, plan

SKEWED = {"data.partition.alpha": 0.05, "clients.count": 40, "clients.per_round": 40, "rounds": 1}
WITHOUT_NORM = {"name": "mlp"}
STRATEGIES = [
    {"name": "fedavg"},
    {"name": "fedtiny", "density": 0.2, "adjust_every": 1},
    {"name": "prunefl", "density": 0.2, "adjust_every": 1, "initial": "client"},
]


def with_sizes(monkeypatch: pytest.MonkeyPatch, sizes: list[int], **changes: object) -> Federated:
    """Return a federation whose clients have so many examples each."""
    load = inprocess.datasets.load

    def cut(scenario: object) -> FederatedData:
        data = load(scenario)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        shares = Shares(data.client_train.indices[: offsets[-1]], offsets)
        nothing = Shares(np.empty(0, np.int64), np.zeros(len(sizes) + 1, np.int64))
        return FederatedData(data.info, data.train, data.test, data.server, shares, nothing)

    monkeypatch.setattr(inprocess.datasets, "load", cut)
    return assemble(plan(**{"clients.count": len(sizes), "clients.per_round": len(sizes), **changes}))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda options: options["name"])
@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_a_skewed_division_trains_but_for_those_without_examples(
    strategy: dict[str, object], fraction: float, caplog: pytest.LogCaptureFixture
) -> None:
    asks = {"data.client_test_fraction": fraction, "evaluation.clients": "all" if fraction else False}
    with caplog.at_level(logging.WARNING):
        made = federate(plan(strategy=strategy, **SKEWED, **asks))
    sizes = made.data.client_train.sizes
    none = int((sizes == 0).sum())
    assert none > 0
    assert 0 < sizes[sizes > 0].min() < 16
    last = made.rounds[-1]
    assert (last.clients_excluded, last.clients_failed) == (none, 0)
    assert {task.client for task in made.tasks if task.type == "train"} == set(np.flatnonzero(sizes).tolist())
    told = [message for message in caplog.messages if "left out" in message]
    assert told == [f"{none} of 40 clients have too few examples to train, and are left out"]


@pytest.mark.parametrize(("model", "able"), [("resnet18", {0, 3}), ("mlp", {0, 1, 3})])
def test_one_example_is_enough_but_under_batch_norm(
    model: str, able: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last stage of a ResNet has a single position on small images: batch norm has one value there."""
    options = {"name": model, "width": 0.0625} if model == "resnet18" else {"name": model}
    made = with_sizes(monkeypatch, [5, 1, 0, 17], model=options, rounds=1)
    made.strategy.start(made.grid)
    assert {task.client for task in made.tasks if task.type == "train"} == able
    assert {task.client: task.examples for task in made.tasks if task.type == "train"}[3] == 17
    assert made.rounds[-1].clients_excluded == 4 - len(able)
    assert set(made.strategy.clients) == able


def test_a_federation_in_which_nobody_can_train_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = with_sizes(monkeypatch, [0, 0])
    with pytest.raises(UserError, match=r"2 of 2 clients have too few examples to train: give them more"):
        made.strategy.start(made.grid)


def test_who_wants_the_refusal_says_so() -> None:
    with pytest.raises(DataError, match=r"asks for 4 .*of 40 clients have too few"):
        federate(plan(**SKEWED, **{"data.partition.min_examples": 4, "data.train_examples": 200}))
