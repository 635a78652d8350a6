# Copyright: vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: lb_model
short_description: Resolve the load balancers' routing model
version_added: 0.1.0
author: vmfleet.ops maintainers (@vmfleet)
description:
  - Turns sites and routes, services and inventory groups into the one description that the roles
    C(vmfleet.ops.nginx) and C(vmfleet.ops.haproxy) render.
  - Reports all faults of the model at once, each with the variable, its value and what to do about it - duplicate
    routes and host names, unknown services, groups, keys and ciphers, values out of range.
  - A service whose group is empty is no fault. Its routes have no members, and the balancers answer 503.
positional: _input, services, groups, hostvars
options:
  _input:
    description: The sites, as in C(lb_sites).
    type: list
    elements: dict
    required: true
  services:
    description: The services, as in C(vmfleet_services).
    type: dict
    required: true
  groups:
    description: The inventory's groups.
    type: dict
    required: true
  hostvars:
    description:
      - The inventory's host variables. A member's address is its C(vmfleet_address), else its C(ansible_host), else its
        name.
    type: dict
    required: true
  defaults:
    description: Values that routes take when they give none, and limits of failover and health checks.
    type: dict
    default: {}
  headers:
    description: Response headers that add to or replace the built-in security headers; an empty value takes one away.
    type: dict
    default: {}
  ciphers:
    description: Cipher suites for TLS 1.2, by OpenSSL's names, in place of the built-in ones.
    type: list
    elements: str
    default: []
  balancer:
    description: C(nginx) or C(haproxy), to have refused what it cannot do.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Show what the balancers will render
  ansible.builtin.debug:
    msg: "{{ lb_sites | vmfleet.ops.lb_model(vmfleet_services, groups, hostvars) }}"
"""

RETURN = r"""
_value:
  description:
    - Keys C(sites) (with their routes, longest path first), C(hosts), C(upstreams) (one for each service and balance),
      C(backends) (one for each service and set of settings), C(failover), C(acme), C(exempt),
      C(headers), C(hidden_headers), C(ciphers) and C(gzip_min).
  type: dict
"""

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.vmfleet.ops.plugins.module_utils._lb_model import ModelError, build_model


def lb_model(*arguments: Any, **options: Any) -> dict[str, Any]:
    """What build_model returns; its error as one of a filter."""
    try:
        return build_model(*arguments, **options)
    except ModelError as error:
        raise AnsibleFilterError(f"the routing model cannot be rendered: {error}") from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"lb_model": lb_model}
