# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's side of ``diagnose``: takes out the inventory's secrets, writes the archive, says what was seen."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.vmfleet.ops.plugins.module_utils._redaction import (
    Redaction,
    holds_secrets,
    is_named_secret,
    secrets_of_variables,
)


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = {key: value for key, value in self._task.args.items() if value is not None}
        folder = Path(os.path.expanduser(str(arguments.pop("directory", "diagnose"))))
        host = str(variables["inventory_hostname"])
        if not self._task.check_mode:
            _prepare(folder)
        try:
            outcome = self._execute_module(
                module_name="vmfleet.ops.diagnose", module_args=arguments, task_vars=variables
            )
        except AnsibleConnectionFailure:
            self._say(host, "cannot be reached, so there is no bundle of it", [], "COLOR_UNREACHABLE")
            raise
        packed = outcome.pop("bundle", None)
        result.update(outcome)
        if packed is None:
            self._say(host, "gave no bundle", [str(outcome.get("msg", ""))], "COLOR_ERROR")
            return result
        redact = Redaction(self._secrets(variables))
        unpacked = json.loads(zlib.decompress(base64.b64decode(packed)))
        files = {name: redact(text) for name, text in unpacked.items()}
        result["files"] = sorted(files)
        result["findings"] = [redact(line) for line in outcome["findings"]]
        result["incomplete"] = {path: redact(why) for path, why in outcome["incomplete"].items()}
        title = f"{len(files)} files in {outcome['seconds']:g} s"
        if not self._task.check_mode:
            path = folder / f"{host}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz"
            _write(path, host, files)
            result["path"] = str(path)
            title = f"{path}: {title}"
        lines = [*result["findings"], *(f"incomplete: {path}: {why}" for path, why in result["incomplete"].items())]
        self._say(host, title, lines, "COLOR_WARN" if result["findings"] else "COLOR_OK")
        return result

    def _secrets(self, variables: Mapping[str, Any]) -> set[str]:
        """Values of the host's variables that must not be in a bundle."""
        found: set[str] = set()
        for name, raw in variables.items():
            # Whatever else Ansible puts here is about its own run, or about other hosts.
            if name in ("hostvars", "vars", "ansible_facts") or not (is_named_secret(name) or holds_secrets(raw)):
                continue
            try:
                value = self._templar.template(raw)
            except AnsibleError:
                # What cannot be rendered is on no host.
                continue
            found |= secrets_of_variables({name: value})
        return found

    def _say(self, host: str, title: str, lines: list[str], color: str) -> None:
        text = "\n".join([f"{host}: {title}", *(f"    {line}" for line in lines)])
        self._display.display(f"{text}\n", color=getattr(constants, color))


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AnsibleActionFail(f"directory = {str(folder)!r}: {error.strerror}; name a folder to write to") from error


def _write(path: Path, host: str, files: Mapping[str, str]) -> None:
    """The archive, complete or not there at all, and for its owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as handle, tarfile.open(fileobj=handle, mode="w:gz") as archive:
            for name, text in sorted(files.items()):
                content = text.encode()
                entry = tarfile.TarInfo(f"{host}/{name}")
                entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(content))
        os.replace(temporary, path)
    except OSError as error:
        raise AnsibleActionFail(f"{path}: {error.strerror}") from error
