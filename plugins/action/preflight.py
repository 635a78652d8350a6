# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Everything that can be known to be wrong before anything is changed, and the facts that the roles need."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.vmfleet.ops.plugins.module_utils import _fleet_rules as rules
from ansible_collections.vmfleet.ops.plugins.module_utils._host_facts import (
    FactsError,
    assumed_facts,
    build_script,
    facts_of,
    parse_answer,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._lb_model import OWN_CERTIFICATES
from ansible_collections.vmfleet.ops.plugins.module_utils._preflight import (
    Problem,
    Unresolved,
    check_host,
    check_ports,
    check_requirements,
    check_spelling,
    check_variables,
    is_secret,
    masked,
    merged_packages,
    report,
    shown,
)
from ansible_collections.vmfleet.ops.plugins.plugin_utils import _looks
from ansible_collections.vmfleet.ops.plugins.plugin_utils._arguments import validated
from ansible_collections.vmfleet.ops.plugins.plugin_utils._checklists import Checklist, load_checklist
from ansible_collections.vmfleet.ops.plugins.plugin_utils._engine import interpreter
from ansible_collections.vmfleet.ops.plugins.plugin_utils._fleet_pki import PkiError, check_given
from ansible_collections.vmfleet.ops.plugins.plugin_utils._role_sources import RoleSource, load_role, own_roles
from ansible_collections.vmfleet.ops.plugins.plugin_utils._warm import warm

ARGUMENT_SPEC: dict[str, Any] = {
    "roles": {"type": "dict", "required": True},
    "connect": {"type": "bool", "default": True},
    "checklist": {"type": "str"},
    "prefetch": {"type": "bool", "default": False},
}
UNDEFINED = re.compile(r"'([\w. ]+)' is undefined")
ORIGIN = re.compile(r"\s*\bOrigin:.*", re.DOTALL)

PUBLIC_SECRETS = Problem(
    "vault_password_is_public",
    "True",
    "the secrets of this inventory are the sample's, which everybody knows",
    "replace them, rekey the vault and take this variable out, as inventories/README.md says",
)

# In the parent process, which loads the plugin.
warm()


# The routing model; the first of them makes a host one that has it.
ROUTING = ("lb_sites", "vmfleet_services", "lb_defaults", "lb_headers", "lb_tls_ciphers", "lb_type")


class ActionModule(ActionBase):
    """See the documentation of the module of the same name."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False
    _supports_diff = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        arguments = validated("preflight", ARGUMENT_SPEC, self._task.args)

        unreachable: AnsibleConnectionFailure | None = None
        problems: list[Problem] = []
        facts = self._assumed(variables)
        if arguments["connect"]:
            try:
                facts, problems = self._ask(variables, arguments["prefetch"])
            except AnsibleConnectionFailure as error:
                unreachable = error
        roles, unknown = self._roles(arguments["roles"], variables)
        problems += unknown
        host = _Host(self._templar, variables, facts, roles)
        problems += self._own_problems(host, arguments["connect"] and not unreachable)
        if arguments["connect"] and host.context.get("vault_password_is_public"):
            problems.append(PUBLIC_SECRETS)
        checklist = self._checklist(arguments["checklist"])
        if checklist:
            problems += host.open_boxes(checklist, ["all", *variables.get("group_names", ())])
        packages: list[Any] = []
        if arguments["connect"] and not problems:
            try:
                packages = host.packages()
            except Unresolved as error:
                problems.append(Problem("packages", "", str(error), "correct the variables that it names"))
        if self._leads(variables):
            problems += self._fleet_problems(host)
            if checklist:
                problems += host.open_boxes(checklist, ["fleet"])
                self._display.display("\n".join([f"{checklist.title}, what is left:", *checklist.left(), ""]))

        if unreachable is not None:
            if problems:
                raise AnsibleConnectionFailure(f"{unreachable.message}\nBesides, {report(problems)}") from unreachable
            raise unreachable
        result["changed"] = False
        if problems:
            result.update(failed=True, msg=report(problems))
            return result
        result["ansible_facts"] = {**facts, "vmfleet_host_packages": packages} if arguments["connect"] else {}
        return result

    @staticmethod
    def _checklist(name: str | None) -> Checklist | None:
        if not name:
            return None
        try:
            return load_checklist(name)
        except LookupError as error:
            raise AnsibleActionFail(f"preflight_checklist = {name!r}: is no list; {error}") from error

    # -- the host itself ----------------------------------------------------------------------------------------

    def _assumed(self, variables: dict[str, Any]) -> dict[str, Any]:
        address = variables.get("vmfleet_address", variables.get("ansible_host"))
        try:
            address = self._templar.template(address)
        except AnsibleError:
            address = None
        return assumed_facts(str(variables["inventory_hostname"]), str(address) if address else None)

    def _ask(self, variables: dict[str, Any], prefetch: bool) -> tuple[dict[str, Any], list[Problem]]:
        python = interpreter(self, variables)
        script = build_script(python, _looks.ASK_ALL) if prefetch else build_script(python)
        answer = self._low_level_execute_command("/bin/sh -s", in_data=script.encode(), executable="/bin/sh")
        if prefetch:
            _looks.keep(variables["inventory_hostname"], str(answer["stdout"]))
        try:
            sections = parse_answer(str(answer["stdout"]))
        except FactsError:
            said = " ".join(f"{answer['stdout']} {answer['stderr']}".split())[-300:] or "nothing"
            problem = Problem(
                "connection", said, "the host did not answer", "give it /bin/sh and a become that needs no terminal"
            )
            return self._assumed(variables), [problem]
        facts = facts_of(sections)
        return facts, check_host(facts, (sections.get("id") or [""])[0].strip() == "0", python)

    def _roles(self, wanted: dict[str, Any], variables: dict[str, Any]) -> tuple[list[RoleSource], list[Problem]]:
        roles: dict[str, RoleSource] = {}
        problems = []
        mine = {"all", *variables.get("group_names", ())}
        for group, names in wanted.items():
            if group not in mine:
                continue
            for name in [names] if isinstance(names, str) else names:
                try:
                    roles.setdefault(name, load_role(str(name)))
                except LookupError:
                    problems.append(
                        Problem(
                            f"roles.{group}", shown(name), "no such role is installed", f"use {', '.join(own_roles())}"
                        )
                    )
        return list(roles.values()), problems

    @staticmethod
    def _own_problems(host: _Host, asked: bool) -> list[Problem]:
        known = set(host.context)
        problems = check_variables(host.unproven, known, host.resolve)
        problems += check_spelling(known, host.options, (role.name for role in host.roles), own_roles())
        problems += host.broken_rules({problem.variable for problem in problems})
        problems += check_ports(host.listening())
        problems += host.bad_certificates()
        if "vmfleet_requires" in known:
            try:
                problems += check_requirements(host.resolve("vmfleet_requires"), host.facts if asked else {})
            except Unresolved as error:
                problems.append(Problem("vmfleet_requires", "", str(error), "define what it refers to"))
        return problems

    # -- the fleet as a whole -----------------------------------------------------------------------------------

    @staticmethod
    def _leads(variables: dict[str, Any]) -> bool:
        """One host looks at the inventory as a whole; if all did, the cost would grow with the square of the fleet."""
        hosts = variables.get("ansible_play_hosts") or [variables["inventory_hostname"]]
        return bool(hosts[0] == variables["inventory_hostname"])

    def _fleet_problems(self, leader: _Host) -> list[Problem]:
        groups = leader.context.get("groups") or {}
        fleet = _Fleet(self._templar, leader.context["hostvars"], groups)
        problems: list[Problem] = []
        addresses = {name: fleet.first(name, "vmfleet_address", "ansible_host") or name for name in groups["all"]}
        problems += rules.check_addresses(addresses)
        problems += rules.check_shared_addresses(self._pairs(fleet, groups), addresses)
        problems += rules.check_database_groups(groups)
        problems += rules.check_quorums(groups)
        for members in fleet.distinct("vmfleet_members"):
            problems += rules.check_members(members, groups)
        problems += rules.check_lb_types({name: fleet.get(name, "lb_type") for name in groups.get("lb", ())})
        for services in fleet.distinct("vmfleet_services"):
            problems += rules.check_services(services, groups)
        for flows, services in fleet.distinct_together("vmfleet_flows", "vmfleet_services"):
            problems += rules.check_flows(
                flows or {}, groups, services if isinstance(services, dict) else {}, own_roles()
            )
        for values in fleet.distinct_together(*ROUTING):
            problems += rules.check_routing(dict(zip(ROUTING, values)), groups)
        # What holds for both kinds of balancer was found for each of them.
        return list(dict.fromkeys([*problems, *fleet.problems, *self._budget(fleet, groups)]))

    @staticmethod
    def _pairs(fleet: _Fleet, groups: dict[str, list[str]]) -> dict[str, dict[str, tuple[Any, Any]]]:
        """The balancers that share addresses, by the group in which they do."""
        names = ("keepalived_addresses", "keepalived_router_id")
        sharing = [host for host in groups.get("lb", ()) if fleet.get(host, names[0])]
        wanted = dict.fromkeys(str(fleet.get(host, "keepalived_group") or "lb") for host in sharing)
        return {
            group: {host: (fleet.get(host, names[0]), fleet.get(host, names[1])) for host in groups[group]}
            for group in wanted
            if groups.get(group)
        }

    @staticmethod
    def _budget(fleet: _Fleet, groups: dict[str, list[str]]) -> list[Problem]:
        """The servers' connections against what poolers may open, from the settings as the roles combine them."""
        try:
            postgresql, pgbouncer = load_role("postgresql"), load_role("pgbouncer")
        except LookupError:
            return []
        servers = {
            host: rules.server_connections(
                fleet.as_role(host, postgresql, "__postgresql_all_settings") or {},
                fleet.get(host, "vmfleet_direct_connections"),
            )
            for group in ("db_primary", "db_replica")
            for host in groups.get(group, ())
        }
        poolers = {
            host: rules.pooler_demand(
                fleet.as_role(host, pgbouncer, "__pgbouncer_all_settings") or {},
                fleet.as_role(host, pgbouncer, "pgbouncer_databases") or [],
                groups,
            )
            for host in groups.get("pgbouncer", ())
            if servers
        }
        return rules.check_connection_budget(servers, poolers)


class _Host:
    """A host's variables as its roles will see them."""

    def __init__(self, templar: Any, variables: dict[str, Any], facts: dict[str, Any], roles: list[RoleSource]) -> None:
        self.roles = roles
        self.facts = facts
        self.options: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        internal: dict[str, Any] = {}
        # A role's own constants have been held against its spec by the tests.
        proven: set[str] = set()
        for role in roles:
            self.options.update(role.options)
            proven |= role.constants
            defaults.update(role.defaults)
            internal.update(role.variables)
        proven.difference_update(variables)
        self.unproven = {name: option for name, option in self.options.items() if name not in proven}
        plain = {name[len("ansible_") :]: value for name, value in facts.items()}
        self.context: dict[str, Any] = {
            **defaults,
            **variables,
            **facts,
            **internal,
            "ansible_facts": {**(variables.get("ansible_facts") or {}), **plain},
        }
        self._templar = templar.copy_with_new_env(available_variables=self.context)
        self._resolved: dict[str, Any] = {}

    def resolve(self, name: str) -> Any:
        if name not in self._resolved:
            try:
                self._resolved[name] = self._templar.template(self.context[name])
            except AnsibleError as error:
                raise Unresolved(self._why(name, error)) from error
        return self._resolved[name]

    def _why(self, name: str, error: AnsibleError) -> str:
        text = str(error)
        missing = UNDEFINED.findall(text)
        if missing:
            return f"refers to {', '.join(sorted(set(missing)))}, which is not defined"
        if "vault" in text.lower() and "secret" in text.lower():
            return "is encrypted and no vault password opens it"
        if is_secret(name, self.options.get(name, {})):
            return "cannot be rendered"
        return f"cannot be rendered: {' '.join(ORIGIN.sub('', text).split())[:300]}"

    def broken_rules(self, reported: set[str]) -> list[Problem]:
        """What a role refuses besides its spec, its ``__<role>_rules``: variable, holds, problem and remedy."""
        found = []
        for role in self.roles:
            for rule in role.variables.get(f"__{role.name.rpartition('.')[2]}_rules") or []:
                if str(rule["variable"]) not in reported:
                    found += self._broken(rule)
        return found

    def open_boxes(self, checklist: Checklist, groups: Iterable[str]) -> list[Problem]:
        """Boxes of a list whose rules do not hold."""
        return [
            dataclasses.replace(problem, remedy=f"{problem.remedy} (box {box!r} of {checklist.title})")
            for group in groups
            for box, rule in checklist.judged(group)
            for problem in self._broken(rule)
        ]

    def _broken(self, rule: dict[str, Any]) -> list[Problem]:
        """A rule that does not hold: its variable, whether it holds, problem and remedy are templates."""
        variable = str(rule["variable"])
        try:
            rendered = self._templar.template(rule)
        except AnsibleError as error:
            return [Problem(variable, "", self._why(variable, error), "correct it")]
        if str(rendered["holds"]).lower() == "true":
            return []
        value = self.context.get(variable)
        # What a rule says about a group is not about a variable's value.
        seen = masked(variable, value, self.options.get(variable, {})) if variable in self.context else ""
        return [Problem(variable, seen, str(rendered["problem"]), str(rendered["remedy"]))]

    def _applied(self, role: RoleSource) -> bool:
        return bool(self._known(f"{role.name.rpartition('.')[2]}_state", "present") != "absent")

    def _known(self, name: str, otherwise: Any) -> Any:
        """A value, or what stands in for one that is missing; what cannot be rendered is reported elsewhere."""
        if name in self.options and name not in self.unproven:
            return self.context.get(name, otherwise)
        try:
            return self.resolve(name) if name in self.context else otherwise
        except Unresolved:
            return otherwise

    def listening(self) -> list[tuple[str, str, Any]]:
        """Ports that the host's roles listen on, each with its role and variable."""
        found = []
        for role in self.roles:
            short = role.name.rpartition(".")[2]
            ports = [
                name for name, option in role.options.items() if name.endswith("_port") and option["type"] == "int"
            ]
            if (ports or short == "app_service") and self._applied(role):
                found += [(short, name, self._known(name, None)) for name in ports]
                services = self._known("app_service_services", []) if short == "app_service" else []
                found += [
                    (short, f"app_service_services[{index}].port", service.get("port"))
                    for index, service in enumerate(services or ())
                    if isinstance(service, dict)
                ]
        return found

    def bad_certificates(self) -> list[Problem]:
        """Given certificates with which nothing could be served, judged by the code that places them."""
        given: dict[str, Any] = {}
        if self._known("tls_state", "absent") == "absent":
            return []
        # As long as these are the role's own constants, nothing is given.
        if {"tls_certificate", "tls_private_key"} & set(self.unproven):
            given["tls_certificate"] = {
                "certificate": self._known("tls_certificate", ""),
                "private_key": self._known("tls_private_key", ""),
                "ca": self._known("tls_ca", ""),
            }
        problems = []
        if "tls_certificates" in self.unproven:
            for index, item in enumerate(self._known("tls_certificates", []) or ()):
                if not isinstance(item, dict):
                    continue
                variable = f"tls_certificates[{index}]"
                given[variable] = {**item, "names": [*(item.get("names") or ()), *self._served_with(item.get("name"))]}
                if not (item.get("certificate") or item.get("private_key") or item.get("names")):
                    remedy = "give certificate and private_key, or names for one of the fleet's"
                    problems.append(Problem(variable, shown(item.get("name")), "has no certificate", remedy))
        for variable, item in given.items():
            if not (item.get("certificate") or item.get("private_key")):
                continue
            try:
                check_given(
                    str(item.get("certificate") or ""),
                    str(item.get("private_key") or ""),
                    ca_pem=str(item.get("ca") or ""),
                    names=item.get("names") or (),
                    label="the certificate",
                )
            except PkiError as error:
                what, _separator, remedy = str(error).partition("; ")
                problems.append(Problem(variable, "", what, remedy or "correct it"))
        return problems

    def _served_with(self, certificate: Any) -> list[str]:
        """The names of all sites that are served with a certificate of ``tls_certificates``."""
        return [
            str(host)
            for site in self._known("tls_sites", []) or ()
            if isinstance(site, dict)
            and certificate
            == site.get("name" if site.get("certificate") in OWN_CERTIFICATES else "certificate", "host")
            for host in site.get("hosts") or ()
        ]

    def packages(self) -> list[Any]:
        """What the roles of this host install, as far as they say so in ``__<role>_packages``."""
        declared: list[Any] = []
        for role in self.roles:
            short = role.name.rpartition(".")[2]
            name = f"__{short}_packages"
            if name in self.context and self.resolve(f"{short}_state") != "absent":
                declared += self.resolve(name)
        return merged_packages(declared)


class _Fleet:
    """Variables of any host, rendered with that host's own."""

    def __init__(self, templar: Any, hostvars: Any, groups: dict[str, list[str]]) -> None:
        self._hostvars = hostvars
        self._templar = templar
        self._groups = groups
        self._raw: dict[str, dict[str, Any]] = {}
        self._failed: dict[str, list[str]] = {}

    def raw(self, host: str) -> dict[str, Any]:
        if host not in self._raw:
            self._raw[host] = self._hostvars.raw_get(host)
        return self._raw[host]

    def get(self, host: str, name: str) -> Any:
        variables = self.raw(host)
        if name not in variables:
            return None
        value = variables[name]
        if isinstance(value, str) and "{" not in value:
            return value
        try:
            return self._render({**variables, "hostvars": self._hostvars, "groups": self._groups}, value)
        except AnsibleError:
            self._failed.setdefault(name, []).append(host)
            return None

    def as_role(self, host: str, role: RoleSource, name: str) -> Any:
        """A variable as the role sees it on that host; None if it cannot be rendered, which the host itself reports."""
        variables = self.raw(host)
        assumed = assumed_facts(host, None)
        facts = {key[len("ansible_") :]: value for key, value in assumed.items()}
        facts.update(variables.get("ansible_facts") or {})
        context = {
            **role.defaults,
            **assumed,
            **variables,
            **role.variables,
            "ansible_facts": facts,
            "hostvars": self._hostvars,
            "groups": self._groups,
        }
        try:
            return self._render(context, context[name])
        except AnsibleError:
            return None

    def _render(self, context: dict[str, Any], value: Any) -> Any:
        return self._templar.copy_with_new_env(available_variables=context).template(value)

    def first(self, host: str, *names: str) -> Any:
        return next((value for name in names if (value := self.get(host, name))), None)

    def distinct(self, name: str) -> list[Any]:
        return [values[0] for values in self.distinct_together(name)]

    def distinct_together(self, *names: str) -> list[tuple[Any, ...]]:
        """The different values of the first name, with what goes along: one look for a thousand hosts."""
        found: list[tuple[Any, ...]] = []
        hosts: list[str] = []
        for host in self._groups["all"]:
            variables = self.raw(host)
            if names[0] not in variables:
                continue
            values = tuple(variables.get(name) for name in names)
            if values not in found:
                found.append(values)
                hosts.append(host)
        return [tuple(self.get(host, name) for name in names) for host in hosts]

    @property
    def problems(self) -> list[Problem]:
        return [
            Problem(name, "", f"cannot be rendered for {', '.join(sorted(set(hosts))[:5])}", "define what it refers to")
            for name, hosts in sorted(self._failed.items())
        ]
