"""Proves that a fleet has the smaller stack's end state, whichever tool made it."""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any

from fleet_hosts import Fleet

SITE = "bench.test"
CLIENTS = ("web1", "web2", "node1")
SERVICES = {"web1": "nginx", "web2": "haproxy", "cache": "redis-server", "db": "postgresql@17-main"}
PORTS = {"web": 443, "cache": 6379, "db": 5432}


@dataclass
class EndState:
    """What was found; nothing in problems means that the end state is reached."""

    problems: list[str] = field(default_factory=list)
    rules: dict[str, int] = field(default_factory=dict)


def _shell(container: Any, script: str, password: str = "") -> str:
    _code, output = container.exec_run(["sh", "-c", script], environment={"BENCH_PASSWORD": password})
    return str(output.decode(errors="replace")).strip()


def _kind(host: str) -> str:
    return host.rstrip("0123456789")


def wanted_rules(host: str, addresses: dict[str, str]) -> set[tuple[str, str]]:
    rules = {("22", "any")} | {("9100", addresses[client]) for client in CLIENTS}
    if _kind(host) == "web":
        rules |= {("80", "any"), ("443", "any")}
    elif _kind(host) in ("cache", "db"):
        rules |= {(str(PORTS[_kind(host)]), addresses[client]) for client in CLIENTS}
    return rules


def found_rules(lines: str) -> set[tuple[str, str]]:
    rules = set()
    for line in lines.splitlines():
        words = line.split()
        if words[:3] == ["###", "tuple", "###"] and words[3] == "allow":
            rules |= {(port, "any" if words[8] == "0.0.0.0/0" else words[8]) for port in words[5].split(",")}
    return rules


def _answer(address: str) -> str:
    """Status line and beginning of the site's answer through a balancer."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((address, 443), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=SITE) as secure,
    ):
        secure.sendall(f"GET / HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := secure.recv(65536):
            answer += chunk
    return answer.decode(errors="replace")


def check(fleet: Fleet, password: str) -> EndState:
    state = EndState()
    containers = fleet.containers()
    addresses = {
        host: fleet.settings.address(int(container.labels["vmfleet.number"])) for host, container in containers.items()
    }

    def expect(host: str, what: str, found: str, wanted: str) -> None:
        if not re.fullmatch(wanted, found):
            state.problems.append(f"{host}: {what}: {found[-200:]!r}, not {wanted!r}")

    for host, container in containers.items():
        units = ["ssh", "prometheus-node-exporter"]
        own = SERVICES.get(host) or SERVICES.get(_kind(host))
        for unit in [*units, own] if own else units:
            expect(
                host,
                unit,
                _shell(container, f"systemctl is-active {unit}; systemctl is-enabled {unit}"),
                r"active\n(enabled|enabled-runtime|indirect)",
            )
        expect(
            host,
            "ufw",
            _shell(container, "ufw status | head -1; grep ^DEFAULT_INPUT /etc/default/ufw"),
            r'Status: active\nDEFAULT_INPUT_POLICY="DROP"',
        )
        rules = found_rules(_shell(container, "grep -h '^### tuple' /etc/ufw/user.rules"))
        missing = wanted_rules(host, addresses) - rules
        if missing:
            state.problems.append(f"{host}: firewall rules missing: {sorted(missing)}")
        state.rules[host] = len(rules)
        expect(host, "sysctl", _shell(container, "sysctl -n net.ipv4.conf.all.accept_redirects"), "0")
        expect(host, "sshd", _shell(container, "sshd -T | grep ^passwordauthentication"), "passwordauthentication no")
        if _kind(host) == "cache":
            command = 'REDISCLI_AUTH="$BENCH_PASSWORD" redis-cli --no-auth-warning'
            expect(
                host,
                "redis",
                _shell(container, f"{command} ping; {command} config get maxmemory | tail -1", password),
                "PONG\n268435456",
            )
        if _kind(host) == "db":
            command = 'PGPASSWORD="$BENCH_PASSWORD" psql -XAt "host=127.0.0.1 user=bench dbname=bench sslmode=require"'
            expect(host, "postgresql", _shell(container, f"{command} -c 'show shared_buffers'", password), "256MB")
            expect(
                host,
                "scram",
                _shell(
                    container,
                    "runuser -u postgres -- psql -XAtc "
                    "\"select left(rolpassword, 13) from pg_authid where rolname = 'bench'\"",
                ),
                r"SCRAM-SHA-256",
            )
        if _kind(host) == "web":
            try:
                answer = _answer(addresses[host])
            except OSError as error:
                answer = f"no answer: {error}"
            if not re.match(r"HTTP/1\.[01] 200 ", answer) or "Node Exporter" not in answer:
                state.problems.append(f"{host}: the site answers {answer[:100]!r}")
    return state
