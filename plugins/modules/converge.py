#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

# This is the documentation of the action plugin of the same name; its host side is module_utils/_transaction.py.

from __future__ import annotations

DOCUMENTATION = r"""
---
module: converge
short_description: Bring a role's whole state to a host as one transaction
version_added: 0.1.0
description:
  - Declares what a host must look like and makes it so. The controller renders the declaration and looks at the host
    once, with plain shell. When nothing differs the task ends there, and no Python was started on the host.
  - When something differs, one module call makes the change under the host's lock. New files are staged, validated and
    swapped by rename, services are reloaded or restarted where that is called for, and checks prove the result.
  - Any failure puts everything back as it was and fails the task. A run that was killed is taken back by the next one.
  - A record per role on the host lets a later declaration take away what is no longer declared; files that stood there
    before the role come back.
  - Packages do not get to start a service with the distribution's configuration.
author: vmfleet.ops maintainers (@vmfleet)
requirements:
  - Debian 12 or 13, Ubuntu 22.04 or 24.04 on the host, with systemd, and python3 for changes
  - root on the host, for example by C(become)
options:
  name:
    description:
      - The owner of all that is declared; lower-case letters, digits, C(-) and C(_).
    type: str
    required: true
  state:
    description:
      - V(absent) takes the role off the host. Its services stop, its units, files, firewall rules, drop-ins and the
        packages that it brought go, and files that it had replaced come back. Directories, users and data stay.
    type: str
    choices: [present, absent]
    default: present
  declaration:
    description:
      - Further options, for a role that works several of them out at once. A dictionary, or the name of a template that
        yields one in YAML (JSON if its name says so). Ansible evaluates a variable anew wherever it is mentioned; in a
        template it can be looked at once.
      - A list adds to the same option beside it; anything else that is given here and beside it is refused.
      - A template is not rendered with O(state=absent), which goes by what the host has on record.
    type: raw
  vars:
    description: Further variables for all templates of the role. Unlike a role's variables they are evaluated once.
    type: dict
    default: {}
  packages:
    description:
      - Names of Debian packages, or mappings of C(name), C(version) (exact or a glob, for example V(7:7.0.*)), C(state)
        (V(present) or V(absent)) and C(first). All of them are one apt transaction.
      - C(first) maps paths to the text of files that the package must find when it is installed, such as a setting that
        its scripts go by. They are files of the role like those in O(files).
    type: list
    elements: raw
    default: []
  preinstall:
    description:
      - Packages of other roles of the host, in the form of O(packages), that are installed in the same apt transaction.
        They do not belong to this role; a role that declares one counts it as brought by itself.
      - One whose C(first) files are there with another text is left to its own role.
    type: list
    elements: raw
    default: []
  groups:
    description: Groups of accounts.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the group.
        type: str
        required: true
      system:
        description: Whether a new group gets an id from the system's range.
        type: bool
        default: true
      gid:
        description: Numeric id, when it matters.
        type: int
  users:
    description: Accounts.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the account.
        type: str
        required: true
      uid:
        description: Numeric id, when it matters.
        type: int
      group:
        description: Primary group; without it a new account gets a group of its own name.
        type: str
      groups:
        description: Further groups, added to those that the account has.
        type: list
        elements: str
        default: []
      home:
        description: Home directory; it is created only with O(users[].create_home).
        type: path
      shell:
        description: Login shell.
        type: path
      system:
        description: Whether a new account gets an id from the system's range.
        type: bool
        default: true
      create_home:
        description: Whether the home directory of a new account is made.
        type: bool
        default: false
  directories:
    description: Directories, with their parents.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Absolute path.
        type: path
        required: true
      owner:
        description: Owner.
        type: str
        default: root
      group:
        description: Group.
        type: str
        default: root
      mode:
        description: Octal mode, quoted.
        type: str
        default: "0755"
  files:
    description: Files and links; each needs one of O(files[].template), O(files[].content), O(files[].source).
    type: list
    elements: dict
    default: []
    suboptions:
      dest:
        description: Absolute path on the host.
        type: path
        required: true
      state:
        description: What stands at the path.
        type: str
        choices: [file, link, absent]
        default: file
      template:
        description: A Jinja2 template, found as M(ansible.builtin.template) finds it.
        type: str
      content:
        description: The text itself; no newline is added.
        type: str
      source:
        description: A file on the controller, found as M(ansible.builtin.copy) finds it; any bytes.
        type: str
      target:
        description: What a link points to.
        type: str
      vars:
        description: Further variables for this template.
        type: dict
        default: {}
      owner:
        description: Owner.
        type: str
        default: root
      group:
        description: Group.
        type: str
        default: root
      mode:
        description: Octal mode, quoted.
        type: str
        default: "0644"
      sensitive:
        description: Whether the text stays out of diffs, errors and logs.
        type: bool
        default: false
      validate:
        description: A command that must accept the staged file; C(%s) stands for its path.
        type: str
      before_packages:
        description: Whether the file must stand before packages are installed, as repository definitions must.
        type: bool
        default: false
      on_change:
        description: V(none) for a file that concerns no service.
        type: str
        choices: [default, none]
        default: default
  sysctl:
    description: Kernel settings, live and lasting, by dotted name.
    type: dict
    default: {}
  firewall:
    description:
      - Rules of ufw that belong to the role, compared as a set and applied as a difference. On a host without ufw
        there is nothing to open, and they are passed over.
    type: list
    elements: dict
    default: []
    suboptions:
      port:
        description: A port, a range such as V(8000:8010), or a list of these. Required with TCP and UDP.
        type: raw
      proto:
        description: Protocol. V(vrrp) has no ports, and ufw knows it since 0.36.2.
        type: str
        choices: [tcp, udp, vrrp]
        default: tcp
      from:
        description: Who may; inventory groups (their members' C(vmfleet_address) or C(ansible_host)), networks, V(any).
        type: list
        elements: str
        default: []
      action:
        description: What ufw does.
        type: str
        choices: [allow, limit, deny, reject]
        default: allow
      comment:
        description: A word on the purpose, kept with the rule.
        type: str
        default: ""
  firewall_options:
    description: The firewall as a whole; one role of a host sets this, and its rules stand before all others.
    type: dict
    suboptions:
      enabled:
        description: Whether ufw is active now and at boot.
        type: bool
        default: true
      incoming:
        description: What becomes of incoming packets that no rule names.
        type: str
        choices: [allow, deny, reject]
        default: deny
      outgoing:
        description: What becomes of outgoing packets that no rule names.
        type: str
        choices: [allow, deny, reject]
        default: allow
      routed:
        description: What becomes of forwarded packets that no rule names.
        type: str
        choices: [allow, deny, reject]
        default: deny
      logging:
        description: How much ufw logs.
        type: str
        choices: ["off", low, medium, high, full]
        default: low
      exclusive:
        description: Whether rules that no role owns are removed.
        type: bool
        default: true
      confirm_timeout:
        description:
          - Seconds within which the controller must reach the host over a new connection after a change that could
            lock it out. Without its word the host takes the change back.
        type: int
        default: 30
  units:
    description: Unit files and drop-ins of systemd, loaded when they changed.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: For example V(app.service), or V(app.service.d/limits.conf) for a drop-in.
        type: str
        required: true
      template:
        description: A Jinja2 template.
        type: str
      content:
        description: The text itself.
        type: str
      vars:
        description: Further variables for the template.
        type: dict
        default: {}
  commands:
    description:
      - What has no resource of its own. A guard (O(commands[].unless), O(commands[].creates) or
        O(commands[].on_change_of)) tells whether the command is due; after it ran, the guard must hold.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What the command does, as an imperative sentence.
        type: str
        required: true
      argv: &argv
        description: Command and arguments.
        type: list
        elements: str
      shell: &shell
        description: Shell text, instead of O(commands[].argv).
        type: str
      stdin: &stdin
        description: Text on standard input; secrets belong here and nowhere else.
        type: str
      stdin_template: &stdin_template
        description: Template of the text on standard input, instead of O(commands[].stdin).
        type: str
      vars: &vars
        description: Further variables for this template.
        type: dict
        default: {}
      user: &user
        description: Account that runs it; root by default.
        type: str
      environment: &environment
        description: Environment variables.
        type: dict
        default: {}
      timeout: &timeout
        description: Seconds after which it is ended and counts as failed.
        type: int
        default: 300
      sensitive:
        description: Whether what stands in O(commands[].stdin) is taken out of every message.
        type: bool
        default: false
      secrets:
        description:
          - What of a sensitive O(commands[].stdin) is secret. Without it every longer word is taken out of messages, by
            which a statement's error may no longer be understood.
        type: list
        elements: str
      unless:
        description: A read-only command; when it succeeds and prints what is expected, nothing is due.
        type: dict
        suboptions:
          argv: *argv
          shell: *shell
          stdin: *stdin
          stdin_template: *stdin_template
          vars: *vars
          user: *user
          environment: *environment
          timeout: *timeout
          stdout:
            description: What it must print, without surrounding white space.
            type: str
          shown:
            description: Whether what it prints instead is part of the diff. It must not hold a secret.
            type: bool
            default: false
      creates:
        description: A path that exists when nothing is due.
        type: path
      on_change_of:
        description: Paths (or patterns) of this role whose change makes the command due; V(packages) for packages.
        type: list
        elements: str
        default: []
      undo:
        description: A command that takes it back when the transaction fails.
        type: dict
        suboptions:
          argv: *argv
          shell: *shell
          stdin: *stdin
          stdin_template: *stdin_template
          vars: *vars
          user: *user
          environment: *environment
          timeout: *timeout
      when:
        description: Whether it runs before or after the services are started.
        type: str
        choices: [before_services, after_services]
        default: before_services
      notify:
        description: Whether it counts as a change for the services.
        type: bool
        default: false
  services:
    description:
      - Units and what becomes of them.
      - One with neither O(services[].enabled) nor O(services[].state) belongs to the host, such as sshd. It hears of
        changes, and goes on running when the role is taken off.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the unit; C(.service) may be left out.
        type: str
        required: true
      enabled:
        description: Whether it starts at boot; unset leaves it.
        type: bool
      state:
        description: Whether it runs now; unset leaves it.
        type: str
        choices: [started, stopped]
      masked:
        description: Whether it is masked.
        type: bool
        default: false
      on_change:
        description: What a change of the role's files, units or packages asks of a running service.
        type: str
        choices: [restart, reload, none]
        default: reload
      restart_on:
        description: Paths or patterns (also V(packages), V(units)) whose change asks for a restart.
        type: list
        elements: str
        default: []
      reload_on:
        description: Paths or patterns whose change asks for a reload.
        type: list
        elements: str
        default: []
  validate:
    description:
      - Commands (mappings of C(argv) or C(shell), or shell text) that must succeed before anything is live. They see
        the staged files at their final paths.
    type: list
    elements: raw
    default: []
  verify:
    description:
      - Checks that must pass after the services were touched. Without it the announced checks are used.
      - The types are those of M(vmfleet.ops.health). Each must be good twice in a row, or C(success_threshold) times if
        that is more, within C(startup) seconds (15).
    type: list
    elements: dict
  announce:
    description: What the role leaves on the host for health checks, backups and monitoring.
    type: dict
    suboptions:
      checks:
        description: Checks, as in O(verify), for C(/etc/vmfleet/checks.d).
        type: list
        elements: dict
        default: []
      backup:
        description: What to save and how, for C(/etc/vmfleet/backup.d).
        type: list
        elements: dict
        default: []
      diagnose:
        description: What to ask the service for a support bundle, for C(/etc/vmfleet/diagnose.d). Nothing may change.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: The file in the bundle that gets what the command prints.
            type: str
            required: true
          argv:
            description: Program and arguments.
            type: list
            elements: str
          shell:
            description: A line for /bin/sh instead.
            type: str
          stdin:
            description: What it reads.
            type: str
          user:
            description: Account that runs it.
            type: str
          environment:
            description: Variables for it.
            type: dict
          timeout:
            description: Seconds that it may take; 30 if nothing is said.
            type: int
          finding:
            description: Whether each line that it prints is worth a look at once; a healthy service prints none.
            type: bool
            default: false
      facts:
        description: Ports and metrics endpoints, as local facts in C(/etc/ansible/facts.d).
        type: dict
        default: {}
  history:
    description:
      - Changes of this host that are kept so that M(vmfleet.ops.rollback) can take them back; V(0) keeps none. A change
        is all that one run of Ansible does to the host, whatever the roles.
    type: int
    default: 5
  lock_timeout:
    description: Seconds to wait for another run that is changing the host.
    type: int
    default: 300
attributes:
  check_mode:
    description: Reports the plan that a real run carries out, and validates files where the host already can.
    support: full
  diff_mode:
    description: One diff of all resources by name, and one for each text that is not sensitive.
    support: full
"""

EXAMPLES = r"""
- name: Converge Redis
  vmfleet.ops.converge:
    name: redis
    packages: [redis-server]
    files:
      - template: redis.conf.j2
        dest: /etc/redis/redis.conf
        owner: redis
        group: redis
        mode: "0640"
        sensitive: true
    sysctl:
      vm.overcommit_memory: 1
    services:
      - name: redis-server
        enabled: true
        state: started
        on_change: restart
    firewall:
      - port: 6379
        from: [app]
    verify:
      - type: tcp
        port: 6379

- name: Take it off the host again
  vmfleet.ops.converge:
    name: redis
    state: absent
"""

RETURN = r"""
changes:
  description: What differed and was, or in check mode would be, changed; one sentence per resource.
  type: list
  elements: str
  returned: when something differed
  sample: ["file /etc/redis/redis.conf: redis:redis 0640, new content", "service redis-server.service: started"]
phase:
  description: The phase that failed, for example V(validate) or V(verify).
  type: str
  returned: on failure on the host
command:
  description: The failing command.
  type: list
  elements: str
  returned: on failure of a command
rc:
  description: Its return code.
  type: int
  returned: on failure of a command
stdout:
  description: Its output, secrets taken out.
  type: str
  returned: on failure of a command
stderr:
  description: Its error output and the service's last log lines, secrets taken out.
  type: str
  returned: on failure of a command
"""
