"""How evenly a model serves the clients: the headline metric on what each client holds out.

By class of device, and as estimates over seeds; of a single run: `fedprune.results.spread`. Records of older
runs have none, nor has a run whose clients hold nothing out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedprune.results.folder import CLIENTS
from fedprune.results.records import each_line
from fedprune.results.spread import ClientValues, Spread, Whose, spread_of
from fedprune.studies.outcomes import Metric, Outcome
from fedprune.studies.statistics.estimates import Estimate
from fedprune.studies.statistics.groups import Group

#: What a run without values of its clients lacks.
HOW_TO_MEASURE_CLIENTS = (
    "No values of single clients: data.client_test_fraction above 0 lets each client hold examples out, and "
    "evaluation.clients: all lets all of them test the global model on these."
)
_MODELS: tuple[Whose, ...] = ("global", "personal")


@dataclass(frozen=True)
class ClientSpread:
    """The spread over a run's clients, of all and by class of device."""

    overall: Spread
    by_device: Mapping[str, Spread]


@dataclass(frozen=True)
class GroupSpread:
    """The spread of a group's runs: an estimate over seeds of each number.

    ``overall`` and the values of ``by_device`` have the keys ``clients`` (their number), ``mean``, ``worst``,
    ``std``, ``variance`` and ``jain``.
    """

    overall: Mapping[str, Estimate]
    by_device: Mapping[str, Mapping[str, Estimate]]


def client_spreads(outcome: Outcome, metric: Metric) -> dict[Whose, ClientSpread]:
    """Return the spread over the clients of a run, from its run folder.

    Parameters
    ----------
    outcome
        The run.
    metric
        Its headline metric, which is also the column of ``clients.jsonl``.

    Returns
    -------
    dict
        "global": of the global model, in the last round in which clients tested it. "personal": of the
        clients' own models, each after its last training. Without those of which there are no values: see
        `HOW_TO_MEASURE_CLIENTS`.
    """
    if outcome.directory is None:
        return {}
    values = ClientValues(metric.name)
    for record in each_line(outcome.directory / CLIENTS):  # In the order of the rounds.
        values.add(record)
    return {whose: _by_device(found, metric) for whose, found in values.found().items()}


def group_spreads(group: Group, metric: Metric) -> dict[Whose, GroupSpread]:
    """Return the spread over clients of a group's complete runs, as estimates over seeds.

    It has the keys of `client_spreads`. A device that only some runs have is estimated over these.
    """
    of_runs = [client_spreads(run, metric) for run in group.complete]
    spreads: dict[Whose, GroupSpread] = {}
    for whose in _MODELS:
        found = [each[whose] for each in of_runs if whose in each]
        devices = sorted({device for each in found for device in each.by_device})
        if found:
            spreads[whose] = GroupSpread(
                _estimates([each.overall for each in found]),
                {
                    device: _estimates([each.by_device[device] for each in found if device in each.by_device])
                    for device in devices
                },
            )
    return spreads


def _by_device(values: Sequence[tuple[str, float]], metric: Metric) -> ClientSpread:
    """Return the spread of values, each with the device of its client."""

    def of(chosen: Iterable[float]) -> Spread:
        return spread_of(chosen, higher_is_better=metric.higher_is_better)

    devices = sorted({device for device, _ in values})
    return ClientSpread(
        of(value for _, value in values),
        {device: of(value for each, value in values if each == device) for device in devices},
    )


def _estimates(spreads: Sequence[Spread]) -> dict[str, Estimate]:
    estimates = {}
    for key in ("clients", "mean", "worst", "std", "variance", "jain"):
        values = [value for spread in spreads if (value := getattr(spread, key)) is not None]
        if values:
            estimates[key] = Estimate.of(values)
    return estimates
