"""The `fedprune` command: one file a command, put together in `fedprune.cli.app`.

A mistake ends with one line and exit status 2, a fault of a run with 1, Ctrl-C with 130.
"""

import sys
from importlib.util import find_spec

from fedprune.errors import UserError

# This package is imported to run the command and for nothing else, so it may end the process.
if find_spec("typer") is None or find_spec("rich") is None:
    print("error: the fedprune command is not part of the device install: "
          "pip install 'fedprune[sim]' adds it", file=sys.stderr)  # fmt: skip
    raise SystemExit(UserError.exit_status)

from fedprune.cli.app import main

__all__ = ["main"]
