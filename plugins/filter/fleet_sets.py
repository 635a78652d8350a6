# Copyright: vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_sets
short_description: Find the snapshot sets that several hosts have made of the same moment
version_added: 0.1.0
author: vmfleet.ops maintainers (@vmfleet)
description:
  - Puts together what the catalogues of hosts say. A set is whole when every host that has a part has it sealed, and at
    least one part is noted as complete; nothing else may be restored as a set of the fleet.
positional: _input
options:
  _input:
    description: By host the list of its sets, as module M(vmfleet.ops.snapshot_info) returns it.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Look at the catalogues
  vmfleet.ops.snapshot_info:
  register: catalogue

- name: Name the newest set of the fleet
  ansible.builtin.debug:
    msg: "{{ (sets | selectattr('whole') | last).name }}"
  vars:
    sets: >-
      {{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, ['catalogue', 'sets'])))
         | vmfleet.ops.fleet_sets }}
"""

RETURN = r"""
_value:
  description: The sets, the oldest first.
  type: list
  elements: dict
  contains:
    name: {description: Name of the set on each host., type: str}
    attempt: {description: Name of the attempt that made it., type: str}
    reason: {description: A word for people., type: str}
    whole: {description: Whether it may be restored as a set of the fleet., type: bool}
    hosts: {description: The hosts that have a part., type: list}
    missing: {description: Those of them whose part is not there., type: list}
    consistency: {description: What its weakest part is worth., type: str}
    moment: {description: "The time in UTC by which all parts have what was written before.", type: str}
    sealed: {description: "When the last part was sealed, in UTC.", type: str}
    parts: {description: The manifest of each host., type: dict}
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import CLASSES


def fleet_sets(catalogues: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The sets of several hosts among those of each."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for host, sets in catalogues.items():
        for manifest in sets:
            if manifest.get("fleet"):
                found.setdefault(manifest["fleet"]["id"], {})[host] = manifest
    return sorted((_judged(attempt, parts) for attempt, parts in found.items()), key=lambda entry: entry["moment"])


def _judged(attempt: str, parts: dict[str, Mapping[str, Any]]) -> dict[str, Any]:
    manifests = list(parts.values())
    hosts = manifests[0]["fleet"]["hosts"]
    missing = sorted(set(hosts) - set(parts))
    return {
        "name": manifests[0]["id"],
        "attempt": attempt,
        "reason": manifests[0]["reason"],
        "whole": not missing and any(manifest["fleet"]["complete"] for manifest in manifests),
        "hosts": hosts,
        "missing": missing,
        "consistency": min((manifest["consistency"] for manifest in manifests), key=CLASSES.index),
        "moment": min(manifest["fleet"]["began"] for manifest in manifests),
        "sealed": max(manifest["sealed"] for manifest in manifests),
        "parts": parts,
    }


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"fleet_sets": fleet_sets}
