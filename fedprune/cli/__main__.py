"""``python -m fedprune.cli``: the `fedprune` command without its script."""

from fedprune.cli import main

raise SystemExit(main())
