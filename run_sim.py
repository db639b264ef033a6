"""Run one scenario: `python run_sim.py SCENARIO [--set KEY=VALUE ...] [--out DIR] [--seed N]`.

A thin door to `fedprune run`, which works in a checkout that is not installed.
"""

import sys

from fedprune.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
