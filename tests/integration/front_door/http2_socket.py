"""A WebSocket within HTTP/2 (RFC 8441), as browsers open it where the balancer announces that it takes them."""

from __future__ import annotations

import ssl
import struct

from front_door.asking import HELLO, HELLO_BACK, HOST

DATA, HEADERS, SETTINGS = 0, 1, 4
ACKNOWLEDGED, END_OF_HEADERS = 0x1, 0x4
ENABLE_CONNECT_PROTOCOL = 8
# The first of a block of headers, as RFC 7541 lists it: no balancer spells out what it can say in a byte.
STATUS_200 = b"\x88"


class Http2Socket:
    """On a connection that speaks HTTP/2; ``announced`` says whether the balancer takes WebSockets there."""

    def __init__(self, wrapped: ssl.SSLSocket) -> None:
        self.wrapped = wrapped
        self.unread = b""
        wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self._frame(SETTINGS, 0, 0))
        settings = dict(struct.iter_unpack(">HI", self._next(SETTINGS)))
        self.announced = settings.get(ENABLE_CONNECT_PROTOCOL) == 1
        wrapped.sendall(self._frame(SETTINGS, ACKNOWLEDGED, 0))

    def open(self, path: str) -> None:
        fields = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "https",
            ":path": path,
            ":authority": HOST,
            "sec-websocket-version": "13",
        }
        # Literals without an index and without compression; all of them are short.
        block = b"".join(
            b"\x00" + b"".join(bytes([len(text)]) + text.encode() for text in field) for field in fields.items()
        )
        self.wrapped.sendall(self._frame(HEADERS, END_OF_HEADERS, 1, block))
        answer = self._next(HEADERS)
        assert answer.startswith(STATUS_200), answer

    def echoes(self) -> None:
        self.wrapped.sendall(self._frame(DATA, 0, 1, HELLO))
        assert self._next(DATA) == HELLO_BACK

    @staticmethod
    def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    def _next(self, wanted: int) -> bytes:
        """The payload of the next frame of a kind that holds anything; others are passed over."""
        while True:
            size, kind = int.from_bytes(self._read(3), "big"), self._read(6)[0]
            payload = self._read(size)
            if kind == wanted and payload:
                return payload

    def _read(self, count: int) -> bytes:
        while len(self.unread) < count:
            piece = self.wrapped.recv(16384)
            assert piece, "the balancer has closed the connection"
            self.unread += piece
        found, self.unread = self.unread[:count], self.unread[count:]
        return found
