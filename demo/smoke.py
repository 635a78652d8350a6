#!/usr/bin/env python3
"""Sends the demo application a row and a value, and looks for them where they must have arrived.

The row goes through a balancer, the application and the pooler to the primary, and is read on the replica; the value
goes into Redis through the first balancer and comes back through the last.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shlex
import socket
import ssl
import subprocess
import sys
import time
from http.client import HTTPConnection, HTTPException

TIMEOUT = 5.0


class Through(HTTPConnection):
    """A connection to a balancer's address for the site's name."""

    def __init__(self, site: str, address: str, trust: ssl.SSLContext) -> None:
        super().__init__(site, timeout=TIMEOUT)
        raw = socket.create_connection((address, 443), timeout=TIMEOUT)
        self.sock = trust.wrap_socket(raw, server_hostname=site)

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        self.request(method, path, body=body, headers={"Content-Type": "application/json"})
        answer = self.getresponse()
        content = answer.read()
        if answer.status not in (200, 201, 204):
            raise ValueError(f"{method} {path}: {answer.status} {content[:120].decode(errors='replace')}")
        return content


def row(first: Through, replica: str) -> str:
    token = secrets.token_hex(8)
    number = int(json.loads(first.ask("POST", "/items", json.dumps({"smoke": token}).encode()))["id"])
    # One session waits for it there, which costs less than asking again and again.
    wait = f"""DO $$BEGIN
        FOR look IN 1..{TIMEOUT * 20:.0f} LOOP
            EXIT WHEN EXISTS (SELECT FROM items WHERE id = {number:d});
            PERFORM pg_sleep(0.05);
        END LOOP;
    END$$"""
    look = f"SELECT body->>'smoke' FROM items WHERE id = {number:d}"  # noqa: S608 - a number
    psql = ["sudo", "-u", "postgres", "psql", "-XAtq", "-d", "demo", "-c", wait, "-c", look]
    command = [*shlex.split(replica), f"cd / && {shlex.join(psql)}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT + 10)
    if done.stdout.strip() != token:
        words = (done.stdout + done.stderr).strip()
        raise ValueError(f"row {number} is not on the replica after {TIMEOUT:g} s: {words}")
    return f"row {number} is on the replica"


def value(first: Through, last: Through) -> str:
    path, content = f"/cache/{secrets.token_hex(4)}", secrets.token_hex(16).encode()
    first.ask("PUT", f"{path}?ttl=60", content)
    seen = last.ask("GET", path)
    if seen != content:
        raise ValueError(f"stored {content!r}, got {seen!r}")
    return "a value went through Redis"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", required=True, help="host name of the site")
    parser.add_argument("--ca", required=True, help="file of the authority that signed its certificate")
    parser.add_argument("--through", action="append", required=True, help="address of a balancer")
    parser.add_argument("--replica", required=True, help="command that runs another on the replica: ssh db2")
    given = parser.parse_args()
    started = time.monotonic()
    try:
        trust = ssl.create_default_context(cafile=given.ca)
        ways = [Through(given.site, address, trust) for address in given.through]
        words = [row(ways[0], given.replica), value(ways[0], ways[-1])]
    except (OSError, HTTPException, ValueError, KeyError, subprocess.SubprocessError) as error:
        print(error or type(error).__name__)
        return 1
    print(f"{', '.join(words)} after {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
