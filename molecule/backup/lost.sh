#!/bin/sh
# Makes a set of several hosts, and loses one of them in the middle: lost.sh CONTAINER ANSIBLE-PLAYBOOK...
set -eu
container=$1
shift
(
    until docker exec "$container" grep -Eq '"step": "(fence|mark|release)"' /run/vmfleet-backup.held 2>/dev/null; do
        sleep 0.1
    done
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
