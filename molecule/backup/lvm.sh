#!/bin/sh
# In a machine with LVM: trees on plain volumes and on a thin one, of ext4, ext3 and XFS, are written without end while
# they are saved, and come back as of one moment: two files that always change together are the same. Killed in the
# middle, snapshots go with the next run. One that overflows is an error, and where there is no room for one the tree is
# read as it lives. Then two volumes are saved whole, lost, and restored.
. /root/common.sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
group=rack-1
rm /etc/vmfleet/backup.d/*.json
# There is no network here. restic's keys are made to take half a second where it makes a repository, which are five here.
mkdir -m 700 /srv/machine
python3 - <<'PYTHON'
import json
path = "/etc/vmfleet/backup/settings.json"
settings = json.load(open(path))
settings["repositories"] = [{**one, "path": "/srv/machine"} for one in settings["repositories"] if one["name"] == "local"]
json.dump(settings, open(path, "w"))
PYTHON
pvcreate -q /dev/vdb
vgcreate -q $group /dev/vdb
# What is saved whole is small: it is digested several times, by a processor that does not exist.
lvcreate -q -n plain-data -L 60M $group
lvcreate -q --type thin-pool -n pool -L 500M $group
lvcreate -q -n thin -V 320M --thinpool pool $group
lvcreate -q -n slim -V 48M --thinpool pool $group
lvcreate -q -n old -L 60M $group
lvcreate -q -n full -L 50M $group
mkfs.ext4 -q /dev/$group/plain-data
mkfs.xfs -q /dev/$group/thin
mkfs.ext4 -q /dev/$group/slim
mkfs.ext3 -q /dev/$group/old
mkfs.ext4 -q /dev/$group/full
mounts() { # They are mounted by units, as with fstab.
    printf '[Mount]\nWhat=/dev/%s/%s\nWhere=/srv/%s\n' $group "$2" "$1" >"/etc/systemd/system/srv-$1.mount"
    systemctl daemon-reload
    systemctl start "srv-$1.mount"
    mkdir -p "/srv/$1/tree/data"
}
mounts plain plain-data
mounts thin thin
mounts slim slim
mounts old old
mounts full full
echo '[{"type": "files", "name": "plain", "paths": ["/srv/plain/tree"]},
       {"type": "files", "name": "thin", "paths": ["/srv/thin/tree"]},
       {"type": "files", "name": "old", "paths": ["/srv/old/tree"]},
       {"type": "files", "name": "full", "paths": ["/srv/full/tree"]}]' >/etc/vmfleet/backup.d/lvm.json
volumes() { lvs --noheadings -o lv_name $group | tr -d ' ' | sort | tr '\n' ' '; }
left() { volumes | grep -c vmfleet- || :; }
clean() { [ "$(left)" = 0 ] && ! grep -q /run/vmfleet-backup /proc/mounts; }
head -c 12000000 /dev/urandom >/srv/plain/tree/big
for place in thin slim old; do
    cp /srv/plain/tree/big /srv/$place/tree/big
done
numbers='/srv/plain/tree/data /srv/thin/tree/data /srv/slim/tree/data /srv/old/tree/data /srv/full/tree/data'
as_it_was() { # a place, and the digest of its other file
    one_moment "/srv/$1/tree/data"
    [ "$(sha256sum <"/srv/$1/tree/big")" = "$2" ] || die "another file came back on $1"
}
sum=$(sha256sum </srv/plain/tree/big)
counting $numbers

vmfleet-backup snapshot --only plain,thin,old still
clean || die 'a snapshot is left'
vmfleet-backup --json list | python3 -c '
import json, sys
moving = [member["details"]["moving"] for member in json.load(sys.stdin)[-1]["members"]]
assert moving == [{f"/srv/{place}/tree": []} for place in ("plain", "thin", "old")], moving' || die 'it did not stand still'
vmfleet-backup verify still --thorough

# While restic reads.
before_restic 'kill -KILL $PPID'
! vmfleet-backup snapshot --only plain broken 2>/dev/null || die 'was not killed'
[ "$(left)" = 1 ] || die 'there was no such moment'
rm /usr/local/bin/restic
vmfleet-backup snapshot --only thin next
clean || die 'the snapshot of the killed run is left'

# Its snapshot has room for 12 MB.
head -c 16000000 /dev/urandom >/srv/plain/tree/big
before_restic 'head -c 18000000 /dev/zero >/srv/plain/other; sync'
rc=0; vmfleet-backup snapshot --only plain over 2>/root/said || rc=$?
rm /usr/local/bin/restic /srv/plain/other
[ $rc = 70 ] || { cat /root/said; die "a snapshot without room ended with $rc"; }
grep -q 'more was written to rack-1/plain-data than its snapshot has room for' /root/said || { cat /root/said; die 'not said'; }
clean || die 'the snapshot that overflowed is left'

lvcreate -q -n rest -l 100%FREE $group
vmfleet-backup snapshot --only full live >/root/said 2>&1
grep -q 'no room for a snapshot of rack-1/full' /root/said || { cat /root/said; die 'nothing of the lack of room'; }

counted
vmfleet-backup restore still --only plain,thin,old --yes >/dev/null
for place in plain thin old; do
    as_it_was $place "$sum"
done
vmfleet-backup commit

# Two volumes whole.
echo '[{"type": "lvm", "name": "plain", "volume": "rack-1/plain-data", "units": ["srv-plain.mount"]},
       {"type": "lvm", "name": "slim", "volume": "rack-1/slim"}]' >/etc/vmfleet/backup.d/lvm.json
rc=0; vmfleet-backup snapshot --only plain whole 2>/root/said || rc=$?
[ $rc = 64 ] && grep -q 'rack-1 has no room' /root/said || die "without room it ended with $rc: $(cat /root/said)"
lvremove -q -y $group/rest
all=$(volumes)
counting $numbers
vmfleet-backup snapshot whole
counted
[ "$(volumes)" = "$all" ] || die "volumes are left: $(volumes)"
vmfleet-backup verify whole --thorough
! VMFLEET_FAIL_AT=copied-lvm vmfleet-backup snapshot --only plain broken 2>/dev/null || die 'was not killed'
vmfleet-backup snapshot --only plain again
[ "$(volumes)" = "$all" ] || die "volumes of a killed run are left: $(volumes)"
rc=0; vmfleet-backup restore whole --only slim --yes 2>/root/said || rc=$?
[ $rc = 64 ] && grep -q 'is mounted at /srv/slim' /root/said || die "mounted, it ended with $rc: $(cat /root/said)"

echo lost >/srv/plain/tree/big
for phase in restore-staging restore-swapping swapped-lvm; do
    killed $phase whole plain
    [ "$(cat /srv/plain/tree/big)" = lost ] || die "killed at $phase: the volume is another one"
    [ "$(volumes)" = "$all" ] || die "killed at $phase: volumes are left: $(volumes)"
done
vmfleet-backup restore whole --only plain --yes >/dev/null
as_it_was plain "$sum"
vmfleet-backup undo >/dev/null
[ "$(cat /srv/plain/tree/big)" = lost ] || die 'not undone'
vmfleet-backup restore whole --only plain --yes >/dev/null
vmfleet-backup commit
[ "$(volumes)" = "$all" ] || die "volumes are left after the commit: $(volumes)"
as_it_was plain "$sum"

# Both are gone altogether.
systemctl stop srv-plain.mount srv-slim.mount
lvremove -q -y $group/plain-data $group/slim
vmfleet-backup restore whole --yes >/dev/null
vmfleet-backup commit
systemctl start srv-slim.mount
as_it_was plain "$sum"
as_it_was slim "$sum"
[ "$(volumes)" = "$all" ] || die "not all volumes came back: $(volumes)"
[ "$(lvs --noheadings -o pool_lv $group/slim | tr -d ' ')" = pool ] || die 'the thin volume is thin no more'
