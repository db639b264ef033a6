"""What a scenario asks a data source for, and what a source returns.

A source is a function of a `Request` to a `Source`. Not for single sources: those are beside this module, by
the kind of data that they read, and ``sources`` has them by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from fedprune.data.dataset import Examples
from fedprune.data.decoding import AS_FOUND, Form
from fedprune.data.inputs import Inputs
from fedprune.errors import DataError
from fedprune.wording import did_you_mean


class SourceOptions(BaseModel):
    """What a scenario may say under ``data.options``: a source with options has a subclass with fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_Options = TypeVar("_Options", bound=SourceOptions)


@dataclass(frozen=True)
class Request:
    """What a scenario asks a source for.

    Attributes
    ----------
    name
        The data set's name, as in the scenario.
    path
        A local file or folder, absolute, to read in place of the hub.
    seed
        The scenario's seed, for choosing among the examples.
    train_examples, test_examples
        How many to choose; None for all. A source reads no more than it must.
    image_column, label_column
        Names of the columns, where the scenario gives them.
    client_column
        The column that says whose an example is, where the scenario divides by it.
    options
        What the scenario says under ``data.options``.
    form
        What images are to be made; whole arrays may come as they are.
    lazy
        Whether inputs are to be read when they are asked for, where that can be; see `fedprune.data.Rows`.
    numbers
        Whether targets are to be numbers, as they are, and no classes.
    """

    name: str
    path: Path | None = None
    seed: int = 0
    train_examples: int | None = None
    test_examples: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    client_column: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    form: Form = AS_FOUND
    lazy: bool = False
    numbers: bool = False

    def read_options(self, kind: type[_Options]) -> _Options:
        """Return the options, checked.

        Raises
        ------
        DataError
            Where there is no such option, or one has a wrong value.
        """
        try:
            return kind.model_validate(dict(self.options))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, ("data.options", *first["loc"])))
            known = list(kind.model_fields)
            near = did_you_mean(str(first["loc"][0]), known) if first["type"] == "extra_forbidden" else ""
            raise DataError(
                f"{where}: {first['msg']}{near} (options of data set {self.name!r}: {', '.join(known)})"
            ) from error


@dataclass(frozen=True)
class Source:
    """What a source returns.

    Attributes
    ----------
    train, test
        The examples. Of images, pixels are uint8 or uint16 (N, C, H, W); labels, of any kind, become class
        numbers, see `fedprune.data.labels`.
    class_names
        By class number; () where targets are no classes, or a label is its class's name.
    mean, std
        Of images, per channel, of pixels / 255; None where they are not known.
    inputs
        How inputs become a model's, where they are no images.
    task
        The task that the data set is usually for.
    clients
        Whose each training example is, (N,), as text or whole numbers; None where nothing says so.
    """

    train: Examples
    test: Examples
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    inputs: Inputs | None = None
    task: str = "classification"
    clients: NDArray[Any] | None = None
