# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Committed changes, kept so that they can still be taken back.

A change is what one run of Ansible did to a host, a directory with one journal for each transaction. It gets there by
the rename that commits, and leaves by the rename with which its taking back begins: from then on its journals are open
ones, and whatever happens, this run or the next puts the old state back. For root only, as open journals are.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._desired import STATE_DIR
from ansible_collections.vmfleet.ops.plugins.module_utils._durable import fsync_directory, write_durably
from ansible_collections.vmfleet.ops.plugins.module_utils._journal import NOTE, TRANSACTIONS, Journal, raise_generation

HISTORY = f"{STATE_DIR}/history"
# Before the name of a change that is being taken back, among the open transactions. No role has such a name.
REOPENED = "change."


@dataclass(frozen=True)
class Change:
    """One run's committed transactions on this host, newest first."""

    name: str
    journals: tuple[Journal, ...]

    @property
    def id(self) -> str:
        """The run's name, the same on all hosts."""
        return self.name.partition("-")[2]

    @property
    def directory(self) -> str:
        """Where it is kept."""
        return os.path.join(HISTORY, self.name)

    def reopen(self) -> None:
        """Begins to take it back, by one rename."""
        raise_generation()
        os.makedirs(TRANSACTIONS, mode=0o700, exist_ok=True)
        os.rename(self.directory, os.path.join(TRANSACTIONS, REOPENED + self.id))
        fsync_directory(TRANSACTIONS)
        fsync_directory(HISTORY)


def _next(names: list[str]) -> int:
    numbers = [int(name.partition("-")[0]) for name in names if name.partition("-")[0].isdigit()]
    return max(numbers, default=0) + 1


def _names() -> list[str]:
    """In the order in which they began on this host, whatever the clocks said."""
    return sorted(os.listdir(HISTORY)) if os.path.isdir(HISTORY) else []


def changes() -> list[Change]:
    """What can be taken back, the oldest first."""
    found = [Change(name, tuple(Journal.within(os.path.join(HISTORY, name)))) for name in _names()]
    return [change for change in found if change.journals]


def unfinished() -> list[str]:
    """Changes whose taking back was begun and not finished."""
    names = sorted(os.listdir(TRANSACTIONS)) if os.path.isdir(TRANSACTIONS) else []
    return [name[len(REOPENED) :] for name in names if name.startswith(REOPENED)]


def listed(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """The history for people, the newest first."""
    return [
        {
            "change": change.id,
            "committed": (change.journals[0].note or {}).get("committed", ""),
            "roles": [journal.role for journal in reversed(change.journals)],
        }
        for change in reversed(changes)
    ]


def forget(keep: int) -> None:
    """Removes all but the newest changes, as far as that can be done."""
    for name in _names()[: -keep or None]:
        shutil.rmtree(os.path.join(HISTORY, name), ignore_errors=True)


def _move(journal: Journal, change: str, note: dict[str, Any]) -> str:
    # The new state stands; its staged copies are of no use any more.
    for scratch in ("new", "view"):
        shutil.rmtree(journal.path(scratch), ignore_errors=True)
    write_durably(journal.path(NOTE), json.dumps(note).encode())
    names = _names()
    name = next((name for name in names if name.partition("-")[2] == change), f"{_next(names):06d}-{change}")
    directory = os.path.join(HISTORY, name)
    os.makedirs(HISTORY, mode=0o700, exist_ok=True)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    fsync_directory(HISTORY)
    os.rename(journal.directory, os.path.join(directory, f"{_next(os.listdir(directory)):06d}-{journal.role}"))
    return directory


def keep(journal: Journal, change: str, note: dict[str, Any]) -> str | None:
    """The commit of a transaction that can be taken back later.

    A full disk is no reason to fail: older changes give way, and at the worst nothing can be taken back any more.

    :param note: what ends up beside the journal.
    :returns: what is to be said when something is not kept.
    """
    raise_generation()
    problem = None
    for _attempt in range(2):
        try:
            directory = _move(journal, change, note)
            break
        except OSError as error:
            problem = f"{HISTORY}: {error.strerror}"
            # One change missing in the middle would make the one before it look like the last.
            forget(0)
    else:
        journal.close()
        return f"this change and earlier ones of this host can not be taken back later: {problem}"
    with contextlib.suppress(OSError):
        fsync_directory(directory)
        fsync_directory(TRANSACTIONS)
    return problem and f"changes before this one can not be taken back any more: {problem}"
