"""`fedprune resume`."""

from __future__ import annotations

import time

from fedprune.cli.arguments import Quiet, RunFolder, Settings, parse_settings
from fedprune.cli.ending import endable
from fedprune.cli.run import print_summary
from fedprune.cli.tables import console_on_stdout


def resume(
    directory: RunFolder,
    settings: Settings = None,
    quiet: Quiet = False,
) -> None:
    """Go on with the run in RUN_DIR from its newest checkpoint; --set may change engine and logging."""
    began = time.perf_counter()
    from fedprune.engine.simulation import resume as go_on

    with endable(directory) as ending:
        done = go_on(
            directory,
            overrides=parse_settings(settings or ()),
            progress=not quiet,
            listeners=[ending],
            began=began,
        )
    print_summary(done, console_on_stdout())
