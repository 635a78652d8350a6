"""Runs playbooks/verify.yml again and again on the standing local fleet, and counts false alarms and seconds.

A healthy fleet must be found healthy each time. Ends with an error if there was an alarm, and leaves the reports of
such runs in .fleet/PREFIX/verify-often. Warnings are counted apart, because one may well be true: on a machine that
does other things as well the hosts find their processors busy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter

from fleet_settings import ROOT, settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/verify-often", description=__doc__)
    parser.add_argument("--runs", type=int, default=50, help="how often (%(default)s)")
    parser.add_argument("options", nargs="*", help="for ansible-playbook, after --")
    given = parser.parse_args()
    folder = settings().state / "verify-often"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "ansible", "playbook", "-i", "inventories/local", "playbooks/verify.yml"]
    command += ["-e", f"verify_report={folder}", *given.options]
    seconds: list[float] = []
    alarms: Counter[str] = Counter()
    checks, bad, warned = 0, 0, 0
    for run in range(1, given.runs + 1):
        (folder / "verdict.json").unlink(missing_ok=True)
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, capture_output=True, text=True
        )
        seconds.append(time.monotonic() - started)
        try:
            report = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            print(done.stdout + done.stderr, file=sys.stderr)
            return 2
        checks = sum(len(host["checks"]) for host in report["hosts"].values())
        wrong = [f"{entry['state']} {entry['subject']}: {entry['name']}" for entry in report["problems"]]
        alarms.update(wrong)
        print(f"{run:3}  {report['verdict']:<8} {seconds[-1]:5.1f} s  {'; '.join(wrong)}".rstrip(), flush=True)
        warned += report["verdict"] == "warn"
        if done.returncode:
            bad += 1
            shutil.copytree(folder, folder / f"run-{run}", ignore=shutil.ignore_patterns("run-*"))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = (used.ru_utime + used.ru_stime) / given.runs
    print(f"{given.runs} runs of {checks} checks: {bad} with an alarm, {warned} with warnings only")
    print(f"median {statistics.median(seconds):.1f} s, slowest {max(seconds):.1f} s; {processor:.1f} s of CPU here")
    for words, number in alarms.most_common():
        print(f"  {number} times {words}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
