# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's side of ``fleet_verdict``: takes what the hosts have registered, prints and writes the reports."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.vmfleet.ops.plugins.module_utils._health.model import CRIT, OK, UNKNOWN, WARN
from ansible_collections.vmfleet.ops.plugins.plugin_utils._arguments import validated
from ansible_collections.vmfleet.ops.plugins.plugin_utils._fleet_verdict import (
    Rules,
    Verdict,
    VerdictError,
    check_baseline,
    judge,
    make_quorums,
    read_host,
)
from ansible_collections.vmfleet.ops.plugins.plugin_utils._verdict_report import junit, summary, table

ARGUMENT_SPEC: dict[str, Any] = {
    "results": {"type": "str", "default": "vmfleet_health"},
    "quorum": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "group": {"type": "str", "required": True},
            "at_least": {"type": "str", "required": True},
            "service": {"type": "str"},
            "zone": {"type": "str"},
        },
    },
    "primaries": {"type": "str", "default": "db_primary"},
    "replicas": {"type": "str", "default": "db_replica"},
    "same_version": {"type": "list", "elements": "str", "default": []},
    "same_certificate": {"type": "list", "elements": "str", "default": []},
    "clock_bound": {"type": "float", "default": 2.0},
    "baseline": {"type": "path"},
    "report": {"type": "path"},
    "fail": {"type": "bool", "default": True},
}
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
        self._variables = task_vars or {}
        options = validated("fleet_verdict", ARGUMENT_SPEC, self._task.args)
        try:
            verdict = self._judge(options)
        except VerdictError as error:
            raise AnsibleActionFail(f"fleet_verdict: {error}") from error
        now = datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")
        if options["report"]:
            self._write(Path(options["report"]), verdict, now)
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

    def _judge(self, options: dict[str, Any]) -> Verdict:
        names = self._variables.get("ansible_play_hosts_all") or []
        hostvars, groups = self._variables["hostvars"], self._variables["groups"]

        def variable(host: str, name: str) -> str | None:
            value = hostvars[host].get(name)
            return None if value is None else str(value)

        def members(chosen: list[str]) -> dict[str, list[str]]:
            return {group: list(groups[group]) for group in chosen if group in groups}

        rules = Rules(
            quorums=make_quorums(options["quorum"], groups, variable),
            primaries=groups.get(options["primaries"], []),
            replicas=groups.get(options["replicas"], []),
            same_version=members(options["same_version"]),
            same_certificate=members(options["same_certificate"]),
            clock_bound=options["clock_bound"],
        )
        # Untemplated: what a host has said is data.
        hosts = [read_host(name, hostvars.raw_get(name).get(options["results"])) for name in names]
        return judge(hosts, rules, self._baseline(options["baseline"]))

    @staticmethod
    def _baseline(path: str | None) -> Any:
        if not path:
            return None
        try:
            with open(path, encoding="utf-8") as handle:
                return check_baseline(json.load(handle))
        except (OSError, ValueError) as error:
            if isinstance(error, VerdictError):
                raise
            raise VerdictError(f"baseline: {path}: {error}") from error

    def _write(self, folder: Path, verdict: Verdict, now: str) -> None:
        texts = {
            "verdict.json": json.dumps({"time": now, **verdict.as_data()}, indent=2) + "\n",
            "junit.xml": junit(verdict, now),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in texts.items():
                temporary = folder / f".{name}.{os.getpid()}"
                temporary.write_text(content, encoding="utf-8")
                temporary.replace(folder / name)
        except OSError as error:
            raise AnsibleActionFail(f"fleet_verdict: report: {folder}: {error}") from error
