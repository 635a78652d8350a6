# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A verdict from the variables of a play: for the task, and for the callback where the task did not get its turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.vmfleet.ops.plugins.module_utils._health.model import CheckError, parse_checks
from ansible_collections.vmfleet.ops.plugins.module_utils._health.registry import TYPES
from ansible_collections.vmfleet.ops.plugins.module_utils._health.runner import run_checks

from ._fleet_verdict import (
    ANSWERED,
    OUTSIDE,
    Host,
    Rules,
    Verdict,
    VerdictError,
    check_baseline,
    judge,
    make_quorums,
    read_host,
)

ARGUMENT_SPEC: dict[str, Any] = {
    "results": {"type": "str", "default": "vmfleet_health"},
    "checks": {"type": "list", "elements": "dict", "default": []},
    "wait": {"type": "float", "default": 0.0},
    "quorum": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "group": {"type": "str", "required": True},
            "at_least": {"type": "str", "required": True},
            "service": {"type": "str"},
            "zone": {"type": "str"},
        },
    },
    "primaries": {"type": "str", "default": "db_primary"},
    "replicas": {"type": "str", "default": "db_replica"},
    "same_version": {"type": "list", "elements": "str", "default": []},
    "same_certificate": {"type": "list", "elements": "str", "default": []},
    "clock_bound": {"type": "float", "default": 2.0},
    "baseline": {"type": "path"},
    "report": {"type": "path"},
    "fail": {"type": "bool", "default": True},
}
# Seconds that checks from outside may take beyond those that they are tried again.
OUTSIDE_DEADLINE = 20.0


def read_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The task's arguments, checked and with their defaults.

    :raises VerdictError: for an argument that is unknown, missing or of the wrong type.
    """
    given = {key: value for key, value in arguments.items() if value is not None}
    validated = ArgumentSpecValidator(ARGUMENT_SPEC).validate(given)
    if validated.error_messages:
        raise VerdictError("; ".join(validated.error_messages))
    options: dict[str, Any] = validated.validated_parameters
    return options


def look_from_outside(checks: Sequence[Mapping[str, Any]], wait: float) -> list[Host]:
    """What the controller itself sees, as a host of its own; none when it has nothing to look at.

    :param wait: seconds that what is not good is tried again.
    :raises VerdictError: for a check that is written wrongly.
    """
    if not checks:
        return []
    try:
        parsed = parse_checks([("", check) for check in checks], TYPES)
    except CheckError as error:
        raise VerdictError(f"checks: {error}") from error
    outcome = run_checks(parsed, wait + OUTSIDE_DEADLINE, wait)
    return [Host(OUTSIDE, ANSWERED, checks=outcome["results"], seconds=outcome["seconds"])]


def judge_play(
    options: Mapping[str, Any],
    variables: Mapping[str, Any],
    seen: Sequence[Host] = (),
    failures: Mapping[str, str] | None = None,
    broken: str = "",
) -> Verdict:
    """The verdict on the hosts of a play by what their checks have left among its variables.

    :param seen: hosts beside those of the play.
    :param failures: why a host has no result, where that is known.
    :param broken: why the play ended before its verdict; that alone makes it a bad one.
    :raises VerdictError: when the options do not fit the inventory, or there is no host.
    """
    names = variables.get("ansible_play_hosts_all") or []
    hostvars, groups = variables["hostvars"], variables["groups"]
    if OUTSIDE in names:
        raise VerdictError(f"a host is called {OUTSIDE}, which is the name of what the controller sees; rename it")

    def variable(host: str, name: str) -> str | None:
        value = hostvars[host].get(name)
        return None if value is None else str(value)

    def members(chosen: list[str]) -> dict[str, list[str]]:
        return {group: list(groups[group]) for group in chosen if group in groups}

    rules = Rules(
        quorums=make_quorums(options["quorum"], groups, variable),
        primaries=groups.get(options["primaries"], []),
        replicas=groups.get(options["replicas"], []),
        same_version=members(options["same_version"]),
        same_certificate=members(options["same_certificate"]),
        clock_bound=options["clock_bound"],
        broken=broken,
    )
    # Untemplated: what a host has said is data.
    hosts = [
        read_host(name, hostvars.raw_get(name).get(options["results"]), (failures or {}).get(name, ""))
        for name in names
    ]
    return judge([*hosts, *seen] if hosts else [], rules, _baseline(options["baseline"]))


def _baseline(path: str | None) -> Any:
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as handle:
            return check_baseline(json.load(handle))
    except (OSError, ValueError) as error:
        if isinstance(error, VerdictError):
            raise
        raise VerdictError(f"baseline: {path}: {error}") from error
