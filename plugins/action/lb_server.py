# Copyright: vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's half of ``lb_server``: the same change on all balancers, or on none."""

from __future__ import annotations

import contextvars
import copy
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import become_loader, connection_loader

MODULE = "vmfleet.ops.lb_server"
AT_ONCE = 20


def thread_context() -> contextvars.Context:
    """What templating in a thread needs of the context here, such as the task; a thread inherits nothing by itself.

    The broker of accesses to values has to be each thread's own, and is made where it is missing: of threads that share
    one, some end in an error.
    """
    context = contextvars.Context()
    for variable, value in contextvars.copy_context().items():
        if variable.name != "AnsibleAccessContext":
            context.run(variable.set, value)
    return context


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        args = {key: value for key, value in self._task.args.items() if value is not None}
        weight = args.get("weight")
        if weight is not None and not (str(weight).isdigit() and 0 <= int(weight) <= 100):
            raise AnsibleActionFail(f"weight = {weight!r}: is no percentage; give a whole number from 0 to 100")
        balancers = self._balancers(args.pop("balancers", ["lb"]), variables)
        on_timeout = args.pop("on_timeout", "fail")
        former = args.pop("former", None)
        if former is not None and (unknown := set(former) - set(balancers)):
            raise AnsibleActionFail(f"former names {', '.join(sorted(unknown))}, no balancer of this task")
        if former is not None:
            balancers = [name for name in balancers if name in former]
        wanted = {name: {**args, **({"former": former[name]} if former is not None else {})} for name in balancers}
        outcomes = self._everywhere(wanted, variables)
        self._report(result, outcomes)
        if broken := {name: one for name, one in outcomes.items() if one.get("failed")}:
            result.update(failed=True, msg=self._words(broken), changed=False)
            if not self._task.check_mode:
                self._put_back(result, outcomes, args, variables)
            return result
        timeout = int(args.get("timeout", 60))
        drains = any(
            s["state"] == "drain" or not s["weight"] for one in outcomes.values() for s in one["settings"].values()
        )
        if self._task.check_mode or not drains or not timeout:
            return result
        waited = self._everywhere({name: {**one, "phase": "wait"} for name, one in wanted.items()}, variables)
        if broken := {name: one for name, one in waited.items() if one.get("failed")}:
            result.update(failed=True, msg=self._words(broken))
            return result
        result["sessions"] = {name: one["sessions"] for name, one in waited.items()}
        if any(result["sessions"].values()) and on_timeout != "proceed":
            left = ", ".join(f"{count} on {name}" for name, count in result["sessions"].items() if count)
            result.update(failed=True, msg=f"{args.get('name')} still had sessions after {timeout} s: {left}")
            if on_timeout == "fail":
                self._put_back(result, outcomes, args, variables)
        return result

    @staticmethod
    def _balancers(given: Any, variables: Mapping[str, Any]) -> list[str]:
        groups = variables["groups"]
        names: list[str] = []
        for entry in [given] if isinstance(given, str) else given:
            if entry not in groups and entry not in variables["hostvars"]:
                raise AnsibleActionFail(f"balancers = {entry!r}: is neither a group nor a host of the inventory")
            names += groups.get(entry, [entry])
        if not names:
            raise AnsibleActionFail(f"balancers = {given!r}: has no hosts")
        return list(dict.fromkeys(str(name) for name in names))

    @staticmethod
    def _words(broken: Mapping[str, Mapping[str, Any]]) -> str:
        return " | ".join(f"{name}: {one.get('msg', 'failed')}" for name, one in sorted(broken.items()))

    def _report(self, result: dict[str, Any], outcomes: Mapping[str, Mapping[str, Any]]) -> None:
        well = {name: one for name, one in sorted(outcomes.items()) if not one.get("failed")}
        result["former"] = {name: one["former"] for name, one in well.items()}
        result["settings"] = {name: one["settings"] for name, one in well.items()}
        result["changed"] = any(one["changed"] for one in well.values())
        if self._task.diff:
            result["diff"] = {
                side: json.dumps(result[key], indent=2, sort_keys=True) + "\n"
                for side, key in (("before", "former"), ("after", "settings"))
            }

    def _put_back(
        self,
        result: dict[str, Any],
        outcomes: Mapping[str, Mapping[str, Any]],
        args: Mapping[str, Any],
        variables: dict[str, Any],
    ) -> None:
        kept = {key: args[key] for key in ("name", "services") if key in args}
        changed = {name: {**kept, "former": one["former"]} for name, one in outcomes.items() if one.get("changed")}
        undone = self._everywhere(changed, variables)
        stuck = {name: one for name, one in undone.items() if one.get("failed")}
        result["changed"] = bool(stuck)
        if stuck:
            result["msg"] += f" | and could not be put back on {self._words(stuck)}"
        elif changed:
            result["msg"] += f" | put back on {', '.join(sorted(changed))}"

    def _everywhere(self, args: Mapping[str, dict[str, Any]], variables: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Run the module on all of these balancers at once; a balancer that cannot be reached has failed."""

        def one(name: str) -> dict[str, Any]:
            try:
                return self._on(name, args[name], variables)
            except AnsibleError as error:
                return {"failed": True, "msg": str(error)}

        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            jobs = {name: pool.submit(thread_context().run, one, name) for name in args}
            return {name: job.result() for name, job in jobs.items()}

    def _on(self, name: str, args: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        there: dict[str, Any] = {**variables, **dict(variables["hostvars"][name]), "inventory_hostname": name}
        action = copy.copy(self)
        action._task = self._task.copy()
        action._task.async_val = 0
        action._connection = self._connect(name, there)
        try:
            outcome: dict[str, Any] = action._execute_module(module_name=MODULE, module_args=args, task_vars=there)
        finally:
            action._connection.close()
        outcome.pop("invocation", None)
        return outcome

    def _connect(self, name: str, there: dict[str, Any]) -> Any:
        """A connection as the inventory describes it, become included."""
        play_context = self._play_context.copy()
        play_context.remote_addr = there.get("ansible_host") or name
        template = self._templar.copy_with_new_env(available_variables=there).template
        kind = template(there.get("ansible_connection", "ssh"))
        connection = connection_loader.get(kind, play_context, "/dev/null")
        if connection is None:
            raise AnsibleActionFail(f"{name}: there is no connection plugin {kind}")
        options = {
            key: template(value) for key, value in there.items() if key.startswith("ansible_") and key not in FACTS
        }
        connection.set_options(var_options={**options, "inventory_hostname": name})
        connection.set_option("host", str(play_context.remote_addr)) if kind.endswith("ssh") else None
        if kind != "local" or there.get("ansible_become", True):
            become = become_loader.get(str(options.get("ansible_become_method", "sudo")))
            become.set_options(var_options=options)
            connection.set_become_plugin(become)
        return connection


FACTS: Sequence[str] = ("ansible_facts", "ansible_local")
