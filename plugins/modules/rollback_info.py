#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollback_info
short_description: List the changes of a host that can be taken back
version_added: 0.1.0
description:
  - Reads what M(vmfleet.ops.converge) has kept on the host. M(vmfleet.ops.rollback) takes it back.
author: vmfleet.ops maintainers (@vmfleet)
requirements:
  - root on the host, for example by C(become)
attributes:
  check_mode:
    description: Nothing is changed.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
"""

EXAMPLES = r"""
- name: Look at the history
  vmfleet.ops.rollback_info:
  register: changes
"""

RETURN = r"""
history:
  description: The changes, the newest first.
  type: list
  elements: dict
  returned: success
  contains:
    change: {description: Its name; names sort by time., type: str}
    committed: {description: "When its last role was committed, in UTC by the host's clock.", type: str}
    roles: {description: What it changed., type: list}
unfinished:
  description: Changes whose taking back was begun and not finished. The next run of any role does that.
  type: list
  elements: str
  returned: success
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils import _history


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    if os.geteuid() != 0:
        module.fail_json(msg="what is kept of changes is for root only; set become: true")
    module.exit_json(changed=False, history=_history.listed(_history.changes()), unfinished=_history.unfinished())


if __name__ == "__main__":
    main()
