"""Runs the project's tests and closes with a line `N passed, N failed` that counts what really ran.

A stage that finds nothing to run counts as failed: tests that match no file have fooled others before.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "tests" / "output"
# What stands together runs at the same time; each of them waits much.
ROUNDS = (("images", "lint", "unit"), ("integration", "molecule"))
# Has work for one processor, for longer than a round: goes on beside them.
BESIDE = "sanity"
STAGES = (BESIDE, *(stage for together in ROUNDS for stage in together))
# Those that are no tests: they are counted only when they fail.
STATIC = {"images": ("fleet", "image", "--release", "all"), "lint": ("lint",), "sanity": ("sanity",)}
# Scenarios of Molecule at once, while the integration tests run and alone. More starve each other: what one stops
# then has work in its hands.
SCENARIOS = {True: 1, False: 2}
# The scenario that takes as long as many others, for which nobody is to wait at the end.
LONGEST = "backup"
# Scenarios that put load on a balancer and count what comes of it: beside nothing else.
LOADED = ("haproxy", "nginx")


@dataclass
class Tally:
    """What one stage or all of them came to."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.failures += other.failures


def nothing_ran(stage: str, why: str) -> Tally:
    return Tally(failed=1, failures=[f"{stage}: nothing ran ({why})"])


def static(stage: str) -> Tally:
    script, *arguments = STATIC[stage]
    done = subprocess.run([str(ROOT / "scripts" / script), *arguments], cwd=ROOT, capture_output=True, text=True)
    print(f"{done.stdout}{done.stderr}", end="", flush=True)
    return Tally(failed=1, failures=[stage]) if done.returncode else Tally()


def pytest(stage: str, *arguments: str) -> Tally:
    folder = ROOT / "tests" / stage
    if not folder.is_dir():
        return nothing_ran(stage, f"there is no {folder.relative_to(ROOT)}")
    report = OUTPUT / f"{stage}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", str(folder), f"--junitxml={report}", "-q", *arguments]
    code = subprocess.run(command, cwd=ROOT).returncode
    if not report.exists():
        return nothing_ran(stage, f"pytest ended with {code}")
    tally = Tally()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        wrong = [*case.iter("failure"), *case.iter("error")]
        if wrong:
            tally.failed += 1
            why = shortened(wrong[0].get("message") or "")
            tally.failures.append(f"{stage}: {case.get('classname')}.{case.get('name')}: {why}")
        elif case.find("skipped") is not None:
            tally.skipped += 1
        else:
            tally.passed += 1
    if not tally.passed + tally.failed:
        return nothing_ran(stage, f"pytest ended with {code}")
    if code and not tally.failed:
        tally.add(Tally(failed=1, failures=[f"{stage}: pytest ended with {code}"]))
    return tally


def shortened(text: str, most: int = 700) -> str:
    """One line of it, for the list at the end: whoever has only the end of the output sees what went wrong."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]} [...]"


def scenario(name: str) -> tuple[str, str, float]:
    """Run one scenario; returns its name, what is wrong with it (nothing, if it passed) and the seconds it took."""
    log = OUTPUT / f"molecule-{name}.log"
    started = time.monotonic()
    with log.open("w") as output:
        code = subprocess.run(
            [str(ROOT / "scripts" / "molecule"), "test", "-s", name],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1"},
        ).returncode
    seconds = time.monotonic() - started
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    if code:
        errors = re.findall(r"^\[ERROR\]: .*|^ *(?:FAILED|BROKEN)  .*", text, re.MULTILINE)
        return name, f"ended with {code}: {shortened(' | '.join(dict.fromkeys(errors)))}", seconds
    missing = [step for step in ("converge", "idempotence", "verify") if f"{step}: Executed: Successful" not in text]
    return name, f"did not run {', '.join(missing)}" if missing else "", seconds


@dataclass
class Room:
    """What Molecule may take: ``lanes`` for scenarios at once, and all when it is ``quiet``."""

    lanes: threading.Semaphore
    quiet: threading.Event

    def run(self, name: str) -> tuple[str, str, float]:
        """:func:`scenario`, when there is a lane for it."""
        with self.lanes:
            return scenario(name)

    def all(self, names: Sequence[str]) -> Iterator[tuple[str, str, float]]:
        """What came of each scenario, as soon as it is known."""
        together = sorted((name for name in names if name not in LOADED), key=lambda name: name != LONGEST)
        with ThreadPoolExecutor(max_workers=max(SCENARIOS.values())) as pool:
            for job in as_completed([pool.submit(self.run, name) for name in together]):
                yield job.result()
        for name in (name for name in names if name in LOADED):
            self.quiet.wait()
            yield scenario(name)


def molecule(chosen: Sequence[str], room: Room) -> Tally:
    names = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))
    unknown = set(chosen) - set(names)
    if unknown:
        return nothing_ran("molecule", f"no scenario {', '.join(sorted(unknown))}")
    names = [name for name in names if not chosen or name in chosen]
    if not names:
        return nothing_ran("molecule", "there is no molecule/*/molecule.yml")
    tally = Tally()
    for name, wrong, seconds in room.all(names):
        print(f"  molecule {name:<20} {'FAILED: ' + wrong if wrong else 'passed'} ({seconds:.0f} s)", flush=True)
        if wrong:
            log = OUTPUT / f"molecule-{name}.log"
            print("".join(f"    {line}\n" for line in log.read_text(errors="replace").splitlines()[-40:]), end="")
            tally.failed += 1
            tally.failures.append(f"molecule: {name} {wrong}; see {log.relative_to(ROOT)}")
        else:
            tally.passed += 1
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test", description=__doc__)
    parser.add_argument("--only", default=",".join(STAGES), help=f"stages, separated by commas: {', '.join(STAGES)}")
    parser.add_argument("--role", action="append", default=[], help="only this Molecule scenario; may be repeated")
    arguments = parser.parse_args()
    stages = arguments.only.split(",")
    if unknown := set(stages) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    room = Room(threading.Semaphore(SCENARIOS["integration" in stages]), threading.Event())
    if "integration" not in stages:
        room.quiet.set()

    def integration() -> Tally:
        try:
            return pytest("integration", "-n", "2", "--dist", "loadgroup", "--durations=25")
        finally:
            room.lanes.release(SCENARIOS[False] - SCENARIOS[True])
            room.quiet.set()

    runs: dict[str, Callable[[], Tally]] = {
        "unit": lambda: pytest("unit", "-n", "auto"),
        "integration": integration,
        "molecule": lambda: molecule(arguments.role, room),
        **{name: functools.partial(static, name) for name in STATIC},
    }

    def stage(name: str) -> Tally:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        tally = runs[name]()
        counts = f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped"
        print(f"== {name}: {counts} in {time.monotonic() - started:.0f} s", flush=True)
        return tally

    total = Tally()
    with ThreadPoolExecutor() as pool:
        beside = [pool.submit(stage, BESIDE)] if BESIDE in stages else []
        for together in ROUNDS:
            for tally in pool.map(stage, [name for name in together if name in stages]):
                total.add(tally)
        for job in beside:
            total.add(job.result())
    if not total.passed + total.failed and set(stages) - set(STATIC):
        total.add(nothing_ran("all stages", "no test at all"))
    for failure in total.failures:
        print(f"FAILED {failure}")
    print(f"{total.passed} passed, {total.failed} failed")
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
