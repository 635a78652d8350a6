# Copyright: vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Drain, ready and weight of the servers of this host's balancer.

Both balancers are spoken to in the same terms: a setting for each backend and server, which is a state (``ready`` or
``drain``) and a weight in per cent of the declared one. The roles leave in the balancer's configuration which service a
backend serves and how its servers are asked whether they are ready.
"""

from __future__ import annotations

import contextlib
import difflib
import http.client
import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._host import CommandError, run

NGINX_DECLARED = "/etc/nginx/vmfleet/upstreams.conf"
NGINX_STATE = "/var/lib/vmfleet/lb_server.nginx"
NGINX_WRITER = "/usr/local/lib/vmfleet/nginx-servers"
HAPROXY_CONFIG = "/etc/haproxy/haproxy.cfg"
HAPROXY_SOCKET = "/run/haproxy/admin.sock"
HAPROXY_WRITER = "/usr/local/lib/vmfleet/haproxy-servers"
FULL = 100
POLL = 0.25
PROBE_TIMEOUT = 2.0

# Bits of srv_admin_state in "show servers state": https://docs.haproxy.org/3.0/management.html#9.3-show%20servers%20state
_FORCED_MAINTENANCE, _FORCED_DRAIN = 0x01, 0x08

_BLOCK = re.compile(r"(?:upstream|backend) (\S+)")
_TOLD = re.compile(r"\s+# vmfleet: (\{.*\})\s*\Z")
_NGINX_SERVER = re.compile(r"\s+server (\S+) .*; # (\S+)\s*\Z")
_HAPROXY_SERVER = re.compile(r"\s+server (\S+) (\S+) ")

Settings = dict[str, dict[str, Any]]


class LbServerError(RuntimeError):
    """What stands in the way, in words for an operator."""


@dataclass
class Backend:
    """A group of servers, as the balancer's configuration has it."""

    name: str
    service: str
    ready: Mapping[str, str]
    servers: dict[str, str] = field(default_factory=dict)


def parse_backends(text: str) -> list[Backend]:
    """Backends of a configuration that one of the roles has rendered, with their servers' addresses."""
    found: list[Backend] = []
    name = ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            block = _BLOCK.match(line)
            name = block[1] if block else ""
        elif name and (told := _TOLD.match(line)):
            about = json.loads(told[1])
            found.append(Backend(name, about["service"], about["ready"]))
        elif name and found and found[-1].name == name:
            if server := _NGINX_SERVER.match(line):
                found[-1].servers[server[2]] = server[1]
            elif server := _HAPROXY_SERVER.match(line):
                found[-1].servers[server[1]] = server[2]
    return found


def parse_haproxy_states(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Settings by backend and server from the answer to ``show servers state``, version 1."""
    found = {}
    for line in text.splitlines():
        values = line.split()
        if len(values) < 9 or line.startswith("#"):
            continue
        admin, now, configured = int(values[6]), int(values[7]), int(values[8])
        found[values[1], values[3]] = {
            "state": "drain" if admin & (_FORCED_MAINTENANCE | _FORCED_DRAIN) else "ready",
            "weight": round(FULL * now / configured) if configured else FULL,
        }
    return found


def parse_nginx_states(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Settings by upstream and server from the lines ``UPSTREAM SERVER STATE WEIGHT``."""
    lines = (line.split() for line in text.splitlines() if line.strip())
    return {(upstream, server): {"state": state, "weight": int(weight)} for upstream, server, state, weight in lines}


def choose(backends: Sequence[Backend], server: str, services: Sequence[str]) -> list[Backend]:
    """The backends of the services (all, without a name) that have the server.

    :raises LbServerError: for a name that the balancer does not know, with those that it knows.
    """
    known = sorted({backend.service for backend in backends})
    for name in services:
        if name not in known:
            raise LbServerError(_unknown("service", name, known))
    wanted = [backend for backend in backends if not services or backend.service in services]
    servers = sorted({name for backend in wanted for name in backend.servers})
    found = [backend for backend in wanted if server in backend.servers]
    missing = set(services) - {backend.service for backend in found}
    if not found or missing:
        where = f" in {', '.join(sorted(missing))}" if missing else ""
        raise LbServerError(_unknown(f"server{where}", server, servers))
    return found


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"the balancer knows no {kind} called {name!r}{hint} It knows: {', '.join(known) or 'none'}"


def desired(former: Settings, state: str | None, weight: int | None) -> Settings:
    """What the settings become; what is not asked for stays."""
    return {
        backend: {
            "state": state or setting["state"],
            "weight": setting["weight"] if weight is None else weight,
        }
        for backend, setting in former.items()
    }


class Nginx:
    """Servers are ``down`` or weighted in the file that the unit makes of the declared one before each reload."""

    name = "nginx"
    config = NGINX_DECLARED

    def states(self) -> dict[tuple[str, str], dict[str, Any]]:
        return parse_nginx_states(_read(NGINX_STATE))

    def apply(self, server: str, settings: Settings) -> None:
        """Writes the state, checks what comes of it, and reloads; after a failure all is as before."""
        before = _read(NGINX_STATE)
        states = self.states()
        known = {(one.name, name) for one in parse_backends(_read(self.config)) for name in one.servers}
        for backend, setting in settings.items():
            states[backend, server] = setting
        lines = [
            f"{upstream} {name} {one['state']} {one['weight']}\n"
            for (upstream, name), one in sorted(states.items())
            if (upstream, name) in known and one != {"state": "ready", "weight": FULL}
        ]
        _write(NGINX_STATE, "".join(lines))
        workers = self.workers()
        try:
            run([NGINX_WRITER], check="write the upstreams")
            run(["nginx", "-t", "-q"], check="check the configuration with it")
            run(["systemctl", "reload", "nginx"], check="reload nginx")
            # The signal is not answered: the new workers stand when there is one that was not there before.
            deadline = time.monotonic() + 15
            while not self.workers() - workers:
                if time.monotonic() > deadline:
                    raise LbServerError(
                        "nginx has started no new worker within 15 s after the reload; see its error log"
                    )
                time.sleep(0.05)
        except (CommandError, LbServerError):
            _write(NGINX_STATE, before)
            run([NGINX_WRITER])
            run(["systemctl", "reload", "nginx"])
            raise

    @staticmethod
    def workers() -> set[str]:
        """Processes that take new connections; those that only finish what they have do not count."""
        listed = run(["ps", "-C", "nginx", "-o", "pid=,args="]).stdout.splitlines()
        return {line.split()[0] for line in listed if "worker process" in line and "shutting down" not in line}

    def sessions(self, server: str, backends: Sequence[Backend]) -> int:
        """Connections to the server. The new workers open none, the old ones keep those with a request."""
        return len(_connections(self.name, {backend.servers[server] for backend in backends}))


class Haproxy:
    """Servers are set on the runtime socket; the unit hands the state on to the next process."""

    name = "haproxy"
    config = HAPROXY_CONFIG

    @staticmethod
    def ask(command: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(HAPROXY_SOCKET)
                client.sendall(f"{command}\n".encode())
                with client.makefile() as answer:
                    return answer.read().strip()
        except OSError as error:
            raise LbServerError(f"HAProxy does not answer on {HAPROXY_SOCKET}: {error}") from error

    def states(self) -> dict[tuple[str, str], dict[str, Any]]:
        return parse_haproxy_states(self.ask("show servers state"))

    def _set(self, server: str, settings: Settings) -> None:
        for backend, setting in settings.items():
            # In HAProxy's own drain a server still gets the requests of clients whose cookie names it.
            wanted = "maint" if setting["state"] == "drain" else "ready"
            for command in (
                f"set server {backend}/{server} weight {setting['weight']}%",
                f"set server {backend}/{server} state {wanted}",
            ):
                if answer := self.ask(command):
                    raise LbServerError(f"HAProxy refused `{command}`: {answer}")

    def apply(self, server: str, settings: Settings) -> None:
        """Sets all backends or none, and keeps the state for the next process."""
        before = {key[0]: one for key, one in self.states().items() if key[1] == server and key[0] in settings}
        try:
            self._set(server, settings)
            run([HAPROXY_WRITER, "save"], check="keep the servers' state")
        except (CommandError, LbServerError):
            with contextlib.suppress(LbServerError):
                self._set(server, before)
                run([HAPROXY_WRITER, "save"])
            raise

    def sessions(self, server: str, backends: Sequence[Backend]) -> int:
        """Sessions that the process in charge counts, and connections left with processes from before a reload."""
        names = {backend.name for backend in backends}
        lines = self.ask("show stat").splitlines()
        column = lines[0].lstrip("# ").split(",").index("scur")
        rows = [line.split(",") for line in lines[1:]]
        current = sum(int(row[column] or 0) for row in rows if row[0] in names and row[1] == server)
        pid = re.search(r"^Pid: (\d+)", self.ask("show info"), re.MULTILINE)
        old = _connections(self.name, {backend.servers[server] for backend in backends})
        return current + sum(1 for owner in old if not pid or owner != pid[1])


def active_balancer() -> Nginx | Haproxy:
    """The balancer that runs on this host.

    :raises LbServerError: if none does.
    """
    for balancer in (Nginx(), Haproxy()):
        if os.path.exists(balancer.config) and run(["systemctl", "is-active", "-q", balancer.name]).rc == 0:
            return balancer
    raise LbServerError("neither nginx nor haproxy of this collection runs on this host; apply its role first")


def change(
    server: str,
    services: Sequence[str],
    state: str | None,
    weight: int | None,
    former: Settings | None,
    least: int,
    timeout: float,
    check_mode: bool,
) -> dict[str, Any]:
    """Set the server on this host's balancer and say what was there before.

    :param former: settings by backend to put back, in place of ``state`` and ``weight``.
    :param least: servers of each backend that must stay ready.
    :param timeout: seconds within which a server that becomes ready must answer on its readiness path.
    :raises LbServerError: with nothing changed.
    :raises CommandError: with what a command said, and nothing changed.
    """
    balancer = active_balancer()
    backends = choose(parse_backends(_read(balancer.config)), server, services)
    states = balancer.states()
    usual = {"state": "ready", "weight": FULL}
    before: Settings = {one.name: states.get((one.name, server), usual) for one in backends}
    after = desired(before, state, weight) if former is None else {**before, **_known(former, before)}
    changed = {name: setting for name, setting in after.items() if setting != before[name]}
    if former is None:
        _refuse_last(backends, states, server, changed, least)
    if changed and not check_mode:
        if former is None:
            _await_readiness(backends, server, before, changed, timeout)
        balancer.apply(server, changed)
    return {"changed": bool(changed), "balancer": balancer.name, "former": before, "settings": after}


def _known(former: Settings, before: Settings) -> Settings:
    """A backend that has gone meanwhile needs nothing put back."""
    return {name: dict(former[name]) for name in before if name in former}


def _serves(setting: Mapping[str, Any]) -> bool:
    return bool(setting["state"] == "ready" and setting["weight"] > 0)


def _refuse_last(
    backends: Iterable[Backend],
    states: Mapping[tuple[str, str], Mapping[str, Any]],
    server: str,
    changed: Settings,
    least: int,
) -> None:
    for backend in backends:
        if backend.name not in changed or _serves(changed[backend.name]):
            continue
        usual = {"state": "ready", "weight": FULL}
        left = [one for one in backend.servers if one != server and _serves(states.get((backend.name, one), usual))]
        if len(left) < least:
            raise LbServerError(
                f"without {server} the service {backend.service} ({backend.name}) would have {len(left)} ready "
                f"servers, fewer than least={least}; make another one ready first, or set least: {len(left)}"
            )


def _await_readiness(
    backends: Iterable[Backend], server: str, before: Settings, changed: Settings, timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    asked: set[str] = set()
    for backend in backends:
        comes = backend.name in changed and _serves(changed[backend.name]) and not _serves(before[backend.name])
        endpoint = backend.servers[server]
        if not comes or endpoint in asked:
            continue
        asked.add(endpoint)
        while wrong := probe(endpoint, backend.ready):
            if time.monotonic() >= deadline:
                raise LbServerError(
                    f"{server} was not ready for {backend.service} within {timeout:g} s and stays drained: {wrong}"
                )
            time.sleep(POLL)


def probe(endpoint: str, ready: Mapping[str, str]) -> str:
    """What is wrong with a server that is asked on its readiness path, or only for a connection without one."""
    host, _colon, port = endpoint.rpartition(":")
    try:
        if not ready:
            socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT).close()
            return ""
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=PROBE_TIMEOUT)
        try:
            connection.request("GET", ready["path"], headers={"Host": ready["host"]})
            status = connection.getresponse().status
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        return f"{endpoint}: {error}"
    return "" if status == 200 else f"{endpoint}{ready['path']} answers {status}"


def await_end(server: str, services: Sequence[str], timeout: float) -> int:
    """Wait until no request is with the server any more; returns the sessions left after ``timeout`` seconds."""
    balancer = active_balancer()
    backends = choose(parse_backends(_read(balancer.config)), server, services)
    deadline = time.monotonic() + timeout
    while (left := balancer.sessions(server, backends)) and time.monotonic() < deadline:
        time.sleep(POLL)
    return left


def _connections(program: str, endpoints: set[str]) -> list[str]:
    """The process of each established connection of a program to one of the endpoints."""
    done = subprocess.run(
        ["ss", "-Htnp", "state", "established"], capture_output=True, text=True, check=False, timeout=30
    )
    if done.returncode != 0:
        raise LbServerError(f"ss cannot list the connections: {done.stderr.strip()}")
    return parse_connections(done.stdout, program, endpoints)


def parse_connections(text: str, program: str, endpoints: set[str]) -> list[str]:
    """Process ids from ``ss -Htnp state established``, whose fourth column is the peer."""
    wanted = {_bare(endpoint) for endpoint in endpoints}
    found = []
    for line in text.splitlines():
        values = line.split()
        owner = re.search(rf'\("{program}",pid=(\d+),', line)
        if owner and len(values) > 3 and _bare(values[3]) in wanted:
            found.append(owner[1])
    return found


def _bare(endpoint: str) -> str:
    return endpoint.replace("[", "").replace("]", "").replace("::ffff:", "")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        return ""


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(path), delete=False, encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
        os.fchmod(handle.fileno(), 0o644)
    os.replace(handle.name, path)
