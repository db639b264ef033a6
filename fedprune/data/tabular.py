"""Rows of tables with numeric and categorical columns, from CSV and parquet files or the hub.

Stored is what the table says, not yet made comparable: a float a column, NaN where a value is missing, for a
category its number. Standardising and one-hot encoding happen batch by batch, with means and deviations that
are fitted to the clients' pooled sums (``standard``). Categories and classes are those of the training rows:
they are part of what the federation agrees on beforehand, as are the columns' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from fedprune.data import columns, tables
from fedprune.data.dataset import Examples
from fedprune.data.partition import choose, split_without_test
from fedprune.data.source import Request, Source, SourceOptions
from fedprune.data.standard import Standardised
from fedprune.errors import DataError

#: Different values from which on a column of text is taken for something else than categories.
_MOST_CATEGORIES = 1000


@dataclass(frozen=True)
class Columns(Standardised):
    """Rows, stored as float64 (N, numeric + categorical), numeric columns first.

    An input, (F,), has the standardised numeric values, 0 where one is missing; then, with ``flagged``, for
    each of them 1 where it is missing, else 0; then for each categorical column one value a category, of
    which that of the row's category is 1. A category that no training row has gives zeros.

    Attributes
    ----------
    shape
        (F,).
    mean, std
        Of the numeric columns.
    numeric
        Names of the numeric columns.
    categories
        Of each categorical column, by its name, the categories in the order of their numbers.
    flagged
        Whether missing numbers are marked.
    """

    numeric: tuple[str, ...] = ()
    categories: tuple[tuple[str, tuple[str, ...]], ...] = ()
    flagged: bool = False

    kind: ClassVar = "columns"

    @classmethod
    def of(
        cls, numeric: Sequence[str], categories: Sequence[tuple[str, tuple[str, ...]]], flagged: bool
    ) -> Columns:
        """Return inputs of these columns, of the shape that follows."""
        features = len(numeric) * (1 + flagged) + sum(len(names) for _, names in categories)
        return cls((features,), (), (), tuple(numeric), tuple(categories), flagged)

    def measured(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return the numeric columns, (N, C)."""
        return stored[:, : len(self.numeric)]

    def tensor(self, stored: Tensor) -> Tensor:
        """Return rows as float32 (B, F)."""
        numbers, numbered = stored.tensor_split([len(self.numeric)], dim=1)
        parts = [self.standardised(numbers)]
        if self.flagged:
            parts.append(numbers.isnan().float())
        for column, (_, names) in enumerate(self.categories):
            # One more for what no training row has, which is then dropped.
            number = torch.nan_to_num(numbered[:, column], nan=len(names)).long()
            parts.append(functional.one_hot(number, len(names) + 1)[:, :-1].float())
        return torch.cat(parts, dim=1)

    def settings(self) -> dict[str, object]:
        """Return columns and categories besides mean and standard deviation."""
        return super().settings() | {
            "numeric": list(self.numeric),
            "categories": {name: list(values) for name, values in self.categories},
            "flagged": self.flagged,
        }


class TabularOptions(SourceOptions):
    """What ``data.options`` may say of a table."""

    target: str = Field(description="The column to predict.")
    predict: Literal["class", "number"] | None = Field(
        default=None,
        description="class or number; by default a number where the target is a column of decimal fractions.",
    )
    numeric: tuple[str, ...] | None = Field(
        default=None,
        description="Columns to predict from; by default all that are not named otherwise: columns of "
        "numbers are numeric, text and true/false categorical.",
    )
    categorical: tuple[str, ...] | None = Field(
        default=None,
        description="Columns to predict from; by default all that are not named otherwise: columns of "
        "numbers are numeric, text and true/false categorical.",
    )
    ignore: tuple[str, ...] = Field(default=(), description="Columns to leave out.")
    missing: Literal["mean", "flag"] = Field(
        default="mean",
        description="What becomes of a missing number: the column's mean, or also a flag. A missing "
        "category is a category of its own.",
    )
    hub: str | None = Field(
        default=None, description="Where the Hugging Face hub has the table, without data.path."
    )


def tabular(request: Request) -> Source:
    """Rows of a table, CSV or parquet: predict a column (data.options.target) from the others."""
    options = request.read_options(TabularOptions)
    train, test = columns.read(request, options.hub)
    numeric, categorical = _columns(train, options, request.client_column)
    tables_ = [train] if test is None else [train, test]
    for table in tables_:
        columns.check(table, [options.target], "data.options.target")
        columns.check(table, [*numeric, *categorical], "a column of the training table")
    categories = [(name, _categories(train, name)) for name in categorical]
    stored = [_stored(table, numeric, categories) for table in tables_]
    targets, class_names = _targets(tables_, options)
    clients = None if request.client_column is None else columns.owners(train, request.client_column)
    return _source(
        request,
        stored,
        targets,
        Columns.of(numeric, categories, options.missing == "flag"),
        class_names,
        clients,
    )


def breast_cancer(request: Request) -> Source:
    """Breast cancer of scikit-learn (Wolberg et al. 1995): 474 + 95 rows of 30 numbers, 2 classes."""
    table = np.loadtxt(_of_scikit_learn("breast_cancer", "breast_cancer.csv"), delimiter=",", skiprows=1)
    names = [f"{what} {of}" for what in ("mean", "error", "worst") for of in _OF_NUCLEI]
    return _source(
        request,
        [table[:, :-1]],
        [table[:, -1].astype(np.int64)],
        Columns.of(names, (), False),
        ("malignant", "benign"),
    )


def diabetes(request: Request) -> Source:
    """Diabetes of scikit-learn (Efron et al. 2004): 368 + 74 rows of 10 columns, a number to predict."""
    table = np.loadtxt(_of_scikit_learn("diabetes", "diabetes_data_raw.csv.gz"))
    target = np.loadtxt(_of_scikit_learn("diabetes", "diabetes_target.csv.gz"))
    sex = table[:, 1:2] - 1  # 1 and 2: a category
    stored = np.concatenate([table[:, :1], table[:, 2:], sex], axis=1)
    numeric = ["age", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
    inputs = Columns.of(numeric, [("sex", ("1", "2"))], False)
    return _source(request, [stored], [target.astype(np.float32)], inputs, ())


def own_rows(path: Path, inputs: Columns, names: Sequence[str], target: str) -> list[Examples]:
    """Return a device's own rows, for training and, if it has some apart, for testing.

    Parameters
    ----------
    path
        A table with these columns, CSV or parquet, or a folder with ``train`` and, maybe, ``test``.
    inputs
        What the model takes.
    names
        The classes; () where numbers are predicted.
    target
        The column to predict.

    Raises
    ------
    DataError
        Where it can't be read, lacks a column, or has a target of no class.
    """
    made = []
    for table in columns.at(path):
        if table is not None:
            columns.check(
                table,
                [target, *inputs.numeric, *(name for name, _ in inputs.categories)],
                f"a column of {path}",
            )
            targets = columns.labels(table, target, names)[0] if names else _numbers(table, target)
            made.append(Examples(_stored(table, inputs.numeric, inputs.categories), targets))
    return made


_OF_NUCLEI = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave points",
    "symmetry",
    "fractal dimension",
)


def _of_scikit_learn(name: str, file: str) -> Path:
    """Return a file that scikit-learn brings; to import scikit-learn takes two seconds."""
    found = util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise tables.missing_extra(name, "scikit-learn")
    return Path(found.origin).parent / "datasets" / "data" / file


def _columns(table: Any, options: TabularOptions, client: str | None) -> tuple[list[str], list[str]]:
    """Return the names of the numeric and of the categorical columns."""
    columns.check(table, options.ignore, "data.options.ignore")
    columns.check(table, options.numeric or (), "data.options.numeric")
    columns.check(table, options.categorical or (), "data.options.categorical")
    if options.target in (*(options.numeric or ()), *(options.categorical or ())):
        raise DataError(
            f"data.options.target {options.target!r} is also named as a column to predict from: take it out"
        )
    named = {options.target, client, *options.ignore, *(options.numeric or ()), *(options.categorical or ())}
    free = [name for name in table.column_names if name not in named]
    columns.check(table, free, "a column to predict from")
    numeric = [name for name in free if columns.is_number(table, name)]
    categorical = [name for name in free if name not in numeric]
    if options.numeric is not None or options.categorical is not None:
        # Where one list is given, the other has what fits it of the rest; where both are, nothing more.
        numeric = numeric if options.numeric is None else list(options.numeric)
        categorical = categorical if options.categorical is None else list(options.categorical)
    if not numeric and not categorical:
        raise DataError(f"data set has no columns to predict {options.target!r} from")
    return numeric, categorical


def _categories(table: Any, name: str) -> tuple[str, ...]:
    """Return the categories of a column, sorted; what is missing is "" and comes first."""
    values = {"" if value is None else value for value in columns.texts(table, name)}
    if len(values) > _MOST_CATEGORIES:
        raise DataError(
            f"column {name!r} has {len(values)} different values, and a categorical one may have "
            f"{_MOST_CATEGORIES}: leave it out with data.options.ignore"
        )
    return tuple(sorted(values))


def _stored(
    table: Any, numeric: Sequence[str], categories: Sequence[tuple[str, tuple[str, ...]]]
) -> NDArray[np.float64]:
    """Return a table as `Columns` stores it."""
    parts = [columns.numbers(table, name) for name in numeric]
    for name, known in categories:
        number_of = {category: float(number) for number, category in enumerate(known)}
        values = ("" if value is None else value for value in columns.texts(table, name))
        parts.append(np.array([number_of.get(value, np.nan) for value in values]))
    return np.stack(parts, axis=1)


def _targets(tables_: Sequence[Any], options: TabularOptions) -> tuple[list[NDArray[Any]], tuple[str, ...]]:
    """Return the targets of each table, and the names of classes; () where numbers are predicted."""
    target, predict = options.target, options.predict
    if predict is None:
        fractions = columns.is_number(tables_[0], target) and not columns.is_whole(tables_[0], target)
        predict = "number" if fractions else "class"
    if predict == "number":
        return [_numbers(table, target) for table in tables_], ()
    first, names = columns.labels(tables_[0], target)
    return [first, *(columns.labels(table, target, names)[0] for table in tables_[1:])], names


def _numbers(table: Any, target: str) -> NDArray[np.float32]:
    """Return the numbers to predict, (N,)."""
    values = columns.numbers(table, target).astype(np.float32)
    if missing := int(np.sum(~np.isfinite(values))):
        raise DataError(f"column {target!r}: {missing} rows have no number to predict: leave them out")
    return values


def _source(
    request: Request,
    stored: Sequence[NDArray[np.float64]],
    targets: Sequence[NDArray[Any]],
    inputs: Columns,
    class_names: tuple[str, ...],
    clients: NDArray[Any] | None = None,
) -> Source:
    """Return the source of a training and a test table, or of one that is split."""
    if len(stored) == 1:
        train, test = split_without_test(len(stored[0]))
        stored, targets = [stored[0]] * 2, [targets[0]] * 2
    else:
        train, test = (np.arange(len(part)) for part in stored)
    train = choose(train, request.train_examples, request.seed, "train")
    test = choose(test, request.test_examples, request.seed, "test")
    return Source(
        Examples(stored[0][train], targets[0][train]),
        Examples(stored[1][test], targets[1][test]),
        class_names,
        inputs=inputs,
        task="classification" if class_names else "regression",
        clients=None if clients is None else clients[train],
    )
