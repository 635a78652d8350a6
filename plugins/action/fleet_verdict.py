# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's side of ``fleet_verdict``: takes what the hosts have registered, prints and writes the reports."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.vmfleet.ops.plugins.module_utils._health.model import CRIT, OK, UNKNOWN, WARN
from ansible_collections.vmfleet.ops.plugins.plugin_utils._fleet_verdict import VerdictError
from ansible_collections.vmfleet.ops.plugins.plugin_utils._verdict_play import (
    judge_play,
    look_from_outside,
    read_options,
)
from ansible_collections.vmfleet.ops.plugins.plugin_utils._verdict_report import summary, table, write_reports

COLORS = {OK: "COLOR_OK", WARN: "COLOR_WARN", UNKNOWN: "COLOR_ERROR", CRIT: "COLOR_ERROR"}


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    # One verdict for all hosts of the play, whether the task says run_once or not.
    BYPASS_HOST_LOOP = True
    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        try:
            options = read_options(self._task.args)
            verdict = judge_play(options, task_vars or {}, look_from_outside(options["checks"], options["wait"]))
            if options["report"]:
                write_reports(Path(options["report"]), verdict)
        except VerdictError as error:
            raise AnsibleActionFail(f"fleet_verdict: {error}") from error
        self._display.display(f"\n{table(verdict)}\n")
        self._display.display(f"{summary(verdict)}\n", color=getattr(constants, COLORS[verdict.state]))
        result.update(
            changed=False,
            verdict=verdict.state,
            healthy=verdict.healthy,
            problems=[dataclasses.asdict(finding) for finding in verdict.problems],
        )
        if options["fail"] and not verdict.healthy:
            result.update(failed=True, msg=summary(verdict))
        return result
