#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

# This is the documentation of the action plugin of the same name; it runs on the controller.

from __future__ import annotations

DOCUMENTATION = r"""
---
module: load_test
short_description: Put a bounded load on the fleet's own sites and judge what came of it
version_added: 0.1.0
description:
  - Sends requests at a fixed rate for a fixed time from the host of the task through each balancer of the inventory,
    with C(h2load) of the package C(nghttp2-client), and tells percentiles of latency, the share of errors and the
    rate.
  - Fails when a goal is missed, or when it is worse than an earlier run. The report is written whatever the result is.
  - Only sites and paths of the inventory's routing model can be loaded, through the hosts of the group C(lb).
    Whatever else is asked for is refused before anything is sent.
  - In check mode everything is proven and nothing is sent.
options:
  rate:
    description: Requests a second, all targets together. At most 10000.
    type: float
    default: 20.0
  duration:
    description: Seconds. At most 900.
    type: int
    default: 30
  targets:
    description: What to ask for. Without any it is every site.
    type: list
    elements: dict
    default: []
    suboptions:
      site:
        description: Name of the site in C(lb_sites).
        type: str
        required: true
      path:
        description: Path, with its query. By default C(/health), which the service behind C(/) answers.
        type: str
  http2:
    description: Whether to speak HTTP/2 instead of HTTP/1.1.
    type: bool
    default: false
  goals:
    description: What must be reached, over all targets.
    type: dict
    default: {}
    suboptions:
      p50:
        description: Milliseconds within which half of the requests are answered.
        type: float
        default: 100.0
      p95:
        description: Milliseconds for 95 of 100 requests.
        type: float
        default: 500.0
      p99:
        description: Milliseconds for 99 of 100 requests.
        type: float
        default: 1000.0
      errors:
        description: Share of requests without an answer or with a status from 400 on.
        type: float
        default: 0.001
      rate:
        description: Share of the asked rate that must come about.
        type: float
        default: 0.95
  baseline:
    description: A C(load.json) of an earlier run of the same load.
    type: path
  tolerance:
    description: Share by which percentiles and rate may be worse than those of O(baseline); 5 ms always may.
    type: float
    default: 0.25
  report:
    description: Folder on the controller for C(load.json).
    type: path
  confirm:
    description:
      - The inventory's C(vmfleet_environment) once more, which is C(production) where nothing is said. Not needed
        when that is V(local), V(test), V(staging) or V(development).
    type: str
    default: ""
author: vmfleet.ops maintainers (@vmfleet)
attributes:
  check_mode:
    description: Everything is proven and nothing is sent.
    support: full
  diff_mode:
    description: Nothing is changed.
    support: none
  action:
    description: The inventory is read, and the result judged, on the controller.
    support: full
notes:
  - A client waits for its answer before it asks again, so a site that hangs shows less in the percentiles than in the
    rate that is not reached.
  - Certificates are not verified; checks of type C(tls) do that.
  - Limits of routes answer 429. To measure what is behind them, name the load host's address in C(lb_defaults.exempt).
"""

EXAMPLES = r"""
- name: Load the sites from the monitoring host
  vmfleet.ops.load_test:
    rate: 100
    duration: 60
    targets:
      - {site: api, path: /}
      - {site: api, path: "/vector/search?q=a"}
    report: after
    baseline: before/load.json
"""

RETURN = r"""
targets:
  description: One entry for each path and balancer, with the keys of RV(total), and C(said), what the generator had
    to say.
  type: list
  elements: dict
  returned: success
total:
  description: All requests together.
  type: dict
  returned: success
  contains:
    asked: {description: Requests a second that were asked for., type: float}
    rate: {description: Requests a second that came about., type: float}
    requests: {description: Number of requests., type: int}
    errors: {description: Share of them that failed., type: float}
    statuses: {description: Number of requests by status; 0 is no answer., type: dict}
    p50: {description: Milliseconds., type: float}
    p95: {description: Milliseconds., type: float}
    p99: {description: Milliseconds., type: float}
    max: {description: Milliseconds., type: float}
problems:
  description: Goals that were missed, and what is worse than in the baseline.
  type: list
  elements: str
  returned: success
"""
