# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How tries become a state: thresholds in a row, healthy time, percentiles, waivers, dependencies. All of it pure."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .model import CRIT, OK, STATES, UNKNOWN, WARN, Check, Seen

PERCENTILES = {"p50": 50, "p95": 95, "p99": 99, "max": 100}


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile: the smallest value that at least ``percent`` of all do not exceed.

    Source: ISO 3534-1 sample quantile, as NIST's Engineering Statistics Handbook section 7.2.5.2 names nearest rank.

    :param values: not empty, in any order.
    """
    ordered = sorted(values)
    return ordered[max(1, math.ceil(percent / 100 * len(ordered))) - 1]


@dataclass
class Judge:
    """One check's tries so far. ``observe`` says when to try again; None means that the state is final."""

    check: Check
    # Seconds during which it may still become good; bad tries do not count before they are over.
    patience: float = 0.0
    # The same for what only warns, of a type that settles.
    settling: float = 0.0
    state: str | None = None
    last: Seen = field(default_factory=Seen)
    attempts: int = 0
    good: int = 0
    bad: int = 0
    healthy_since: float | None = None
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def observe(self, seen: Seen, started: float, now: float, begun: float) -> float | None:
        """Takes in a try.

        :param started: when the try began, ``now`` when it ended, ``begun`` when the run began; seconds, one clock.
        :returns: seconds until the next try, or None when the state is final.
        """
        self.attempts += 1
        self.last = seen
        self.seconds = now - begun
        if seen.state == WARN and self.check.type.settles and now - begun < self.settling:
            return self.check.interval
        if seen.state in (OK, WARN):
            self.good, self.bad = self.good + 1, 0
            self.latencies.append((now - started) * 1000 if seen.latency is None else seen.latency)
            if self.good == self.check.success_threshold:
                self.healthy_since = now
            if self.good >= self.check.success_threshold:
                if now - (self.healthy_since or now) < self.check.min_healthy_time:
                    return self.check.interval
                if len(self.latencies) < self.check.samples:
                    return 0.0
                self.state = seen.state
                return None
            return min(self.check.interval, 0.1)
        self.good, self.bad, self.healthy_since = 0, self.bad + 1, None
        if self.bad >= self.check.failure_threshold and now - begun >= self.patience:
            self.state = seen.state
            return None
        return self.check.interval

    def give_up(self, words: str) -> None:
        """The run's deadline came first."""
        if self.last.state in (CRIT, UNKNOWN) and self.attempts:
            self.state = self.last.state
            self.last.message += f"; {words}"
        else:
            self.state = UNKNOWN
            self.last = Seen(words if not self.attempts else f"{self.last.message}; {words}", UNKNOWN)


def result(judge: Judge, today: datetime.date) -> dict[str, Any]:
    """A finished check as plain data."""
    check, seen = judge.check, judge.last
    state = judge.state or UNKNOWN
    message = seen.message
    statistics: dict[str, float] = {}
    if judge.latencies:
        statistics = {name: round(percentile(judge.latencies, p), 2) for name, p in PERCENTILES.items()}
    if state in (OK, WARN):
        for name, bounds in check.latency.items():
            for level in (CRIT, WARN):
                if level in bounds and statistics[name] >= float(bounds[level]):
                    message += f"; {name} of {len(judge.latencies)} tries is {statistics[name]:g} ms ({level} at "
                    message += f"{float(bounds[level]):g} ms)"
                    state = CRIT if CRIT in (state, level) else WARN
                    break
    if state == CRIT and check.severity == WARN:
        state = WARN
    entry: dict[str, Any] = {
        "name": check.name,
        "role": check.role,
        "type": check.type.name,
        "service": check.service,
        "tags": list(check.tags),
        "state": state,
        "severity": check.severity,
        "message": message or state,
        "attempts": judge.attempts,
        "seconds": round(judge.seconds, 3),
    }
    if statistics:
        entry["latency_ms"] = {**statistics, "samples": len(judge.latencies)}
    if len(judge.latencies) > 1:
        entry["latencies_ms"] = [round(value, 2) for value in judge.latencies[:200]]
    if seen.value is not None:
        entry.update(value=seen.value, unit=seen.unit)
    if seen.phases:
        entry["phases_ms"] = {name: round(value, 2) for name, value in seen.phases.items()}
    if seen.data:
        entry["data"] = seen.data
    _waive(entry, check, today)
    return entry


def _waive(entry: dict[str, Any], check: Check, today: datetime.date) -> None:
    if check.waiver is None:
        return
    reason, until = check.waiver["reason"], check.waiver["until"]
    if today > datetime.date.fromisoformat(until):
        entry["state"] = CRIT
        entry["message"] = f"the waiver ({reason}) expired on {until}; {entry['message']}"
    elif entry["state"] != OK:
        entry["waived"] = {"state": entry["state"], "reason": reason, "until": until}
        entry["message"] = f"waived until {until} ({reason}): {entry['message']}"
        entry["state"] = OK


def settle_dependencies(results: Sequence[dict[str, Any]], checks: Sequence[Check]) -> None:
    """A failing check that depends on a failing one is not judged: unknown, and it says because of what."""
    bad = {entry["name"] for entry in results if entry["state"] in (CRIT, UNKNOWN)}
    # In the same order: a name is unique for its role alone.
    for check, entry in zip(checks, results):
        reasons = [name for name in check.depends_on if name in bad]
        if reasons and entry["state"] != OK:
            entry["state"] = UNKNOWN
            entry["because_of"] = reasons
            entry["message"] = f"not judged while {', '.join(reasons)} fails: {entry['message']}"


def worst(states: Iterable[str]) -> str:
    """crit before unknown before warn before ok; unknown when there is none."""
    found = set(states)
    for state in (CRIT, UNKNOWN, WARN, OK):
        if state in found:
            return state
    return UNKNOWN


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts and the verdict of a host; ``healthy`` only when nothing is crit and nothing unknown."""
    counts = {state: sum(entry["state"] == state for entry in results) for state in STATES}
    verdict = worst(entry["state"] for entry in results)
    return {
        "verdict": verdict,
        "healthy": verdict in (OK, WARN),
        "counts": counts,
        "waived": sum("waived" in entry for entry in results),
    }


def describe(entry: Mapping[str, Any]) -> str:
    """One line on one check."""
    role = f"{entry['role']}: " if entry.get("role") else ""
    return f"{entry['state'].upper():<7} {role}{entry['name']}: {' '.join(str(entry['message']).split())}"
