# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Trees that stand still while they are read: read-only snapshots of the btrfs subvolumes and LVM volumes they are in.

Programs see a snapshot under the path of its tree, by a mount that only they have.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from .model import EngineFailed
from .sources import Context
from .tree import mount_of, mounted, walk

NAME = ".vmfleet-snapshot"
# Where snapshots of volumes are mounted. Gone after a boot, as their mounts are.
MOUNTS = "/run/vmfleet-backup"
# The number of the root of each subvolume, see btrfs-subvolume(8).
ROOT = 256
# How file systems on LVM are mounted that were frozen, and are on their volume and its snapshot at the same time.
FROZEN_OPTIONS = {"ext3": "noload", "ext4": "noload", "xfs": "nouuid,norecovery"}
# Mounts the first path over the second one, then does the same with the rest, and starts what follows the dashes.
SHOW = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit; shift 2; done; shift; exec "$@"'
TIMEOUT = 600


@dataclass(frozen=True)
class Subvolume:
    """A subvolume of btrfs by its ``root``, and the ``place`` of its snapshot."""

    root: str
    place: str

    def make(self, context: Context) -> bool:
        argv = ["btrfs", "subvolume", "snapshot", "-r", self.root, self.place]
        context.command(f"make a snapshot of {self.root}", argv, timeout=TIMEOUT)
        return True

    def check(self, context: Context) -> None:
        """It holds as long as it is there."""

    def remove(self, context: Context) -> None:
        if os.path.lexists(self.place):
            argv = ["btrfs", "subvolume", "delete", self.place]
            context.command(f"remove the snapshot of {self.root}", argv, timeout=TIMEOUT)

    def view(self, path: str) -> str:
        return os.path.normpath(os.path.join(self.place, os.path.relpath(path, self.root)))


@dataclass(frozen=True)
class Volume:
    """A logical volume of LVM, and where which folder of its file system is mounted."""

    group: str
    name: str
    kind: str
    point: str
    folder: str

    @property
    def snapshot(self) -> str:
        return f"{self.group}/{self.name}{NAME}"

    @property
    def place(self) -> str:
        return f"{MOUNTS}/{self.group}-{self.name}"

    def make(self, context: Context) -> bool:
        """Whether the group has room for a snapshot, which is then mounted."""
        size = self._size(context)
        if size is None:
            context.say(f"{self.group} has no room for a snapshot of {self.name}, which is read as it lives")
            return False
        argv = ["lvcreate", "--quiet", "--snapshot", "--permission=r", f"--name={self.name}{NAME}", size]
        context.command(
            f"make a snapshot of {self.group}/{self.name}", [*argv, f"{self.group}/{self.name}"], timeout=TIMEOUT
        )
        os.makedirs(self.place, mode=0o700, exist_ok=True)
        options = f"ro,nodev,noexec,nosuid,{FROZEN_OPTIONS[self.kind]}"
        argv = ["mount", f"--types={self.kind}", f"--options={options}", f"/dev/{self.snapshot}", self.place]
        context.command(f"mount the snapshot {self.snapshot}", argv, timeout=TIMEOUT)
        return True

    def _size(self, context: Context) -> str | None:
        """The option of lvcreate for the room that a snapshot has for what is written meanwhile.

        One of a thin volume takes what its pool has; of others, a fifth of the volume, or what the group has.
        """
        fields = "--options=lv_size,vg_free,pool_lv"
        argv = ["lvs", "--reportformat=json", "--units=b", "--nosuffix", fields, f"{self.group}/{self.name}"]
        said = context.command(f"look at the volume {self.group}/{self.name}", argv, timeout=TIMEOUT).stdout
        facts = json.loads(said)["report"][0]["lv"][0]
        if facts["pool_lv"]:
            return "--setactivationskip=n"
        size = min(int(facts["vg_free"]), int(facts["lv_size"]) // 5)
        return f"--size={size}b" if size else None

    def check(self, context: Context) -> None:
        """:raises EngineFailed: when it overflowed: then what was read last is nothing."""
        argv = ["lvs", "--noheadings", "--binary", "--options=lv_snapshot_invalid", self.snapshot]
        said = context.command(f"look at the snapshot {self.snapshot}", argv, timeout=TIMEOUT).stdout
        if said.strip() == "1":  # -1 for a thin one, which has no room of its own
            raise EngineFailed(
                f"more was written to {self.group}/{self.name} than its snapshot has room for; "
                f"give the volume group {self.group} more space, or write less meanwhile"
            )

    def remove(self, context: Context) -> None:
        if mounted(self.place):
            context.command(f"unmount {self.place}", ["umount", self.place], timeout=TIMEOUT)
        if os.path.lexists(f"/dev/{self.snapshot}"):
            argv = ["lvremove", "--quiet", "--yes", self.snapshot]
            context.command(f"remove the snapshot {self.snapshot}", argv, timeout=TIMEOUT)

    def view(self, path: str) -> str:
        return os.path.normpath(os.path.join(self.place + self.folder, os.path.relpath(path, self.point)))


Snapshot = Union[Subvolume, Volume]


def subvolume(path: str) -> str:
    """The root of the subvolume that a path is in, or nothing where there is none, or no tool for it."""
    if shutil.which("btrfs") is None or mount_of(path).kind != "btrfs":
        return ""
    root = path
    while os.lstat(root).st_ino != ROOT and root != "/":
        root = os.path.dirname(root)
    return root


def volume(path: str) -> Volume | None:
    """The volume that a path is in, or nothing where there is none, no tool for it, or another kind of file system."""
    mount = mount_of(path)
    if shutil.which("lvcreate") is None or mount.kind not in FROZEN_OPTIONS:
        return None
    device = os.lstat(path).st_dev
    facts = []
    for name in ("uuid", "name"):
        try:
            with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/dm/{name}", encoding="ascii") as handle:
                facts.append(handle.read().strip())
        except FileNotFoundError:
            return None
    if not facts[0].startswith("LVM-"):
        return None
    group, name = volume_names(facts[1])
    return Volume(group, name, mount.kind, mount.point, mount.folder)


def volume_names(device: str) -> tuple[str, str]:
    """Group and volume of a device's name: one hyphen is between them, those in either are doubled, see lvm(8)."""
    found = re.match("((?:[^-]|--)+)-((?:[^-]|--)+)$", device)
    group, name = (word.replace("--", "-") for word in found.groups()) if found else ("", "")
    return group, name


def nested(path: str, left_out: Callable[[str], bool]) -> list[str]:
    """The subvolumes below a path, which a snapshot of the one around them has as empty folders."""
    return [
        place
        for place, status in walk(path, left_out)
        if place != path and status is not None and stat.S_ISDIR(status.st_mode) and status.st_ino == ROOT
    ]


def _snapshots(paths: Sequence[str]) -> dict[str, Snapshot]:
    """What snapshot each path can be read in; the places of those are in none of the trees."""
    found: dict[str, Snapshot] = {}
    for path in filter(os.path.lexists, paths):
        root = subvolume(path)
        if root:
            found[path] = Subvolume(root, os.path.join(os.path.dirname(root) if root in paths else root, NAME))
        else:
            around = volume(path)
            if around:
                found[path] = around
    return found


@contextlib.contextmanager
def frozen(context: Context, paths: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Where each path can be read meanwhile: in a snapshot, or where it is, on another file system.

    :raises EngineFailed: when a snapshot cannot be made, or has not held.
    """
    thaw(context, paths)
    found = _snapshots(paths)
    try:
        made = [snapshot for snapshot in sorted({*found.values()}, key=repr) if snapshot.make(context)]
        try:
            yield {path: found[path].view(path) if found.get(path) in made else path for path in paths}
        finally:
            for snapshot in made:
                snapshot.check(context)
    finally:
        thaw(context, paths)


def thaw(context: Context, paths: Sequence[str]) -> None:
    """Removes the snapshots that are there, also those of a killed run."""
    for snapshot in {*_snapshots(paths).values()}:
        snapshot.remove(context)


def showing(views: Mapping[str, str]) -> list[str]:
    """The beginning of a command line by which a program sees what :func:`frozen` gave at the paths themselves."""
    pairs = [text for path, view in views.items() if view != path for text in (view, path)]
    return ["unshare", "--mount", "--propagation=private", "--", "sh", "-c", SHOW, "sh", *pairs, "--"] if pairs else []
