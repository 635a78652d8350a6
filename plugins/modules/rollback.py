#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

# The host's half; the action plugin of the same name calls it.

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollback
short_description: Take back a change that M(vmfleet.ops.converge) has made
version_added: 0.1.0
description:
  - Puts back, on a host, all that one run of Ansible changed there by M(vmfleet.ops.converge), although it was
    committed. Files, packages, accounts, kernel settings, firewall rules and services become what they were before that
    run, role by role, the newest first; commands are undone where they say how.
  - Refused before anything is changed if something is no longer as the change left it, or if a former version of a
    package cannot be had any more.
  - Killed half way, it is finished by the next run of any role or of this module.
  - Before former firewall rules are put back for good, the controller must have reached the host through them over a
    new connection. If it cannot, they go again and nothing else is touched.
  - What was taken back is gone from the history; the next rollback goes one change further back. Data of services are
    not touched.
  - How it works is in C(docs/converge.md) of the collection; C(playbooks/rollback.yml) does it for a fleet.
author: vmfleet.ops maintainers (@vmfleet)
requirements:
  - root on the host, for example by C(become)
options:
  change:
    description: Name of the change, as in RV(history); by default the last one of the host.
    type: str
    default: ""
  force:
    description: Take it back also if something was changed since then, by hand or by a later change. That is lost.
    type: bool
    default: false
  confirm_timeout:
    description: Seconds within which the controller must get in through former firewall rules.
    type: int
    default: 30
  lock_timeout:
    description: Seconds to wait for another run that is changing the host.
    type: int
    default: 300
attributes:
  check_mode:
    description: Lists the history and tells what would come back, with the refusals of a real run.
    support: full
  diff_mode:
    description: The texts of files that are not sensitive and that everybody may read.
    support: full
"""

EXAMPLES = r"""
- name: See what the last change was, and what taking it back would mean
  vmfleet.ops.rollback:
  check_mode: true
  register: rollback

- name: Take it back
  vmfleet.ops.rollback:
    change: "{{ rollback.change }}"
"""

RETURN = r"""
change:
  description: The change that was, or would be, taken back.
  type: str
  returned: when there is one
  sample: 20261126T082157Z-x8f9a2kq
roles:
  description: Its roles, in the order in which they are taken back.
  type: list
  elements: str
  returned: success
changes:
  description: What came, or would come, back; one sentence for each resource.
  type: list
  elements: str
  returned: success
  sample: ["file /etc/nginx/nginx.conf: former content", "service nginx.service: reloaded"]
stays:
  description: Commands of these roles whose effect stays, because they do not say how to undo it.
  type: list
  elements: str
  returned: success
history:
  description: The changes that are kept on the host now, the newest first.
  type: list
  elements: dict
  returned: success
  contains:
    change: {description: Its name; names sort by time., type: str}
    committed: {description: "When its last role was committed, in UTC by the host's clock.", type: str}
    roles: {description: What it changed., type: list}
recovered:
  description: Roles whose unfinished transactions were, or would be, taken back first.
  type: list
  elements: str
  returned: success
drift:
  description: What was changed since.
  type: list
  elements: str
  returned: when refused for that
phase:
  description: V(look) when nothing was changed.
  type: str
  returned: on failure
awaiting_word:
  description: Of the host's half only; seconds within which the controller has to get in.
  type: int
  returned: while former firewall rules are on trial
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils._rollback import ARGUMENT_SPEC, roll_back
from ansible_collections.vmfleet.ops.plugins.module_utils._transaction import TransactionError


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    if os.geteuid() != 0:
        module.fail_json(msg="the host must be changed as root; set become: true")
    try:
        result = roll_back(module.params, check_mode=module.check_mode, diff=module._diff)
    except TransactionError as error:
        module.fail_json(msg=str(error), **error.result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
