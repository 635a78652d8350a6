"""Servers fail and configurations are taken over, and no request is lost."""

from __future__ import annotations

import time

from front_door.asking import H1, HEADERS, HOST, SERVERS, Socket, Steady, ask, names, promise, statuses
from front_door.balancer import BALANCER, until
from front_door.faults import all_serve, frozen, marked, unreachable, without


@promise(2)
def one_stopped_server_costs_no_request() -> str:
    load = Steady("/", 50, 6)
    time.sleep(1)
    with without("echo-a1-8081"):
        time.sleep(2)
    return load.all_well(in_hand=2)


@promise(2, by=(H1,))
def a_server_that_says_nothing_costs_no_get() -> str:
    """E0-10: with the shared counters of the zone few requests meet it; each is done within its timeouts."""

    def timed(count: int) -> list[tuple[float, str]]:
        found = []
        for _ in range(count):
            begun = time.monotonic()
            name = ask("/quick").told["name"]
            found.append((time.monotonic() - begun, name))
        return found

    usual = max(timed(5))[0]
    seen = []
    # timeout_connect is 1 s, timeout_read 2 s.
    for fault, limit, fails in (("unreachable", 1, unreachable("a1", 8081)), ("frozen", 2, frozen("echo-a1-8081"))):
        with fails:
            found = timed(20)
        assert {name for _, name in found} == {"a2"}, fault
        longest = max(found)[0]
        assert longest < 3 * limit + 4 + 3 * usual, (fault, longest, usual)
        waited = sum(seconds > limit for seconds, _ in found)
        seen.append(f"{fault}: 20 of 20, {waited} had to wait, the longest {longest:.1f} s")
    return "; ".join(seen)


@promise(20)
def a_reload_costs_no_request() -> str:
    load = Steady("/", 100, 5)
    for _ in range(3):
        time.sleep(1)
        BALANCER.reload()
    return f"{load.all_well()} in 3 reloads"


@promise(23, by=(H1,))
def a_server_that_is_not_ready_is_taken_out() -> str:
    """E4-28: checks name a host of the site."""
    if BALANCER.is_nginx:
        mark = f"mark{time.time_ns()}"
        with without("echo-a1-8081"):
            assert set(statuses(f"/?{mark}", 40)) == {200}
        met = [line for line in BALANCER.logged(mark) if f"{SERVERS['a1']}:8081, {SERVERS['a2']}:8081" in line]
        assert 1 <= len(met) <= 10, met
        return (
            "nginx asks no server, and preflight refuses check times by name; of 40 GETs with a stopped server"
            f" {len(met)} met it, went to the other, and it rested"
        )
    assert ask("/").told["asked_for"] == [HOST], ask("/").told["asked_for"]
    with marked("a1", "broken"):
        down = until(15, "a1 is DOWN", lambda: not BALANCER.up("api", "a1"))
        assert set(names("/", 20)) == {"a2"}
    up = until(15, "a1 is UP", lambda: BALANCER.up("api", "a1"))
    until(10, "a1 serves", all_serve)
    return f"DOWN after {down:.1f} s of 503, UP after {up:.1f} s; checks ask for {HOST}"


@promise(18, 27, by=(H1,))
def all_dead_is_told_by_health_and_not_by_lb_health() -> str:
    """E4-02."""
    with without("echo-a1-8081", "echo-a2-8081"):
        status = ask("/health").status
        assert status in (502, 503), status
        assert ask("/lb-health").status == 200
        with Socket() as other:
            other.echoes()
        for path in ("/", "/hash"):
            missing = ask(path)
            assert missing.status in (502, 503), missing.status
            for header, value in HEADERS.items():
                assert missing.header(header) == [value], (missing.status, header, missing.header(header))
    assert ask("/health").status == 200
    return f"all stopped: /health {status}, with each header once, /lb-health 200, other services too; then 200 again"
