#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: converge_apply
short_description: Carry out the plan of M(vmfleet.ops.converge) on a host
version_added: 0.1.0
description:
  - The host's half of M(vmfleet.ops.converge), which calls it when something differs. Tasks do not call it.
  - Takes the host's lock, takes back a transaction that was killed, and makes the change as one transaction.
author: vmfleet.ops maintainers (@vmfleet)
options:
  payload:
    description: The plan as JSON in base64. Never shown, because it may hold secrets.
    type: str
    required: true
attributes:
  check_mode:
    description: Stages and validates the files and leaves nothing behind.
    support: full
  diff_mode:
    description: The calling action makes the diff.
    support: none
"""

EXAMPLES = r"""
- name: Converge a role; the action calls this module when something differs
  vmfleet.ops.converge:
    name: motd
    files:
      - dest: /etc/motd
        content: "Managed by vmfleet.ops\n"
"""

RETURN = r"""
stale:
  description: Another run changed the host since it was looked at, or a killed one was taken back; look again.
  type: bool
  returned: when nothing was done for this reason
recovered:
  description: Roles whose killed transactions were taken back.
  type: list
  elements: str
  returned: with RV(stale)
awaiting_word:
  description: Seconds within which the controller must confirm a firewall change before it is taken back.
  type: int
  returned: after a change that could lock the controller out
warnings:
  description: That the change cannot be taken back later, and why.
  type: list
  elements: str
  returned: when that is so
phase:
  description: The phase that failed.
  type: str
  returned: on failure
"""

import base64
import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils._transaction import TransactionError, carry_out


def main() -> None:
    module = AnsibleModule(
        argument_spec={"payload": {"type": "str", "required": True, "no_log": True}},
        supports_check_mode=True,
    )
    payload = json.loads(base64.b64decode(module.params["payload"]))
    try:
        result = carry_out(payload, check_mode=module.check_mode)
    except TransactionError as error:
        module.fail_json(msg=str(error), **error.result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
