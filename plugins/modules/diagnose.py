#!/usr/bin/python
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
---
module: diagnose
short_description: Collect a support bundle of a host, without secrets
version_added: 0.1.0
description:
  - Collects what somebody who was not there needs to understand a host - processes, memory, disks, sockets, firewall,
    names, failed units, the journals of its services, changes that are still open, and a verdict of its health
    checks. It comes to the controller as one archive, and nothing is left on the host.
  - It knows no service by name. Units are those that the roles of the host have on record, and what else a service
    can tell is what its role has announced in C(/etc/vmfleet/diagnose.d), such as the connections and locks of a
    database.
  - Several things are asked for at once, each item with a timeout and a bound on its size. What fails or hangs is named
    and does not hold up the rest.
  - Secrets are taken out on the host, those in files of the roles that not everybody may read and whatever has the
    shape of one. On the controller follow the values of all variables of the host whose names say that they are
    secret.
options:
  directory:
    description: Folder on the controller for the archives. It is made for its owner's eyes only.
    type: path
    default: diagnose
  names:
    description: Names that the host is to look up.
    type: list
    elements: str
    default: []
  journal_lines:
    description: Lines of each journal, at most.
    type: int
    default: 500
  deadline:
    description: Seconds after which the host goes on without what is not finished.
    type: float
    default: 60.0
  secret_files:
    description:
      - Further files of the host with secrets, as paths or patterns, such as the environment of a service that no
        role of this collection has brought. Files that everybody may read are not considered.
    type: list
    elements: str
    default: []
author: vmfleet.ops maintainers (@vmfleet)
attributes:
  check_mode:
    description: Collects and writes no archive.
    support: full
  diff_mode:
    description: Nothing on the host is changed.
    support: none
  action:
    description: The archive is written on the controller.
    support: full
notes:
  - Redaction cannot know a secret that neither stands in a known file or variable nor looks like one. Look before you
    send an archive to strangers.
"""

EXAMPLES = r"""
- name: Collect a support bundle of each host
  vmfleet.ops.diagnose:
    directory: /tmp/incident-42
    names: "{{ groups['all'] }}"
"""

RETURN = r"""
path:
  description: The archive on the controller.
  type: str
  returned: success, without check mode
findings:
  description: What is worth a look at once - failed units, blocked queries, checks that are not ok, open changes.
  type: list
  elements: str
  returned: success
incomplete:
  description: Files of the archive with less in them than there should be, with the reasons.
  type: dict
  returned: success
files:
  description: Names of the files in the archive.
  type: list
  elements: str
  returned: success
seconds:
  description: What it took on the host.
  type: float
  returned: success
"""

import base64
import json
import zlib

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils._diagnose import collect


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            # The action plugin's business.
            "directory": {"type": "path", "default": "diagnose"},
            "names": {"type": "list", "elements": "str", "default": []},
            "journal_lines": {"type": "int", "default": 500},
            "deadline": {"type": "float", "default": 60.0},
            "secret_files": {"type": "list", "elements": "str", "default": [], "no_log": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    for name, least, most in (("journal_lines", 1, 100000), ("deadline", 5, 600)):
        if not least <= given[name] <= most:
            module.fail_json(msg=f"{name} = {given[name]}: is out of range; give {least} to {most}")
    bundle = collect(**{key: value for key, value in given.items() if key != "directory"})
    packed = base64.b64encode(zlib.compress(json.dumps(bundle.pop("files")).encode())).decode()
    module.exit_json(changed=False, bundle=packed, **bundle)


if __name__ == "__main__":
    main()
