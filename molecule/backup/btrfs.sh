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
counting $disk/inner/data
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

counted
sum=$(sha256sum <$disk/inner/big)
: >$disk/inner/big
vmfleet-backup restore still --only inner,outer --yes
one_moment $disk/inner/data
[ "$(sha256sum <$disk/inner/big)" = "$sum" ] || die 'another file came back'
vmfleet-backup commit

btrfs subvolume create $disk/outer/deeper >/dev/null
rc=0; vmfleet-backup snapshot --only outer nested 2>/dev/null || rc=$?
[ $rc = 64 ] || die "a subvolume in a subvolume ended with $rc"
vmfleet-backup remove still next
