# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's half of ``rollback``: it gives its word when former firewall rules have let it in."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.vmfleet.ops.plugins.module_utils._rollback import ARGUMENT_SPEC, TRIAL
from ansible_collections.vmfleet.ops.plugins.plugin_utils import _looks
from ansible_collections.vmfleet.ops.plugins.plugin_utils._arguments import validated
from ansible_collections.vmfleet.ops.plugins.plugin_utils._change import give_word


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = validated("rollback", ARGUMENT_SPEC, self._task.args)
        if not self._task.check_mode:
            _looks.spoil()
        outcome = self._on_host(arguments, task_vars)
        if outcome.get("awaiting_word"):
            give_word(self, TRIAL, int(outcome["awaiting_word"]))
            # Nothing but the firewall has gone back so far, and what has is not told again.
            told: dict[str, Any] = {key: outcome[key] for key in ("changes", "diff", "recovered") if key in outcome}
            outcome = self._on_host(arguments, task_vars)
            if not outcome.get("failed"):
                outcome.update(told)
        result.update(outcome)
        return result

    def _on_host(self, arguments: dict[str, Any], task_vars: dict[str, Any] | None) -> dict[str, Any]:
        outcome: dict[str, Any] = self._execute_module(
            module_name="vmfleet.ops.rollback", module_args=arguments, task_vars=task_vars
        )
        outcome.pop("invocation", None)
        return outcome
