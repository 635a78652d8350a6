# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Trees that stand still while they are read: read-only snapshots of the btrfs subvolumes and LVM volumes they are in.

Programs see a snapshot under the path of its tree, by a mount that only they have.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from .lvm import TIMEOUT, Volume
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
class MountedVolume:
    """A logical volume of LVM, and where which ``folder`` of its file system is mounted."""

    volume: Volume
    kind: str
    point: str
    folder: str

    @property
    def place(self) -> str:
        """Where its snapshot is mounted."""
        return f"{MOUNTS}/{self.volume.group}-{self.volume.name}"

    def make(self, context: Context) -> bool:
        """Whether the group has room for a snapshot, which is then mounted."""
        size = self.volume.snapshot_size(context)
        if not size:
            context.say(f"there is no room for a snapshot of {self.volume}, which is read as it lives")
            return False
        made = self.volume.take_snapshot(context, NAME, size)
        os.makedirs(self.place, mode=0o700, exist_ok=True)
        options = f"ro,nodev,noexec,nosuid,{FROZEN_OPTIONS[self.kind]}"
        argv = ["mount", f"--types={self.kind}", f"--options={options}", made.device, self.place]
        context.command(f"mount the snapshot of {self.volume}", argv, timeout=TIMEOUT)
        return True

    def check(self, context: Context) -> None:
        self.volume.check_snapshot(context, NAME)

    def remove(self, context: Context) -> None:
        if mounted(self.place):
            context.command(f"unmount {self.place}", ["umount", self.place], timeout=TIMEOUT)
        self.volume.beside(NAME).remove(context)

    def view(self, path: str) -> str:
        return os.path.normpath(os.path.join(self.place + self.folder, os.path.relpath(path, self.point)))


Snapshot = Union[Subvolume, MountedVolume]


def subvolume(path: str) -> str:
    """The root of the subvolume that a path is in, or nothing where there is none, or no tool for it."""
    if shutil.which("btrfs") is None or mount_of(path).kind != "btrfs":
        return ""
    root = path
    while os.lstat(root).st_ino != ROOT and root != "/":
        root = os.path.dirname(root)
    return root


def mounted_volume(path: str) -> MountedVolume | None:
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
    return MountedVolume(named(facts[1]), mount.kind, mount.point, mount.folder)


def named(device: str) -> Volume:
    """The volume of a device: one hyphen is between group and name, those in either are doubled, see lvm(8)."""
    found = re.match("((?:[^-]|--)+)-((?:[^-]|--)+)$", device)
    group, name = (word.replace("--", "-") for word in found.groups()) if found else ("", "")
    return Volume(group, name)


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
            around = mounted_volume(path)
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
