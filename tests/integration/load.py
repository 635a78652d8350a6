"""A constant rate of requests, sent whether or not the earlier ones were answered (an open loop)."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

CLIENT_TIMEOUT = 30.0


@dataclass
class Load:
    """Requests to one balancer, every tenth of them a POST, each on a connection of its own.

    :ivar rate: requests a second.
    :ivar answers: method, status (0 without an answer), server that answered, start and length in seconds.
    """

    address: str
    host: str
    path: str = "/"
    rate: float = 25
    answers: list[tuple[str, int, str, float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._tls = ssl.create_default_context()
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE

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
            pending.append(asyncio.create_task(self._one("POST" if number % 10 == 9 else "GET")))
            number += 1
            await asyncio.sleep(max(0.0, begun + number / self.rate - time.monotonic()))
        await asyncio.gather(*pending)

    async def _one(self, method: str) -> None:
        begun = time.monotonic()
        try:
            status, name = await asyncio.wait_for(self._ask(method), CLIENT_TIMEOUT)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, ValueError, IndexError) as error:
            status, name = 0, ""
            self.errors.append(f"{method}: {type(error).__name__}: {error}")
        self.answers.append((method, status, name, begun, time.monotonic() - begun))

    async def _ask(self, method: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection(self.address, 443, ssl=self._tls, server_hostname=self.host)
        try:
            body = "Content-Length: 1\r\n\r\nx" if method == "POST" else "\r\n"
            writer.write(f"{method} {self.path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\n{body}".encode())
            head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
            status = int(head.split()[1])
            return status, str(json.loads(answer)["name"]) if status == 200 else ""
        finally:
            writer.close()

    def counts(self) -> dict[str, int]:
        """Answers by method and status."""
        return dict(sorted(Counter(f"{method} {status}" for method, status, *_ in self.answers).items()))

    def servers(self, since: float, until: float) -> Counter[str]:
        """Answers by server, of requests that were begun in a span of the monotonic clock."""
        return Counter(name for _, _, name, begun, _ in self.answers if since <= begun <= until)

    def latency(self, shares: Sequence[float] = (0.5, 0.95, 0.99, 1.0)) -> dict[str, Any]:
        """Milliseconds within which these shares of the requests were answered."""
        taken = sorted(length for *_, length in self.answers)
        return {f"p{100 * share:g}": round(1000 * taken[max(0, int(share * len(taken)) - 1)]) for share in shares}
