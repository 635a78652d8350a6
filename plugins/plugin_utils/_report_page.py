# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A verdict as one HTML page that needs nothing else, and the history of the runs before it. All of it pure.

The page is whole without its script, which only filters. What hosts have said gets into it through Jinja's autoescaping
alone, and the page's policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._health.model import CRIT, OK, STATES, UNKNOWN, WARN
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ._fleet_verdict import ANSWERED, FLEET, OUTSIDE, label

TEMPLATES = Path(__file__).parent / "templates"
# Runs and, for each of them, problems that the history keeps.
RUNS = 30
PROBLEMS = 50
# A state is told by its sign too, and not by its colour alone.
SIGNS = {OK: "✓", WARN: "!", CRIT: "✕", UNKNOWN: "?"}
# Of a latency plot, in units of its SVG.
WIDTH, MARGIN = 320.0, 14.0
FIGURES = ("p50", "p95", "p99", "max")


def remember(history: Any, report: Mapping[str, Any]) -> dict[str, Any]:
    """The history with one more run, the oldest beyond the bound dropped.

    :param history: as an earlier call returned it; anything else counts as none.
    :param report: as :meth:`Verdict.as_data` gives it, with its time.
    """
    runs = history["runs"] if isinstance(history, Mapping) and history.get("format") == 1 else []
    usable = [run for run in runs if isinstance(run, Mapping) and {"time", "verdict", "hosts", "p95"} <= set(run)]
    run = {
        "time": report["time"],
        "verdict": report["verdict"],
        "hosts": {name: host["state"] for name, host in report["hosts"].items()},
        "problems": [f"{entry['subject']}: {entry['name']}" for entry in report["problems"]][:PROBLEMS],
        "p95": {
            f"{name}: {label(check)}": check["latency_ms"]["p95"]
            for name, host in report["hosts"].items()
            for check in host["checks"]
            if _is_measured(check)
        },
    }
    return {"format": 1, "runs": [*usable, run][-RUNS:]}


def page(report: Mapping[str, Any], history: Mapping[str, Any]) -> str:
    """The page.

    :param history: with this run as its last.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(signs=SIGNS, states=STATES, figures=FIGURES)
    style, script = ((TEMPLATES / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    runs = history["runs"]
    hosts = _hosts(report)
    roles = list(dict.fromkeys(role for host in hosts for role in host["roles"]))
    return environment.get_template("report.html.j2").render(
        report=report,
        hosts=hosts,
        members=sum(name != OUTSIDE for name in report["hosts"]),
        roles=roles,
        checks=sum(len(host["checks"]) for host in hosts),
        counts={state: sum(check["shown"] == state for host in hosts for check in host["checks"]) for state in STATES},
        problems=[{**entry, "since": _since(entry, runs)} for entry in report["problems"]],
        latencies=_latencies(hosts, runs),
        runs=runs,
        past=[FLEET, *report["hosts"]],
        fleet=FLEET,
        answered=ANSWERED,
        style=style,
        script=script,
        style_hash=_digest(style),
        script_hash=_digest(script),
    )


def _digest(text: str) -> str:
    """Of an inline element, as Content Security Policy level 3, section 8.4, wants it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _hosts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hosts with their checks by role; each check with a number for links, and the state that counts for it."""
    judged = {(entry["subject"], entry["name"]): entry for entry in report["problems"]}
    hosts, number = [], 0
    for name, host in report["hosts"].items():
        roles: dict[str, list[dict[str, Any]]] = {}
        for check in host["checks"]:
            number += 1
            problem = judged.get((name, label(check)), {})
            roles.setdefault(str(check["role"] or check["type"]), []).append({
                **check,
                "number": number,
                "label": label(check),
                "shown": problem.get("state", check["state"]),
                "known": bool(problem.get("known")),
                "words": " ".join(str(problem.get("message", check["message"])).split()),
                "plot": plot(check) if _is_measured(check) else None,
            })  # fmt: skip
        checks = [check for entries in roles.values() for check in entries]
        hosts.append({**host, "name": name, "roles": roles, "checks": checks})
    return hosts


def _since(problem: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """In how many runs up to the last one it was there without a break, and the time of the first of them."""
    name, first = f"{problem['subject']}: {problem['name']}", len(runs)
    while first and name in runs[first - 1].get("problems", ()):
        first -= 1
    return len(runs) - first, str(runs[first]["time"]) if first < len(runs) else ""


def _is_measured(check: Mapping[str, Any]) -> bool:
    return bool(check.get("latency_ms")) and check["latency_ms"].get("samples", 1) > 1


def _latencies(hosts: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What was measured more than once, on one scale, with its p95 in the runs before."""
    measured = [(host["name"], check) for host in hosts for check in host["checks"] if _is_measured(check)]
    highest = max((check["latency_ms"]["max"] for _host, check in measured), default=0.0)
    rows = []
    for host, check in measured:
        past = [run["p95"].get(f"{host}: {check['label']}") for run in runs]
        rows.append({"host": host, "check": check, "plot": plot(check, highest), "trend": trend(past)})
    return rows


def plot(check: Mapping[str, Any], highest: float | None = None) -> dict[str, Any]:
    """Where tries and percentiles of a check stand on a logarithmic axis that begins at 0.1 ms.

    :param highest: milliseconds at which the axis ends at least; by default those of the slowest try.
    """
    end = max(1.0, math.ceil(math.log10(max(highest or check["latency_ms"]["max"], 0.1))))

    def place(milliseconds: float) -> float:
        share = (math.log10(max(milliseconds, 0.1)) + 1) / (end + 1)
        return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)

    return {
        "tries": sorted({place(value) for value in check.get("latencies_ms", ())}),
        "marks": {name: place(check["latency_ms"][name]) for name in FIGURES},
        "axis": [(place(10.0**power), f"{10.0**power:g}") for power in range(-1, int(end) + 1)],
    }


def trend(values: Sequence[float | None]) -> str:
    """Points of an SVG polyline of 100 by 20 through these values; empty when there is no line to draw."""
    known = [(number, value) for number, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return ""
    highest = max(value for _number, value in known) or 1.0
    step = 96 / (len(values) - 1)
    return " ".join(f"{2 + number * step:.1f},{18 - 16 * value / highest:.1f}" for number, value in known)
