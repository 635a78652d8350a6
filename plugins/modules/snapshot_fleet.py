#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: snapshot_fleet
short_description: Take one step of a snapshot set that several hosts make of the same moment
version_added: 0.1.0
description:
  - All hosts take the steps together, one task for each step with the linear strategy and C(any_errors_fatal), as
    C(playbooks/snapshot.yml) does. A host on which a step fails throws its part away; the others are told by
    O(step=discard). One that is told nothing lets writers go on after O(fence_seconds), and other runs after O(lease).
  - A set of a fleet is whole, and can be restored as one, when all parts are sealed and the first of them is noted as
    complete. Filter P(vmfleet.ops.fleet_sets#filter) says which are.
  - How it works is in C(docs/snapshots.md) of the collection.
options:
  step:
    description:
      - V(hold) proves that everything can be copied and keeps other runs off the host. V(copy) copies what takes long.
        V(fence) has writers wait, and may be left out. V(mark) is the moment. V(release) lets writers go on. V(finish)
        makes all durable. V(seal) seals this host's part. V(complete) notes that all parts are sealed.
      - V(discard) throws this host's part away, unless it is noted as complete.
    type: str
    choices: [hold, copy, fence, mark, release, finish, seal, complete, discard]
    required: true
  attempt:
    description: A name of this attempt, the same on all hosts and another one each time.
    type: str
    required: true
  name:
    description: The set, the same on all hosts.
    type: str
    required: true
  hosts:
    description: For V(step=seal) all hosts that have a part.
    type: list
    elements: str
    default: []
  full:
    description: For V(step=hold) whether the copies stand alone instead of being built on former ones.
    type: bool
    default: false
  reason:
    description: For V(step=hold) a word for people, kept with the set.
    type: str
    default: ""
  attempted:
    description: >-
      For V(step=hold) the time of the attempt in UTC, the same on all hosts: retention judges all parts by it, so that
      hosts with equal rules keep the same sets. Without it each part is judged by its own moment.
    type: str
    default: ""
  fence_seconds:
    description: For V(step=fence) the time for which writers wait at most.
    type: float
    default: 30.0
  lease:
    description: For V(step=hold) the seconds after each step for which other runs wait for the next one.
    type: float
    default: 3600.0
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
    description: V(step=hold) proves that a copy can begin and estimates its size; the other steps do nothing.
    support: full
  diff_mode:
    description: There is no text to compare.
    support: none
"""

EXAMPLES = r"""
- name: Hold all hosts
  vmfleet.ops.snapshot_fleet:
    step: hold
    attempt: before-upgrade 2026-11-25T19:00:00Z
    name: before-upgrade
    reason: PostgreSQL 17.3
"""

RETURN = r"""
estimate:
  description: What this host's part holds, by source; empty on a host that has nothing to save, such as a replica.
  type: list
  elements: dict
  returned: with V(step=hold)
problems:
  description: How something can have been written in spite of the fence; then the part is worth C(barrier) only.
  type: list
  elements: str
  returned: with V(step=release)
set:
  description: The manifest of this host's part, with consistency, size and stored bytes.
  type: dict
  returned: with V(step=seal) and V(step=complete)
code:
  description: What kind of failure it was, after sysexits.h.
  type: int
  returned: on failure
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.engine import Engine
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.fleet import Part
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot_module import serve


def take(engine: Engine, given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    part = Part(engine, given["attempt"], given["wait"])
    step = given["step"]
    if check_mode:
        return {"changed": step != "discard", **({"estimate": part.estimate()} if step == "hold" else {})}
    if step == "discard":
        return {"changed": part.discard(given["name"])}
    if step == "hold":
        names = ("full", "reason", "lease", "attempted")
        estimate = part.hold(given["name"], **{name: given[name] for name in names})
        return {"changed": bool(estimate), "estimate": estimate}
    if step == "fence":
        part.fence(given["fence_seconds"])
    elif step == "release":
        return {"changed": True, "problems": part.release()}
    elif step == "seal":
        return {"changed": True, "set": engine.shown(part.seal(given["hosts"]))}
    elif step == "complete":
        return {"changed": True, "set": engine.shown(part.complete(given["name"]))}
    else:
        {"copy": part.copy, "mark": part.mark, "finish": part.finish}[step]()
    return {"changed": True}


def main() -> None:
    steps = ["hold", "copy", "fence", "mark", "release", "finish", "seal", "complete", "discard"]
    module = AnsibleModule(
        argument_spec={
            "step": {"type": "str", "choices": steps, "required": True},
            "attempt": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "hosts": {"type": "list", "elements": "str", "default": []},
            "full": {"type": "bool", "default": False},
            "reason": {"type": "str", "default": ""},
            "attempted": {"type": "str", "default": ""},
            "fence_seconds": {"type": "float", "default": 30.0},
            "lease": {"type": "float", "default": 3600.0},
            "repository": {"type": "str", "default": ""},
            "wait": {"type": "float", "default": 600.0},
        },
        supports_check_mode=True,
    )
    serve(module, take)


if __name__ == "__main__":
    main()
