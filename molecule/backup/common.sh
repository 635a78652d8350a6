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
