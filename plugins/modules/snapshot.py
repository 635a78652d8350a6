#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: snapshot
short_description: Make, prove and remove snapshot sets of a host
version_added: 0.1.0
description:
  - A set holds a copy of everything that the roles of the host have announced in C(/etc/vmfleet/backup.d), each made by
    its proven engine, all of them or none. It is sealed when all of it is durable in the repository.
  - The repository and its key are those that role C(vmfleet.ops.backup) has set up on the host.
  - How it works is in C(docs/snapshots.md) of the collection.
options:
  name:
    description:
      - The set. With V(state=present) an existing one is left as it is; without a name a new one is made each time,
        called after the time in UTC.
      - With V(state=verified) it is by default the newest one.
    type: str
    default: ""
  state:
    description:
      - V(present), there is such a set. V(verified), it is proven by the engines' own checks, again if it was before.
        V(absent), it is not there, and neither is what only it needs. V(pruned), there are no sets but those which the
        rules of C(backup_keep) keep; O(name) is of no use then.
    type: str
    choices: [present, verified, absent, pruned]
    default: present
  sources:
    description: Names or types of sources; all by default.
    type: list
    elements: str
    default: []
  full:
    description: Whether the copies stand alone instead of being built on former ones.
    type: bool
    default: false
  thorough:
    description: Whether V(state=verified) also restores everything into a scratch place on the host.
    type: bool
    default: false
  reason:
    description: A word for people, kept with the set.
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
    description: Proves that a copy can begin and estimates its size; nothing is verified.
    support: full
  diff_mode:
    description: There is no text to compare.
    support: none
"""

EXAMPLES = r"""
- name: Make a set before an upgrade
  vmfleet.ops.snapshot:
    name: before-upgrade
    reason: PostgreSQL 17.3

- name: Prove the newest set by a restore into a scratch place
  vmfleet.ops.snapshot:
    state: verified
    thorough: true

- name: Remove the sets that are too old
  vmfleet.ops.snapshot:
    state: pruned
"""

RETURN = r"""
set:
  description: The set's manifest, with consistency, size and stored bytes.
  type: dict
  returned: when there is a set
estimate:
  description: What a set would hold, by source.
  type: list
  elements: dict
  returned: in check mode, when one would be made
proven:
  description: What was proven, by source.
  type: dict
  returned: with V(state=verified)
removed:
  description: Sets that are gone.
  type: list
  elements: str
  returned: with V(state=absent) and V(state=pruned)
kept:
  description: Why each of the other sets stays, by name.
  type: dict
  returned: with V(state=pruned)
code:
  description: What kind of failure it was, after sysexits.h.
  type: int
  returned: on failure
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.engine import Engine
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import Refused
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot_module import serve


def present(engine: Engine, given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    if given["name"] and given["name"] in engine.catalogue.ids():
        return {"changed": False, "set": engine.shown(engine.catalogue.load(given["name"]))}
    if check_mode:
        return {"changed": True, "estimate": engine.estimate(given["sources"])}
    manifest = engine.take(
        given["name"], given["sources"], full=given["full"], reason=given["reason"], wait=given["wait"]
    )
    return {"changed": True, "set": engine.shown(manifest)}


def verified(engine: Engine, given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    if check_mode:
        manifest = engine.catalogue.load(given["name"]) if given["name"] else engine.catalogue.newest()
        return {"changed": True, "set": engine.shown(manifest), "proven": {}}
    manifest, proven = engine.verify(given["name"], thorough=given["thorough"], wait=given["wait"])
    return {"changed": True, "set": engine.shown(manifest), "proven": proven}


def absent(engine: Engine, given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    if not given["name"]:
        raise Refused("name: is empty; name the set that is to be removed")
    there = [given["name"]] if given["name"] in engine.catalogue.ids() else []
    if there and not check_mode:
        engine.remove(there, given["wait"])
    return {"changed": bool(there), "removed": there}


def pruned(engine: Engine, given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    judged = engine.judge()
    if not check_mode and not all(judged.values()):
        judged = engine.prune(given["wait"])
    gone = [set_id for set_id, reasons in judged.items() if not reasons]
    kept = {set_id: reasons for set_id, reasons in judged.items() if reasons}
    return {"changed": bool(gone), "removed": gone, "kept": kept}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": ""},
            "state": {"type": "str", "choices": ["present", "verified", "absent", "pruned"], "default": "present"},
            "sources": {"type": "list", "elements": "str", "default": []},
            "full": {"type": "bool", "default": False},
            "thorough": {"type": "bool", "default": False},
            "reason": {"type": "str", "default": ""},
            "repository": {"type": "str", "default": ""},
            "wait": {"type": "float", "default": 600.0},
        },
        supports_check_mode=True,
    )
    act = {"present": present, "verified": verified, "absent": absent, "pruned": pruned}[module.params["state"]]
    serve(module, act)


if __name__ == "__main__":
    main()
