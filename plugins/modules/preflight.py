#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

# This is the documentation of the action plugin of the same name; it runs on the controller.

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Prove a host and its variables before anything is changed
version_added: 0.1.0
description:
  - Looks at the host once, through plain shell, and returns the facts that the roles of this collection use, under the
    names and with the types of M(ansible.builtin.setup). No module is transferred and the host starts no Python.
  - Checks what every role takes for granted, namely a supported release of Debian or Ubuntu, systemd, apt, Python 3 and
    root through become.
  - Validates the variables of the host, after templating, against the argument specs of the roles that it will get.
    Where the inventory says nothing the roles' defaults stand.
  - The first host of the play also checks the inventory as a whole, namely flows, services, sites, addresses, the
    database groups and the connection budget.
  - All problems of a host are reported at once, each with the variable, its value unless that is secret, and the
    remedy. Set C(any_errors_fatal) on the play, so that no host is changed when one has a problem.
options:
  roles:
    description:
      - The roles that each group gets, as a mapping of group to list of role names. A host's variables are validated
        against the roles of all of its groups. Names without dots are roles of this collection.
      - The value is templated for each host, so that a role can follow from a variable of the host.
    type: dict
    required: true
  connect:
    description:
      - Whether to contact the host. Without contact the variables are validated as for a Debian 13 host of 32 GiB and
        8 processors, nothing is said of the host itself, and no facts are returned.
    type: bool
    default: true
  checklist:
    description:
      - A list of C(playbooks/vars/checklists.yml), such as V(supernova_before), that the inventory is held against as
        well. A box whose rule does not hold is a problem like any other; the first host of the play says which boxes
        are left to other playbooks and to people. See C(docs/checklists.md).
    type: str
  prefetch:
    description:
      - Whether to ask each host in the same look what the probes of its roles would ask, as each role sent it last.
        A role whose probe is still the same then asks nothing itself, and a converged run costs one SSH execution for
        each host.
      - Such an answer is good once, for two minutes, and until this run changes anything on any host. Use it where
        nothing but roles of this collection changes the hosts between this task and the roles.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Nothing is ever changed.
  diff_mode:
    support: none
    description: Nothing is ever changed.
  action:
    support: full
    description: Runs on the controller; only a shell script reaches the host.
notes:
  - A role may bring rules of its own in its internal variable C(__<role>_rules), a list of mappings with C(variable),
    C(holds), C(problem) and C(remedy), and names what it installs in C(__<role>_packages).
  - The connections that the poolers may open are held against C(max_connections) of each server, less those kept for
    superusers and C(vmfleet_direct_connections) (20) of exporter, backup, health checks and operators.
  - Variables are validated as the inventory gives them; those given to a role where it is included are not known.
  - A variable C(vmfleet_members), a mapping of group to number, states how many hosts a group must at least have. Two
    hosts are refused in the groups C(opensearch), C(elasticsearch), C(etcd) and C(sentinel), which need a majority.
  - A variable C(vmfleet_requires) with C(memory_mb), C(vcpus) and C(disk_gb) states what a host must at least have.
author:
  - vmfleet.ops maintainers (@vmfleet)
"""

EXAMPLES = r"""
- name: Prove the inventory and the hosts
  hosts: all
  gather_facts: false
  any_errors_fatal: true
  become: true
  tasks:
    - name: Look at each host and its variables
      vmfleet.ops.preflight:
        roles:
          all: [base, firewall, tls, node_exporter]
          db: [postgresql]
          lb: ["{{ lb_type }}"]
      tags: [always]

- name: Prove an inventory without its hosts
  hosts: all
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - name: Look at the variables of each host
      vmfleet.ops.preflight:
        connect: false
        roles:
          redis: [redis]
"""

RETURN = r"""
ansible_facts:
  description: Facts with the names and types of M(ansible.builtin.setup).
  returned: success and O(connect=true)
  type: dict
  contains:
    vmfleet_host_packages:
      description:
        - What the roles of the host install, as far as they say so in C(__<role>_packages); sorted, each once.
      type: list
      elements: raw
      sample: [nginx, prometheus-node-exporter]
    vmfleet_roles:
      description: Roles of this collection that the host has on record.
      type: list
      elements: str
      sample: [base, firewall, nginx]
"""
