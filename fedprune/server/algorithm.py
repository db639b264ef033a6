"""Which training algorithm the clients of a scenario run, by name and as the server knows it.

A strategy names one in its attribute ``client``; ``clients.algorithm`` in a scenario chooses another. What a
client does with it is the matter of `fedprune.client`.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedprune import registry
from fedprune.errors import PluginError
from fedprune.protocol.training_step import TrainingAlgorithm
from fedprune.scenario import Scenario

#: What the clients of a strategy run that names nothing.
DEFAULT = "sparse"


def algorithm(scenario: Scenario, strategy: type) -> str:
    """Return the name of the clients' training algorithm: the scenario's, else the strategy's.

    Parameters
    ----------
    scenario : Scenario
        What is run.
    strategy : type
        The class of its strategy: a pruning strategy or a stock Flower one.
    """
    return scenario.clients.algorithm or registry.named_by(strategy, "client", DEFAULT)


def client_class(scenario: Scenario, strategy: type) -> type[TrainingAlgorithm]:
    """Return the class of the clients.

    Raises
    ------
    PluginError
        Where its name leads to none.
    """
    found: type[TrainingAlgorithm] = registry.load(
        "client", algorithm(scenario, strategy), scenario.directory
    )
    return found


def algorithm_errors(scenario: Scenario, strategy: type) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (key, what is wrong) where there is no such algorithm, or the strategy cannot work with it.

    A strategy that names an algorithm of its own speaks with clients in messages that only this one may
    answer: a scenario can then choose one that is derived from it.
    """
    own, chosen = registry.named_by(strategy, "client", DEFAULT), scenario.clients.algorithm
    try:
        needed = registry.load("client", own, scenario.directory)
    except PluginError as error:
        yield ("strategy", "name"), f"the client that {strategy.__name__} names: {error}"
        return
    if chosen is None:
        return
    try:
        found = registry.load("client", chosen, scenario.directory)
    except PluginError as error:
        yield ("clients", "algorithm"), str(error)
        return
    if own != DEFAULT and not issubclass(found, needed):
        yield (
            ("clients", "algorithm"),
            f"{found.__name__} cannot take part in {strategy.__name__}, whose clients are {needed.__name__}: "
            f"leave it out, or name a subclass of {needed.__name__}",
        )
