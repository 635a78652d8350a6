#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: snapshot_info
short_description: List the snapshot sets of a host
version_added: 0.1.0
description:
  - Reads the catalogue of the host in its repository; every manifest is proven by the repository's key.
options:
  name:
    description: Only this set.
    type: str
    default: ""
  repository:
    description: Name of one of the host's repositories (C(backup_repositories)); the first by default.
    type: str
    default: ""
author: vmfleet.ops maintainers (@vmfleet)
attributes:
  check_mode:
    description: Nothing is changed.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
"""

EXAMPLES = r"""
- name: Look at the sets
  vmfleet.ops.snapshot_info:
  register: snapshots

- name: Insist on a proven one
  ansible.builtin.assert:
    that: snapshots.sets | selectattr('verified') | list
"""

RETURN = r"""
sets:
  description: The manifests, the oldest first.
  type: list
  elements: dict
  returned: success
  contains:
    id: {description: Name of the set., type: str}
    state: {description: "V(sealed), V(verified) or V(drilled).", type: str}
    sealed: {description: "When it was sealed, in UTC.", type: str}
    consistency: {description: What its weakest member is worth., type: str}
    members: {description: One entry for each source., type: list}
unfinished:
  description: Sets that were begun and not sealed; the next run sweeps them away.
  type: list
  elements: str
  returned: success
restore:
  description: The set whose restore is neither committed nor undone.
  type: str
  returned: when there is one
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.engine import Engine
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot_module import serve


def look(engine: Engine, given: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    sets = [engine.catalogue.load(given["name"])] if given["name"] else engine.catalogue.all()
    pending = engine.pending()
    return {
        "changed": False,
        "sets": [engine.shown(manifest) for manifest in sets],
        "unfinished": engine.catalogue.ids("copying"),
        **({"restore": pending["set"]} if pending else {}),
    }


def main() -> None:
    arguments = {name: {"type": "str", "default": ""} for name in ("name", "repository")}
    serve(AnsibleModule(argument_spec=arguments, supports_check_mode=True), look)


if __name__ == "__main__":
    main()
