#!/bin/sh
# The SuperNode of client $number of $name. What it is and has, node-config says.
set -eu
cd "$$(dirname "$$0")"
# The SuperNode starts other commands of the same installation: that of venv/, or the one in PATH.
export PATH="$$PWD/venv/bin:$$PATH" FLWR_HOME="$$PWD/flwr"
export FLWR_TELEMETRY_ENABLED="$${FLWR_TELEMETRY_ENABLED:-0}"
exec flower-supernode --superlink $address --root-certificates ca.crt \
    --auth-supernode-private-key device.key --port "$${SUPERNODE_PORT:-9094}" \
    --node-config "$$(grep -v '^#' node-config | tr '\n' ' ')" "$$@"
