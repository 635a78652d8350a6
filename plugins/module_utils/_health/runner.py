# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs many checks at once under one deadline.

Threads are daemons and are never waited for: a try that hangs is left behind, its place is taken by a new thread.
"""

from __future__ import annotations

import contextlib
import datetime
import heapq
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from .judge import Judge, result, settle_dependencies, summarise
from .model import CRIT, UNKNOWN, CannotTell, Check, CheckError, CheckFailed, Seen, parse_check
from .registry import TYPES
from .shared import Shared

WORKERS = 48
# Seconds past its own timeout after which a try counts as hanging.
GRACE = 1.0


def try_once(check: Check, shared: Shared) -> Seen:
    """One try; whatever goes wrong becomes a state, never an exception."""
    try:
        return check.type.run(check, shared)
    except CheckFailed as error:
        return Seen(str(error), CRIT)
    except CannotTell as error:
        return Seen(str(error), UNKNOWN)
    except Exception as error:  # noqa: BLE001 - one broken check must not take the others with it
        return Seen(f"the check itself failed: {type(error).__name__}: {error}", UNKNOWN)


class Runner:
    """One run over the checks of a host."""

    def __init__(self, checks: Sequence[Check], patience: float = 0.0, workers: int = WORKERS) -> None:
        self.shared = Shared(checks)
        self.judges = [Judge(check, patience=patience, settling=patience) for check in checks]
        self._workers = min(workers, len(checks))
        self._condition = threading.Condition()
        self._counter = itertools.count()
        self._due: list[tuple[float, int, Judge]] = []
        # When each try under way becomes one that hangs; by judge.
        self._running: dict[int, tuple[float, Judge]] = {}
        self._open = len(checks)
        self._stopped = False

    def run(self, deadline: float) -> None:
        """Returns when all checks have their state, at the latest after ``deadline`` seconds."""
        self._begun = time.monotonic()
        end = self._begun + deadline
        for judge in self.judges:
            self._put(judge, self._begun + judge.check.initial_delay)
        for _number in range(self._workers):
            self._hire()
        with self._condition:
            while self._open and time.monotonic() < end:
                now = time.monotonic()
                for number, (limit, judge) in list(self._running.items()):
                    if now >= limit:
                        del self._running[number]
                        words = f"no answer after {judge.check.timeout:g} s, and the try cannot be ended"
                        self._take(judge, Seen(words, UNKNOWN), now - judge.check.timeout, now)
                        self._hire()
                soonest = min([limit for limit, _judge in self._running.values()] + [end, now + 0.5])
                self._condition.wait(max(0.01, soonest - time.monotonic()))
            self._stopped = True
            self._condition.notify_all()
            for judge in self.judges:
                if judge.state is None:
                    judge.give_up(f"no verdict within the deadline of {deadline:g} s")
        self.shared.close()

    def _hire(self) -> None:
        threading.Thread(target=self._work, daemon=True).start()

    def _put(self, judge: Judge, when: float) -> None:
        heapq.heappush(self._due, (when, next(self._counter), judge))

    def _take(self, judge: Judge, seen: Seen, started: float, now: float) -> None:
        """A try is over: the check has its state, or there is to be another try."""
        wait = judge.observe(seen, started, now, self._begun)
        if wait is None:
            self._open -= 1
        else:
            self._put(judge, now + wait)
        self._condition.notify_all()

    def _next(self) -> tuple[int, Judge] | None:
        with self._condition:
            while not self._stopped:
                now = time.monotonic()
                if self._due and self._due[0][0] <= now:
                    judge = heapq.heappop(self._due)[2]
                    number = next(self._counter)
                    self._running[number] = (now + judge.check.timeout + GRACE, judge)
                    return number, judge
                self._condition.wait(self._due[0][0] - now if self._due else None)
            return None

    def _work(self) -> None:
        while True:
            taken = self._next()
            if taken is None:
                return
            number, judge = taken
            started = time.monotonic()
            seen = try_once(judge.check, self.shared)
            now = time.monotonic()
            with self._condition:
                if self._running.pop(number, None) is None:
                    # It came back after it had been given up, and a new thread has taken this one's place.
                    return
                self._take(judge, seen, started, now)


def run_checks(checks: Sequence[Check], deadline: float, patience: float = 0.0) -> dict[str, Any]:
    """All checks at once.

    :param deadline: seconds after which a verdict is given whatever is still open.
    :param patience: seconds during which what is not yet good is tried again.
    :returns: ``results`` in the order of the checks, ``counts``, ``verdict``, ``healthy``, ``seconds``.
    """
    started = time.monotonic()
    runner = Runner(checks, patience=patience)
    runner.run(deadline)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    results = [result(judge, today) for judge in runner.judges]
    settle_dependencies(results, checks)
    return {"results": results, **summarise(results), "seconds": round(time.monotonic() - started, 3)}


def prove(entry: Mapping[str, Any], after_failure: Callable[[], None] = lambda: None) -> None:
    """A check as written, waited for; see :func:`wait_until_passed`.

    :raises CheckFailed: also when the check is written wrongly.
    """
    try:
        check = parse_check(entry, TYPES)
    except CheckError as error:
        raise CheckFailed(str(error)) from error
    wait_until_passed(check, after_failure)


def wait_until_passed(check: Check, after_failure: Callable[[], None] = lambda: None, successes: int = 2) -> None:
    """Tries until the check was good ``successes`` times in a row, or more where it says so, or ``startup`` is over.

    :param after_failure: called after each bad try; what it raises ends the waiting.
    :raises CheckFailed: with the check's name and what the last bad try saw. One whose severity is warn never raises.
    """
    judge = Judge(check, patience=check.startup)
    check.success_threshold = max(successes, check.success_threshold)
    with contextlib.closing(Shared([check])) as shared:
        begun = time.monotonic()
        while True:
            started = time.monotonic()
            seen = try_once(check, shared)
            wait = judge.observe(seen, started, time.monotonic(), begun)
            if wait is None:
                break
            if seen.state in (CRIT, UNKNOWN):
                after_failure()
            time.sleep(wait)
    entry = result(judge, datetime.datetime.now(datetime.timezone.utc).date())
    if entry["state"] in (CRIT, UNKNOWN):
        raise CheckFailed(f"{check.name}: {entry['message']}")
