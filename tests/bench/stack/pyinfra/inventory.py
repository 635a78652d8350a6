"""The smaller stack's hosts for pyinfra; the same names and addresses as ../inventory has for Ansible."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "scripts"))

from fleet_settings import USER, settings

FLEET = settings()
NUMBERS = {"web1": 11, "web2": 12, "cache1": 21, "cache2": 22, "db1": 31, "db2": 32, "node1": 41, "node2": 42}
ADDRESSES = {name: FLEET.address(number) for name, number in NUMBERS.items()}


def known(*names: str) -> list[dict[str, str]]:
    # The keys that Ansible's hostvars have, because the templates are shared.
    return [{"inventory_hostname": name, "ansible_host": ADDRESSES[name]} for name in names]


COMMON = {
    "ssh_user": USER,
    "ssh_key": str(FLEET.key),
    "ssh_known_hosts_file": str(FLEET.known_hosts),
    "_sudo": True,
    "password": os.environ.get("BENCH_PASSWORD", ""),
    "pki": os.environ.get("BENCH_PKI", ""),
    "backends": known("node1", "node2"),
    "clients": known("web1", "web2", "node1"),
}


def hosts(*names: str) -> list[tuple[str, dict[str, object]]]:
    return [(name, {"ssh_hostname": ADDRESSES[name], "address": ADDRESSES[name], **COMMON}) for name in names]


nginx = hosts("web1")
haproxy = hosts("web2")
redis = hosts("cache1", "cache2")
db = hosts("db1", "db2")
node = hosts("node1", "node2")
