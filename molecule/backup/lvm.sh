#!/bin/sh
# In a machine with LVM: trees on a plain and on a thin volume are written without end while they are saved, and come back
# as of one moment: two files that always change together are the same. Killed in the middle, snapshots go with the next
# run. One that overflows is an error, and where there is no room for one the tree is read as it lives.
. /root/common.sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
group=rack-1
rm /etc/vmfleet/backup.d/*.json
pvcreate -q /dev/vdb
vgcreate -q $group /dev/vdb
lvcreate -q -n plain-data -L 200M $group
lvcreate -q --type thin-pool -n pool -L 600M $group
lvcreate -q -n thin -V 400M --thinpool pool $group
lvcreate -q -n full -L 100M $group
mkfs.ext4 -q /dev/$group/plain-data
mkfs.xfs -q /dev/$group/thin
mkfs.ext4 -q /dev/$group/full
for volume in plain-data thin full; do
    mkdir -p /srv/$volume
    mount /dev/$group/$volume /srv/$volume
    mkdir -p /srv/$volume/tree/data
done
echo '[{"type": "files", "name": "plain", "paths": ["/srv/plain-data/tree"]},
       {"type": "files", "name": "thin", "paths": ["/srv/thin/tree"]},
       {"type": "files", "name": "full", "paths": ["/srv/full/tree"]}]' >/etc/vmfleet/backup.d/lvm.json
backup() { vmfleet-backup --repository local "$@"; }
left() { lvs --noheadings -o lv_name $group | grep -c vmfleet-snapshot || :; }
clean() { [ "$(left)" = 0 ] && ! grep -q /run/vmfleet-backup /proc/mounts; }
head -c 40000000 /dev/urandom >/srv/plain-data/tree/big
cp /srv/plain-data/tree/big /srv/thin/tree/big
put() { echo "$2" >"$1.new" && mv "$1.new" "$1"; }
write() {
    i=0
    while [ -e /srv/run ]; do
        i=$((i + 1))
        for volume in plain-data thin full; do
            put /srv/$volume/tree/data/a $i
            put /srv/$volume/tree/data/z $i
        done
    done
}
touch /srv/run
write &
writer=$!

backup snapshot --only plain,thin still
clean || die 'a snapshot is left'
backup --json list | python3 -c '
import json, sys
moving = [member["details"]["moving"] for member in json.load(sys.stdin)[-1]["members"]]
assert moving == [{"/srv/plain-data/tree": []}, {"/srv/thin/tree": []}], moving' || die 'it did not stand still'
backup verify still --thorough

# While restic reads.
head -c 40000000 /dev/urandom >/srv/plain-data/tree/other
vmfleet-backup --repository local snapshot --only plain broken 2>/dev/null &
run=$!
until [ "$(left)" = 1 ] || ! kill -0 $run 2>/dev/null; do sleep 0.1; done
sleep 1
kill -KILL $run
wait $run 2>/dev/null || :
[ "$(left)" = 1 ] || die 'there was no such moment'
backup snapshot --only thin next
clean || die 'the snapshot of the killed run is left'

# Its snapshot has room for 40 MB.
head -c 60000000 /dev/urandom >/srv/plain-data/tree/big
(until [ "$(left)" = 1 ]; do sleep 0.1; done; head -c 60000000 /dev/zero >/srv/plain-data/tree/other; sync) &
over=$!
rc=0; backup snapshot --only plain over 2>/root/said || rc=$?
wait $over
[ $rc = 70 ] || { cat /root/said; die "a snapshot without room ended with $rc"; }
grep -q 'more was written to rack-1/plain-data than its snapshot has room for' /root/said || { cat /root/said; die 'not said'; }
clean || die 'the snapshot that overflowed is left'

lvcreate -q -n rest -l 100%FREE $group
backup snapshot --only full live >/root/said 2>&1
cat /root/said
grep -q 'rack-1 has no room for a snapshot of full' /root/said || die 'nothing of the lack of room'
lvremove -q -y $group/rest

rm /srv/run
wait $writer
for volume in plain-data thin; do : >/srv/$volume/tree/big; done
backup restore still --only plain,thin --yes
for volume in plain-data thin; do
    a=$(cat /srv/$volume/tree/data/a) z=$(cat /srv/$volume/tree/data/z)
    [ $((a - z)) = 0 ] || [ $((a - z)) = 1 ] || die "a is $a and z is $z on $volume, which never was"
    [ "$(stat -c %s /srv/$volume/tree/big)" = 40000000 ] || die "another file came back on $volume"
done
cmp /srv/plain-data/tree/big /srv/thin/tree/big
backup commit
