"""The run folder as it is written: plain files, line by line, while the run goes on.

A ``RunFolder`` listens to the ledger. What a killed run leaves behind is readable up to its
last round. Reading a folder back is the matter of `fedprune.results.run`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from torch import Tensor

import fedprune
from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.errors import UserError
from fedprune.results import plugin_copies, records
from fedprune.results.records import write_atomically
from fedprune.sparsity.masks import Masks

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from fedprune.scenario import Scenario
    from fedprune.tasks import Score, Task

SCENARIO = "scenario.yaml"
ROUNDS = "rounds.jsonl"
CLIENTS = "clients.jsonl"
SUMMARY = "summary.json"
TASK = "task.json"
METRICS = "metrics.json"
MODEL = "model.safetensors"
BEST = "best.safetensors"
_FORMS = ("png", "pdf")
FIGURES = tuple(f"{name}.{form}" for name in ("accuracy", "costs", "density", "classes") for form in _FORMS)
CHECKPOINTS = "checkpoints"
# What loggers write, see `fedprune.loggers`.
TENSORBOARD, WANDB = "tensorboard", "wandb"
MLFLOW, MLFLOW_RUN = "mlflow", "mlflow/run_id"

# The first line of a run's scenario.yaml: it tells a run folder from a person's own folder.
_SIGNATURE = "# A run of fedprune: the scenario as it was resolved. It can be run again as it is."


def is_run_folder(directory: Path) -> bool:
    """Say whether fedprune wrote this folder: whether its scenario.yaml is that of a run."""
    try:
        with (directory / SCENARIO).open(encoding="utf-8") as file:
            return file.readline().rstrip("\n") == _SIGNATURE
    except (OSError, UnicodeDecodeError):
        return False


def metrics_of(directory: Path) -> Mapping[str, bool | None]:
    """Return the metrics of a run's task, the headline first, and whether higher is better."""
    try:
        found: dict[str, bool | None] = json.loads((directory / TASK).read_text(encoding="utf-8"))["metrics"]
    except (OSError, ValueError, KeyError, TypeError):
        return records.ACCURACY  # A run of before there were tasks.
    return found


def refuse_complete(directory: Path) -> None:
    """Raise a ``UserError`` where a folder holds a run that has come to its end."""
    if _is_complete(directory):
        raise UserError(f"{directory}: the run is complete; there is nothing left to resume")


def _is_complete(directory: Path) -> bool:
    try:
        summary = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(summary, dict) and summary.get("status") == "complete"


def holds_rounds(directory: Path) -> bool:
    """Say whether a folder holds the records of a round of training; round 0 is what came before."""
    return any(record["round"] > 0 for record in records.read_lines(directory / ROUNDS))


class RunFolder:
    """Writes one run into its folder; a `fedprune.costs.ledger.Listener`.

    Made by `create` or, to go on after a checkpoint, by `reopen`.
    """

    def __init__(
        self,
        directory: Path,
        scenario: Scenario,
        lock: int | None = None,
        *,
        metrics: Mapping[str, bool | None] = records.ACCURACY,
    ) -> None:
        self.began = time.perf_counter()  #: When the run began; one that began earlier says so.
        self.draws = util.find_spec("matplotlib") is not None  #: Whether figures are drawn at the end.
        self.directory = directory
        self.scenario = scenario
        self.metrics = metrics
        self._lock = lock
        self._pending: list[str] = []
        self._startup: float | None = None
        before = records.read_lines(directory / ROUNDS)
        self._before = sum(record["wall_seconds"] for record in before)
        self._best: float | None = None
        if (column := self.column_of_the_best) is not None:
            best = records.best_round(before, column, next(iter(metrics.values())))
            self._best = None if best is None else best[column]
        self._rounds = (directory / ROUNDS).open("a", encoding="utf-8")
        self._clients = (directory / CLIENTS).open("a", encoding="utf-8")

    @classmethod
    def create(
        cls,
        directory: Path,
        scenario: Scenario,
        *,
        overwrite: bool = False,
        metrics: Mapping[str, bool | None] = records.ACCURACY,
    ) -> RunFolder:
        """Make the folder of a new run, with its ``scenario.yaml`` and copies of its plug-in files.

        A folder that holds the records of a run is refused; with ``overwrite`` the files of
        that run are removed, and only those. A folder with other files in it that is not a
        run's is always refused. ``metrics`` are the task's, the headline first, and whether higher is better.

        Raises
        ------
        UserError
            Where the folder is refused or cannot be made.
        """
        _make_directory(directory)
        lock = _lock(directory)
        try:
            _make_room(directory, overwrite=overwrite)
            write_atomically(directory / SCENARIO, scenario_text(scenario).encode())
            write_atomically(directory / TASK, f"{json.dumps({'metrics': dict(metrics)})}\n".encode())
            plugin_copies.keep(directory, scenario)
            return cls(directory, scenario, lock, metrics=metrics)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise

    @classmethod
    def reopen(cls, directory: Path, scenario: Scenario, *, last_round: int) -> RunFolder:
        """Reopen an interrupted run: keep its records up to ``last_round``, drop later ones.

        Raises
        ------
        UserError
            Where the folder is not a run's, another run is writing there, the run is complete, or its
            records end before ``last_round``.
        """
        if not is_run_folder(directory):
            raise UserError(f"{directory}: not a run folder, so there is no run to resume")
        lock = _lock(directory)
        try:
            refuse_complete(directory)
            rounds = records.read_lines(directory / ROUNDS)
            if not any(record["round"] == last_round for record in rounds):
                raise UserError(f"{directory / ROUNDS}: holds no round {last_round} to resume after")
            (directory / SUMMARY).unlink(missing_ok=True)
            for name in (ROUNDS, CLIENTS):
                kept = [r for r in records.read_lines(directory / name) if r["round"] <= last_round]
                write_atomically(directory / name, "".join(json.dumps(r) + "\n" for r in kept).encode())
            return cls(directory, scenario, lock, metrics=metrics_of(directory))
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise

    def __enter__(self) -> Self:
        """Hold the folder: no other run may write into it."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Let go of the folder."""
        self.close()

    def started(self) -> None:
        """Note that start-up has ended: what comes now is round 0, or the first that is left."""
        self._startup = time.perf_counter() - self.began

    def on_task(self, task: TaskRecord) -> None:
        """Keep one line of ``clients.jsonl`` until its round has ended."""
        self._pending.append(records.to_line(task))

    def on_round(self, round: RoundRecord) -> None:
        """Write one line of ``rounds.jsonl`` and those of its clients, to disk."""
        # Clients first: a round that can be read then has all its clients.
        self._clients.writelines(self._pending)
        self._clients.flush()
        self._pending.clear()
        self._rounds.write(records.to_line(round))
        self._rounds.flush()

    def finish(
        self,
        *,
        status: Literal["complete", "interrupted", "failed"],
        reason: str | None,
        state: Mapping[str, Tensor],
        masks: Masks,
        task: Task,
        dense: Mapping[str, float] | None,
        score: Score | None = None,
    ) -> Path:
        """Write the model, the figures and, last, the summary; return the folder.

        Of a run that is interrupted the figures come last: they take seconds, and whoever ends a run may not
        wait for them. Flower ends the process of its ServerApp after five.

        Parameters
        ----------
        status, reason
            How the run ended, and why where it did not complete.
        state, masks
            The final global model: float tensors by name, and which of their weights are kept.
        task
            What the model has learnt, of which data; stored with it.
        dense
            What dense FedAvg would have cost under the same scenario (total of each of
            `fedprune.results.records.COSTS`), or None where the cost model does not give it.
        score
            How well the model did when it was tested last, on the server's test data.

        Figures need matplotlib, which a device install lacks; they are left out there.
        """
        if status == "failed":
            self._clients.writelines(self._pending)  # They say why.
        self._clients.close()
        self._rounds.close()
        rounds = records.read_lines(self.directory / ROUNDS)
        try:
            model = self._write_model(state, masks, task)
        except Exception as error:
            # A strategy of a user's may leave a state that is no model; the records are sound.
            if status == "complete":
                raise
            model, reason = (
                {},
                f"{reason}; and the model could not be written: {type(error).__name__}: {error}",
            )
        details = {} if score is None else score.details(task.metrics)
        if details:
            text = json.dumps(
                records.strict({"class_names": task.info.class_names, **details}), allow_nan=False
            )
            write_atomically(self.directory / METRICS, f"{text}\n".encode())
        if status != "interrupted":
            self._draw(rounds, details, task)
        summary = records.summarise(
            rounds,
            records.each_line(self.directory / CLIENTS),  # By far the most: never all at once.
            name=self.scenario.name,
            # Of "/home/me/mine.py:Mine" and "flwr.serverapp.strategy.FedAdam", the class.
            strategy=self.scenario.strategy.name.rpartition(":")[2].rpartition(".")[2],
            seed=self.scenario.seed,
            planned_rounds=self.scenario.rounds,
            status=status,
            reason=reason,
            metrics=self.metrics,
            dense=dense,
            model=model,
            startup_seconds=self._startup,
            total_seconds=self._before + time.perf_counter() - self.began,
        )
        if (column := self.column_of_the_best) is not None:
            best = records.best_round(rounds, column, next(iter(self.metrics.values())))
            chosen = None if best is None else {"round": best["round"], column: best[column]}
            summary["best_model"] = chosen and {**chosen, "chosen_on": self.scenario.evaluation.keep_best}
        text = json.dumps(records.strict(summary), indent=2, allow_nan=False)
        write_atomically(self.directory / SUMMARY, f"{text}\n".encode())
        if status == "interrupted":
            self._draw(rounds, details, task)
        self.close()
        return self.directory

    def _draw(self, rounds: list[records.Record], details: Mapping[str, Any], task: Task) -> None:
        if rounds and self.draws:
            from fedprune.results import figures

            title, matrix = self.scenario.name, details.get("confusion_matrix")
            figures.draw(rounds, self.directory, title=title, metrics=self.metrics)
            if matrix is not None:
                figures.draw_confusion(matrix, task.info.class_names, self.directory, title=title)

    @property
    def column_of_the_best(self) -> str | None:
        """The column by which the best model is chosen; None where none is kept."""
        headline = next(iter(self.metrics))
        chosen_on = self.scenario.evaluation.keep_best
        return {"clients": f"client_{headline}", "test": headline}.get(chosen_on or "")

    def keep_best(self, record: RoundRecord, state: Mapping[str, Tensor], masks: Masks, task: Task) -> None:
        """Keep the model of a round, which has been written, if it is the best so far.

        Where a run goes on after a kill, the round is found the best again and its model written again.
        """
        column, higher = self.column_of_the_best, next(iter(self.metrics.values()))
        value = None if column is None else record.columns().get(column)
        if value is None or record.round == 0:
            return
        if self._best is None or (value < self._best if higher is False else value > self._best):
            self._best = value
            self._write_model(state, masks, task, BEST)

    def close(self) -> None:
        """Close the files and release the folder; may be called again."""
        self._clients.close()
        self._rounds.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write_model(
        self, state: Mapping[str, Tensor], masks: Masks, task: Task, name: str = MODEL
    ) -> dict[str, float]:
        """Write a model's file; return the model's size and densities for the summary."""
        from fedprune.results import modelfile

        sizes = modelfile.save_model(
            self.directory / name,
            state,
            masks,
            model=self.scenario.model.factory,
            **modelfile.described(task),
        )
        kept = sum(masks.kept.get(name, size) for name, size in sizes.items())
        parameters = sum(sizes.values())
        return {
            "density": masks.density,
            "density_all_weights": kept / parameters,
            "parameters": parameters,
        }


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be a run folder: {error.strerror}") from None


def _lock(directory: Path) -> int | None:
    """Take the folder for this process; the system releases it however the process ends."""
    if fcntl is None:
        return None
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"{directory}: another run is writing here; give another folder (--out, or out=...)"
        ) from None
    except OSError:  # A file system without locks: go without one.
        os.close(handle)
        return None
    return handle


def _make_room(directory: Path, *, overwrite: bool) -> None:
    """Empty the folder of any earlier run, or say why not."""
    # A process that was killed, or a full disk, leaves the first file of a run so.
    present = {path.name for path in directory.iterdir()} - {f".{SCENARIO}.unfinished"}
    if not present:
        return
    if not is_run_folder(directory):
        raise UserError(
            f"{directory}: holds files that are not a run's ({', '.join(sorted(present)[:3])}); "
            "give an empty or new folder (--out, or out=... in Python)"
        )
    if _holds_records(directory) and not overwrite:
        broken_off = any((directory / CHECKPOINTS).glob("round-*")) and not _is_complete(directory)
        go_on, resume = ("go on with it (--resume), ", "resume=True, ") if broken_off else ("", "")
        raise UserError(
            f"{directory}: holds a run already; give another folder (--out), {go_on}or replace it "
            f"(--overwrite); in Python or a run config out=..., {resume}or overwrite=True (TOML: true)"
        )
    for path in _own_files(directory):
        path.unlink()
    plugin_copies.remove(directory)
    for name in (TENSORBOARD, WANDB):  # A database of MLflow's may be open: its logger deletes the run there.
        shutil.rmtree(directory / name, ignore_errors=True)
    for pattern in ("round-*", ".round-*.unfinished"):
        for path in (directory / CHECKPOINTS).glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)


def _holds_records(directory: Path) -> bool:
    rounds = directory / ROUNDS
    return (directory / SUMMARY).exists() or (rounds.exists() and rounds.stat().st_size > 0)


def _own_files(directory: Path) -> Iterator[Path]:
    """Yield the files of a run, but for its scenario.yaml, which the next run replaces."""
    drawn = [f"{name}.{form}" for name in (*metrics_of(directory), "confusion_matrix") for form in _FORMS]
    names = dict.fromkeys((SUMMARY, METRICS, ROUNDS, CLIENTS, MODEL, BEST, TASK, *FIGURES, *drawn))
    own = [MLFLOW_RUN, *names, *(f".{name}.unfinished" for name in (*names, SCENARIO))]
    yield from (directory / name for name in own if (directory / name).is_file())


def scenario_text(scenario: Scenario) -> str:
    """Return ``scenario.yaml``: the versions as comments, then a scenario that can be run again."""
    comments = "".join(f"#   {name}: {version}\n" for name, version in versions().items())
    return f"{_SIGNATURE}\n# versions:\n{comments}{scenario.to_yaml()}"


def versions() -> dict[str, str]:
    """Return the versions that a result depends on; what is not installed is left out."""
    found = {"fedprune": fedprune.__version__, "python": platform.python_version()}
    for package in ("flwr", "torch", "ray", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _git_commit(Path(fedprune.__file__).resolve().parent.parent)
    return found | ({"git commit": commit} if commit else {})


def versions_of(directory: Path) -> dict[str, str]:
    """Return the versions that made a run, as its ``scenario.yaml`` has them; {} where it has none."""
    found: dict[str, str] = {}
    try:
        with (directory / SCENARIO).open(encoding="utf-8") as file:
            for line in file:
                if not line.startswith("#"):
                    break
                name, separator, version = line.removeprefix("#   ").rstrip("\n").partition(": ")
                if line.startswith("#   ") and separator:
                    found[name] = version
    except (OSError, UnicodeDecodeError):
        return {}
    return found


def _git_commit(checkout: Path) -> str | None:
    """Return the commit of a checkout, marked "-dirty" where files differ from it; None without one."""
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
