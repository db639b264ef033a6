"""Optuna's journal: its studies, their trials that go on, and how values are drawn for these."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprune.errors import UserError
from fedprune.studies.objectives import Direction
from fedprune.studies.spec import RangeSpec
from fedprune.wording import one_line

if TYPE_CHECKING:
    import optuna


def opened(
    journal: Path,
    name: str,
    directions: Sequence[Direction] | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
) -> optuna.Study | None:
    """Return Optuna's study in a journal.

    With ``directions`` it is made where it is not there; without, None is returned then.

    Raises
    ------
    UserError
        Where the journal is damaged.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(logging.WARNING)
    with quiet():
        try:
            storage = JournalStorage(JournalFileBackend(str(journal)))  # Reads all of it.
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"{journal}: damaged: {one_line(error)}; "
                "without it the search begins again and repeats no run"
            ) from None
        pruner = pruner or optuna.pruners.NopPruner()
        if directions is not None:
            return optuna.create_study(
                storage=storage, study_name=name, directions=directions, pruner=pruner, load_if_exists=True
            )
        if name not in {study.study_name for study in storage.get_all_studies()}:
            return None
        return optuna.load_study(storage=storage, study_name=name, pruner=pruner)


def trial_of(study: Any, number: int) -> tuple[Any, optuna.trial.FrozenTrial]:
    """Return a trial that has not ended, as it was when it was asked for; and what is known of it."""
    import optuna

    found = next(each for each in study.get_trials(deepcopy=False) if each.number == number)
    return optuna.trial.Trial(study, found._trial_id), found


def suggested(trial: Any, key: str, values: RangeSpec) -> Any:
    """Have Optuna choose a value of a range for a trial."""
    if values.choices is not None:
        return trial.suggest_categorical(key, values.choices)
    if values.whole:
        step = {} if values.step is None else {"step": values.step}
        return trial.suggest_int(key, values.low, values.high, log=values.log, **step)
    low, high = float(values.low or 0), float(values.high or 0)
    by = None if values.step is None else float(values.step)
    return trial.suggest_float(key, low, high, log=values.log, step=by)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what Optuna says of its experimental parts from people who did not choose them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")
        yield
