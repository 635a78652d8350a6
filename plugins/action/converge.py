# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's half of ``converge``: render, look once, compare, and call the host only if something differs."""

from __future__ import annotations

import base64
import json
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader
from ansible_collections.vmfleet.ops.plugins.module_utils._desired import (
    ARGUMENT_SPEC,
    DesiredError,
    normalise,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._plan import SENSITIVE, Plan, make_plan
from ansible_collections.vmfleet.ops.plugins.module_utils._probe import (
    ProbeError,
    build_script,
    content_script,
    parse_answer,
    parse_contents,
)
from ansible_collections.vmfleet.ops.plugins.plugin_utils import _looks
from ansible_collections.vmfleet.ops.plugins.plugin_utils._change import change_id, give_word, run_shell
from ansible_collections.vmfleet.ops.plugins.plugin_utils._engine import call, interpreter
from ansible_collections.vmfleet.ops.plugins.plugin_utils._warm import warm
from yaml import YAMLError

# In the parent process, which loads the plugin; the validator copies the whole spec.
warm()
VALIDATOR = ArgumentSpecValidator(ARGUMENT_SPEC)
# A host that other runs keep changing is looked at anew this many times.
LOOKS = 4


class _Shallow(dict[str, Any]):
    """The template lookup and the validator copy all that they are given deeply, which costs more than their work."""

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return dict(self)


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._variables = task_vars or {}
        desired = self._desired()
        recovered: list[str] = []
        for _look in range(LOOKS):
            observed = self._look(desired)
            plan = make_plan(desired, observed)
            if not plan.changed and not observed["pending"]:
                result["changed"] = bool(recovered)
                break
            if self._task.check_mode:
                result.update(self._report(plan), **self._rehearse(plan))
                if observed["pending"]:
                    result["changed"] = True
                    result.setdefault("changes", []).insert(0, self._recovery_words(observed["pending"]))
                break
            report = self._report(plan)
            outcome = self._apply(plan, observed)
            if outcome.get("failed"):
                result.update(report, **outcome)
                result["changed"] = False
                break
            if outcome.get("stale"):
                recovered += outcome["recovered"]
                continue
            if outcome.get("awaiting_word"):
                give_word(self, desired["name"], int(outcome["awaiting_word"]))
            result.update(report, changed=True, warnings=outcome.get("warnings") or [])
            break
        else:
            raise AnsibleActionFail(
                f"role {desired['name']}: other runs kept changing this host while it was looked at; run again later"
            )
        if recovered:
            result["changed"] = True
            result.setdefault("changes", []).insert(0, self._recovery_words(recovered))
        return result

    @staticmethod
    def _recovery_words(roles: list[str]) -> str:
        return f"took back the interrupted transaction of {', '.join(roles)}"

    # -- what is wanted -----------------------------------------------------------------------------------------

    def _desired(self) -> dict[str, Any]:
        arguments = {key: value for key, value in self._task.args.items() if value is not None}
        declaration = self._declaration(arguments)
        self._variables = {**self._variables, **declaration.pop("vars", {})}
        for key, value in declaration.items():
            if isinstance(value, list) and isinstance(arguments.get(key, []), list):
                arguments[key] = [*arguments.get(key, []), *value]
            elif key in arguments:
                raise AnsibleActionFail(f"converge: {key} is given twice: as an option, and in declaration")
            else:
                arguments[key] = value
        validated = VALIDATOR.validate(_Shallow(arguments))
        if validated.error_messages:
            raise AnsibleActionFail(f"converge: {'; '.join(validated.error_messages)}")
        try:
            return normalise(validated.validated_parameters, self._render, self._addresses)
        except DesiredError as error:
            raise AnsibleActionFail(f"role {validated.validated_parameters['name']}: {error}") from error

    def _declaration(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """What stands in the option of that name, taken out of the others."""
        self._variables = {**self._variables, **arguments.pop("vars", {})}
        given = arguments.pop("declaration", None) or {}
        if isinstance(given, dict):
            return dict(given)
        if arguments.get("state") == "absent":
            return {}
        text = self._template(str(given), self._variables, "declaration")
        try:
            declaration = json.loads(text) if ".json" in given else yaml_load(text)
        except (ValueError, YAMLError) as error:
            raise AnsibleActionFail(f"converge: declaration: template {given} yields no data: {error}") from error
        if not isinstance(declaration, dict):
            raise AnsibleActionFail(f"converge: declaration: template {given} must yield a dictionary")
        return declaration

    def _template(self, name: str, variables: dict[str, Any], purpose: str) -> str:
        lookup = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        try:
            return "".join(lookup.run([name], variables=_Shallow(variables)))
        except AnsibleError as error:
            raise AnsibleActionFail(f"template {name} for {purpose}: {error}") from error

    def _render(self, entry: dict[str, Any]) -> bytes:
        given = [key for key in ("template", "content", "source") if entry.get(key) is not None]
        label = str(entry.get("dest") or entry.get("name"))
        if len(given) != 1:
            raise DesiredError(f"files: {label!r} needs exactly one of template, content and source, has {given}")
        if given == ["content"]:
            return str(entry["content"]).encode()
        if given == ["source"]:
            path = self._find_needle("files", entry["source"])
            with open(path, "rb") as handle:
                return handle.read()
        variables = {**self._variables, **entry["vars"]} if entry.get("vars") else self._variables
        return self._template(entry["template"], variables, label).encode()

    def _addresses(self, group: str) -> list[str]:
        hostvars = self._variables["hostvars"]
        result = []
        for host in self._variables["groups"][group]:
            variables = hostvars[host]
            result.append(str(variables.get("vmfleet_address") or variables.get("ansible_host") or host))
        return result

    # -- what is there ------------------------------------------------------------------------------------------

    def _look(self, desired: dict[str, Any]) -> dict[str, Any]:
        script = build_script(desired)
        answer = self._answer(script, desired)
        try:
            observed = parse_answer(desired, script, answer)
        except ProbeError as error:
            raise AnsibleActionFail(
                f"role {desired['name']}: the host did not answer the probe: {error}. Is /bin/sh there, and become set?"
            ) from error
        if not observed["root"]:
            raise AnsibleActionFail(f"role {desired['name']}: the host must be changed as root; set become: true")
        return observed

    def _answer(self, script: str, desired: dict[str, Any]) -> str:
        host = self._variables["inventory_hostname"]
        # What preflight has seen is the host itself, not one that a task is delegated to.
        if self._task.delegate_to or not _looks.wanted(host):
            return run_shell(self, script)
        earlier = _looks.take(host, script)
        if earlier is not None:
            return earlier
        if not self._task.check_mode:
            script = _looks.and_keep_it(script, desired["name"], desired["state"] == "absent")
        return run_shell(self, script)

    # -- what differs -------------------------------------------------------------------------------------------

    def _report(self, plan: Plan) -> dict[str, Any]:
        report: dict[str, Any] = {"changed": True, "changes": plan.changes}
        if self._task.diff:
            report["diff"] = self._diff(plan)
        return report

    def _diff(self, plan: Plan) -> list[dict[str, str]]:
        name = plan.desired["name"]
        diff = [
            {
                "before_header": f"{name} (before)",
                "after_header": f"{name} (after)",
                "before": "".join(f"{line}\n" for line in plan.before),
                "after": "".join(f"{line}\n" for line in plan.after),
            }
        ]
        there = plan.observed["paths"]
        readable = [
            entry["dest"]
            for entry in plan.texts
            if not entry.get("sensitive") and there.get(entry["dest"], {}).get("kind") == "file"
        ]
        contents = parse_contents(run_shell(self, content_script(readable))) if readable else {}
        for entry in plan.texts:
            dest = entry["dest"]
            if entry.get("sensitive"):
                before, after = (SENSITIVE if dest in there else "", SENSITIVE + "(new)\n")
            else:
                before = base64.b64decode(contents.get(dest, "")).decode(errors="replace")
                after = entry.get("content", b"").decode(errors="replace")
            if before != after:
                diff.append({"before_header": dest, "after_header": dest, "before": before, "after": after})
        return diff

    # -- the change ---------------------------------------------------------------------------------------------

    def _on_host(self, plan: Plan) -> dict[str, Any]:
        files = [
            {**entry, "content": base64.b64encode(entry["content"]).decode()} if "content" in entry else entry
            for entry in plan.payload["files"]
        ]
        request = {**plan.payload, "files": files, "change": change_id(), "check_mode": self._task.check_mode}
        return call(self, "_transaction.answer", request, interpreter(self, self._variables))

    def _apply(self, plan: Plan, observed: dict[str, Any]) -> dict[str, Any]:
        if not observed["python"]:
            raise AnsibleActionFail(
                f"role {plan.desired['name']}: the host has no python3, which a change needs; install python3-minimal"
            )
        _looks.spoil()
        return self._on_host(plan)

    def _rehearse(self, plan: Plan) -> dict[str, Any]:
        """In check mode, validation of the staged files where the host can do it: nothing to install, python3 there."""
        payload = plan.payload
        possible = (
            plan.observed["python"]
            and not plan.observed["pending"]
            and not (payload["packages"]["install"] or payload["users"] or payload["groups"])
        )
        worthwhile = payload["files"] and (
            payload["validate"] or any(entry.get("validate") for entry in payload["files"])
        )
        if not (possible and worthwhile):
            return {}
        outcome = self._on_host(plan)
        return {**outcome, "changed": False} if outcome.get("failed") else {}
