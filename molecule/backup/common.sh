# What the scripts of this scenario have in common.
set -eu
cd /
die() { echo "$*" >&2; exit 1; }
# From now on the shell runs this before restic saves something, where restic sees it; the engine is its parent.
before_restic() {
    cat >/usr/local/bin/restic <<RESTIC
#!/bin/sh
case " \$* " in *" backup "*) $1 ;; esac
exec /usr/bin/restic "\$@"
RESTIC
    chmod 755 /usr/local/bin/restic
}
# A restore of a set's source is killed at a phase. The next run settles what was left, and then finds nothing open.
killed() {
    ! VMFLEET_FAIL_AT=$1 vmfleet-backup restore "$2" --only "$3" --yes 2>/dev/null || die "was not killed at $1"
    rc=0; vmfleet-backup undo || rc=$?
    [ $rc = 64 ] || die "killed at $1: the next run ended with $rc"
}
# Has one number after the other written to the files a and z of folders, until "counted": a is never behind z, and never
# ahead by more than one.
counting() {
    for folder in "$@"; do rm -f "$folder/a" "$folder/z"; done
    python3 - "$@" <<'PYTHON' &
import itertools, os, sys, time

for number in itertools.count():
    for folder in sys.argv[1:]:
        for name in ("a", "z"):
            with open(f"{folder}/{name}.new", "w") as file:
                file.write(str(number))
            os.rename(f"{folder}/{name}.new", f"{folder}/{name}")
    time.sleep(0.05)  # not all of a processor
PYTHON
    counter=$!
    for folder in "$@"; do until [ -e "$folder/z" ]; do sleep 0.1; done; done
}
counted() {
    kill $counter
    wait $counter 2>/dev/null || :
}
# What "counting" has left in a folder is of one moment.
one_moment() {
    a=$(cat "$1/a") z=$(cat "$1/z")
    [ $((a - z)) = 0 ] || [ $((a - z)) = 1 ] || die "a is $a and z is $z in $1, which never was"
}
