"""WebSockets."""

from __future__ import annotations

import contextlib
import time

from front_door.asking import HOST, WS, Socket, promise, tls
from front_door.balancer import BALANCER
from front_door.faults import unreachable, without
from front_door.http2_socket import Http2Socket


@promise(8, 20, by=(WS,))
def websockets_pass_and_outlive_a_reload() -> str:
    """E0-21, E1-06."""
    with Socket() as standing:
        for turn in range(3):
            standing.echoes()
            if turn == 0:
                BALANCER.reload()
            time.sleep(1)
    return f"101 after {1000 * standing.seconds:.0f} ms, 3 messages came back, a reload between them"


@promise(8, by=(WS,))
def a_websocket_opens_within_http_2_where_that_is_announced() -> str:
    """A browser that is told so opens all of them there, and one that is not takes a connection of HTTP/1.1."""
    with tls(alpn=("h2",)) as wrapped:
        made = Http2Socket(wrapped)
        assert made.announced or BALANCER.is_nginx
        if not made.announced:
            return "not announced"
        made.open("/ws")
        for _ in range(3):
            made.echoes()
        BALANCER.reload()
        made.echoes()
    return "4 messages came back, a reload between them"


@promise(8, by=(WS,))
def a_websocket_may_be_silent_for_as_long_as_its_route_says() -> str:
    """E0-21, E4-04: for an hour, where nothing is said; each message starts the time anew."""
    shown = BALANCER.route(HOST, "/ws/", "api_ws")
    if BALANCER.is_nginx:
        lines = ["proxy_send_timeout 3600s;", "proxy_read_timeout 3600s;"]
    else:
        lines = ["timeout tunnel 3600s"]
    for line in lines:
        assert f"    {line}\n" in shown, (line, shown)
    with Socket("/brief") as talking, Socket("/brief") as silent:
        begun = time.monotonic()
        for _ in range(10):
            talking.echoes()
            time.sleep(1)
        # Other times than its own would let it stand for a minute or more.
        silent.wrapped.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            assert silent.wrapped.recv(4096) == b"", "a silent one still stands"
        talking.echoes()
        stood = time.monotonic() - begun
    return f"3600 s on /ws; with 4 s, one with a message every second stood for {stood:.0f} s, a silent one was closed"


@promise(2, 8, by=(WS,))
def a_dead_websocket_server_is_passed_over() -> str:
    """E4-04."""
    taken = {}
    for fault, fails in (("refused", without("echo-a1-8082")), ("unreachable", unreachable("a1", 8082))):
        with fails:
            found = []
            for _ in range(6):
                with Socket() as made:
                    made.echoes()
                    found.append(made)
        assert {made.server for made in found} == {"a2"}, fault
        taken[fault] = max(made.seconds for made in found)
        assert taken[fault] < 5, taken
    return "longest handshake " + ", ".join(f"{seconds:.2f} s {fault}" for fault, seconds in taken.items())
