"""What a client may send, and how long anybody waits."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from front_door.asking import H1, H2, HOST, ask, client, many, promise, statuses, turn
from front_door.balancer import BALANCER, run, until
from front_door.faults import all_serve, marked

MEGABYTE = 1 << 20


@promise(13)
def bodies_have_a_limit() -> str:
    """E0-14."""
    # 0: curl 7 forgets the answer when the stream is reset after it.
    refused = (413,) if turn.over == H1 else (413, 0)
    unknown = (411, *refused)
    assert ask("/", method="POST", body=b"x" * (11 * MEGABYTE)).status in refused
    assert ask("/", method="POST", body=b"x" * (9 * MEGABYTE)).told["length"] == 9 * MEGABYTE
    assert ask("/vector/up", method="POST", body=b"x" * (11 * MEGABYTE)).told["length"] == 11 * MEGABYTE
    assert ask("/vector/up", method="POST", body=b"x" * (51 * MEGABYTE)).status in refused
    chunked: dict[str, Any] = {"method": "POST", "chunked": True}
    if turn.over == H1:
        chunked["Transfer_Encoding"] = "chunked"
    assert ask("/", body=iter([b"x" * (11 * MEGABYTE)]), **chunked).status in unknown
    big = ask("/unlimited", body=iter([b"x" * (11 * MEGABYTE)]), **chunked)
    assert big.told["length"] == 11 * MEGABYTE
    assert ask("/", body=iter([b""]), **chunked).status == 200
    return "11 MB: 413 at /, 200 at /vector; 51 MB: 413; of undeclared length: refused at /, 200 without a limit"


@promise(7)
def slow_answers_are_cut_at_the_routes_timeout() -> str:
    """E0-32, E1-41: tries are bounded."""
    taken = {}
    for method, path, tries in (("POST", "/sticky/slow?30", 1), ("GET", "/sticky/slow?30", 3)):
        begun = time.monotonic()
        status = ask(path, method=method).status
        taken[method] = time.monotonic() - begun
        assert status == 504, (method, status)
        assert 1.5 < taken[method] < 2 * tries + 5, taken
    assert ask("/vector/slow?3").status == 200
    return f"at 2 s: POST {taken['POST']:.1f} s, GET on all servers {taken['GET']:.1f} s; /vector 200 after 3 s"


@promise(7, by=(H1,))
def health_gives_up_after_two_seconds_a_server() -> str:
    with marked("a1", "slow", "3"), marked("a2", "slow", "3"):
        begun = time.monotonic()
        status = ask("/health").status
        taken = time.monotonic() - begun
    # A check that began before ends late, and may be the one that takes a server out.
    time.sleep(3)
    until(90, "the servers are well again", all_serve)
    # HAProxy may have taken them out by then.
    assert status in (503, 504), status
    assert taken < 3 * 2 + 4, taken
    return f"{status} after {taken:.1f} s of a service that takes 3 s"


@promise(7, by=(H1,))
def slow_requests_take_no_server_out() -> str:
    """E0-32: with all servers of a group resting, nginx answered 502."""
    for path in ("/sticky", "/quick"):
        slow = [threading.Thread(target=ask, args=(f"{path}/slow?5",)) for _ in range(10)]
        for asker in slow:
            asker.start()
        for asker in slow:
            asker.join()
        found = Counter(statuses(path, 30))
        assert set(found) == {200}, (path, found)
    return "after ten slow ones 30 of 30 at once on each of two routes"


@promise(7, by=(H1,))
def timeouts_and_buffers_are_as_declared() -> str:
    """An answer's head of more than buffer_size is refused by nginx, and passed by HAProxy's 16k."""
    wanted = {
        ("/", "api"): (5, 60, 60),
        ("/vector/", "api_vector"): (10, 120, 120),
        ("= /health", "api_health"): (2, 2, 2),
    }
    for (location, backend), (connect, send, read) in wanted.items():
        shown = BALANCER.route(HOST, location, backend)
        if BALANCER.is_nginx:
            times = {"connect": connect, "send": send, "read": read}
            lines = [f"proxy_{what}_timeout {seconds}s;" for what, seconds in times.items()]
            lines += ["proxy_buffer_size 4096;", "proxy_buffers 8 4096;", "proxy_busy_buffers_size 8192;"]
        else:
            lines = [f"timeout connect {connect}s", f"timeout server {read}s"]
        for line in lines:
            assert f"    {line}\n" in f"{shown}\n", (location, line, shown)
    buffers = "buffers of 4k, 8 of 4k, 8k busy" if BALANCER.is_nginx else "no buffers to declare beside its own of 16k"
    return f"{', '.join(f'{location} {seconds} s' for (location, _), seconds in wanted.items())}; {buffers}"


@promise(21, by=(H1,))
def the_configuration_is_valid_and_holds_the_whole_load() -> str:
    assert BALANCER.complaints() == [], BALANCER.complaints()
    if BALANCER.is_nginx:
        connections = int(run("nginx", "-T").split("worker_connections ")[1].split(";")[0])
        assert connections == 4096, connections
        return f"nginx -t has no warning; {connections} connections for each worker"
    size = next(line for line in BALANCER.socket("show info typed").splitlines() if ".Maxconn." in line)
    assert size.endswith(":4096"), size
    defaults = run("cat", "/etc/haproxy/haproxy.cfg").split("\ndefaults\n")[1].split("\n\n")[0]
    for line in ("log global", "option httplog", "option redispatch 1", "retries 3"):
        assert f"    {line}\n" in defaults, (line, defaults)
    return "haproxy -c has no warning; maxconn 4096, httplog, redispatch, 3 retries"


@promise(10)
def a_rate_lets_burst_and_one_pass_then_answers_429() -> str:
    """E0-15, E0-19, E1-02: of many at once 1 + burst pass, the others get 429, none 503."""
    begun = time.monotonic()
    found = statuses("/rate", 40, client(1), at_once=True)
    leaked = int(time.monotonic() - begun) + 1
    assert set(found) == {200, 429}, found
    assert 21 <= found.count(200) <= 21 + leaked, found.count(200)
    assert turn.over == H2 or found[:21] == [200] * 21, found
    assert statuses("/rate", 1, client(2)) == [200], "another address is concerned"
    assert statuses("/rate", 40, "127.0.5.1") == [200] * 40, "an exempt address is counted"
    until(10, "each refusal is logged", lambda: len(BALANCER.refusals(client(1))) >= found.count(429))
    return f"{found.count(200)} of 40 at 1/s burst 20, {found.count(429)} got 429 and a line in the log"


@promise(11)
def logins_are_limited_to_five_a_minute() -> str:
    """E4-01: the limit is in the site that serves, and the seventh login is the first refused."""
    found = statuses("/auth/login", 7, client(3), "POST")
    assert found == [200] * 6 + [429], found
    if turn.over == H1:
        until(20, "one passes after 12 s", lambda: statuses("/auth/login", 1, client(3), "POST") == [200])
        return "the 7th of 7 POSTs got 429, a later one passed"
    return "the 7th of 7 POSTs got 429"


@promise(12)
def ten_requests_of_an_address_may_be_under_way() -> str:
    """E1-12: over HTTP/2 each stream counts."""
    found: list[int] = []
    if turn.over == H2:
        found = statuses("/downloads/slow?3", 12, client(4), at_once=True)
    else:
        askers = [
            threading.Thread(target=lambda: found.append(ask("/downloads/slow?3", source=client(4)).status))
            for _ in range(12)
        ]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    assert sorted(found) == [200] * 10 + [429] * 2, sorted(found)
    return "10 of 12 at a time"


@promise(24)
def twenty_in_ten_seconds_pass_and_the_next_is_answered_429() -> str:
    """E0-19: it is an answer with a body, not a reset."""
    begun = time.monotonic()
    found = many("/window", 40, client(5))
    leaked = int(2 * (time.monotonic() - begun)) + 1
    passed = [status for status, _ in found].index(429)
    assert 20 <= passed <= 20 + leaked, (passed, leaked)
    assert {status for status, _ in found} == {200, 429}
    bodies = {len(body) for status, body in found if status == 429}
    assert min(bodies) > 0, bodies
    assert statuses("/window", 1, client(6)) == [200], "another address is concerned"
    seen = f"{passed} passed, then 429 with {max(bodies)} bytes"
    if BALANCER.is_nginx:
        return f"{seen}; nginx has no table to show"
    (entry,) = [line for line in BALANCER.socket("show table api_window").splitlines() if client(5) in line]
    return f"{seen}; in the table: {entry.partition(': ')[2]}"
