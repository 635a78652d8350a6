# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A folder of another host, by OpenSSH's sftp. A file of ssh_config(5) says which host, as whom and with which keys."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence

from .._host import Outcome, run
from .model import Denied, NotFound, Unavailable
from .repository import FOLDER, Repository, ResticPlace

# Seconds for a small object, connection included.
PATIENCE = 120
ABSENT = ("not found", "No such file")
DENIED = ("Permission denied", "Host key verification failed", "no matching host key")
# What OpenSSH ends with when there is no connection.
NO_CONNECTION = 255


class Sftp(Repository):
    """``options``: path, an absolute one on the other host. It is called like the repository in ssh_config."""

    @property
    def _ssh(self) -> list[str]:
        return ["-F", f"{FOLDER}/{self.name}/ssh_config"]

    def _path(self, name: str) -> str:
        return f"{str(self.options['path']).rstrip('/')}/{name}"

    def _batch(self, purpose: str, commands: Sequence[str]) -> Outcome:
        """Gives commands to sftp, which ends with the first one that fails.

        :raises NotFound: when what is asked for is not there. :raises Unavailable: :raises Denied:
        """
        stdin = "".join(f"{command}\n" for command in commands)
        outcome = run(["sftp", *self._ssh, "-b", "-", self.name], stdin=stdin, timeout=PATIENCE)
        if outcome.rc == 0:
            return outcome
        said = " ".join(outcome.stderr.split())[-500:]
        place = f"repository {self.name}: {purpose}: {said or outcome.rc}"
        if any(word in said for word in DENIED):
            raise Denied(f"{place}; look at user, private_key, host_key, and the rights of {self.options['path']}")
        if outcome.rc != NO_CONNECTION and any(word in said for word in ABSENT):
            raise NotFound(place)
        raise Unavailable(f"{place}; look at the network, the host and the room on its disk")

    def put(self, name: str, content: bytes) -> None:
        path = self._path(name)
        folders = [os.path.dirname(name)]
        while os.path.dirname(folders[0]):
            folders.insert(0, os.path.dirname(folders[0]))
        with tempfile.NamedTemporaryFile() as handle:
            handle.write(content)
            handle.flush()
            commands = [
                # One that is there is no error.
                *(f"-mkdir {self._path(folder)}" for folder in folders),
                f"put -f {handle.name} {path}.new",
                f"rename {path}.new {path}",
            ]
            try:
                self._batch(f"put {path}", commands)
            except NotFound as error:
                raise Unavailable(f"{error}; make the folder {self.options['path']} there") from None

    def get(self, name: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            self._batch(f"get {self._path(name)}", [f"get {self._path(name)} {folder}/object"])
            with open(f"{folder}/object", "rb") as handle:
                return handle.read()

    def names(self, prefix: str) -> list[str]:
        purpose = f"list {self._path(prefix)}"
        try:
            said = self._batch(purpose, [f"ls -1 {self._path(prefix)}/"]).stdout
        except NotFound:
            try:
                self._batch(purpose, [f"cd {self.options['path']}"])
            except NotFound as error:
                raise Unavailable(f"{error}; make the folder {self.options['path']} there") from None
            return []
        # It repeats what it was given.
        found = [os.path.basename(line) for line in said.splitlines() if not line.startswith("sftp> ")]
        return sorted(f"{prefix}/{name}" for name in found if name and not name.endswith(".new"))

    def delete(self, name: str) -> None:
        with contextlib.suppress(NotFound):
            self._batch(f"delete {self._path(name)}", [f"rm {self._path(name)}"])

    def restic(self, host: str) -> ResticPlace:
        command = " ".join(["ssh", *self._ssh, self.name, "-s", "sftp"])
        return ResticPlace(
            f"sftp:{self.name}:{self._path(f'restic/{host}')}", {}, ["-o", f"sftp.command={command}"]
        )
