"""Run a scenario: on Ray here, or on whatever grid Flower gives a ``ServerApp``.

``run`` is what the command line and a notebook call. What it shares with Flower's ``ServerApp`` is
making the strategy and finishing the run folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedprune import tasks
from fedprune.client.site import Site
from fedprune.costs.ledger import Listener, RoundRecord, TaskRecord
from fedprune.data import FederatedData
from fedprune.determinism import deterministic
from fedprune.engine import checkpoints
from fedprune.engine.checkpoints import Checkpoint
from fedprune.engine.divergence import Divergence
from fedprune.engine.ending import Halted
from fedprune.engine.hosts import Host, OnRay
from fedprune.errors import FedpruneError, UserError
from fedprune.loggers.channels import logged
from fedprune.results.folder import SCENARIO, RunFolder, holds_rounds, is_run_folder, refuse_complete
from fedprune.results.plugin_copies import warn_of_changes
from fedprune.results.progress import Progress
from fedprune.results.run import Run, load_run
from fedprune.scenario import Scenario, load_scenario
from fedprune.server import weights
from fedprune.server.check import check_columns, resolve, stays_dense
from fedprune.server.columns import from_columns, to_columns
from fedprune.server.federation import Federation, announce
from fedprune.server.snapshot import restore, snapshot
from fedprune.server.strategy import PruningStrategy, build_strategy
from fedprune.sparsity.masks import Masks
from fedprune.tasks import Score, combine
from fedprune.training.evaluation import chunks, score
from fedprune.wire import largest_reply, set_state
from fedprune.wording import one_line

Evaluate = Callable[[Mapping[str, Tensor], Masks], Score]


def run(
    scenario: Path | str | Scenario,
    /,
    *,
    out: Path | str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
    overrides: Mapping[str, object] | None = None,
    began: float | None = None,
    host: Host | None = None,
    figures: bool = True,
    **changes: object,
) -> Run:
    """Run a scenario on Ray and return what it reached and what it cost.

    Parameters
    ----------
    scenario : Path, str or Scenario
        A scenario file, or a scenario.
    out : Path or str, optional
        The run folder; ``runs/<name>`` in the working directory where not given.
    overwrite : bool
        Replace a run in that folder.
    resume : bool
        Go on with the run in that folder from its newest checkpoint; run from the start where there is
        neither a checkpoint nor a round of training. Listeners are told of the remaining rounds.
    progress : bool
        Show a progress bar, or a line a round where there is no terminal, on standard error.
    listeners : Sequence[Listener]
        Told of every task and round as it ends, besides the run folder.
    overrides : Mapping[str, object], optional
        Values to replace, as on the command line: ``{"strategy.density": "0.1"}``.
    began : float, optional
        When start-up began, by ``time.perf_counter()``; the time of the call where not given. The command
        counts its imports, too.
    host : Host, optional
        What the clients run on; Ray where not given. A study has its own.
    figures : bool
        Draw the run's figures when it ends.
    **changes : object
        The same as ``overrides``, as keywords: ``strategy__density=0.1``, ``rounds=3``.

    Raises
    ------
    UserError
        For a mistake in the scenario, the data or the folder; nothing has run then. So for a run that
        is complete, or was of another scenario, where it is to be resumed.
    RunError
        When the run cannot go on; the run folder is complete up to the last round.
    KeyboardInterrupt
        On Ctrl-C; the run folder is complete up to the last round.

    Examples
    --------
    >>> run("scenarios/quickstart.yaml", rounds=2).summary["density"]  # doctest: +SKIP
    0.02
    """
    if overwrite and resume:
        raise UserError("to overwrite a run and to resume it are two things: give one of them")
    began = time.perf_counter() if began is None else began
    host = OnRay() if host is None else host
    plan = scenario if isinstance(scenario, Scenario) else load_scenario(scenario, overrides)
    plan = plan.override(**(dict(overrides or {}) if isinstance(scenario, Scenario) else {}), **changes)
    directory = Path(out) if out is not None else Path("runs") / plan.name
    warn_of_changes(directory, plan.directory)
    resumes = goes_on(directory, resume)
    plan = resolve(plan, resumes=resumes)
    heard = list(listeners)
    with ExitStack() as stack:
        stack.enter_context(deterministic(plan.engine.instructions))
        if progress:
            shown = stack.enter_context(Progress(plan.rounds))
            heard.insert(0, shown)
        announce(heard, f"reading {plan.data.name}")
        data = host.load(plan)
        evaluation = SpreadEvaluation(plan, data)
        strategy = make_strategy(plan, data, evaluation, heard, host.pretrained, resumes=resumes)
        folder, checkpoint = opened(stack, strategy, directory, overwrite=overwrite, resume=resume)
        if progress and (
            dense := stays_dense(strategy.module, strategy.options, strategy.task, strategy.traced_groups)
        ):
            shown.note(dense)
        folder.began = began
        folder.draws &= figures
        heard.insert(0, folder)
        told = stack.enter_context(logged(folder, checkpoint.round if checkpoint is not None else None))
        # Ray is left to the outer stack: it ends after the folder is finished, however long that takes it.
        with finished(folder, strategy):
            frozen = strategy.model.frozen_state
            grid = stack.enter_context(host.grid(plan, data, largest_reply(strategy.layout), heard, frozen))
            if checkpoint is not None:
                grid.states = from_columns(checkpoint.content["clients"])
            told.wait(heard)
            heard.append(Divergence(plan, strategy.task))
            heard += [told, BestModel(folder, strategy), remember(folder, strategy, lambda: grid.states)]
            evaluation.grid = grid
            folder.started()
            strategy.start(grid)
    return load_run(directory)


def resume(
    directory: Path | str,
    /,
    *,
    progress: bool = True,
    listeners: Sequence[Listener] = (),
    overrides: Mapping[str, object] | None = None,
    began: float | None = None,
) -> Run:
    """Resume an interrupted run from its newest checkpoint; see `run`.

    Its results, but for wall time, are those of an uninterrupted run. ``overrides``
    may replace values under ``engine``, and ``logging``; for ``began`` see `run`.

    Raises
    ------
    UserError
        Besides what `run` raises, for a folder without a run or without a checkpoint.
    """
    directory = Path(directory)
    if not is_run_folder(directory):
        raise UserError(f"{directory}: not a run folder, so there is no run to resume")
    refuse_complete(directory)
    scenario = directory / SCENARIO
    if not checkpoints.listed(directory):
        again = f"fedprune run {scenario} --out {directory} --overwrite"
        raise UserError(f"{directory}: has no checkpoint to resume from; to run it anew: {again}")
    return run(
        scenario,
        out=directory,
        resume=True,
        progress=progress,
        listeners=listeners,
        overrides=overrides,
        began=began,
    )


def goes_on(directory: Path, resume: bool) -> bool:
    """Say whether a run goes on from a checkpoint in its folder: its model does not begin anew."""
    return resume and bool(checkpoints.listed(directory))


def opened(
    stack: ExitStack, strategy: PruningStrategy, directory: Path, *, overwrite: bool, resume: bool
) -> tuple[RunFolder, Checkpoint | None]:
    """Open the folder of a run, for as long as the stack; return the checkpoint that it goes on from, too.

    The strategy is then where the checkpoint was. See `run` for what the arguments say and what is raised.
    """
    checkpoint = _restored(strategy, directory) if resume else None
    if checkpoint is None:
        # A run that was killed before its first checkpoint leaves at most what came before training.
        anew = overwrite or (resume and not holds_rounds(directory))
        metrics = {m.name: m.higher_is_better for m in strategy.task.metrics if m.has_value}
        folder = RunFolder.create(directory, strategy.scenario, overwrite=anew, metrics=metrics)
    else:
        folder = RunFolder.reopen(directory, strategy.scenario, last_round=checkpoint.round)
        checkpoints.discard_after(directory, checkpoint.round)
    return stack.enter_context(folder), checkpoint


def remember(
    folder: RunFolder, strategy: PruningStrategy, states: Callable[[], Mapping[int, bytes]] = dict
) -> Listener:
    """Return what writes a checkpoint as a round ends: the strategy's part, and what each client keeps.

    ``states`` returns the latter by node id; real devices keep it themselves.
    """
    return checkpoints.Checkpoints(folder, lambda: remembered(strategy, states()))


class BestModel:
    """Keeps the model of the best round beside the last: a listener, where the scenario asks for it."""

    def __init__(self, folder: RunFolder, strategy: PruningStrategy) -> None:
        self._folder, self._strategy = folder, strategy

    def on_task(self, task: TaskRecord) -> None:
        """Hear of a task: nothing is done."""

    def on_round(self, round: RoundRecord) -> None:
        """Keep the round's model if it is the best so far."""
        strategy = self._strategy
        self._folder.keep_best(round, strategy.state, strategy.masks, strategy.task)


def remembered(strategy: PruningStrategy, states: Mapping[int, bytes]) -> dict[str, Any]:
    """Return what a checkpoint holds: the strategy's part, and what each client keeps, by node id."""
    return {"strategy": snapshot(strategy), "clients": to_columns(states)}


def _restored(strategy: PruningStrategy, directory: Path) -> Checkpoint | None:
    """Put a strategy where the newest checkpoint of a run folder was; return that, None without any."""
    refuse_complete(directory)
    checkpoint = checkpoints.newest(directory, strategy.scenario)
    if checkpoint is not None:
        try:
            restore(strategy, checkpoint.content["strategy"])
        except Exception as error:  # Whatever a strategy of a user's raises that is no longer what it was.
            raise UserError(
                f"{checkpoint.path}: does not fit the strategy as it is now: {one_line(error)}"
            ) from error
    return checkpoint


def make_strategy(
    scenario: Scenario,
    data: FederatedData,
    evaluate: Evaluate,
    listeners: Sequence[Listener],
    pretrained: Path | None = None,
    *,
    resumes: bool = False,
) -> PruningStrategy:
    """Build the scenario's model and strategy; what cannot be built is refused before anything runs.

    ``pretrained`` is a folder that keeps models after pretraining. Where the run ``resumes``, its values are
    those of a checkpoint, and ``model.weights`` is not read: the file may be gone.

    Raises
    ------
    UserError
        For a model that does not fit the data, or options that do not fit the model.
    """
    task = tasks.build(scenario, data.info)
    check_columns(task)
    for split, examples in (("train", data.train), ("test", data.test)):
        tasks.check_examples(task, examples, f"data set {scenario.data.name!r}: {split}")
    tasks.check_metrics(task, data.test)
    tasks.check_mixing(scenario, task, data.train)
    module = tasks.build_model(scenario, task)
    tasks.check_model(scenario, task, module)
    if not resumes:
        weights.begin(scenario, module, task.info.class_names)
    federation = Federation(
        scenario=scenario,
        task=task,
        module=module,
        examples=data.train,
        public=data.server,
        evaluate=evaluate,
        listeners=listeners,
        pretrained=pretrained,
    )
    return build_strategy(federation)


@contextmanager
def finished(folder: RunFolder, strategy: PruningStrategy) -> Iterator[None]:
    """Finish the run folder when the block ends, however it ends; SIGTERM ends it like Ctrl-C."""

    def finish(status: Any, reason: str | None) -> None:
        folder.finish(
            status=status,
            reason=reason,
            state=strategy.state,
            masks=strategy.masks,
            task=strategy.task,
            dense=strategy.dense.totals,
            score=strategy.score,
        )

    try:
        yield
    except KeyboardInterrupt as stop:
        finish("interrupted", str(stop) if isinstance(stop, Halted) else "stopped by Ctrl-C")
        raise
    except SystemExit as error:  # How Flower's ServerApp ends on a signal; and Ray, where its own dies.
        if error.code:
            finish("failed", one_line(error))
        else:
            finish("interrupted", "stopped by a signal")
        raise
    except BaseException as error:
        finish("failed", str(error) if isinstance(error, FedpruneError) else one_line(error))
        raise
    finish("complete", None)


class SpreadEvaluation:
    """Scores a global state on the server's test data, spread over the workers of ``grid``."""

    def __init__(self, scenario: Scenario, data: FederatedData) -> None:
        self.grid: Any = None
        self._batch_size = scenario.evaluation.batch_size
        self._chunks = chunks(len(data.test))

    def __call__(self, state: Mapping[str, Tensor], masks: Masks) -> Score:
        """Return the score; the same bits for any number of workers."""
        return combine(self.grid.map(_score_chunk, (self._batch_size, dict(state)), self._chunks))


def score_locally(scenario: Scenario, data: FederatedData) -> Evaluate:
    """Return an evaluator that does all chunks in this process, with the same result."""
    site = Site(scenario, data)

    def evaluate(state: Mapping[str, Tensor], masks: Masks) -> Score:
        set_state(site.whole, state)
        size = scenario.evaluation.batch_size
        return combine(
            [
                score(site.whole, data.test, chunk, site.task, batch_size=size)
                for chunk in chunks(len(data.test))
            ]
        )

    return evaluate


#: What a process evaluates with, by the scenario's digest: that of the run it was last at work for.
_evaluation_site: dict[str, Site] = {}


def _score_chunk(resources: Mapping[str, Any], common: tuple[int, dict[str, Tensor]], chunk: Any) -> Score:
    """Score one chunk of the test set in a worker."""
    scenario: Scenario = resources["scenario"]
    data: FederatedData = resources["data"]
    if scenario.digest not in _evaluation_site:
        _evaluation_site.clear()
        _evaluation_site[scenario.digest] = Site(scenario, data, torch.device(resources["device"]))
    site = _evaluation_site[scenario.digest]
    batch_size, state = common
    set_state(site.whole, state)
    return score(site.whole, data.test, chunk, site.task, batch_size=batch_size)
