#!/bin/sh
# What is wrong with disks, files, keys, log and clocks: each run ends with a code of its own, leaves the sets that there
# were and the live data alone, and when the fault is gone the next one does what it should. All of it in a repository of
# its own, in the place of the local one.
. /root/common.sh
place=/var/backups/vmfleet
spool=/var/lib/vmfleet/backup/spool
backup() { vmfleet-backup --repository local "$@"; }
psql() { runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 "$@"; }
sets() { backup --json list | python3 -c 'import json, sys; print(*(one["id"] for one in json.load(sys.stdin)))'; }
# As it has to end, and the run.
ends() {
    wanted=$1 rc=0
    shift
    backup "$@" >/root/said 2>&1 || rc=$?
    case " $wanted " in *" $rc "*) ;; *) die "$* ended with $rc instead of $wanted: $(cat /root/said)" ;; esac
}
flip() {
    python3 -c '
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(int(sys.argv[2]))
    byte = file.read(1)[0]
    file.seek(int(sys.argv[2]))
    file.write(bytes([byte ^ 1]))' "$@"
}
live() { psql shop -c 'SELECT count(*) FROM orders'; }

key=/etc/vmfleet/backup/local/key
cp -p $key /root/key
mount -t tmpfs -o size=400m tmpfs $place
trap 'umount $spool 2>/dev/null || :; umount -l $place; cp -p /root/key $key' EXIT
install -d -m 700 $place/catalogue $place/restic
install -d -m 750 -o postgres -g postgres $place/pgbackrest
stanza=$(hostname)
pgbackrest() { runuser -u postgres -- pgbackrest --config=/etc/vmfleet/backup/local/pgbackrest.conf --stanza="$stanza" "$@"; }
pgbackrest stanza-create
rm -f /root/dumped
rows=$(live)
ends 0 snapshot --full sound

# A dump is killed.
psql shop -c 'BEGIN; LOCK TABLE orders; SELECT pg_sleep(60)' >/dev/null 2>&1 &
lock=$!
(while [ ! -e /root/dumped ]; do pkill -KILL -f 'bin/pg_dump .*--format=directory' || sleep 0.1; done) &
ends 70 snapshot --only postgresql_logical dumped
touch /root/dumped
psql -c "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()" >/dev/null
wait $lock || true
[ "$(sets)" = sound ] || die "a killed dump: sets are $(sets)"

# No room in the spool, and none in the repository.
mount -t tmpfs -o size=4k tmpfs $spool
ends 74 snapshot --only uploads spooled
umount $spool
head -c 20000000 /dev/urandom >/srv/app/uploads/much
fill() { mount -o remount,size="$(($(du -sk $place | cut -f1) + 4000))k" $place; }
fill
ends '69 or 70' snapshot --only uploads stored
[ "$(sets)" = sound ] || die "a full disk: sets are $(sets)"
psql shop -c "CREATE TABLE much AS SELECT md5(i::text) FROM generate_series(1, 400000) AS i"
fill
ends '69 or 70' snapshot --only postgresql stored
mount -o remount,size=400m $place
psql shop -c 'DROP TABLE much'
rm /srv/app/uploads/much
ends 0 snapshot roomy
ends 0 verify roomy
[ "$(sets)" = 'sound roomy' ] || die "with room again: sets are $(sets)"

# Manifests that were changed or cut: what they need may be anything, so that nothing goes.
manifest=$(ls $place/catalogue/*/sound.json)
cp -p "$manifest" /root/manifest
flip "$manifest" 100
ends 65 list
ends 65 prune
ends 65 restore sound --only postgresql --yes
head -c 200 /root/manifest >"$manifest"
ends 65 list
cp -p /root/manifest "$manifest"
[ "$(sets)" = 'sound roomy' ] || die "a changed manifest: sets are $(sets)"

# Another key, and none.
echo another-key-of-enough-length >$key
ends 77 list
ends 77 snapshot --only uploads keyed
rm $key
ends 77 list
cp -p /root/key $key

# A copy of the cluster that was changed, and one that was cut.
copy=$(find $place/pgbackrest/backup -type f -path '*F/bundle/*' -size +50k | head -n 1)
cp -p "$copy" /root/copy
flip "$copy" 5000
ends 65 verify sound
head -c 5000 /root/copy >"$copy"
ends 65 verify sound
rc=0; backup restore sound --only postgresql --yes 2>/dev/null || rc=$?
[ $rc != 0 ] && [ "$(live)" = "$rows" ] || die "a restore of a cut copy ended with $rc, and $(live) rows are live"
cp -p /root/copy "$copy"
ends 0 verify sound

# Log that is missing, and log of another server under the same name.
point=$(backup --json list | python3 -c '
import json, sys
(member,) = [member for member in json.load(sys.stdin)[0]["members"] if member["source"] == "postgresql"]
print(member["details"]["lsn"])')
segment=$(psql -c "SELECT pg_walfile_name('$point')")
log=$(find $place/pgbackrest/archive -name "$segment-*")
mv "$log" /root/log
ends 65 verify sound
rc=0; backup restore sound --only postgresql --yes 2>/dev/null || rc=$?
[ $rc != 0 ] && [ "$(live)" = "$rows" ] || die "a restore without its log ended with $rc, and $(live) rows are live"
mv /root/log "$log"
ends 0 verify sound
folder=$(dirname "$log")
# The next one: a copy begins with a new segment.
segment=$(psql -c 'SELECT pg_walfile_name(pg_current_wal_insert_lsn() + 16777216)')
psql shop -c 'CREATE TABLE another (); DROP TABLE another'
install -o postgres -g postgres -m 640 "$log" "$folder/$segment-0123456789abcdef0123456789abcdef01234567.zst"
ends 70 snapshot --only postgresql conflict
grep -q 'that of another server' /root/said || die "a conflict was told as $(cat /root/said)"
[ "$(sets)" = 'sound roomy' ] || die "a conflict: sets are $(sets)"
rm "$folder/$segment-0123456789abcdef0123456789abcdef01234567.zst"
ends 0 snapshot --only postgresql alone
backup remove alone

# A clock that was behind, and one that was ahead, of the engine itself: what it recorded then is no newest set, and costs
# none its place.
command -v faketime >/dev/null || apt-get -qq -y install faketime >/dev/null 2>&1
faketime -f -2d vmfleet-backup --repository local snapshot --only uploads behind
faketime -f +2d vmfleet-backup --repository local snapshot --only uploads ahead
[ "$(sets)" = 'behind sound roomy ahead' ] || die "by their times the sets are $(sets)"
ends 0 snapshot present
ends 0 prune
[ "$(sets)" = 'roomy present ahead' ] || die "after wrong clocks there are left $(sets)"
ends 0 verify present --thorough
[ "$(live)" = "$rows" ] || die "$(live) rows are live instead of $rows"
