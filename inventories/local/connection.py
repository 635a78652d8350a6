#!/usr/bin/env python3
"""The part of the local inventory that differs between checkouts: network, ssh key and generated passwords."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from fleet_settings import settings  # noqa: E402

SECRETS = ("backup", "database", "replication", "redis")

fleet = settings()
variables: dict[str, object] = {
    **fleet.connection_vars(),
    "fleet_network": str(fleet.subnet.network_address).rpartition(".")[0],
    "fleet_state": str(fleet.state),
    # Plain values, because a lookup would run again for every template that asks.
    "fleet_secrets": {name: fleet.secret(name) for name in SECRETS},
}
json.dump({"all": {"vars": variables}, "_meta": {"hostvars": {}}}, sys.stdout)
