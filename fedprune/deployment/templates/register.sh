#!/bin/sh
# Registers the public key of every device with the running SuperLink; to be run once.
set -u
cd "$$(dirname "$$0")"
export FLWR_HOME="$$PWD/flwr" FLWR_TELEMETRY_ENABLED="$${FLWR_TELEMETRY_ENABLED:-0}"
tries=0
until flwr supernode list $connection > /dev/null 2>&1; do
    tries=$$((tries + 1))
    if [ "$$tries" -ge 20 ]; then
        flwr supernode list $connection  # To say why.
        exit 1
    fi
    sleep 1
done
failed=0
for device in devices/*; do
    flwr supernode register "$$device/device.pub" $connection --name "$${device##*/}" || failed=1
done
exit "$$failed"
