#!/bin/sh
# The SuperLink of $name: it listens on $listen, port $port, with TLS, for registered SuperNodes alone.
# SIGTERM (kill, systemctl stop) and Ctrl-C end it, and with it a run in progress.
set -eu
cd "$$(dirname "$$0")"
# The SuperLink starts other commands of the same installation: that of venv/, or the one in PATH.
export PATH="$$PWD/venv/bin:$$PATH" FLWR_HOME="$$PWD/flwr"
export FLWR_TELEMETRY_ENABLED="$${FLWR_TELEMETRY_ENABLED:-0}"
flower-superlink --host $listen --port $port \
    --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \
    --enable-supernode-auth --database superlink.sqlite \
    --disable-runtime-dependency-installation "$$@" &
superlink=$$!

# Flower's SuperLink waits for a run in progress, and the run for it. So what it has started is ended first: the
# ServerApp, which finishes the run folder, and the SuperExec.
stop() {
    trap '' INT TERM
    started="" parents="$$superlink"
    while [ -n "$$parents" ]; do
        parents=$$(for parent in $$parents; do pgrep -P "$$parent" || :; done)
        started="$$started $$parents"
    done
    end $$started
    end "$$superlink"
    exit 0
}

# Ends processes; those that are still there after six seconds, at once.
end() {
    [ "$$#" -gt 0 ] || return 0
    kill "$$@" 2> /dev/null || :
    for second in 1 2 3 4 5 6; do
        alive=$$(ps -o stat= -p "$$(echo "$$@" | tr ' ' ',')" | grep -v Z) || return 0
        sleep 1
    done
    kill -KILL "$$@" 2> /dev/null || :
}

trap stop INT TERM
wait "$$superlink"
