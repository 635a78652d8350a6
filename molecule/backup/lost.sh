#!/bin/sh
# Makes a set of several hosts, and loses one of them in the middle: lost.sh CONTAINER ANSIBLE-PLAYBOOK...
set -eu
container=$1
shift
(
    # In one process there: starting one each time may take longer than the steps that are left.
    docker exec "$container" sh -c \
        'until grep -q "\"step\": \"fence\"" /run/vmfleet-backup.held 2>/dev/null; do sleep 0.05; done'
    docker kill "$container"
) >/dev/null &
watch=$!
rc=0
"$@" || rc=$?
if kill $watch 2>/dev/null; then
    echo 'there was no such moment' >&2
    exit 1
fi
docker start "$container"
[ $rc -ne 0 ] || { echo 'the set was made in spite of the loss' >&2; exit 1; }
