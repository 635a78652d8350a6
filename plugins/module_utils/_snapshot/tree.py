# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Trees of files: what is in one, and whether another one is the same.

Names are text with surrogates for bytes that are no UTF-8, as Python's ``os`` has them; JSON keeps those.
"""

from __future__ import annotations

import fnmatch
import hashlib
import operator
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Facts = dict[str, Any]
# What two equal trees agree in. The content of files is the business of whoever has copied them.
COMPARED = ("mode", "owner", "size", "mtime", "target", "twin", "xattrs")
_compared = operator.itemgetter(*COMPARED)
_by_name = operator.attrgetter("name")


def nothing(path: str) -> bool:
    """Leaves nothing out."""
    return False


def leaves_out(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path is left out: by an absolute path as it is, by a name wherever it is, with ``*`` and ``?``."""
    paths = {pattern for pattern in patterns if pattern.startswith("/")}
    names = [pattern for pattern in patterns if not pattern.startswith("/")]
    if not names:
        return paths.__contains__
    return lambda path: path in paths or any(fnmatch.fnmatchcase(os.path.basename(path), name) for name in names)


def walk(root: str, left_out: Callable[[str], bool] = nothing) -> Iterator[tuple[str, os.stat_result | None]]:
    """A file or folder and everything below it, always in the same order. What is left out has no status.

    What goes away meanwhile is passed over.
    """
    try:
        status = None if left_out(root) else os.lstat(root)
    except (FileNotFoundError, NotADirectoryError):
        return
    yield root, status
    open_folders = [_listed(root)] if status is not None and stat.S_ISDIR(status.st_mode) else []
    while open_folders:
        for entry in open_folders[-1]:
            if left_out(entry.path):
                yield entry.path, None
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield entry.path, status
            if stat.S_ISDIR(status.st_mode):
                open_folders.append(_listed(entry.path))
                break
        else:
            open_folders.pop()


def _listed(folder: str) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, by name."""
    try:
        with os.scandir(folder) as entries:
            return iter(sorted(entries, key=_by_name))
    except (FileNotFoundError, NotADirectoryError):
        return iter(())


def _named(root: str, left_out: Callable[[str], bool]) -> Iterator[tuple[str, str, os.stat_result]]:
    """What :func:`walk` finds that is data, which sockets are not: path relative to ``root``, path and status."""
    skip = len(root) + 1
    for path, status in walk(root, left_out):
        if status is not None and not stat.S_ISSOCK(status.st_mode):
            yield path[skip:] or ".", path, status


def index(
    root: str, left_out: Callable[[str], bool] = nothing, marked: dict[str, list[int]] | None = None
) -> dict[str, Facts]:
    """All that there is to know of a tree but the content of its files, by path relative to ``root``, a plain path.

    Beside what is compared: ``sparse``.

    :param marked: takes the :func:`marks` of the same look.
    """
    found: dict[str, Facts] = {}
    first: dict[tuple[int, int], str] = {}
    for name, path, status in _named(root, left_out):
        try:
            found[name] = _facts(path, name, status, first)
        except FileNotFoundError:
            continue
        if marked is not None:
            marked[name] = identity(status)
    return found


def identity(status: os.stat_result) -> list[int]:
    """What of a file differs after any change of it."""
    return [status.st_ino, status.st_ctime_ns]


def marks(root: str, left_out: Callable[[str], bool] = nothing) -> dict[str, list[int]]:
    """The :func:`identity` of everything in a tree, by the names of :func:`index`."""
    return {name: identity(status) for name, _path, status in _named(root, left_out)}


def _facts(path: str, name: str, status: os.stat_result, first: dict[tuple[int, int], str]) -> Facts:
    """``first`` has the first name of each inode so far: names of one file share it, as ``twin``."""
    kind = stat.S_IFMT(status.st_mode)
    regular = kind == stat.S_IFREG
    target: str | int = ""
    if kind == stat.S_IFLNK:
        target = os.readlink(path)
    elif kind in (stat.S_IFBLK, stat.S_IFCHR):
        target = status.st_rdev
    linked = kind != stat.S_IFDIR and status.st_nlink > 1
    return {
        "mode": status.st_mode,
        "owner": [status.st_uid, status.st_gid],
        "size": status.st_size if regular else 0,
        # In microseconds, which every file system keeps.
        "mtime": status.st_mtime_ns // 1000,
        "target": target,
        "twin": first.setdefault((status.st_dev, status.st_ino), name) if linked else name,
        "xattrs": _attributes(path),
        "sparse": regular and status.st_size >= 4096 and status.st_blocks * 512 < status.st_size,
    }


def _attributes(path: str) -> dict[str, str]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        if not names:
            return {}
        values = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    except FileNotFoundError:
        raise
    except OSError:
        return {}  # a file system without them
    return {name: hashlib.sha256(value).hexdigest() for name, value in sorted(values.items())}


def digest(path: str, algorithm: str) -> str:
    """The digest of a file's content, in hexadecimal. :raises FileNotFoundError:"""
    found = hashlib.new(algorithm)  # hashlib.file_digest is of Python 3.11
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def changes(before: Mapping[str, list[int]], after: Mapping[str, list[int]]) -> list[str]:
    """What was not the same all the time from some :func:`marks` of a tree to later ones."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def differences(wanted: Mapping[str, Facts], found: Mapping[str, Facts], moving: Collection[str]) -> list[str]:
    """In what a tree is not what it should be, in words.

    What was ``moving`` while it was copied may be anything, and a folder that was may hold what came and went.
    """
    unequal = found.keys() ^ wanted.keys()
    unequal |= {name for name, facts in found.items() if name in wanted and _compared(facts) != _compared(wanted[name])}
    wrong = []
    for name in sorted(unequal.difference(moving)):
        if name not in found:
            wrong.append(f"{name!r} is missing")
        elif name not in wanted:
            if (os.path.dirname(name) or ".") not in moving:
                wrong.append(f"{name!r} should not be there")
        else:
            pairs = [(key, found[name][key], wanted[name][key]) for key in COMPARED]
            wrong += [f"{name!r} has {key} {is_} instead of {was}" for key, is_, was in pairs if is_ != was]
    return wrong


class Mount(NamedTuple):
    """A mount ``point``, the type of its file system, and the folder of that which is there."""

    point: str
    kind: str
    folder: str


def _mounts() -> Iterator[Mount]:
    """All, in the order in which they were made."""

    def path(word: str) -> str:
        # Spaces and the like are written as octal numbers, see proc_pid_mountinfo(5).
        raw = word.encode("utf-8", "surrogateescape").decode("unicode_escape").encode("latin-1")
        return raw.decode("utf-8", "surrogateescape")

    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as handle:
        for line in handle:
            place, _dash, kind = line.partition(" - ")
            _id, _parent, _device, folder, point = place.split()[:5]
            yield Mount(path(point), kind.split()[0], path(folder))


def mounted(path: str) -> list[str]:
    """Mount points at a path and below it."""
    return sorted(mount.point for mount in _mounts() if is_below(mount.point, path))


def mount_of(path: str) -> Mount:
    """Where the file system that a path is on is mounted."""
    found = [(len(mount.point), number, mount) for number, mount in enumerate(_mounts()) if is_below(path, mount.point)]
    return max(found)[2]


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
