# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks of the host itself: units, processes, files, disks, memory, load, clock, backups, commands."""

from __future__ import annotations

import contextlib
import datetime
import glob
import grp
import ipaddress
import json
import os
import pwd
import re
import socket
import stat
import struct
import time
from collections.abc import Sequence
from typing import Any

from .._host import run, run_command
from .model import OK, CannotTell, Check, CheckFailed, CheckType, Key, Seen, grade
from .shared import Shared

# Seconds between the epochs of NTP (1900) and Unix (1970), RFC 5905 figure 4.
NTP_EPOCH = 2208988800
REMOTE = ("nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse", "9p", "afs")
# What holds data of this host: no pseudo file systems, no images that are full by nature.
LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "bcachefs", "vfat", "overlay", "tmpfs")


def systemd(check: Check, shared: Shared) -> Seen:
    state = shared.unit(check["unit"], check.timeout)
    active, sub = state.get("ActiveState", "unknown"), state.get("SubState", "unknown")
    words = f"{check['unit']} is {active} ({sub}, {state.get('Result', 'unknown')})"
    if state.get("LoadState") != "loaded" or active != check["active"]:
        raise CheckFailed(words if state.get("LoadState") == "loaded" else f"{words}, unit {state.get('LoadState')}")
    # A frozen process is active for systemd.
    pid = int(state.get("MainPID") or 0)
    letter = next((letter for number, _name, _line, letter in shared.processes() if number == pid), "") if pid else ""
    if letter in ("T", "t"):
        raise CheckFailed(f"{words}, but its main process {pid} is stopped by a signal")
    if check["enabled"] is not None and (state.get("UnitFileState") == "enabled") is not check["enabled"]:
        raise CheckFailed(f"{words}, but it is {state.get('UnitFileState') or 'not enabled'} at boot")
    restarts = int(state.get("NRestarts") or 0)
    return grade(check, restarts, " restarts", words, data={"pid": pid})


def process(check: Check, shared: Shared) -> Seen:
    pattern = re.compile(check["pattern"])
    found = [pid for pid, name, line, letter in shared.processes() if letter != "Z" and pattern.search(line or name)]
    found = [pid for pid in found if pid != os.getpid()]
    words = f"{len(found)} processes match {check['pattern']}"
    if len(found) < check["min"] or (check["max"] is not None and len(found) > check["max"]):
        wanted = f"at least {check['min']}" + (f", at most {check['max']}" if check["max"] is not None else "")
        raise CheckFailed(f"{words} instead of {wanted}")
    return grade(check, len(found), "", words)


def command(check: Check, shared: Shared) -> Seen:
    given = {key: check[key] for key in ("argv", "shell", "user", "stdin", "environment") if check[key] is not None}
    if ("argv" in given) == ("shell" in given):
        raise CannotTell("needs exactly one of argv and shell")
    outcome = run_command({**given, "timeout": check.timeout})
    words = "(sensitive)" if check["sensitive"] else (outcome.stdout + outcome.stderr).strip()[-500:]
    line = " ".join(outcome.argv)
    line = line if len(line) < 200 else line[:200] + " [...]"
    if outcome.rc != check["rc"]:
        raise (CannotTell if outcome.rc == 127 else CheckFailed)(f"`{line}` returned {outcome.rc}: {words}")
    if check["stdout"] is not None and not re.search(check["stdout"], outcome.stdout, re.MULTILINE):
        raise CheckFailed(f"`{line}` did not print {check['stdout']!r}: {words}")
    if check.warn is not None or check.crit is not None:
        try:
            return grade(check, float(outcome.stdout.split()[0]), check["unit"], words)
        except (IndexError, ValueError):
            raise CannotTell(f"`{line}` printed no number for warn and crit: {words}") from None
    return Seen(words[-200:] or f"returned {outcome.rc}")


def _account(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def file(check: Check, shared: Shared) -> Seen:
    path = check["path"]
    try:
        found = os.lstat(path) if not check["follow"] else os.stat(path)
    except FileNotFoundError:
        if check["state"] == "absent":
            return Seen(f"{path} is not there")
        raise CheckFailed(f"{path} is not there") from None
    except OSError as error:
        raise CannotTell(f"{path}: {error.strerror}") from error
    if check["state"] == "absent":
        raise CheckFailed(f"{path} is there")
    kinds = {"file": stat.S_ISREG, "directory": stat.S_ISDIR, "link": stat.S_ISLNK, "socket": stat.S_ISSOCK}
    if check["state"] != "present" and not kinds[check["state"]](found.st_mode):
        raise CheckFailed(f"{path} is no {check['state']}")
    for key, name_of, number in (("owner", _account, found.st_uid), ("group", _group, found.st_gid)):
        if check[key] is not None and check[key] not in (name_of(number), str(number)):
            raise CheckFailed(f"{path} has the {key} {name_of(number)} instead of {check[key]}")
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    if check["mode"] is not None and mode != check["mode"].rjust(4, "0"):
        raise CheckFailed(f"{path} has mode {mode} instead of {check['mode'].rjust(4, '0')}")
    if check["contains"] is not None:
        with open(path, encoding="utf-8", errors="replace") as handle:
            if not re.search(check["contains"], handle.read(1 << 20), re.MULTILINE):
                raise CheckFailed(f"{path} does not contain {check['contains']!r}")
    if check["max_age"] is not None and time.time() - found.st_mtime > check["max_age"]:
        raise CheckFailed(f"{path} is {time.time() - found.st_mtime:.0f} s old, more than {check['max_age']:g} s")
    if check["state"] == "link":
        target = os.readlink(path)
        return Seen(f"{path} leads to {target}", data={"version": os.path.basename(target)})
    return grade(check, found.st_size, " B", f"{path} is there, {found.st_size} B")


def _mounts(table: str = "/proc/self/mounts") -> dict[str, tuple[str, str, list[str]]]:
    """Device, type and options by mount point, see proc_pid_mounts(5) and fstab(5)."""
    with open(table, encoding="utf-8", errors="replace") as handle:
        rows = [line.split() for line in handle if line.strip() and not line.startswith("#")]
    points = [re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), row[1]) for row in rows]
    return {point: (row[0], row[2], row[3].split(",")) for point, row in zip(points, rows)}


def _local(check: Check) -> list[str]:
    """The path of a check, or one mount point of each local file system that can be written."""
    if check["path"]:
        return [check["path"]]
    points: dict[int, str] = {}
    for point, (_device, kind, options) in _mounts().items():
        if kind in LOCAL and "ro" not in options:
            with contextlib.suppress(OSError):
                points.setdefault(os.stat(point).st_dev, point)
    return list(points.values())


def _fullest(check: Check, unit: str, found: Sequence[tuple[float, str]]) -> Seen:
    """Of values of several file systems the worst, and words on all that are not well."""
    if not found:
        raise CannotTell("there is no local file system that can be written")
    seen = [grade(check, value, unit, words) for value, words in sorted(found, reverse=True)]
    bad = [one.message for one in seen if one.state != OK]
    more = f", of {len(seen)} the fullest" if len(seen) > 1 else ""
    seen[0].message = "; ".join(bad) or f"{seen[0].message}{more}"
    return seen[0]


def _space(path: str, timeout: float) -> os.statvfs_result | tuple[int, ...]:
    """Space of a file system; remote ones are asked by a process of their own, which may hang without us."""
    point = max((p for p in _mounts() if path == p or path.startswith(p.rstrip("/") + "/")), key=len, default="/")
    if not _mounts().get(point, ("", "", []))[1].startswith(REMOTE):
        try:
            return os.statvfs(path)
        except OSError as error:
            raise CheckFailed(f"{path}: {error.strerror}") from error
    outcome = run(["stat", "-f", "-c", "%s %S %b %f %a %c %d %d", path], timeout=timeout)
    if outcome.rc:
        raise CheckFailed(f"{path}: {outcome.stderr.strip() or 'no answer'}")
    return tuple(map(int, outcome.stdout.split()))


def disk(check: Check, shared: Shared) -> Seen:
    found = []
    for path in _local(check):
        space = _space(path, check.timeout)
        blocks, free, available = space[2], space[3], space[4]
        # As df(1) has it: used of what users other than root may use.
        used = 100 * (blocks - free) / max(1, blocks - free + available)
        gib = available * space[1] / 2**30
        found.append((round(used, 1), f"{path} is {used:.1f} % full, {gib:.1f} GiB free"))
    return _fullest(check, " %", found)


def inode(check: Check, shared: Shared) -> Seen:
    found = []
    for path in _local(check):
        space = _space(path, check.timeout)
        files, free = space[5], space[6]
        # Some, such as btrfs, count none.
        used = 100 * (files - free) / files if files else 0.0
        found.append((round(used, 1), f"{used:.1f} % of the inodes of {path} are used"))
    return _fullest(check, " %", found)


def mount(check: Check, shared: Shared) -> Seen:
    if check["path"]:
        found = _mounts().get(check["path"])
        if found is None:
            raise CheckFailed(f"nothing is mounted at {check['path']}")
        return Seen(_as_wanted(check, check["path"], found))
    # As the host has them: a service that asks may have been given other ones. What is mounted read-only on purpose,
    # the file says; small ones in memory come and go.
    declared = _mounts("/etc/fstab") if os.path.exists("/etc/fstab") else {}
    points = {
        point: found
        for point, found in _mounts("/proc/1/mounts").items()
        if found[1] in LOCAL and found[1] != "tmpfs" and "ro" not in declared.get(point, ("", "", []))[2]
    }
    for point, found in points.items():
        _as_wanted(check, point, found)
    return Seen(f"{len(points)} local file systems are as wanted")


def _as_wanted(check: Check, point: str, found: tuple[str, str, list[str]]) -> str:
    """Words on a mount.

    :raises CheckFailed: when it is not of the type or has not the options that are wanted.
    """
    device, kind, options = found
    words = f"{point} is {device} ({kind}, {','.join(options[:6])})"
    missing = [option for option in check["options"] if option not in options]
    if missing or (check["fstype"] and kind != check["fstype"]):
        raise CheckFailed(f"{words}, wanted {' '.join([check['fstype'] or '', *missing]).strip()}")
    return words


def memory(check: Check, shared: Shared) -> Seen:
    with open("/proc/meminfo", encoding="ascii") as handle:
        kib = {line.split(":")[0]: int(line.split()[1]) for line in handle}
    used = 100 * (1 - kib["MemAvailable"] / kib["MemTotal"])
    return grade(check, round(used, 1), " %", f"{used:.1f} % of {kib['MemTotal'] / 2**20:.1f} GiB is in use")


def load(check: Check, shared: Shared) -> Seen:
    average = os.getloadavg()[{1: 0, 5: 1, 15: 2}[check["minutes"]]]
    each = average / (os.cpu_count() or 1)
    return grade(check, round(each, 2), " per processor", f"load of {check['minutes']} min is {average:.2f}")


def clock(check: Check, shared: Shared) -> Seen:
    now = time.time()
    data = {"time": round(now, 3)}
    if check["synchronized"]:
        outcome = run(["timedatectl", "show", "-p", "NTPSynchronized", "--value"], timeout=check.timeout)
        if outcome.rc:
            raise CannotTell(f"timedatectl: {outcome.stderr.strip()[-200:]}")
        if outcome.stdout.strip() != "yes":
            raise CheckFailed("the clock is not synchronised")
    if not check["server"]:
        return Seen(datetime.datetime.fromtimestamp(now, datetime.timezone.utc).isoformat("T", "seconds"), data=data)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        query.settimeout(check.timeout)
        try:
            sent = time.time()
            query.sendto(b"\x23" + 47 * b"\0", (check["server"], check["port"]))
            answer = query.recv(512)
            received = time.time()
        except OSError as error:
            raise CannotTell(f"{check['server']}: {error}") from error
    if len(answer) < 48:
        raise CannotTell(f"{check['server']} gave no NTP answer")
    stamps = struct.unpack("!8I", answer[16:48])
    there = [stamps[i] - NTP_EPOCH + stamps[i + 1] / 2**32 for i in (4, 6)]
    # RFC 5905 section 8: half of what the two ways differ in.
    offset = ((there[0] - sent) + (there[1] - received)) / 2
    data["offset"] = round(offset, 4)
    return grade(check, abs(offset), " s", f"{offset:+.3f} s from {check['server']}", data=data)


def floating(check: Check, shared: Shared) -> Seen:
    """Which of the addresses that several hosts share this one holds; the fleet's verdict counts the holders."""
    outcome = run(["ip", "-json", "address", "show"], timeout=check.timeout)
    if outcome.rc:
        raise CannotTell(f"ip: {outcome.stderr.strip()[-200:]}")
    own = {ipaddress.ip_address(entry["local"]) for link in json.loads(outcome.stdout) for entry in link["addr_info"]}
    held = {text: ipaddress.ip_interface(text).ip in own for text in map(str, check["addresses"])}
    words = ", ".join(address for address, here in held.items() if here)
    data = {"held": held, "sharers": [str(name) for name in check["sharers"]]}
    return Seen(f"holds {words}" if words else f"stands by for {', '.join(held)}", data=data)


def _moment(value: Any) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    return datetime.datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp()


def backup(check: Check, shared: Shared) -> Seen:
    """The newest backup: of a status file with finished, verified and size, or of the files of a pattern."""
    now = time.time()
    if bool(check["status"]) == bool(check["path"]):
        raise CannotTell("needs exactly one of status and path")
    verified: float | None = None
    if check["status"]:
        try:
            with open(check["status"], encoding="utf-8") as handle:
                record = json.load(handle)
            if record.get("failed"):
                raise CheckFailed(f"the last backup failed: {record['failed']}")
            if record.get("since") and not record.get("finished"):
                waited = now - _moment(record["since"])
                words = f"{check['status']}: no backup has finished yet, for {waited / 3600:.1f} h"
                return grade(check, round(waited), " s", words)
            finished, size = _moment(record["finished"]), int(record.get("size", 0))
            # What was never verified has had as long for it as there are backups.
            proof = record.get("verified") or record.get("since")
            verified = _moment(proof) if proof else None
        except FileNotFoundError:
            raise CheckFailed(f"{check['status']} is not there: no backup has finished") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CannotTell(f"{check['status']}: {error!r}") from error
        label = check["status"]
    else:
        found = sorted((os.stat(path).st_mtime, os.stat(path).st_size, path) for path in glob.glob(check["path"]))
        if not found:
            raise CheckFailed(f"nothing matches {check['path']}")
        finished, size, label = found[-1]
    if size < check["min_size"]:
        raise CheckFailed(f"{label} has {size} B, less than {check['min_size']} B")
    if check["max_verified_age"] is not None:
        if verified is None:
            raise CheckFailed(f"{label} was never verified")
        if now - verified > check["max_verified_age"]:
            last = "last" if record.get("verified") else "never"
            raise CheckFailed(f"{label} was {last} verified, for {(now - verified) / 3600:.1f} h")
    age = now - finished
    return grade(check, round(age), " s", f"{label} is {age / 3600:.1f} h old, {size} B")


_PATH = {"path": Key("str", "A path on the file system; without it every local one that can be written.")}
TYPES = (
    CheckType("systemd", systemd, {
        "unit": Key("str", "The unit.", required=True),
        "active": Key("str", "The state that it must have.", "active"),
        "enabled": Key("bool", "Whether it must start at boot; unset: no matter."),
    }, "State of a unit, and that its main process is not stopped. Thresholds: restarts by systemd.", 10.0, ("unit",)),
    CheckType("process", process, {
        "pattern": Key("str", "Regular expression for the command line.", required=True),
        "min": Key("int", "At least so many.", 1),
        "max": Key("int", "At most so many."),
    }, "Processes that match. Thresholds: their number.", target=("pattern",)),
    CheckType("command", command, {
        "argv": Key("list", "Program and arguments."),
        "shell": Key("str", "A line for /bin/sh instead."),
        "user": Key("str", "Account that runs it."),
        "stdin": Key("str", "What it reads."),
        "environment": Key("dict", "Variables for it.", {}),
        "rc": Key("int", "The return code that is good.", 0),
        "stdout": Key("str", "Regular expression that a line must match."),
        "unit": Key("str", "Unit of the number printed, for messages.", ""),
        "sensitive": Key("bool", "Keeps what it prints out of messages.", False),
    }, "A program. Thresholds: the first word printed, as a number.", 15.0, ("argv", "shell")),
    CheckType("file", file, {
        "path": Key("str", "The file.", required=True),
        "state": Key("str", "What it must be.", "present",
                     choices=("present", "file", "directory", "link", "socket", "absent")),
        "owner": Key("str", "The account that it must belong to."),
        "group": Key("str", "The group that it must belong to."),
        "mode": Key("str", "Octal mode."),
        "contains": Key("str", "Regular expression that its first MiB must match."),
        "max_age": Key("float", "Seconds since it was last written, at most."),
        "follow": Key("bool", "Whether links are followed.", True),
    }, "A file. Thresholds: its size in bytes.", target=("path",)),
    CheckType("disk", disk, _PATH, "Space used in per cent.", target=("path",)),
    CheckType("inode", inode, _PATH, "Inodes used in per cent.", target=("path",)),
    CheckType("mount", mount, {
        "path": Key("str", "The mount point; without it every local file system that fstab(5) has not read-only."),
        "fstype": Key("str", "Its type."),
        "options": Key("list", "Options that it must have, such as rw.", ()),
    }, "A mount and its options.", target=("path",)),
    CheckType("memory", memory, {}, "Memory that is not available, in per cent."),
    CheckType("load", load, {"minutes": Key("int", "Average over 1, 5 or 15.", 5, choices=(1, 5, 15))},
              "Load average per processor."),
    CheckType("clock", clock, {
        "server": Key("str", "An NTP server to compare with."),
        "port": Key("int", "Its port.", 123),
        "synchronized": Key("bool", "Whether the host must say that its clock is synchronised.", False),
    }, "The clock; the fleet's verdict compares hosts. Thresholds: offset from the server in seconds."),
    CheckType("floating", floating, {
        "addresses": Key("list", "The addresses, with or without the length of their network.", required=True),
        "sharers": Key("list", "The inventory's names of all hosts that share them.", required=True),
    }, "Addresses that hosts share, kept by one of them; the fleet's verdict counts who has them."),
    CheckType("backup", backup, {
        "status": Key("str", "A JSON file with finished, verified, since (ISO 8601 or seconds), size, failed. "
                      "Until one has finished, its age is counted from since."),
        "path": Key("str", "A pattern for the backup's files instead."),
        "min_size": Key("int", "Bytes that it must have.", 1),
        "max_verified_age": Key("float", "Seconds since it was last verified, at most; only with status."),
    }, "The newest backup. Thresholds: its age in seconds.", target=("status", "path")),
)  # fmt: skip
