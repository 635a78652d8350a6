"""WebSockets."""

from __future__ import annotations

import time

from front_door.asking import WS, Socket, promise
from front_door.balancer import BALANCER
from front_door.faults import unreachable, without


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
