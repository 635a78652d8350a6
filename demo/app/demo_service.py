#!/usr/bin/python3
# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The small service that the demo and the tests deploy: an HTTP API or a WebSocket service on PostgreSQL and Redis.

One program with two roles, chosen by APP_ROLE (api or ws), made from Debian's own Python packages. Every setting comes
from the environment: see ``Settings`` for ours; PostgreSQL's are libpq's (PGHOST, PGPASSWORD, PGSSLMODE, ...).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import prometheus_client as metrics
import psycopg
import redis.asyncio
from aiohttp import WSCloseCode, WSMsgType, web
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
QUIET_ROUTES = frozenset({"/health", "/ready", "/metrics"})
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

log = logging.getLogger("demo")


def flag(value: str) -> bool:
    """A yes or no of the environment."""
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{value!r} is neither true nor false")


@dataclass(frozen=True)
class Settings:
    """What the environment decides. A dependency without a host is not used."""

    role: str
    host: str
    port: int
    version: str
    log_level: str
    database: bool
    database_required: bool
    database_timeout: float
    pool_size: int
    redis_host: str
    redis_port: int
    redis_username: str | None
    redis_password: str | None
    redis_tls: bool
    redis_ca: str | None
    redis_required: bool
    redis_timeout: float
    slow_max: float
    upload_max: int
    drain_seconds: float
    stop_timeout: float
    heartbeat: float

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Settings:
        """Reads the settings.

        :raises ValueError: naming the variable that is missing or wrong.
        """

        def read(name: str, kind: Callable[[str], T], default: str) -> T:
            try:
                return kind(env.get(name, default))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error

        role = env.get("APP_ROLE", "api")
        if role not in ("api", "ws"):
            raise ValueError(f"APP_ROLE: {role!r} is neither api nor ws")
        return cls(
            role=role,
            host=env.get("APP_HOST", "0.0.0.0"),
            port=read("APP_PORT", int, "8081" if role == "api" else "8082"),
            version=env.get("VERSION", "unknown"),
            log_level=env.get("LOG_LEVEL", "INFO").upper(),
            database=bool(env.get("PGHOST")),
            database_required=read("DATABASE_REQUIRED", flag, "true"),
            database_timeout=read("DATABASE_TIMEOUT", float, "2"),
            pool_size=read("DATABASE_POOL_SIZE", int, "5"),
            redis_host=env.get("REDIS_HOST", ""),
            redis_port=read("REDIS_PORT", int, "6379"),
            redis_username=env.get("REDIS_USERNAME") or None,
            redis_password=env.get("REDIS_PASSWORD") or None,
            redis_tls=read("REDIS_TLS", flag, "false"),
            redis_ca=env.get("REDIS_CA") or None,
            redis_required=read("REDIS_REQUIRED", flag, "true"),
            redis_timeout=read("REDIS_TIMEOUT", float, "2"),
            slow_max=read("SLOW_MAX", float, "60"),
            upload_max=read("UPLOAD_MAX", int, str(1 << 30)),
            drain_seconds=read("DRAIN_SECONDS", float, "0"),
            stop_timeout=read("STOP_TIMEOUT", float, "20"),
            heartbeat=read("WEBSOCKET_HEARTBEAT", float, "20"),
        )


class JsonLines(logging.Formatter):
    """One JSON object a line: level, logger, message and what the call passed as ``extra={"data": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "data", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class DependencyError(RuntimeError):
    """A dependency that does not answer as it must."""

    def __init__(self, dependency: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{dependency}: {reason}")
        self.dependency = dependency
        self.reason = reason
        # For the log, not for callers: addresses and account names may stand in it.
        self.detail = detail


async def bounded(work: Awaitable[T], seconds: float, give_up: Callable[[], None]) -> T:
    """The result of ``work``, or TimeoutError after ``seconds`` and a call of ``give_up``.

    Never cancels: on cancellation psycopg waits for the server to confirm, which a frozen server does not, and
    redis-py before 4.5.4 hands the connection with the unread answer to the next caller.
    """
    task = asyncio.ensure_future(work)
    done, _pending = await asyncio.wait({task}, timeout=seconds)
    if not done:
        task.add_done_callback(lambda finished: finished.cancelled() or finished.exception())
        give_up()
        raise TimeoutError(f"no answer within {seconds:g} s")
    return task.result()


def reason_of(error: BaseException) -> str:
    """What a caller may know about an error: its kind, never the connection string."""
    return str(error) if isinstance(error, TimeoutError) and str(error) else type(error).__name__


class Database:
    """PostgreSQL, reached through a pooler in transaction mode: one statement, one transaction, nothing prepared."""

    name = "database"
    CREATE = """
        CREATE TABLE items (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            body jsonb NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now()
        )"""

    def __init__(self, settings: Settings) -> None:
        self.required = settings.database_required
        self.timeout = settings.database_timeout
        self.size = settings.pool_size
        self.has_schema = False
        self.pool = AsyncConnectionPool(
            "",
            kwargs={
                "autocommit": True,
                "prepare_threshold": None,
                "connect_timeout": max(2, int(self.timeout)),
                "application_name": f"demo-{settings.role}",
            },
            min_size=1,
            max_size=self.size,
            # The pool doubles its delays; given up early, the next request starts afresh as soon as the server is back.
            reconnect_timeout=5,
            max_lifetime=1800,
            open=False,
        )

    async def open(self) -> None:
        await self.pool.open(wait=False)

    async def close(self) -> None:
        await self.pool.close(timeout=2)

    async def _live(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        """Whether a pooled connection still works. An idle one has nothing to read, unless the server hung up."""
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        if poll.poll(0):
            try:
                await connection.execute("")
            except psycopg.OperationalError:
                return False
        return True

    async def _ensure_schema(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if self.has_schema:
            return
        async with connection.transaction():
            # IF NOT EXISTS alone races with the other hosts' first start.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('vmfleet demo items'))")
            cursor = await connection.execute("SELECT to_regclass('items') IS NOT NULL")
            row = await cursor.fetchone()
            if not (row and row[0]):
                await connection.execute(self.CREATE)
        self.has_schema = True

    async def fetch_one(self, query: str, parameters: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        """The first row of a statement.

        :raises DependencyError: when PostgreSQL or the pooler does not answer in time or refuses.
        """
        using: list[psycopg.AsyncConnection[Any]] = []

        async def work() -> tuple[Any, ...] | None:
            for _attempt in range(self.size + 1):
                async with self.pool.connection(timeout=self.timeout) as connection:
                    using[:] = [connection]
                    if not await self._live(connection):
                        continue
                    await self._ensure_schema(connection)
                    cursor = await connection.execute(query.encode(), parameters)
                    row: tuple[Any, ...] | None = await cursor.fetchone()
                    return row
            raise psycopg.OperationalError("every pooled connection was dead")

        def hang_up() -> None:
            for connection in using:
                if not connection.closed:
                    with socket.socket(fileno=os.dup(connection.fileno())) as wire:
                        wire.shutdown(socket.SHUT_RDWR)

        try:
            return await bounded(work(), self.timeout + 0.2, hang_up)
        except psycopg.DataError:
            raise
        except (psycopg.Error, PoolTimeout, TimeoutError) as error:
            raise DependencyError(self.name, reason_of(error), str(error)) from error

    async def check(self) -> None:
        row = await self.fetch_one("SELECT pg_is_in_recovery()")
        if row is None or row[0]:
            raise DependencyError(self.name, "is a read-only standby")


class Cache:
    """Redis, with a password and, if wanted, TLS."""

    name = "redis"

    def __init__(self, settings: Settings) -> None:
        self.required = settings.redis_required
        self.timeout = settings.redis_timeout
        tls: dict[str, Any] = {}
        if settings.redis_tls:
            tls = {"ssl": True, "ssl_ca_certs": settings.redis_ca, "ssl_check_hostname": True}
        self.client = redis.asyncio.Redis(
            host=settings.redis_host,
            port=settings.redis_port,
            username=settings.redis_username,
            password=settings.redis_password,
            socket_timeout=self.timeout,
            socket_connect_timeout=self.timeout,
            # Once more, for connections that a restart of Redis left behind.
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[redis.exceptions.ConnectionError],
            **tls,
        )

    async def open(self) -> None:
        """Connections are made on demand."""

    async def close(self) -> None:
        await self.client.connection_pool.disconnect()

    async def _do(self, work: Awaitable[T]) -> T:
        try:
            return await bounded(work, self.timeout + 0.2, lambda: None)
        except (RedisError, OSError, TimeoutError) as error:
            raise DependencyError(self.name, reason_of(error), str(error)) from error

    async def get(self, key: str) -> bytes | None:
        value: bytes | None = await self._do(self.client.get(f"demo:{key}"))
        return value

    async def put(self, key: str, value: bytes, seconds: int) -> None:
        await self._do(self.client.set(f"demo:{key}", value, ex=seconds))

    async def check(self) -> None:
        await self._do(self.client.ping())


class Metrics:
    """What /metrics shows. Labels come from routes, so that callers cannot add series."""

    def __init__(self, settings: Settings, dependencies: list[Database | Cache]) -> None:
        self.registry = metrics.CollectorRegistry()
        metrics.ProcessCollector(registry=self.registry)
        metrics.PlatformCollector(registry=self.registry)
        self.requests = metrics.Counter(
            "http_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.duration = metrics.Histogram(
            "http_request_duration_seconds", "Time to answer a request.", ["method", "route"],
            buckets=BUCKETS, registry=self.registry,
        )
        self.in_flight = metrics.Gauge("http_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.websockets = metrics.Gauge("websockets_open", "Open WebSocket connections.", registry=self.registry)
        self.messages = metrics.Counter("websocket_messages", "WebSocket messages echoed.", registry=self.registry)
        self.up = metrics.Gauge(
            "dependency_up", "Whether the last check of a dependency passed.", ["dependency"], registry=self.registry
        )
        for dependency in dependencies:
            self.up.labels(dependency.name).set(0)
        build = metrics.Gauge("build_info", "Version and role.", ["version", "role"], registry=self.registry)
        build.labels(settings.version, settings.role).set(1)


def answer(data: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.json_response(data, status=status, dumps=lambda value: json.dumps(value, default=str) + "\n")


def refusal(status: int, message: str) -> web.Response:
    """A JSON answer that says why not."""
    return answer({"error": message}, status)


class Service:
    """The HTTP side: routes, readiness, and a stop that lets requests finish."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.hostname = socket.gethostname()
        self.database = Database(settings) if settings.database else None
        self.cache = Cache(settings) if settings.redis_host else None
        self.dependencies: list[Database | Cache] = [part for part in (self.database, self.cache) if part]
        self.metrics = Metrics(settings, self.dependencies)
        self.draining = False
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.websockets: set[web.WebSocketResponse] = set()
        self.checked: tuple[float, dict[str, str | None]] = (0.0, {})
        self.checking = asyncio.Lock()
        self.app = self._application()

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._observe], client_max_size=1 << 20)
        router = app.router
        router.add_get("/health", self.health)
        router.add_get("/ready", self.ready)
        router.add_get("/version", self.version)
        router.add_get("/metrics", self.show_metrics)
        router.add_get("/whoami", self.whoami)
        router.add_route("*", "/echo", self.echo)
        router.add_route("*", "/echo/{rest:.*}", self.echo)
        router.add_get("/slow", self.slow)
        if self.settings.role == "ws":
            router.add_get("/ws", self.websocket)
            return app
        router.add_post("/upload", self.upload)
        router.add_put("/upload", self.upload)
        router.add_post("/items", self.add_item)
        router.add_get(r"/items/{id:\d{1,18}}", self.get_item)
        router.add_put("/cache/{key}", self.put_cache)
        router.add_get("/cache/{key}", self.get_cache)
        return app

    @web.middleware
    async def _observe(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = resource.canonical if resource else "unmatched"
        method = request.method if request.method in METHODS else "OTHER"
        started = time.perf_counter()
        long_lived = route == "/ws"
        if not long_lived:
            self.in_flight += 1
            self.idle.clear()
            self.metrics.in_flight.set(self.in_flight)
        status = 500
        try:
            response = await self._respond(request, handler)
            status = response.status
            if not response.prepared:
                response.headers["X-App-Host"] = self.hostname
                response.headers["Server"] = "demo"
                if self.draining:
                    response.force_close()
            return response
        finally:
            seconds = time.perf_counter() - started
            self.metrics.requests.labels(method, route, str(status)).inc()
            if not long_lived:
                self.metrics.duration.labels(method, route).observe(seconds)
                self.in_flight -= 1
                self.metrics.in_flight.set(self.in_flight)
                if not self.in_flight:
                    self.idle.set()
            log.log(
                logging.DEBUG if route in QUIET_ROUTES and status < 500 else logging.INFO,
                "request",
                extra={"data": {
                    "method": method, "path": request.path, "status": status, "ms": round(seconds * 1000, 1),
                    "client": request.remote,
                }},
            )

    async def _respond(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            response = refusal(error.status, error.reason)
            response.headers.extend({k: v for k, v in error.headers.items() if k == "Allow"})
            return response
        except DependencyError as error:
            log.warning("dependency failed", extra={"data": {
                "dependency": error.dependency, "reason": error.reason, "detail": error.detail,
            }})
            return answer({"error": "unavailable", "dependency": error.dependency, "reason": error.reason}, 503)
        except ConnectionResetError:
            raise
        except Exception:
            log.exception("request failed")
            return refusal(500, "internal error")

    async def health(self, _request: web.Request) -> web.Response:
        return answer({"status": "ok"})

    async def _check(self, dependency: Database | Cache) -> str | None:
        try:
            await dependency.check()
            failure = None
        except DependencyError as error:
            failure = error.reason
            log.warning("dependency failed", extra={"data": {
                "dependency": error.dependency, "reason": error.reason, "detail": error.detail,
            }})
        self.metrics.up.labels(dependency.name).set(failure is None)
        return failure

    async def _failures(self) -> dict[str, str | None]:
        """Why each dependency fails, or None. Several probes within a second share one look."""
        async with self.checking:
            when, seen = self.checked
            if time.monotonic() - when >= 1.0 or not seen:
                results = await asyncio.gather(*(self._check(dependency) for dependency in self.dependencies))
                previous, seen = seen, dict(zip((part.name for part in self.dependencies), results))
                self.checked = (time.monotonic(), seen)
                for name, failure in seen.items():
                    if failure is None and previous.get(name) is not None:
                        log.info("dependency is back", extra={"data": {"dependency": name}})
            return seen

    async def ready(self, _request: web.Request) -> web.Response:
        if self.draining:
            return answer({"status": "draining", "failing": [], "dependencies": {}}, 503)
        failures = await self._failures()
        dependencies = {
            part.name: {"status": failures[part.name] or "ok", "required": part.required} for part in self.dependencies
        }
        failing = [name for name, failure in failures.items() if failure is not None]
        broken = any(part.required and part.name in failing for part in self.dependencies)
        status = "unready" if broken else "degraded" if failing else "ready"
        return answer({"status": status, "failing": failing, "dependencies": dependencies}, 503 if broken else 200)

    async def version(self, _request: web.Request) -> web.Response:
        return answer({"version": self.settings.version, "role": self.settings.role})

    async def show_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=metrics.generate_latest(self.metrics.registry), headers={"Content-Type": metrics.CONTENT_TYPE_LATEST}
        )

    async def whoami(self, _request: web.Request) -> web.Response:
        return answer({"host": self.hostname, "role": self.settings.role, "version": self.settings.version})

    async def _digest(self, request: web.Request, limit: int) -> dict[str, Any]:
        checksum, size = hashlib.sha256(), 0
        async for chunk in request.content.iter_chunked(1 << 16):
            size += len(chunk)
            if size > limit:
                raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=size)
            checksum.update(chunk)
        return {"bytes": size, "sha256": checksum.hexdigest()}

    async def echo(self, request: web.Request) -> web.Response:
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
        return answer({
            "host": self.hostname,
            "method": request.method,
            "path": request.raw_path.partition("?")[0],
            "query": request.query_string,
            "http_version": f"{request.version.major}.{request.version.minor}",
            "client": request.remote,
            "headers": headers,
            "body": await self._digest(request, self.settings.upload_max),
        })

    async def slow(self, request: web.Request) -> web.Response:
        try:
            seconds = float(request.query.get("seconds", "1"))
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= self.settings.slow_max:
            return refusal(400, f"seconds is a number from 0 to {self.settings.slow_max:g}")
        await asyncio.sleep(seconds)
        return answer({"host": self.hostname, "seconds": seconds})

    async def upload(self, request: web.Request) -> web.Response:
        if (request.content_length or 0) > self.settings.upload_max:
            raise web.HTTPRequestEntityTooLarge(
                max_size=self.settings.upload_max, actual_size=request.content_length or 0
            )
        return answer({"host": self.hostname, **await self._digest(request, self.settings.upload_max)})

    async def add_item(self, request: web.Request) -> web.Response:
        if self.database is None:
            raise DependencyError("database", "is not configured")
        try:
            body = json.loads(await request.text())
        except ValueError:
            return refusal(400, "the body is not JSON")
        try:
            row = await self.database.fetch_one("INSERT INTO items (body) VALUES (%s) RETURNING id", (Jsonb(body),))
        except psycopg.DataError:
            return refusal(400, "PostgreSQL cannot store this JSON")
        return answer({"id": row[0] if row else None, "host": self.hostname}, 201)

    async def get_item(self, request: web.Request) -> web.Response:
        if self.database is None:
            raise DependencyError("database", "is not configured")
        number = int(request.match_info["id"])
        row = await self.database.fetch_one("SELECT id, body, created_at FROM items WHERE id = %s", (number,))
        if row is None:
            return refusal(404, f"there is no item {number}")
        return answer({"id": row[0], "body": row[1], "created_at": row[2].isoformat()})

    async def put_cache(self, request: web.Request) -> web.Response:
        if self.cache is None:
            raise DependencyError("redis", "is not configured")
        ttl = request.query.get("ttl", "300")
        if not ttl.isdigit() or not 0 < int(ttl) <= 86400:
            return refusal(400, "ttl is a number of seconds from 1 to 86400")
        value = await request.read()
        await self.cache.put(request.match_info["key"], value, int(ttl))
        return answer({"key": request.match_info["key"], "bytes": len(value), "ttl": int(ttl)})

    async def get_cache(self, request: web.Request) -> web.Response:
        if self.cache is None:
            raise DependencyError("redis", "is not configured")
        value = await self.cache.get(request.match_info["key"])
        if value is None:
            return refusal(404, "no such key")
        return web.Response(body=value)

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        if self.draining:
            return refusal(503, "draining")
        channel = web.WebSocketResponse(heartbeat=self.settings.heartbeat, max_msg_size=1 << 20)
        if not channel.can_prepare(request).ok:
            return refusal(426, "this is a WebSocket endpoint")
        channel.headers["X-App-Host"] = self.hostname
        await channel.prepare(request)
        self.websockets.add(channel)
        self.metrics.websockets.set(len(self.websockets))
        try:
            async for message in channel:
                if message.type is WSMsgType.TEXT:
                    await channel.send_str(message.data)
                elif message.type is WSMsgType.BINARY:
                    await channel.send_bytes(message.data)
                self.metrics.messages.inc()
            if self.draining:
                # aiohttp 3.8 would close with 1000 when the handler returns before our own close has spoken.
                await channel.close(code=WSCloseCode.GOING_AWAY, message=b"server is stopping")
        except ConnectionError:
            log.debug("websocket lost", extra={"data": {"client": request.remote}})
        finally:
            self.websockets.discard(channel)
            self.metrics.websockets.set(len(self.websockets))
        return channel

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT, then stops without breaking what is in flight."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        for dependency in self.dependencies:
            await dependency.open()
        runner = web.AppRunner(self.app, access_log=None, handle_signals=False)
        await runner.setup()
        assert runner.server is not None
        # Our own listener: closing it only stops accepting, while aiohttp's sites also end what they serve.
        listener = await loop.create_server(
            runner.server, self.settings.host, self.settings.port, backlog=1024, reuse_address=True
        )
        tell_systemd("READY=1\nSTATUS=serving")
        log.info("serving", extra={"data": {
            "role": self.settings.role, "address": f"{self.settings.host}:{self.settings.port}",
            "version": self.settings.version, "dependencies": [part.name for part in self.dependencies],
        }})
        await stop.wait()
        await self._stop(runner, listener)

    async def _stop(self, runner: web.AppRunner, listener: asyncio.AbstractServer) -> None:
        self.draining = True
        tell_systemd("STOPPING=1\nSTATUS=draining")
        log.info("draining", extra={"data": {"in_flight": self.in_flight, "websockets": len(self.websockets)}})
        # Balancers see /ready turn 503 while connections are still accepted.
        await asyncio.sleep(self.settings.drain_seconds)
        listener.close()
        deadline = time.monotonic() + self.settings.stop_timeout
        closing = [
            asyncio.ensure_future(channel.close(code=WSCloseCode.GOING_AWAY, message=b"server is stopping"))
            for channel in list(self.websockets)
        ]
        if closing:
            await asyncio.wait(closing, timeout=min(5.0, self.settings.stop_timeout))
        try:
            await asyncio.wait_for(self.idle.wait(), max(0.0, deadline - time.monotonic()))
            # The last answer is on its way out of the buffers.
            await asyncio.sleep(0.05)
        except asyncio.TimeoutError:
            log.warning("stopping with requests in flight", extra={"data": {"in_flight": self.in_flight}})
        await runner.shutdown()
        assert runner.server is not None
        await runner.server.shutdown(1.0)
        await runner.cleanup()
        for dependency in self.dependencies:
            await bounded(dependency.close(), 3.0, lambda: None)
        log.info("stopped")


def tell_systemd(message: str) -> None:
    """sd_notify(3), when systemd asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(message.encode())


def main() -> int:
    """Runs the service; 78 (EX_CONFIG) when the environment is wrong."""
    output = logging.StreamHandler(sys.stdout)
    output.setFormatter(JsonLines())
    logging.basicConfig(handlers=[output], level=logging.INFO)
    try:
        settings = Settings.from_environment(os.environ)
        logging.getLogger().setLevel(settings.log_level)
    except ValueError as error:
        log.error("wrong environment", extra={"data": {"reason": str(error)}})
        return 78

    async def serve() -> None:
        await Service(settings).run()

    try:
        asyncio.run(serve())
    except OSError as error:
        log.error("cannot serve", extra={"data": {"reason": str(error)}})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
