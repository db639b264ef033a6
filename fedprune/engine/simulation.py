"""Run a scenario: on Ray here, or on whatever grid Flower gives a ``ServerApp``.

``run`` is what the command line and a notebook call. ``serve`` is the part that both kinds of run
share: it builds the scenario's strategy, starts it on a grid and writes the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedprune import data as datasets
from fedprune import models
from fedprune.check import check
from fedprune.client import FederatedClientApp, Site
from fedprune.costs.ledger import Listener
from fedprune.data import FederatedData
from fedprune.determinism import make_deterministic
from fedprune.engine.cluster import cluster
from fedprune.errors import FedpruneError
from fedprune.evaluation import Score, chunks, combine, score
from fedprune.federation import Federation
from fedprune.results.folder import RunFolder
from fedprune.results.run import Run, load_run
from fedprune.scenario import Scenario, load_scenario
from fedprune.sparsity.masks import Masks
from fedprune.strategy import PruningStrategy, build_strategy
from fedprune.wire import set_state

Evaluate = Callable[[Mapping[str, Tensor], Masks], Score]


def run(
    scenario: Path | str | Scenario,
    /,
    *,
    out: Path | str | None = None,
    overwrite: bool = False,
    listeners: Sequence[Listener] = (),
    overrides: Mapping[str, object] | None = None,
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
        Replace a finished run in that folder.
    listeners : Sequence[Listener]
        Who hears of tasks and rounds as they end, besides the run folder.
    overrides, **changes
        Values to replace: ``overrides={"strategy.density": "0.1"}`` as on the command line, or
        ``strategy__density=0.1``, ``rounds=3``.

    Raises
    ------
    UserError
        For a mistake in the scenario, the data or the folder; nothing has run then.
    RunError
        When the run cannot go on; the run folder is complete up to the last round.
    KeyboardInterrupt
        On Ctrl-C; the run folder is complete up to the last round.

    Examples
    --------
    >>> run("scenarios/quickstart.yaml", rounds=2).summary["density"]  # doctest: +SKIP
    0.05
    """
    plan = scenario if isinstance(scenario, Scenario) else load_scenario(scenario, overrides)
    plan = plan.override(**(dict(overrides or {}) if isinstance(scenario, Scenario) else {}), **changes)
    check(plan)
    data = datasets.load(plan)
    directory = Path(out) if out is not None else Path("runs") / plan.name
    folder = RunFolder.create(directory, plan, overwrite=overwrite)
    with cluster(plan.engine) as placement:
        from fedprune.engine.grid import RayGrid  # Here: it needs Ray, which a device lacks.

        with RayGrid(
            build_client_app,
            [{}] * plan.clients.count,
            workers=placement.workers,
            resources={"scenario": plan, "data": data, "device": placement.device},
            gpus_per_worker=placement.gpus_per_worker,
            same_shapes=False,  # The strategy knows which shapes it expects, and checks them.
        ) as grid:

            def evaluate(state: Mapping[str, Tensor], masks: Masks) -> Score:
                common = (plan.evaluation.batch_size, dict(state))
                return combine(grid.map(_score_chunk, common, chunks(len(data.test.labels))))

            serve(plan, data, grid, evaluate, folder, listeners)
    return load_run(directory)


def serve(
    scenario: Scenario,
    data: FederatedData,
    grid: Any,
    evaluate: Evaluate,
    folder: RunFolder,
    listeners: Sequence[Listener] = (),
) -> None:
    """Run the scenario's strategy on a grid, and finish the run folder however it ends."""
    module = models.build(
        scenario.model.name,
        data.info.input_shape,
        data.info.classes,
        seed=scenario.seed,
        options=scenario.model.options,
        directory=scenario.directory,
    )
    strategy = build_strategy(
        Federation(
            scenario=scenario,
            info=data.info,
            module=module,
            pictures=data.train,
            public=data.server,
            evaluate=evaluate,
            listeners=[folder, *listeners],
        )
    )
    try:
        strategy.start(grid)
    except KeyboardInterrupt:
        _finish(folder, strategy, data, "interrupted", "stopped by Ctrl-C")
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, FedpruneError) else f"{type(error).__name__}: {error}"
        _finish(folder, strategy, data, "failed", reason)
        raise
    _finish(folder, strategy, data, "complete", None)


def _finish(
    folder: RunFolder, strategy: PruningStrategy, data: FederatedData, status: Any, reason: str | None
) -> None:
    folder.finish(
        status=status,
        reason=reason,
        state=strategy.state,
        masks=strategy.masks,
        info=data.info,
        dense=strategy.dense.tally.totals(),
    )


def build_client_app(scenario: Scenario, data: FederatedData, device: str) -> FederatedClientApp:
    """Return the client app of a simulation; a worker calls it once."""
    make_deterministic()
    site = Site(scenario, data, torch.device(device))
    return FederatedClientApp(lambda context: site)


def score_locally(scenario: Scenario, data: FederatedData) -> Evaluate:
    """Return an evaluator that does all chunks in this process, with the same result."""
    site = Site(scenario, data)

    def evaluate(state: Mapping[str, Tensor], masks: Masks) -> Score:
        set_state(site.module, state)
        size = scenario.evaluation.batch_size
        return combine(
            [
                score(site.module, data.test, chunk, data.info, batch_size=size)
                for chunk in chunks(len(data.test.labels))
            ]
        )

    return evaluate


_evaluation_sites: dict[str, Site] = {}


def _score_chunk(resources: Mapping[str, Any], common: tuple[int, dict[str, Tensor]], chunk: Any) -> Score:
    """Score one chunk of the test set in a worker."""
    scenario: Scenario = resources["scenario"]
    data: FederatedData = resources["data"]
    site = _evaluation_sites.setdefault(
        scenario.digest, Site(scenario, data, torch.device(resources["device"]))
    )
    batch_size, state = common
    set_state(site.module, state)
    return score(site.module, data.test, chunk, data.info, batch_size=batch_size)
