# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a role declares: the argument spec of ``converge`` and its normal form.

The normal form is plain data (dicts, lists, strings, bytes), so that the planner can compare it, the module can
receive it as JSON and unit tests can write it down. Everything is checked here, before a host is contacted.
"""

from __future__ import annotations

import fnmatch
import hashlib
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Callable

from ansible_collections.vmfleet.ops.plugins.module_utils._health.model import CheckError, parse_check
from ansible_collections.vmfleet.ops.plugins.module_utils._health.registry import TYPES as CHECK_TYPES

STATE_DIR = "/var/lib/vmfleet"
# Names of packages that one role installed on behalf of others, one a line.
PREINSTALLED = f"{STATE_DIR}/preinstalled"
NAME = re.compile(r"^[a-z0-9][a-z0-9_-]*$")
MODE = re.compile(r"^[0-7]{3,4}$")
# Debian Policy 5.6.1
PACKAGE = re.compile(r"^[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?$")
ACCOUNT = re.compile(r"^[A-Za-z_][A-Za-z0-9_.-]*\$?$")
# sha256sum and stat write other characters in a way of their own.
PATH = re.compile(r"^(/[^/\x00-\x1f\x7f\\]+)+$")
VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
QUESTION = re.compile(r"^[a-z0-9][a-z0-9_-]*$")
UNIT_SUFFIXES = (".service", ".socket", ".timer", ".mount", ".path", ".target", ".slice", ".conf")

COMMAND_OPTIONS: dict[str, Any] = {
    "argv": {"type": "list", "elements": "str"},
    "shell": {"type": "str"},
    "stdin": {"type": "str"},
    "stdin_template": {"type": "str"},
    "vars": {"type": "dict", "default": {}},
    "user": {"type": "str"},
    "environment": {"type": "dict", "default": {}},
    "timeout": {"type": "int", "default": 300},
}

ARGUMENT_SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "declaration": {"type": "raw"},
    "vars": {"type": "dict", "default": {}},
    "packages": {"type": "list", "elements": "raw", "default": []},
    "preinstall": {"type": "list", "elements": "raw", "default": []},
    "groups": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "system": {"type": "bool", "default": True},
            "gid": {"type": "int"},
        },
    },
    "users": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "uid": {"type": "int"},
            "group": {"type": "str"},
            "groups": {"type": "list", "elements": "str", "default": []},
            "home": {"type": "path"},
            "shell": {"type": "path"},
            "system": {"type": "bool", "default": True},
            "create_home": {"type": "bool", "default": False},
        },
    },
    "directories": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "path": {"type": "path", "required": True},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0755"},
        },
    },
    "files": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "dest": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["file", "link", "absent"], "default": "file"},
            "template": {"type": "str"},
            "content": {"type": "str"},
            "source": {"type": "str"},
            "target": {"type": "str"},
            "vars": {"type": "dict", "default": {}},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": "0644"},
            "sensitive": {"type": "bool", "default": False},
            "validate": {"type": "str"},
            "before_packages": {"type": "bool", "default": False},
            "on_change": {"type": "str", "choices": ["default", "none"], "default": "default"},
        },
    },
    "sysctl": {"type": "dict", "default": {}},
    "firewall": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "port": {"type": "raw"},
            "proto": {"type": "str", "choices": ["tcp", "udp", "vrrp"], "default": "tcp"},
            "from": {"type": "list", "elements": "str", "default": []},
            "action": {"type": "str", "choices": ["allow", "limit", "deny", "reject"], "default": "allow"},
            "comment": {"type": "str", "default": ""},
        },
    },
    "firewall_options": {
        "type": "dict",
        "options": {
            "enabled": {"type": "bool", "default": True},
            "incoming": {"type": "str", "choices": ["allow", "deny", "reject"], "default": "deny"},
            "outgoing": {"type": "str", "choices": ["allow", "deny", "reject"], "default": "allow"},
            "routed": {"type": "str", "choices": ["allow", "deny", "reject"], "default": "deny"},
            "logging": {"type": "str", "choices": ["off", "low", "medium", "high", "full"], "default": "low"},
            "exclusive": {"type": "bool", "default": True},
            "confirm_timeout": {"type": "int", "default": 30},
        },
    },
    "units": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "template": {"type": "str"},
            "content": {"type": "str"},
            "vars": {"type": "dict", "default": {}},
        },
    },
    "commands": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            **COMMAND_OPTIONS,
            "sensitive": {"type": "bool", "default": False},
            "secrets": {"type": "list", "elements": "str", "no_log": True},
            "unless": {
                "type": "dict",
                "options": {
                    **COMMAND_OPTIONS,
                    "stdout": {"type": "str"},
                    "shown": {"type": "bool", "default": False},
                },
            },
            "creates": {"type": "path"},
            "on_change_of": {"type": "list", "elements": "str", "default": []},
            "undo": {"type": "dict", "options": COMMAND_OPTIONS},
            "when": {
                "type": "str",
                "choices": ["before_services", "after_services"],
                "default": "before_services",
            },
            "notify": {"type": "bool", "default": False},
        },
    },
    "services": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "enabled": {"type": "bool"},
            "state": {"type": "str", "choices": ["started", "stopped"]},
            "masked": {"type": "bool", "default": False},
            "on_change": {"type": "str", "choices": ["restart", "reload", "none"], "default": "reload"},
            "restart_on": {"type": "list", "elements": "str", "default": []},
            "reload_on": {"type": "list", "elements": "str", "default": []},
        },
    },
    "validate": {"type": "list", "elements": "raw", "default": []},
    "verify": {"type": "list", "elements": "dict"},
    "announce": {
        "type": "dict",
        "options": {
            "checks": {"type": "list", "elements": "dict", "default": []},
            "backup": {"type": "list", "elements": "dict", "default": []},
            "diagnose": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "argv": {"type": "list", "elements": "str"},
                    "shell": {"type": "str"},
                    "stdin": {"type": "str"},
                    "user": {"type": "str"},
                    "environment": {"type": "dict"},
                    "timeout": {"type": "int"},
                    "finding": {"type": "bool", "default": False},
                },
            },
            "facts": {"type": "dict", "default": {}},
        },
    },
    "history": {"type": "int", "default": 5},
    "lock_timeout": {"type": "int", "default": 300},
}


class DesiredError(ValueError):
    """A declaration that cannot be carried out; the message names the argument, its value and the remedy."""


def digest(content: bytes) -> str:
    """SHA-256 of ``content`` in hexadecimal, as ``sha256sum`` on the host prints it."""
    return hashlib.sha256(content).hexdigest()


def _fail(argument: str, value: object, remedy: str) -> DesiredError:
    return DesiredError(f"{argument}: {value!r} {remedy}")


def _absolute(argument: str, path: str) -> str:
    if not PATH.match(path) or "/../" in path + "/":
        raise _fail(argument, path, "is not a plain absolute path; write it out from / and without '..'")
    return path


def _mode(argument: str, mode: str) -> str:
    if not MODE.match(mode):
        raise _fail(argument, mode, 'is not an octal mode; quote it, for example "0640"')
    return mode.rjust(4, "0")


def normalise_packages(packages: Iterable[Any]) -> list[dict[str, Any]]:
    """Names and mappings to ``{name, version, state, first}``.

    version is None, an exact version or a glob; first holds the files that must be there before the package.
    """
    result = []
    for item in packages:
        entry: dict[str, Any] = {"name": item} if isinstance(item, str) else dict(item)
        unknown = set(entry) - {"name", "version", "state", "first"}
        if unknown:
            raise _fail("packages", entry, f"has unknown keys {sorted(unknown)}; use name, version, state, first")
        name = str(entry.get("name", ""))
        if not PACKAGE.match(name):
            raise _fail("packages", name, "is not the name of a Debian package")
        state = str(entry.get("state", "present"))
        if state not in ("present", "absent"):
            raise _fail(f"packages: {name}: state", state, "is neither present nor absent")
        version, first = entry.get("version"), entry.get("first") or {}
        if not isinstance(first, dict):
            raise _fail(f"packages: {name}: first", first, "is no mapping of paths to texts")
        result.append(
            {
                "name": name,
                "version": None if version is None else str(version),
                "state": state,
                "first": [
                    plain_file(_absolute(f"packages: {name}: first", path), str(text).encode(), before_packages=True)
                    for path, text in first.items()
                ],
            }
        )
    return result


def version_matches(installed: str, wanted: str | None) -> bool:
    """Whether an installed version satisfies a pin: none, an exact version, or a glob such as ``7:7.0.*``."""
    return wanted is None or fnmatch.fnmatchcase(installed, wanted)


def normalise_command(argument: str, command: Any, render: Callable[[dict[str, Any]], bytes]) -> dict[str, Any]:
    """A string or mapping to ``{argv | shell, stdin, user, environment, timeout}`` with exactly one of argv, shell."""
    given: dict[str, Any] = {"shell": command} if isinstance(command, str) else dict(command)
    entry = {key: value for key, value in given.items() if value is not None}
    if ("argv" in entry) == ("shell" in entry):
        raise _fail(argument, entry.get("name", entry), "needs exactly one of argv and shell")
    if "argv" in entry:
        entry["argv"] = [str(word) for word in entry["argv"]]
        if not entry["argv"]:
            raise _fail(argument, entry.get("name", entry), "has an empty argv")
    user = entry.get("user")
    if user is not None and not ACCOUNT.match(user):
        raise _fail(f"{argument}: user", user, "is not an account name")
    if "stdin" in entry and "stdin_template" in entry:
        raise _fail(argument, entry.get("name", entry), "has both stdin and stdin_template; keep one")
    template, variables = entry.pop("stdin_template", None), entry.pop("vars", {})
    if template:
        entry["stdin"] = render({"template": template, "vars": variables, "name": argument}).decode()
    entry.setdefault("environment", {})
    entry["environment"] = {str(key): str(value) for key, value in entry["environment"].items()}
    for key in entry["environment"]:
        if not VARIABLE.match(key):
            raise _fail(f"{argument}: environment", key, "is not the name of a variable")
    entry.setdefault("timeout", 300)
    return entry


def _ports(argument: str, port: Any) -> list[str]:
    """ufw's port syntax: single ports, ``a:b`` ranges; a list gives one rule each."""
    ports = [str(item) for item in (port if isinstance(port, (list, tuple)) else [port])]
    for item in ports:
        numbers = item.split(":")
        valid = len(numbers) <= 2 and all(part.isdigit() and 0 < int(part) < 65536 for part in numbers)
        if not valid or (len(numbers) == 2 and int(numbers[0]) >= int(numbers[1])):
            raise _fail(argument, item, 'is not a port; use 1 to 65535 or a range such as "8000:8010"')
    return ports


def _rule_ports(rule: dict[str, Any]) -> list[str]:
    if (rule["port"] is None) != (rule["proto"] == "vrrp"):
        raise _fail("firewall: port", rule["port"], f"does not go with {rule['proto']}; only vrrp is without a port")
    return ["any"] if rule["port"] is None else _ports("firewall: port", rule["port"])


def canonical_source(source: str) -> str:
    """``any`` or an address as ufw stores it: no host prefix length, network bits only."""
    if source == "any":
        return source
    network = ipaddress.ip_network(source, strict=False)
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def expand_rules(
    name: str, rules: Iterable[dict[str, Any]], resolve: Callable[[str], list[str]]
) -> list[dict[str, str]]:
    """One entry per rule that ufw stores: ``{action, proto, port, source, comment}``, without repetition.

    ``resolve`` turns an inventory group into its members' addresses and raises KeyError for an unknown group.
    """
    result: dict[tuple[str, str, str, str], dict[str, str]] = {}
    for rule in rules:
        for port in _rule_ports(rule):
            for source in rule["from"]:
                try:
                    sources = [canonical_source(source)]
                except ValueError:
                    try:
                        sources = [canonical_source(address) for address in resolve(source)]
                    except KeyError:
                        raise _fail(
                            "firewall: from", source, "is neither any, an address or network, nor an inventory group"
                        ) from None
                    except ValueError as error:
                        raise _fail(
                            "firewall: from",
                            source,
                            f"has a member without an IP address ({error}); set vmfleet_address",
                        ) from None
                comment = f"vmfleet:{name} {rule['comment']}".strip()
                if "'" in comment:
                    raise _fail("firewall: comment", rule["comment"], "contains a quote, which ufw refuses")
                for address in sources:
                    key = (rule["action"], rule["proto"], port, address)
                    result.setdefault(key, dict(zip(("action", "proto", "port", "source"), key), comment=comment))
    return list(result.values())


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=2, sort_keys=True) + "\n").encode()


def normalise_file(entry: dict[str, Any], content: bytes | None) -> dict[str, Any]:
    """The normal form of one file; ``content`` is the rendered text for state file, else None."""
    dest = _absolute("files: dest", entry["dest"])
    result: dict[str, Any] = {
        "dest": dest,
        "state": entry["state"],
        "before_packages": entry["before_packages"],
        "notify": entry["on_change"] != "none",
        # Also of a file that goes: its text would stand in the diff.
        "sensitive": entry["sensitive"],
    }
    if entry["state"] == "link":
        if not entry.get("target"):
            raise _fail("files: target", dest, "is a link without a target")
        result["target"] = entry["target"]
    elif entry["state"] == "file":
        if content is None:
            raise _fail("files", dest, "needs one of template, content and source")
        if entry.get("validate") and "%s" not in entry["validate"]:
            raise _fail("files: validate", entry["validate"], "has no %s for the staged file")
        result.update(
            content=content,
            sha256=digest(content),
            owner=entry["owner"],
            group=entry["group"],
            mode=_mode(f"files: {dest}: mode", entry["mode"]),
            validate=entry.get("validate"),
        )
    return result


def plain_file(dest: str, content: bytes, **overrides: Any) -> dict[str, Any]:
    """A root-owned 0644 file that concerns no service: the form of manifests and drop-ins."""
    defaults: dict[str, Any] = {
        "dest": dest,
        "state": "file",
        "owner": "root",
        "group": "root",
        "mode": "0644",
        "sensitive": False,
        "on_change": "none",
        "before_packages": False,
        "validate": None,
    }
    return normalise_file({**defaults, **overrides}, content)


def announcements(
    name: str, announce: dict[str, Any] | None, files: Iterable[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The drop-ins by which a host knows what it runs.

    :param files: the role's, in normal form; a role with checks gets one more for each that is sensitive.
    """
    if not announce:
        return []
    if announce.get("checks"):
        secrecy = [
            {"name": f"{entry['dest']} is kept secret", "type": "file", "path": entry["dest"]}
            | {key: entry[key] for key in ("owner", "group", "mode")}
            for entry in files
            if entry["sensitive"] and entry["state"] == "file"
        ]
        announce = {**announce, "checks": [*announce["checks"], *secrecy]}
    places = {
        "checks": f"/etc/vmfleet/checks.d/{name}.json",
        "backup": f"/etc/vmfleet/backup.d/{name}.json",
        "diagnose": f"/etc/vmfleet/diagnose.d/{name}.json",
        "facts": f"/etc/ansible/facts.d/vmfleet_{name.replace('-', '_')}.fact",
    }
    said = {**announce, "diagnose": _questions(announce.get("diagnose") or [])}
    return [plain_file(path, _json(said[key])) for key, path in places.items() if said.get(key)]


def _questions(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a service is asked for a support bundle, each of which becomes a file there."""
    names: set[str] = set()
    for entry in entries:
        if not QUESTION.match(entry["name"]) or entry["name"] in names:
            raise _fail("announce: diagnose: name", entry["name"], "names no file of its own; use a-z, 0-9, - and _")
        if (entry.get("argv") is None) == (entry.get("shell") is None):
            raise _fail("announce: diagnose", entry["name"], "needs one of argv and shell")
        names.add(entry["name"])
    return [{key: value for key, value in entry.items() if value is not None} for entry in entries]


def sysctl_file(name: str, values: dict[str, str]) -> list[dict[str, Any]]:
    """The file that makes the values last; the live values are compared and set beside it."""
    if not values:
        return []
    lines = [f"# Managed by vmfleet.ops ({name}); changes made by hand are undone."]
    lines += [f"{key} = {value}" for key, value in sorted(values.items())]
    return [plain_file(f"/etc/sysctl.d/60-vmfleet-{name}.conf", ("\n".join(lines) + "\n").encode())]


def unit_name(name: str) -> str:
    """A unit as systemctl names it: a bare service name gets its suffix."""
    return name if name.endswith(UNIT_SUFFIXES) else name + ".service"


def normalise(
    arguments: dict[str, Any],
    render: Callable[[dict[str, Any]], bytes],
    resolve: Callable[[str], list[str]],
) -> dict[str, Any]:
    """Validated arguments to the normal form.

    :param arguments: the task's arguments after ARGUMENT_SPEC was applied.
    :param render: content of an entry that has template, content or source.
    :param resolve: addresses of an inventory group's members; KeyError if there is no such group.
    :raises DesiredError: naming the argument, the value and the remedy.
    """
    name = arguments["name"]
    if not NAME.match(name):
        raise _fail("name", name, "must be lower-case letters, digits, '-' and '_'")
    if arguments["history"] < 0:
        raise _fail("history", arguments["history"], "is no number of changes; 0 keeps none")
    if arguments["state"] == "absent" and arguments["firewall_options"]:
        arguments = {**arguments, "firewall_options": {**arguments["firewall_options"], "enabled": False}}
    sysctl = {str(key).replace("/", "."): " ".join(str(value).split()) for key, value in arguments["sysctl"].items()}
    # What is to go needs no content, and its variables may be gone already.
    rendered = render if arguments["state"] == "present" else (lambda _entry: b"")
    files = [
        normalise_file(entry, rendered(entry) if entry["state"] == "file" else None) for entry in arguments["files"]
    ]
    for unit in arguments["units"]:
        if not unit["name"].endswith(UNIT_SUFFIXES):
            raise _fail("units: name", unit["name"], f"has none of the suffixes {', '.join(UNIT_SUFFIXES)}")
        dest = _absolute("units: name", f"/etc/systemd/system/{unit['name']}")
        files.append({**plain_file(dest, rendered(unit)), "notify": True})
    packages = normalise_packages(arguments["packages"])
    files += [entry for item in packages if item["state"] == "present" for entry in item["first"]]
    files += sysctl_file(name, sysctl) + announcements(name, arguments["announce"], files)

    directories = [
        {
            **entry,
            "path": _absolute("directories: path", entry["path"]),
            "mode": _mode("directories: mode", entry["mode"]),
        }
        for entry in arguments["directories"]
    ]
    # A drop-in's folder is part of the drop-in.
    declared = {entry["path"] for entry in directories}
    for entry in files:
        parent = entry["dest"].rsplit("/", 1)[0]
        wanted = entry["state"] != "absent" and parent.startswith(
            ("/etc/vmfleet", "/etc/ansible", "/etc/systemd/system/", STATE_DIR)
        )
        if wanted and parent not in declared and not _within_base(parent):
            declared.add(parent)
            directories.append({"path": parent, "owner": "root", "group": "root", "mode": "0755"})

    seen: set[str] = set()
    for path in [entry["dest"] for entry in files]:
        if path in seen:
            raise _fail("files: dest", path, "is declared twice in one role; keep one")
        seen.add(path)

    commands = []
    for entry in arguments["commands"]:
        command = normalise_command(f"commands: {entry['name']}", entry, rendered)
        for key in ("unless", "undo"):
            if command.get(key):
                command[key] = normalise_command(f"commands: {entry['name']}: {key}", command[key], rendered)
        if not (command.get("unless") or command.get("creates") or command.get("on_change_of")):
            raise _fail(
                "commands",
                entry["name"],
                "has no guard; give unless, creates or on_change_of so that it can be skipped",
            )
        commands.append(command)

    for entry in [*arguments["users"], *arguments["groups"]]:
        if not ACCOUNT.match(entry["name"]):
            raise _fail("users, groups: name", entry["name"], "is not an account name")

    declared_names = {item["name"] for item in packages}
    announced = (arguments["announce"] or {}).get("checks") or []
    # What burns slowly (startup: 0) says nothing on a change just made.
    verify = arguments["verify"]
    if verify is None:
        verify = [check for check in announced if str(check.get("startup")) != "0"]
    try:
        for check in [*announced, *verify]:
            parse_check(check, CHECK_TYPES)
    except CheckError as error:
        raise DesiredError(f"verify, announce: {error}") from error
    return {
        "name": name,
        "state": arguments["state"],
        "packages": packages,
        "preinstall": [
            item
            for item in normalise_packages(arguments["preinstall"])
            if item["state"] == "present" and item["name"] not in declared_names
        ],
        "groups": arguments["groups"],
        "users": arguments["users"],
        "directories": directories,
        "files": files,
        "sysctl": sysctl,
        "rules": expand_rules(name, arguments["firewall"], resolve),
        "firewall_options": arguments["firewall_options"],
        "commands": commands,
        "services": [{**entry, "name": unit_name(entry["name"])} for entry in arguments["services"]],
        "validate": [normalise_command("validate", command, rendered) for command in arguments["validate"]],
        "verify": verify,
        "history": arguments["history"],
        "lock_timeout": arguments["lock_timeout"],
    }


def _within_base(path: str) -> bool:
    return path in ("/etc/systemd/system", STATE_DIR)


def manifest_path(name: str) -> str:
    """Where a host keeps what it got from a role."""
    return f"{STATE_DIR}/roles/{name}.json"


def manifest_file(
    name: str, files: Iterable[str], packages: Iterable[str], services: Iterable[str], sysctl: dict[str, str]
) -> dict[str, Any]:
    """The record of what belongs to a role: files it placed, packages it brought, services it runs, and what the
    kernel settings were before it.

    It lets a later declaration, or ``state: absent``, take away what is no longer wanted. It is not consulted to
    decide whether something is in order: for that the host itself is looked at.
    """
    data = {
        "format": 1,
        "name": name,
        "files": sorted(files),
        "packages": sorted(packages),
        "services": sorted(services),
        "sysctl": sysctl,
    }
    return plain_file(manifest_path(name), _json(data))
