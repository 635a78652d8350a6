#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: restore
short_description: Restore a snapshot set, or a point in time
version_added: 0.1.0
description:
  - Restores beside the live data first, proves what came of it, and only then swaps. The former data stay on the host
    until V(state=committed), and V(state=undone) brings them back.
  - Only one restore is open on a host at a time.
  - How it works is in C(docs/snapshots.md) of the collection.
options:
  state:
    description:
      - V(restored) restores. V(committed) keeps what was restored and removes the former data. V(undone) puts the
        former data back; what was written since the restore is lost.
    type: str
    choices: [restored, committed, undone]
    default: restored
  name:
    description: The set; by default the newest one, or for a point in time the newest before it.
    type: str
    default: ""
  fleet:
    description:
      - Attempt of several hosts that the set has to be a part of. Whether it is whole is for the caller to see, by
        filter P(vmfleet.ops.fleet_sets#filter).
    type: str
    default: ""
  sources:
    description: Sources to restore; by default all of the set, and for a point in time those that have such points.
    type: list
    elements: str
    default: []
  time:
    description: A point in time in ISO 8601 with its zone, such as V(2026-11-25T19:00:00Z). Exact to the transaction.
    type: str
    default: ""
  restore_point:
    description: A named restore point.
    type: str
    default: ""
  lsn:
    description: A position in the log.
    type: str
    default: ""
  latest:
    description: Whether everything that is in the archive is restored.
    type: bool
    default: false
  database:
    description: One database of a source that has several.
    type: str
    default: ""
  confirm:
    description: For V(state=restored) the name of the host as role C(vmfleet.ops.backup) has it (C(backup_host)).
    type: str
    default: ""
  repository:
    description: Name of one of the host's repositories (C(backup_repositories)); the first by default.
    type: str
    default: ""
  wait:
    description: Seconds to wait for another run on the host.
    type: float
    default: 600.0
author: vmfleet.ops maintainers (@vmfleet)
attributes:
  check_mode:
    description: Tells what would be restored from what; needs no confirmation.
    support: full
  diff_mode:
    description: There is no text to compare.
    support: none
"""

EXAMPLES = r"""
- name: Bring the database back to the moment before the mistake
  vmfleet.ops.restore:
    sources: [postgresql]
    time: "2026-11-25T18:59:59Z"
    confirm: db1

- name: Keep what was restored
  vmfleet.ops.restore:
    state: committed
"""

RETURN = r"""
set:
  description: The set that was restored, committed or undone.
  type: str
  returned: when there was one
choices:
  description: What would be restored, by source.
  type: dict
  returned: in check mode
proven:
  description: What was proven of the restored data before they were swapped in, by source.
  type: dict
  returned: with V(state=restored)
code:
  description: What kind of failure it was, after sysexits.h.
  type: int
  returned: on failure
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.engine import Engine
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import Refused
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.sources import Target
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot_module import serve


def restored(engine: Engine, given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    moments = [name for name in ("time", "restore_point", "lsn", "latest") if given[name]]
    if len(moments) > 1:
        raise Refused(f"{', '.join(moments)}: name different moments; give one of them")
    target = Target(given["time"], given["restore_point"], given["lsn"], given["latest"], given["database"])
    if check_mode:
        return {"changed": True, **engine.choose(given["name"], given["sources"], target, given["fleet"])}
    if given["confirm"] != engine.host:
        raise Refused(
            f"confirm: is {given['confirm']!r}; a restore of this host wants {engine.host!r}. Nothing was changed"
        )
    done = engine.restore(given["name"], given["sources"], target, given["wait"], set_of=given["fleet"])
    return {"changed": True, **done}


def concluded(engine: Engine, given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    entry = engine.pending() if check_mode else engine.conclude(given["state"] == "committed", given["wait"])
    return {"changed": entry is not None, **({"set": entry["set"]} if entry else {})}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["restored", "committed", "undone"], "default": "restored"},
            "name": {"type": "str", "default": ""},
            "fleet": {"type": "str", "default": ""},
            "sources": {"type": "list", "elements": "str", "default": []},
            "time": {"type": "str", "default": ""},
            "restore_point": {"type": "str", "default": ""},
            "lsn": {"type": "str", "default": ""},
            "latest": {"type": "bool", "default": False},
            "database": {"type": "str", "default": ""},
            "confirm": {"type": "str", "default": ""},
            "repository": {"type": "str", "default": ""},
            "wait": {"type": "float", "default": 600.0},
        },
        supports_check_mode=True,
    )
    serve(module, restored if module.params["state"] == "restored" else concluded)


if __name__ == "__main__":
    main()
