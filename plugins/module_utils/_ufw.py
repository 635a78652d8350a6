# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""ufw by its own command line: rules are added and removed one by one, the firewall is never reset."""

from __future__ import annotations

import os
import shutil
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._host import run

# Everything in which ufw keeps its rules and settings.
STATE_FILES = ("/etc/ufw/user.rules", "/etc/ufw/user6.rules", "/etc/ufw/ufw.conf", "/etc/default/ufw")


def is_active() -> bool:
    """Whether rules are loaded, whatever the configuration says."""
    return run(["iptables", "-n", "-L", "ufw-user-input"]).rc == 0


def save(base: str, folder: str) -> dict[str, Any]:
    """Copies the present rules to a folder below ``base``; the answer goes to :func:`restore`."""
    os.makedirs(os.path.join(base, folder), mode=0o700, exist_ok=True)
    copies = {}
    for path in STATE_FILES:
        if os.path.exists(path):
            copies[path] = os.path.join(folder, path.strip("/").replace("/", "_"))
            shutil.copy2(path, os.path.join(base, copies[path]))
    return {"copies": copies, "active": is_active()}


def restore(base: str, saved: dict[str, Any]) -> None:
    """Puts the saved rules back and loads them; a firewall that was off is turned off."""
    if not saved["copies"]:
        return
    for path, copy in saved["copies"].items():
        shutil.copy2(os.path.join(base, copy), path + ".vmfleet-new")
        os.replace(path + ".vmfleet-new", path)
    if saved["active"]:
        run(["ufw", "reload"], check="load the former firewall rules")
    else:
        turn_off()


def turn_off() -> None:
    """Takes all rules out of the kernel, where there is anything to do it with."""
    if os.path.exists("/usr/sbin/ufw"):
        run(["ufw", "--force", "disable"], check="turn the firewall off again")


def _add(rule: dict[str, Any], first: bool) -> list[str]:
    # ufw passes over a prepended rule that is there already, new comment or not.
    position = ["prepend"] if first and rule["new"] else []
    return [
        "ufw",
        *position,
        rule["action"],
        "in",
        "proto",
        rule["proto"],
        "from",
        rule["source"],
        "to",
        rule.get("destination", "any"),
        *([] if rule["port"] == "any" else ["port", rule["port"]]),
        "comment",
        rule["comment"],
    ]


def _remove(rule: dict[str, str]) -> list[str]:
    """The deletion of a stored rule, of ours or of any other that ufw can express.

    ufw stores ``[route:]action[_log]`` and as direction ``[dapp sapp ]in|out[_interface][!out_interface]``.
    """
    action, *log = rule["action"].split("_")
    *applications, direction = rule["direction"].split()
    route = action.startswith("route:")
    argv = ["ufw", "--force", *(["route"] if route else []), "delete", action.replace("route:", "")]
    for way in direction.split("!"):
        side, _underscore, interface = way.partition("_")
        if interface:
            argv += [side, "on", interface]
        elif not route:
            argv.append(side)
    argv += log
    to_application, from_application = applications or ("-", "-")
    if rule["proto"] != "any" and not applications:
        argv += ["proto", rule["proto"]]
    for word, address, port, application in (
        ("from", rule["source"], rule["source_port"], from_application),
        ("to", rule["destination"], rule["port"], to_application),
    ):
        argv += [word, address]
        if application != "-":
            argv += ["app", application.replace("%20", " ")]
        elif port != "any":
            argv += ["port", port]
    return argv


def apply(change: dict[str, Any]) -> None:
    """Carries out a firewall change: new rules first, so that nothing allowed before and after is ever shut.

    :param change: ``add``, ``remove``, ``settings``, ``enable`` (True, False, None), ``reload`` and ``first``: rules of
        this change that go in front of all others, as the operator's own way in must.
    :raises CommandError: with ufw's output.
    """
    if change["reload"]:
        # ufw takes "enable" for done when its configuration says so, whatever the kernel has; and it cannot add a rule
        # to chains that somebody flushed away.
        run(["ufw", "reload"], check="load the firewall rules")
    rules = list(reversed(change["add"])) if change["first"] else change["add"]
    for rule in rules:
        run(_add(rule, change["first"]), check="add a firewall rule")
    for rule in change["remove"]:
        run(_remove(rule), check="remove a firewall rule")
    for key, value in change["settings"].items():
        argv = ["ufw", "logging", value] if key == "logging" else ["ufw", "default", value, key]
        run(argv, check="set a firewall default")
    if change["enable"] is not None:
        run(["ufw", "--force", "enable" if change["enable"] else "disable"], check="switch the firewall")
