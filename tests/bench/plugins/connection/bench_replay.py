# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A host that is not there: answers the probes of a run with what a real host of its kind answered."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.connection import ConnectionBase
from ansible_collections.vmfleet.ops.plugins.action import converge
from ansible_collections.vmfleet.ops.plugins.module_utils._plan import stored_rules

DOCUMENTATION = """
name: bench_replay
short_description: Answers probes from a recording, for tests/bench
description:
  - Reads the folder that the environment variable BENCH_REPLAY names, as tests/bench made it from a recorded run.
  - The stand-in is a host that has converged to whatever it is asked for. Checksums and firewall rules in the answer
    are those of the declaration, because clones have names, addresses and neighbours of their own; everything else is
    what the real host said.
  - Waits as long as the real host took, and starts one process as the ssh connection does.
options:
  replays:
    description: Name of the recorded host that this one stands in for.
    vars:
      - name: inventory_hostname
      - name: bench_replays
"""

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from replay import CONVERGE, key_of, with_nonce  # noqa: E402


class _Asked:
    """The declaration that the script on its way was built from; a worker process carries one task only."""

    desired: dict[str, Any] | None = None


def _remember(original: Any) -> Any:
    @functools.wraps(original)
    def build(desired: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        _Asked.desired = desired
        return original(desired, *args, **kwargs)

    return build


vars(converge)["build_script"] = _remember(vars(converge)["build_script"])


def _rule_lines(desired: dict[str, Any]) -> list[str]:
    lines = []
    for declared in desired["rules"]:
        for rule in stored_rules(declared, ipv6=True):
            keys = ("action", "proto", "port", "destination", "source_port", "source", "direction")
            comment = rule["comment"].encode().hex()
            lines.append(f"### tuple ### {' '.join(rule[key] for key in keys)} comment={comment}")
    return lines


def converged(answer: str, desired: dict[str, Any]) -> str:
    """The recorded answer, as a host gives it that has exactly the declared content and rules."""
    owner = "comment=" + f"vmfleet:{desired['name']}".encode().hex()
    sections = answer.split("\n@@")
    for index, section in enumerate(sections):
        head, _newline, body = section.partition("\n")
        title = head.partition(" ")[2]
        if title == "sha256":
            files = [entry for entry in desired["files"] if entry["state"] == "file"]
            body = "".join(f"{entry['sha256']}  {entry['dest']}\n" for entry in files)
        elif title == "rules":
            others = [line for line in body.split("\n") if line and owner not in line]
            body = "".join(f"{line}\n" for line in others + _rule_lines(desired))
        sections[index] = f"{head}\n{body}"
    return "\n@@".join(sections)


class Connection(ConnectionBase):
    transport = "bench_replay"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        started = time.monotonic()
        host = self.get_option("replays")
        script = (in_data or b"").decode()
        key = key_of(script)
        try:
            recorded = json.loads(Path(os.environ["BENCH_REPLAY"], host, f"{key}.json").read_text())
        except FileNotFoundError as error:
            raise AnsibleConnectionFailure(
                f"{host} was not asked this when it was recorded: {script or cmd}"
            ) from error
        # What ssh costs before it hands over to the master connection.
        subprocess.run(["ssh", "-V"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        answer = recorded["stdout"]
        if key.startswith(CONVERGE) and _Asked.desired is not None:
            answer = converged(answer, _Asked.desired)
        time.sleep(max(0.0, recorded["seconds"] - (time.monotonic() - started)))
        return recorded["rc"], with_nonce(answer, script).encode(), b""

    def put_file(self, in_path: str, out_path: str) -> None:
        raise AnsibleConnectionFailure("nothing can be sent to a host that is not there")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        raise AnsibleConnectionFailure("nothing can be had from a host that is not there")

    def close(self) -> None:
        self._connected = False
