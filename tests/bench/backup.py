"""Saving and restoring a database and a tree of files: by our engine, by the engines under it, and by shell pipelines.

Every way runs on the same host, in turns. What is restored is compared with what was saved, by counts and digests.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fleet_hosts import Fleet
from measure import RunFailed

# pgbench makes 15 MB for each of its units.
SCALE = 137
FILES = 50_000
# What the engine may cost more than those under it, at least the times that it is faster than a pipeline, and the share
# of a full copy that one after a change of one in a hundred may cost.
TARGET = {"by_hand": 1.05, "pipeline": 3.0, "incremental": 0.1}

DATABASE, TREE = "database", "files"
PLACE = "/srv/bench"
# A file system in memory: on one without a journal, ext4 takes up to 20 times as long for files that come soon after
# others went, whoever makes them.
FAST = "/srv/files"
CONFIGURATION = "/etc/postgresql/17/main"
DATA = "/var/lib/postgresql/17/main"
BIN = "/usr/lib/postgresql/17/bin"
AS_POSTGRES = "runuser -u postgres --"
CIPHER = f"openssl enc -aes-256-cbc -pbkdf2 -iter 600000 -pass file:{PLACE}/key"
PGBACKREST = f"{AS_POSTGRES} pgbackrest --config=/etc/vmfleet/backup/main/pgbackrest.conf --stanza=db1"
CLUSTERS, TREES = "/var/backups/vmfleet/pgbackrest/backup", "/var/backups/vmfleet/restic"
RESTIC = f"RESTIC_PASSWORD_FILE={PLACE}/key restic --quiet --repo {PLACE}/restic"
# A server on a restored folder, beside the real one; it is timed until it answers.
START = (
    f"{AS_POSTGRES} {BIN}/pg_ctl -w -s -t 900 -D {PLACE}/data -l /var/log/postgresql/bench.log start -o"
    f' "-c config_file={CONFIGURATION}/postgresql.conf -c data_directory={PLACE}/data -c port=5499'
    ' -c archive_mode=off -c listen_addresses= -c external_pid_file="'
)
STOP = f"{AS_POSTGRES} {BIN}/pg_ctl -w -s -m fast -D {PLACE}/data stop; rm -rf {PLACE}/data"
COUNTS = "SELECT count(*), sum(hashint4(aid)::bigint), sum(abalance) FROM pgbench_accounts"


def ask(port: int = 5432, database: str = "bench") -> str:
    """A query of the table that is compared, on the real server or on one beside it."""
    return f"{AS_POSTGRES} psql -XAtq -p {port} -d {database} -c '{COUNTS}'"


def unit(verb: str) -> str:
    """Something done with the real server by systemctl."""
    return f"systemctl {verb} postgresql@17-main"


def digest(folder: str) -> str:
    return f"cd {folder} && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"


@dataclass(frozen=True)
class Way:
    """One way to save and restore, as shell text for root; only ``save`` and ``restore`` are timed."""

    name: str
    what: str
    save: str
    restore: str
    # What tells that it came back, in the place where it is restored to.
    seen: str
    before: str = "true"
    tidy: str = "true"
    # Where the copy is.
    kept: str = f"{PLACE}/copy"


def ours(what: str, source: str, kept: str, seen: str) -> Way:
    return Way(
        name="vmfleet.ops",
        what=what,
        save=f"vmfleet-backup snapshot timed --only {source} --full",
        restore=f"vmfleet-backup restore timed --only {source} --yes",
        seen=seen,
        tidy="vmfleet-backup commit && vmfleet-backup remove timed",
        kept=kept,
    )


def ways() -> list[Way]:
    """In the order in which they take their turns: what is compared stands side by side."""
    newest = "import json, sys; print(json.load(sys.stdin)[0][\"backup\"][-1][\"label\"])"
    label = f"$({PGBACKREST} info --output=json | python3 -c '{newest}')"
    dump = f"{AS_POSTGRES} pg_dump bench | gzip | {CIPHER} -out {PLACE}/copy/dump"
    load = f"{CIPHER} -d -in {PLACE}/copy/dump | gunzip | {AS_POSTGRES} psql -Xq -v ON_ERROR_STOP=1 restored >/dev/null"
    return [
        ours(DATABASE, "postgresql", CLUSTERS, ask()),
        Way(
            "pgBackRest by hand",
            DATABASE,
            f"{PGBACKREST} backup --type=full",
            # As ours, it ends with the restored data live, and the former ones beside them.
            f"{unit('stop')} && mv {DATA} {DATA}.former && install -d -o postgres -g postgres -m 700 {DATA}"
            f" && {PGBACKREST} restore --set={label} --type=immediate --target-action=promote --archive-mode=off"
            f" && {unit('start')}",
            ask(),
            tidy=f"{unit('stop')} && rm -rf {DATA} && mv {DATA}.former {DATA} && {unit('start')}",
            kept=CLUSTERS,
        ),
        Way(
            "pg_dump, gzip, openssl",
            DATABASE,
            dump,
            f"{AS_POSTGRES} createdb restored && {load}",
            ask(database="restored"),
            tidy=f"{AS_POSTGRES} dropdb restored; rm {PLACE}/copy/*",
        ),
        Way(
            "pg_basebackup, tar, gzip",
            DATABASE,
            f"{AS_POSTGRES} pg_basebackup -D {PLACE}/base -Ft -z -Xs --checkpoint=fast",
            f"cd {PLACE}/data && {AS_POSTGRES} tar xzf {PLACE}/base/base.tar.gz &&"
            f" {AS_POSTGRES} tar xzf {PLACE}/base/pg_wal.tar.gz -C pg_wal && {START}",
            ask(5499),
            before=f"install -d -o postgres -m 700 {PLACE}/data {PLACE}/base",
            tidy=f"{STOP} {PLACE}/base",
            kept=f"{PLACE}/base",
        ),
        ours(TREE, "tree", TREES, digest(f"{FAST}/tree")),
        Way(
            "restic by hand",
            TREE,
            f"{RESTIC} backup {FAST}/tree",
            f"{RESTIC} restore latest --target {FAST}/out",
            digest(f"{FAST}/out{FAST}/tree"),
            before=f"{RESTIC} init",
            tidy=f"rm -rf {PLACE}/restic {FAST}/out",
            kept=f"{PLACE}/restic",
        ),
        Way(
            "tar, gzip, openssl",
            TREE,
            f"tar -C {FAST} -cf - tree | gzip | {CIPHER} -out {PLACE}/copy/tree",
            f"{CIPHER} -d -in {PLACE}/copy/tree | tar xzf - -C {FAST}/out",
            digest(f"{FAST}/out/tree"),
            before=f"mkdir {FAST}/out",
            tidy=f"rm -rf {FAST}/out {PLACE}/copy/*",
        ),
    ]


# One in a hundred of the rows, and of the files, is another one.
CHANGES = {
    DATABASE: f"{AS_POSTGRES} psql -Xq -d bench -c 'UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid <= "
    "(SELECT count(*) / 100 FROM pgbench_accounts)' -c CHECKPOINT",
    TREE: f"find {FAST}/tree -name '*00.dat' -exec sh -c 'echo changed >>\"$1\"' sh {{}} \\;",
}


class Host:
    """Runs shell text on the host as root."""

    def __init__(self, fleet: Fleet) -> None:
        self.container = fleet.containers()["db1"].id

    def run(self, script: str) -> tuple[str, float]:
        """Output and seconds. :raises RunFailed: when it does not end well."""
        began = time.monotonic()
        done = subprocess.run(
            ["docker", "exec", self.container, "bash", "-euo", "pipefail", "-c", script],
            capture_output=True,
            text=True,
            timeout=3600,
        )
        if done.returncode:
            raise RunFailed(f"{script}: {(done.stderr or done.stdout).strip()[-600:]}")
        return done.stdout.strip(), time.monotonic() - began

    def size(self, folder: str) -> int:
        """Bytes of the files below a folder, once all that was written is on the disk; 0 where there is none."""
        told, _seconds = self.run(f"sync; test -d {folder} || {{ echo 0; exit; }}; du -sb {folder} | cut -f1")
        return int(told)


def once(host: Host, way: Way, wanted: str) -> dict[str, float]:
    """One copy and one restore. :raises RunFailed: also when something else came back."""
    # What was written before is in the archive: nobody waits for the log of others.
    host.run(f"{PGBACKREST} check; {way.before}")
    size = host.size(way.kept)
    _output, save = host.run(way.save)
    stored = host.size(way.kept) - size
    _output, restore = host.run(way.restore)
    seen, _seconds = host.run(way.seen)
    if seen != wanted:
        raise RunFailed(f"{way.name}: {seen} was restored, {wanted} was saved")
    host.run(way.tidy)
    return {"save": save, "restore": restore, "stored": stored}


def incremental(host: Host, what: str, source: str, kept: str) -> dict[str, float]:
    """A full copy, a change of one in a hundred, and a second copy: seconds of both, and what each adds in bytes."""
    found: dict[str, float] = {}
    for name, options, change in (("full", " --full", "true"), ("incremental", "", CHANGES[what])):
        host.run(change)
        size = host.size(kept)
        seconds = host.run(f"vmfleet-backup snapshot {source}-{name} --only {source}{options}")[1]
        found |= {f"{name}_seconds": round(seconds, 2), f"{name}_bytes": host.size(kept) - size}
    return found


def measure(fleet: Fleet, repeat: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All ways in turns; each comparison is the median of the ratios within the turns."""
    host = Host(fleet)
    host.run(f"install -d {PLACE}/copy && umask 077 && openssl rand -hex 32 >{PLACE}/key && which restic pgbackrest")
    # The role lets nobody take base backups but its replicas.
    host.run(f"echo local replication postgres peer >>{CONFIGURATION}/pg_hba.conf; systemctl reload postgresql@17-main")
    size = int(host.run(f"{AS_POSTGRES} psql -XAtq -d bench -c \"SELECT pg_database_size('bench')\"")[0])
    tree = host.size(f"{FAST}/tree")
    chosen = ways()
    wanted = {DATABASE: host.run(ask())[0], TREE: host.run(digest(f"{FAST}/tree"))[0]}
    # Repositories are made before they are measured, those of others too.
    host.run("vmfleet-backup snapshot first --only tree && vmfleet-backup remove first")
    samples: dict[tuple[str, str], list[dict[str, float]]] = {(way.what, way.name): [] for way in chosen}
    for number in range(repeat):
        for way in chosen:
            seen = once(host, way, wanted[way.what])
            samples[way.what, way.name].append(seen)
            told = f"save {seen['save']:.1f} s, restore {seen['restore']:.1f} s, {seen['stored'] / 1e6:.0f} MB"
            say(f"round {number + 1}, {way.what}, {way.name}: {told}")
    later = {
        what: incremental(host, what, source, kept)
        for what, source, kept in ((DATABASE, "postgresql", CLUSTERS), (TREE, "tree", TREES))
    }

    def ratio(what: str, name: str, key: str) -> float:
        mine = samples[what, "vmfleet.ops"]
        return round(statistics.median(b[key] / a[key] for a, b in zip(mine, samples[what, name], strict=True)), 2)

    return {
        "database_bytes": size,
        "files": {"count": int(host.run(f"find {FAST}/tree -type f | wc -l")[0]), "bytes": tree},
        "rounds": repeat,
        "target": TARGET,
        "ways": [
            {
                "what": way.what,
                "name": way.name,
                **{
                    key: round(statistics.median(sample[key] for sample in samples[way.what, way.name]), 2)
                    for key in ("save", "restore", "stored")
                },
                # How often our time theirs is.
                "save_to_ours": ratio(way.what, way.name, "save"),
                "restore_to_ours": ratio(way.what, way.name, "restore"),
            }
            for way in chosen
        ],
        "incremental": later,
    }
