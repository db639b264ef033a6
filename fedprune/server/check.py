"""Whether what a scenario names exists and takes the options that it is given, before anything runs.

`fedprune.scenario` validates what a scenario says by itself; this module looks up what it refers to: the
strategy, the model, the data set and its path, the clients, their devices, the loggers, and every
"file.py:Name". `check` builds and downloads nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from fedprune import data, registry, tasks
from fedprune.costs.devices import profiles
from fedprune.costs.ledger import RoundRecord
from fedprune.data import SourceOptions, sources
from fedprune.data.inputs import Tokens
from fedprune.errors import PluginError, ScenarioError, UserError
from fedprune.models.options import checked, wanted
from fedprune.models.weights import read_tensors
from fedprune.plugin_files import names_in
from fedprune.protocol.supermasks import LearningOptions
from fedprune.scenario import Scenario
from fedprune.scenario.validation import explain
from fedprune.scenario.yaml_file import KeyPath
from fedprune.server import weights
from fedprune.server.algorithm import algorithm, algorithm_errors
from fedprune.server.strategy import PruningStrategy
from fedprune.sparsity.pruning import left_dense
from fedprune.sparsity.structure import Group, channel_groups, described, require
from fedprune.tasks import Task
from fedprune.wording import did_you_mean, known_here, show

_Mistake = tuple[KeyPath, str]
_FROM = ": correct it (a relative path starts from the scenario's folder, or from the working directory)"


def check(scenario: Scenario, *, resumes: bool = False) -> None:
    """Refuse a scenario that names something which does not exist or takes no such options.

    Where a run resumes from a checkpoint, the file of ``model.weights`` may be gone.

    Raises
    ------
    ScenarioError
        One line for each mistake, with the file and line where known, the key, and what would be right.
    """
    looks = _LOOKS if resumes else (_weights, *_LOOKS)
    mistakes = [mistake for look in looks for mistake in look(scenario)]
    if mistakes:
        raise ScenarioError("\n".join(scenario.complaint(*mistake) for mistake in mistakes))


def resolve(scenario: Scenario, *, resumes: bool = False) -> Scenario:
    """Return the scenario with what its strategy says written out, once `check` has passed it.

    That is the options' defaults and the clients' training algorithm; the path of every "file.py:Name" in it
    is absolute. So a device needs the scenario alone, not the strategy, to know what it runs.
    """
    check(scenario, resumes=resumes)
    strategy = registry.load("strategy", scenario.strategy.name, scenario.directory)
    known: dict[str, object] = {"clients.algorithm": algorithm(scenario, strategy)}
    if issubclass(strategy, PruningStrategy):
        options = _options(strategy, scenario.strategy.options).model_dump(mode="json")
        known["strategy"] = {"name": scenario.strategy.name, **options}
    return scenario.override(**known)


def _options(strategy: type[PruningStrategy], given: Mapping[str, Any]) -> PruningStrategy.Options:
    return registry.place_defaults(strategy.Options.model_validate(given))


def check_model(scenario: Scenario) -> str:
    """Refuse a model that cannot be trained or pruned as a scenario asks; return what of it stays dense.

    For a scenario whose data set is not at hand, see `fedprune.data.at_hand`. The model is built. Nothing is
    checked, and "" returned, where the shape of the data's images is not known before it is downloaded.

    Raises
    ------
    UserError
        As `fedprune.models.check` does, where ``model.weights`` are not of the model, and where nothing is
        left to prune.
    """
    info = data.declared(scenario.data)
    if info is None:
        return ""
    task = tasks.build(scenario, info)
    check_columns(task)
    module = tasks.build_model(scenario, task)
    tasks.check_model(scenario, task, module)
    weights.begin(scenario, module, task.info.class_names)
    strategy = registry.load("strategy", scenario.strategy.name, scenario.directory)
    if not (isinstance(strategy, type) and issubclass(strategy, PruningStrategy)):
        return ""
    return stays_dense(module, _options(strategy, scenario.strategy.options), task)


def check_columns(task: Task) -> None:
    """Refuse a metric that is called as another column of results."""
    taken = {each.name for each in fields(RoundRecord)}
    if names := [metric.name for metric in task.metrics if metric.name in taken]:
        raise UserError(f"metric {names[0]!r} has the name of another column of rounds.jsonl: rename it")


def stays_dense(
    module: nn.Module, options: PruningStrategy.Options, task: Task, groups: list[Group] | None = None
) -> str:
    """Return which of a model's parameters a strategy with these options never prunes, and why, as text.

    "" where the options ask for no pruning. Where whole channels are pruned, of which layers they are:
    of ``groups``, where these have been traced already.
    """
    if options.unit == "channel":
        if groups is None:
            inputs = task.info.inputs.random(2, torch.Generator().manual_seed(0))
            groups = channel_groups(module, inputs, options.keep)
        require(options.density, groups, module)
        return described(groups)
    prunes = options.density < 1 or isinstance(options, LearningOptions)
    return left_dense(module, options.keep) if prunes else ""


def _strategy(scenario: Scenario) -> Iterator[_Mistake]:
    try:
        strategy = registry.load("strategy", scenario.strategy.name, scenario.directory)
    except PluginError as error:
        yield ("strategy", "name"), str(error)
        return
    yield from algorithm_errors(scenario, strategy)
    given = scenario.strategy.options
    if not issubclass(strategy, PruningStrategy):
        yield from _against_signature(strategy, given)
        yield from _files("strategy", given)
        if scenario.clients.over_budget == "nest":
            yield (
                ("clients", "over_budget"),
                f"{strategy.__name__} cannot average nested masks, each client's own: take a strategy of "
                "fedprune, or exclude or shrink_batch",
            )
        return
    try:
        options = _options(strategy, given)
    except ValidationError as error:
        for key, message in explain(error, strategy.Options, "the method's documentation"):
            yield ("strategy", *key), message
        return
    wrong = set()
    for name, message in strategy.validation_errors(scenario, options):
        wrong.add(name)
        yield ("strategy", name), message
    known = {name: value for name, value in options.model_dump().items() if name not in wrong}
    yield from _files("strategy", known)


def _files(section: str, options: Mapping[str, Any]) -> Iterator[_Mistake]:
    """Find a "file.py:Name" that leads nowhere in options of which nobody knows what kind they name."""
    for option, value in options.items():
        for name in names_in(value):
            try:
                registry.in_file(name)
            except PluginError as error:
                yield (section, option), str(error)


def _against_signature(strategy: Callable[..., Any], given: Mapping[str, Any]) -> Iterator[_Mistake]:
    """Find mistakes in the options of a stock Flower strategy, which are the arguments of its constructor."""
    parameters = inspect.signature(strategy).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for key in given:
        if key not in known:
            yield ("strategy", key), f"no such option{known_here(key, known, '')}"
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in given:
            yield ("strategy", parameter.name), "this option is missing, and it has no default"


def _model(scenario: Scenario) -> Iterator[_Mistake]:
    try:
        factory = registry.load("model", scenario.model.name, scenario.directory)
    except PluginError as error:
        yield ("model", "name"), str(error)
        return
    options = scenario.model.options
    try:
        of_data = wanted(factory, Tokens((1,)).known())  # Whatever it will be.
        taken = checked(factory, {**of_data, **options}, scenario.model.name)
    except UserError as error:
        # The message quotes the option; the line is then that of the option, else that of the model.
        wrong = [key for key in options if repr(key) in str(error)]
        yield ("model", *wrong[:1]), str(error)
        return
    yield from _files("model", {**options, **taken})


def _weights(scenario: Scenario) -> Iterator[_Mistake]:
    path = scenario.model.weights
    if path is not None and not path.is_file():
        near = did_you_mean(path.name, (file.name for file in path.parent.glob("*")))
        yield ("model", "weights"), f"{path} is no file{near or _FROM}"
    elif path is not None:
        try:
            read_tensors(path, values=False)
        except UserError as error:
            yield ("model", "weights"), str(error)


def _data(scenario: Scenario) -> Iterator[_Mistake]:
    spec = scenario.data
    if spec.path is not None and not spec.path.exists():
        near = did_you_mean(spec.path.name, (file.name for file in spec.path.parent.glob("*")))
        yield ("data", "path"), f"{spec.path} does not exist{near or _FROM}"
    try:
        source = sources.find(spec.name, spec.path, scenario.directory)
    except PluginError as error:
        yield ("data", "name"), str(error)
        return
    if source is sources.hugging_face or spec.name in sources.SOURCES:
        kind = sources.OPTIONS.get(spec.name, SourceOptions)
        try:
            kind.model_validate(spec.options)
        except ValidationError as error:
            for option, message in explain(error, kind):
                yield ("data", "options", *option), message


def _changes(scenario: Scenario) -> Iterator[_Mistake]:
    """Find augmentations and shifts of clients that do not exist."""
    spec = scenario.data
    named: list[tuple[KeyPath, str, str]] = [
        (("data", "augment", number), "augmentation", each if isinstance(each, str) else each.name)
        for number, each in enumerate(spec.augment)
    ]
    if spec.client_shift is not None:
        named.append((("data", "client_shift", "name"), "client_shift", spec.client_shift.name))
    for key, kind, name in named:
        try:
            registry.load(kind, name, scenario.directory)
        except PluginError as error:
            yield key, str(error)


def _devices(scenario: Scenario) -> Iterator[_Mistake]:
    known = profiles(scenario.clients.profiles)
    for number, device in enumerate(scenario.clients.devices):
        if device.profile is not None and device.profile not in known:
            hint = known_here(device.profile, known, "`fedprune list devices`")
            yield (
                ("clients", "devices", number, "profile"),
                f"no device profile {show(device.profile)}{hint}; or give memory, compute, downlink and "
                "uplink",
            )


def _loggers(scenario: Scenario) -> Iterator[_Mistake]:
    for number, spec in enumerate(scenario.logging):
        key = ("logging", number)
        try:
            logger = registry.load("logger", spec.name, scenario.directory)
        except PluginError as error:
            yield (*key, "name"), str(error)
            continue
        for module, package in logger.needs.items():
            if not _installed(module):
                yield (*key, "name"), f"{spec.name} needs {module}: pip install '{package}' adds it"
        try:
            logger.Options.model_validate(spec.options)
        except ValidationError as error:
            for option, message in explain(error, logger.Options):
                yield (*key, *option), message


def _updates(scenario: Scenario) -> Iterator[_Mistake]:
    """Find a compressor that does not exist, or does not take its options."""
    if (spec := scenario.wire.updates) is None:
        return
    try:
        kind = registry.load("compressor", spec.name, scenario.directory)
    except PluginError as error:
        yield ("wire", "updates", "name"), str(error)
        return
    try:
        kind(kind.Options.model_validate(spec.options))
    except ValidationError as error:
        for option, message in explain(error, kind.Options):
            yield ("wire", "updates", *option), message


def _installed(module: str) -> bool:
    """Say whether a module can be imported; a mere folder of its name, such as ``./wandb``, is none."""
    found = find_spec(module)
    return found is not None and found.origin is not None


_LOOKS = (_model, _data, _changes, _devices, _strategy, _updates, _loggers)
