"""A constant rate of requests, sent whether or not earlier ones were answered (an open loop), and idle WebSockets."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CLIENT_TIMEOUT = 30.0


def any_certificate() -> ssl.SSLContext:
    made = ssl.create_default_context()
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


class Answer(NamedTuple):
    """What became of a request: status 0 if there was no answer; start on the monotonic clock, length, both in s."""

    method: str
    status: int
    server: str
    begun: float
    taken: float
    tag: str


@dataclass
class Load:
    """Requests to one balancer, every tenth of them a POST, each on a connection of its own.

    :ivar rate: requests a second.
    :ivar tag: what each request carries as its query, with a number; nothing without.
    :ivar errors: why there was no answer, by tag.
    """

    address: str
    host: str
    path: str = "/"
    rate: float = 25
    tag: str = ""
    answers: list[Answer] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._tls = any_certificate()

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(CLIENT_TIMEOUT + 10)

    async def _run(self) -> None:
        begun = time.monotonic()
        pending = []
        number = 0
        while not self._stop.is_set():
            tag = f"{self.tag}-{number}" if self.tag else ""
            pending.append(asyncio.create_task(self._one("POST" if number % 10 == 9 else "GET", tag)))
            number += 1
            await asyncio.sleep(max(0.0, begun + number / self.rate - time.monotonic()))
        await asyncio.gather(*pending)

    async def _one(self, method: str, tag: str) -> None:
        begun = time.monotonic()
        try:
            status, name = await asyncio.wait_for(self._ask(method, tag), CLIENT_TIMEOUT)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError, IndexError) as error:
            status, name = 0, ""
            self.errors[tag] = f"{type(error).__name__}: {error}"
        self.answers.append(Answer(method, status, name, begun, time.monotonic() - begun, tag))

    async def _ask(self, method: str, tag: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection(self.address, 443, ssl=self._tls, server_hostname=self.host)
        try:
            target = f"{self.path}?{tag}" if tag else self.path
            body = "Content-Length: 1\r\n\r\nx" if method == "POST" else "\r\n"
            writer.write(f"{method} {target} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n{body}".encode())
            head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
            status = int(head.split()[1])
            return status, str(json.loads(answer)["name"]) if status == 200 else ""
        finally:
            writer.close()

    def counts(self) -> dict[str, int]:
        """Answers by method and status."""
        return dict(sorted(Counter(f"{answer.method} {answer.status}" for answer in self.answers).items()))

    def servers(self, since: float, until: float) -> Counter[str]:
        """Answers by server, of requests that were begun in a span of the monotonic clock."""
        return Counter(answer.server for answer in self.answers if since <= answer.begun <= until)

    def latency(self, shares: Sequence[float] = (0.5, 0.95, 0.99, 1.0)) -> dict[str, Any]:
        """Milliseconds within which these shares of the requests were answered."""
        taken = sorted(answer.taken for answer in self.answers)
        return {f"p{100 * share:g}": round(1000 * taken[max(0, int(share * len(taken)) - 1)]) for share in shares}


class WebSocket:
    """A WebSocket through a balancer, which says something from time to time or never.

    :param every: seconds between two messages, each of which has to come back; 0 for silence until `finish`.
    """

    def __init__(self, address: str, host: str, path: str, every: float) -> None:
        self.begun = time.monotonic()
        self.messages = 0
        self.broken = ""
        self._end = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._watch(address, host, path, every)), daemon=True
        )
        self._thread.start()

    async def _watch(self, address: str, host: str, path: str, every: float) -> None:
        try:
            reader, writer = await asyncio.open_connection(address, 443, ssl=any_certificate(), server_hostname=host)
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), CLIENT_TIMEOUT)
            assert b" 101 " in head.splitlines()[0], head
            while True:
                ended = await asyncio.to_thread(self._end.wait, every or None)
                # A frame of text, masked with zeros.
                writer.write(b"\x81\x85" + bytes(4) + b"hello")
                back = await asyncio.wait_for(reader.readexactly(7), CLIENT_TIMEOUT)
                assert back == b"\x81\x05hello", back
                self.messages += 1
                if ended:
                    writer.close()
                    return
        except (OSError, AssertionError, asyncio.TimeoutError, asyncio.IncompleteReadError) as error:
            self.broken = f"after {time.monotonic() - self.begun:.0f} s: {type(error).__name__}: {error}"

    def finish(self) -> float:
        """Have a last message sent and answered; returns the seconds for which the connection stood."""
        self._end.set()
        self._thread.join(2 * CLIENT_TIMEOUT)
        assert not self._thread.is_alive(), "the WebSocket does not end"
        assert not self.broken, self.broken
        return time.monotonic() - self.begun
