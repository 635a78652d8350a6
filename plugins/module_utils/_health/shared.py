# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the checks of one run share: one look at systemd and at /proc for all, one psql session for each server."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import IO, Any, cast

from .._host import PATH, run
from .model import CannotTell, Check, CheckFailed

# Seconds that a look at systemd or /proc serves the checks that come with it.
FRESH = 0.2
SYSTEMD_KEYS = "Id,LoadState,ActiveState,SubState,Result,NRestarts,MainPID,UnitFileState"
MARK = "vmfleet-end-of-answer"
# Between fields and between rows; neither occurs in what is asked for.
FIELD = "\x1f"


class PsqlSession:
    """One psql process that answers one query after the other."""

    def __init__(self, argv: Sequence[str], user: str | None, environment: dict[str, str]) -> None:
        command = (["runuser", "-u", user, "--"] if user and os.geteuid() == 0 else []) + [
            *argv, "-XAtq", f"--field-separator={FIELD}", "--set=ON_ERROR_STOP=0", "--set=VERBOSITY=terse", "--file=-",
        ]  # fmt: skip
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/", "PGCONNECT_TIMEOUT": "5", **environment},
                cwd="/",
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise CannotTell(f"psql cannot be started: {error}; install postgresql-client") from error
        # Never None, because it was asked for as a pipe.
        self._stdin = cast(IO[str], self._process.stdin)
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout or ():
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def ask(self, query: str, timeout: float) -> list[list[str]]:
        """The rows of one query.

        :raises CheckFailed: for an error of the server, no connection, or no answer within ``timeout`` seconds.
        """
        end = time.monotonic() + timeout
        try:
            query = query.rstrip().rstrip(";")
            # psql's own commands take no semicolon.
            end_of_query = "" if query.rpartition("\n")[2].startswith("\\") else ";"
            self._stdin.write(f"{query}{end_of_query}\n\\echo {MARK} :ERROR :LAST_ERROR_MESSAGE\n")
            self._stdin.flush()
        except (OSError, ValueError):
            pass
        lines: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise CheckFailed(f"the server gave no answer within {timeout:.1f} s") from None
            if line is None:
                raise CheckFailed(" ".join(lines)[-300:] or "the connection ended")
            if line.startswith(MARK):
                failed, _space, message = line[len(MARK) + 1 :].partition(" ")
                if failed == "true":
                    raise CheckFailed(message or " ".join(lines)[-300:])
                return [row.split(FIELD) for row in lines]
            lines.append(line)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        with contextlib.suppress(OSError, ValueError):
            self._stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)


class Shared:
    """Handed to every try."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._units = sorted({str(check["unit"]) for check in checks if check.type.name == "systemd"})
        self._lock = threading.Lock()
        self._looked = -FRESH
        self._states: dict[str, dict[str, str]] = {}
        self._scanned = -FRESH
        self._processes: list[tuple[int, str, str, str]] = []
        self._sessions: dict[Any, tuple[threading.Lock, list[PsqlSession]]] = {}

    def unit(self, name: str, timeout: float) -> dict[str, str]:
        """The state of a unit; all units of the run are asked for together."""
        with self._lock:
            if time.monotonic() - self._looked > FRESH:
                outcome = run(["systemctl", "show", "-p", SYSTEMD_KEYS, "--", *self._units], timeout=timeout)
                if outcome.rc != 0:
                    raise CannotTell(f"systemctl returned {outcome.rc}: {outcome.stderr.strip()[-200:]}")
                blocks = outcome.stdout.strip().split("\n\n")
                parsed = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
                self._states = dict(zip(self._units, parsed))
                self._looked = time.monotonic()
            return self._states.get(name, {})

    def processes(self) -> list[tuple[int, str, str, str]]:
        """Process id, name, command line and state letter of all processes, see proc(5)."""
        with self._lock:
            if time.monotonic() - self._scanned > FRESH:
                self._processes = list(_scan())
                self._scanned = time.monotonic()
            return self._processes

    def query(
        self, argv: Sequence[str], user: str | None, environment: dict[str, str], query: str, timeout: float
    ) -> list[list[str]]:
        """Rows from the server that ``argv`` (psql and its options) leads to; sessions are kept for the run."""
        key = (tuple(argv), user, tuple(sorted(environment.items())))
        with self._lock:
            turn, sessions = self._sessions.setdefault(key, (threading.Lock(), []))
        end = time.monotonic() + timeout
        if not turn.acquire(timeout=timeout):
            raise CheckFailed(f"the server gave no answer within {timeout:g} s")
        try:
            if not sessions:
                sessions.append(PsqlSession(argv, user, environment))
            try:
                return sessions[0].ask(query, max(0.05, end - time.monotonic()))
            except CheckFailed:
                # What is left of its answer must not be taken for the next one's.
                sessions.pop().close()
                raise
        finally:
            turn.release()

    def close(self) -> None:
        for _turn, sessions in list(self._sessions.values()):
            for session in sessions:
                session.close()


def _scan() -> list[tuple[int, str, str, str]]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as handle:
                    head, _bracket, rest = handle.read().rpartition(")")
                with open(f"/proc/{name}/cmdline", "rb") as raw:
                    command = raw.read().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append((int(name), head.partition("(")[2], command, rest.split()[0]))
    return found
