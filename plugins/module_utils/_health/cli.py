# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``vmfleet-health``: the announced checks of a host without Ansible, for its timer, monitoring systems and people."""

from __future__ import annotations

import argparse
import json
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from .._durable import write_textfile
from .judge import describe, summarise
from .model import CHECKS_DIR, CRIT, OK, UNKNOWN, WARN, CheckError, choose, load_announced, parse_checks
from .registry import TYPES
from .runner import run_checks

# The states, exit codes and words of the Monitoring Plugins Development Guidelines, sections 2.3 and 2.6.
CODES = {OK: 0, WARN: 1, CRIT: 2, UNKNOWN: 3}
WORDS = {OK: "OK", WARN: "WARNING", CRIT: "CRITICAL", UNKNOWN: "UNKNOWN"}
PERFDATA_UNITS = {" %": "%", " s": "s", " ms": "ms", " B": "B"}
# EX_CANTCREAT of sysexits.h: the verdict is known and could not be left where it was to be left.
NOT_WRITTEN = 73
# Of the module ``health``, which asks the same.
ARGUMENT_SPEC: dict[str, Any] = {
    "checks": {"type": "list", "elements": "dict"},
    "tags": {"type": "list", "elements": "str", "default": []},
    "skip_tags": {"type": "list", "elements": "str", "default": []},
    "deadline": {"type": "float", "default": 30.0},
    "wait": {"type": "float", "default": 0.0},
    "fail": {"type": "bool", "default": True},
    "directory": {"type": "path", "default": CHECKS_DIR},
}

CODE_WORDS = ", ".join(f"{code} {state}" for state, code in CODES.items())
# Labels as they are printed, with a value.
Samples = Sequence[tuple[str, float]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """2 would be taken for critical."""
        self.print_usage()
        self.exit(CODES[UNKNOWN], f"{self.prog}: {message}\n")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vmfleet-health", description=__doc__)
    parser.add_argument("--tags", type=_words, default=[], help="only checks with one of these tags, roles or types")
    parser.add_argument("--skip-tags", type=_words, default=[], help="no checks with one of these")
    parser.add_argument("--directory", default=CHECKS_DIR, help="where the checks are announced (%(default)s)")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds until there is a verdict (%(default)g)")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to try again what is not good (%(default)g)")
    parser.add_argument("--json", action="store_true", help="everything that is known, as JSON")
    parser.add_argument("--quiet", action="store_true", help="say nothing when all is well, else only what is not")
    parser.add_argument("--textfile", metavar="FILE", help="leave the states as metrics for node_exporter")
    return parser


def look(
    directory: str,
    tags: Sequence[str],
    skip_tags: Sequence[str],
    deadline: float,
    wait: float,
    checks: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The outcome of a run of these checks, or of the announced ones.

    :returns: what `run_checks` returns; where the checks cannot be read or there are none, ``error`` says so besides.
    """
    try:
        entries = load_announced(directory) if checks is None else [("", dict(check)) for check in checks]
        chosen = choose(parse_checks(entries, TYPES), tags, skip_tags)
        if not chosen:
            raise CheckError("no check has the tags asked for, so nothing would be proven")
    except CheckError as error:
        return {"results": [], **summarise([]), "seconds": 0.0, "error": str(error)}
    return run_checks(chosen, deadline, wait)


def judged(outcome: dict[str, Any], fail: bool) -> dict[str, Any]:
    """An outcome as the module returns it.

    :arg fail: whether the task fails when the host is not healthy.
    """
    if "error" in outcome:
        return {"failed": True, "msg": outcome["error"]}
    bad = [describe(entry) for entry in outcome["results"] if entry["state"] in (CRIT, UNKNOWN)]
    if fail and bad:
        words = f"{len(bad)} of {len(outcome['results'])} checks failed:\n" + "\n".join(bad)
        return {**outcome, "failed": True, "msg": words}
    return {**outcome, "changed": False}


def text(outcome: Mapping[str, Any], quiet: bool = False) -> list[str]:
    """A first line as monitoring systems read it, then the checks, those that fail first."""
    results = sorted(outcome["results"], key=lambda entry: bool(entry["state"] == OK))
    bad = [entry for entry in results if entry["state"] != OK]
    if outcome.get("error"):
        summary = outcome["error"]
    elif bad:
        summary = f"{len(bad)} of {len(results)} checks not ok: {', '.join(entry['name'] for entry in bad)}"
    else:
        summary = f"{len(results)} checks ok"
    lines = [f"HEALTH {WORDS[outcome['verdict']]} - {summary}"]
    lines += [describe(entry) for entry in (bad if quiet else results)]
    # What follows a bar is performance data.
    lines = [line.replace("|", "/") for line in lines]
    if quiet:
        return lines if bad or outcome.get("error") else []
    lines[0] += f" | {' '.join(_perfdata(outcome))}"
    return lines


def _perfdata(outcome: Mapping[str, Any]) -> list[str]:
    data = [f"time={outcome['seconds']:g}s", *(f"{state}={number}" for state, number in outcome["counts"].items())]
    for entry in outcome["results"]:
        if "value" in entry:
            label = entry["name"].replace("'", "''").replace("=", ":").replace("|", "/")
            data.append(f"'{label}'={entry['value']:g}{PERFDATA_UNITS.get(entry['unit'], '')}")
    return data


def metrics(outcome: Mapping[str, Any], now: float) -> str:
    """Prometheus' text format. Everybody on the host may read it, so nothing of what the checks saw is in it."""
    results = outcome["results"]
    states: Samples = [(labels(told(entry, "role", "service", "type")), CODES[entry["state"]]) for entry in results]
    durations: Samples = [(labels(told(entry, "role")), entry["seconds"]) for entry in results]
    counts: Samples = [(labels({"state": state}), number) for state, number in outcome["counts"].items()]
    return exposition("vmfleet_health", [
        ("state", f"Verdict on the host: {CODE_WORDS}.", [("", CODES[outcome["verdict"]])]),
        ("checks", "Number of checks by state.", counts),
        ("check_state", f"State of a check: {CODE_WORDS}.", states),
        ("check_duration_seconds", "Time until the state of a check was known.", durations),
        ("run_duration_seconds", "Time that the last run took.", [("", outcome["seconds"])]),
        ("last_run_timestamp_seconds", "When the last run ended.", [("", round(now, 3))]),
    ])  # fmt: skip


def exposition(prefix: str, families: Sequence[tuple[str, str, Samples]]) -> str:
    """Gauges in Prometheus' text format: name, meaning, samples; a family without samples is left out."""
    lines = []
    for name, meaning, samples in families:
        if samples:
            lines += [f"# HELP {prefix}_{name} {meaning}", f"# TYPE {prefix}_{name} gauge"]
            lines += [f"{prefix}_{name}{labelled} {value!r}" for labelled, value in samples]
    return "\n".join(lines) + "\n"


def told(entry: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """What the labels of a check say."""
    return {"check": entry["name"], **{name: entry[name] for name in names}}


def labels(pairs: Mapping[str, Any]) -> str:
    """Labels as they are printed."""
    escaped = {
        name: str(value).replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"') for name, value in pairs.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    outcome = look(arguments.directory, arguments.tags, arguments.skip_tags, arguments.deadline, arguments.wait)
    now = time.time()
    lines = text(outcome, arguments.quiet)
    if arguments.json:
        lines = [json.dumps({"host": socket.gethostname(), "time": round(now, 3), **outcome}, indent=2)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    if arguments.textfile:
        try:
            write_textfile(arguments.textfile, metrics(outcome, now))
        except OSError as error:
            sys.stderr.write(f"{arguments.textfile}: {error.strerror}\n")
            return NOT_WRITTEN
    return CODES[outcome["verdict"]]
