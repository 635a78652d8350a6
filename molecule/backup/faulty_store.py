"""Stands before a store that speaks S3 and spoils a part of what passes: faulty_store.py FAULT EVERY PORT STORE_PORT.

Every EVERY-th request fares as FAULT says; all others pass as they are, over TLS on both sides.
"""

from __future__ import annotations

import http.client
import http.server
import itertools
import socket
import ssl
import struct
import sys
import threading

CERTIFICATE = ("/etc/vmfleet/tls/host.crt", "/etc/vmfleet/tls/host.key")
ERROR = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>%s</Code><Message>spoilt</Message></Error>"
ANSWERS = {
    "500": (500, ERROR % b"InternalError"),
    "503": (503, ERROR % b"SlowDown"),
    # As stores do when an operation fails after its answer was begun; what is put is answered when it is there.
    "200": (200, ERROR % b"InternalError"),
}
SPARED = {"200": ("PUT",)}
fault, every, port, store_port = sys.argv[1], *map(int, sys.argv[2:])
count = itertools.count(1)
lock = threading.Lock()
spoilt: dict[str, int] = {}


class Handler(http.server.BaseHTTPRequestHandler):
    """Passes a request on, or spoils it."""

    protocol_version = "HTTP/1.1"

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with lock:
            spoil = self.command not in SPARED.get(fault, ()) and next(count) % every == 0
            if spoil:
                spoilt[self.command] = spoilt.get(self.command, 0) + 1
                with open("/run/faulty-store", "w", encoding="utf-8") as told:
                    told.write(f"{spoilt}\n")
        if spoil and fault in ANSWERS:
            self.answer(ANSWERS[fault][0], {"Content-Type": "application/xml"}, ANSWERS[fault][1])
            return
        trusted = ssl.create_default_context(cafile="/etc/vmfleet/tls/ca.crt")
        store = http.client.HTTPSConnection(socket.gethostname(), store_port, context=trusted, timeout=60)
        # The signature is over the name and port that the client has asked.
        store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            store.putheader(name, value)
        store.endheaders(body or None)
        found = store.getresponse()
        content = found.read()
        told = {name: value for name, value in found.headers.items() if name.lower() != "transfer-encoding"}
        if self.command != "HEAD":
            told["Content-Length"] = str(len(content))
        self.answer(found.status, told, content, cut=spoil)

    def answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
        """The whole of it, or half, and then a reset of the connection."""
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

    def log_message(self, *words: object) -> None:
        """Nothing: it would be a line for each request."""


server = http.server.ThreadingHTTPServer(("", port), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(*CERTIFICATE)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
