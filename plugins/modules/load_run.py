#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: load_run
short_description: Send the load of M(vmfleet.ops.load_test) from a host
version_added: 0.1.0
description:
  - The load host's half of M(vmfleet.ops.load_test), which calls it with targets that the inventory allows. Tasks do
    not call it.
author: vmfleet.ops maintainers (@vmfleet)
options:
  targets:
    description: Each with C(name), C(host), C(path), C(address), C(port) and C(rate).
    type: list
    elements: dict
    required: true
  duration:
    description: Seconds.
    type: int
    required: true
  http2:
    description: Whether to speak HTTP/2.
    type: bool
    required: true
attributes:
  check_mode:
    description: The calling action does not call it in check mode.
    support: none
  diff_mode:
    description: Nothing is changed.
    support: none
"""

EXAMPLES = r"""
- name: Load the sites; the action calls this module
  vmfleet.ops.load_test:
    rate: 20
"""

RETURN = r"""
targets:
  description: The targets with what came of each.
  type: list
  elements: dict
  returned: success
total:
  description: All requests together.
  type: dict
  returned: success
"""

import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils._host import PATH
from ansible_collections.vmfleet.ops.plugins.module_utils._load_run import GENERATOR, measure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "targets": {"type": "list", "elements": "dict", "required": True},
            "duration": {"type": "int", "required": True},
            "http2": {"type": "bool", "required": True},
        },
    )
    if not shutil.which(GENERATOR, path=PATH):
        module.fail_json(msg=f"{GENERATOR} is missing on the load host; install nghttp2-client there")
    given = module.params
    module.exit_json(changed=False, **measure(given["targets"], given["duration"], given["http2"]))


if __name__ == "__main__":
    main()
