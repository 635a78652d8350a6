"""Runs a command and says what it cost: on this machine, in ssh's master connections and on the hosts."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Seconds that a command gets to end itself.
GRACE = 10.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    """One run. Seconds and MB; others_cpu is what the rest of the machine used meanwhile."""

    wall: float
    cpu: float
    rss_mb: float
    masters_cpu: float
    hosts_cpu: float | None
    others_cpu: float


class RunFailed(RuntimeError):
    """The command did not end well; the message says where its output is."""


def machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpus": os.cpu_count(), "memory_gib": round(memory / 2**30), "python": platform.python_version()}


def _masters_cpu(control_paths: Iterable[str]) -> float:
    """Master connections outlive the run that opened them, so no one waits for them."""
    marks = [path.encode() for path in control_paths]
    ticks = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            command = (process / "cmdline").read_bytes()
            if command.startswith(b"ssh: ") and any(mark in command for mark in marks):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ticks / TICKS


def _hosts_cpu(containers: Iterable[str]) -> float | None:
    total = 0.0
    for identity in containers:
        first = Path(f"/sys/fs/cgroup/cpuacct/docker/{identity}/cpuacct.usage")
        second = Path(f"/sys/fs/cgroup/system.slice/docker-{identity}.scope/cpu.stat")
        if first.exists():
            total += int(first.read_text()) / 1e9
        elif second.exists():
            total += int(second.read_text().split()[1]) / 1e6
        else:
            return None
    return total


def _machine_cpu() -> float:
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def _stop(group: int) -> None:
    """Ansible's workers have sessions of their own, so the parent gets the time to end them."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, sign)
        deadline = time.monotonic() + GRACE
        while sign == signal.SIGTERM and time.monotonic() < deadline and Path(f"/proc/{group}/exe").exists():
            time.sleep(0.1)


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
    timeout: float,
    control_paths: Sequence[str] = (),
    containers: Sequence[str] = (),
) -> Sample:
    """Run to the end and measure; output goes to the log.

    :raises RunFailed: when it ends with an error or takes longer than the timeout.
    """
    masters, hosts, everything = _masters_cpu(control_paths), _hosts_cpu(containers), _machine_cpu()
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        expired = threading.Event()

        def stop() -> None:
            expired.set()
            _stop(process.pid)

        timer = threading.Timer(timeout, stop)
        timer.start()
        try:
            _pid, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            # In a session of its own, it hears nothing of what ends us.
            _stop(process.pid)
            raise
        finally:
            timer.cancel()
        wall = time.monotonic() - started
        # The object must not wait for a process that is gone.
        process.returncode = os.waitstatus_to_exitcode(status)
    if expired.is_set():
        raise RunFailed(f"{Path(command[0]).name} took longer than {timeout:.0f} s; its output is in {log}")
    if process.returncode != 0:
        raise RunFailed(f"{Path(command[0]).name} ended with {process.returncode}; its output is in {log}")
    masters_cpu = max(0.0, _masters_cpu(control_paths) - masters)
    hosts_after = _hosts_cpu(containers)
    hosts_cpu = None if hosts is None or hosts_after is None else hosts_after - hosts
    cpu = usage.ru_utime + usage.ru_stime
    others = _machine_cpu() - everything - cpu - masters_cpu - (hosts_cpu or 0.0)
    return Sample(
        wall=wall,
        cpu=cpu,
        rss_mb=usage.ru_maxrss / 1024,
        masters_cpu=masters_cpu,
        hosts_cpu=hosts_cpu,
        others_cpu=max(0.0, others),
    )


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Median of each measure, and the wall times themselves."""
    result: dict[str, Any] = {"runs": len(samples)}
    for key in asdict(samples[0]):
        values = [value for sample in samples if (value := getattr(sample, key)) is not None]
        result[key] = round(statistics.median(values), 2) if values else None
    result["wall_all"] = [round(sample.wall, 2) for sample in samples]
    return result
