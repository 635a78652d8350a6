# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking back a committed change: what that brings back, whether it is still possible, and doing it."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator, Sequence
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils import _apt, _history, _ufw
from ansible_collections.vmfleet.ops.plugins.module_utils._host import CommandError
from ansible_collections.vmfleet.ops.plugins.module_utils._journal import Journal
from ansible_collections.vmfleet.ops.plugins.module_utils._plan import SENSITIVE
from ansible_collections.vmfleet.ops.plugins.module_utils._records import observe
from ansible_collections.vmfleet.ops.plugins.module_utils._transaction import (
    TransactionError,
    fail_point,
    former_packages,
    host_lock,
    orderly_end,
    recover,
    take_back,
    wait_for_word,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "change": {"type": "str", "default": ""},
    "force": {"type": "bool", "default": False},
    "confirm_timeout": {"type": "int", "default": 30},
    "lock_timeout": {"type": "int", "default": 300},
}
# The open transaction by which former firewall rules prove that they let the controller in.
TRIAL = "rollback"
TEXT_LIMIT = 262144


class WayBack:
    """What taking back a change would do to the host as it is now.

    :param change: the change.
    :param later: those after it, which may have changed the same things again.
    """

    def __init__(self, change: _history.Change, later: Sequence[_history.Change]) -> None:
        self.change = change
        self.later = later
        # Records by name: to what all goes back, what the change made of it, and what is there.
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        between = []
        for journal in change.journals:
            note = journal.note or {"before": {}, "after": {}}
            between += [name for name, record in note["after"].items() if self.before.get(name, record) != record]
            self.after = {**note["after"], **self.after}
            self.before.update(note["before"])
        self.now = _look(self.before)
        moved = [name for name in self.before if self.now[name] not in (self.after[name], self.before[name])]
        self.drift = list(dict.fromkeys([*moved, *between]))

    def problems(self) -> Iterator[str]:
        """What was changed since, and by whom if that is on record."""
        for name in self.drift:
            changes = [change.id for change in self.later if any(name in _before(one) for one in change.journals)]
            yield f"{name} (by change {changes[-1]}; take that back first)" if changes else name

    @property
    def roles(self) -> list[str]:
        """In the order in which they are taken back."""
        return [journal.role for journal in self.change.journals]

    @property
    def stays(self) -> list[str]:
        """Commands whose effect nothing takes back."""
        return [f"{one.role}: {name}" for one in self.change.journals for name in (one.note or {}).get("stays", [])]

    def trial(self) -> Journal | None:
        """The journal with the firewall's former rules, where they are others than now and could shut out somebody."""
        moved = any(self.now[name] != self.before[name] for name in _ufw_names(self.before))
        oldest = [journal for journal in self.change.journals if journal.data["firewall"]]
        return oldest[-1] if moved and oldest and oldest[-1].data["firewall"]["copies"] else None

    def words(self) -> list[str]:
        """What would come back, one sentence a resource."""
        firewall = _ufw_names(self.before)
        moved = [name for name, record in self.before.items() if self.now[name] != record]
        words = [f"{name}: {_described(name, self.before[name], self.now[name])}" for name in moved]
        words = [line for name, line in zip(moved, words) if name not in firewall]
        if set(moved) & set(firewall):
            words.append("firewall: former rules")
        for journal in self.change.journals:
            undone = zip(journal.data["commands"], journal.data["undo"])
            words += [
                f"command {name}: undone"
                for number, (name, undo) in enumerate(undone)
                if undo and journal.reached(f"command {number}")
            ]
        services: dict[str, str] = {}
        for journal in self.change.journals:
            for service in journal.data["services"]:
                verb = "stopped" if not service["active"] else service["trigger"] and f"{service['trigger']}ed"
                if verb:
                    services[service["name"]] = verb
        return words + [f"service {name}: {verb}" for name, verb in services.items()]

    def diff(self) -> list[dict[str, str]]:
        """The texts that would change, of files that everybody may read."""
        former: dict[str, tuple[str | None, bool]] = {}
        for journal in self.change.journals:
            for entry in journal.data["files"]:
                copy = journal.path(entry["copy"]) if entry["copy"] else None
                secret = former.get(entry["dest"], (None, False))[1] or entry["sensitive"]
                former[entry["dest"]] = (copy, secret)
        result = []
        for dest, (copy, secret) in former.items():
            if self.now[f"file {dest}"] == self.before[f"file {dest}"]:
                continue
            secret = secret or not all(_is_public(path) for path in (copy, dest) if path)
            before, after = ("", "") if secret else (_text(dest), _text(copy))
            if secret:
                before, after = SENSITIVE, SENSITIVE + "(former)\n"
            if before != after:
                result.append({"before_header": dest, "after_header": dest, "before": before, "after": after})
        return result


def _before(journal: Journal) -> dict[str, Any]:
    return dict(journal.note["before"]) if journal.note else {}


def _look(names: Sequence[str] | dict[str, Any]) -> dict[str, Any]:
    packages = [name for name in names if name.startswith("package ")]
    versions = _apt.installed_versions() if packages else {}
    return {
        **observe(name for name in names if not name.startswith("package ")),
        **{name: versions.get(name.partition(" ")[2]) for name in packages},
    }


def _ufw_names(names: dict[str, Any]) -> list[str]:
    return [name for name in (f"file {path}" for path in _ufw.STATE_FILES) if name in names]


def _described(name: str, former: Any, now: Any) -> str:
    """The words for one thing that goes back from its record now to its former one."""
    kind = name.partition(" ")[0]
    if former is None:
        return "absent"
    if kind in ("package", "sysctl"):
        return str(former)
    if kind == "service":
        return "masked" if former["masked"] else former["enabled"] or "absent"
    if now is not None and kind in ("file", "directory") and former.get("sha256") == now.get("sha256"):
        return "former owner and mode" if former["kind"] == now["kind"] == kind else f"former {former['kind']}"
    return "former content" if now is not None and kind == "file" else "as it was"


def _is_public(path: str) -> bool:
    return not os.path.isfile(path) or bool(os.lstat(path).st_mode & stat.S_IROTH)


def _text(path: str | None) -> str:
    if path is None or not os.path.lexists(path):
        return ""
    if os.path.islink(path):
        return f"-> {os.readlink(path)}\n"
    with open(path, encoding="utf-8", errors="replace") as handle:
        return handle.read(TEXT_LIMIT)


def _chosen(changes: Sequence[_history.Change], wanted: str) -> int:
    """Which of the changes is meant; the last if nothing is said."""
    for number, change in enumerate(changes):
        if change.id == wanted:
            return number
    if wanted:
        there = ", ".join(change.id for change in reversed(changes)) or "none"
        raise TransactionError(f"change: {wanted!r} is not kept on this host, which has: {there}", phase="look")
    return len(changes) - 1


def _try_firewall(former: Journal, seconds: float, descriptor: int) -> None:
    """Loads the former rules for a trial: they stay if the controller gets in over a new connection."""
    trial = Journal(TRIAL)
    trial.prepare()
    nothing: dict[str, Any] = {
        **{key: [] for key in ("files", "originals", "directories", "services", "commands", "undo")},
        **{key: {} for key in ("returned", "groups", "users", "namesakes", "sysctl")},
        "packages": None,
        "policy": None,
    }
    trial.open({"role": TRIAL, **nothing, "firewall": _ufw.save(trial.directory, "old/ufw")})
    trial.mark("firewall")
    fail_point("trial")
    try:
        _ufw.restore(former.directory, former.data["firewall"])
    except CommandError as error:
        take_back(trial)
        said = error.outcome.stderr.strip()
        raise TransactionError(f"{error}: {said}; nothing was changed", phase="trial") from error
    wait_for_word(trial, trial.close, seconds, descriptor)


def roll_back(arguments: dict[str, Any], check_mode: bool, diff: bool) -> dict[str, Any]:
    """The module's work.

    :param arguments: as in ARGUMENT_SPEC.
    :param diff: whether texts are to be shown.
    :returns: the module's result; ``awaiting_word`` when the former firewall rules are on trial and nothing else was
        changed yet: the controller gives its word and calls once more.
    :raises TransactionError: nothing was changed, unless the message says so.
    """
    with orderly_end(), host_lock(arguments["lock_timeout"]) as descriptor:
        unfinished = _history.unfinished()
        recovered = [journal.role for journal in Journal.pending(sweep=False)] if check_mode else recover()
        changes = _history.changes()
        result: dict[str, Any] = {"changed": bool(recovered), "recovered": recovered, "roles": [], "stays": []}
        if unfinished and arguments["change"] in ("", *unfinished):
            words = [f"finished taking back change {unfinished[0]}"]
            return {**result, "change": unfinished[0], "changes": words, "history": _history.listed(changes)}
        chosen = _chosen(changes, arguments["change"])
        if chosen < 0:
            none = f"there is no change to take back: {_history.HISTORY} has none"
            return {**result, "changes": [], "history": [], "msg": none}
        way = WayBack(changes[chosen], changes[chosen + 1 :])
        _refuse(way, arguments["force"])
        result.update(changed=True, change=way.change.id, roles=way.roles, changes=way.words(), stays=way.stays)
        if diff:
            result["diff"] = way.diff()
        if check_mode:
            return {**result, "history": _history.listed(changes)}
        former = way.trial()
        if former:
            _try_firewall(former, arguments["confirm_timeout"], descriptor)
            return {**result, "awaiting_word": arguments["confirm_timeout"]}
        for number in (signal.SIGTERM, signal.SIGINT):
            # What was begun is finished, by this run or by the next.
            signal.signal(number, signal.SIG_IGN)
        way.change.reopen()
        fail_point("reopened")
        recover()
        return {**result, "history": _history.listed(_history.changes())}


def _refuse(way: WayBack, force: bool) -> None:
    where = f"change {way.change.id} cannot be taken back"
    if way.drift and not force:
        raise TransactionError(
            f"{where}: changed since then: {', '.join(way.problems())}. Nothing was changed. With force it is taken "
            "back all the same, and what was done since is lost",
            phase="look",
            drift=way.drift,
        )
    moves_packages = any(name.startswith("package ") for name in way.before)
    reason = _apt.cannot_go_back(former_packages(way.before)) if moves_packages else None
    if reason:
        raise TransactionError(f"{where}: packages: {reason}. Nothing was changed", phase="look")
