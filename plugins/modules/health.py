#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: health
short_description: Run all health checks of a host at once
version_added: 0.1.0
description:
  - Runs many checks at once under one deadline and gives each of them a state, V(ok), V(warn), V(crit) or V(unknown),
    and the host a verdict.
  - Without O(checks) it runs what the roles of the host have announced in C(/etc/vmfleet/checks.d).
  - Fails when a check is V(crit) or V(unknown), and when there is no check at all. A check that hangs does not hold up
    the others or the run.
  - Announced checks are run by the C(vmfleet-health) that role C(base) has put on the host, if it is of the
    controller's version; nothing is transferred then.
  - The types of checks and their keys are in C(docs/health.md) of the collection.
options:
  checks:
    description: Checks to run instead of the announced ones.
    type: list
    elements: dict
  tags:
    description: Only checks with one of these tags. A check's role, service and type count as its tags.
    type: list
    elements: str
    default: []
  skip_tags:
    description: No checks with one of these tags.
    type: list
    elements: str
    default: []
  deadline:
    description: Seconds after which there is a verdict, whatever is still open.
    type: float
    default: 30.0
  wait:
    description: Seconds during which checks that are not good are tried again.
    type: float
    default: 0.0
  fail:
    description: Whether the task fails when the host is not healthy. Without it the verdict is only returned.
    type: bool
    default: true
  directory:
    description: Where the announced checks are.
    type: path
    default: /etc/vmfleet/checks.d
author: vmfleet.ops maintainers (@vmfleet)
attributes:
  check_mode:
    description: Nothing is changed. Checks of type C(command) are run as well; they must only look.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
"""

EXAMPLES = r"""
- name: Prove what the roles of this host have announced
  vmfleet.ops.health:

- name: Give a new release half a minute to become healthy
  vmfleet.ops.health:
    wait: 30
    deadline: 60
    checks:
      - name: the API answers in time
        type: http
        url: http://127.0.0.1:8081/ready
        json: {status: ready, dependencies.database: ok}
        success_threshold: 3
        samples: 20
        latency: {p95: {warn: 100, crit: 500}}
      - {type: systemd, unit: api, enabled: true}
      - {type: disk, path: /, warn: 80, crit: 90}
"""

RETURN = r"""
verdict:
  description: The worst state of all checks, where V(crit) comes before V(unknown).
  type: str
  returned: when the checks could be read
healthy:
  description: Whether no check is V(crit) or V(unknown).
  type: bool
  returned: when the checks could be read
counts:
  description: Number of checks in each state.
  type: dict
  returned: when the checks could be read
seconds:
  description: What the run took.
  type: float
  returned: when the checks could be read
results:
  description: One entry for each check.
  type: list
  elements: dict
  returned: when the checks could be read
  contains:
    name: {description: The check., type: str}
    role: {description: The role that announced it., type: str}
    state: {description: Its state., type: str}
    message: {description: What was seen., type: str}
    latency_ms: {description: "Percentiles p50, p95, p99 and max in milliseconds.", type: dict}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils._health.cli import ARGUMENT_SPEC, judged, look


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    given = dict(module.params)
    fail = given.pop("fail")
    result = judged(look(**given), fail)
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
