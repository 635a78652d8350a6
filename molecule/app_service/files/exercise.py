#!/usr/bin/python3
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Proves the demo service as it runs on this host: every endpoint, broken dependencies, and the graceful stop.

Usage: exercise.py [endpoints|dependencies|stop ...]; without a name, all of them. Needs root for systemctl and kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
import uuid
from typing import Any

import aiohttp

API = os.environ.get("API", "http://127.0.0.1:8081")
WS = os.environ.get("WS", "http://127.0.0.1:8082")
API_UNIT = os.environ.get("API_UNIT", "api")
WS_UNIT = os.environ.get("WS_UNIT", "ws")
DATABASE_UNITS = os.environ.get("DATABASE_UNITS", "pgbouncer").split()


def check(truth: bool, seen: Any) -> None:
    if not truth:
        raise AssertionError(seen)


def systemctl(*words: str) -> str:
    return subprocess.run(["systemctl", *words], check=True, capture_output=True, text=True).stdout.strip()


async def ask(session: aiohttp.ClientSession, method: str, url: str, status: int = 200, **rest: Any) -> Any:
    async with session.request(method, url, **rest) as response:
        body = await response.read()
        check(response.status == status, f"{method} {url}: {response.status} instead of {status}: {body[:300]!r}")
        return await response.json() if response.content_type == "application/json" else body


async def until(session: aiohttp.ClientSession, url: str, status: int, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError, aiohttp.ClientError):
            return await ask(session, "GET", url, status)
        await asyncio.sleep(0.2)
    return await ask(session, "GET", url, status)


async def endpoints(session: aiohttp.ClientSession) -> None:
    for base, role in ((API, "api"), (WS, "ws")):
        check((await ask(session, "GET", f"{base}/health"))["status"] == "ok", "health")
        ready = await until(session, f"{base}/ready", 200)
        check(ready["status"] == "ready" and set(ready["dependencies"]) == {"database", "redis"}, ready)
        version = await ask(session, "GET", f"{base}/version")
        check(version["role"] == role and version["version"] != "unknown", version)
        check((await ask(session, "GET", f"{base}/whoami"))["host"] == os.uname().nodename, "whoami")

    body = os.urandom(100_000)
    seen = await ask(session, "PATCH", f"{API}/echo/a%20b?c=d", data=body, headers={"X-Test": "one"})
    wanted = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    check(seen["method"] == "PATCH" and seen["path"] == "/echo/a%20b" and seen["query"] == "c=d", seen)
    check(seen["headers"]["x-test"] == "one" and seen["body"] == wanted and seen["client"] == "127.0.0.1", seen)

    big = os.urandom(1 << 20) * 30
    seen = await ask(session, "POST", f"{API}/upload", data=big)
    check(seen["bytes"] == len(big) and seen["sha256"] == hashlib.sha256(big).hexdigest(), seen)

    started = time.monotonic()
    await ask(session, "GET", f"{API}/slow?seconds=0.5")
    check(0.5 <= time.monotonic() - started < 10, "slow")
    for bad in ("61", "-1", "nan", "x"):
        await ask(session, "GET", f"{API}/slow?seconds={bad}", 400)

    made = await ask(session, "POST", f"{API}/items", 201, json={"name": "é", "list": [1, None]})
    found = await ask(session, "GET", f"{API}/items/{made['id']}")
    check(found["body"] == {"name": "é", "list": [1, None]} and found["created_at"], found)
    await ask(session, "GET", f"{API}/items/999999999999999999", 404)
    await ask(session, "GET", f"{API}/items/x", 404)
    await ask(session, "POST", f"{API}/items", 400, data=b"{")
    await ask(session, "POST", f"{API}/items", 400, data=b'"\\u0000"')
    await ask(session, "POST", f"{API}/items", 413, data=b'"' + b"x" * (1 << 20) + b'"')
    many = await asyncio.gather(*(ask(session, "POST", f"{API}/items", 201, json=n) for n in range(20)))
    check(len({item["id"] for item in many}) == 20, many)

    key, value = uuid.uuid4().hex, os.urandom(1000)
    await ask(session, "GET", f"{API}/cache/{key}", 404)
    await ask(session, "PUT", f"{API}/cache/{key}?ttl=60", data=value)
    check(await ask(session, "GET", f"{API}/cache/{key}") == value, "cache")
    await ask(session, "PUT", f"{API}/cache/{key}?ttl=0", 400, data=value)

    await ask(session, "GET", f"{API}/nowhere", 404)
    await ask(session, "DELETE", f"{API}/upload", 405)
    await ask(session, "GET", f"{WS}/ws", 426)
    async with session.ws_connect(f"{WS}/ws") as channel:
        await channel.send_str("hello")
        check(await channel.receive_str(timeout=5) == "hello", "text")
        await channel.send_bytes(b"\0\1")
        check(await channel.receive_bytes(timeout=5) == b"\0\1", "bytes")
        await channel.ping(b"x")
        text = (await ask(session, "GET", f"{WS}/metrics")).decode()
        check("websockets_open 1.0" in text, text)

    text = (await ask(session, "GET", f"{API}/metrics")).decode()
    for line in (
        r'http_requests_total\{method="POST",route="/items",status="201"\} \d', r'route="unmatched",status="404"',
        r'http_request_duration_seconds_bucket\{le="0.5",method="GET",route="/health"\} \d',
        r"http_requests_in_flight 1.0", r'dependency_up\{dependency="database"\} 1.0', r"build_info\{role=\"api\"",
        r'route="/items/\{id\}"',
    ):
        check(re.search(line, text) is not None, f"{line} is not in\n{text}")


async def dependencies(session: aiohttp.ClientSession) -> None:
    """Stopped, and frozen: the harder case, for nothing refuses the connection."""
    for name, units in (("database", DATABASE_UNITS), ("redis", ["redis-server"])):
        route = ("GET", f"{API}/items/1") if name == "database" else ("GET", f"{API}/cache/x")
        for breaking, mending in ((["stop"], ["start"]), (["kill", "-s", "STOP"], ["kill", "-s", "CONT"])):
            systemctl(*breaking, *units)
            try:
                started = time.monotonic()
                ready = await until(session, f"{API}/ready", 503)
                check(ready["failing"] == [name] and ready["status"] == "unready", ready)
                check(time.monotonic() - started < 15, f"/ready took {time.monotonic() - started:.1f} s")
                started = time.monotonic()
                answers = await asyncio.gather(*(ask(session, *route, 503) for _ in range(20)))
                check(all(answer["dependency"] == name for answer in answers), answers)
                check(time.monotonic() - started < 15, f"20 requests took {time.monotonic() - started:.1f} s")
                await ask(session, "GET", f"{API}/health")
                text = (await ask(session, "GET", f"{API}/metrics")).decode()
                check(f'dependency_up{{dependency="{name}"}} 0.0' in text, text)
            finally:
                systemctl(*mending, *units)
            started = time.monotonic()
            await until(session, f"{API}/ready", 200)
            print(f"  {name} {' '.join(breaking)}: ready again after {time.monotonic() - started:.1f} s", flush=True)
        # Pooled connections that died behind the service's back cost no request.
        systemctl("restart", *units)
        await asyncio.sleep(0.5)
        await asyncio.gather(
            *(ask(session, *route, 404 if name == "redis" else 200) for _ in range(5))
        )


async def stop(session: aiohttp.ClientSession) -> None:
    await until(session, f"{API}/ready", 200)
    before = systemctl("show", "-p", "NRestarts,InvocationID", API_UNIT)
    slow = asyncio.ensure_future(ask(session, "GET", f"{API}/slow?seconds=3"))
    kept = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1))
    await ask(kept, "GET", f"{API}/health")
    channel = await session.ws_connect(f"{WS}/ws")
    await asyncio.sleep(0.3)
    started = time.monotonic()
    systemctl("stop", "--no-block", API_UNIT, WS_UNIT)
    await asyncio.sleep(0.2)
    draining = await ask(kept, "GET", f"{API}/ready", 503)
    check(draining["status"] == "draining", draining)
    await kept.close()
    message = await channel.receive(timeout=10)
    check(message.type is aiohttp.WSMsgType.CLOSE and message.data == 1001, message)
    check((await slow)["seconds"] == 3.0, "the request in flight was cut")
    try:
        await ask(session, "GET", f"{API}/health")
        raise AssertionError("still accepts connections while stopping")
    except aiohttp.ClientConnectionError:
        pass
    while systemctl("show", "-p", "ActiveState", "--value", API_UNIT) == "deactivating":
        await asyncio.sleep(0.1)
    check(time.monotonic() - started < 15, f"stopping took {time.monotonic() - started:.1f} s")
    state = systemctl("show", "-p", "ActiveState,Result", API_UNIT)
    check("ActiveState=inactive" in state and "Result=success" in state, state)
    systemctl("start", API_UNIT, WS_UNIT)
    # Type=notify: once systemctl returns, it serves.
    await ask(session, "GET", f"{API}/health")
    after = systemctl("show", "-p", "NRestarts,InvocationID", API_UNIT)
    check(before != after, after)


async def main() -> None:
    chosen = sys.argv[1:] or ["endpoints", "dependencies", "stop"]
    for name in chosen:
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await {"endpoints": endpoints, "dependencies": dependencies, "stop": stop}[name](session)
        print(f"{name}: ok", flush=True)


asyncio.run(main())
