# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Running commands on a host: one way to start them, one error that carries what they said."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OUTPUT_LIMIT = 8000
SECRET_LENGTH = 6
PID_NOTE = 40  # characters of the longest pid and start time, with room


@dataclass(frozen=True)
class Outcome:
    """How a command ended; ``rc`` is negative for a signal, 124 for a time-out (as timeout(1) has it)."""

    argv: tuple[str, ...]
    rc: int
    stdout: str
    stderr: str


class CommandError(RuntimeError):
    """A command that failed, with everything it said."""

    def __init__(self, purpose: str, outcome: Outcome) -> None:
        super().__init__(f"{purpose}: `{' '.join(outcome.argv)}` returned {outcome.rc}")
        self.outcome = outcome


class Redactor:
    """Takes the values of sensitive texts out of whatever is shown.

    A line's first word (the directive) is kept unless it is the only one; what follows is taken for secret, as a whole
    and in the pieces that a parser may quote.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        secrets: set[str] = set()
        for text in texts:
            for line in map(str.strip, text.splitlines()):
                if line and not line.startswith("#"):
                    secrets.update(self._pieces(line))
        ordered = sorted(secrets, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    @staticmethod
    def _pieces(line: str) -> Iterator[str]:
        parts = re.split(r"[\s:=]+", line, maxsplit=1)
        value = parts[1] if len(parts) > 1 and parts[1] else line
        pieces = [value, *value.split(), *re.split(r"[\s\"'=,;:]+", value)]
        for number, piece in enumerate(pieces):
            text = piece.strip("\"',;")
            # Short words are too common to be hidden, unless such a word is all there is.
            if len(text) >= (SECRET_LENGTH if number else 3):
                yield text

    def __call__(self, text: str) -> str:
        """The text with secrets as asterisks, and no longer than is useful in an error."""
        if self._pattern:
            text = self._pattern.sub("********", text)
        if len(text) > OUTPUT_LIMIT:
            text = text[: OUTPUT_LIMIT // 2] + "\n[...]\n" + text[-OUTPUT_LIMIT // 2 :]
        return text


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 300,
    check: str | None = None,
    pid_file: str | None = None,
) -> Outcome:
    """Runs a command in a session of its own and waits for it.

    :param check: what the command is for; then a non-zero end raises CommandError with these words.
    :param pid_file: where to leave the process id while it runs, so that a later run can end an orphan.
    :raises CommandError: with ``check``, when it fails, cannot be started or outlives ``timeout`` seconds.
    """
    env = {
        "PATH": PATH,
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "DEBIAN_FRONTEND": "noninteractive",
        **(environment or {}),
    }
    try:
        with (
            contextlib.nullcontext() if pid_file is None else _note(pid_file) as note,
            subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=env,
                cwd="/",
                start_new_session=True,
            ) as process,
        ):
            if note:
                note(process.pid)
            try:
                out, err = process.communicate(stdin.encode() if stdin is not None else None, timeout=timeout)
                rc = process.returncode
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                rc, err = 124, err + f"\nstill running after {timeout:g} s, ended".encode()
    except OSError as error:
        out, err, rc = b"", str(error).encode(), 127
    outcome = Outcome(tuple(argv), rc, out.decode(errors="replace"), err.decode(errors="replace"))
    if check is not None and rc != 0:
        raise CommandError(check, outcome)
    return outcome


@contextlib.contextmanager
def _note(pid_file: str) -> Iterator[Callable[[int], None]]:
    """Notes a process for ``end_orphan`` while it runs. Room is taken before: it may be what fills the disk."""
    with open(pid_file, "w", encoding="ascii") as handle:

        def write(text: str) -> None:
            handle.seek(0)
            handle.write(text.ljust(PID_NOTE))
            handle.flush()

        write("")
        yield lambda pid: write(f"{pid} {start_time(pid)}")
    os.unlink(pid_file)


def run_command(command: dict[str, Any], *, check: str | None = None, pid_file: str | None = None) -> Outcome:
    """Runs a normalised command (argv or shell, user, stdin, environment, timeout)."""
    argv = list(command["argv"]) if "argv" in command else ["/bin/sh", "-c", command["shell"]]
    if command.get("user"):
        argv = ["runuser", "-u", command["user"], "--", *argv]
    return run(
        argv,
        stdin=command.get("stdin"),
        environment=command.get("environment"),
        timeout=command.get("timeout", 300),
        check=check,
        pid_file=pid_file,
    )


def start_time(pid: int) -> str:
    """Start of a process in clock ticks since boot: field 22 of /proc/PID/stat, see proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
            return handle.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def end_orphan(pid_file: str) -> None:
    """Ends a command that outlived the run which had started it, and everything in its session."""
    try:
        with open(pid_file, encoding="ascii") as handle:
            pid, started = handle.read().split()
    except (OSError, ValueError):
        return
    if started and start_time(int(pid)) == started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid), signal.SIGKILL)
