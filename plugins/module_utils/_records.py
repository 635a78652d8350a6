# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What single things on a host are like now, as plain data that can be kept and compared later."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
from collections.abc import Iterable
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._host import run
from ansible_collections.vmfleet.ops.plugins.module_utils._journal import kind_of


def path_record(path: str) -> dict[str, Any] | None:
    """Kind, numeric owner and group, mode, and of a file the SHA-256 of its content; of a link where it leads."""
    kind = kind_of(path)
    if kind == "absent":
        return None
    if kind == "link":
        return {"kind": kind, "target": os.readlink(path)}
    status = os.lstat(path)
    record: dict[str, Any] = {"kind": kind, "uid": status.st_uid, "gid": status.st_gid, "mode": f"{status.st_mode:o}"}
    if kind == "file":
        digest = hashlib.sha256()
        with open(path, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
        record["sha256"] = digest.hexdigest()
    return record


def unit_state(name: str) -> dict[str, str]:
    """What systemd says of a unit."""
    properties = "LoadState,ActiveState,SubState,Result,UnitFileState,InvocationID,NRestarts,NeedDaemonReload,CanReload"
    answer = run(["systemctl", "show", "-p", properties, "--", name]).stdout
    return dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)


def is_up(state: dict[str, str]) -> bool:
    """Whether a unit serves."""
    return state.get("ActiveState") in ("active", "reloading", "refreshing")


def service_record(name: str) -> dict[str, Any]:
    """Whether a unit is there, runs, is masked and is enabled."""
    state = unit_state(name)
    return {
        "name": name,
        "active": is_up(state),
        "masked": state.get("LoadState") == "masked",
        "found": state.get("LoadState") not in (None, "not-found"),
        "enabled": state.get("UnitFileState", ""),
    }


def _enablement(name: str) -> dict[str, Any]:
    """What stays of a unit's record whether it runs or not."""
    record = service_record(name)
    return {key: record[key] for key in ("masked", "enabled")}


def user_record(name: str) -> dict[str, Any] | None:
    """An account with its further groups."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        return None
    return {
        "uid": user.pw_uid,
        "gid": user.pw_gid,
        "home": user.pw_dir,
        "shell": user.pw_shell,
        "groups": sorted(group.gr_name for group in grp.getgrall() if name in group.gr_mem),
    }


def group_record(name: str) -> dict[str, Any] | None:
    """A group's number."""
    try:
        return {"gid": grp.getgrnam(name).gr_gid}
    except KeyError:
        return None


def sysctl_path(key: str) -> str:
    """Where the kernel shows a setting."""
    return "/proc/sys/" + key.replace(".", "/")


def sysctl_record(key: str) -> str | None:
    """A setting's value."""
    try:
        with open(sysctl_path(key), encoding="ascii") as handle:
            return " ".join(handle.read().split())
    except OSError:
        return None


READERS = {
    "file": path_record,
    "directory": path_record,
    "service": _enablement,
    "user": user_record,
    "group": group_record,
    "sysctl": sysctl_record,
}


def observe(names: Iterable[str]) -> dict[str, Any]:
    """The present records of things that are named by kind and name, such as ``file /etc/motd``.

    :returns: name to record; None for what is not there.
    """
    result = {}
    for name in names:
        kind, _space, thing = name.partition(" ")
        result[name] = READERS[kind](thing)
    return result
