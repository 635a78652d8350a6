#!/bin/sh
# A tree with all that a file system can hold is saved while one of its files is written, lost in several ways, and
# restored; runs are killed at each phase. tar, which knows nothing of the engine, says whether it is the same tree.
. /root/common.sh
digest() {
    tar --sort=name --numeric-owner --xattrs --xattrs-include='*' --sparse --format=posix \
        --sparse-version=0.0 --pax-option=exthdr.name=%d/x/%f,delete=atime,delete=ctime --exclude=busy.log --exclude=cache --exclude='*.tmp' \
        -C / -c srv/app/uploads srv/app/settings.ini | sha256sum
}
is() { [ "$(digest)" = "$1" ] || die "$2: it is another tree"; systemctl is-active -q uploads || die "$2: uploads is down"; }
back() { vmfleet-backup restore tree --only uploads --yes >/dev/null; }
mkdir -p /srv/app/uploads/cache
python3 - <<'END'
import os

os.chdir(b"/srv/app/uploads")
names = [b"plain", b"new\nline", b"quote'\"s", b"\xff\xfe no UTF-8", b"-dash", b" space ", b"*?[x]\\", b"x" * 255, "ü".encode()]
for number, name in enumerate(names):
    with open(name, "wb") as handle:
        handle.write(name * 1000)
    os.chmod(name, (0o640, 0o4755, 0o600)[number % 3])
    os.chown(name, 1234 + number, 2345)
    os.chmod(name, (0o640, 0o4755, 0o600)[number % 3])
    os.utime(name, ns=(1, 1_500_000_000_123_456_000 + number))
os.makedirs(b"deep/er/\xff")
os.chmod("deep/er", 0o1777)
os.chown("deep", 1234, 2345)
os.chmod("deep", 0o2750)
os.mkdir("empty")
open("nothing", "w").close()
os.link("plain", "deep/er/twin")
os.symlink("nowhere", "dangling")
os.symlink("/srv/app/uploads/plain", "absolute")
os.lchown("dangling", 1234, 2345)
os.mkfifo("pipe")
os.mknod("null", 0o20666, os.makedev(1, 3))
for name in ("plain", "deep"):
    os.setxattr(name, "user.word", b"\x00\xff")
for name, size, at in (("holes", 64 << 20, 8 << 20), ("small holes", 65536, 16384)):
    with open(name, "wb") as handle:
        handle.truncate(size)
        handle.seek(at)
        handle.write(b"data" * 1024)
for name in ("/srv/app/settings.ini", "cache/kept", "kept.tmp"):
    with open(name, "w") as handle:
        handle.write("first")
END
cat >/etc/systemd/system/uploads.service <<'END'
[Service]
ExecStart=/bin/sh -c 'while :; do echo line >>/srv/app/uploads/busy.log; sleep 0.02; done'
END
systemctl daemon-reload
systemctl start uploads
until [ -s /srv/app/uploads/busy.log ]; do sleep 0.1; done

first=$(digest)
vmfleet-backup snapshot --only uploads tree
vmfleet-backup verify tree --thorough
is "$first" 'saved'

rm -r /srv/app/uploads/deep
chmod 0777 /srv/app/uploads/plain
echo second | tee /srv/app/settings.ini /srv/app/uploads/new /srv/app/uploads/cache/kept >/srv/app/uploads/kept.tmp
second=$(digest)
[ "$first" != "$second" ] || die 'the oracle is blind'

for point in restore-staging restore-swapping swapped-files; do
    killed $point tree uploads
    is "$second" "killed at $point"
done
back
is "$first" 'restored'
[ "$(cat /srv/app/uploads/cache/kept /srv/app/uploads/kept.tmp)" = "$(printf 'second\nsecond')" ] || die 'what is excluded was touched'
vmfleet-backup undo >/dev/null
is "$second" 'undone'

# A bit that has changed in a repository is noticed, and costs nothing.
local='vmfleet-backup --repository local'
$local snapshot --only uploads flipped
for file in /var/backups/vmfleet/restic/*/data/*/*; do
    chmod u+w "$file"
    python3 -c 'import sys; f = open(sys.argv[1], "r+b"); f.seek(40); b = f.read(1)[0]; f.seek(40); f.write(bytes([b ^ 1]))' "$file"
done
rc=0; $local restore flipped --only uploads --yes 2>/dev/null || rc=$?
[ $rc = 65 ] || die "damage ended with $rc"
is "$second" 'damaged'
rm -r /var/backups/vmfleet/restic/* /var/backups/vmfleet/catalogue/*

mv /srv/app/uploads /srv/lost
back
is "$first" 'lost and restored'
! VMFLEET_FAIL_AT=restore-committing vmfleet-backup commit 2>/dev/null || die 'not killed at the commit'
vmfleet-backup remove tree
is "$first" 'kept'
[ -z "$(ls -d /srv/app/*.restored /srv/app/*.before-restore 2>/dev/null)" ] || die 'the former tree is still there'
