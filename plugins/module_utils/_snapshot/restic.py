# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""restic, which keeps whatever is files: it compresses, encrypts with authentication, and stores equal parts once."""

from __future__ import annotations

import abc
import contextlib
import functools
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .._durable import write_durably
from .._host import CommandError
from .beside import remove
from .model import Damaged, EngineFailed, Member, NotFound, WrongKey, now
from .sources import Context, Source

# restic's exit code for a snapshot that lacks what could not be read.
INCOMPLETE = 3
# Its words for a lock of somebody else, another key, and no repository; exit code 10 of 0.17 says the last, too.
LOCKED = "already locked"
OTHER_KEY = "wrong password or no key found"
ABSENT = ("Is there a repository at the following location", "ended with 10")
FULL_ID = 64
# By what a run knows the snapshots of this host.
LISTED = "listed"


def literally(path: str) -> str:
    """A path as restic's patterns have it."""
    return re.sub(r"([\\*?\[])", r"\\\1", path)


class Restic:
    """A source's trees in the restic part of the repository. Snapshots carry host, set and source as tags."""

    def __init__(self, context: Context, source: str) -> None:
        self.context = context
        self.source = source

    def _run(self, purpose: str, *arguments: str, wrapper: Sequence[str] = ()) -> str:
        try:
            return self._call(purpose, *arguments, wrapper=wrapper)
        except WrongKey:
            # Of a store that gave an error for the list of keys, and called it a success, restic says the same.
            return self._call(purpose, *arguments, wrapper=wrapper)
        except EngineFailed as error:
            if LOCKED not in str(error):
                raise
        # Removes those of processes that are gone, and no others.
        self._call("unlock the restic repository", "unlock")
        return self._call(purpose, *arguments, wrapper=wrapper)

    def _call(self, purpose: str, *arguments: str, wrapper: Sequence[str] = ()) -> str:
        place = self.context.repository.restic(self.context.host)
        environment = {
            # Names in the environment, which only root sees, and no secret in either.
            **place.environment,
            "RESTIC_REPOSITORY": place.address,
            "RESTIC_PASSWORD_FILE": self.context.repository.key.path,
            "RESTIC_CACHE_DIR": "/var/cache/vmfleet/restic",
            "RESTIC_PROGRESS_FPS": "0.1",
            # Against 100, 50,000 small files take a sixth less time so, and 150 MB instead of 85.
            "GOGC": "150",
        }
        argv = [*wrapper, "restic", *place.options, *self._since_15(*place.recent), *arguments]
        try:
            return self.context.command(purpose, argv, environment=environment).stdout
        except EngineFailed as error:
            if OTHER_KEY in str(error):
                raise WrongKey(f"{purpose}: {self.context.repository.key.path} is not its key") from error
            raise

    @functools.cached_property
    def version(self) -> str:
        """Such as ``restic 0.18.0``."""
        said = self.context.command("ask restic for its version", ["restic", "version"]).stdout
        return " ".join(said.split()[:2])

    def _since_15(self, *options: str) -> list[str]:
        """Options that came with 0.15 or before, where that is what there is."""
        return [*options] if _number(self.version) >= (0, 15) else []

    @contextlib.contextmanager
    def after(self, work: Callable[[], None]) -> Iterator[list[str]]:
        """Does something while restic opens its repository, which takes it half a second of one processor.

        Gives an option by which it reads nothing of what is saved before that is done: patterns, none, from a pipe that
        is closed then. It reads patterns before trees, and after it has opened the repository.

        :raises Exception: that of ``work``.
        """
        pipe = os.path.join(self.context.spool, f"{self.source}.ready")
        remove(pipe)
        os.mkfifo(pipe, 0o600)
        failures: list[Exception] = []

        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - for whoever waits for it
                failures.append(error)
            waiting = os.open(pipe, os.O_WRONLY)  # when somebody reads
            try:
                # Where restic has to be started again, it finds that there is nothing to wait for.
                write_durably(pipe, b"")
            except OSError as error:
                failures.append(error)
            finally:
                os.close(waiting)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield [f"--exclude-file={pipe}"]
        finally:
            # restic may have ended before it has read.
            reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            thread.join()
            os.close(reading)
            remove(pipe)
            if failures:
                raise failures[0]

    def _once(self, what: str) -> bool:
        """Whether it is still to be done in this run: there is one repository for all sources."""
        if what in self.context.known:
            return False
        self.context.known[what] = True
        return True

    def save(
        self, set_id: str, paths: Sequence[str], *options: str, wrapper: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Saves files and folders under their own paths. Returns restic's summary, with ``snapshot_id``.

        Makes the repository when there is none. What went away while it was read is left out.

        :param wrapper: what restic is started by, if not by itself.
        """
        self.context.known.pop(LISTED, None)
        tags = f"set={set_id},source={self.source}"
        # Nobody waits for an estimate, for which all would be looked at twice.
        given = [*self._since_15("--no-scan"), *options]
        command = ("backup", "--json", "--host", self.context.host, "--tag", tags, *given, "--", *paths)
        try:
            shown = self._save(command, wrapper)
        except EngineFailed as error:
            if not any(words in str(error) for words in ABSENT):
                raise
            self._call("make the restic repository", "init")
            shown = self._save(command, wrapper)
        summaries = [entry for entry in map(json.loads, shown.splitlines()) if entry.get("message_type") == "summary"]
        if not summaries:
            raise EngineFailed(f"save {self.source} with restic: it told no summary")
        told = summaries[-1]["snapshot_id"]
        if len(told) < FULL_ID:  # before 0.15
            found = [entry["id"] for entry in self.snapshots() if entry["id"].startswith(told)]
            if not found:
                raise EngineFailed(
                    f"save {self.source} with restic: it has made {told}, and the repository lists none such; look "
                    "whether it keeps and lists what it accepts"
                )
            told = found[-1]
        return {**summaries[-1], "snapshot_id": told}

    def _save(self, command: Sequence[str], wrapper: Sequence[str]) -> str:
        try:
            return self._run(f"save {self.source} with restic", *command, wrapper=wrapper)
        except EngineFailed as error:
            outcome = error.__cause__.outcome if isinstance(error.__cause__, CommandError) else None
            if outcome is None or outcome.rc != INCOMPLETE or not _only_gone(outcome.stderr):
                raise
            return outcome.stdout

    def snapshots(self) -> list[dict[str, Any]]:
        """All of this source and host."""
        known = self.context.known
        if LISTED not in known:  # opening the repository takes half a second of a processor
            # Without a lock, which takes restic a fifth of a second: this run has the host's snapshots to itself.
            found = self._run("list what restic has", "snapshots", "--json", "--no-lock", "--host", self.context.host)
            known[LISTED] = json.loads(found) or []
        return [entry for entry in known[LISTED] if f"source={self.source}" in entry.get("tags", ())]

    def restore(self, snapshot: str, target: str, *options: str) -> None:
        """Restores a snapshot into a folder; what it holds keeps its whole path below that. Holes stay holes.

        :raises NotFound: when there is no such snapshot. :raises Damaged: when it cannot be read in full.
        """
        sparse = self._since_15("--sparse")  # earlier ones fill them
        self._read("restore", snapshot, "--target", target, *sparse, *options)

    def dump(self, snapshot: str, path: str, command: str) -> str:
        """Gives one file of a snapshot to a command of the shell. Returns what that prints.

        :raises NotFound: when there is no such snapshot. :raises Damaged: when it cannot be read in full.
        """
        wrapper = ["bash", "-o", "pipefail", "-c", f'"$@" | {command}', "bash"]
        return self._read("dump", snapshot, f"/{path}", wrapper=wrapper)

    def _read(self, *arguments: str, wrapper: Sequence[str] = ()) -> str:
        try:
            return self._run(f"restore {self.source} with restic", *arguments, wrapper=wrapper)
        except EngineFailed as error:
            if "no matching ID" in str(error) or "no snapshot found" in str(error):
                raise NotFound(str(error)) from error
            raise self.context.damaged(error) from error

    def check(self, read_all: bool) -> None:
        """Proves the repository's structure, and with ``read_all`` every byte of it. :raises Damaged:"""
        if not self._once("read" if read_all else "checked"):
            return
        try:
            self._run("check the restic repository", "check", *(["--read-data"] if read_all else []))
        except EngineFailed as error:
            raise self.context.damaged(error) from error

    def keep(self, labels: Sequence[str]) -> None:
        """Removes all snapshots of this source and host but those."""
        unwanted = [entry["id"] for entry in self.snapshots() if entry["id"] not in labels]
        if unwanted:
            listed = self.context.known.pop(LISTED)
            self._run("remove what no set needs with restic", "forget", "--prune", *unwanted)
            self.context.known[LISTED] = [entry for entry in listed if entry["id"] not in unwanted]


def stored(summary: dict[str, Any]) -> int:
    """The bytes that a snapshot has added to the repository, by restic's summary of it."""
    return int(summary.get("data_added_packed", summary["data_added"]))


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]+", version)[:2]))


def _only_gone(said: str) -> bool:
    """Whether all that restic could not read is not there any more."""
    items = []
    for line in said.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("message_type") == "error":
            items.append(str(entry.get("item", "")))
    # A name that is no UTF-8 comes with another sign in its place: nothing can be told of it.
    return bool(items) and not any(not item or "\ufffd" in item or os.path.lexists(item) for item in items)


class Kept(Source):
    """A source whose copies are snapshots of restic: what all of them have in common."""

    @functools.cached_property
    def restic(self) -> Restic:
        return Restic(self.context, self.name)

    def save(
        self,
        set_id: str,
        began: str,
        paths: Sequence[str],
        options: Sequence[str] = (),
        *,
        engine: str = "",
        consistency: str = "application",
        digests: dict[str, Any] | None = None,
        details: dict[str, Any] | None = None,
        wrapper: Sequence[str] = (),
    ) -> Member:
        """Saves paths as the member of a set.

        :param engine: what has made them, if not restic alone.
        :param wrapper: what restic is started by, if not by itself.
        """
        summary = self.restic.save(set_id, paths, *options, wrapper=wrapper)
        return Member(
            source=self.name,
            type=self.kind,
            engine=", ".join(filter(None, (engine, self.restic.version))),
            label=summary["snapshot_id"],
            consistency=consistency,
            began=began,
            ended=now(),
            size=summary["total_bytes_processed"],
            stored=stored(summary),
            digests=digests or {},
            details=details or {},
        )

    def scratch(self, suffix: str = "") -> str:
        """A new folder of this source in the spool, for root only. It has the same path in all sets, by which restic
        knows what it has already."""
        path = os.path.join(self.context.spool, self.name + suffix)
        remove(path)
        os.mkdir(path, 0o700)
        return path

    def fetch(self, label: str, folder: str) -> str:
        """Brings one folder of a snapshot into the spool. Returns where it is."""
        target = self.scratch(".fetched")
        self.restic.restore(label, target, "--include", literally(folder))
        if not os.path.isdir(target + folder):
            raise Damaged(f"{self.name}: {label} does not hold {folder}")
        # Its own account can pass through the spool only.
        tree = self.scratch(".tree")
        os.rename(target + folder, tree)
        return tree

    def labels(self, member: Member) -> list[str]:
        """The snapshots that a member is in."""
        return [member.label]

    def verify(self, member: Member, thorough: bool) -> dict[str, Any]:
        known = {entry["id"] for entry in self.restic.snapshots()}
        gone = [label for label in self.labels(member) if label not in known]
        if gone:
            raise Damaged(f"{self.name}: restic has no {gone[0]} any more")
        self.restic.check(read_all=thorough)
        return {"engine": "verified", **(self.prove(member) if thorough else {})}

    @abc.abstractmethod
    def prove(self, member: Member) -> dict[str, Any]:
        """Restores a member into a scratch place. Returns what was proven. :raises Damaged:"""

    def same(self, part: str, wanted: str, found: str) -> None:
        """:raises Damaged: when a part came back with another digest."""
        if found != wanted:
            raise Damaged(f"{self.name}: {part} came back with the digest {found} instead of {wanted}")

    def prune(self, keep: Sequence[Member]) -> None:
        try:
            self.restic.keep([label for member in keep for label in self.labels(member)])
        except EngineFailed:
            if keep:
                raise
            # Nothing was ever saved, and there is no repository yet.
