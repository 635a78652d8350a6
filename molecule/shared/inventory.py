#!/usr/bin/env python3
"""Inventory of the hosts that stand in a scenario's fleet; empty until they are booted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from fleet_settings import settings  # noqa: E402

fleet = settings()
standing = json.loads(fleet.inventory.read_text())["all"] if fleet.inventory.exists() else {"vars": {}, "hosts": {}}
json.dump(
    {
        "all": {"vars": standing["vars"], "hosts": list(standing["hosts"])},
        # Hosts that a scenario only names (provisioner.inventory.hosts), as members of groups: no playbook goes there.
        "elsewhere": {"hosts": []},
        "_meta": {"hostvars": standing["hosts"]},
    },
    sys.stdout,
)
