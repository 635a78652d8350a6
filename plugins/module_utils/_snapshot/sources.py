# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What can be saved. A source knows its engine; sets, locks, order and records are no business of it."""

from __future__ import annotations

import abc
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .._host import CommandError, Outcome, run_command
from .model import Damaged, EngineFailed, Member, Refused
from .repository import Repository

BACKUP_DIR = "/etc/vmfleet/backup.d"
# A backup or restore may well take a day; what must be quick says so itself.
PATIENCE = 86400.0


@dataclass(frozen=True)
class Target:
    """The moment to restore: a set's own, or a later or earlier one where the source can.

    At most one of ``time`` (ISO 8601 with zone), ``name`` (of a restore point), ``lsn`` and ``latest``. ``database``
    narrows a source that has several.
    """

    time: str = ""
    name: str = ""
    lsn: str = ""
    latest: bool = False
    database: str = ""

    @property
    def of_the_set(self) -> bool:
        """Whether it is the moment of the set itself."""
        return not (self.time or self.name or self.lsn or self.latest)


@dataclass
class Context:
    """What every source of a run shares.

    ``spool`` is a folder of the run, for root only. ``full_days`` is the age at which a copy that later ones are built
    on gets too old for that; zero is never. ``places`` are the folders of repositories on this host.
    """

    host: str
    repository: Repository
    spool: str
    say: Callable[[str], None]
    full_days: float = 0
    places: Sequence[str] = ()
    # Where a run notes what it has begun, for the next one to end the orphan of a killed one. Who looks has none.
    pid_file: str | None = None
    # What an engine has done or found out in a run, by words of its own: all its sources share that.
    known: dict[str, Any] = field(default_factory=dict)

    def room(self, place: str, size: int, what: str) -> None:
        """Proves that a folder, or the one where it will be, has room.

        :raises Refused: when it has less than ``size`` bytes.
        """
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        free = shutil.disk_usage(place).free
        if free < size:
            raise Refused(f"{place} has {free} B free, and {what} may take {size} B; make room")

    def damaged(self, error: Exception, words: str = "") -> Damaged:
        """What an engine could not read, as damage. :raises Unavailable: when the repository is out of reach."""
        self.repository.names("catalogue")
        return Damaged(f"{words}{error}")

    def command(
        self,
        purpose: str,
        argv: Sequence[str],
        *,
        user: str = "",
        environment: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout: float = PATIENCE,
    ) -> Outcome:
        """Runs a program of an engine.

        :raises EngineFailed: with the end of what it said.
        """
        command: dict[str, Any] = {"argv": argv, "environment": environment, "stdin": stdin, "timeout": timeout}
        try:
            return run_command({**command, "user": user}, check=purpose, pid_file=self.pid_file)
        except CommandError as error:
            said = (error.outcome.stderr.strip() or error.outcome.stdout.strip())[-1500:]
            raise EngineFailed(f"{purpose}: {argv[0]} ended with {error.outcome.rc}: {said}") from error


class Source(abc.ABC):
    """One thing on this host that is saved by one engine.

    A run calls :meth:`settle` of all, then :meth:`plan` of all, then :meth:`copy` of one after the other. For a set of
    several hosts the three steps of a copy are runs of their own, with :meth:`fence` and :meth:`unfence` around the
    second one; what a step knows goes to the later ones as JSON. A restore
    calls :meth:`choose`, keeps what it gives in a journal, then :meth:`stage`, :meth:`swap`, and when an operator says
    so :meth:`commit`; :meth:`undo` may follow at any point, also after a kill in the middle, and more than once.
    """

    # What announced entries call it, as ``type``.
    kind: ClassVar[str]
    # A dataclass: the keys of such an entry, beside type and name.
    takes: ClassVar[Any]
    # A kind whose restore brings this one's data too; then this one is restored only when it is asked for by name.
    within: ClassVar[str] = ""
    # Whether it is in sets of its own, and in no other ones.
    apart: ClassVar[bool] = False
    # Whether it can be restored to moments between its sets; for another one than a set's own, those are taken.
    moments: ClassVar[bool] = False

    def __init__(self, name: str, options: Any, context: Context) -> None:
        self.name = name
        self.options = options
        self.context = context

    def is_member(self) -> bool:
        """Whether it is saved on this host; a replica is not."""
        return True

    @abc.abstractmethod
    def plan(self) -> None:
        """Proves that a copy can begin; changes nothing. :raises Refused:"""

    @abc.abstractmethod
    def estimate(self) -> int:
        """The bytes that a copy would hold, about, where :meth:`plan` has found that it can begin."""

    def ahead(self, set_id: str, full: bool) -> dict[str, Any]:
        """The first step of a copy, what may be done before its moment. ``full`` asks for one that stands alone.

        :raises EngineFailed:
        """
        return {}

    def mark(self, set_id: str, work: dict[str, Any]) -> dict[str, Any]:
        """The second step, short: after it nothing that is written belongs to the copy. ``work`` is of the first one.

        :raises EngineFailed:
        """
        return {}

    @abc.abstractmethod
    def finish(self, set_id: str, work: dict[str, Any]) -> Member:
        """The last step: when this returns, the member is durable. ``work`` is of both steps before.

        :raises EngineFailed:
        """

    def copy(self, set_id: str, full: bool) -> Member:
        """Makes the member of a set. :raises EngineFailed:"""
        work = self.ahead(set_id, full)
        work.update(self.mark(set_id, work))
        return self.finish(set_id, work)

    def of_one_moment(self, member: Member) -> bool:
        """Whether a finished member is as everything was at each point of time while :meth:`mark` ran."""
        return True

    def fence(self, seconds: float) -> dict[str, Any]:
        """Has writers wait, for at most ``seconds``, whatever becomes of this run. Returns what :meth:`unfence` takes.

        :raises EngineFailed: then nobody waits.
        """
        return {}

    def unfence(self, fence: dict[str, Any]) -> str:
        """Lets writers go on; may be called more than once, and of a killed :meth:`fence` with nothing.

        Returns what is wrong with the fence: how something can have been written in spite of it, or nothing.
        """
        return ""

    @abc.abstractmethod
    def verify(self, member: Member, thorough: bool) -> dict[str, Any]:
        """Proves a member: by the engine's checks, ``thorough`` by a restore into a scratch place as well.

        Returns what was proven, for reports. :raises Damaged:
        """

    @abc.abstractmethod
    def choose(self, member: Member, members: Sequence[Member], target: Target) -> dict[str, Any]:
        """Decides how a target is restored: what is staged where, as JSON. ``members`` are those of all sets.

        Changes nothing. :raises Refused: when the target cannot be had.
        """

    def only_own_moment(self, target: Target, databases: bool = False) -> None:
        """:raises Refused: for another moment than that of a set, and a database where there are none."""
        if not target.of_the_set:
            raise Refused(f"{self.name}: has the moments of its sets only; name a set")
        if target.database and not databases:
            raise Refused(f"{self.name}: has no databases; name the source that has {target.database}")

    @abc.abstractmethod
    def stage(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Restores beside the live data and proves the result. Returns what was proven. :raises SnapshotError:"""

    @abc.abstractmethod
    def swap(self, choice: dict[str, Any]) -> None:
        """Puts what was staged in the place of the live data, which is kept. :raises SnapshotError:"""

    @abc.abstractmethod
    def undo(self, choice: dict[str, Any]) -> None:
        """The data from before the restore are live again, and what was staged is gone."""

    @abc.abstractmethod
    def commit(self, choice: dict[str, Any]) -> None:
        """Removes the data from before the restore."""

    @abc.abstractmethod
    def prune(self, keep: Sequence[Member]) -> None:
        """Removes from the repository all that is of this source and host, and that none of ``keep`` needs."""

    def settle(self) -> None:
        """Ends what a killed run may have left frozen. Called at the start of every run that changes something."""
        return


def parse_options(where: str, options: type[Any], entry: Mapping[str, Any]) -> Any:
    """An announced entry as the dataclass of its type.

    :raises Refused: for unknown and missing keys and values of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(options)}
    unknown = sorted(set(entry) - set(fields))
    if unknown:
        raise Refused(f"{where}: {', '.join(unknown)}: no such key; it takes {', '.join(sorted(fields))}")
    missing = [
        name
        for name, field in fields.items()
        if name not in entry and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise Refused(f"{where}: {', '.join(missing)}: missing")
    # Annotations are text here; those of options are plain names.
    kinds: dict[str, type[Any]] = {"str": str, "int": int, "bool": bool, "list": list, "dict": dict}
    for name, value in entry.items():
        kind = str(fields[name].type).partition("[")[0]
        if not isinstance(value, kinds[kind]) or (kind == "int" and isinstance(value, bool)):
            raise Refused(f"{where}: {name}: {value!r} is no {kind}")
    return options(**entry)


def load_sources(
    types: Mapping[str, type[Source]], context: Context, skip: Sequence[str] = (), directory: str = BACKUP_DIR
) -> list[Source]:
    """The sources that the roles of this host have announced, without those of which name or type is to be skipped.

    An entry without a name is called after its type; the first of a type under that name, others with a number.

    :raises Refused: for a file that cannot be read, an unknown type, or an entry that is written wrongly.
    """
    found: dict[str, Source] = {}
    files = sorted(name for name in os.listdir(directory) if name.endswith(".json")) if os.path.isdir(directory) else []
    for file in files:
        path = os.path.join(directory, file)
        try:
            with open(path, encoding="utf-8") as handle:
                entries = json.load(handle)
        except (OSError, ValueError) as error:
            raise Refused(f"{path}: {error}") from error
        for entry in entries:
            kind = types.get(str(entry.get("type")))
            if kind is None:
                if str(entry.get("type")) in skip:
                    continue
                raise Refused(f"{path}: type: {entry.get('type')!r} is none of {', '.join(sorted(types))}")
            name, number = str(entry.get("name") or kind.kind), 2
            while name in found:
                name, number = f"{entry.get('name') or kind.kind}-{number}", number + 1
            options = {key: value for key, value in entry.items() if key not in ("type", "name")}
            found[name] = kind(name, parse_options(f"{path}: {name}", kind.takes, options), context)
    return [source for source in found.values() if not {source.name, source.kind} & set(skip) and source.is_member()]
