# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A PostgreSQL cluster as files and log, by pgBackRest: full and incremental copies, and any moment since the first.

pgBackRest's own settings, the repository and its cipher among them, stand in its configuration files, which role backup
writes: one that has all repositories, by which finished log goes to each of them, and one for each. The stanza is
called like the host.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pwd
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .._host import run_command
from .beside import STAGING, STARTED, Beside, systemctl
from .model import Damaged, EngineFailed, Member, Refused, Unavailable, parse_time
from .postgresql_fence import Fence
from .sources import PATIENCE, Source, Target
from .tree import digest

ACCOUNT = "postgres"
SOCKETS = "/var/run/postgresql"
# Names of sets, as restore points of the log.
POINT = "vmfleet-"
# Seconds until finished log is in the archive.
ARCHIVED = 300
# Seconds after which it is brought there: the server may wait for another repository.
BROUGHT = 10
# Seconds between the first two looks for it, and at most.
PACE, SLOWEST = 0.05, 1.0
# Looks for the first answer of a server that was started, in the same pace.
ANSWERS = 100
# What a restore leaves in postgresql.auto.conf for the recovery; of no use after it.
RECOVERY = (
    "restore_command",
    *(f"recovery_target{word}" for word in ("", "_time", "_name", "_lsn", "_action", "_timeline")),
)
# pgBackRest's codes for a stanza: those with which one can work, and those by which there is none. All others tell of a
# repository that it could not read.
USABLE, MISSING = (0, 2), (1, 3)
# Log as pgBackRest names it: segment and SHA-1.
SEGMENT = re.compile("([0-9A-F]{24})-([0-9a-f]{40})")
NOT_LATER = "is not later than latest backup label"


@dataclass
class Options:
    """What role postgresql announces."""

    version: str
    cluster: str
    port: int
    role: str
    data_directory: str
    config_directory: str

    @property
    def binaries(self) -> str:
        return f"/usr/lib/postgresql/{self.version}/bin"

    @property
    def unit(self) -> str:
        return f"postgresql@{self.version}-{self.cluster}.service"


def own_folder(path: str) -> str:
    """An empty folder for the database's account, in place of what was there."""
    shutil.rmtree(path, ignore_errors=True)
    os.mkdir(path, 0o700)
    owner = pwd.getpwnam(ACCOUNT)
    os.chown(path, owner.pw_uid, owner.pw_gid)
    return path


class Server:
    """A running server that is asked through its socket, as its superuser."""

    def __init__(self, source: Source, sockets: str, port: int) -> None:
        self.source = source
        self.argv = [
            f"{source.options.binaries}/psql", "-XAtq", "--set=ON_ERROR_STOP=1", f"--host={sockets}", f"--port={port}"
        ]  # fmt: skip

    def ask(self, query: str, database: str = "postgres", variables: Sequence[str] = (), timeout: float = 60) -> str:
        """The answer, fields divided by bars. ``variables`` are psql's, as NAME=VALUE. :raises EngineFailed:"""
        argv = [*self.argv, f"--dbname={database}", *(f"--set={pair}" for pair in variables)]
        return self.source.context.command(
            "ask PostgreSQL", argv, user=ACCOUNT, stdin=query, timeout=timeout
        ).stdout.strip()


class Scratch(Server):
    """A server on data of its own that nobody reaches but this run; it archives nothing and is gone at the end."""

    def __init__(self, source: Source, data: str) -> None:
        super().__init__(source, data, 5432)
        self.data = data
        self.log = f"{data}/restore.log"

    def start(self, configuration: str = "", libraries: str = "") -> None:
        """Starts it, through its recovery. It preloads ``libraries``, or those of its configuration.

        :raises EngineFailed: with the end of its log.
        """
        settings = {
            "data_directory": self.data,
            "unix_socket_directories": self.data,
            "listen_addresses": "",
            "port": "5432",
            "external_pid_file": "",
            "logging_collector": "off",
            "log_destination": "stderr",
            "ssl": "off",
            "shared_buffers": "64MB",
            # With finished log kept, so that the server which takes over archives it, with the history of its timeline.
            "archive_command": "",
            "archive_timeout": "0",
            "primary_conninfo": "",
        }
        if configuration:
            settings["config_file"] = configuration
        if libraries:
            settings["shared_preload_libraries"] = libraries
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        argv = [
            f"{self.source.options.binaries}/pg_ctl", "start", "--wait", f"--timeout={STARTED}", "--silent",
            f"--pgdata={self.data}", f"--log={self.log}", "-o", options,
        ]  # fmt: skip
        try:
            self.source.context.command("start a server on what was restored", argv, user=ACCOUNT)
        except EngineFailed as error:
            raise self._failure(error) from error

    def promoted(self) -> dict[str, str]:
        """Waits for the end of its recovery, after which it neither aims at that target again nor archives.

        Returns ``system``, ``timeline``, ``lsn`` and the ``moment`` of the last transaction that the log had; without
        one it is empty, and the moment is that of the copy.

        :raises EngineFailed: when it cannot reach its target.
        """
        # Until commit the log waits: an archive that had a timeline which was then undone would lead others to it.
        changes = [*(f"RESET {name}" for name in RECOVERY), "SET archive_command = ''"]
        wait = "DO $$BEGIN WHILE pg_is_in_recovery() LOOP PERFORM pg_sleep(0.02); END LOOP; END$$"
        # The control file will know the timeline after the next checkpoint, that of the stop.
        tell = (
            "SELECT system_identifier, ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int,"
            " pg_current_wal_lsn(), to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC',"
            " 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM pg_control_system()"
        )
        try:
            told = self.ask(
                ";\n".join([wait, tell, *(f"ALTER SYSTEM {change}" for change in changes)]), timeout=PATIENCE
            )
        except EngineFailed as error:
            raise self._failure(error) from error
        return dict(zip(("system", "timeline", "lsn", "moment"), told.split("|")))

    def _failure(self, error: EngineFailed) -> EngineFailed:
        try:
            with open(self.log, encoding="utf-8", errors="replace") as handle:
                said = [line.strip() for line in handle if "FATAL" in line or "PANIC" in line]
        except OSError:
            said = []
        return EngineFailed(f"the restored server does not come up: {' '.join(said[-2:]) or error}")

    def stop(self) -> None:
        """Stops it, if it runs."""
        if os.path.exists(f"{self.data}/postmaster.pid"):
            argv = [
                f"{self.source.options.binaries}/pg_ctl", "stop", "--wait", f"--timeout={STARTED}", "--silent",
                "--mode=fast", f"--pgdata={self.data}",
            ]  # fmt: skip
            run_command({"argv": argv, "user": ACCOUNT, "timeout": STARTED})

    def remove(self) -> None:
        """Stops it and removes its data; nothing is left of it."""
        self.stop()
        shutil.rmtree(self.data, ignore_errors=True)


class Physical(Source):
    """See the module."""

    kind = "postgresql"
    moments = True
    takes = Options
    options: Options

    def is_member(self) -> bool:
        return self.options.role == "primary"

    @property
    def _server(self) -> Server:
        return Server(self, SOCKETS, self.options.port)

    def _pgbackrest(self, purpose: str, *arguments: str) -> str:
        """Runs pgBackRest for the stanza of this host. :raises EngineFailed:"""
        # A file of its own for each repository: not all commands can be told to leave the others alone.
        argv = [
            "pgbackrest", f"--config={self.context.repository.pgbackrest}", f"--stanza={self.context.host}",
            "--log-level-console=warn", *arguments,
        ]  # fmt: skip
        return self.context.command(purpose, argv, user=ACCOUNT).stdout

    def _info(self) -> dict[str, Any]:
        """What the repository has of this stanza.

        :raises Refused: when there is none. :raises Unavailable: when the repository could not be read.
        """
        (stanza,) = json.loads(self._pgbackrest("ask pgBackRest what it has", "info", "--output=json"))
        code = stanza["status"]["code"]
        if code in USABLE:
            return dict(stanza)
        what = f"stanza {self.context.host} of pgBackRest: "
        if code in MISSING:
            raise Refused(
                f"{what}{stanza['status']['message']}; apply role vmfleet.ops.backup, or where the repository was "
                f"emptied say `runuser -u postgres -- pgbackrest --config={self.context.repository.pgbackrest} "
                f"--stanza={self.context.host} stanza-create`"
            )
        said = " ".join(" ".join(entry["status"]["message"] for entry in stanza.get("repo", [])).split())
        raise Unavailable(f"{what}{said or stanza['status']['message']}; look at the repository, and try again")

    def plan(self) -> None:
        known = {str(entry["system-id"]) for entry in self._info()["db"]}
        system, tablespaces, archive_command = self._server.ask(
            "SELECT system_identifier, (SELECT count(*) FROM pg_tablespace), current_setting('archive_command')"
            " FROM pg_control_system()"
        ).split("|", 2)
        if system not in known:
            raise Refused(
                f"the repository holds the cluster {', '.join(sorted(known))} under the name of this host, and "
                f"{system} runs here: restore that one, or give this one a repository of its own"
            )
        if tablespaces != "2":
            raise Refused(
                "the cluster has tablespaces, which cannot be restored beside the live ones; move their tables"
            )
        if archive_command in ("", "/bin/true", "(disabled)"):
            raise Refused(
                "PostgreSQL does not archive its log; commit or undo a restore, or apply role vmfleet.ops.backup"
            )

    def estimate(self) -> int:
        return int(self._server.ask("SELECT sum(pg_database_size(oid)) FROM pg_database"))

    def ahead(self, set_id: str, full: bool) -> dict[str, Any]:
        backups = self._info()["backup"]
        former = {entry["label"] for entry in backups}
        # Log goes with the full copy that it follows: without new ones it would never end.
        newest = max((entry["timestamp"]["stop"] for entry in backups if entry["type"] == "full"), default=0)
        old = 0 < self.context.full_days * 86400 <= time.time() - newest
        kind = "full" if full or old else "incr"
        try:
            self._back_up(kind)
        except EngineFailed as error:
            # Where a full copy was removed again, as that of a set which failed later, none builds on an earlier one.
            if kind == "full" or NOT_LATER not in str(error):
                raise
            self._back_up("full")
        return {"former": sorted(former)}

    def _back_up(self, kind: str) -> None:
        # The set waits for its log itself, in this repository alone; pgBackRest would wait at both ends of the copy.
        self._pgbackrest("copy the cluster", "backup", f"--type={kind}", "--no-archive-check")

    def copy(self, set_id: str, full: bool) -> Member:
        # Without a mark, for nobody else has to be of its moment: that would be in the next file of the log, and
        # pgBackRest takes up the second one of two a third of a second later.
        return self.finish(set_id, self.ahead(set_id, full))

    def mark(self, set_id: str, work: dict[str, Any]) -> dict[str, Any]:
        # The set's moment is a named point in the log, which is finished with it: it is archived from here on.
        point = f"{POINT}{set_id}"
        lsn, last, _switched = self._server.ask(
            "SELECT lsn, pg_walfile_name(lsn), pg_switch_wal() FROM pg_create_restore_point(:'point') lsn",
            variables=[f"point={point}"],
        ).split("|")
        return {"point": point, "lsn": lsn, "last": last}

    def fence(self, seconds: float) -> dict[str, Any]:
        return Fence(self._server, ACCOUNT).close(seconds)

    def unfence(self, fence: dict[str, Any]) -> str:
        said = Fence(self._server, ACCOUNT).open(fence)
        return f"{self.name}: {said}" if said else ""

    def finish(self, set_id: str, work: dict[str, Any]) -> Member:
        backup, archive = self._made(work["former"])
        size, system = self._server.ask(
            "SELECT setting, system_identifier FROM pg_control_system(), pg_settings WHERE name = 'wal_segment_size'"
        ).split("|")
        # The moment is that of the mark, or the end of the copy.
        log = {
            "archive": archive,
            "first": backup["archive"]["start"],
            "last": work.get("last", backup["archive"]["stop"]),
            "size": int(size),
        }
        self._wait_for(archive, _segments(log["first"], log["last"], log["size"]))
        self._keep_histories(archive)
        info = backup["info"]
        return Member(
            source=self.name,
            type=self.kind,
            engine=f"pgBackRest {backup['backrest']['version']}",
            label=backup["label"],
            consistency="application",
            began=_moment(backup["timestamp"]["start"]),
            ended=_moment(backup["timestamp"]["stop"]),
            size=info["size"],
            stored=info["repository"].get("delta", 0),
            details={
                "kind": backup["type"],
                "needs": backup.get("reference") or [],
                "system": system,
                "version": self.options.version,
                "timeline": int(backup["archive"]["stop"][:8], 16),
                "lsn_start": backup["lsn"]["start"],
                "lsn_stop": backup["lsn"]["stop"],
                "lsn": work.get("lsn", backup["lsn"]["stop"]),
                "point": work.get("point", ""),
                # Without this log, from the beginning of the copy to its moment, it cannot be restored.
                "log": log,
            },
        )

    def _made(self, former: Sequence[str]) -> tuple[dict[str, Any], str]:
        """The copy that was made beside ``former`` ones, and the name of its archive. :raises EngineFailed:"""
        stanza = self._info()
        made = [entry for entry in stanza["backup"] if entry["label"] not in former]
        if len(made) != 1:
            raise EngineFailed(
                f"{self.name}: pgBackRest has made one copy, and the repository tells of {len(made)}; look whether "
                "it keeps what it accepts, and whether somebody else makes copies in it"
            )
        (backup,) = made
        if backup.get("error"):
            raise Damaged(f"{self.name}: pages of the cluster do not agree with their checksums; see pgBackRest's log")
        (version,) = [entry["version"] for entry in stanza["db"] if entry["id"] == backup["database"]["id"]]
        return backup, f"{version}-{backup['database']['id']}"

    def _archived(self, archive: str, segments: Sequence[str]) -> dict[str, str]:
        """Those segments of the log that are in this repository, and their digests, which are in the names there."""
        have: dict[str, str] = {}
        for folder in sorted({segment[:16] for segment in segments}):
            path = f"archive/{self.context.host}/{archive}/{folder}"
            listed = self._pgbackrest("look for the log in the archive", "repo-ls", path)
            # Not the histories of copies, which begin like their segment.
            have.update(SEGMENT.findall(listed))
        return {segment: have[segment] for segment in segments if segment in have}

    def _wait_for(self, archive: str, segments: Sequence[str]) -> None:
        """Waits until log is in this repository, wherever else it is to go.

        :raises EngineFailed: when it does not come in time, or that of another server is in its place.
        """
        begun, pace = time.monotonic(), PACE
        folder = f"{self.options.data_directory}/pg_wal"
        while True:
            have = self._archived(archive, segments)
            for segment, known in have.items():
                with contextlib.suppress(FileNotFoundError):  # what was archived may be gone here
                    if digest(f"{folder}/{segment}", "sha1") != known:
                        raise EngineFailed(
                            f"{self.name}: log {segment} in the archive is that of another server, and nothing is "
                            "written over it; find out who else archives there, and move it away"
                        )
            missing = [segment for segment in segments if segment not in have]
            if not missing:
                return
            waited = time.monotonic() - begun
            if waited >= ARCHIVED:
                raise EngineFailed(
                    f"{self.name}: log {missing[0]} is not in the archive after {ARCHIVED} s; PostgreSQL's own log "
                    "says what its archive_command met"
                )
            if waited >= BROUGHT:
                # A repository that does not take it may do so later.
                with contextlib.suppress(EngineFailed):
                    self._bring(*(f"{folder}/{segment}" for segment in missing))
            time.sleep(pace)
            pace = min(1.25 * pace, SLOWEST)

    def _bring(self, *paths: str) -> None:
        """Brings finished files of the log, or histories, to this repository alone. The server may do so again.

        :raises EngineFailed:
        """
        for path in paths:
            self._pgbackrest(f"archive {os.path.basename(path)}", "archive-push", "--no-archive-async", path)

    def _keep_histories(self, archive: str) -> None:
        """Brings the histories of timelines to this repository, which may be younger than they are. Without them
        nothing of a later one than the first can be restored.
        """
        folder = f"{self.options.data_directory}/pg_wal"
        own = sorted(name for name in os.listdir(folder) if name.endswith(".history"))
        if own:
            path = f"archive/{self.context.host}/{archive}"
            have = self._pgbackrest("look for histories in the archive", "repo-ls", path).split()
            for name in own:
                if name not in have:
                    self._bring(f"{folder}/{name}")

    def _backup(self, label: str) -> dict[str, Any]:
        for entry in self._info()["backup"]:
            if entry["label"] == label:
                return dict(entry)
        raise Damaged(f"{self.name}: pgBackRest has no {label} any more")

    def verify(self, member: Member, thorough: bool) -> dict[str, Any]:
        self._backup(member.label)
        # Reads every file of the stanza and its log, and holds it against the digests in pgBackRest's manifests.
        try:
            said = self._pgbackrest("verify the repository", "verify", "--output=text", "--verbose")
        except EngineFailed as error:
            raise self.context.damaged(error) from error
        if f"backup: {member.label}, status: invalid" in said or "status: error" in said:
            raise Damaged(f"{self.name}: {said.strip()[-1500:]}")
        log = member.details.get("log") or {}  # not in sets of former versions
        needed = _segments(log["first"], log["last"], log["size"]) if log else []
        have = self._archived(log["archive"], needed) if needed else {}
        missing = [segment for segment in needed if segment not in have]
        if missing:
            raise Damaged(f"{self.name}: {member.label} needs log that is not in the archive: {', '.join(missing[:3])}")
        proven: dict[str, Any] = {"engine": "verified"}
        if thorough:
            choice = self.choose(member, [member], Target())
            choice.update(staging=os.path.join(self.context.spool, self.name))
            try:
                proven.update(self.stage(choice))
            except EngineFailed as error:
                raise self.context.damaged(error, f"{self.name}: {member.label} does not come to life: ") from error
            finally:
                Scratch(self, choice["staging"]).remove()
        return proven

    def choose(self, member: Member, members: Sequence[Member], target: Target) -> dict[str, Any]:
        if target.database:
            raise Refused(f"{self.name}: restores whole clusters; for one database use source type postgresql_logical")
        sizes = {entry["label"]: entry["info"]["size"] for entry in self._info()["backup"]}
        usable = [entry for entry in members if entry.label in sizes]
        if not usable:
            raise Damaged(f"{self.name}: pgBackRest has none of {', '.join(entry.label for entry in members)} any more")
        timeline = self._timeline(usable[-1].details["system"])
        if target.of_the_set:
            chosen, point = member, member.details["point"]
            arguments = ["--type=name", f"--target={point}"] if point else ["--type=immediate"]
            # Its own, also when a later restore has begun another one before that point.
            timeline = member.details["timeline"]
        elif target.name:
            chosen = next((entry for entry in usable if entry.details["point"] == target.name), member)
            arguments = ["--type=name", f"--target={target.name}"]
        elif target.time:
            moment = parse_time(target.time)
            usable = self._ancestors(usable, timeline)
            chosen = self._before(usable, target.time, lambda entry: parse_time(entry.ended) < moment)
            arguments = ["--type=time", f"--target={moment.strftime('%Y-%m-%d %H:%M:%S.%f+00')}"]
        elif target.lsn:
            wanted = _lsn(target.lsn)
            usable = self._ancestors(usable, timeline)
            chosen = self._before(usable, target.lsn, lambda entry: _lsn(entry.details["lsn_stop"]) <= wanted)
            arguments = ["--type=lsn", f"--target={target.lsn}"]
        else:
            chosen, arguments = self._ancestors(usable, timeline)[-1], ["--type=default"]
        if not target.latest:
            arguments.append("--target-action=promote")
        if timeline and arguments[0] == "--type=immediate":
            # pgBackRest has no word for it there.
            arguments.append(f"--recovery-option=recovery_target_timeline={timeline}")
        elif timeline:
            arguments.append(f"--target-timeline={timeline}")
        data = self.options.data_directory
        places = {data: data + STAGING}
        return {
            "label": chosen.label,
            "size": sizes[chosen.label],
            "arguments": arguments,
            "system": chosen.details["system"],
            "staging": places[data],
            "places": places,
            "existed": self._beside.choose(places),
        }

    def _timeline(self, system: str) -> int:
        """The timeline of the data that are live, or 0 when they are of another cluster: then the latest one counts.

        The archive may know later ones, of restores that were undone.
        """
        argv = [f"{self.options.binaries}/pg_controldata", self.options.data_directory]
        outcome = run_command({"argv": argv, "user": ACCOUNT, "timeout": 60})
        fields = dict(line.partition(":")[::2] for line in outcome.stdout.splitlines())
        if fields.get("Database system identifier", "").strip() != system:
            return 0
        return int(fields["Latest checkpoint's TimeLineID"])

    def _ancestors(self, members: Sequence[Member], timeline: int) -> list[Member]:
        """Without the copies of what a restore has left behind: made on another timeline, after the live one left it.

        :raises Refused: when none is left.
        """
        forks = {timeline: sys.maxsize}
        try:
            path = f"{self.options.data_directory}/pg_wal/{timeline:08X}.history"
            with open(path, encoding="utf-8") as handle:
                rows = [line.split("\t") for line in handle if line.strip()]
            forks.update({int(row[0]): _lsn(row[1]) for row in rows})
        except FileNotFoundError:
            if timeline != 1:
                return list(members)
        found = [
            entry for entry in members if _lsn(entry.details["lsn_stop"]) <= forks.get(entry.details["timeline"], -1)
        ]
        if not found:
            raise Refused(f"{self.name}: no copy is of timeline {timeline}; name a set to restore")
        return found

    def _before(self, members: Sequence[Member], what: str, serves: Callable[[Member], bool]) -> Member:
        found = [member for member in members if serves(member)]
        if not found:
            first = members[0]
            raise Refused(
                f"{self.name}: {what} lies before the end of the first copy, {first.label} "
                f"({first.ended}, LSN {first.details['lsn_stop']}); nothing was changed"
            )
        return found[-1]

    def stage(self, choice: dict[str, Any]) -> dict[str, Any]:
        staging = choice["staging"]
        self.context.room(staging, choice["size"], f"the cluster of {choice['label']}")
        Scratch(self, staging).remove()
        own_folder(staging)
        self._pgbackrest(
            "restore the cluster", "restore", f"--set={choice['label']}", *choice["arguments"], f"--pg1-path={staging}"
        )
        # The recovery happens here, beside the live server: a target that the log does not reach changes nothing.
        server = Scratch(self, staging)
        try:
            server.start(f"{self.options.config_directory}/postgresql.conf")
            proven = server.promoted()
            if proven["system"] != choice["system"]:
                raise Damaged(f"{self.name}: restored system {proven['system']} instead of {choice['system']}")
        finally:
            server.stop()
        os.unlink(server.log)
        return proven

    @property
    def _beside(self) -> Beside:
        return Beside(self.context, [self.options.unit])

    def swap(self, choice: dict[str, Any]) -> None:
        Beside(self.context, [self.options.unit], start=[]).swap(choice["existed"], choice["places"])
        self._start()

    def _start(self) -> None:
        """Starts the server and waits for its first answer, which the distribution's unit awaits for two seconds more.

        :raises EngineFailed: when it does not come up.
        """
        systemctl(self.context, "start", [self.options.unit], "--no-block")
        for _look in range(ANSWERS):
            with contextlib.suppress(EngineFailed):
                self._server.ask("SELECT 1")
                return
            time.sleep(PACE)
        # It takes longer, or fails; this says why.
        systemctl(self.context, "start", [self.options.unit])
        self._server.ask("SELECT 1")

    def undo(self, choice: dict[str, Any]) -> None:
        Scratch(self, choice["staging"]).stop()
        self._beside.undo(choice["existed"], choice["places"])

    def commit(self, choice: dict[str, Any]) -> None:
        self._server.ask("ALTER SYSTEM RESET archive_command;\nSELECT pg_reload_conf();\n")
        self._beside.commit(choice["existed"])

    def prune(self, keep: Sequence[Member]) -> None:
        needed = {member.label for member in keep} | {label for member in keep for label in member.details["needs"]}
        try:
            stanza = self._info()
        except Refused:
            return  # no stanza, nothing to remove
        full = [entry["label"] for entry in stanza["backup"] if entry["type"] == "full"]
        if not needed & set(full):
            # The last full one stays until there is another one: pgBackRest insists.
            needed |= set(full[-1:])
        unwanted = [entry["label"] for entry in stanza["backup"] if entry["label"] not in needed]
        # What builds on others goes before them.
        for label in sorted(unwanted, reverse=True):
            self._pgbackrest("remove a backup", "expire", f"--set={label}")
        if unwanted:
            # Log from before the oldest one that is left.
            left = len(set(full) & needed)
            self._pgbackrest("remove log", "expire", f"--repo1-retention-full={left}")


def _moment(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _segments(first: str, last: str, size: int) -> list[str]:
    """The names of the log's files from one to another one of the same timeline, each of so many bytes.

    See "WAL Internals" in PostgreSQL's manual.
    """
    each = (1 << 32) // size
    numbers = [int(name[8:16], 16) * each + int(name[16:], 16) for name in (first, last)]
    return [f"{first[:8]}{number // each:08X}{number % each:08X}" for number in range(numbers[0], numbers[1] + 1)]


def _lsn(text: str) -> int:
    """A position in the log, such as 0/16B3748, as a number. :raises Refused: for anything else."""
    high, slash, low = text.partition("/")
    try:
        if not slash:
            raise ValueError
        return (int(high, 16) << 32) + int(low, 16)
    except ValueError:
        raise Refused(f"{text!r} is no LSN; give one such as 0/16B3748") from None
