"""A tiny application server for the balancer scenarios: it tells what arrived.

usage: echo_backend.py ADDRESS PORT NAME

/run/echo-NAME-broken lets its health fail, /run/echo-NAME-slow holds the seconds that it takes over it. POSTs with a
query are written down in /run/echo-NAME-posts, before they are answered.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

# Answers of the asked size: /json?2048
KINDS = {"/text": "text/plain", "/json": "application/json", "/png": "image/png"}


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = ""
    # Hosts that its health was asked for.
    asked_for: ClassVar[set[str | None]] = set()

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        # In one piece: an answer that has begun when its server is killed or frozen is lost, whoever balances.
        connection, whole = self.wfile, io.BytesIO()
        self.wfile = whole
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Frame-Options", "SAMEORIGIN")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        if self.command != "HEAD":
            whole.write(body)
        self.wfile = connection
        connection.write(whole.getvalue())

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return parts
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        body = self.body()
        path, _, query = self.path.partition("?")
        number = query.partition("&")[0]
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self.websocket()
        elif path in ("/ready", "/health"):
            with contextlib.suppress(FileNotFoundError):
                time.sleep(float(Path(f"/run/echo-{self.name}-slow").read_text()))
            self.asked_for.add(self.headers.get("Host"))
            broken = Path(f"/run/echo-{self.name}-broken").exists()
            self.answer(
                503 if broken else 200, json.dumps({"host": self.headers.get("Host"), "name": self.name}).encode()
            )
        else:
            if self.command == "POST" and query:
                with open(f"/run/echo-{self.name}-posts", "ab", buffering=0) as posts:
                    posts.write(f"{query}\n".encode())
            if path.endswith("/slow"):
                time.sleep(float(number))
            if kind := KINDS.get(path[path.rfind("/") :]):
                self.answer(200, b"x" * int(number), kind)
                return
            status = int(number) if path.endswith("/status") else 200
            told = {"name": self.name, "method": self.command, "path": self.path, "length": len(body)}
            told["headers"] = [[key.lower(), value] for key, value in self.headers.items()]
            told["peer"] = self.client_address[1]
            told["port"] = self.connection.getsockname()[1]
            told["asked_for"] = sorted(map(str, self.asked_for))
            self.answer(status, json.dumps(told).encode())

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET

    def websocket(self) -> None:
        """Answer the handshake, then send back each text frame of a client."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("X-Server", self.name)
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while head := self.rfile.read(2):
            length = head[1] & 127
            mask = self.rfile.read(4)
            text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(length)))
            if head[0] & 15 == 8:
                return
            self.wfile.write(bytes([129, length]) + text)

    def log_message(self, *_args: object) -> None:
        return


if __name__ == "__main__":
    Echo.name = sys.argv[3]
    # The default of 5 connections is soon full while a balancer sends it all requests of another server.
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Echo).serve_forever()
