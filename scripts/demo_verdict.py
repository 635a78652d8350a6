"""Uses the local fleet the way its users would, from outside, and says whether the platform does its job.

Nothing here asks a host whether it is well: requests go through the balancers, and what they leave behind is looked
for where it must have arrived.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fleet_settings import ROOT, USER, FleetError, Settings, settings

INVENTORY = ROOT / "inventories" / "local"
TIMEOUT = 10
WEBSOCKET_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Failure(Exception):
    """What a check saw instead of what it wanted."""


class Fleet:
    """The standing fleet: addresses by name, groups, and ways to reach it."""

    def __init__(self, fleet: Settings) -> None:
        command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(INVENTORY), "--list"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        self.data: dict[str, Any] = json.loads(listed.stdout)
        self.settings = fleet
        hostvars = self.data["_meta"]["hostvars"]
        self.address = {name: fleet.address(values["fleet_number"]) for name, values in hostvars.items()}
        self.site: str = next(iter(hostvars.values()))["lb_sites"][0]["hosts"][0]
        self.authority = fleet.state / "pki" / "ca.crt"

    def group(self, name: str) -> list[str]:
        entry = self.data.get(name, {})
        children = [host for child in entry.get("children", []) for host in self.group(child)]
        return sorted({*entry.get("hosts", []), *children})

    def tls(self) -> ssl.SSLContext:
        if not self.authority.exists():
            raise Failure(f"there is no {self.authority.relative_to(ROOT)}: the site did not run")
        return ssl.create_default_context(cafile=str(self.authority))

    def connect(self, host: str) -> ssl.SSLSocket:
        """TLS to a balancer under the site's name; its certificate has to be the fleet's and valid for that name."""
        raw = socket.create_connection((self.address[host], 443), timeout=TIMEOUT)
        return self.tls().wrap_socket(raw, server_hostname=self.site)

    def request(
        self, host: str, method: str, path: str, body: bytes | None = None, status: int = 200
    ) -> tuple[bytes, dict[str, str]]:
        connection = http.client.HTTPSConnection(self.site, timeout=TIMEOUT)
        connection.sock = self.connect(host)
        try:
            connection.request(method, path, body=body, headers={"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        if response.status != status:
            raise Failure(f"{method} {path} through {host}: {response.status} {content[:120].decode(errors='replace')}")
        return content, {name.lower(): value for name, value in response.getheaders()}

    def ssh(self, host: str, command: str) -> str:
        options = {
            "UserKnownHostsFile": str(self.settings.known_hosts),
            "IdentityFile": str(self.settings.key),
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        result = subprocess.run(
            ["ssh", "-F", "none", *flags, f"{USER}@{self.address[host]}", command],
            capture_output=True,
            text=True,
            timeout=60,
        )
        if result.returncode != 0:
            raise Failure(f"{host}: {result.stderr.strip() or f'ended with {result.returncode}'}")
        return result.stdout.strip()

    def sql(self, host: str, query: str) -> str:
        return self.ssh(host, f'cd / && sudo -u postgres psql -XAtq -d demo -c "{query}"')


def https(fleet: Fleet, balancer: str) -> str:
    servers = set()
    for _ in range(12):
        _, headers = fleet.request(balancer, "GET", "/version")
        servers.add(headers.get("x-app-host", "?"))
    expected = set(fleet.group("app"))
    if servers != expected:
        raise Failure(f"12 requests reached {', '.join(sorted(servers))} and not all of {', '.join(sorted(expected))}")
    return f"{fleet.site}, certificate verified, answered by {', '.join(sorted(servers))}"


def ready(fleet: Fleet, balancer: str) -> str:
    content, _ = fleet.request(balancer, "GET", "/ready")
    status = json.loads(content)
    if status["status"] != "ready":
        raise Failure(f"the application is {status['status']}: {status}")
    return f"ready, with {' and '.join(sorted(status['dependencies']))}"


def redirect(fleet: Fleet, balancer: str) -> str:
    connection = http.client.HTTPConnection(fleet.address[balancer], 80, timeout=TIMEOUT)
    connection.request("GET", "/version?a=b", headers={"Host": fleet.site})
    response = connection.getresponse()
    connection.close()
    location = response.getheader("Location", "")
    if response.status != 301 or location != f"https://{fleet.site}/version?a=b":
        raise Failure(f"{response.status} {location}")
    return f"301 to https://{fleet.site}"


def read_exactly(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = stream.recv(size - len(data))
        if not chunk:
            raise Failure("the connection ended in the middle of a frame")
        data += chunk
    return data


def websocket(fleet: Fleet, balancer: str) -> str:
    """RFC 6455 by hand: an upgrade, one masked text frame, its echo."""
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    with fleet.connect(balancer) as stream:
        lines = [
            "GET /ws HTTP/1.1",
            f"Host: {fleet.site}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        stream.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += read_exactly(stream, 1)
        status, *headers = head.decode("latin-1").split("\r\n")
        if " 101 " not in f"{status} ":
            raise Failure(f"the upgrade was answered with {status}")
        accept = base64.b64encode(
            hashlib.sha1((key + WEBSOCKET_GUID).encode(), usedforsecurity=False).digest()
        ).decode()
        if not any(line.lower() == f"sec-websocket-accept: {accept}".lower() for line in headers):
            raise Failure("the upgrade was not accepted with our key")
        message, mask = f"hello {secrets.token_hex(4)}".encode(), secrets.token_bytes(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(message))
        stream.sendall(bytes([0x81, 0x80 | len(message)]) + mask + masked)
        kind, size = read_exactly(stream, 2)
        echo = read_exactly(stream, size & 0x7F)
        if kind != 0x81 or echo != message:
            raise Failure(f"sent {message!r}, got {echo!r}")
    return "upgraded, message echoed"


def row(fleet: Fleet) -> str:
    balancer, replica, primary = fleet.group("lb")[0], fleet.group("db_replica")[0], fleet.group("db_primary")[0]
    token = secrets.token_hex(8)
    body = json.dumps({"verdict": token}).encode()
    content, _ = fleet.request(balancer, "POST", "/items", body, status=201)
    number = int(json.loads(content)["id"])
    if fleet.sql(replica, "SELECT pg_is_in_recovery()") != "t":
        raise Failure(f"{replica} is no replica")
    deadline = time.monotonic() + TIMEOUT
    seen = ""
    while time.monotonic() < deadline:
        seen = fleet.sql(replica, f"SELECT body->>'verdict' FROM items WHERE id = {number:d}")  # noqa: S608
        if seen == token:
            break
        time.sleep(0.3)
    else:
        raise Failure(f"row {number} is not on {replica} after {TIMEOUT} s ({seen or 'nothing there'})")
    query = "SELECT DISTINCT host(client_addr) FROM pg_stat_activity WHERE usename = 'demo' AND client_addr IS NOT NULL"
    clients = set(fleet.sql(primary, query).split())
    poolers = {fleet.address[host] for host in fleet.group("pgbouncer")}
    if not clients or clients - poolers:
        raise Failure(f"{primary} has the application's sessions from {clients or 'nowhere'}, not from {poolers}")
    return f"row {number}: {balancer} > app > {', '.join(fleet.group('pgbouncer'))} > {primary} > {replica}"


def cache(fleet: Fleet) -> str:
    balancers = fleet.group("lb")
    key, value = secrets.token_hex(4), secrets.token_hex(16).encode()
    fleet.request(balancers[0], "PUT", f"/cache/{key}?ttl=60", value)
    content, _ = fleet.request(balancers[-1], "GET", f"/cache/{key}")
    if content != value:
        raise Failure(f"stored {value!r}, got {content!r}")
    return f"stored through {balancers[0]}, read through {balancers[-1]}"


def scraped(fleet: Fleet) -> str:
    monitor = fleet.group("monitoring")[0]
    deadline = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection(fleet.address[monitor], 9090, timeout=TIMEOUT)
        connection.request("GET", "/api/v1/targets?state=active")
        targets = json.loads(connection.getresponse().read())["data"]["activeTargets"]
        connection.close()
        down = [target for target in targets if target["health"] != "up"]
        jobs = sorted({target["labels"]["job"] for target in targets})
        nodes = [target for target in targets if target["labels"]["job"].startswith("node")]
        if len(nodes) >= len(fleet.address) and not down:
            return f"{len(targets)} targets up: {', '.join(jobs)}"
        if time.monotonic() > deadline:
            shown = "; ".join(f"{target['scrapeUrl']} {target['lastError']}" for target in down[:3])
            raise Failure(f"{len(targets)} targets ({', '.join(jobs)}), {len(down)} not up: {shown}")
        time.sleep(1)


def closed(fleet: Fleet) -> str:
    """What no flow allows must not be reachable."""
    doors = [("app", 8081), ("db_primary", 5432), ("pgbouncer", 6432), ("redis", 6379)]
    for group, port in doors:
        for host in fleet.group(group)[:1]:
            try:
                socket.create_connection((fleet.address[host], port), timeout=1).close()
            except OSError:
                continue
            raise Failure(f"{host}:{port} lets in whom no flow names")
    return ", ".join(f"{group}:{port}" for group, port in doors)


def check(name: str, run: Callable[[], str]) -> bool:
    started = time.monotonic()
    try:
        outcome, passed = run(), True
    except (Failure, OSError, http.client.HTTPException, ValueError, KeyError, IndexError) as error:
        outcome, passed = str(error) or type(error).__name__, False
    except subprocess.SubprocessError as error:
        outcome, passed = f"{type(error).__name__}: {error}", False
    mark = "ok    " if passed else "FAILED"
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        mark = f"\033[{32 if passed else 31}m{mark}\033[0m"
    print(f"  {mark}  {name:<24} {outcome}  ({time.monotonic() - started:.1f} s)", flush=True)
    return passed


def main() -> int:
    try:
        fleet = Fleet(settings())
    except (FleetError, OSError, subprocess.SubprocessError) as error:
        print(f"demo-verdict: {error}", file=sys.stderr)
        return 1
    print(f"\nVerdict on the fleet {fleet.settings.prefix} ({fleet.settings.subnet}), seen from this machine:\n")
    results = []
    for balancer in fleet.group("lb"):
        kind = fleet.data["_meta"]["hostvars"][balancer]["lb_type"]
        for name, probe in (("HTTPS", https), ("ready", ready), ("WebSocket", websocket), ("redirect", redirect)):
            results.append(check(f"{balancer} ({kind}) {name}", partial(probe, fleet, balancer)))
    for name, whole in (
        ("write to replica", row),
        ("value through Redis", cache),
        ("Prometheus scrapes", scraped),
        ("closed to outsiders", closed),
    ):
        results.append(check(name, partial(whole, fleet)))
    failed = results.count(False)
    balancer, monitor = fleet.group("lb")[0], fleet.group("monitoring")[0]
    print(f"\n{len(results) - failed} passed, {failed} failed\n")
    # The commands below have to reach this fleet, also when it is not the default one.
    chosen = [f"{name}={os.environ[name]}" for name in ("VMFLEET_PREFIX", "VMFLEET_SUBNET") if os.environ.get(name)]
    prefix = "".join(f"{setting} " for setting in chosen)
    print("Next:")
    if failed:
        print(f"  {prefix}make site ARGS=--diff     the site once more, showing what it changes")
        print(f"  {prefix}scripts/fleet status      what stands")
        print(f"  {prefix}scripts/fleet ssh HOST -- sudo journalctl -p warning -n 50")
        return 1
    print(f"  open http://{fleet.address[monitor]}:9090/targets")
    resolve = f"{fleet.site}:443:{fleet.address[balancer]}"
    print(f"  curl --cacert {os.path.relpath(fleet.authority)} --resolve {resolve} https://{fleet.site}/whoami")
    print(f"  {prefix}scripts/fleet ssh db1")
    print(f"  {prefix}make site                 the site again: nothing changes (ARGS='--check --diff --limit lb1')")
    print(f"  {prefix}make demo-down            take it all away")
    return 0


if __name__ == "__main__":
    sys.exit(main())
