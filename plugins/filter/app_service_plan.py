# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the role app_service declares to converge, worked out from the list of services."""

from __future__ import annotations

DOCUMENTATION = r"""
name: app_service_plan
short_description: Work out what app_service declares for its services
version_added: 0.1.0
description:
  - Turns the services of the role C(app_service) into the arguments that the role hands to M(vmfleet.ops.converge).
  - Reads the names of the files that an artifact is made of on the controller, and quotes values for systemd.
  - Reports everything that is wrong with the list at once.
positional: _input
options:
  _input:
    description: The services, as in the role's variable C(app_service_services).
    type: list
    elements: dict
    required: true
  allow_from:
    description: Who may reach a service that names nobody itself.
    type: list
    elements: string
    default: []
author:
  - vmfleet.ops maintainers (@vmfleet)
"""

EXAMPLES = r"""
- name: Show the files of the services
  ansible.builtin.debug:
    msg: "{{ (app_service_services | vmfleet.ops.app_service_plan).files }}"
"""

RETURN = r"""
_value:
  description:
    - The options C(packages), C(groups), C(users), C(directories), C(files), C(units), C(services), C(firewall),
      C(verify) and C(announce) of M(vmfleet.ops.converge), for its O(vmfleet.ops.converge#module:declaration).
  type: dict
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MEMORY = re.compile(r"\d+(\.\d+)?[KMGT%]?|infinity")
CPU = re.compile(r"\d+%")
LEFT_OUT = frozenset({"__pycache__", ".git"})

DEFAULTS: dict[str, Any] = {
    "type": "exec",
    "packages": [],
    "groups": [],
    "environment": {},
    "secrets": {},
    "after": [],
    "restart": "on-failure",
    "restart_delay": 5,
    "restart_burst": 3,
    "start_timeout": 30,
    "stop_timeout": 30,
    "limit_nofile": 65536,
    "read_write_paths": [],
    "sandbox": {},
    "require_ready": True,
}
REQUIRED = ("name", "version", "artifact", "command")

# What no ordinary network service needs. MemoryDenyWriteExecute is missing because it breaks every JIT compiler.
SANDBOX: dict[str, Any] = {
    "NoNewPrivileges": True,
    "ProtectSystem": "strict",
    "ProtectHome": True,
    "PrivateTmp": True,
    "PrivateDevices": True,
    "ProtectClock": True,
    "ProtectControlGroups": True,
    "ProtectHostname": True,
    "ProtectKernelLogs": True,
    "ProtectKernelModules": True,
    "ProtectKernelTunables": True,
    "ProtectProc": "invisible",
    "LockPersonality": True,
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "RestrictNamespaces": True,
    "RestrictRealtime": True,
    "RestrictSUIDSGID": True,
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "@system-service",
    "CapabilityBoundingSet": "",
    "UMask": "0027",
}


def unit_word(value: str, command: bool = False) -> str:
    """One word of a unit file, quoted; in a command a dollar sign would start a variable (systemd.syntax(7))."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    escaped = escaped.replace("%", "%%")
    return '"' + (escaped.replace("$", "$$") if command else escaped) + '"'


def environment_value(value: str) -> str:
    """A value of an EnvironmentFile, quoted; line breaks may stand in it as they are (systemd.exec(5))."""
    return '"' + re.sub(r'(["\\`$])', r"\\\1", value) + '"'


def directive(value: Any) -> str:
    """A setting of a unit file."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value)
    return str(value)


def _text(value: Any) -> str:
    # YAML's true would arrive as Python's True.
    return str(value).lower() if isinstance(value, bool) else str(value)


def artifact_files(artifact: Any) -> tuple[dict[str, str], list[str]]:
    """The files of an artifact, path within the release to path on the controller, and what is wrong with it."""
    files: dict[str, str] = {}
    errors: list[str] = []

    def add(relative: str, path: Path) -> None:
        if relative in files:
            errors.append(f"artifact: {path} and {files[relative]} would both become {relative}")
        files[relative] = str(path)

    for item in [artifact] if isinstance(artifact, str) else artifact:
        path = Path(str(item)).expanduser()
        if not path.is_absolute():
            errors.append(f"artifact: {path} is relative; write it from / or with inventory_dir or playbook_dir")
        elif path.is_dir():
            for file in sorted(path.rglob("*")):
                relative = file.relative_to(path)
                if file.is_file() and not LEFT_OUT.intersection(relative.parts):
                    add(str(relative), file)
        elif path.is_file():
            add(path.name, path)
        else:
            errors.append(f"artifact: there is no {path} on the controller; build it first or correct the path")
    if not files and not errors:
        errors.append("artifact: holds no file")
    return files, errors


def _service_errors(service: Mapping[str, Any]) -> Iterable[str]:
    for pattern, key, meaning in (
        (NAME, "name", "lower-case letters, digits and '-', at most 31"),
        (NAME, "user", "lower-case letters, digits and '-', at most 31"),
        (VERSION, "version", "letters, digits and . _ + ~ -"),
        (MEMORY, "memory_max", "a size such as 512M, or infinity"),
        (CPU, "cpu_quota", "a percentage of one CPU such as 150%"),
    ):
        value = service.get(key)
        if value is not None and not pattern.fullmatch(str(value)):
            yield f"{key}: {value!r} is not {meaning}"
    if not service["command"] or not str(service["command"][0]).startswith("/"):
        yield f"command: {list(service['command'])!r} does not start with the absolute path of a program"
    for key in ("environment", "secrets"):
        for name, value in service[key].items():
            if not VARIABLE.fullmatch(str(name)):
                yield f"{key}: {name!r} is not the name of an environment variable"
            if "\0" in str(value):
                yield f"{key}: {name} holds a NUL character"
    both = sorted(set(service["environment"]) & set(service["secrets"]))
    if both:
        yield f"environment, secrets: {', '.join(both)} stands in both"
    for key in ("health", "ready", "metrics"):
        if service.get(key) is not None:
            if not str(service[key]).startswith("/"):
                yield f"{key}: {service[key]!r} is not a path that starts with /"
            if service.get("port") is None:
                yield f"{key}: needs a port"
    for key, value in service["sandbox"].items():
        if not key.isalnum() or "\n" in directive(value):
            yield f"sandbox: {key}={value!r} is not a setting of systemd.exec(5)"


def _checked(services: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The services with their defaults, and their files; all errors at once."""
    errors: list[str] = []
    complete: list[dict[str, Any]] = []
    artifacts: list[dict[str, str]] = []
    for number, given in enumerate(services):
        label = f"app_service_services[{number}] ({given.get('name', 'no name')})"
        missing = [key for key in REQUIRED if not given.get(key)]
        if missing:
            errors.append(f"{label}: {', '.join(missing)} is missing")
            continue
        service = {**DEFAULTS, **{key: value for key, value in given.items() if value is not None}}
        service.setdefault("user", service["name"])
        files, wrong = artifact_files(service["artifact"])
        errors += [f"{label}: {error}" for error in [*_service_errors(service), *wrong]]
        complete.append(service)
        artifacts.append(files)
    for key in ("name", "port"):
        seen: dict[Any, str] = {}
        for service in complete:
            value = service.get(key)
            if value is not None and value in seen:
                errors.append(f"app_service_services: {seen[value]} and {service['name']} have the same {key} {value}")
            seen[value] = service["name"]
    if errors:
        raise AnsibleFilterError("app_service: " + "; ".join(errors))
    return complete, artifacts


def _unit(service: Mapping[str, Any]) -> dict[str, Any]:
    """What the template of the unit puts in place."""
    name, burst = service["name"], int(service["restart_burst"])
    sandbox = {**SANDBOX, **service["sandbox"]}
    capabilities = service.get("port") is not None and int(service["port"]) < 1024
    if capabilities and "CapabilityBoundingSet" not in service["sandbox"]:
        sandbox["CapabilityBoundingSet"] = "CAP_NET_BIND_SERVICE"
    limits = {
        "MemoryMax": service.get("memory_max"), "CPUQuota": service.get("cpu_quota"),
        "LimitNOFILE": service["limit_nofile"],
    }
    return {
        "description": str(service.get("description") or f"{name} {service['version']}").replace("\n", " "),
        "after": [str(unit) for unit in service["after"]],
        # Longer than all these starts can take together; with less, systemd would forget the first before the last.
        "start_limit_interval": burst * (
            int(service["restart_delay"]) + int(service["start_timeout"]) + int(service["stop_timeout"])
        ),
        "start_limit_burst": burst,
        "type": service["type"],
        "user": service["user"],
        "name": name,
        "environment": [unit_word(f"{key}={_text(value)}") for key, value in sorted(service["environment"].items())],
        "secrets": bool(service["secrets"]),
        "command": " ".join(unit_word(str(word), command=True) for word in service["command"]),
        "restart": service["restart"],
        "restart_delay": service["restart_delay"],
        "start_timeout": service["start_timeout"],
        "stop_timeout": service["stop_timeout"],
        "limits": {key: str(value) for key, value in limits.items() if value is not None},
        "bind": capabilities,
        "read_write_paths": " ".join(unit_word(str(path)) for path in service["read_write_paths"]),
        "sandbox": {key: directive(value).replace("%", "%%") for key, value in sorted(sandbox.items())},
    }


def _checks(service: Mapping[str, Any]) -> list[dict[str, Any]]:
    name = service["name"]
    checks: list[dict[str, Any]] = [
        {"name": f"{name} runs", "type": "systemd", "unit": f"{name}.service", "enabled": True, "severity": "crit"},
        # Tells the fleet's verdict which release is the present one.
        {
            "name": f"{name} has a release", "type": "file", "path": f"/opt/{name}/current", "state": "link",
            "follow": False, "startup": 0,
        },
    ]
    for key, words in (("health", "is alive"), ("ready", "is ready")):
        if service.get(key):
            checks.append({
                "name": f"{name} {words}", "type": "http", "url": f"http://127.0.0.1:{service['port']}{service[key]}",
                "severity": "crit", "startup": int(service["start_timeout"]),
            })
    return [{**check, "service": name} for check in checks]


def app_service_plan(services: list[dict[str, Any]], allow_from: list[str] | None = None) -> dict[str, Any]:
    """Return what converge is told about the services."""
    complete, artifacts = _checked(services)
    packages: list[Any] = []
    users: dict[str, dict[str, Any]] = {}
    directories: list[dict[str, Any]] = []
    files: list[dict[str, Any]] = []
    units: list[dict[str, Any]] = []
    watched: list[dict[str, Any]] = []
    firewall: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    verify: list[dict[str, Any]] = []
    ports: dict[str, int] = {}
    metrics: list[dict[str, Any]] = []
    for service, artifact in zip(complete, artifacts):
        name, user = str(service["name"]), str(service["user"])
        release = f"/opt/{name}/releases/{service['version']}"
        packages += [package for package in service["packages"] if package not in packages]
        account = users.setdefault(
            user, {"name": user, "group": user, "groups": [], "home": f"/var/lib/{name}", "shell": "/usr/sbin/nologin"}
        )
        account["groups"] += [group for group in service["groups"] if group not in account["groups"]]
        folders = {str(folder) for relative in artifact for folder in Path(relative).parents} - {"."}
        directories += [{"path": path} for path in (f"/opt/{name}", f"/opt/{name}/releases", release)]
        directories += [{"path": f"{release}/{folder}"} for folder in sorted(folders)]
        directories.append({"path": f"/etc/{name}", "group": user, "mode": "0750"})
        files += [
            {
                "dest": f"{release}/{relative}", "source": path,
                "mode": "0755" if os.access(path, os.X_OK) else "0644",
            }
            for relative, path in artifact.items()
        ]
        files.append({"dest": f"/opt/{name}/current", "state": "link", "target": f"releases/{service['version']}"})
        if service["secrets"]:
            secrets = [f"{key}={environment_value(_text(value))}" for key, value in sorted(service["secrets"].items())]
            files.append({
                "dest": f"/etc/{name}/{name}.env", "template": "app.env.j2", "vars": {"__app_service_secrets": secrets},
                "group": user, "mode": "0640", "sensitive": True,
            })
        units.append({
            "name": f"{name}.service", "template": "app.service.j2", "vars": {"__app_service_unit": _unit(service)}
        })
        restart_on = [f"/opt/{name}/*", f"/etc/{name}/*", f"/etc/systemd/system/{name}.service"]
        watched.append({
            "name": f"{name}.service", "enabled": True, "state": "started", "on_change": "none",
            "restart_on": restart_on + (["packages"] if service["packages"] else []),
        })
        if service.get("port") is not None:
            port = int(service["port"])
            ports[name] = port
            firewall.append({
                "port": port, "from": service.get("allow_from", allow_from or []), "comment": name,
            })
            if service.get("metrics"):
                metrics.append({"job": name, "port": port, "path": service["metrics"]})
        own = _checks(service)
        checks += own
        verify += [check for check in own if service["require_ready"] or check["name"] != f"{name} is ready"]
    return {
        "packages": packages,
        "groups": [{"name": user} for user in users],
        "users": list(users.values()),
        "directories": directories,
        "files": files,
        "units": units,
        "services": watched,
        "firewall": firewall,
        "verify": verify,
        "announce": {
            "checks": checks,
            "facts": {
                "ports": ports, "metrics": metrics,
                "versions": {service["name"]: str(service["version"]) for service in complete},
            },
        },
    }


class FilterModule:
    """The filter of the role app_service."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"app_service_plan": app_service_plan}
