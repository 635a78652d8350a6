#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

# This is the documentation of the action plugin of the same name; it runs on the controller.

from __future__ import annotations

DOCUMENTATION = r"""
---
module: fleet_verdict
short_description: Judge a fleet by what its hosts say of their health
version_added: 0.1.0
description:
  - Gathers what M(vmfleet.ops.health) has returned on the hosts of the play, prints a table, writes reports, and fails
    when the fleet is not healthy. It runs on the controller, once for all hosts, and contacts none of them but by
    O(checks).
  - A host of the play that was not reachable, whose checks could not run, or that has no result counts as a failure.
  - Beside the hosts' own checks it judges rules across hosts. A rule on a group of which the play leaves out a host is
    not judged, and the table says so.
  - Balancers must see the same servers as healthy, an address that they share must be held by exactly one of them, and
    no clock may be off from the controller's by more than O(clock_bound). All of it needs nothing but the checks that
    the roles announce.
options:
  results:
    description: The variable in which each host has registered its result.
    type: str
    default: vmfleet_health
  checks:
    description:
      - Checks that the controller makes itself, as the users of the platform see it; their types and keys are those of
        M(vmfleet.ops.health). In the verdict they stand beside the hosts under the name C(outside). Those of the sites
        come from P(vmfleet.ops.outside_checks#filter).
    type: list
    elements: dict
    default: []
  wait:
    description: Seconds during which such checks are tried again when they are not good.
    type: float
    default: 0.0
  quorum:
    description:
      - So many of a group must be well. As long as that holds, what fails on the others only warns.
    type: list
    elements: dict
    default: []
    suboptions:
      group:
        description: A group of the inventory.
        type: str
        required: true
      at_least:
        description: A number of hosts, or a percentage such as V(66%), rounded up.
        type: str
        required: true
      service:
        description: Only checks of this service or role count, and only they are forgiven.
        type: str
      zone:
        description: A variable of the hosts; the rule then holds for each of its values.
        type: str
  primaries:
    description: The group of PostgreSQL primaries; there must be one for each cluster.
    type: str
    default: db_primary
  replicas:
    description: The group of replicas, each of which must receive from a primary.
    type: str
    default: db_replica
  same_version:
    description: Groups in which each service must have one version everywhere, as far as checks return versions.
    type: list
    elements: str
    default: []
  same_certificate:
    description: >-
      Groups in which checks of type C(tls) of one name must have seen one certificate, save those that say C(own).
    type: list
    elements: str
    default: []
  clock_bound:
    description: Seconds that a clock may differ. The time that question and answer took is not held against a host.
    type: float
    default: 2.0
  baseline:
    description:
      - A C(verdict.json) of an earlier run. What was wrong then and did not get worse is shown as known and does not
        count, so that old faults do not blame a change.
    type: path
  report:
    description:
      - Folder on the controller for the reports, written before the task fails - C(report.html), one page for people,
        C(verdict.json), C(junit.xml), and C(verdict.prom) for a textfile collector of Prometheus.
      - The last 30 runs that wrote to this folder are kept in C(history.json) there, and shown on the page.
      - Where the play may end before this task, the callback P(vmfleet.ops.fleet_verdict#callback) writes the reports.
    type: path
  fail:
    description: Whether the task fails when the fleet is not healthy. Without it the verdict is only returned.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
    description: Nothing is changed; reports are written.
  diff_mode:
    support: none
    description: Nothing is changed.
  action:
    support: full
    description: Runs on the controller.
notes:
  - Let the play go on without the hosts that fail, by C(ignore_unreachable) and C(ignore_errors) as in the example;
    otherwise there may be nobody left to give a verdict on.
author: vmfleet.ops maintainers (@vmfleet)
"""

EXAMPLES = r"""
- name: Prove that the fleet is healthy
  hosts: all
  gather_facts: false
  become: true
  ignore_unreachable: true
  tasks:
    - name: Run the announced checks
      vmfleet.ops.health: {fail: false}
      register: vmfleet_health
      ignore_errors: true
      timeout: 60

    - name: Give the verdict
      vmfleet.ops.fleet_verdict:
        quorum:
          - {group: app, at_least: 66%, service: api}
          - {group: app, at_least: 1, zone: rack}
        same_version: [db]
        baseline: before/verdict.json
        report: after
      run_once: true
"""

RETURN = r"""
verdict:
  description: The worst state of all that counts, V(ok), V(warn), V(crit) or V(unknown).
  type: str
  returned: always
healthy:
  description: Whether nothing that counts is V(crit) or V(unknown).
  type: bool
  returned: always
problems:
  description: All that is not V(ok), what is known from the baseline last.
  type: list
  elements: dict
  returned: always
  contains:
    subject: {description: "The host, or V(fleet) for a rule.", type: str}
    name: {description: The check or rule., type: str}
    state: {description: Its state., type: str}
    message: {description: What was seen., type: str}
    known: {description: Whether the baseline had it., type: bool}
    tolerated: {description: Whether a quorum made a warning of it., type: bool}
"""
