# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What must hold for one host before anything is changed: variables against the roles' specs, facts against needs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.parameters import remove_values
from ansible.module_utils.parsing.convert_bool import BOOLEANS_FALSE
from ansible_collections.vmfleet.ops.plugins.module_utils._redaction import SECRET_NAME

SUPPORTED_RELEASES = {"bookworm": "Debian 12", "trixie": "Debian 13", "jammy": "Ubuntu 22.04", "noble": "Ubuntu 24.04"}
HIDDEN = "(hidden)"
NO_VALUE = "(not set)"
PLACEHOLDERS = frozenset(
    {"changeme", "change_me", "change-me", "replace_me", "replaceme", "secret", "password", "todo", "xxx"}
)
REQUIREMENTS = ("memory_mb", "vcpus", "disk_gb")


@dataclass(frozen=True)
class Problem:
    """Something that would go wrong: which variable, its value as it may be shown, what is wrong, what to do."""

    variable: str
    value: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        shown = f" = {self.value}" if self.value else ""
        return f"{self.variable}{shown}: {self.problem}; {self.remedy}"


class Unresolved(Exception):
    """A variable whose template cannot be rendered; the message says why."""


def shown(value: Any) -> str:
    """A value as a message shows it: one line, not longer than that."""
    text = " ".join(repr(_plain(value)).split())
    return text if len(text) <= 120 else text[:117] + "..."


def _plain(value: Any) -> Any:
    """Without subclasses of str, whose repr is their own business."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def unknown(name: Any, known: Iterable[str]) -> str:
    """The remedy for a name that does not exist: the one it resembles, or all there are."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known)) or 'none'}"


def _hidden(name: str, spec: Mapping[str, Any]) -> bool:
    """Whether an option itself is not to be shown: it says so, or its name does."""
    if "no_log" in spec:
        return bool(spec["no_log"])
    return spec.get("type", "str") in ("str", "dict", "list", "raw") and bool(SECRET_NAME.search(name))


def is_secret(name: str, spec: Mapping[str, Any]) -> bool:
    """Whether an option, or one inside it, is not to be shown."""
    return _hidden(name, spec) or any(is_secret(key, option) for key, option in (spec.get("options") or {}).items())


def masked(name: str, value: Any, spec: Mapping[str, Any]) -> str:
    """A value as a message may show it."""
    if value is None or value == "":
        return "(empty)"
    return HIDDEN if is_secret(name, spec) else shown(value)


def _strings(value: Any) -> set[str]:
    if isinstance(value, str):
        return {str(value)} if value else set()
    if isinstance(value, Mapping):
        return set().union(*(_strings(item) for item in value.values())) if value else set()
    if isinstance(value, (list, tuple)):
        return set().union(*(_strings(item) for item in value)) if value else set()
    return set()


def secrets_of(name: str, value: Any, spec: Mapping[str, Any]) -> set[str]:
    """The strings in a value that must not appear anywhere."""
    if _hidden(name, spec):
        return _strings(value)
    options = spec.get("options") or {}
    found: set[str] = set()
    if isinstance(value, Mapping):
        for key, option in options.items():
            if key in value:
                found |= secrets_of(key, value[key], option)
    if isinstance(value, (list, tuple)) and options:
        for item in value:
            found |= secrets_of(name, item, spec)
    return found


def _remedy(spec: Mapping[str, Any]) -> str:
    if spec.get("choices"):
        return f"give one of {', '.join(str(choice) for choice in spec['choices'])}"
    kind = spec.get("type", "str")
    if kind == "list" and spec.get("elements"):
        return f"give a list of {spec['elements']}"
    return f"give a value of type {kind}"


def check_value(name: str, spec: Mapping[str, Any], value: Any) -> list[Problem]:
    """One variable against its option of a role's spec, judged by Ansible's own validator."""
    result = ArgumentSpecValidator({name: dict(spec)}).validate({name: value})
    secrets = secrets_of(name, value, spec)
    problems = []
    for message in result.error_messages:
        text = remove_values(" ".join(str(message).split()), secrets)
        problems.append(Problem(name, masked(name, value, spec), text.rstrip("."), _remedy(spec)))
    # The validator takes the word; a template takes any text for true.
    if spec.get("type") == "bool" and isinstance(value, str) and value.lower() in BOOLEANS_FALSE and not problems:
        remedy = f"write {name}: false in the inventory, or -e '{{\"{name}\": false}}'"
        problems.append(Problem(name, shown(value), "is text, and any text counts as true", remedy))
    placeholder = is_secret(name, spec) and any(text.lower().strip("<>") in PLACEHOLDERS for text in secrets)
    if placeholder and not problems:
        problems.append(Problem(name, HIDDEN, "is a placeholder", "put a secret of your own into the vault"))
    return problems


def check_variables(
    options: Mapping[str, Mapping[str, Any]], known: Iterable[str], resolve: Callable[[str], Any]
) -> list[Problem]:
    """All variables of a host's roles.

    :param options: the union of the roles' options.
    :param known: the names that have a value, from the inventory or a role's defaults.
    :param resolve: a name to its rendered value; raises Unresolved.
    """
    names = set(known)
    problems = []
    for name, spec in sorted(options.items()):
        if name not in names:
            if spec.get("required"):
                hint = "put it into the vault of this inventory" if is_secret(name, spec) else "set it in the inventory"
                problems.append(Problem(name, NO_VALUE, "is required", hint))
            continue
        try:
            value = resolve(name)
        except Unresolved as error:
            problems.append(Problem(name, "", str(error), "define what it refers to, or set another value"))
            continue
        if value is None and not spec.get("required"):
            continue
        problems += check_value(name, spec, value)
    return problems


def check_spelling(
    names: Iterable[str], options: Iterable[str], roles: Iterable[str], all_roles: Iterable[str]
) -> list[Problem]:
    """Variables that look like an option of the host's roles but are none: they would be ignored without a word.

    ``names`` with a role's prefix are compared with that role's options only; helper variables that resemble no
    option are left alone.
    """
    known = sorted(options)
    wanted = set(roles)
    prefixes = sorted(all_roles, key=len, reverse=True)
    problems = []
    for name in sorted(set(names) - set(known)):
        owner = next((role for role in prefixes if name.startswith(f"{role}_")), None)
        if owner not in wanted:
            continue
        candidates = [option for option in known if option.startswith(f"{owner}_")]
        close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.87)
        if close:
            problems.append(Problem(name, "", f"is no variable of role {owner}", f"did you mean {close[0]}?"))
    return problems


def check_host(facts: Mapping[str, Any], root: bool, python: str) -> list[Problem]:
    """What every role takes for granted of a host, from its facts with setup's names."""
    problems = []
    release = str(facts.get("ansible_distribution_release", ""))
    if release not in SUPPORTED_RELEASES:
        system = f"{facts.get('ansible_distribution')} {facts.get('ansible_distribution_version')}"
        supported = ", ".join(SUPPORTED_RELEASES.values())
        problems.append(
            Problem("operating system", f"{system} ({release})", "is not supported", f"use one of {supported}")
        )
    if facts.get("ansible_pkg_mgr") != "apt":
        problems.append(Problem("apt", "", "is missing on the host", "install apt and dpkg"))
    if facts.get("ansible_service_mgr") != "systemd":
        problems.append(
            Problem(
                "init system", str(facts.get("ansible_service_mgr")), "is not systemd", "boot the host with systemd"
            )
        )
    if "ansible_python" not in facts:
        problems.append(
            Problem(
                "ansible_python_interpreter",
                shown(python),
                "is missing on the host",
                "install python3-minimal and python3-apt, or set ansible_python_interpreter",
            )
        )
    if not root:
        user = str(facts.get("ansible_user_id", ""))
        problems.append(
            Problem("ansible_become", "", f"the tasks run as {user or 'an unprivileged user'}", "let become give root")
        )
    return problems


def check_ports(listening: Iterable[tuple[str, str, Any]]) -> list[Problem]:
    """No port of a host is taken by two roles.

    :param listening: role, variable and port. Within a role its own rules decide.
    """
    taken: dict[int, tuple[str, str]] = {}
    problems = []
    for role, variable, value in listening:
        if isinstance(value, bool) or not str(value).isdigit():
            continue
        owner, other = taken.setdefault(int(value), (role, variable))
        if owner != role:
            problems.append(Problem(variable, shown(value), f"is {other} of the same host too", "change one of them"))
    return problems


def check_requirements(requires: Any, facts: Mapping[str, Any]) -> list[Problem]:
    """The host's size against what the inventory asks of it in ``vmfleet_requires``."""
    name = "vmfleet_requires"
    if not isinstance(requires, Mapping):
        return [Problem(name, shown(requires), "is no mapping", f"give {', '.join(REQUIREMENTS)}")]
    mounts = facts.get("ansible_mounts") or []
    # A machine sold with 4 GB shows less: the kernel and the firmware keep some.
    tolerance = 0.93
    present = {
        "memory_mb": facts.get("ansible_memtotal_mb"),
        "vcpus": facts.get("ansible_processor_vcpus"),
        "disk_gb": mounts[0]["size_total"] // 1000**3 if mounts else None,
    }
    problems = []
    for key, wanted in sorted(requires.items()):
        if key not in REQUIREMENTS:
            problems.append(Problem(f"{name}.{key}", shown(wanted), "is unknown", f"use {', '.join(REQUIREMENTS)}"))
            continue
        if isinstance(wanted, bool) or not isinstance(wanted, (int, float)) or wanted <= 0:
            problems.append(Problem(f"{name}.{key}", shown(wanted), "is no positive number", "give a whole number"))
            continue
        found = present[key]
        if found is not None and found < wanted * (1 if key == "vcpus" else tolerance):
            problems.append(
                Problem(f"{name}.{key}", shown(wanted), f"the host has {found}", "give the host more, or ask for less")
            )
    return problems


def merged_packages(declared: Iterable[Any]) -> list[Any]:
    """The packages of several roles as one list for ``converge``: each once, sorted, absent ones left out."""
    result: dict[str, Any] = {}
    for entry in declared:
        name = str(entry["name"] if isinstance(entry, Mapping) else entry)
        if isinstance(entry, Mapping):
            if entry.get("state", "present") != "present":
                continue
            said = {key: entry[key] for key in ("version", "first") if entry.get(key)}
            if said:
                result[name] = {"name": name, **said}
                continue
        result.setdefault(name, name)
    return [result[name] for name in sorted(result)]


def report(problems: Iterable[Problem]) -> str:
    """The message of a failed preflight."""
    lines = [f"- {problem}" for problem in problems]
    count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return "\n".join([f"{count} found before any change:", *lines])
