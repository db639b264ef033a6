#!/bin/sh
# The SuperLink of $name: it listens on $listen, port $port, with TLS, for registered SuperNodes alone.
set -eu
cd "$$(dirname "$$0")"
# The SuperLink starts other commands of the same installation: that of venv/, or the one in PATH.
export PATH="$$PWD/venv/bin:$$PATH" FLWR_HOME="$$PWD/flwr"
export FLWR_TELEMETRY_ENABLED="$${FLWR_TELEMETRY_ENABLED:-0}"
exec flower-superlink --host $listen --port $port \
    --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \
    --enable-supernode-auth --database superlink.sqlite \
    --disable-runtime-dependency-installation "$$@"
