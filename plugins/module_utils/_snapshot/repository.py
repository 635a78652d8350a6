# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where sets are kept. A kind of repository says how small objects are put and where the engines find theirs."""

from __future__ import annotations

import abc
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .._durable import fsync_directory, write_durably
from .model import Key, NotFound, Refused, Unavailable


@dataclass(frozen=True)
class Repository(abc.ABC):
    """``options`` are the entries of its kind in the settings. Names of objects are relative paths."""

    name: str
    key: Key
    options: Mapping[str, Any]

    @abc.abstractmethod
    def put(self, name: str, content: bytes) -> None:
        """Stores an object as a whole, durably, over a former one.

        :raises Unavailable: when that cannot be done; the former one is then still there.
        """

    @abc.abstractmethod
    def get(self, name: str) -> bytes:
        """:raises NotFound: when there is none.
        :raises Unavailable: when it cannot be told.
        """

    @abc.abstractmethod
    def names(self, prefix: str) -> list[str]:
        """The objects below a folder, sorted. :raises Unavailable: when they cannot be listed."""

    @abc.abstractmethod
    def delete(self, name: str) -> None:
        """Removes an object; one that is not there is no error. :raises Unavailable:"""

    @abc.abstractmethod
    def restic(self) -> tuple[str, dict[str, str]]:
        """The address for restic's --repo and the environment it needs; the password's file is not part of it."""


class LocalPath(Repository):
    """A folder on this host: a disk of its own, or something mounted."""

    def _path(self, name: str) -> str:
        return os.path.join(str(self.options["path"]), name)

    def put(self, name: str, content: bytes) -> None:
        path = self._path(name)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            write_durably(path, content)
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror}") from error

    def get(self, name: str) -> bytes:
        try:
            with open(self._path(name), "rb") as handle:
                return handle.read()
        except FileNotFoundError:
            raise NotFound(f"{self._path(name)}: is not there") from None
        except OSError as error:
            raise Unavailable(f"{self._path(name)}: {error.strerror}") from error

    def names(self, prefix: str) -> list[str]:
        root = str(self.options["path"])
        if not os.path.isdir(root):
            raise Unavailable(f"{root}: is not there; mount or make the repository {self.name}")
        try:
            found = sorted(os.listdir(self._path(prefix)))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Unavailable(f"{self._path(prefix)}: {error.strerror}") from error
        return [os.path.join(prefix, name) for name in found if not name.endswith(".new")]

    def delete(self, name: str) -> None:
        path = self._path(name)
        try:
            os.unlink(path)
            fsync_directory(os.path.dirname(path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror}") from error

    def restic(self) -> tuple[str, dict[str, str]]:
        return self._path("restic"), {}


KINDS: dict[str, type[Repository]] = {"path": LocalPath}


def open_repository(settings: Mapping[str, Any]) -> Repository:
    """The repository that the settings describe: kind, name, key_file and what its kind takes.

    :raises Refused: for an unknown kind.
    :raises WrongKey: see :meth:`Key.load`.
    """
    kind = KINDS.get(str(settings.get("kind")))
    if kind is None:
        raise Refused(f"repository: kind: {settings.get('kind')!r} is none of {', '.join(sorted(KINDS))}")
    return kind(str(settings.get("name") or "main"), Key.load(str(settings["key_file"])), settings)
