# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""All types of sources by the name that roles announce them with, and all kinds of repositories by theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .archive import Archive
from .ebs import Volumes
from .files import Files
from .libvirt import Machine
from .lvm import LogicalVolume
from .model import Key, Refused
from .postgresql import Physical
from .postgresql_logical import Logical
from .redis import Redis
from .repository import LocalPath, Repository
from .s3 import S3
from .search import Search
from .sftp import Sftp
from .sources import Source

SOURCES: tuple[type[Source], ...] = (
    Physical,
    Logical,
    Files,
    Redis,
    Search,
    Volumes,
    LogicalVolume,
    Machine,
    Archive,
)
TYPES: dict[str, type[Source]] = {source.kind: source for source in SOURCES}
KINDS: dict[str, type[Repository]] = {"path": LocalPath, "sftp": Sftp, "s3": S3}


def described(repositories: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The entry of a repository in the settings; the first one without a name.

    :raises Refused: when there is none of that name.
    """
    for entry in repositories:
        if not name or entry["name"] == name:
            return entry
    known = ", ".join(str(entry["name"]) for entry in repositories)
    raise Refused(f"repository: {name!r} is none of those that this host has: {known or 'none at all'}")


def open_repository(entry: Mapping[str, Any]) -> Repository:
    """The repository that an entry of the settings describes: name, kind, key_file and what its kind takes.

    :raises Refused: for an unknown kind.
    :raises WrongKey: see :meth:`Key.load`.
    """
    kind = KINDS.get(str(entry.get("kind")))
    if kind is None:
        raise Refused(f"repository: kind: {entry.get('kind')!r} is none of {', '.join(sorted(KINDS))}")
    return kind(str(entry["name"]), Key.load(str(entry["key_file"])), entry)
