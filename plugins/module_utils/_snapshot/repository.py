# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where sets are kept. A kind of repository says how small objects are put and where the engines find theirs."""

from __future__ import annotations

import abc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._durable import fsync_directory, write_durably
from .model import Key, NotFound, Unavailable

FOLDER = "/etc/vmfleet/backup"


class ResticPlace(NamedTuple):
    """Where restic finds its repository: the address for --repo, and the environment and options that it needs. The
    password's file is no part of it, and no secret is. ``recent`` are options that it knows from 0.15 on."""

    address: str
    environment: Mapping[str, str]
    options: Sequence[str]
    recent: Sequence[str] = ()


@dataclass(frozen=True)
class Repository(abc.ABC):
    """``options`` are its entry in the settings. Names of objects are relative paths."""

    name: str
    key: Key
    options: Mapping[str, Any]

    @property
    def pgbackrest(self) -> str:
        """The file by which pgBackRest knows this repository and no other one."""
        return f"{FOLDER}/{self.name}/pgbackrest.conf"

    def ready(self) -> None:
        """Proves that it would keep a set as it was told to. :raises Refused:"""
        return

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
    def restic(self, host: str) -> ResticPlace:
        """Where restic finds what is of a host. Each has its own: none waits for the locks of others."""


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

    def restic(self, host: str) -> ResticPlace:
        # With two, its default, 50,000 small files take a tenth longer to come back.
        return ResticPlace(self._path(f"restic/{host}"), {}, [], ["--option=local.connections=4"])
