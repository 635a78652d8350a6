#!/bin/sh
# Old files are archived, proven and removed; killed before the removal all of them stay. They come back as they were, tar
# being the judge, beside what is there by then.
. /root/common.sh
place=/srv/app/outbox
digest() {
    tar --sort=name --numeric-owner --xattrs --xattrs-include='*' --format=posix \
        --pax-option=exthdr.name=%d/x/%f,delete=atime,delete=ctime --mtime=@0 -C $place -c . | sha256sum
}
files() { find $place -type f | wc -l; }
archived() { vmfleet-backup --json list | python3 -c '
import json, sys
print(*(one["id"] for one in json.load(sys.stdin) if one["members"][0]["type"] == "archive"))'; }

mkdir -p $place/deep
python3 - <<'END'
import os

os.chdir("/srv/app/outbox")
names = [b"plain", b"new\nline", b"\xff no UTF-8", b"*?[x]\\", b"deep/in a folder", b"twin"]
for number, name in enumerate(names[:-1]):
    with open(name, "wb") as handle:
        handle.write(name * 1000)
    os.chown(name, 1234 + number, 2345)
    os.chmod(name, (0o640, 0o600)[number % 2])
os.link("plain", "twin")
os.setxattr("plain", "user.word", b"\x00\xff")
os.chown("deep", 1234, 2345)
os.chmod("deep", 0o2750)
for name in names:
    os.utime(name, (0, 1_500_000_000))
with open("new", "w") as handle:
    handle.write("new")
END
first=$(digest)

! VMFLEET_FAIL_AT=archived vmfleet-backup archive 2>/dev/null || die 'was not killed'
[ "$(digest)" = "$first" ] || die 'killed before the removal: something is gone'
vmfleet-backup remove $(archived)
systemctl start vmfleet-backup-archive
journalctl -q -o cat -u vmfleet-backup-archive | grep -q 'outbox: 6 archived, 6 removed, 0 changed' || die 'the log does not tell'
[ "$(files)" = 1 ] || die "$(files) files are left instead of one"
rmdir $place/deep

set=$(archived)
rc=0; vmfleet-backup archive nonesuch || rc=$?
[ $rc = 64 ] || die "an unknown archive ended with $rc"
killed swapped-archive "$set" outbox
[ "$(files)" = 1 ] || die 'a killed restore left files'
vmfleet-backup restore "$set" --yes
[ "$(digest)" = "$first" ] || die 'restored: it is another tree'
vmfleet-backup commit
rc=0; vmfleet-backup restore "$set" --yes 2>/dev/null || rc=$?
[ $rc = 64 ] && [ "$(digest)" = "$first" ] || die "a restore over what is there ended with $rc"
vmfleet-backup remove "$set"
rm -r $place
