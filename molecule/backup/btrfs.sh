#!/bin/sh
# A tree in a subvolume is written without end while it is saved, and comes back as of one moment: two files that always
# change together are the same. Killed in the middle, its snapshot goes with the next run.
. /root/common.sh
disk=/srv/disk
trap 'umount $disk; rm -r $disk /srv/disk.* /etc/vmfleet/backup.d/disk.json' EXIT
btrfs subvolume create $disk/inner >/dev/null
mkdir $disk/inner/data $disk/outer
echo '[{"type": "files", "name": "inner", "paths": ["/srv/disk/inner"]},
       {"type": "files", "name": "outer", "paths": ["/srv/disk/outer"]}]' >/etc/vmfleet/backup.d/disk.json
head -c 8000000 /dev/urandom >$disk/inner/big
cp $disk/inner/big $disk/outer/big
# Each number is in both files before the next one comes, and never in the first one alone for long.
put() { echo "$2" >"$1.new" && mv "$1.new" "$1"; }
put $disk/inner/data/a 0
put $disk/inner/data/z 0
write() {
    i=0
    while [ -e $disk/inner ]; do
        i=$((i + 1))
        put $disk/inner/data/a $i
        put $disk/inner/data/z $i
        sleep 0.01  # not all of a processor
    done
}
write 2>/dev/null &
writer=$!
left() { find $disk -name '.vmfleet-snapshot*' | wc -l; }

vmfleet-backup snapshot --only inner,outer still
[ "$(left)" = 0 ] || die 'a snapshot is left'
vmfleet-backup --json list | python3 -c '
import json, sys
moving = [member["details"]["moving"] for member in json.load(sys.stdin)[-1]["members"]]
assert moving == [{"/srv/disk/inner": []}, {"/srv/disk/outer": []}], moving' || die 'it did not stand still'
vmfleet-backup verify still --thorough

# While restic reads.
before_restic 'kill -KILL $PPID'
! vmfleet-backup snapshot --only inner broken 2>/dev/null || die 'was not killed'
rm /usr/local/bin/restic
[ "$(left)" = 1 ] || die 'there was no such moment'
vmfleet-backup snapshot --only outer next
[ "$(left)" = 0 ] || die 'the snapshot of the killed run is left'

kill $writer
wait $writer 2>/dev/null || true
sum=$(sha256sum <$disk/inner/big)
: >$disk/inner/big
vmfleet-backup restore still --only inner,outer --yes
a=$(cat $disk/inner/data/a) z=$(cat $disk/inner/data/z)
[ $((a - z)) = 0 ] || [ $((a - z)) = 1 ] || die "a is $a and z is $z, which never was"
[ "$(sha256sum <$disk/inner/big)" = "$sum" ] || die 'another file came back'
vmfleet-backup commit

btrfs subvolume create $disk/outer/deeper >/dev/null
rc=0; vmfleet-backup snapshot --only outer nested 2>/dev/null || rc=$?
[ $rc = 64 ] || die "a subvolume in a subvolume ended with $rc"
vmfleet-backup remove still next
