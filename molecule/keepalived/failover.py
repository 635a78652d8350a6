#!/usr/bin/env python3
"""Breaks the holder of the shared address in several ways, and measures for how long nobody answers at it.

usage: failover.py ADDRESS HOST=UNIT...    (UNIT: the host's balancer)
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from fleet_settings import settings  # noqa: E402

PAUSE = 0.05
# An attempt that is lost with the old holder costs this much.
PATIENCE = 0.4
# The promise is 3 s. A busy machine may take its time, which is no fault of the role.
BOUND = 10.0
# Answers in a row that count as the end of an interruption.
STEADY = 20
DEADLINE = 60.0
# A mended one takes over again only after two checks, which come once a second.
MENDED = 3.0
FAULTS = {
    "its UNIT is killed": (["exec", "HOST", "systemctl", "kill", "--signal=KILL", "UNIT"],
                           ["exec", "HOST", "systemctl", "restart", "UNIT"]),
    "its UNIT hangs": (["exec", "HOST", "systemctl", "kill", "--signal=STOP", "UNIT"],
                       ["exec", "HOST", "systemctl", "kill", "--signal=CONT", "UNIT"]),
    "its UNIT is stopped": (["exec", "HOST", "systemctl", "stop", "UNIT"],
                            ["exec", "HOST", "systemctl", "start", "UNIT"]),
    "its keepalived is stopped": (["exec", "HOST", "systemctl", "stop", "keepalived"],
                                  ["exec", "HOST", "systemctl", "start", "keepalived"]),
    "the host freezes": (["pause", "HOST"], ["unpause", "HOST"]),
}  # fmt: skip
# What a killed one leaves behind is an address that two hosts may have from then on.
KILL = """
former=$(systemctl show --property=MainPID --value keepalived)
systemctl kill --signal=KILL keepalived
until now=$(systemctl show --property=MainPID --value keepalived); [ "$now" != 0 ] && [ "$now" != "$former" ]; do
    sleep 0.2
done
"""
# The balancer of each host.
UNITS: dict[str, str] = {}


def filled(arguments: list[str], host: str) -> list[str]:
    meant = {"HOST": settings().container(host), "UNIT": UNITS[host]}
    return [meant.get(word, word) for word in arguments]


def docker(arguments: list[str], host: str) -> str:
    words = filled(arguments, host)
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True, timeout=60).stdout


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/lb-health", timeout=PATIENCE) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def holders(address: str, hosts: list[str]) -> list[str]:
    return [host for host in hosts if docker(["exec", "HOST", "ip", "-o", "addr", "show", "to", address], host)]


def the_holder(address: str, hosts: list[str]) -> str:
    """The one host that has the address, once it is one."""
    deadline = time.monotonic() + DEADLINE
    while len(found := holders(address, hosts)) != 1:
        assert time.monotonic() < deadline, f"{address} is held by {found or 'nobody'}"
        time.sleep(0.2)
    return found[0]


def interruption(address: str, fault: list[str], host: str) -> float | None:
    """Seconds without an answer, the longest at a stretch; None if there was no interruption."""
    begun = last = time.monotonic()
    longest, failed, row = 0.0, False, 0
    breaking = subprocess.Popen(["docker", *filled(fault, host)], stdout=subprocess.DEVNULL)
    while not failed or row < STEADY:
        if not failed and time.monotonic() > begun + DEADLINE / 4:
            break
        assert time.monotonic() < begun + DEADLINE, "the address does not answer again"
        if answers(address):
            longest, last, row = max(longest, time.monotonic() - last), time.monotonic(), row + 1
        else:
            failed, row = True, 0
        time.sleep(PAUSE)
    assert breaking.wait(DEADLINE) == 0, fault
    return longest if failed else None


def broken(address: str, hosts: list[str], title: str) -> None:
    """Break the holder, print for how long nobody answered, and mend it."""
    fault, mend = FAULTS[title]
    # A machine that stands still for seconds moves the address by itself, and the fault then meets another host.
    for _attempt in range(3):
        holder = the_holder(address, hosts)
        took = interruption(address, fault, holder)
        try:
            heir = the_holder(address, [host for host in hosts if host != holder])
        finally:
            docker(mend, holder)
        time.sleep(MENDED)
        back = the_holder(address, hosts)
        if took is not None:
            break
    what = f"{holder}, {title.replace('UNIT', UNITS[holder])}"
    assert took is not None, f"{what}: nobody noticed"
    assert took < BOUND, f"{what}: {took:.2f} s without an answer"
    print(f"{what}: {took:.2f} s; {heir} took over, {back} holds it when {holder} is back", flush=True)


def main() -> int:
    address, *pairs = sys.argv[1:]
    for pair in pairs:
        host, _equals, UNITS[host] = pair.partition("=")
    hosts = list(UNITS)
    for title in FAULTS:
        # The address stays where it went, so the next time it is the other balancer's turn.
        for _turn in hosts if "UNIT" in title else hosts[:1]:
            broken(address, hosts, title)
    docker(["exec", "HOST", "sh", "-c", KILL], the_holder(address, hosts))
    print(f"after its keepalived was killed and came back, {the_holder(address, hosts)} alone holds it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
