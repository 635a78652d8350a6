# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's side of ``load_test``: what the inventory allows, goals, baseline, report."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.vmfleet.ops.plugins.plugin_utils import _load_verdict as load
from ansible_collections.vmfleet.ops.plugins.plugin_utils._arguments import validated
from ansible_collections.vmfleet.ops.plugins.plugin_utils._role_sources import load_role

ARGUMENT_SPEC: dict[str, Any] = {
    "rate": {"type": "float", "default": 20.0},
    "duration": {"type": "int", "default": 30},
    "targets": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"site": {"type": "str", "required": True}, "path": {"type": "str"}},
    },
    "http2": {"type": "bool", "default": False},
    "goals": {
        "type": "dict",
        "default": {},
        "options": {
            "p50": {"type": "float", "default": 100.0},
            "p95": {"type": "float", "default": 500.0},
            "p99": {"type": "float", "default": 1000.0},
            "errors": {"type": "float", "default": 0.001},
            "rate": {"type": "float", "default": 0.95},
        },
    },
    "baseline": {"type": "path"},
    "tolerance": {"type": "float", "default": 0.25},
    "report": {"type": "path"},
    "confirm": {"type": "str", "default": ""},
}


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        options = validated("load_test", ARGUMENT_SPEC, self._task.args)
        try:
            targets = self._allowed(options, variables)
            asked = {
                "rate": options["rate"],
                "duration": options["duration"],
                "http2": options["http2"],
                "targets": sorted({target["name"] for target in targets}),
            }
            baseline = self._baseline(options["baseline"], asked)
        except load.LoadError as error:
            raise AnsibleActionFail(str(error)) from error
        result["changed"] = False
        if self._task.check_mode:
            result["targets"] = targets
            return result
        outcome = self._execute_module(
            module_name="vmfleet.ops.load_run",
            module_args={"targets": targets, "duration": options["duration"], "http2": options["http2"]},
            task_vars=variables,
        )
        result.update(outcome)
        if outcome.get("failed"):
            return result
        problems = load.judge(outcome["total"], options["goals"])
        if baseline is not None:
            problems += load.compare(outcome["total"], baseline, options["tolerance"])
        now = datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds")
        report = {
            "time": now,
            "from": str(variables["inventory_hostname"]),
            "load": asked,
            "goals": options["goals"],
            "total": outcome["total"],
            "targets": outcome["targets"],
            "problems": problems,
        }
        if options["report"]:
            _write(Path(options["report"]), report)
        self._display.display(f"\n{load.table(report)}\n")
        for line in problems or ["Every goal is reached."]:
            self._display.display(line, color=constants.COLOR_ERROR if problems else constants.COLOR_OK)
        result["problems"] = problems
        if problems:
            result.update(failed=True, msg="; ".join(problems))
        return result

    def _allowed(self, options: Mapping[str, Any], variables: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The targets, after everything that is refused was refused."""
        hostvars, groups = variables["hostvars"], variables["groups"]
        load.check_bounds(options["rate"], options["duration"], options["tolerance"])
        balancers = {}
        sites: list[Any] = []
        environment = "production"
        for name in groups.get("lb", ()):
            there = hostvars[name]
            kind = str(there.get("lb_type", "haproxy"))
            address = str(there.get("vmfleet_address") or there.get("ansible_host") or name)
            option = f"{kind}_https_port"
            port = there.get(option, load_role(kind).defaults.get(option, 443))
            balancers[str(name)] = (address, int(port))
            sites = list(there.get("lb_sites") or sites)
            environment = str(there.get("vmfleet_environment", environment))
        targets = load.choose_targets(options["targets"], sites, balancers, options["rate"])
        load.check_consent(environment, options["confirm"])
        return targets

    @staticmethod
    def _baseline(path: str | None, asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if not path:
            return None
        try:
            with open(path, encoding="utf-8") as handle:
                return load.check_baseline(json.load(handle), asked)
        except load.LoadError:
            raise
        except (OSError, ValueError) as error:
            raise load.LoadError(
                f"loadtest_baseline = {path!r}: {error}; give a load.json of an earlier run"
            ) from error


def _write(folder: Path, report: Mapping[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".load.json.{os.getpid()}"
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        temporary.replace(folder / "load.json")
    except OSError as error:
        raise AnsibleActionFail(f"load_test: report: {folder}: {error}") from error
