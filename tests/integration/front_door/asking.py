"""Asking a balancer: requests over each protocol, and the promises that they are sent for."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

HTTP, HTTPS = int(sys.argv[1]), int(sys.argv[2])
HOST, OTHER, FILES = "api.supernova.test", "own.supernova.test", "files.supernova.test"
HEADERS = {
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "strict-origin-when-cross-origin",
    "content-security-policy": "default-src 'self'",
}
# A message as a WebSocket's client sends it, and as it comes back.
HELLO, HELLO_BACK = bytes([129, 128 + 5]) + bytes(4) + b"hello", bytes([129, 5]) + b"hello"
SERVERS = {"a1": "127.0.0.11", "a2": "127.0.0.12"}
PROTOCOLS = H1, H2, WS, TLS = "HTTP/1.1", "HTTP/2", "WebSocket", "TLS"
# A promise tells what it saw.
Check = Callable[[], str]
PROMISES: list[tuple[tuple[int, ...], tuple[str, ...], Check]] = []


@dataclass
class Turn:
    """The protocol that is asked over just now."""

    over: str = H1


turn = Turn()


def promise(*features: int, by: tuple[str, ...] = (H1, H2)) -> Callable[[Check], Check]:
    """Note a promise, the numbers of the features that it proves, and the protocols that it is asked over."""

    def note(check: Check) -> Check:
        PROMISES.append((features, by, check))
        return check

    return note


def client(number: int) -> str:
    """An address of a client that no other run of this suite and no other protocol has used up a limit of."""
    return f"127.{20 + os.getpid() % 200}.{PROTOCOLS.index(turn.over)}.{number}"


class Answer:
    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.body = body
        self.headers = [(name.lower(), value) for name, value in headers]

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def told(self) -> dict[str, Any]:
        assert self.status == 200, f"status {self.status}: {self.body[:200]!r}"
        told: dict[str, Any] = json.loads(self.body)
        return told

    def arrived(self, name: str) -> list[str]:
        return [value for key, value in self.told["headers"] if key == name]


def context(**limits: Any) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_ciphers("DEFAULT@SECLEVEL=0")
    for name, value in limits.items():
        setattr(made, name, value)
    return made


@contextlib.contextmanager
def tls(name: str | None = HOST, alpn: tuple[str, ...] = (), **limits: Any) -> Iterator[ssl.SSLSocket]:
    made = context(**limits)
    if alpn:
        made.set_alpn_protocols(list(alpn))
    with (
        socket.create_connection(("127.0.0.1", HTTPS), 10) as plain,
        made.wrap_socket(plain, server_hostname=name) as wrapped,
    ):
        yield wrapped


def ask(
    path: str,
    host: str = HOST,
    method: str = "GET",
    port: int = HTTPS,
    body: Any = None,
    chunked: bool = False,
    source: str = "127.0.0.1",
    **headers: str,
) -> Answer:
    """One request on a connection of its own.

    :param body: bytes, or an iterator of them for a body of undeclared length (`chunked`).
    """
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if port == HTTPS and turn.over == H2:
        options = [word for name, value in sent.items() for word in ("--header", f"{name}: {value}")]
        if chunked:
            options += ["--upload-file", "-"]
        elif body is not None:
            options += ["--data-binary", "@-"]
        options += ["--head"] if method == "HEAD" else ["--request", method]
        sent_body = b"".join(body) if chunked else body
        # curl 7 forgets an answer that came before it had sent the body, if the stream is reset right after it. Whether
        # that happens depends on the moment, and with long bodies it always does.
        for _attempt in range(10):
            head, _, rest = curl([path], host, source, *options, "--include", body=sent_body).partition(b"\r\n\r\n")
            status, *lines = head.decode().split("\r\n")
            if status:
                break
        else:
            return Answer(0, [], b"")
        assert status.startswith("HTTP/2 "), status
        named = [line.partition(": ") for line in lines]
        return Answer(int(status.split()[1]), [(name, value) for name, _, value in named], rest)
    connection: http.client.HTTPConnection
    if port == HTTPS:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=60, context=context(), source_address=(source, 0)
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            connection.request(method, path, body=body, headers={"Host": host, **sent}, encode_chunked=chunked)
        response = connection.getresponse()
        return Answer(response.status, response.getheaders(), response.read())
    finally:
        connection.close()


def curl(paths: list[str], host: str, source: str, *options: str, body: bytes | None = None) -> bytes:
    """What curl prints for requests over HTTP/2, which Python does not speak; all on one connection."""
    # HTTP/2 names a host in :authority, so curl has to be told where that host is.
    command = ["curl", "-sk", "--http2", "--path-as-is", "--max-time", "120", "--interface", source]
    command += ["--resolve", f"{host}:{HTTPS}:127.0.0.1", *options]
    command += [f"https://{host}:{HTTPS}{path}" for path in paths]
    done = subprocess.run(command, input=body, capture_output=True)
    # 92: the answer came before the body was sent, and the stream was reset after it.
    assert done.returncode in (0, 92), (done.returncode, done.stderr, done.stdout[:500])
    return done.stdout


def many(
    path: str, count: int, source: str = "127.0.0.1", method: str = "GET", at_once: bool = False
) -> list[tuple[int, bytes]]:
    """Status and body of so many requests on one connection; at once over HTTP/2, if asked for, and without bodies."""
    if turn.over != H2:
        return many_over_http_1(path, count, source, method)
    options = ["--parallel", "--parallel-max", str(count), "--output", "/dev/null"] if at_once else []
    options += ["--request", method, "--write-out", "\x1e%{http_code}\x1f"]
    found = curl([f"{path}{'&' if '?' in path else '?'}[1-{count}]"], HOST, source, *options)
    answers = [answer.split(b"\x1e") for answer in found.split(b"\x1f")[:-1]]
    return [(int(status), body) for body, status in answers]


def many_over_http_1(path: str, count: int, source: str = "127.0.0.1", method: str = "GET") -> list[tuple[int, bytes]]:
    connection = http.client.HTTPSConnection(
        "127.0.0.1", HTTPS, timeout=60, context=context(), source_address=(source, 0)
    )
    found = []
    for number in range(1, count + 1):
        connection.request(method, f"{path}{'&' if '?' in path else '?'}{number}", headers={"Host": HOST})
        response = connection.getresponse()
        found.append((response.status, response.read()))
    connection.close()
    return found


def statuses(path: str, count: int, source: str = "127.0.0.1", method: str = "GET", at_once: bool = False) -> list[int]:
    return [status for status, _ in many(path, count, source, method, at_once)]


def names(path: str, count: int, source: str = "127.0.0.1") -> Counter[str]:
    """How many of so many requests each server answered."""
    return Counter(json.loads(body)["name"] for _, body in many(path, count, source))


class Steady(threading.Thread):
    """Requests at a constant rate for some seconds, every tenth of them a POST; over HTTP/2 on few connections."""

    def __init__(self, path: str, rate: int, seconds: float) -> None:
        super().__init__()
        self.path, self.rate, self.count = path, rate, int(rate * seconds)
        self.found: list[tuple[str, int]] = []
        self.start()

    def run(self) -> None:
        if turn.over == H2:
            crew = [
                threading.Thread(target=self.paced, args=("GET", self.rate * 9 // 10, self.count * 9 // 10)),
                threading.Thread(target=self.paced, args=("POST", self.rate // 10, self.count // 10)),
            ]
        else:
            begun = time.monotonic()
            crew = [threading.Thread(target=self.turn, args=(begun, first, 8)) for first in range(8)]
        for one in crew:
            one.start()
        for one in crew:
            one.join()

    def paced(self, method: str, rate: int, count: int) -> None:
        options = ["--rate", f"{rate}/s", "--output", "/dev/null", "--write-out", "%{http_code}\n"]
        if method == "POST":
            options += ["--data", "x"]
        codes = curl([f"{self.path}?[1-{count}]"], HOST, "127.0.0.1", *options).split()
        self.found += [(method, int(code)) for code in codes]

    def turn(self, begun: float, first: int, step: int) -> None:
        for number in range(first, self.count, step):
            time.sleep(max(0.0, begun + number / self.rate - time.monotonic()))
            method = "POST" if number % 10 == 9 else "GET"
            try:
                status = ask(self.path, method=method, body=b"x" if method == "POST" else None).status
            except (OSError, http.client.HTTPException) as error:
                status = -(getattr(error, "errno", None) or 1)
            self.found.append((method, status))

    def all_well(self, in_hand: int = 0) -> str:
        """``in_hand``: so many POSTs a server may have had in its hands when it went, and nobody may repeat those."""
        self.join()
        lost = Counter((method, status) for method, status in self.found if status != 200)
        posts = sum(number for (method, _status), number in lost.items() if method == "POST")
        assert self.count - 2 <= len(self.found) and lost.total() == posts <= in_hand, (len(self.found), lost)
        words = f"none lost but {posts} POST in the server's hands" if posts else "none lost"
        return f"{len(self.found)} requests at {self.rate}/s, {words}"


class Socket:
    """A WebSocket."""

    def __init__(self, path: str = "/ws") -> None:
        plain = socket.create_connection(("127.0.0.1", HTTPS), 30)
        begun = time.monotonic()
        self.wrapped = context().wrap_socket(plain, server_hostname=HOST)
        self.wrapped.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.wrapped.recv(4096)
            assert piece, head
            head += piece
        self.seconds = time.monotonic() - begun
        assert b" 101 " in head.splitlines()[0], head
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head, head
        self.server = re.search(rb"(?mi)^x-server: (\w+)", head)[1].decode()  # type: ignore[index]

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.wrapped.close()

    def echoes(self) -> None:
        self.wrapped.sendall(HELLO)
        assert self.wrapped.recv(4096) == HELLO_BACK
