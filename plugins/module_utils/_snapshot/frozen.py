# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Trees that stand still while they are read: read-only snapshots of the btrfs subvolumes that they are in.

Programs see a snapshot under the path of its tree, by a mount that only they have.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence

from .sources import Context
from .tree import file_system, walk

NAME = ".vmfleet-snapshot"
# The number of the root of each subvolume, see btrfs-subvolume(8).
ROOT = 256
# Mounts the first path over the second one, then does the same with the rest, and starts what follows the dashes.
SHOW = 'while [ "$1" != -- ]; do mount --bind "$1" "$2" || exit; shift 2; done; shift; exec "$@"'


def subvolume(path: str) -> str:
    """The root of the subvolume that a path is in, or nothing where there is none, or no tool for it."""
    if shutil.which("btrfs") is None or file_system(path) != "btrfs":
        return ""
    root = path
    while os.lstat(root).st_ino != ROOT and root != "/":
        root = os.path.dirname(root)
    return root


def nested(path: str, left_out: Callable[[str], bool]) -> list[str]:
    """The subvolumes below a path, which a snapshot of the one around them has as empty folders."""
    return [
        place
        for place, status in walk(path, left_out)
        if place != path and status is not None and stat.S_ISDIR(status.st_mode) and status.st_ino == ROOT
    ]


def _snapshots(paths: Sequence[str]) -> dict[str, str]:
    """Where the snapshot of each subvolume is to be: in none of the trees."""
    roots = {subvolume(path) for path in paths if os.path.lexists(path)} - {""}
    return {root: os.path.join(os.path.dirname(root) if root in paths else root, NAME) for root in sorted(roots)}


@contextlib.contextmanager
def frozen(context: Context, paths: Sequence[str]) -> Iterator[Mapping[str, str]]:
    """Where each path can be read meanwhile: in a snapshot, or where it is, on another file system.

    :raises EngineFailed: when the snapshot of a subvolume cannot be made.
    """
    snapshots = _snapshots(paths)
    thaw(context, paths)
    try:
        for root, place in snapshots.items():
            argv = ["btrfs", "subvolume", "snapshot", "-r", root, place]
            context.command(f"make a snapshot of {root}", argv, timeout=600)
        roots = {path: subvolume(path) for path in paths}
        yield {
            path: os.path.normpath(os.path.join(snapshots[root], os.path.relpath(path, root))) if root else path
            for path, root in roots.items()
        }
    finally:
        thaw(context, paths)


def thaw(context: Context, paths: Sequence[str]) -> None:
    """Removes the snapshots that are there, also those of a killed run."""
    for root, place in _snapshots(paths).items():
        if os.path.lexists(place):
            argv = ["btrfs", "subvolume", "delete", place]
            context.command(f"remove the snapshot of {root}", argv, timeout=600)


def showing(views: Mapping[str, str]) -> list[str]:
    """The beginning of a command line by which a program sees what :func:`frozen` gave at the paths themselves."""
    pairs = [text for path, view in views.items() if view != path for text in (view, path)]
    return ["unshare", "--mount", "--propagation=private", "--", "sh", "-c", SHOW, "sh", *pairs, "--"] if pairs else []
