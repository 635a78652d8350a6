# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sends a bounded load through h2load, of the nghttp2 project, and sums up what it logged of each request."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._health.judge import percentile
from ansible_collections.vmfleet.ops.plugins.module_utils._host import Outcome, run

GENERATOR = "h2load"
# A client waits for its answer before it asks again; so many requests a second are its share, which leaves it 100 ms
# for each. A slower site shows as a rate that is not reached.
RATE_OF_CLIENT = 10
# Seconds that the generator may take to end after its time is over.
GRACE = 30
PERCENTILES = (("p50", 50), ("p95", 95), ("p99", 99))


def clients_of(rate: float) -> int:
    """How many clients share a rate of requests a second."""
    return max(1, math.ceil(rate / RATE_OF_CLIENT))


def argv_of(target: Mapping[str, Any], duration: int, log: str, http2: bool) -> list[str]:
    """The generator's command line.

    :param target: ``host`` and ``path`` to ask for, ``address`` and ``port`` to connect to, ``rate`` a second.
    """
    clients = clients_of(target["rate"])
    address = f"[{target['address']}]" if ":" in target["address"] else target["address"]
    return [
        GENERATOR,
        *([] if http2 else ["--h1"]),
        f"--clients={clients}",
        f"--rps={target['rate'] / clients:.4f}",
        f"--duration={duration}",
        "--connection-inactivity-timeout=10s",
        f"--connect-to={address}:{target['port']}",
        f"--log-file={log}",
        f"https://{target['host']}{target['path']}",
    ]


def parse_log(lines: Iterable[str]) -> list[tuple[int, float]]:
    """Status (0 without an answer) and milliseconds of each request, from h2load's log: start, status, microseconds."""
    answers = []
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[0].isdigit():
            status = int(words[1])
            answers.append((status if status > 0 else 0, int(words[2]) / 1000))
    return answers


def summary(answers: Sequence[tuple[int, float]], duration: float) -> dict[str, Any]:
    """Numbers of requests, their rate, the share of errors and percentiles in ms.

    An error is no answer or a status from 400 on: the load asks only for what is there. Percentiles are those of the
    answers, errors included, because a fast refusal is no fast site: the share of errors judges that.
    """
    statuses = Counter(str(status) for status, _ms in answers)
    errors = sum(1 for status, _ms in answers if not 200 <= status < 400)
    taken = sorted(ms for status, ms in answers if status)
    return {
        "requests": len(answers),
        "rate": round(len(answers) / duration, 2),
        "errors": round(errors / len(answers), 5) if answers else 1.0,
        "statuses": dict(sorted(statuses.items())),
        **{name: round(percentile(taken, share), 1) if taken else None for name, share in PERCENTILES},
        "max": round(taken[-1], 1) if taken else None,
    }


def measure(targets: Sequence[Mapping[str, Any]], duration: int, http2: bool) -> dict[str, Any]:
    """The load on all targets at once: ``targets`` with a summary each, and ``total`` over all requests.

    :param duration: whole seconds.
    """
    with tempfile.TemporaryDirectory(prefix="vmfleet-load-") as folder:

        def one(number: int) -> tuple[list[tuple[int, float]], Outcome]:
            log = os.path.join(folder, str(number))
            outcome = run(argv_of(targets[number], duration, log, http2), timeout=duration + GRACE)
            try:
                with open(log, encoding="ascii", errors="replace") as handle:
                    return parse_log(handle), outcome
            except FileNotFoundError:
                return [], outcome

        with ThreadPoolExecutor(max_workers=len(targets)) as pool:
            runs = list(pool.map(one, range(len(targets))))
    found = []
    for target, (answers, outcome) in zip(targets, runs):
        entry = {**target, "asked": target["rate"], **summary(answers, duration), "said": ""}
        if outcome.rc or not answers:
            entry["said"] = " ".join((outcome.stderr or outcome.stdout).split())[-300:]
        found.append(entry)
    total = summary([answer for answers, _outcome in runs for answer in answers], duration)
    return {"targets": found, "total": {"asked": round(sum(target["rate"] for target in targets), 2), **total}}
