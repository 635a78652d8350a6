# Copyright: vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: outside_checks
short_description: Checks that ask for every site through every balancer
version_added: 0.1.0
author: vmfleet.ops maintainers (@vmfleet)
description:
  - Turns the routing model into checks of the kind that M(vmfleet.ops.health) and M(vmfleet.ops.fleet_verdict) take, to
    be run where the users are. For each site and address they prove that the certificate is trusted and is for all
    names of the site, that its C(/health), where it has one, is answered by the service behind it, and that plain HTTP
    leads to HTTPS.
  - Of a site with C(certificate=host) the names are not asked for, because a host's certificate has none but the
    host's.
  - Where the balancers share floating addresses (C(keepalived_addresses)), these are asked in the same way.
positional: _input, balancers, hostvars
options:
  _input:
    description: The model, as the filter P(vmfleet.ops.lb_model#filter) returns it.
    type: dict
    required: true
  balancers:
    description: The balancers.
    type: list
    elements: str
    required: true
  hostvars:
    description:
      - The inventory's host variables. A balancer is asked at its C(ansible_host), else its C(vmfleet_address), else
        its name.
    type: dict
    required: true
  ca:
    description:
      - A file with the fleet's authority, for the sites O(issued) and those with C(certificate=host). What others have
        must be trusted by the system.
    type: str
  issued:
    description: Names of the sites whose certificate is from the fleet's authority (C(certificate=fleet)).
    type: list
    elements: str
    default: []
  http_port:
    description: The balancers' port for HTTP.
    type: int
    default: 80
  https_port:
    description: The balancers' port for HTTPS.
    type: int
    default: 443
"""

EXAMPLES = r"""
- name: Ask for all sites through both balancers
  vmfleet.ops.health:
    checks: "{{ model | vmfleet.ops.outside_checks(groups.lb, hostvars) }}"
  vars:
    model: "{{ lb_sites | vmfleet.ops.lb_model(vmfleet_services, groups, hostvars) }}"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
_value:
  description: The checks.
  type: list
  elements: dict
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Tries of each site's health, for percentiles of what users wait.
SAMPLES = 20


def outside_checks(
    model: Mapping[str, Any],
    balancers: Sequence[str],
    hostvars: Mapping[str, Any],
    ca: str | None = None,
    issued: Sequence[str] = (),
    http_port: int = 80,
    https_port: int = 443,
) -> list[dict[str, Any]]:
    """Checks of all sites through all balancers."""
    checks: list[dict[str, Any]] = []
    for site in model["sites"]:
        for balancer, address in _addresses(balancers, hostvars).items():
            host = f"[{address}]" if ":" in address else address
            words = f"site {site['name']} through {balancer}"
            name = site["hosts"][0]
            own = site["certificate"] == "host"
            trust: dict[str, Any] = {"ca": ca} if ca and (own or site["name"] in issued) else {}
            if own:
                trust["verify_name"] = False
            checks.append({
                "name": f"{words} has a good certificate",
                "type": "tls",
                "host": address,
                "port": int(https_port),
                "server_name": name,
                "names": [] if own else list(site["hosts"]),
                **trust,
            })  # fmt: skip
            if any(route["path"] == "/health" for route in site["routes"]):
                checks.append({
                    "name": f"{words} is healthy",
                    "type": "http",
                    "url": f"https://{host}:{int(https_port)}/health",
                    "host_header": name,
                    "samples": SAMPLES,
                    **trust,
                })  # fmt: skip
            checks.append({
                "name": f"{words} is led to HTTPS",
                "type": "http",
                "url": f"http://{host}:{int(http_port)}/vmfleet?outside",
                "host_header": name,
                "status": [301, 302, 307, 308],
                "response_headers": {"location": {"matches": f"^https://{name.replace('.', '[.]')}(:[0-9]+)?/vmfleet"}},
            })  # fmt: skip
    return checks


def _addresses(balancers: Sequence[str], hostvars: Mapping[str, Any]) -> dict[str, str]:
    """Where to ask, by the names that checks call it by."""
    found: dict[str, str] = {}
    for name in balancers:
        variables = hostvars[name]
        found[name] = str(variables.get("ansible_host") or variables.get("vmfleet_address") or name)
    for name in balancers:
        for given in hostvars[name].get("keepalived_addresses") or []:
            address = str(given).partition("/")[0]
            found[address] = address
    return found


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"outside_checks": outside_checks}
