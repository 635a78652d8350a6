"""The whole site on the local fleet, as the tests that look at it share it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lab import HERE, ROOT, Host, Run

PREFIX = f"{os.environ.get('VMFLEET_PREFIX') or 'vmfleet'}-site"
# The subnet follows from the prefix.
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k != "VMFLEET_SUBNET"}, "VMFLEET_PREFIX": PREFIX}
HOSTS = ["lb1", "lb2", "api1", "api2", "api3", "db1", "db2", "pool1", "cache1", "mon1"]


class SiteHost(Host):
    @property
    def container(self) -> str:
        return f"{PREFIX}-{self.name}"


def docker(verb: str, host: Host) -> None:
    subprocess.run(["docker", verb, host.container], check=True, capture_output=True, timeout=60)


def script(*command: str, timeout: int = 900) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout)


def site(
    tmp_path: Path,
    *options: str,
    env: Mapping[str, str] | None = None,
    python: str | None = None,
    playbook: str = "site",
) -> Run:
    record = tmp_path / "record"
    record.write_text("")
    command = [python] if python else ["scripts/python"]
    done = subprocess.run(
        [*command, "-m", "ansible", "playbook", "-i", "inventories/local", f"playbooks/{playbook}.yml", *options],
        cwd=ROOT,
        env={
            **ENVIRONMENT,
            "VMFLEET_RECORD": str(record),
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "record",
            "ANSIBLE_NOCOLOR": "1",
            **(env or {}),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return Run(done.returncode, done.stdout, [json.loads(line) for line in record.read_text().splitlines()])
