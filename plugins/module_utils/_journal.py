# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The record by which a change can be taken back, whatever happened in the middle of it.

Before the first change the journal holds the old state of everything that the transaction may touch. Taking back
means restoring that state, not reversing steps, so it gives the same result however far the transaction came and may
itself be interrupted and repeated. The directory of an open transaction is for root only: it holds old and new
texts, sensitive ones among them.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import json
import os
import shutil
import stat
import tempfile
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._desired import STATE_DIR
from ansible_collections.vmfleet.ops.plugins.module_utils._durable import fsync_directory, read_json, write_durably

TRANSACTIONS = f"{STATE_DIR}/transactions"
ORIGINALS = f"{STATE_DIR}/originals"
GENERATION = f"{STATE_DIR}/generation"
# Beside the journal: change, time, and each thing's record before and after.
NOTE = "note.json"


def read_generation() -> str:
    """A number that every transaction on this host raises as it begins and as it ends.

    Two equal numbers mean that nothing was changed in between, and that no look fell into the middle of a change.
    """
    try:
        with open(GENERATION, encoding="ascii") as handle:
            return handle.read().strip() or "0"
    except FileNotFoundError:
        return "0"


def raise_generation() -> None:
    """Writes the next number over the old one, in as many bytes: the end of a change must not need room on a disk."""
    former = read_generation()
    descriptor = os.open(GENERATION, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, f"{int(former if former.isdigit() else 0) + 1:020d}\n".encode(), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: str) -> str:
    """Where the new version of ``path`` waits for its rename; no conf.d pattern matches such a name."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.vmfleet-new")


def kind_of(path: str) -> str:
    """absent, file, link, directory or other."""
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "absent"
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISLNK(mode):
        return "link"
    return "directory" if stat.S_ISDIR(mode) else "other"


def keep_copy(path: str, copy: str) -> None:
    """A durable copy of a file or link with owner, mode and extended attributes.

    Not a second name: whoever writes into the file itself would then write into the copy as well.
    """
    os.makedirs(os.path.dirname(copy), mode=0o700, exist_ok=True)
    if os.path.lexists(copy):
        os.unlink(copy)
    if os.path.islink(path):
        os.symlink(os.readlink(path), copy)
        return
    status = os.lstat(path)
    with open(path, "rb") as source, os.fdopen(os.open(copy, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as target:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fchown(target.fileno(), status.st_uid, status.st_gid)
        shutil.copystat(path, copy)
        os.fsync(target.fileno())


def same(path: str, other: str) -> bool:
    """Whether two files or links are alike in kind, owner, mode and content."""
    kind = kind_of(path)
    if kind != kind_of(other):
        return False
    if kind == "link":
        return os.readlink(path) == os.readlink(other)
    one, two = os.lstat(path), os.lstat(other)
    return (one.st_uid, one.st_gid, one.st_mode) == (two.st_uid, two.st_gid, two.st_mode) and filecmp.cmp(
        path, other, shallow=False
    )


def put_back(copy: str, path: str) -> None:
    """Brings a kept copy back under its name in one step, leaving the copy in place."""
    temporary = temporary_name(path)
    try:
        keep_copy(copy, temporary)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # On a full disk the room of the file that has to go is all there is.
        for name in (temporary, path):
            if os.path.lexists(name):
                os.unlink(name)
        keep_copy(copy, temporary)
    os.replace(temporary, path)
    fsync_directory(os.path.dirname(path))


class Journal:
    """The transaction of one role on this host: open, or kept after its commit (see ``_history``).

    What it says of copies is relative to its directory, which is renamed.
    """

    def __init__(self, role: str, directory: str | None = None) -> None:
        self.role = role
        self.directory = directory or os.path.join(TRANSACTIONS, role)
        self.data: dict[str, Any] = {}
        # Of a committed transaction: what it made of what.
        self.note: dict[str, Any] | None = None

    @classmethod
    def read(cls, directory: str) -> Journal | None:
        """The journal in a directory; None where none was completed."""
        data = read_json(os.path.join(directory, "journal.json"))
        if data is None:
            return None
        journal = cls(data.get("role", os.path.basename(directory)), directory)
        journal.data = data
        journal.note = read_json(journal.path(NOTE))
        return journal

    @classmethod
    def scratch(cls, role: str) -> Journal:
        """A place for a rehearsal, in memory and away from the host's records; whoever makes it removes it."""
        journal = cls(role)
        journal.directory = tempfile.mkdtemp(prefix="vmfleet-check-", dir="/run")
        os.mkdir(journal.path("new"), 0o700)
        return journal

    def path(self, *parts: str) -> str:
        """A path inside the transaction's directory."""
        return os.path.join(self.directory, *parts)

    def copy(self, key: str) -> str | None:
        """The path of a copy that the journal has under a key, if there was anything to copy."""
        return self.path(self.data[key]) if self.data[key] else None

    @classmethod
    def pending(cls, sweep: bool = True) -> list[Journal]:
        """The transactions that were neither committed nor taken back.

        Those of a change that is being taken back lie in a directory of their own, and come newest first.

        :param sweep: whether remains of finished ones are swept away.
        """
        result = []
        for name in sorted(os.listdir(TRANSACTIONS)) if os.path.isdir(TRANSACTIONS) else []:
            directory = os.path.join(TRANSACTIONS, name)
            journal = cls.read(directory)
            found = [journal] if journal else cls.within(directory)
            if name.startswith(".") or not found:
                # Finished, or ended before the journal stood: nothing had been changed yet.
                if sweep:
                    shutil.rmtree(directory, ignore_errors=True)
                continue
            result += found
        return result

    @classmethod
    def within(cls, directory: str) -> list[Journal]:
        """The transactions of one change, newest first."""
        there = os.listdir(directory) if os.path.isdir(directory) else []
        names = sorted((name for name in there if not name.startswith(".")), reverse=True)
        return [journal for name in names if (journal := cls.read(os.path.join(directory, name)))]

    def prepare(self) -> None:
        """Makes the directories; nothing of the host's own is touched."""
        for directory, mode in (
            (STATE_DIR, 0o755),
            (f"{STATE_DIR}/roles", 0o755),
            (ORIGINALS, 0o700),
            (TRANSACTIONS, 0o700),
            (self.directory, 0o700),
            (self.path("old"), 0o700),
            (self.path("new"), 0o700),
        ):
            os.makedirs(directory, mode=mode, exist_ok=True)
            os.chmod(directory, mode)

    def open(self, data: dict[str, Any]) -> None:
        """From here on the transaction exists: it is committed or taken back, by this run or the next."""
        self.data = data
        raise_generation()
        write_durably(self.path("journal.json"), json.dumps(data).encode())

    def mark(self, phase: str) -> None:
        """Notes how far the transaction has come."""
        with open(self.path("phase"), "a", encoding="ascii") as handle:
            handle.write(phase + "\n")

    def reached(self, phase: str) -> bool:
        """Whether the transaction had entered a phase."""
        try:
            with open(self.path("phase"), encoding="ascii") as handle:
                return phase in handle.read().split("\n")
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """The commit point, for a finished change that is not kept as for one taken back: one rename."""
        raise_generation()
        parent, name = os.path.split(self.directory)
        done = os.path.join(parent, f".{name}.done")
        shutil.rmtree(done, ignore_errors=True)
        os.rename(self.directory, done)
        fsync_directory(parent)
        shutil.rmtree(done, ignore_errors=True)
        if parent != TRANSACTIONS:
            # The directory of a change goes with the last of its transactions.
            with contextlib.suppress(OSError):
                os.rmdir(parent)
