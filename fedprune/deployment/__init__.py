"""What it takes to run a scenario on real devices: keys, certificates, and a folder for each machine.

Not for running anything: Flower's SuperLink and SuperNodes do, from the folder that `init` writes.
"""

from fedprune.deployment.folder import init, trial

__all__ = ["init", "trial"]
