# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What has to change: the difference between a declaration and a host, as work for the host and as a diff.

Pure functions over plain data. Check mode reports the very plan that a real run carries out.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import json
from collections.abc import Iterable
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._desired import (
    manifest_file,
    manifest_path,
    version_matches,
)

ENABLED_STATES = ("enabled", "enabled-runtime", "static", "alias", "generated", "indirect", "linked", "transient")
# New programs and units take effect by a restart only.
RESTARTING = {"packages", "units"}
UNITS = "/etc/systemd/system"
UFW_POLICY = {"allow": "ACCEPT", "deny": "DROP", "reject": "REJECT"}
SENSITIVE = "(sensitive content)\n"


class Plan:
    """The work of one transaction and the words for it.

    ``payload`` is what the host receives; ``changes`` are short sentences; ``before`` and ``after`` hold the diff of
    everything that is not a file's text; ``texts`` names the files whose text differs.
    """

    def __init__(self, desired: dict[str, Any], observed: dict[str, Any]) -> None:
        self.desired = desired
        self.observed = observed
        self.changes: list[str] = []
        self.before: list[str] = []
        self.after: list[str] = []
        self.texts: list[dict[str, Any]] = []
        self.changed_names: set[str] = set()
        self.payload: dict[str, Any] = {
            "name": desired["name"],
            "state": desired["state"],
            "generation": observed["generation"],
            "lock_timeout": desired["lock_timeout"],
            "history": desired["history"],
            "validate": [],
            "verify": [],
            "packages": {"install": [], "remove": [], "preinstalled": []},
            "groups": [],
            "users": [],
            "directories": [],
            "files": [],
            "sysctl": {},
            "firewall": None,
            "commands": [],
            "services": [],
        }

    @property
    def changed(self) -> bool:
        """Whether anything differs."""
        return bool(self.changes)

    def note(self, resource: str, before: str, after: str) -> None:
        """Records one difference."""
        self.changes.append(f"{resource}: {after}")
        self.before.append(f"{resource}: {before}")
        self.after.append(f"{resource}: {after}")


def _owned(manifest: dict[str, Any] | None, key: str) -> list[str]:
    return [str(item) for item in (manifest or {}).get(key, [])]


def _plan_packages(plan: Plan) -> list[str]:
    """Adds package work; returns the names that this role has brought to the host."""
    declared = {package["name"] for package in plan.desired["packages"]}
    # What another role installed on this role's behalf goes when this role goes.
    brought = set(_owned(plan.observed["manifest"], "packages")) | (declared & set(plan.observed["preinstalled"]))
    absent = plan.desired["state"] == "absent"
    if absent:
        installed = plan.observed["packages"]
        for name in sorted(brought):
            if installed.get(name, {}).get("status", "installed") == "installed":
                plan.payload["packages"]["remove"].append(name)
                plan.note(f"package {name}", "installed", "absent")
        return []
    for package in [*plan.desired["packages"], *plan.desired["preinstall"]]:
        name, version = package["name"], package["version"]
        current = plan.observed["packages"].get(name, {"status": "not-installed", "version": ""})
        present = current["status"] == "installed"
        before = current["version"] if present else "absent"
        if package["state"] == "absent":
            if present:
                plan.payload["packages"]["remove"].append(name)
                plan.note(f"package {name}", before, "absent")
            brought.discard(name)
        elif not present or not version_matches(current["version"], version):
            if name not in declared and not _lay_first(plan, package["first"]):
                continue
            plan.payload["packages"]["install"].append({"name": name, "version": version, "status": current["status"]})
            plan.note(f"package {name}", before, version or "installed")
            if name in declared:
                plan.changed_names.add("packages")
            if not present:
                brought.add(name)
                if name not in declared:
                    plan.payload["packages"]["preinstalled"].append(name)
    return sorted(brought & declared)


def _lay_first(plan: Plan, files: list[dict[str, Any]]) -> bool:
    """Lays down what another role's package must find, or says that this is that role's to settle.

    The files become the other role's once it declares them.
    """
    differences = []
    for entry in files:
        current = plan.observed["paths"].get(entry["dest"])
        difference = _file_difference(entry, current)
        if difference is not None and current is not None:
            return False
        differences.append((entry, difference))
    for entry, difference in differences:
        if difference is not None:
            plan.payload["files"].append({**entry, "take_over": False})
            plan.texts.append(entry)
            plan.note(f"file {entry['dest']}", *difference)
    return True


def _plan_accounts(plan: Plan) -> None:
    if plan.desired["state"] == "absent":
        return
    for group in plan.desired["groups"]:
        current = plan.observed["groups"].get(group["name"])
        wanted = group.get("gid")
        if current is None or (wanted is not None and current["gid"] != str(wanted)):
            plan.payload["groups"].append(group)
            plan.note(
                f"group {group['name']}",
                f"gid {current['gid']}" if current else "absent",
                "present" if wanted is None else f"gid {wanted}",
            )
    for user in plan.desired["users"]:
        current = plan.observed["users"].get(user["name"])
        differences = {}
        if current is not None:
            for key in ("uid", "home", "shell"):
                if user.get(key) is not None and current[key] != str(user[key]):
                    differences[key] = (current[key], str(user[key]))
            if user.get("group"):
                primary = plan.observed["groups"].get(user["group"])
                if primary is None or primary["gid"] != current["gid"]:
                    differences["group"] = (f"gid {current['gid']}", user["group"])
        missing = [
            group
            for group in user["groups"]
            if user["name"] not in plan.observed["groups"].get(group, {"members": []})["members"]
        ]
        if missing:
            differences["groups"] = ("", ",".join(f"+{group}" for group in missing))
        if current is None or differences:
            plan.payload["users"].append(user)
            before = (
                "absent" if current is None else " ".join(f"{key}={old}" for key, (old, _new) in differences.items())
            )
            after = (
                "present" if current is None else " ".join(f"{key}={new}" for key, (_old, new) in differences.items())
            )
            plan.note(f"user {user['name']}", before, after)
            plan.changed_names.add("users")


def _plan_directories(plan: Plan) -> None:
    if plan.desired["state"] == "absent":
        return
    for entry in plan.desired["directories"]:
        current = plan.observed["paths"].get(entry["path"])
        wanted = f"{entry['owner']}:{entry['group']} {entry['mode']}"
        if current is None:
            plan.note(f"directory {entry['path']}", "absent", wanted)
        elif current["kind"] != "directory":
            plan.note(f"directory {entry['path']}", current["kind"], wanted)
        elif (current["owner"], current["group"], current["mode"]) != (entry["owner"], entry["group"], entry["mode"]):
            plan.note(f"directory {entry['path']}", f"{current['owner']}:{current['group']} {current['mode']}", wanted)
        else:
            continue
        plan.payload["directories"].append(entry)


def _file_difference(entry: dict[str, Any], current: dict[str, Any] | None) -> tuple[str, str] | None:
    """What differs besides the text, as (before, after), or None when the file is in order."""
    if entry["state"] == "absent":
        return None if current is None else (current["kind"], "absent")
    if entry["state"] == "link":
        target = (current or {}).get("target")
        if current is not None and current["kind"] == "link" and target == entry["target"]:
            return None
        return ("absent" if current is None else f"-> {target}" if target else current["kind"], f"-> {entry['target']}")
    wanted = f"{entry['owner']}:{entry['group']} {entry['mode']}"
    if current is None:
        return ("absent", wanted)
    if current["kind"] != "file":
        return (current["kind"], wanted)
    attributes = f"{current['owner']}:{current['group']} {current['mode']}"
    if current.get("sha256") != entry["sha256"]:
        return (f"{attributes}, other content", f"{wanted}, new content")
    return None if attributes == wanted else (attributes, wanted)


def _plan_files(plan: Plan) -> None:
    owned = _owned(plan.observed["manifest"], "files")
    entries = [] if plan.desired["state"] == "absent" else plan.desired["files"]
    # apt may place files of its own under our names: then every file is looked at again on the host.
    everything = bool(plan.payload["packages"]["install"])
    for entry in entries:
        current = plan.observed["paths"].get(entry["dest"])
        difference = _file_difference(entry, current)
        if difference is not None or everything:
            plan.payload["files"].append({**entry, "take_over": entry["dest"] not in owned})
        if difference is None:
            continue
        plan.note(f"file {entry['dest']}", *difference)
        # A mended owner or mode changes nothing for a service that has read the file.
        if entry["notify"] and not (entry["state"] == "file" and (current or {}).get("sha256") == entry["sha256"]):
            plan.changed_names.add(entry["dest"])
        if entry["state"] == "file" or (current or {}).get("kind") == "file":
            plan.texts.append(entry)
    # Not wanted any more: what stood there before the role comes back.
    declared = {entry["dest"] for entry in entries}
    for path in owned:
        if path not in declared:
            plan.payload["files"].append(_gone(path, give_back=True))
            plan.note(f"file {path}", "of this role", "as it was before the role")
            plan.changed_names.add(path)


def _gone(path: str, give_back: bool = False) -> dict[str, Any]:
    return {"dest": path, "state": "absent", "give_back": give_back, "before_packages": False, "take_over": False}


def _plan_record(plan: Plan, brought: list[str], tuned: dict[str, str]) -> None:
    """The role's record follows the rest; where nothing else differs, it is a change of its own."""
    name, present = plan.desired["name"], plan.observed["manifest"]
    if plan.desired["state"] == "absent":
        if present is not None:
            plan.payload["files"].append(_gone(manifest_path(name)))
            if not plan.changes:
                plan.note(f"record of role {name}", "present", "absent")
        return
    files = [entry["dest"] for entry in plan.desired["files"] if entry["state"] != "absent"]
    # A service that is only told of changes, or kept down, is somebody else's.
    services = [
        entry["name"] for entry in plan.desired["services"] if not _only_told(entry) and entry["state"] != "stopped"
    ]
    record = manifest_file(name, files, brought, services, tuned)
    if present != json.loads(record["content"]):
        plan.payload["files"].append({**record, "take_over": False})
        if not plan.changes:
            plan.note(f"record of role {name}", "absent" if present is None else "outdated", "current")


def _plan_sysctl(plan: Plan) -> dict[str, str]:
    """Adds the settings that differ; returns what the declared ones were before the role."""
    recorded = (plan.observed["manifest"] or {}).get("sysctl", {})
    declared = {} if plan.desired["state"] == "absent" else plan.desired["sysctl"]
    before = {}
    for key, value in declared.items():
        current = plan.observed["sysctl"].get(key, "")
        before[key] = recorded.get(key, current)
        if current != value:
            plan.payload["sysctl"][key] = value
            plan.note(f"sysctl {key}", current or "unreadable", value)
    for key, value in recorded.items():
        if key not in declared:
            plan.payload["sysctl"][key] = value
            plan.note(f"sysctl {key}", "of this role", value)
    return before


def _rule_words(rule: dict[str, str]) -> str:
    source = rule["source"]
    proto = f"/{rule['proto']}" if rule["proto"] != "any" else ""
    comment = f" ({rule['comment']})" if rule.get("comment") else ""
    return f"{rule['action']} {rule['port']}{proto} from {source}{comment}"


def stored_rules(rule: dict[str, str], ipv6: bool) -> list[dict[str, str]]:
    """How ufw stores a declared rule: ``any`` is one rule for IPv4 and one for IPv6."""
    common = {**rule, "source_port": "any", "direction": "in"}
    if rule["source"] == "any":
        families = [("0.0.0.0/0", "0.0.0.0/0")] + ([("::/0", "::/0")] if ipv6 else [])
    elif ipaddress.ip_network(rule["source"]).version == 4:
        families = [("0.0.0.0/0", rule["source"])]
    else:
        families = [("::/0", rule["source"])]
    return [{**common, "destination": destination, "source": source} for destination, source in families]


def _rule_identity(rule: dict[str, str]) -> tuple[str, ...]:
    """What makes two rules one and the same to ufw, which keeps only the latest action and comment of it."""
    keys = ("proto", "port", "destination", "source_port", "source", "direction")
    return tuple(rule[key] for key in keys)


def rule_owners(rule: dict[str, str]) -> list[str]:
    """The roles that a rule's comment names, ``vmfleet:nginx,haproxy words``; none for a rule of somebody else."""
    mark = rule["comment"].partition(" ")[0]
    return mark[len("vmfleet:") :].split(",") if mark.startswith("vmfleet:") else []


def _owned_by(rule: dict[str, Any], owners: Iterable[str]) -> dict[str, Any]:
    words = rule["comment"].partition(" ")[2]
    return {**rule, "comment": f"vmfleet:{','.join(sorted(owners))} {words}".strip()}


def _plan_firewall(plan: Plan) -> None:
    name, options, ufw = plan.desired["name"], plan.desired["firewall_options"], plan.observed["ufw"]
    absent = plan.desired["state"] == "absent"
    will_have_ufw = ufw["installed"] or any(item["name"] == "ufw" for item in plan.payload["packages"]["install"])
    if not will_have_ufw:
        return
    ipv6 = ufw["options"].get("IPV6", "yes") == "yes"
    declared = [] if absent else plan.desired["rules"]
    stored = {_rule_identity(rule): rule for rule in ufw["rules"]}
    wanted = {_rule_identity(stored_rule): rule for rule in declared for stored_rule in stored_rules(rule, ipv6)}
    add: list[dict[str, Any]] = []
    for identity, rule in wanted.items():
        there = stored.get(identity)
        # Two roles may want the same rule, as the two kinds of balancer do; it stays until the last of them leaves.
        others = set(rule_owners(there)) - {name} if there else set()
        shared = _owned_by(there, {*others, name}) if there and others else rule
        in_order = there is not None and (there["action"], there["comment"]) == (rule["action"], shared["comment"])
        work = {**rule, "comment": shared["comment"], "new": there is None}
        if not in_order and work not in add:
            add.append(work)
    takes_foreign = options is not None and options["exclusive"] and not absent
    remove = []
    for identity, rule in stored.items():
        owners = rule_owners(rule)
        if identity in wanted:
            continue
        if owners == [name] or (not owners and takes_foreign):
            remove.append(rule)
        elif name in owners:
            add.append({**_owned_by(rule, set(owners) - {name}), "new": False})
    settings: dict[str, str] = {}
    enable: bool | None = None
    reload = False
    risky = bool(remove) or any(rule["action"] != "allow" for rule in add)
    if options is not None and options["enabled"]:
        expected = {
            "DEFAULT_INPUT_POLICY": UFW_POLICY[options["incoming"]],
            "DEFAULT_OUTPUT_POLICY": UFW_POLICY[options["outgoing"]],
            "DEFAULT_FORWARD_POLICY": UFW_POLICY[options["routed"]],
            "LOGLEVEL": options["logging"],
        }
        words = {
            "DEFAULT_INPUT_POLICY": "incoming",
            "DEFAULT_OUTPUT_POLICY": "outgoing",
            "DEFAULT_FORWARD_POLICY": "routed",
            "LOGLEVEL": "logging",
        }
        for key, value in expected.items():
            current = ufw["options"].get(key, "").strip('"')
            if current != value:
                settings[words[key]] = options[words[key]]
                plan.note(f"firewall {words[key]}", current or "unset", options[words[key]])
        if ufw["options"].get("ENABLED") != "yes":
            enable = True
            plan.note("firewall", "inactive", "active")
        elif not ufw["live"]:
            reload = True
            plan.note("firewall", "other rules loaded than stored", "stored rules loaded")
        risky = risky or bool(settings) or bool(enable) or reload
    elif options is not None and ufw["options"].get("ENABLED") == "yes":
        enable = False
        plan.note("firewall", "active", "inactive")
    for rule in remove:
        plan.note(f"firewall rule {_rule_words(rule)}", "present", "absent")
    for rule in add:
        plan.note(f"firewall rule {_rule_words(rule)}", "absent", "present")
    if add or remove or settings or reload or enable is not None:
        plan.payload["firewall"] = {
            "add": add,
            "remove": remove,
            "settings": settings,
            "enable": enable,
            "reload": reload,
            "first": options is not None,
            "confirm": options["confirm_timeout"] if options else 30,
            "risky": risky and not absent,
        }


def _plan_commands(plan: Plan) -> None:
    if plan.desired["state"] == "absent":
        return
    changed_files = {change for change in plan.changed_names if change.startswith("/")}
    changed_files |= {entry["dest"] for entry in plan.texts}
    for index, command in enumerate(plan.desired["commands"]):
        guard = plan.observed["commands"].get(index)
        if guard is not None:
            expected = (command.get("unless") or {}).get("stdout")
            if guard["rc"] == 0 and (expected is None or guard["stdout"] == expected.strip()):
                # What the guard saw may hold only until the rest of the transaction is in place.
                if plan.payload["packages"]["install"]:
                    plan.payload["commands"].append(command)
                continue
        elif not _matches(changed_files | plan.changed_names, command["on_change_of"]):
            continue
        plan.payload["commands"].append(command)
        plan.note(f"command {command['name']}", "due", "done")
        if guard is not None and (command.get("unless") or {}).get("shown"):
            plan.before += [f"  {line}" for line in guard["stdout"].splitlines()]
        if command["notify"]:
            plan.changed_names.add(f"command {command['name']}")


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _unit_of(path: str) -> str | None:
    """The unit that a file below /etc/systemd/system concerns, drop-ins included."""
    if not path.startswith(f"{UNITS}/"):
        return None
    name = path[len(UNITS) + 1 :].split("/")[0]
    return name[: -len(".d")] if name.endswith(".d") else name


def _concerning(service: str, changed: set[str], services: set[str]) -> set[str]:
    """The changed names without the units of the role's other services, and with "units" if a unit is left."""
    names = {name for name in changed if _unit_of(name) not in services - {service}}
    return names | {"units"} if any(_unit_of(name) for name in names) else names


def _trigger(service: dict[str, Any], changed: set[str]) -> str | None:
    """restart, reload or None: what the changed names ask of a service; a restart covers a reload."""
    if _matches(changed, service["restart_on"]):
        return "restart"
    rest = {name for name in changed if not _matches([name], service["reload_on"])}
    if (service["on_change"] == "restart" and rest) or (service["on_change"] == "reload" and rest & RESTARTING):
        return "restart"
    return "reload" if rest != changed or (rest and service["on_change"] == "reload") else None


def _only_told(service: dict[str, Any]) -> bool:
    """Whether a service is the host's own: the role reloads or restarts it, but neither starts nor enables it."""
    return service["enabled"] is None and service["state"] is None


def _plan_services(plan: Plan) -> None:
    # What the role never brought stays as the host has it, with state absent too, but hears of what was given back.
    declared = plan.desired["services"]
    if plan.desired["state"] == "absent":
        declared = [service for service in declared if _only_told(service)]
    names = {service["name"] for service in declared}
    for name in _owned(plan.observed["manifest"], "services"):
        if name not in names:
            plan.payload["services"].append(
                {"name": name, "enabled": False, "state": "stopped", "masked": False, "trigger": None}
            )
            plan.note(f"service {name}", "of this role", "stopped, disabled")
    for service in declared:
        state = plan.observed["services"].get(service["name"], {})
        found = state.get("LoadState", "not-found") != "not-found"
        before, after = [], []
        masked = state.get("LoadState") == "masked"
        if masked != service["masked"]:
            before.append("masked" if masked else "unmasked")
            after.append("masked" if service["masked"] else "unmasked")
        enabled = state.get("UnitFileState", "") in ENABLED_STATES
        if service["enabled"] is not None and enabled != service["enabled"] and not service["masked"]:
            before.append((state.get("UnitFileState") or "absent") if found else "absent")
            after.append("enabled" if service["enabled"] else "disabled")
        active = state.get("ActiveState") in ("active", "reloading", "refreshing")
        if service["state"] == "started" and not active:
            before.append(state.get("ActiveState", "inactive"))
            after.append("started")
        if service["state"] == "stopped" and (active or state.get("ActiveState") == "activating"):
            before.append(state.get("ActiveState", "active"))
            after.append("stopped")
        # A service that was asked for but never installed has no state to be disabled in.
        if not found and service["state"] != "started" and service["enabled"] is not True:
            before, after = [], []
        concerning = _concerning(service["name"], plan.changed_names, names)
        trigger = _trigger(service, concerning) if service["state"] != "stopped" else None
        if trigger == "reload" and state.get("CanReload") == "no":
            trigger = "restart"
        if state.get("NeedDaemonReload") == "yes" and trigger is None and active:
            before.append("unit file not loaded")
            after.append("unit file loaded")
        if after:
            plan.note(f"service {service['name']}", ", ".join(before), ", ".join(after))
        if trigger and active:
            plan.before.append(f"service {service['name']}: running on the old configuration")
            plan.after.append(f"service {service['name']}: {trigger}")
        plan.payload["services"].append(
            {
                "name": service["name"],
                "enabled": service["enabled"],
                "state": service["state"],
                "masked": service["masked"],
                "trigger": trigger,
            }
        )


def make_plan(desired: dict[str, Any], observed: dict[str, Any]) -> Plan:
    """Compares a declaration with a host.

    :param desired: the normal form of ``_desired.normalise``.
    :param observed: the answer of ``_probe.parse_answer``.
    :returns: a Plan; ``changed`` is False when the host is as declared and has no open journal.
    """
    plan = Plan(desired, observed)
    brought = _plan_packages(plan)
    _plan_accounts(plan)
    _plan_directories(plan)
    tuned = _plan_sysctl(plan)
    _plan_firewall(plan)
    _plan_files(plan)
    _plan_commands(plan)
    _plan_services(plan)
    _plan_record(plan, brought, tuned)
    plan.payload["work"] = plan.changed
    if plan.changed and desired["state"] == "present":
        plan.payload["validate"] = desired["validate"]
        plan.payload["verify"] = desired["verify"]
    return plan
