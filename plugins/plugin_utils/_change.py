# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What changes on many hosts have in common: the run that makes them, and that its controller can still reach them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ansible import constants as C
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.vmfleet.ops.plugins.module_utils._journal import TRANSACTIONS


def change_id() -> str:
    """The name of all that this run of Ansible changes, the same for all hosts and in all workers.

    It is the time of the run's first change and the name of the folder that Ansible makes for each run. Names sort by
    time, so that the last change of a fleet can be told whatever the hosts' own clocks say.
    """
    folder = Path(C.DEFAULT_LOCAL_TMP)
    # Whoever comes first makes it, and nobody writes to it.
    descriptor = os.open(folder / "vmfleet-change", os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        began = os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(began))}-{folder.name[-8:]}"


def run_shell(action: ActionBase, script: str) -> str:
    """Runs a script on an action's host from standard input, so that none of it is seen in the process list."""
    answer = action._low_level_execute_command("/bin/sh -s", in_data=script.encode(), executable="/bin/sh")
    if answer["rc"] != 0 and not answer["stdout"].strip():
        raise AnsibleActionFail(
            f"the host refused the probe (rc {answer['rc']}): {answer['stderr'].strip()[-500:] or 'no output'}"
        )
    return str(answer["stdout"])


def give_word(action: ActionBase, name: str, seconds: int) -> None:
    """Reports back over a new connection to a host that waits for it after a firewall change.

    :param name: the role whose transaction is open.
    :param seconds: how long the host waits; one that hears nothing takes the change back.
    :raises AnsibleActionFail: when the host could not be reached, and so takes it back.
    """
    directory = f"{TRANSACTIONS}/{name}"
    script = (
        f"d={directory}; [ -d $d ] || {{ echo gone; exit 0; }}; : > $d/confirmed; n=0; "
        "while [ -d $d ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done; "
        "[ -d $d ] && echo waiting || echo committed\n"
    )
    deadline = time.monotonic() + seconds
    seen = "no answer"
    while time.monotonic() < deadline:
        try:
            # The established connection would pass any firewall.
            action._connection.reset()
            seen = run_shell(action, script).strip()
            break
        except (AnsibleConnectionFailure, AnsibleActionFail) as error:
            seen = str(error)
            time.sleep(1)
    if not seen.endswith("committed"):
        raise AnsibleActionFail(
            f"{name}: after the firewall change the controller could not reach the host over a new connection "
            f"within {seconds} s, so the host takes the change back ({seen}). Check the rule for ssh."
        )
