# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What somebody who was not there needs to understand a host: collected all at once, bounded, without secrets.

It knows no service by name. Units come from the records of the roles that are on the host, and what else a service can
tell from what its role has announced in ``/etc/vmfleet/diagnose.d``.
"""

from __future__ import annotations

import glob
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._desired import STATE_DIR
from ansible_collections.vmfleet.ops.plugins.module_utils._health.judge import describe
from ansible_collections.vmfleet.ops.plugins.module_utils._health.model import (
    OK,
    CheckError,
    load_announced,
    parse_checks,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._health.registry import TYPES
from ansible_collections.vmfleet.ops.plugins.module_utils._health.runner import run_checks
from ansible_collections.vmfleet.ops.plugins.module_utils._host import run_command
from ansible_collections.vmfleet.ops.plugins.module_utils._redaction import Redaction, secrets_of_files

DIAGNOSE_DIR = "/etc/vmfleet/diagnose.d"
# A host in trouble is not to be brought down by questions.
AT_ONCE = 4
# Characters: of one item, and of all of them.
ITEM_LIMIT = 512 * 1024
TOTAL_LIMIT = 16 * 1024 * 1024
FINDINGS_LIMIT = 20
ITEM_TIMEOUT = 30

_PS = "ps -eo pid,ppid,user:16,stat,pcpu,pmem,rss,nlwp,etimes,wchan:20,args"
_PATTERNS = "/etc/vmfleet/*.d/*.json /etc/ansible/facts.d/vmfleet_*.fact"
# What every host can tell: file in the bundle and shell line.
SYSTEM: tuple[tuple[str, str], ...] = (
    (
        "system/overview",
        "date -u; uname -a; uptime; nproc; cat /etc/os-release; tail -n +1 /proc/pressure/* 2>/dev/null",
    ),
    ("system/memory", "cat /proc/meminfo"),
    # The second round: the first one shows means since boot.
    ("system/top", "top -b -n 2 -d 1 -w 200 | awk '/^top -/ {n++} n == 2' | head -n 50"),
    ("system/processes-by-cpu", f"{_PS} --sort=-pcpu | head -n 60"),
    ("system/processes-by-memory", f"{_PS} --sort=-rss | head -n 60"),
    ("system/disks", "df -P -T; echo; df -P -i; echo; cat /proc/mounts"),
    ("system/packages", "grep -h ' \\(install\\|upgrade\\|remove\\) ' /var/log/dpkg.log | tail -n 200"),
    ("network/listening", "ss -tulpnH"),
    ("network/connections", "ss -s; ss -tanH | awk '{print $1, $4}' | sort | uniq -c | sort -rn | head -n 200"),
    ("network/addresses", "ip -s addr; ip route; ip -6 route; ip neigh"),
    ("network/firewall", "command -v ufw >/dev/null || { echo 'ufw is not installed'; exit 0; }; ufw status verbose"),
    ("network/resolver", "cat /etc/resolv.conf /etc/nsswitch.conf /etc/hosts"),
    ("units/timers", "systemctl list-timers --all --no-pager"),
    ("units/jobs", "systemctl list-jobs --no-pager"),
    ("vmfleet/records", f"tail -n +1 {STATE_DIR}/roles/*.json {_PATTERNS} 2>/dev/null || true"),
    ("vmfleet/last-verdict", "cat /var/lib/prometheus/node-exporter/vmfleet_health.prom 2>/dev/null || true"),
)
# Each name with the addresses that the host's own resolver gives and the time that it took.
_RESOLVE = (
    'for n; do a=$(date +%s%N); r=$(timeout 5 getent ahosts "$n" | awk \'!s[$1]++ {printf "%s ", $1}\'); '
    'b=$(date +%s%N); echo "$n: ${r:-not found} ($(((b - a) / 1000000)) ms)"; done'
)


@dataclass(frozen=True)
class Item:
    """One file of the bundle and what makes its text.

    :ivar finding: whether each line that it gives is something worth a look at once.
    """

    path: str
    work: Callable[[], str]
    finding: bool = False


@dataclass
class Answer:
    """What an item gave; ``failed`` says why it gave less than it should."""

    item: Item
    text: str
    seconds: float
    failed: str = ""


def bounded(text: str) -> str:
    """The text, or its two ends with a word on what is missing between them."""
    if len(text) <= ITEM_LIMIT:
        return text
    half = ITEM_LIMIT // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


class _Failed(RuntimeError):
    """What was asked for could not be had; the text is what came all the same."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__(why)
        self.text = text


def _ask(command: Mapping[str, Any]) -> str:
    outcome = run_command({"timeout": ITEM_TIMEOUT, **{key: value for key, value in command.items() if value}})
    text = outcome.stdout + (f"\n[stderr]\n{outcome.stderr}" if outcome.stderr.strip() else "")
    if outcome.rc:
        why = " ".join(outcome.stderr.split())[-200:]
        raise _Failed(f"returned {outcome.rc}{': ' if why else ''}{why}", text)
    return text


def _command_item(path: str, command: Mapping[str, Any], finding: bool = False) -> Item:
    return Item(path, lambda: _ask(command), finding)


def _read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as handle:
        return json.load(handle)


def _records(state: str) -> list[dict[str, Any]]:
    """What the roles of this host have on record; one that cannot be read is left out here and is in the bundle."""
    found = []
    for path in sorted(glob.glob(f"{state}/roles/*.json")):
        try:
            record = _read_json(path)
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def units_of(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The units of the roles, each once; with a timer the service that it starts."""
    units: dict[str, None] = {}
    for record in records:
        for name in record.get("services") or ():
            unit = str(name) if "." in str(name) else f"{name}.service"
            units[unit] = None
            if unit.endswith(".timer"):
                units[f"{unit[: -len('.timer')]}.service"] = None
    return list(units)


def announced_items(directory: str) -> list[Item]:
    """What the roles have announced; a file that cannot be read becomes an item that says so."""

    def broken(path: str, error: Exception) -> Item:
        def tell() -> str:
            raise _Failed(f"{path}: {error}", "")

        return Item(f"vmfleet/{os.path.basename(path)}", tell)

    items = []
    for path in sorted(glob.glob(f"{directory}/*.json")):
        role = os.path.basename(path)[: -len(".json")]
        try:
            for entry in _read_json(path):
                items.append(_command_item(f"{role}/{entry['name']}", entry, bool(entry.get("finding"))))
        except (OSError, ValueError, TypeError, KeyError) as error:
            items.append(broken(path, error))
    return items


def open_transactions(state: str) -> str:
    """One line for each change that was begun and neither finished nor taken back."""
    lines = []
    for path in sorted(glob.glob(f"{state}/transactions/*")):
        age = time.time() - os.stat(path).st_mtime
        lines.append(f"the change of role {os.path.basename(path)} is open, begun {age:.0f} s ago")
    return "\n".join(lines)


def verdict(directory: str, deadline: float) -> tuple[str, list[str]]:
    """All announced checks, run now: the outcome as JSON, and a line for each check that is not ok."""
    checks = parse_checks(load_announced(directory), TYPES)
    outcome = run_checks(checks, deadline)
    bad = [describe(entry) for entry in outcome["results"] if entry["state"] != OK]
    return json.dumps(outcome, indent=1), bad


def verdict_items(directory: str, deadline: float) -> list[Item]:
    """The verdict and what it is made of. They come one after the other.

    :param directory: where the checks are announced.
    :param deadline: seconds that they may take.
    """
    bad: list[str] = []

    def judge() -> str:
        try:
            document, lines = verdict(directory, deadline)
        except CheckError as error:
            raise _Failed(str(error), "") from error
        bad.extend(lines)
        return document

    return [
        Item("vmfleet/verdict.json", judge),
        Item("vmfleet/not-well", lambda: "\n".join(bad), finding=True),
    ]


def items_of(*, names: Sequence[str], journal_lines: int, root: str = "", state: str = STATE_DIR) -> list[Item]:
    """Everything else to collect.

    :param names: names to look up.
    :param journal_lines: lines of each journal, at most.
    :param root: put before the folders of what is announced, for tests.
    """
    journal = f"journalctl --no-pager -o short-iso -n {journal_lines}"
    failed = "systemctl list-units --failed --no-legend --plain --no-pager | sed 's/  */ /g; s/^/failed unit: /'"
    items = [
        Item("vmfleet/open-transactions", lambda: open_transactions(state), finding=True),
        _command_item("units/failed", {"shell": failed}, finding=True),
        *(_command_item(path, {"shell": shell}) for path, shell in SYSTEM),
        _command_item("journal/errors", {"shell": f"{journal} -b -p err"}),
        _command_item("journal/kernel", {"shell": f"{journal} -k -p warning"}),
    ]
    if names:
        items.append(
            _command_item(
                "network/names", {"argv": ["/bin/sh", "-c", _RESOLVE, "sh", *names], "timeout": 10 + 5 * len(names)}
            )
        )
    for unit in units_of(_records(state)):
        items.append(
            # A unit that is not active makes systemctl return 3: that is an answer.
            _command_item(
                f"units/{unit}",
                {"shell": f"systemctl status --no-pager -l -n 0 '{unit}'; systemctl show --no-pager '{unit}'"},
            )
        )
        items.append(_command_item(f"journal/{unit}", {"shell": f"{journal} -u '{unit}'"}))
    return [*items, *announced_items(f"{root}{DIAGNOSE_DIR}")]


def run_items(items: Sequence[Item], deadline: float, at_once: int = AT_ONCE) -> list[Answer]:
    """The items, several at once. One that does not end, not even when killed, is given up after so many seconds."""
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)

    def work() -> None:
        while True:
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            begun = time.monotonic()
            text, why = "", ""
            try:
                text = item.work()
            except _Failed as error:
                text, why = error.text, str(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the rest of the bundle is wanted
                why = f"{type(error).__name__}: {error}"
            done.put(Answer(item, text, time.monotonic() - begun, why))

    # Daemons: a thread that hangs in the kernel must not keep the module from ending.
    for _number in range(at_once):
        threading.Thread(target=work, daemon=True).start()
    answers: dict[str, Answer] = {}
    end = time.monotonic() + deadline
    while len(answers) < len(items):
        try:
            answer = done.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        answers[answer.item.path] = answer
    return [answers.get(item.path) or Answer(item, "", deadline, "not finished in time") for item in items]


def collect(
    *,
    names: Sequence[str] = (),
    journal_lines: int = 500,
    deadline: float = 60.0,
    secret_files: Iterable[str] = (),
    root: str = "",
    state: str = STATE_DIR,
) -> dict[str, Any]:
    """The bundle of this host: ``files`` by path, ``findings``, ``incomplete`` (path to reason), ``seconds``."""
    begun = time.monotonic()
    files_of_roles = [str(path) for record in _records(state) for path in record.get("files") or ()]
    redact = Redaction(secrets_of_files([*files_of_roles, *secret_files]))
    # First and alone, so that the rest does not make checks late.
    checks = min(30.0, deadline / 2)
    answers = run_items(verdict_items(f"{root}/etc/vmfleet/checks.d", checks), checks + 5, at_once=1)
    items = items_of(names=names, journal_lines=journal_lines, root=root, state=state)
    answers += run_items(items, deadline - (time.monotonic() - begun))
    files: dict[str, str] = {}
    findings: list[str] = []
    manifest = []
    total = 0
    for answer in answers:
        path = answer.item.path if answer.item.path.endswith(".json") else f"{answer.item.path}.txt"
        # In this order: half of a key has no shape.
        text = bounded(redact(answer.text))
        why = redact(answer.failed)
        if total + len(text) > TOTAL_LIMIT:
            text, why = "", why or "left out: the bundle is full"
        total += len(text)
        files[path] = text + (f"\n[{why}]\n" if why else "")
        if answer.item.finding:
            lines = [line for line in text.splitlines() if line.strip()]
            more = [f"{len(lines) - FINDINGS_LIMIT} more in {path}"] if len(lines) > FINDINGS_LIMIT else []
            findings += [*lines[:FINDINGS_LIMIT], *more]
        manifest.append({"file": path, "seconds": round(answer.seconds, 2), "characters": len(text), "problem": why})
    seconds = round(time.monotonic() - begun, 2)
    files["manifest.json"] = json.dumps({"seconds": seconds, "findings": findings, "items": manifest}, indent=1) + "\n"
    incomplete = {entry["file"]: entry["problem"] for entry in manifest if entry["problem"]}
    return {"files": files, "findings": findings, "incomplete": incomplete, "seconds": seconds}
