# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a check is: its keys, its validation, thresholds and matchers."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

OK, WARN, CRIT, UNKNOWN = "ok", "warn", "crit", "unknown"
STATES = (OK, WARN, CRIT, UNKNOWN)
CHECKS_DIR = "/etc/vmfleet/checks.d"
# Python's own, so that a threshold reads as it does in the inventory.
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda seen, wanted: bool(seen == wanted),
    "ne": lambda seen, wanted: bool(seen != wanted),
    "lt": lambda seen, wanted: float(seen) < float(wanted),
    "le": lambda seen, wanted: float(seen) <= float(wanted),
    "gt": lambda seen, wanted: float(seen) > float(wanted),
    "ge": lambda seen, wanted: float(seen) >= float(wanted),
    "in": lambda seen, wanted: seen in wanted,
    "contains": lambda seen, wanted: wanted in (seen if isinstance(seen, (list, dict)) else str(seen)),
    "matches": lambda seen, wanted: re.search(str(wanted), str(seen)) is not None,
    "length": lambda seen, wanted: matches(len(seen), wanted),
    "exists": lambda seen, wanted: (seen is not None) is bool(wanted),
    "not": lambda seen, wanted: not matches(seen, wanted),
    "all": lambda seen, wanted: all(matches(item, wanted) for item in seen),
    "any": lambda seen, wanted: any(matches(item, wanted) for item in seen),
}


class CheckError(ValueError):
    """A check that is written wrongly; the message names the check, the key, its value and the remedy."""


class CheckFailed(RuntimeError):
    """What is checked is not as it must be; the message says what was seen."""


class CannotTell(RuntimeError):
    """The check could not be carried out, which says nothing about what is checked."""


@dataclass
class Seen:
    """What one try saw. ``value`` is what thresholds judge, ``data`` what rules across hosts compare."""

    message: str = ""
    state: str = OK
    value: float | None = None
    unit: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    # Milliseconds by name, in order.
    phases: dict[str, float] = field(default_factory=dict)
    # Milliseconds, where the try knows better than its caller.
    latency: float | None = None


@dataclass(frozen=True)
class Key:
    """One key of a check: its type, its default, and what it means."""

    kind: str
    help: str
    default: Any = None
    required: bool = False
    choices: tuple[Any, ...] = ()


@dataclass(frozen=True)
class CheckType:
    """A type of check: what runs it and which keys it takes beside the common ones."""

    name: str
    run: Callable[[Check, Any], Seen]
    keys: Mapping[str, Key]
    help: str
    timeout: float = 5.0
    target: tuple[str, ...] = ()
    # Whether what it warns of passes by itself, a moment after a change.
    settles: bool = False


COMMON: dict[str, Key] = {
    "name": Key("str", "What reports call it; by default type and target."),
    "type": Key("str", "One of the types below.", required=True),
    "severity": Key("str", "What a failure makes of the host.", "crit", choices=("crit", "warn")),
    "optional": Key("bool", "An optional dependency: it only ever warns. The same as severity warn.", False),
    "tags": Key("list", "Words to choose checks by.", ()),
    "service": Key("str", "The service it speaks for in quorum rules; by default the role that announced it."),
    "timeout": Key("float", "Seconds that one try may take; each type has a default."),
    "interval": Key("float", "Seconds between two tries.", 0.5),
    "initial_delay": Key("float", "Seconds before the first try.", 0.0),
    "success_threshold": Key("int", "Good tries in a row that make it good.", 1),
    "failure_threshold": Key("int", "Bad tries in a row that make it bad.", 1),
    "min_healthy_time": Key("float", "Seconds that it must then stay good, looked at every interval.", 0.0),
    "startup": Key("float", "Seconds that converge gives a service it just changed; 0: no part of its proof.", 15.0),
    "samples": Key("int", "Measured tries, for percentiles of latency.", 1),
    "latency": Key("dict", "Thresholds in ms, such as {p95: {warn: 100, crit: 500}}; p50, p95, p99, max.", {}),
    "depends_on": Key("list", "Names of checks of the same host; while one of them fails, this one is not judged.", ()),
    "waiver": Key("dict", "{reason, until}: a failure is accepted until the end of that day (UTC), and not after it."),
    "warn": Key("any", "A threshold: a number, or a matcher that says what is bad."),
    "crit": Key("any", "A threshold: a number, or a matcher that says what is bad."),
}


@dataclass
class Check:
    """A validated check; ``options`` has the keys of its type with their defaults."""

    name: str
    type: CheckType
    options: dict[str, Any]
    severity: str
    tags: tuple[str, ...]
    service: str
    role: str
    timeout: float
    interval: float
    initial_delay: float
    success_threshold: int
    failure_threshold: int
    min_healthy_time: float
    startup: float
    samples: int
    latency: dict[str, dict[str, float]]
    depends_on: tuple[str, ...]
    waiver: dict[str, str] | None
    warn: Any
    crit: Any

    def __getitem__(self, key: str) -> Any:
        return self.options[key]


def matches(seen: Any, wanted: Any) -> bool:
    """Whether a value is as wanted: equal to it, or, when a mapping of operators is wanted, as all of them say.

    A value that an operator cannot be applied to does not match.
    """
    if isinstance(wanted, Mapping) and wanted and set(wanted) <= set(OPERATORS):
        try:
            return all(OPERATORS[name](seen, operand) for name, operand in wanted.items())
        except (TypeError, ValueError):
            return False
    if isinstance(wanted, (int, float)) and not isinstance(wanted, bool) and isinstance(seen, str):
        try:
            return float(seen) == float(wanted)
        except ValueError:
            return False
    return bool(seen == wanted)


def exceeds(value: float, threshold: Any, falling: bool) -> bool:
    """Whether a value is at or past a threshold; ``falling`` for values of which less is worse."""
    if threshold is None:
        return False
    if isinstance(threshold, Mapping):
        return matches(value, threshold)
    return value <= float(threshold) if falling else value >= float(threshold)


def grade(check: Check, value: float, unit: str, message: str, *, falling: bool = False, **more: Any) -> Seen:
    """A measured value, judged by the check's warn and crit."""
    state = OK
    for name, threshold in ((CRIT, check.crit), (WARN, check.warn)):
        if exceeds(value, threshold, falling):
            state = name
            message += f" ({name} at {_words(threshold, falling)}{unit if not isinstance(threshold, Mapping) else ''})"
            break
    return Seen(message, state, float(value), unit, **more)


def _words(threshold: Any, falling: bool) -> str:
    if isinstance(threshold, Mapping):
        return ", ".join(f"{name} {operand}" for name, operand in threshold.items())
    return f"{'<=' if falling else '>='} {threshold:g}" if isinstance(threshold, (int, float)) else str(threshold)


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("yes", "true", "on", "1"):
        return True
    if str(value).lower() in ("no", "false", "off", "0"):
        return False
    raise ValueError(value)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(value)
    return dict(value)


def _threshold(value: Any) -> Any:
    if isinstance(value, Mapping):
        if not value or set(value) - set(OPERATORS):
            raise ValueError(value)
        return dict(value)
    return float(value)


KINDS: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": _bool,
    "list": _list,
    "dict": _dict,
    "any": lambda value: value,
}


def _convert(where: str, name: str, key: Key, value: Any) -> Any:
    try:
        converted = KINDS[key.kind](value)
    except (TypeError, ValueError):
        raise CheckError(f"{where}: {name}: {value!r} is no {key.kind}") from None
    if key.choices and converted not in key.choices:
        raise CheckError(f"{where}: {name}: {value!r} is none of {', '.join(map(str, key.choices))}")
    return converted


def _waiver(where: str, value: Mapping[str, Any] | None) -> dict[str, str] | None:
    if value is None:
        return None
    if set(value) != {"reason", "until"} or not str(value["reason"]).strip():
        raise CheckError(f"{where}: waiver: needs a reason and until, such as 2026-12-31, and nothing else")
    try:
        datetime.date.fromisoformat(str(value["until"]))
    except ValueError:
        raise CheckError(f"{where}: waiver: until: {value['until']!r} is no date such as 2026-12-31") from None
    return {"reason": str(value["reason"]), "until": str(value["until"])}


def _target(key: str, value: Any) -> str:
    """What a check looks at, for its name. Names go where everybody may read them: no arguments, no log-in of a URL."""
    if key in ("argv", "shell"):
        return str((value if isinstance(value, list) else value.split())[0])
    return re.sub(r"//[^/@]*@", "//", str(value)).partition("?")[0] if key == "url" else str(value)


def parse_check(given: Mapping[str, Any], types: Mapping[str, CheckType], role: str = "") -> Check:
    """A check as written to a validated one.

    :raises CheckError: for an unknown type or key, a missing key, or a value of the wrong type.
    """
    if not isinstance(given, Mapping):
        raise CheckError(f"{role or 'checks'}: {given!r} is no mapping")
    kind = types.get(str(given.get("type")))
    label = str(given.get("name") or given.get("type") or "a check")
    where = f"{role}: {label}" if role else label
    if kind is None:
        raise CheckError(f"{where}: type: {given.get('type')!r} is none of {', '.join(sorted(types))}")
    values = {name: value for name, value in given.items() if value is not None}
    keys = {**COMMON, **kind.keys}
    unknown = sorted(set(values) - set(keys))
    if unknown:
        raise CheckError(f"{where}: {', '.join(unknown)}: no such key; {kind.name} takes {', '.join(sorted(keys))}")
    missing = sorted(name for name, key in keys.items() if key.required and name not in values)
    if missing:
        raise CheckError(f"{where}: {', '.join(missing)}: missing, and type {kind.name} needs it")
    parsed = {
        name: _convert(where, name, key, values[name]) if name in values else key.default for name, key in keys.items()
    }
    for name in ("warn", "crit"):
        if parsed[name] is not None:
            try:
                parsed[name] = _threshold(parsed[name])
            except (TypeError, ValueError):
                raise CheckError(
                    f"{where}: {name}: {parsed[name]!r} is neither a number nor a mapping of {', '.join(OPERATORS)}"
                ) from None
    for name in ("success_threshold", "failure_threshold", "samples"):
        if parsed[name] < 1:
            raise CheckError(f"{where}: {name}: {parsed[name]} is less than 1")
    for name in ("timeout", "interval", "initial_delay", "min_healthy_time", "startup"):
        if parsed[name] is not None and parsed[name] < 0:
            raise CheckError(f"{where}: {name}: {parsed[name]:g} is negative")
    for statistic, bounds in parsed["latency"].items():
        if statistic not in ("p50", "p95", "p99", "max") or not isinstance(bounds, Mapping) or set(bounds) - {
            WARN,
            CRIT,
        }:
            raise CheckError(f"{where}: latency: {statistic}: use p50, p95, p99 or max with warn and crit")
    target = " ".join(_target(name, parsed[name]) for name in kind.target if parsed.get(name) not in (None, "", ()))
    return Check(
        name=parsed["name"] or f"{kind.name} {target}".strip(),
        type=kind,
        options={name: parsed[name] for name in kind.keys},
        severity=WARN if parsed["optional"] else parsed["severity"],
        tags=tuple(map(str, parsed["tags"])),
        service=parsed["service"] or role,
        role=role,
        timeout=kind.timeout if parsed["timeout"] is None else parsed["timeout"],
        waiver=_waiver(where, parsed["waiver"]),
        depends_on=tuple(map(str, parsed["depends_on"])),
        **{
            name: parsed[name]
            for name in (
                "interval",
                "initial_delay",
                "success_threshold",
                "failure_threshold",
                "min_healthy_time",
                "startup",
                "samples",
                "latency",
                "warn",
                "crit",
            )
        },
    )


def parse_checks(given: Iterable[tuple[str, Mapping[str, Any]]], types: Mapping[str, CheckType]) -> list[Check]:
    """All checks of a host, each with its role; names are unique per role and what they depend on exists.

    :raises CheckError: naming the check; also when there is none at all, because nothing would be proven.
    """
    checks = [parse_check(entry, types, role) for role, entry in given]
    if not checks:
        raise CheckError("there are no checks at all, so nothing would be proven; give checks or announce some")
    names: dict[tuple[str, str], int] = {}
    for check in checks:
        number = names[check.role, check.name] = names.get((check.role, check.name), 0) + 1
        if number > 1:
            check.name = f"{check.name} #{number}"
    known = {check.name: check for check in checks}
    for check in checks:
        for name in check.depends_on:
            if name not in known:
                raise CheckError(f"{check.name}: depends_on: there is no check {name!r}")
        _refuse_circles(check, known)
    return checks


def _refuse_circles(check: Check, known: Mapping[str, Check]) -> None:
    waiting, seen = list(check.depends_on), set()
    while waiting:
        name = waiting.pop()
        if name == check.name:
            raise CheckError(f"{check.name}: depends_on: it depends on itself")
        if name not in seen:
            seen.add(name)
            waiting += known[name].depends_on if name in known else ()


def load_announced(directory: str = CHECKS_DIR) -> list[tuple[str, Mapping[str, Any]]]:
    """The checks that the roles of this host have announced, with their roles.

    :raises CheckError: for a file that cannot be read as a list of checks.
    """
    found: list[tuple[str, Mapping[str, Any]]] = []
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".json"))
    except FileNotFoundError:
        return []
    for name in names:
        path = os.path.join(directory, name)
        try:
            with open(path, encoding="utf-8") as handle:
                entries = json.load(handle)
        except (OSError, ValueError) as error:
            raise CheckError(f"{path}: {error}") from error
        if not isinstance(entries, list):
            raise CheckError(f"{path}: is no list of checks")
        found += [(name[: -len(".json")], entry) for entry in entries]
    return found


def choose(checks: Sequence[Check], tags: Iterable[str], skip_tags: Iterable[str]) -> list[Check]:
    """Checks with one of the tags and none of those to skip; role, service and type count as tags of a check."""
    wanted, unwanted = set(tags), set(skip_tags)
    chosen = []
    for check in checks:
        words = {*check.tags, check.role, check.service, check.type.name}
        if (not wanted or words & wanted) and not words & unwanted:
            chosen.append(check)
    return chosen
