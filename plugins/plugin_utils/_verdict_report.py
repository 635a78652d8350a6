# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A verdict for people and for programs: a table for the terminal, and files for all others."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ansible_collections.vmfleet.ops.plugins.module_utils._health.cli import (
    CODE_WORDS,
    CODES,
    exposition,
    labels,
    told,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._health.judge import summarise
from ansible_collections.vmfleet.ops.plugins.module_utils._health.model import CRIT, OK, STATES, UNKNOWN, WARN

from ._fleet_verdict import ANSWERED, FLEET, OUTSIDE, Finding, Host, Verdict, VerdictError, label
from ._report_page import page, remember

HISTORY = "history.json"

# Characters that XML 1.0 section 2.2 does not allow.
NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def summary(verdict: Verdict) -> str:
    """One line."""
    fresh = [finding for finding in verdict.problems if not finding.known]
    known = len(verdict.problems) - len(fresh)
    parts = [f"{sum(finding.state == state for finding in fresh)} {state}" for state in (CRIT, UNKNOWN, WARN)]
    parts = [part for part in parts if not part.startswith("0 ")] or [f"nothing{' new' if known else ''} is wrong"]
    if known:
        parts.append(f"{known} known before")
    if verdict.mended:
        parts.append(f"{len(verdict.mended)} mended")
    checks = sum(len(host.checks) for host in verdict.hosts)
    hosts = sum(host.name != OUTSIDE for host in verdict.hosts)
    return f"Verdict {verdict.state}: {', '.join(parts)} ({hosts} hosts, {checks} checks)"


def problem_lines(verdict: Verdict) -> list[str]:
    """What is wrong, one line each."""
    return [
        f"{'known' if finding.known else finding.state:<8} {finding.subject}: {finding.name}: "
        + " ".join(finding.message.split())
        for finding in verdict.problems
    ]


def table(verdict: Verdict) -> str:
    """Hosts by states, rules, problems."""
    rows: list[tuple[str, ...]] = [("host", "verdict", *STATES)]
    for host in verdict.hosts:
        counts = summarise(host.checks)["counts"]
        numbers = [str(counts[state] or ".") for state in STATES] if host.reach == ANSWERED else [""] * len(STATES)
        rows.append((host.name, host.state if host.reach == ANSWERED else host.reach, *numbers))
    blocks = [_columns(rows)]
    if verdict.rules or verdict.unjudged:
        rules = [(finding.name, finding.state, finding.message) for finding in verdict.rules]
        rules += [(name, "", "not judged: some of its hosts are left out of this run") for name in verdict.unjudged]
        blocks.append(_columns([("rule", "verdict", ""), *rules]))
    for lines in (problem_lines(verdict), [f"mended   {name}" for name in verdict.mended]):
        if lines:
            blocks.append(lines)
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _text(words: Any) -> str:
    return NO_XML.sub("?", str(words))


def _case(suite: ElementTree.Element, name: str, group: str, state: str, message: str, seconds: float = 0.0) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", {"classname": _text(group), "name": _text(name), "time": f"{seconds:.3f}"}
    )
    # A warning passes, with what is to be said of it.
    kind = {CRIT: "failure", UNKNOWN: "error"}.get(state, "system-out")
    element = ElementTree.SubElement(case, kind)
    element.text = _text(message)
    if kind != "system-out":
        element.set("message", _text(message).partition("\n")[0][:300])
        element.set("type", state)


def junit(verdict: Verdict, timestamp: str) -> str:
    """A suite for each host and one for the rules of the fleet; what was known before passes.

    :param timestamp: when, as ISO 8601.
    """
    root = ElementTree.Element("testsuites", {"name": "vmfleet"})
    states = {finding.key: OK if finding.known else finding.state for finding in verdict.problems}
    for host in verdict.hosts:
        _suite(root, host, states, timestamp)
    if verdict.rules:
        suite = ElementTree.SubElement(root, "testsuite", {"name": FLEET, "timestamp": timestamp, "hostname": ""})
        for finding in verdict.rules:
            _case(suite, finding.name, FLEET, states.get(finding.key, finding.state), finding.message)
    for suite in root:
        suite.set("time", f"{sum(float(case.get('time', 0)) for case in suite):.3f}")
    for element in (*root, root):
        element.set("tests", str(len(list(element.iter("testcase")))))
        element.set("failures", str(len(list(element.iter("failure")))))
        element.set("errors", str(len(list(element.iter("error")))))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ElementTree.Element, host: Host, states: Mapping[tuple[str, str], str], timestamp: str) -> None:
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": host.name, "timestamp": timestamp, "hostname": host.name}
    )
    if host.reach != ANSWERED:
        (finding,) = host.findings()
        _case(suite, finding.name, host.name, states.get(finding.key, finding.state), finding.message)
    for check in host.checks:
        state = states.get(Finding("", host.name, label(check), "").key, check["state"])
        seconds = float(check.get("seconds") or 0)
        _case(suite, str(check["name"]), f"{host.name}.{check['role']}", state, str(check["message"]), seconds)


def textfile(verdict: Verdict, when: float) -> str:
    """Prometheus' text format, for a textfile collector. States count as they were judged, known ones as they are.

    :param when: seconds since 1970.
    """
    judged = {finding.key: finding.state for finding in verdict.problems}
    checks = [
        (
            labels({"host": host.name, **told(check, "role", "service", "type")}),
            CODES[judged.get((host.name, label(check)), check["state"])],
        )
        for host in verdict.hosts
        for check in host.checks
    ]
    return exposition("vmfleet_verdict", [
        ("state", f"Verdict on the fleet: {CODE_WORDS}.", [("", CODES[verdict.state])]),
        ("host_state", f"State of a host by itself: {CODE_WORDS}.",
         [(labels({"host": host.name}), CODES[host.state]) for host in verdict.hosts]),
        ("host_answered", "Whether a host has told of its checks.",
         [(labels({"host": host.name}), int(host.reach == ANSWERED)) for host in verdict.hosts]),
        ("check_state", f"State of a check: {CODE_WORDS}.", checks),
        ("rule_state", f"State of a rule across hosts: {CODE_WORDS}.",
         [(labels({"rule": finding.name}), CODES[finding.state]) for finding in verdict.rules]),
        ("problems_known", "Problems that the baseline had too.",
         [("", sum(finding.known for finding in verdict.problems))]),
        ("timestamp_seconds", "When the verdict was given.", [("", round(when, 3))]),
    ])  # fmt: skip


def write_reports(folder: Path, verdict: Verdict) -> None:
    """All reports, each put in place as a whole, and the history of the runs whose reports went to this folder.

    :raises VerdictError: when they cannot be written.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    time = now.isoformat("T", "seconds")
    report = {"time": time, **verdict.as_data()}
    try:
        history = remember(_read_history(folder / HISTORY), report)
        texts = {
            "verdict.json": json.dumps(report, indent=2) + "\n",
            "junit.xml": junit(verdict, time),
            "verdict.prom": textfile(verdict, now.timestamp()),
            "report.html": page(report, history),
            HISTORY: json.dumps(history) + "\n",
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in texts.items():
            temporary = folder / f".{name}.{os.getpid()}"
            # Half of a surrogate pair, which a host may send in its JSON, is no UTF-8.
            temporary.write_bytes(content.encode(errors="replace"))
            temporary.replace(folder / name)
    except OSError as error:
        raise VerdictError(f"report: {folder}: {error}") from error


def _read_history(path: Path) -> Any:
    """What is there; a file that is no JSON is no reason to withhold a verdict, and begins anew."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
