# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Trees of files: what is in one, and whether another one is the same.

Names are text with surrogates for bytes that are no UTF-8, as Python's ``os`` has them; JSON keeps those.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

Facts = dict[str, Any]
# What two equal trees agree in. The content of files is the business of whoever has copied them.
COMPARED = ("mode", "owner", "size", "mtime", "target", "twin", "xattrs")


def nothing(path: str) -> bool:
    """Leaves nothing out."""
    return False


def leaves_out(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path is left out: by an absolute path as it is, by a name wherever it is, with ``*`` and ``?``."""
    paths = {pattern for pattern in patterns if pattern.startswith("/")}
    names = [pattern for pattern in patterns if not pattern.startswith("/")]
    return lambda path: path in paths or any(fnmatch.fnmatchcase(os.path.basename(path), name) for name in names)


def walk(root: str, left_out: Callable[[str], bool] = nothing) -> Iterator[tuple[str, os.stat_result | None]]:
    """A file or folder and everything below it, always in the same order. What is left out has no status.

    What goes away meanwhile is passed over.
    """
    ahead = [root]
    while ahead:
        path = ahead.pop()
        if left_out(path):
            yield path, None
            continue
        try:
            status = os.lstat(path)
            names = sorted(os.listdir(path), reverse=True) if stat.S_ISDIR(status.st_mode) else []
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield path, status
        ahead += [os.path.join(path, name) for name in names]


def index(root: str, left_out: Callable[[str], bool] = nothing) -> dict[str, Facts]:
    """All that there is to know of a tree but the content of its files, by path relative to ``root``.

    Sockets are no data. Beside what is compared: ``sparse``, and ``changed``, which differs after any change.
    """
    found: dict[str, Facts] = {}
    first: dict[tuple[int, int], str] = {}
    for path, status in walk(root, left_out):
        if status is None or stat.S_ISSOCK(status.st_mode):
            continue
        name = os.path.relpath(path, root)
        with contextlib.suppress(FileNotFoundError):
            found[name] = _facts(path, name, status, first)
    return found


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
        "changed": [status.st_ino, status.st_ctime_ns],
    }


def _attributes(path: str) -> dict[str, str]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        values = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    except FileNotFoundError:
        raise
    except OSError:
        return {}  # a file system without them
    return {name: hashlib.sha256(value).hexdigest() for name, value in sorted(values.items())}


def changes(before: Mapping[str, Facts], after: Mapping[str, Facts]) -> list[str]:
    """What was not the same all the time between two looks at one tree."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def differences(wanted: Mapping[str, Facts], found: Mapping[str, Facts], moving: Collection[str]) -> list[str]:
    """In what a tree is not what it should be, in words.

    What was ``moving`` while it was copied may be anything, and a folder that was may hold what came and went.
    """
    wrong = []
    for name in sorted({*wanted, *found} - set(moving)):
        if name not in found:
            wrong.append(f"{name!r} is missing")
        elif name not in wanted:
            if (os.path.dirname(name) or ".") not in moving:
                wrong.append(f"{name!r} should not be there")
        else:
            pairs = [(key, found[name][key], wanted[name][key]) for key in COMPARED]
            wrong += [f"{name!r} has {key} {is_} instead of {was}" for key, is_, was in pairs if is_ != was]
    return wrong


def mounted(path: str) -> list[str]:
    """Mount points at a path and below it."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as handle:
        # Spaces and the like are written as octal numbers, see proc_pid_mountinfo(5).
        points = [line.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape") for line in handle]
    points = [point.encode("latin-1").decode("utf-8", "surrogateescape") for point in points]
    return sorted(point for point in points if is_below(point, path))


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
