# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs: sets are taken, proven, restored and forgotten here, one run at a time on a host, each safe to be killed."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .._durable import read_json, write_durably, write_textfile
from .._host import end_orphan
from . import exchange, hold
from .archive import Archive
from .beside import remove
from .catalogue import Catalogue
from .model import (
    ID_LENGTH,
    SEALED,
    VERIFIED,
    Busy,
    Damaged,
    HostFailed,
    Manifest,
    NotFound,
    Refused,
    SnapshotError,
    Unavailable,
    check_id,
    new_id,
    now,
    parse_time,
)
from .postgresql_logical import Logical
from .registry import TYPES, described, open_repository
from .retention import Keep, judge
from .sources import BACKUP_DIR, Context, Source, Target, load_sources

SETTINGS = "/etc/vmfleet/backup/settings.json"
STATE = "/var/lib/vmfleet/backup"
LOCK = "/run/vmfleet-backup.lock"
TEXTFILE = "/var/lib/prometheus/node-exporter/vmfleet_backup.prom"
JOURNAL = f"{STATE}/restore.json"
# The phase of a restore that only an operator ends, and the one from which there is no way back.
SWAPPED, COMMITTING = "swapped", "committing"
FAULTS = (SnapshotError, OSError)


def fail_point(phase: str) -> None:
    """Lets the tests kill a run at a given phase, as a power cut or the OOM killer would."""
    if os.environ.get("VMFLEET_FAIL_AT") == phase:
        os.kill(os.getpid(), signal.SIGKILL)


def read_settings(path: str = SETTINGS) -> dict[str, Any]:
    """What role backup has written: host, repositories, skip, full_days.

    :raises Refused: when it is not there or unreadable.
    """
    try:
        with open(path, encoding="utf-8") as handle:
            settings: dict[str, Any] = json.load(handle)
    except FileNotFoundError:
        raise Refused(f"{path} is not there; apply role vmfleet.ops.backup to this host") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: {error}") from error
    return settings


class Engine:
    """All that can be done with the sets of this host in one of its repositories."""

    def __init__(
        self, settings: Mapping[str, Any], repository: str = "", say: Callable[[str], None] = lambda line: None
    ) -> None:
        """``repository`` names one of the settings; by default it is the first.

        :raises Refused: for settings or announced sources that are wrong. :raises WrongKey: see ``Key.load``.
        """
        self.host = str(settings["host"])
        self.say = say
        entry = described(settings["repositories"], repository)
        self.all_repositories = [str(one["name"]) for one in settings["repositories"]]
        self.repository = open_repository(entry)
        self.catalogue = Catalogue(self.repository, self.host)
        self.keep = Keep.of(entry.get("keep") or {})
        spool = str(settings.get("spool") or f"{STATE}/spool")
        places = [str(one["path"]) for one in settings["repositories"] if one["kind"] == "path"]
        self.context = Context(self.host, self.repository, spool, say, float(settings.get("full_days", 0)), places)
        self.sources = load_sources(
            TYPES, self.context, settings.get("skip", []), settings.get("sources") or BACKUP_DIR
        )

    def shown(self, manifest: Manifest) -> dict[str, Any]:
        """A set as reports show it."""
        return {"repository": self.repository.name, **manifest.shown()}

    def chosen(self, names: Sequence[str]) -> list[Source]:
        """The sources of these names or types, or all.

        :raises Refused: when one is unknown, or nothing would be saved.
        """
        known = {word for source in self.sources for word in (source.name, source.kind)}
        unknown = sorted(set(names) - known)
        if unknown:
            raise Refused(f"no source {', '.join(unknown)} on this host; it has {', '.join(sorted(known)) or 'none'}")
        if names:
            return [source for source in self.sources if {source.name, source.kind} & set(names)]
        found = [source for source in self.sources if not source.apart]
        if not found:
            raise Refused(f"no role of this host has announced anything to save in {BACKUP_DIR}")
        return found

    @contextlib.contextmanager
    def run(self, wait: float = 0.0, set_of: str = "", sweeping: bool = True) -> Iterator[None]:
        """Alone on this host, and after what a killed run has left was put in order.

        ``set_of`` is the attempt of several hosts, of which this run is a step: it may have the host held. A run that
        is not ``sweeping`` leaves the repository alone, also what was left there.

        :raises Busy: when another run goes on for longer than ``wait`` seconds.
        :raises HostFailed: for what the system refuses.
        """
        os.makedirs(STATE, mode=0o755, exist_ok=True)
        os.makedirs(self.context.spool, mode=0o711, exist_ok=True)
        deadline = time.monotonic() + wait
        with open(os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "w", encoding="ascii") as handle:
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if not hold.lasts(hold.read(), set_of):
                        break
                    fcntl.flock(handle, fcntl.LOCK_UN)
                if time.monotonic() >= deadline:
                    raise Busy("another snapshot or restore is at work on this host; wait for its end")
                time.sleep(0.5)
            self.context.pid_file = f"{STATE}/running"
            self.context.known.clear()
            try:
                self._settle(self.context.pid_file, set_of, sweeping)
                yield
            except OSError as error:
                raise HostFailed(f"{error.filename or self.context.spool}: {error.strerror or error}") from error
            finally:
                self.context.pid_file = None
                self._clear_spool()

    def _settle(self, pid_file: str, set_of: str, sweeping: bool) -> None:
        end_orphan(pid_file)
        self._clear_spool()
        entry = hold.read()
        if entry is not None:
            if entry["fleet"] == set_of:
                return
            self.let_go()
        for source in self.sources:
            source.settle()
        entry = self.pending()
        if entry is not None and entry["phase"] == COMMITTING:
            self._commit(entry)
        elif entry is not None and entry["phase"] != SWAPPED:
            self.say(f"undoing a restore of set {entry['set']} that was ended in the middle")
            self._undo(entry)
        if sweeping and self.catalogue.ids("copying"):
            self.sweep()

    def let_go(self) -> list[str]:
        """Ends what a set of several hosts has held here. Returns what was wrong with its fence."""
        entry = hold.read()
        problems = []
        for source in self.sources:
            if entry is not None and source.name in entry.get("fence", {}):
                try:
                    problems.append(source.unfence(entry["fence"][source.name]))
                except FAULTS as error:
                    # Fences end by themselves; the others are not to wait for this one.
                    problems.append(str(error))
        hold.remove()
        return [problem for problem in problems if problem]

    def _clear_spool(self) -> None:
        for name in os.listdir(self.context.spool):
            remove(os.path.join(self.context.spool, name))

    def sweep(self) -> None:
        """Removes what belongs to no sealed set. One that cannot be read may need anything: then nothing is removed."""
        begun = self.catalogue.ids("copying")
        members = [member for manifest in self.catalogue.all() for member in manifest.members]
        for source in self.sources:
            source.prune([member for member in members if member.source == source.name])
        for set_id in begun:
            self.say(f"swept away what was left of {set_id}")
            self.catalogue.swept(set_id)

    def _source(self, name: str) -> Source:
        for source in self.sources:
            if source.name == name:
                return source
        raise NotFound(f"source {name} is not announced on this host; apply its role first")

    def estimate(self, names: Sequence[str] = ()) -> list[dict[str, Any]]:
        """What a set would hold, with estimated bytes; changes nothing. :raises Refused: as :meth:`take` would."""
        sources = self.chosen(names)
        self.repository.ready()
        for source in sources:
            source.plan()
        return [{"source": source.name, "type": source.kind, "size": source.estimate()} for source in sources]

    def take(
        self, set_id: str = "", names: Sequence[str] = (), *, full: bool = False, reason: str = "", wait: float = 0.0
    ) -> Manifest:
        """Makes a set of all members or none, and seals it when all are durable.

        :raises SnapshotError: then there is no new set, and the former ones are as they were.
        """
        began = now()
        set_id = check_id(set_id or new_id())
        sources = self.chosen(names)
        with self._reported(), self.run(wait):
            for source in sources:
                source.plan()
            manifest = Manifest(set_id, self.host, SEALED, began, self.repository.key.id, reason)
            self.catalogue.begin(manifest)
            fail_point("begun")
            try:
                members = []
                for number, source in enumerate(sources, start=1):
                    self.say(f"{number}/{len(sources)} {source.name}: copying")
                    members.append(source.copy(set_id, full))
                    self.say(f"{number}/{len(sources)} {source.name}: {members[-1].size} B, {members[-1].stored} B new")
                    fail_point(f"copied-{source.kind}")
                manifest = dataclasses.replace(manifest, members=tuple(members), sealed=now())
                fail_point("seal")
                self.catalogue.write(manifest)
                fail_point("sealed")
            except FAULTS as error:
                self._sweep_after(error)
                raise
            self.report(manifest)
        return manifest

    @contextlib.contextmanager
    def _reported(self, what: str = "", damaged: str = "") -> Iterator[None]:
        """Leaves word of a failure for health checks and people, that of a repository which is out of reach too.

        :param what: what failed.
        :param damaged: the same where it is the data's fault, and not that of the way to them.
        """
        try:
            yield
        except Busy:
            raise
        except FAULTS as error:
            self.report(failed=f"{damaged if isinstance(error, Damaged) and damaged else what}{error}")
            raise

    def _sweep_after(self, error: Exception) -> None:
        """Sweeps away what a failure has left. What cannot be swept now is left to the next run.

        :raises Unavailable: when the repository is gone, and with it what an engine complained of.
        """
        try:
            self.sweep()
        except Unavailable as gone:
            raise Unavailable(f"{gone} ({error})") from error
        except FAULTS:
            return

    def verify(self, set_id: str = "", *, thorough: bool = False, wait: float = 0.0) -> tuple[Manifest, dict[str, Any]]:
        """Proves a set, by default the newest, and notes it. Returns what was proven of each member.

        :raises Damaged: naming the member; the set keeps its former state.
        """
        with self._reported():
            set_id = set_id or self.catalogue.newest().id
        what = f"set {set_id} could not be proven: "
        with self._reported(what, damaged=f"set {set_id} is not sound: "), self.run(wait):
            manifest = self.catalogue.load(set_id)
            proven = {}
            for member in manifest.members:
                self.say(f"{member.source}: verifying")
                proven[member.source] = self._source(member.source).verify(member, thorough)
            manifest = dataclasses.replace(manifest, state=max(manifest.state, VERIFIED, key=_rank), verified=now())
            self.catalogue.write(manifest)
            self.report(manifest)
        return manifest, proven

    def archive(self, names: Sequence[str] = (), wait: float = 0.0) -> list[dict[str, Any]]:
        """Has old files go: they are archived, proven by a restore, and then removed from the host.

        :param names: of archives; by default all that something is due of.
        :return: of each set that was made its id, ``archived``, ``removed`` and ``left``, numbers of files.
        :raises SnapshotError: then nothing was removed that is not in a proven set.
        """
        outcomes = []
        archives = [source for source in self.sources if isinstance(source, Archive)]
        unknown = sorted(set(names) - {source.name for source in archives})
        if unknown:
            known = ", ".join(source.name for source in archives)
            raise Refused(f"there is no archive {', '.join(unknown)}; this host has {known or 'none'}")
        for source in archives:
            if source.name not in names and (names or not any(source.due().values())):
                continue
            set_id = f"{new_id()}-{source.name}"[:ID_LENGTH]
            made = self.take(set_id, [source.name], reason=f"archive {source.name}", wait=wait)
            try:
                made, _proven = self.verify(set_id, thorough=True, wait=wait)
            except FAULTS:
                # All of it is still on the host, and the next run makes another one.
                with contextlib.suppress(*FAULTS):
                    self.remove([set_id], wait)
                raise
            (member,) = made.members
            fail_point("archived")
            with self._reported(f"archive {source.name}: "), self.run(wait):
                removed, left = source.clear(member)
            archived = member.details["entries"]
            self.say(f"{source.name}: {archived} archived, {removed} removed, {left} changed meanwhile and left")
            outcomes.append({"set": made.id, "archived": archived, "removed": removed, "left": left})
        return outcomes

    def remove(self, set_ids: Sequence[str], wait: float = 0.0) -> list[str]:
        """Removes sets and what only they need. Returns those that were there.

        :raises Refused: when it would take the last verified one, while there are others.
        """
        with self.run(wait):
            sets = self.catalogue.all()
            gone = [manifest for manifest in sets if manifest.id in set_ids]
            left = [manifest for manifest in sets if manifest not in gone and not manifest.is_archive]
            proven = [manifest for manifest in sets if manifest.verified and not manifest.is_archive]
            if left and proven and not any(manifest in left for manifest in proven):
                raise Refused("this would remove the last set that was proven; verify another one first")
            self._forget(gone)
        return [manifest.id for manifest in gone]

    def _forget(self, gone: Sequence[Manifest]) -> None:
        for manifest in gone:
            self.catalogue.forget(manifest)
            fail_point("forgotten")
        if gone:
            self.sweep()

    def judge(self) -> dict[str, list[str]]:
        """Why each set stays, by id, the oldest first; those without a reason go. Changes nothing.

        :raises Refused: when nothing is said of how long sets are kept.
        """
        if self.keep is None:
            raise Refused("backup_keep has no rule on this host, so that all sets are kept; give it one to prune")
        return self._judged(self.catalogue.all())

    def _judged(self, sets: Sequence[Manifest]) -> dict[str, list[str]]:
        present = datetime.datetime.now(datetime.timezone.utc)
        ordinary = [manifest for manifest in sets if not manifest.is_archive]
        if self.keep is None:
            judged = {manifest.id: ["there is no rule"] for manifest in ordinary}
        else:
            judged = judge(ordinary, self.keep, [source.name for source in self.sources], present)
        days = {source.name: source.options.keep_days for source in self.sources if isinstance(source, Archive)}
        for manifest in (manifest for manifest in sets if manifest.is_archive):
            # One that nobody is left to tell of stays.
            limit = max(days.get(member.source, 0) for member in manifest.members)
            over = limit and present - parse_time(manifest.sealed) > datetime.timedelta(days=limit)
            judged[manifest.id] = [] if over else ["an archive"]
        return judged

    def prune(self, wait: float = 0.0) -> dict[str, list[str]]:
        """Removes the sets that no rule keeps, and what only they need. Returns what :meth:`judge` said of all."""
        with self._reported("pruning: "), self.run(wait):
            sets = self.catalogue.all()
            judged = self._judged(sets)
            gone = [manifest for manifest in sets if not judged[manifest.id]]
            for manifest in gone:
                self.say(f"pruning set {manifest.id} of {manifest.sealed}: no rule keeps it")
            self._forget(gone)
        return judged

    def _logical(self) -> Logical:
        for source in self.sources:
            if isinstance(source, Logical):
                return source
        raise Refused("no role of this host has announced databases that are saved one by one")

    def export(self, database: str, path: str, set_id: str = "", wait: float = 0.0) -> dict[str, Any]:
        """Writes a database of a set, by default the newest, as a file, see :mod:`.exchange`. Returns what was done."""
        with self.run(wait):
            manifest = self.catalogue.load(set_id) if set_id else self.catalogue.newest()
            source = self._logical()
            size = exchange.write(source, manifest.member(source.name), database, os.path.abspath(path))
        return {"set": manifest.id, "database": database, "file": path, "size": size}

    def import_(self, database: str, path: str, wait: float = 0.0) -> dict[str, Any]:
        """Makes a database of such a file. :raises Refused: when there is one of that name."""
        with self.run(wait):
            exchange.read(self._logical(), os.path.abspath(path), database)
        return {"database": database, "file": path}

    # Restoring

    def pending(self) -> dict[str, Any] | None:
        """The restore that is neither committed nor undone: set, phase, and the choices by source."""
        entry: dict[str, Any] | None = read_json(JOURNAL)
        return entry

    def _note(self, entry: Mapping[str, Any], phase: str) -> None:
        write_durably(JOURNAL, json.dumps({**entry, "phase": phase}).encode())
        fail_point(f"restore-{phase}")

    def _commit(self, entry: Mapping[str, Any]) -> None:
        for name, choice in entry["choices"].items():
            self._source(name).commit(choice)
        os.unlink(JOURNAL)

    def _undo(self, entry: Mapping[str, Any]) -> None:
        for name, choice in entry["choices"].items():
            self._source(name).undo(choice)
        os.unlink(JOURNAL)

    def choose(
        self, set_id: str = "", names: Sequence[str] = (), target: Target | None = None, set_of: str = ""
    ) -> dict[str, Any]:
        """What a restore would do: the set, and for each source the engine's choice. Changes nothing.

        ``set_of`` insists on the part of this host in what several hosts have made together, see :mod:`.fleet`.

        Without a set it is the newest one for its own moment; another moment may come from an earlier one, and is that
        of the sources which have such moments.

        :raises Refused: when the target cannot be had, or another restore is open.
        """
        pending = self.pending()
        if pending is not None:
            raise Refused(
                f"a restore of set {pending['set']} is neither committed nor undone; say `vmfleet-backup commit` or "
                "`vmfleet-backup undo` first"
            )
        target = target or Target()
        sets = self.catalogue.all()
        chosen = self.catalogue.load(set_id) if set_id else self.catalogue.newest()
        if set_of and chosen.fleet.get("id") != set_of:
            raise Refused(f"set {chosen.id} of this host is no part of {set_of}, which others have made")
        choices = {}
        kinds = {member.type for member in chosen.members}
        own = [
            member.source
            for member in chosen.members
            if TYPES[member.type].within not in kinds and (target.of_the_set or TYPES[member.type].moments)
        ]
        if not names and not own:
            raise Refused(f"nothing in set {chosen.id} can be restored to another moment than that of a set")
        for name in names or own:
            member = chosen.member(name)
            members = [entry for manifest in sets for entry in manifest.members if entry.source == name]
            choices[name] = self._source(name).choose(member, [member] if set_id else members, target)
        return {"set": chosen.id, "repository": self.repository.name, "choices": choices}

    def restore(
        self,
        set_id: str = "",
        names: Sequence[str] = (),
        target: Target | None = None,
        wait: float = 0.0,
        *,
        set_of: str = "",
    ) -> dict[str, Any]:
        """Restores: all is staged beside the live data first, then all is swapped. The old data stay until commit.

        Returns the set and, by source, what was proven of the staged data.

        :raises SnapshotError: then the old data are live, as before.
        """
        with self.run(wait):
            entry = self.choose(set_id, names, target, set_of)
            proven: dict[str, Any] = {}
            try:
                self._note(entry, "staging")
                for name, choice in entry["choices"].items():
                    self.say(f"{name}: staging")
                    proven[name] = self._source(name).stage(choice)
                self._note(entry, "swapping")
                for name, choice in entry["choices"].items():
                    self.say(f"{name}: swapping")
                    self._source(name).swap(choice)
                    fail_point(f"swapped-{self._source(name).kind}")
                self._note(entry, SWAPPED)
            except FAULTS:
                self._undo(entry)
                raise
        return {"set": entry["set"], "proven": proven}

    def conclude(self, keep: bool, wait: float = 0.0) -> dict[str, Any] | None:
        """Commits the open restore, or undoes it. Returns it, or None when there is none."""
        # The repository may be out of reach.
        with self.run(wait, sweeping=False):
            entry = self.pending()
            if entry is None:
                return None
            if keep:
                # Former data of which a part is gone must never come back.
                self._note(entry, COMMITTING)
                self._commit(entry)
            else:
                self._undo(entry)
        return entry

    # Records for people and monitoring

    def report(self, manifest: Manifest | None = None, failed: str = "") -> None:
        """Leaves the status that health checks read, and metrics. A failure keeps the times of the last good set; an
        archive is none.
        """
        if manifest is not None and manifest.is_archive:
            return
        statuses = {name: _status(name) for name in self.all_repositories}
        status = statuses[self.repository.name]
        status.update(failed=failed, checked=now())
        if manifest is not None:
            shown = manifest.shown()
            if manifest.sealed >= status.get("finished", ""):
                status.setdefault("since", manifest.sealed)
                status.update(set=manifest.id, finished=manifest.sealed, began=manifest.began, size=shown["size"])
                status.update(stored=shown["stored"])
            if manifest.verified:
                status["verified"] = manifest.verified
        content = json.dumps(status, indent=1, sort_keys=True).encode() + b"\n"
        write_durably(status_file(self.repository.name), content, 0o644)
        write_textfile(TEXTFILE, metrics(statuses))


def _rank(state: str) -> int:
    return (SEALED, VERIFIED, "drilled").index(state)


def status_file(repository: str) -> str:
    """Where the status of a repository is left."""
    return f"{STATE}/status-{repository}.json"


def _status(repository: str) -> dict[str, Any]:
    try:
        return dict(read_json(status_file(repository)) or {})
    except (OSError, ValueError):
        return {}


def _seconds(status: Mapping[str, Any], name: str) -> float:
    return parse_time(status[name]).timestamp() if status.get(name) else 0.0


# Name, meaning and value of each family of metrics.
METRICS: tuple[tuple[str, str, Callable[[Mapping[str, Any]], float]], ...] = (
    ("last_success_timestamp_seconds", "When the newest set was sealed; 0: there is none.",
     lambda status: _seconds(status, "finished")),
    ("last_verified_timestamp_seconds", "When a set was last proven; 0: never.",
     lambda status: _seconds(status, "verified")),
    ("last_run_timestamp_seconds", "When the last run ended.", lambda status: _seconds(status, "checked")),
    ("last_run_failed", "1 when the last run failed.", lambda status: float(bool(status.get("failed")))),
    ("duration_seconds", "What the newest set took.",
     lambda status: max(0.0, _seconds(status, "finished") - _seconds(status, "began"))),
    ("size_bytes", "What the newest set holds.", lambda status: float(status.get("size", 0))),
    ("stored_bytes", "What the newest set added to the repository.", lambda status: float(status.get("stored", 0))),
)  # fmt: skip


def metrics(statuses: Mapping[str, Mapping[str, Any]]) -> str:
    """Prometheus' text format of the statuses of all repositories by name."""
    lines = []
    for name, meaning, value in METRICS:
        family = f"vmfleet_backup_{name}"
        lines += [f"# HELP {family} {meaning}", f"# TYPE {family} gauge"]
        lines += [f'{family}{{repository="{one}"}} {value(status)!r}' for one, status in statuses.items()]
    return "\n".join([*lines, ""])
