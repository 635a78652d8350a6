# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The sets of a host in a repository.

A set is ``catalogue/<host>/<id>.copying`` while its members are made and ``catalogue/<host>/<id>.json`` from the moment
at which all of them are durable. What has only the first of the two is no set: nobody can restore it, and the next run
sweeps it away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os

from .model import COPYING, Damaged, Manifest, NotFound, Refused, check_id, pack, unpack
from .repository import Repository


class Catalogue:
    """Reads and writes manifests, and nothing else."""

    def __init__(self, repository: Repository, host: str) -> None:
        self.repository = repository
        self.folder = f"catalogue/{check_id(host)}"

    def _name(self, set_id: str, suffix: str) -> str:
        return f"{self.folder}/{check_id(set_id)}.{suffix}"

    def ids(self, suffix: str = "json") -> list[str]:
        """The sets of the host; with ``copying`` those that were begun and not sealed."""
        names = [os.path.basename(name) for name in self.repository.names(self.folder)]
        return [name[: -len(suffix) - 1] for name in names if name.endswith(f".{suffix}")]

    def load(self, set_id: str) -> Manifest:
        """:raises NotFound: when there is no such set.
        :raises Damaged:
        :raises WrongKey: see :func:`unpack`.
        """
        name = self._name(set_id, "json")
        try:
            content = self.repository.get(name)
        except NotFound:
            have = ", ".join(self.ids()[-5:])
            raise NotFound(f"there is no set {set_id}; the newest are {have or 'none at all'}") from None
        manifest = unpack(content, self.repository.key, name)
        if manifest.id != set_id:
            raise NotFound(f"{name}: is the manifest of set {manifest.id}, under another name")
        return manifest

    def all(self) -> list[Manifest]:
        """All sealed sets, the oldest first, by recorded time. :raises Damaged: when one cannot be read."""
        return sorted((self.load(set_id) for set_id in self.ids()), key=lambda manifest: (manifest.sealed, manifest.id))

    def newest(self) -> Manifest:
        """The newest that saves the host. :raises NotFound: when there is none."""
        found = [manifest for manifest in self.all() if not manifest.is_archive]
        if not found:
            raise NotFound("there is no set at all; make one with `vmfleet-backup snapshot`")
        return found[-1]

    def begin(self, manifest: Manifest) -> None:
        """Notes that a set is being made, before anything is.

        :raises Refused: when there is one of that name, or the repository would not keep it as it was told to.
        :raises WrongKey: when there are sets of another key.
        """
        self.repository.ready()
        have = self.ids()
        if manifest.id in have:
            raise Refused(f"set {manifest.id} is there already; sets are never overwritten")
        for newest in have[-1:]:
            with contextlib.suppress(Damaged):
                self.load(newest)
        copying = dataclasses.replace(manifest, state=COPYING)
        self.repository.put(self._name(manifest.id, "copying"), pack(copying, self.repository.key))

    def write(self, manifest: Manifest) -> None:
        """Seals a set, or writes a later state of it. All its members are durable."""
        self.repository.put(self._name(manifest.id, "json"), pack(manifest, self.repository.key))
        self.repository.delete(self._name(manifest.id, "copying"))

    def forget(self, manifest: Manifest) -> None:
        """Takes a set off the catalogue; its members are then nobody's, see :meth:`Source.prune`.

        It is noted as one that was begun first: whatever happens now, the next run sweeps them away.
        """
        copying = dataclasses.replace(manifest, state=COPYING)
        self.repository.put(self._name(manifest.id, "copying"), pack(copying, self.repository.key))
        self.repository.delete(self._name(manifest.id, "json"))

    def swept(self, set_id: str) -> None:
        """Ends what :meth:`begin` noted."""
        self.repository.delete(self._name(set_id, "copying"))
