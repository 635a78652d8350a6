# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""restic, which keeps whatever is files: it compresses, encrypts with authentication, and stores equal parts once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .model import Damaged, EngineFailed, NotFound
from .sources import Context


class Restic:
    """A source's trees in the restic part of the repository. Snapshots carry host, set and source as tags."""

    def __init__(self, context: Context, source: str) -> None:
        self.context = context
        self.source = source

    def _run(self, purpose: str, *arguments: str) -> str:
        address, environment = self.context.repository.restic()
        environment = {
            # Names in the environment, which only root sees, and the password in neither.
            **environment,
            "RESTIC_REPOSITORY": address,
            "RESTIC_PASSWORD_FILE": self.context.repository.key.path,
            "RESTIC_CACHE_DIR": "/var/cache/vmfleet/restic",
            "RESTIC_PROGRESS_FPS": "0.1",
        }
        return self.context.command(purpose, ["restic", *arguments], environment=environment).stdout

    def version(self) -> str:
        """Such as ``restic 0.18.0``."""
        return " ".join(self._run("ask restic for its version", "version").split()[:2])

    def open(self) -> None:
        """Makes the repository when there is none. :raises EngineFailed: also when the key is not its key."""
        try:
            self._run("open the restic repository", "cat", "config")
        except EngineFailed as error:
            # The words of restic for each kind of repository; exit code 10 says the same from 0.17 on.
            if not any(
                words in str(error) for words in ("Is there a repository at the following location", "ended with 10")
            ):
                raise
            self._run("make the restic repository", "init")

    def unlock(self) -> None:
        """Removes the locks of processes that are gone."""
        self._run("remove stale locks of restic", "unlock")

    def save(self, set_id: str, paths: Sequence[str], *options: str) -> dict[str, Any]:
        """Saves files and folders under their own paths. Returns restic's summary, with ``snapshot_id``."""
        tags = f"set={set_id},source={self.source}"
        host = self.context.host
        shown = self._run(
            f"save {self.source} with restic", "backup", "--json", "--host", host, "--tag", tags, *options, "--", *paths
        )
        summaries = [entry for entry in map(json.loads, shown.splitlines()) if entry.get("message_type") == "summary"]
        if not summaries:
            raise EngineFailed(f"save {self.source} with restic: it told no summary")
        # Before 0.15 the summary has the short form of it.
        ids = [entry["id"] for entry in self.snapshots() if entry["id"].startswith(summaries[-1]["snapshot_id"])]
        return {**summaries[-1], "snapshot_id": ids[-1]}

    def snapshots(self) -> list[dict[str, Any]]:
        """All of this source and host."""
        found = self._run(
            "list what restic has", "snapshots", "--json", "--host", self.context.host, "--tag", f"source={self.source}"
        )
        return list(json.loads(found) or [])

    def restore(self, snapshot: str, target: str, *options: str) -> None:
        """Restores a snapshot into a folder; what it holds keeps its whole path below that.

        :raises NotFound: when there is no such snapshot. :raises Damaged: when it cannot be read in full.
        """
        try:
            self._run(f"restore {self.source} with restic", "restore", snapshot, "--target", target, *options)
        except EngineFailed as error:
            if "no matching ID" in str(error) or "no snapshot found" in str(error):
                raise NotFound(str(error)) from error
            raise Damaged(str(error)) from error

    def check(self, read_all: bool) -> None:
        """Proves the repository's structure, and with ``read_all`` every byte of it. :raises Damaged:"""
        try:
            self._run("check the restic repository", "check", *(["--read-data"] if read_all else []))
        except EngineFailed as error:
            raise Damaged(str(error)) from error

    def keep(self, labels: Sequence[str]) -> None:
        """Removes all snapshots of this source and host but those."""
        unwanted = [entry["id"] for entry in self.snapshots() if entry["id"] not in labels]
        if unwanted:
            self._run("remove what no set needs with restic", "forget", "--prune", *unwanted)
