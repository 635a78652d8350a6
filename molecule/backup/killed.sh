#!/bin/sh
# Kills snapshots and restores at their worst moments. Each time the sets from before are there, nothing else is, the
# database answers, and the next run does what it should. Its argument is the repository.
. /root/common.sh
sets() { vmfleet-backup --json list | python3 -c 'import json, sys; print(*(one["id"] for one in json.load(sys.stdin)))'; }
config=/etc/vmfleet/backup/$1/pgbackrest.conf
labels() { runuser -u postgres -- pgbackrest --config="$config" info --output=json | grep -o '"label":"[^"]*"' | sort; }
only='--only postgresql,postgresql_logical'
before=$(sets)
labels=$(labels)

for point in copied-postgresql seal; do
    ! VMFLEET_FAIL_AT=$point vmfleet-backup snapshot $only broken 2>/dev/null || die "was not killed at $point"
    [ "$(sets)" = "$before" ] || die "killed at $point: sets are $(sets) instead of $before"
done
# In the middle of pgBackRest's own work, which lives on for a moment; the next run ends it.
vmfleet-backup snapshot $only --full broken 2>/dev/null &
run=$!
until pgrep -f 'pgbackrest .* backup ' >/dev/null; do
    kill -0 $run 2>/dev/null || die "the copy ended before it could be killed"
    sleep 0.1
done
kill -KILL $run
wait $run 2>/dev/null || true
[ "$(sets)" = "$before" ] || die "killed in the middle: sets are $(sets)"
runuser -u postgres -- psql -XAtqc 'CREATE TABLE frozen (); DROP TABLE frozen' || die "the database is frozen"

for point in restore-swapping swapped-postgresql; do
    killed $point first postgresql
    [ "$(runuser -u postgres -- psql -XAt shop -c "SELECT count(*) FROM orders WHERE what = 'B'")" = 1 ] ||
        die "killed at $point: the former data are not back"
done
[ "$(labels)" = "$labels" ] || die "copies are left: $(labels) instead of $labels"
vmfleet-backup snapshot $only after
vmfleet-backup remove after
[ "$(sets)" = "$before" ] || die "sets are $(sets) instead of $before"
