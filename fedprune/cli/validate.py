"""`fedprune validate`, and what a scenario would run in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from fedprune.cli.arguments import ScenarioPath, Settings, load
from fedprune.errors import UserError

if TYPE_CHECKING:
    from fedprune.scenario import FaultsSpec, Scenario


def validate(scenario: ScenarioPath, settings: Settings = None) -> None:
    """Check SCENARIO, a YAML file, and its data, without running it, and say what it would run."""
    from fedprune import data
    from fedprune.server.check import check, check_model

    plan = load(scenario, settings)
    check(plan)
    seen = data.at_hand(plan)
    dense = _begin(plan) if seen else check_model(plan)
    too_small = _too_small(plan)
    print(f"ok: {scenario}: {describe(plan)}")
    if dense:
        print(dense)
    if not seen:
        print(f"but: {plan.data.name} is on the Hugging Face hub: whether it fits is known once it is read")
    if too_small:
        print(f"but: {too_small}")


def _begin(plan: Scenario) -> str:
    """Read the data and make what a run begins with, which refuses what it would; return what stays dense."""
    from fedprune import data
    from fedprune.engine.simulation import make_strategy
    from fedprune.server.check import stays_dense

    def evaluate(*_: object) -> NoReturn:
        raise AssertionError("nothing is trained here")

    strategy = make_strategy(plan, data.load(plan), evaluate, ())
    return stays_dense(strategy.module, strategy.options, strategy.task, strategy.traced_groups)


def _too_small(plan: Scenario) -> str | None:
    """Return a sentence where clients have too little memory, as far as the scenario alone tells.

    Raises
    ------
    UserError
        With such a sentence, where the run would be refused.
    """
    from fedprune.server.sizing import clients_of, sizing
    from fedprune.units import format_bytes

    try:
        asked = sizing(plan)
    except UserError:  # Without the data set, its shape is not known.
        return None
    peak = asked.step.memory(asked.density, asked.batch).total
    devices, policy = clients_of(plan), plan.clients.over_budget
    small = sum(device.memory < peak for device in devices)
    if not small:
        return None
    trains = {device: asked.trains(device, policy) for device in set(devices)}
    idle = sum(not trains[device] for device in devices)
    said = (
        f"the peak memory of a training step {asked.what} in batches of {asked.batch} is "
        f"{format_bytes(peak)}, more than {small} of {len(devices)} clients have; clients.over_budget is "
        f"{policy} (see `fedprune devices`)"
    )
    if idle == len(devices) or (idle and policy == "error"):
        raise UserError(f"the run would be refused: {said}")
    return said


def describe(plan: Scenario) -> str:
    """Return one paragraph on what a scenario would run."""
    clients, training, data = plan.clients, plan.clients.training, plan.data
    options = ", ".join(f"{key} {value}" for key, value in plan.strategy.options.items())
    kinds = dict.fromkeys(
        device.profile or device.name or "a device of its own" for device in clients.devices
    )
    devices = f"the {len(kinds)} devices of the trace" if clients.trace else " and ".join(kinds)
    passes = "pass" if training.epochs == 1 else "passes"
    return (
        f"{plan.strategy.name}{f' ({options})' if options else ''} trains {plan.model.name} on {data.name}, "
        f"split {data.partition.scheme} over {clients.count} clients, for {plan.rounds} rounds with "
        f"{clients.per_round} clients each; a client makes {training.epochs} {passes} in batches of "
        f"{training.batch_size} with {training.optimizer.name} (lr {training.optimizer.lr:g})"
        f"{f', on {devices}' if devices else ''}. Seed {plan.seed}; values travel as {plan.wire.values}"
        f"{f', updates compressed by {plan.wire.updates.name}' if plan.wire.updates else ''}."
        f"{_faults(plan.faults)}"
    )


def _faults(spec: FaultsSpec) -> str:
    """Return a sentence on the faults that a scenario injects, or nothing where there are none."""
    shares = [f"{name} {share:g}" for name, share in spec.shares.items() if share]
    single = [f"{each.fault} for client {each.client} in round {each.round}" for each in spec.at]
    return f" Faults injected into training tasks: {', '.join(shares + single)}." if spec.any else ""
