# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the hosts say of themselves, held together: quorums, rules across hosts, a baseline. All of it pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._health.judge import summarise, worst
from ansible_collections.vmfleet.ops.plugins.module_utils._health.model import CRIT, OK, STATES, UNKNOWN, WARN

ANSWERED, FAILED, UNREACHABLE, MISSING = "answered", "failed", "unreachable", "missing"
BAD = (CRIT, UNKNOWN)
FLEET = "fleet"
# What the controller sees itself goes by this name, beside the hosts.
OUTSIDE = "outside"
# Less to worse; not as `worst` has it: here it matters whether something got worse than it was.
RANK = {OK: 0, WARN: 1, UNKNOWN: 2, CRIT: 3}


class VerdictError(ValueError):
    """What was asked for cannot be judged; the message names the option, its value and the remedy."""


@dataclass(frozen=True)
class Finding:
    """One statement on a host or on the fleet. ``known`` when the baseline already had it."""

    state: str
    subject: str
    name: str
    message: str
    known: bool = False
    tolerated: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.subject, self.name


@dataclass(frozen=True)
class Host:
    """What is known of a host. ``asked``: the controller's time before and after it answered."""

    name: str
    reach: str
    message: str = ""
    checks: Sequence[Mapping[str, Any]] = ()
    asked: tuple[float, float] | None = None
    seconds: float = 0.0

    @property
    def state(self) -> str:
        if self.reach == ANSWERED:
            return worst(check["state"] for check in self.checks)
        return UNKNOWN if self.reach == FAILED else CRIT

    def findings(self, service: str | None = None) -> list[Finding]:
        """All that is not ok; with ``service`` of its checks alone, and that the host does not answer."""
        if self.reach != ANSWERED:
            return [Finding(self.state, self.name, "the host answers", self.message)]
        return [
            Finding(check["state"], self.name, label(check), str(check["message"]))
            for check in self.checks
            if check["state"] != OK and (service is None or service in (check["service"], check["role"]))
        ]

    def data(self, *types: str) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Checks of these types, or all, with what they return for rules across hosts."""
        for check in self.checks:
            if check.get("data") and (not types or check["type"] in types):
                yield check, check["data"]


@dataclass(frozen=True)
class Quorum:
    """So many of a group, or in each zone of it, must be well; then the others only warn."""

    group: str
    members: Sequence[str]
    at_least: str
    service: str | None = None
    zone: str | None = None

    @property
    def name(self) -> str:
        words = f"{self.at_least} of {self.group}" + (f" in {self.zone}" if self.zone else "")
        return f"at least {words} well" + (f" for {self.service}" if self.service else "")

    @property
    def wanted(self) -> int:
        if self.at_least.endswith("%"):
            return math.ceil(len(self.members) * float(self.at_least[:-1]) / 100)
        return int(self.at_least)


@dataclass
class Rules:
    """What is asked of the fleet beside the hosts' own checks; groups are mappings of name to members."""

    quorums: Sequence[Quorum] = ()
    primaries: Sequence[str] = ()
    replicas: Sequence[str] = ()
    same_version: Mapping[str, Sequence[str]] = field(default_factory=dict)
    same_certificate: Mapping[str, Sequence[str]] = field(default_factory=dict)
    clock_bound: float = 2.0
    # Why the play ended before its verdict; empty when it did not.
    broken: str = ""


@dataclass
class Verdict:
    """The outcome. ``unjudged`` are rules on hosts that this run leaves out."""

    hosts: Sequence[Host]
    rules: list[Finding]
    problems: list[Finding]
    mended: list[str]
    unjudged: list[str]

    @property
    def state(self) -> str:
        return worst([OK, *(finding.state for finding in self.problems if not finding.known)])

    @property
    def healthy(self) -> bool:
        return self.state not in BAD

    def as_data(self) -> dict[str, Any]:
        """The report as plain data, and what a later run takes for its baseline."""
        return {
            "format": 1,
            "verdict": self.state,
            "healthy": self.healthy,
            "hosts": {
                host.name: {
                    "state": host.state,
                    "reach": host.reach,
                    "message": host.message,
                    "seconds": host.seconds,
                    "counts": summarise(host.checks)["counts"],
                    "checks": list(host.checks),
                }
                for host in self.hosts
            },
            "rules": [dataclasses.asdict(finding) for finding in self.rules],
            "problems": [dataclasses.asdict(finding) for finding in self.problems],
            "mended": self.mended,
            "unjudged": self.unjudged,
        }


def label(check: Mapping[str, Any]) -> str:
    """A check as reports name it, unique on its host."""
    return f"{check['role']}: {check['name']}" if check.get("role") else str(check["name"])


def read_host(name: str, result: Mapping[str, Any] | None, failure: str = "") -> Host:
    """What a task of ``health`` has left; None when nothing was registered, because of ``failure`` if that is known."""
    if result is None:
        return Host(name, MISSING, f"there is no result of its checks{failure and ': '}{failure}")
    if result.get("unreachable"):
        return Host(name, UNREACHABLE, str(result.get("msg") or "no connection"))
    checks = result.get("results")
    if not isinstance(checks, list) or not checks:
        return Host(name, FAILED, str(result.get("msg") or "its checks did not run"))
    asked = result.get("asked")
    return Host(
        name,
        ANSWERED,
        checks=checks,
        asked=(float(asked[0]), float(asked[1])) if asked else None,
        seconds=float(result.get("seconds") or 0),
    )


def make_quorums(
    rules: Iterable[Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    zone_of: Callable[[str, str], str | None],
) -> list[Quorum]:
    """Rules as written to quorums, one for each zone.

    :param zone_of: the value of a variable of a host, None when it has none.
    :raises VerdictError: for an unknown group, a host without zone, or a number that cannot be reached.
    """
    quorums = []
    for rule in rules:
        group, at_least = str(rule["group"]), str(rule["at_least"]).strip()
        if group not in groups:
            raise VerdictError(f"quorum: group: {group!r} is no group of the inventory")
        number = at_least.removesuffix("%")
        if not number.isdigit() or (at_least != number and int(number) > 100):
            raise VerdictError(f"quorum: at_least: {at_least!r} is neither a number nor a percentage such as 66%")
        zones: dict[str | None, list[str]] = {}
        for member in groups[group]:
            zone = zone_of(member, str(rule["zone"])) if rule.get("zone") else None
            if rule.get("zone") and zone is None:
                raise VerdictError(f"quorum: zone: {member} of group {group} has no variable {rule['zone']}")
            zones.setdefault(zone, []).append(member)
        for zone, members in zones.items():
            quorum = Quorum(group, members, at_least, rule.get("service"), zone)
            if quorum.wanted > len(members):
                raise VerdictError(f"quorum: at_least: {quorum.name}: there are {len(members)}")
            quorums.append(quorum)
    return quorums


def judge(hosts: Sequence[Host], rules: Rules, baseline: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on a fleet.

    :param baseline: an earlier report; what it had, and has not become worse, is not held against this run.
    :raises VerdictError: when there is no host, because nothing would be proven.
    """
    if not hosts:
        raise VerdictError("there are no hosts, so nothing would be proven")
    known = {host.name: host for host in hosts}
    found = [Finding(CRIT, FLEET, "the run came to its verdict", rules.broken)] if rules.broken else []
    unjudged: list[str] = []
    tolerated: dict[tuple[str, str], str] = {}
    for quorum in rules.quorums:
        if not set(quorum.members) <= set(known):
            unjudged.append(quorum.name)
            continue
        finding, forgiven = _quorum(quorum, [known[name] for name in quorum.members])
        found.append(finding)
        tolerated.update(dict.fromkeys(forgiven, quorum.name))
    database = [*rules.primaries, *rules.replicas]
    if database and set(database) <= set(known):
        found.append(_replication(rules.primaries, rules.replicas, known))
    elif database:
        unjudged.append("replication")
    found += _balancers(hosts)
    holders, left_out = _holders(known)
    found += holders
    unjudged += left_out
    for name, key, groups in (
        ("versions", "version", rules.same_version),
        ("certificates", "sha256", rules.same_certificate),
    ):
        for group, members in groups.items():
            found += _same(name, key, group, [known[member] for member in members if member in known])
    found += _clocks(hosts, rules.clock_bound)
    problems = [
        dataclasses.replace(
            finding, state=WARN, tolerated=True, message=f"{finding.message} (tolerated: {tolerated[finding.key]})"
        )
        if finding.key in tolerated and finding.state in BAD
        else finding
        for host in hosts
        for finding in host.findings()
    ] + [finding for finding in found if finding.state != OK]
    mended: list[str] = []
    if baseline is not None:
        problems, mended = _compare(problems, baseline, {FLEET, *known})
    problems.sort(key=lambda finding: (finding.known, -RANK[finding.state], finding.subject == FLEET, finding.key))
    return Verdict(hosts, found, problems, mended, unjudged)


def _quorum(quorum: Quorum, members: Sequence[Host]) -> tuple[Finding, set[tuple[str, str]]]:
    """The finding, and what it forgives while it holds."""
    bad = {
        host.name: [finding for finding in host.findings(quorum.service) if finding.state in BAD] for host in members
    }
    ill = sorted(name for name, findings in bad.items() if findings)
    words = f"{len(members) - len(ill)} of {len(members)} well" + (f", not {', '.join(ill)}" if ill else "")
    if len(members) - len(ill) < quorum.wanted:
        return Finding(CRIT, FLEET, quorum.name, words), set()
    # That a host does not answer is more than that one of its services fails.
    reached = {host.name for host in members if host.reach == ANSWERED}
    forgiven = {
        finding.key for name in ill for finding in bad[name] if quorum.service is None or finding.subject in reached
    }
    return Finding(WARN if ill else OK, FLEET, quorum.name, words), forgiven


def _replication(primaries: Sequence[str], replicas: Sequence[str], known: Mapping[str, Host]) -> Finding:
    """Every cluster has one primary, and each replica of the inventory streams."""
    problems = []
    clusters: dict[str, dict[str, str]] = {}
    for name in [*primaries, *replicas]:
        wanted = "primary" if name in primaries else "replica"
        seen = next((data for _check, data in known[name].data("postgresql") if "role" in data), None)
        if seen is None:
            problems.append(f"nothing is known of the {wanted} {name}")
            continue
        clusters.setdefault(str(seen.get("system")), {})[name] = str(seen["role"])
        if seen["role"] != wanted:
            problems.append(f"{name} is a {seen['role']} and not the {wanted}")
        elif wanted == "replica" and not int(seen.get("receivers", 1)):
            problems.append(f"{name} receives nothing from a primary")
    for roles in clusters.values():
        leaders = sorted(name for name, role in roles.items() if role == "primary")
        if len(leaders) != 1:
            what = f"{', '.join(leaders)} are primaries of one cluster" if leaders else "there is no primary"
            problems.append(f"{what} ({', '.join(sorted(roles))})")
    if problems:
        return Finding(CRIT, FLEET, "replication", "; ".join(problems))
    words = f"{', '.join(primaries)} leads, {', '.join(replicas) or 'nobody'} follows"
    return Finding(OK, FLEET, "replication", words)


def _balancers(hosts: Sequence[Host]) -> list[Finding]:
    """Balancers see the same servers as healthy. A server counts as healthy where all of a balancer's backends say so:
    each kind of balancer names its backends in its own way.
    """
    views: dict[str, dict[str, bool]] = {}
    for host in hosts:
        for _check, data in host.data("haproxy", "nginx"):
            for path, state in data.get("servers", {}).items():
                server = path.partition("/")[2]
                view = views.setdefault(server, {})
                view[host.name] = view.get(host.name, True) and str(state).startswith(("UP", "no check"))
    shared = {server: view for server, view in views.items() if len(view) > 1}
    if not shared:
        return []
    problems = [
        f"{server} is healthy for {', '.join(sorted(name for name, well in view.items() if well))}"
        f" but not for {', '.join(sorted(name for name, well in view.items() if not well))}"
        for server, view in sorted(shared.items())
        if len(set(view.values())) > 1
    ]
    watchers = sorted({name for view in shared.values() for name in view})
    words = f"{', '.join(watchers)} agree on {', '.join(sorted(shared))}"
    return [Finding(CRIT if problems else OK, FLEET, "balancers", "; ".join(problems) or words)]


def _holders(known: Mapping[str, Host]) -> tuple[list[Finding], list[str]]:
    """Each address that hosts share is held by exactly one of them; second, what is not judged for want of sharers."""
    views: dict[str, dict[str, bool]] = {}
    sharers: dict[str, set[str]] = {}
    for host in known.values():
        for _check, data in host.data("floating"):
            for address, here in data["held"].items():
                views.setdefault(address, {})[host.name] = bool(here)
                sharers.setdefault(address, set()).update(data["sharers"])
    findings, unjudged = [], []
    for address, view in sorted(views.items()):
        title = f"holder of {address}"
        if not sharers[address] <= set(known):
            unjudged.append(title)
            continue
        holders = sorted(name for name, here in view.items() if here)
        words = f"{', '.join(holders) or 'nobody'} of {', '.join(sorted(sharers[address]))}"
        if silent := sorted(sharers[address] - set(view)):
            words += f"; nothing is known of {', '.join(silent)}"
        findings.append(Finding(OK if len(holders) == 1 else CRIT, FLEET, title, words))
    return findings, unjudged


def _same(name: str, key: str, group: str, members: Sequence[Host]) -> list[Finding]:
    """A value that all members of a group return is one and the same."""
    seen: dict[str, dict[str, list[str]]] = {}
    for host in members:
        for check, data in host.data():
            if key in data:
                # A check may carry the role of a host in its name.
                what = str(check["service"] or check["type"]) if key == "version" else label(check)
                seen.setdefault(what, {}).setdefault(str(data[key]), []).append(host.name)
    short = 64 if key == "version" else 12
    problems = [
        f"{what}: "
        + ", ".join(f"{value[:short]} on {', '.join(sorted(set(names)))}" for value, names in values.items())
        for what, values in sorted(seen.items())
        if len(values) > 1
    ]
    title = f"{name} of {group}"
    if problems:
        return [Finding(CRIT, FLEET, title, "; ".join(problems))]
    words = ", ".join(f"{what} {next(iter(values))[:short]}" for what, values in sorted(seen.items()))
    return [Finding(OK, FLEET, title, words)] if seen else []


def _clocks(hosts: Sequence[Host], bound: float) -> list[Finding]:
    """No clock is off by more than the bound for certain: how long question and answer travelled is not known."""
    offsets = {}
    for host in hosts:
        stamp = next((data["time"] for _check, data in host.data("clock") if "time" in data), None)
        if stamp is not None and host.asked:
            before, after = host.asked
            offsets[host.name] = min(0.0, stamp - before) + max(0.0, stamp - after)
    if not offsets:
        return []
    wrong = [f"{name} by at least {offset:+.1f} s" for name, offset in sorted(offsets.items()) if abs(offset) > bound]
    if wrong:
        return [Finding(CRIT, FLEET, "clocks", f"off from the controller's: {', '.join(wrong)}")]
    return [Finding(OK, FLEET, "clocks", f"{len(offsets)} clocks within {bound:g} s of the controller's")]


def _compare(
    problems: Sequence[Finding], baseline: Mapping[str, Any], subjects: set[str]
) -> tuple[list[Finding], list[str]]:
    before = {(entry["subject"], entry["name"]): str(entry["state"]) for entry in baseline["problems"]}
    marked = [
        dataclasses.replace(finding, known=RANK[finding.state] <= RANK[before.get(finding.key, OK)])
        for finding in problems
    ]
    now = {finding.key for finding in problems}
    mended = sorted(
        f"{subject}: {name}" for subject, name in before if (subject, name) not in now and subject in subjects
    )
    return marked, mended


def check_baseline(data: Any) -> Mapping[str, Any]:
    """A report that an earlier run has written.

    :raises VerdictError: when it is something else.
    """
    good = isinstance(data, dict) and data.get("format") == 1 and isinstance(data.get("problems"), list)
    if not good or any(entry.get("state") not in STATES for entry in data["problems"]):
        raise VerdictError("baseline: is no report of fleet_verdict; give a verdict.json of an earlier run")
    return dict(data)
