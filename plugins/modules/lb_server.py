#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: lb_server
short_description: Drain a server, make it ready or weigh it, on every load balancer
version_added: 0.1.0
description:
  - Sets a server on all load balancers with one task, whatever host the task is for. If one balancer cannot do it, the
    others go back to what they had, and the task fails.
  - A drained server gets no new request, not even of clients that stick to it; what stands goes on to its end.
    A server that becomes ready must first answer on the readiness path of its service, asked from each balancer.
  - The setting survives reloads and restarts of the balancer and runs of the roles M(vmfleet.ops.converge) of C(nginx)
    and C(haproxy), which neither undo nor report it.
  - HAProxy is told on its runtime socket. For nginx a small file is kept, checked with the rest of the configuration,
    and taken over by a reload.
options:
  name:
    description: The server, by its inventory name.
    type: str
    required: true
  services:
    description: Services in which it is set; all that it belongs to by default.
    type: list
    elements: str
    default: []
  state:
    description: Whether it gets new requests. Without it only O(weight) is set.
    type: str
    choices: [drain, ready]
  weight:
    description:
      - Its share of requests, in per cent of what the inventory declares. 0 gives it none. Kept until it is set again.
    type: int
  former:
    description: The RV(former) of an earlier task, to be put back as it was.
    type: dict
  balancers:
    description: Groups or hosts that balance; all of them are set.
    type: list
    elements: str
    default: [lb]
  least:
    description: Servers that every service of it must have left. What would leave fewer is refused.
    type: int
    default: 1
  timeout:
    description:
      - Seconds to wait, for the end of the sessions of a drained server or for the readiness of one that becomes ready.
        0 does not wait for sessions.
    type: int
    default: 60
  on_timeout:
    description:
      - What becomes of a drain whose sessions have not ended in time. V(fail) puts the former state back and fails,
        V(keep) fails and leaves it drained, V(proceed) goes on and returns the number of sessions.
    type: str
    choices: [fail, keep, proceed]
    default: fail
  phase:
    description: Which half of the work a balancer does; set by the module itself.
    type: str
    choices: [apply, wait]
    default: apply
attributes:
  check_mode:
    support: full
    description: Says what would change, and refuses what would be refused.
  diff_mode:
    support: full
    description: The settings of each balancer and backend.
  action:
    support: full
    description: Speaks to all balancers at once from the controller.
notes:
  - The connection of the task's own host is not used. The balancers are reached as the inventory says, as root.
  - Stickiness by address moves the clients of a drained server to others, and back when it is ready again.
author: vmfleet.ops maintainers (@vmfleet)
"""

EXAMPLES = r"""
- name: Roll through the application hosts
  hosts: app
  gather_facts: false
  serial: 1
  tasks:
    - name: Take the host out
      vmfleet.ops.lb_server:
        name: "{{ inventory_hostname }}"
        state: drain
        timeout: 120
      register: drained

    - name: Update the application
      ansible.builtin.import_role:
        name: vmfleet.ops.app_service

    - name: Put the host back as it was, once it is ready
      vmfleet.ops.lb_server:
        name: "{{ inventory_hostname }}"
        former: "{{ drained.former }}"

    - name: Give a new host a tenth of its share
      vmfleet.ops.lb_server:
        name: api4
        services: [api]
        weight: 10
"""

RETURN = r"""
former:
  description: State and weight before, by balancer and backend; can be given as O(former).
  type: dict
  returned: success
  sample: {lb1: {api: {state: ready, weight: 100}}}
settings:
  description: State and weight now, in the same form.
  type: dict
  returned: success
sessions:
  description: Sessions that were left with a drained server when the task ended, by balancer.
  type: dict
  returned: when they were waited for
  sample: {lb1: 0, lb2: 0}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils._host import CommandError
from ansible_collections.vmfleet.ops.plugins.module_utils._lb_server import LbServerError, await_end, change


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "services": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["drain", "ready"]},
            "weight": {"type": "int"},
            "former": {"type": "dict"},
            "balancers": {"type": "list", "elements": "str", "default": ["lb"]},
            "least": {"type": "int", "default": 1},
            "timeout": {"type": "int", "default": 60},
            "on_timeout": {"type": "str", "choices": ["fail", "keep", "proceed"], "default": "fail"},
            "phase": {"type": "str", "choices": ["apply", "wait"], "default": "apply"},
        },
        required_one_of=[("state", "weight", "former")],
        mutually_exclusive=[("former", "state"), ("former", "weight")],
        supports_check_mode=True,
    )
    given = module.params
    try:
        if given["phase"] == "wait":
            module.exit_json(changed=False, sessions=await_end(given["name"], given["services"], given["timeout"]))
        result = change(
            given["name"],
            given["services"],
            given["state"],
            given["weight"],
            given["former"],
            given["least"],
            given["timeout"],
            module.check_mode,
        )
    except LbServerError as error:
        module.fail_json(msg=str(error))
    except CommandError as error:
        module.fail_json(msg=f"{error}: {(error.outcome.stderr or error.outcome.stdout).strip()}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
