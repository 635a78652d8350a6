# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Loads once, in the parent process, what every worker would otherwise load again for its first template.

A strategy imports an action plugin before it forks the workers that run it, so what is loaded during the import is in
all of them. Without it preflight takes 84 ms of processor time for a host, with it 58 ms.
"""

from __future__ import annotations

from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import lookup_loader
from ansible.template import Templar

try:
    from ansible.template import trust_as_template as _trust
except ImportError:

    def _trust(value: str) -> str:
        return value


# One of each file of ansible.builtin's filters and tests is enough.
TEMPLATE = "{{ [1] | default([]) | unique | list | length > 0 and 'a' is match('a') and nothing is not defined }}"
# Their documentation is read for their options: 2 ms for each worker.
LOOKUPS = ("ansible.builtin.template", "vmfleet.ops.fleet_certificate")


def warm() -> None:
    """Never fails: what cannot be loaded here is loaded, or missed, where it is needed."""
    try:
        Templar(loader=DataLoader(), variables={}).template(_trust(TEMPLATE))
        for name in LOOKUPS:
            lookup_loader.get(name)
    except AnsibleError:
        return
