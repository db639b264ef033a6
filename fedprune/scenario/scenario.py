"""The scenario as a whole, and reading one from a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fedprune.errors import ScenarioError
from fedprune.scenario import yaml_file as documents
from fedprune.scenario.base import Spec
from fedprune.scenario.clients import ClientsSpec
from fedprune.scenario.data import DataSpec
from fedprune.scenario.engine import EngineSpec
from fedprune.scenario.evaluation import EvaluationSpec
from fedprune.scenario.faults import FaultsSpec
from fedprune.scenario.logging import Logger, each_once
from fedprune.scenario.model import ModelSpec
from fedprune.scenario.server import ServerSpec
from fedprune.scenario.strategy import StrategySpec
from fedprune.scenario.task import TaskSpec
from fedprune.scenario.validation import explain, refuse
from fedprune.scenario.wire import WireSpec
from fedprune.scenario.yaml_file import KeyPath, Origin


class Scenario(Spec):
    """A federation: read one with `load_scenario`, or make one with `Scenario.from_mapping`.

    Immutable, comparable, hashable and picklable. Two scenarios are equal when they describe the same
    federation, whatever file each came from.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run and of its folder: letters, digits, '.', '_' and '-', the first a "
        "letter or a digit.",
        examples=["my-run"],
    )
    seed: int = Field(default=0, ge=0, description="Seed that every random draw of the run derives from.")
    rounds: int = Field(ge=1, description="Number of federated rounds.", examples=[30])
    model: ModelSpec = Field(description="The model that the federation trains.", examples=[{"name": "cnn"}])
    task: TaskSpec | None = Field(
        default=None,
        description="What is learnt; that for which the data set usually is, where not given.",
        examples=[{"name": "classification"}],
    )
    data: DataSpec = Field(default=DataSpec(), description="The data set, and who gets which part of it.")
    clients: ClientsSpec = Field(
        description="The clients: how many, what they do in a round, what they run on.",
        examples=[{"count": 20}],
    )
    strategy: StrategySpec = Field(
        description="The federated pruning method and its options.", examples=[{"name": "fedavg"}]
    )
    wire: WireSpec = Field(default=WireSpec(), description="How messages are encoded.")
    server: ServerSpec = Field(
        default=ServerSpec(), description="What the server computes with where it takes part in training."
    )
    evaluation: EvaluationSpec = Field(
        default=EvaluationSpec(), description="When and on what the global model is tested."
    )
    engine: EngineSpec = Field(
        default=EngineSpec(), description="What the simulation runs on; results do not depend on it."
    )
    faults: FaultsSpec = Field(
        default=FaultsSpec(),
        description="Faults that a simulation injects into training tasks; none where not given.",
    )
    logging: Annotated[tuple[Logger, ...], AfterValidator(each_once)] = Field(
        default=(),
        strict=False,
        description="Loggers, which tell trackers such as TensorBoard of the run: names, or mappings of a "
        "name and options; results do not depend on them.",
        examples=[["tensorboard"]],
    )

    _directory: Path = PrivateAttr(default_factory=Path.cwd)
    _origin: Origin = PrivateAttr(default_factory=Origin)

    def model_post_init(self, context: Any, /) -> None:
        """Keep where the scenario came from, given as the validation context."""
        for name, value in (context or {}).items():
            setattr(self, f"_{name}", value)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.evaluation.clients and self.data.client_test_fraction == 0:
            raise refuse(
                "evaluation.clients",
                "the clients have no test images: set data.client_test_fraction, for example to 0.2",
            )
        if self.evaluation.keep_best == "clients" and not self.evaluation.clients:
            raise refuse(
                "evaluation.keep_best",
                "is clients, and the clients do not test the model: set evaluation.clients to true or all",
            )
        for number, each in enumerate(self.faults.at):
            if each.round > self.rounds:
                raise refuse(
                    f"faults.at.{number}.round", f"{each.round} is after the last round, {self.rounds}"
                )
            if each.client >= self.clients.count:
                last = self.clients.count - 1
                raise refuse(
                    f"faults.at.{number}.client", f"there is no client {each.client}: they are 0 to {last}"
                )
        if self.faults.may_have("hang") and self.engine.task_timeout is None:
            raise refuse(
                "faults", "a task that hangs needs an end: set engine.task_timeout, for example to 60"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without these it is what it was before there were any: the same digest and files.
        written: dict[str, Any] = handler(self)
        given = {
            "logging": bool(self.logging),
            "task": self.task is not None,
            "server": self.server != ServerSpec(),
        }
        return {key: value for key, value in written.items() if given.get(key, True)}

    @property
    def directory(self) -> Path:
        """The folder of the scenario's file, which relative paths in it start from."""
        return self._directory

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any], directory: Path | str | None = None) -> Scenario:
        """Return the scenario that a mapping of plain values describes.

        Parameters
        ----------
        content : Mapping[str, Any]
            What a scenario file holds, as Python values.
        directory : Path or str, optional
            The folder that relative paths start from; the working directory where not given.

        Raises
        ------
        ScenarioError
            Where it describes no federation; one line for each mistake.
        """
        return cls._validated(content, Path(directory or "."), Origin())

    @classmethod
    def _validated(cls, content: Mapping[str, Any], directory: Path, origin: Origin) -> Scenario:
        context = {"directory": Path(os.path.abspath(directory)), "origin": origin}
        try:
            return cls.model_validate(dict(content), context=context)
        except ValidationError as error:
            mistakes = explain(error, cls, listed_in="`fedprune schema`")
            raise ScenarioError("\n".join(origin.complaint(*item) for item in mistakes)) from None

    def override(self, **changes: Any) -> Scenario:
        """Return the scenario with some values replaced, validated again.

        Parameters
        ----------
        **changes
            Key to value; keys are joined by "." or by "__":
            ``override(strategy__density=0.1)``, ``override(**{"clients.devices.0.share": 0.5})``.

        Raises
        ------
        ScenarioError
            Where a key is unknown or a value impossible.

        Examples
        --------
        >>> plan = {"name": "x", "rounds": 3, "model": {"name": "cnn"}, "clients": {"count": 4}}
        >>> scenario = Scenario.from_mapping({**plan, "strategy": {"name": "fedavg"}})
        >>> scenario.override(clients__count=8).clients.per_round
        8
        """
        # What was never set stays open, so that a default which depends on another value follows it.
        content = self.model_dump(mode="json", exclude_unset=True)
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        changed, origin = documents.override(content, self._origin, dotted)
        return self._validated(changed, self._directory, origin)

    def complaint(self, key: KeyPath, message: str) -> str:
        """Return one line that says where in which file the value at a key path stands, and the message."""
        return self._origin.complaint(key, message)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of all values, defaults included; the same in every process."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()

    def to_yaml(self) -> str:
        """Return the scenario with all values resolved, as YAML that reads back to an equal scenario."""
        return documents.write(self.model_dump(mode="json"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scenario):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def load_scenario(path: Path | str, overrides: Mapping[str, object] | None = None) -> Scenario:
    """Read a scenario file.

    Parameters
    ----------
    path : Path or str
        A YAML file.
    overrides : Mapping[str, object], optional
        Dotted key to value, put in place of the file's: ``{"strategy.density": "0.1"}``. Text is read as
        YAML, as if it stood in the file.

    Raises
    ------
    ScenarioError
        Where the file cannot be read or describes no federation; one line for each mistake, with the file,
        the line, the key and what would be right.
    """
    path = Path(path)
    content, origin = documents.read(path)
    if {"base", "runs"} <= content.keys():
        raise ScenarioError(f"{path}: this is a study, of several runs: fedprune study run {path}")
    values = {
        key: documents.parse(value, f"--set {key}") if isinstance(value, str) else value
        for key, value in (overrides or {}).items()
    }
    changed, origin = documents.override(content, origin, values, prefix="--set ")
    return Scenario._validated(changed, path.parent, origin)
