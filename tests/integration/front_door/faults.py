"""Faults of the two servers, each mended before the next promise."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator

from front_door.asking import SERVERS, many_over_http_1
from front_door.balancer import run, until


def all_serve() -> bool:
    """Whether the balancer uses all servers."""
    found = {json.loads(body).get("name") for status, body in many_over_http_1("/", 8) if status == 200}
    return found == set(SERVERS)


@contextlib.contextmanager
def without(*units: str) -> Iterator[None]:
    """Services stopped meanwhile; afterwards the balancer uses them again."""
    run("systemctl", "stop", *units)
    try:
        yield
    finally:
        run("systemctl", "start", *units)
        until(90, "the servers are back, and the balancer uses them", all_serve)


@contextlib.contextmanager
def frozen(unit: str) -> Iterator[None]:
    """A service whose kernel takes connections and that answers nothing."""
    run("systemctl", "kill", f"--signal={signal.SIGSTOP.name}", unit)
    try:
        yield
    finally:
        run("systemctl", "kill", f"--signal={signal.SIGCONT.name}", unit)
        until(90, "the server goes on, and the balancer uses it", all_serve)


@contextlib.contextmanager
def marked(name: str, what: str, value: str = "") -> Iterator[None]:
    """A server that echo_backend.py finds marked as broken or slow."""
    mark = f"/run/echo-{name}-{what}"
    with open(mark, "w") as written:
        written.write(value)
    try:
        yield
    finally:
        os.unlink(mark)


@contextlib.contextmanager
def unreachable(name: str, port: int) -> Iterator[None]:
    """An address where nothing answers, as that of a host without power: its queue is full, so packets are dropped."""
    with without(f"echo-{name}-{port}"), contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind((SERVERS[name], port))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((SERVERS[name], port))
        yield
