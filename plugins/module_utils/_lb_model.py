# Copyright: vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The routing model of the load balancers: inventory in, one resolved description out.

nginx and HAProxy render what `build_model` returns and decide nothing themselves, so that both behave alike.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._preflight import Problem, shown, unknown

ROUTE_DEFAULTS: dict[str, Any] = {
    "balance": "least_conn",
    "body_max": "10m",
    "buffer_size": "4k",
    "buffering": True,
    "burst": 0,
    "cache": 0,
    "connections": 0,
    "gzip": False,
    "rate": "",
    "strip_prefix": False,
    "timeout_connect": 5,
    "timeout_send": 60,
    "timeout_read": 60,
    "websocket": False,
}
FAILOVER_DEFAULTS: dict[str, Any] = {
    "check_fall": 3,
    "check_interval": 2,
    "check_rise": 2,
    "fail_timeout": 5,
    "keepalive": 32,
    "max_fails": 3,
    "tries": 3,
    "tries_timeout": 10,
    "websocket_timeout": 3600,
}
# What the balancer does beside the routes.
GENERAL_DEFAULTS: dict[str, Any] = {"acme": "", "acme_port": 8402, "exempt": []}
# The group of the hosts that answer for the same names.
BALANCERS = "lb"
HEADER_DEFAULTS: dict[str, str] = {
    "Referrer-Policy": "strict-origin-when-cross-origin",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
CIPHER_DEFAULTS: tuple[str, ...] = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)
# OpenSSL drops a name that it does not know without a word as long as another one of the list is left.
KNOWN_CIPHERS = frozenset(CIPHER_DEFAULTS) | {
    "DHE-RSA-AES128-GCM-SHA256",
    "DHE-RSA-AES256-GCM-SHA384",
    "DHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-CCM",
    "ECDHE-ECDSA-AES256-CCM",
}
STICKY = ("cookie", "hash", "ip_hash")
BALANCES = (*STICKY, "least_conn", "round_robin")
SERVICE_PATHS = ("health", "ready")
# A service may say for itself how HAProxy asks its servers; lb_defaults hold for the others.
CHECK_TIMES = ("check_interval", "check_fall", "check_rise")
# How a balancer finds a broken server, which the other one does not look at.
FINDS_BY = {"haproxy": CHECK_TIMES, "nginx": ("fail_timeout", "max_fails")}
NAMES = {"haproxy": "HAProxy", "nginx": "nginx"}
TIMEOUTS = ("timeout_connect", "timeout_send", "timeout_read")
COUNTS = ("burst", "cache", "connections")
# Largest values that both balancers take: HAProxy keeps times in 31 bits of ms, nginx counts connections in 16 bits.
MOST = 2147483
LIMITS = {"acme_port": 65535, "connections": 65535}
SWITCHES = ("buffering", "gzip", "strip_prefix", "websocket")
# Bytes from which on texts are compressed.
GZIP_MIN = 1024
# HAProxy reads and writes through buffers of this size.
BUFFER_MAX = 16 * 1024
OWN_HEALTH = "/lb-health"
HEALTH_TIMEOUT = 2
# Sources of a certificate that is named after its site.
OWN_CERTIFICATES = ("acme", "fleet")
# Files of the certificate directory that belong to no site.
TAKEN_NAMES = ("ca", "host")

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\Z")
_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+\Z|/\Z")
_SIZE = re.compile(r"(\d+)([kmg]?)\Z")
_SLUG = re.compile(r"[^A-Za-z0-9]+")
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]+\Z")
# Both configuration languages give these characters a meaning of their own inside a quoted value.
_HEADER_VALUE = re.compile(r"[^\x00-\x1f\x7f\"\\$]*\Z")
# No name: a balancer whose names do not resolve does not start.
_ENDPOINT = re.compile(r"(\d+(\.\d+){3}|\[[0-9a-f:]+\]):[1-9]\d{0,4}\Z")
_RATE = re.compile(r"([1-9]\d{0,5})/([sm])\Z")
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?\Z")
_FOLDER = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+/?\Z")
_SITE_KEYS = frozenset({"name", "hosts", "certificate", "cors", "health", "routes"})
_FILE_KEYS = frozenset({"path", "root", "spa", "immutable", "rate", "burst", "connections", "gzip"})
_ROUTE_KEYS = frozenset({"path", "service"}) | _FILE_KEYS | frozenset(ROUTE_DEFAULTS)
_DEFAULT_KEYS = frozenset(ROUTE_DEFAULTS) | frozenset(FAILOVER_DEFAULTS) | frozenset(GENERAL_DEFAULTS)


class ModelError(ValueError):
    """Everything that is wrong with the model."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(" | ".join(str(problem) for problem in problems))
        self.problems = list(problems)


def check_number(variable: str, value: Any, least: int) -> list[Problem]:
    """A whole number that both balancers take for what the last part of the variable's name says."""
    most = LIMITS.get(variable.rpartition(".")[2], MOST)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        return [Problem(variable, shown(value), "is out of range", f"give a whole number from {least} to {most}")]
    return []


class _Builder:
    def __init__(
        self,
        services: Mapping[str, Any],
        groups: Mapping[str, Sequence[str]],
        hostvars: Mapping[str, Any],
        defaults: Mapping[str, Any],
        balancer: str,
    ) -> None:
        self.balancer = balancer
        self.services = services
        self.groups = groups
        self.hostvars = hostvars
        self.problems: list[Problem] = []
        self.route_defaults = {**ROUTE_DEFAULTS, **{k: v for k, v in defaults.items() if k in ROUTE_DEFAULTS}}
        self.failover = {**FAILOVER_DEFAULTS, **{k: v for k, v in defaults.items() if k in FAILOVER_DEFAULTS}}
        self.members: dict[str, list[dict[str, Any]]] = {}
        self.upstreams: dict[str, dict[str, Any]] = {}
        self.backends: list[dict[str, Any]] = []
        self.ids: set[str] = set()
        self.unknown_keys("lb_defaults", defaults, _DEFAULT_KEYS)
        for key in self.unread(defaults):
            self.bad(f"lb_defaults.{key}", defaults[key], *self.said_elsewhere("defaults"))
        self.acme = str(defaults.get("acme") or "")
        if self.acme and not _ENDPOINT.match(self.acme):
            self.bad("lb_defaults.acme", self.acme, "is no IP address with a port", "give one such as 127.0.0.1:8402")
        self.acme_port = self.number(
            "lb_defaults.acme_port", defaults.get("acme_port", GENERAL_DEFAULTS["acme_port"]), least=1
        )
        self.exempt = self.networks("lb_defaults.exempt", defaults.get("exempt") or [])
        self.plain_settings = {
            **{key: self.route_defaults[key] for key in ("balance", "buffering", "cache", "gzip", *TIMEOUTS)},
            "buffer_size": self.buffer("lb_defaults.buffer_size", self.route_defaults["buffer_size"]),
            "limit": None,
            "body_max": self.size("lb_defaults.body_max", self.route_defaults["body_max"]),
            "rewrite": "",
            "websocket": False,
            "log": True,
        }
        for key in sorted(FAILOVER_DEFAULTS):
            self.number(f"lb_defaults.{key}", self.failover[key], least=1)
        for key in sorted(set(defaults) & {*COUNTS, "rate", *TIMEOUTS}):
            self.checked("lb_defaults", key, defaults[key])

    def bad(self, variable: str, value: Any, problem: str, remedy: str) -> None:
        self.problems.append(Problem(variable, "" if value is None else shown(value), problem, remedy))

    def unknown_keys(self, variable: str, given: Mapping[str, Any], known: frozenset[str]) -> None:
        for key in sorted(set(given) - known):
            self.bad(f"{variable}.{key}", given[key], "is unknown", unknown(key, known))

    def entries(self, variable: str, given: Any, example: str) -> list[tuple[str, Mapping[str, Any]]]:
        """A list of mappings, each with its place."""
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            self.bad(variable, given, "is no list with entries", f"give at least one, such as {example}")
            return []
        found = []
        for index, entry in enumerate(given):
            if isinstance(entry, Mapping):
                found.append((f"{variable}[{index}]", entry))
            else:
                self.bad(f"{variable}[{index}]", entry, "is no mapping", f"give {example}")
        return found

    def unread(self, given: Mapping[str, Any]) -> list[str]:
        """Keys by which only the other balancer finds broken servers."""
        if self.balancer not in FINDS_BY:
            return []
        return sorted(
            key for other, keys in FINDS_BY.items() for key in keys if other != self.balancer and key in given
        )

    def said_elsewhere(self, what: str) -> tuple[str, str]:
        """Problem and remedy of such a key, which the other balancer's role takes in a variable of its own."""
        (other,) = set(FINDS_BY) - {self.balancer}
        how = f"{NAMES[self.balancer]} finds broken servers by {', '.join(FINDS_BY[self.balancer])}"
        return f"is for {NAMES[other]} only; {how}", f"remove it, or give it in {other}_{what}"

    def number(self, variable: str, value: Any, least: int) -> int:
        problems = check_number(variable, value, least)
        self.problems += problems
        return least if problems else int(value)

    def size(self, variable: str, value: Any) -> int:
        found = _SIZE.match(str(value).lower())
        if not found or isinstance(value, bool):
            self.bad(variable, value, "is no size", "give 512k, 10m or 1g; 0 means no limit")
            return 0
        return int(found[1]) * {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}[found[2]]

    def checked(self, where: str, key: str, value: Any) -> Any:
        if key == "rate":
            return self.rate(f"{where}.rate", value)
        return self.number(f"{where}.{key}", value, least=0 if key in COUNTS else 1)

    def rate(self, variable: str, value: Any) -> int:
        """Milliseconds between two requests of a client at the given rate; 0 without a limit."""
        if value in ("", None):
            return 0
        found = _RATE.match(str(value))
        if not found:
            self.bad(variable, value, "is no rate", "give 10/s or 5/m; an empty value means no limit")
            return 0
        return {"s": 1000, "m": 60000}[found[2]] // int(found[1]) or 1

    def buffer(self, variable: str, value: Any) -> int:
        size = self.size(variable, value)
        if not 1024 <= size <= BUFFER_MAX:
            self.bad(variable, value, "is out of range", "give 1k to 16k")
        return size

    def networks(self, variable: str, given: Any) -> list[str]:
        if isinstance(given, str) or not isinstance(given, Sequence):
            self.bad(variable, given, "is no list", "give networks such as 10.0.0.0/8")
            return []
        found = []
        for value in given:
            try:
                found.append(str(ipaddress.ip_network(str(value))))
            except ValueError:
                self.bad(variable, value, "is no network", "give an address, or a network such as 10.0.0.0/8")
        return found

    def service_members(self, variable: str, name: Any) -> list[dict[str, Any]] | None:
        """The hosts behind a service; an empty group is an empty list (503), an unusable service is None."""
        if name in self.members:
            return self.members[name]
        service = self.services.get(name)
        if not isinstance(service, Mapping):
            self.bad(variable, name, "is no service", unknown(name, self.services))
            return None
        where = f"vmfleet_services.{name}"
        group, port = service.get("group"), service.get("port")
        before = len(self.problems)
        if group not in self.groups:
            self.bad(f"{where}.group", group, "is no group of the inventory", "declare it; it may be empty")
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            self.bad(f"{where}.port", port, "is no port", "give a number from 1 to 65535")
        for key in SERVICE_PATHS:
            if service.get(key) is not None and not _PATH.match(str(service[key])):
                self.bad(f"{where}.{key}", service[key], "is no plain path", "begin it with /")
        for key in sorted(set(CHECK_TIMES) & set(service)):
            self.number(f"{where}.{key}", service[key], least=1)
        for key in self.unread(service):
            problem, remedy = self.said_elsewhere("services")
            self.bad(variable, name, f"has {key}, which {problem}", remedy)
        if len(self.problems) > before:
            return None
        self.members[name] = [
            {"name": host, "endpoint": _endpoint(_address(host, self.hostvars.get(host) or {}), int(str(port)))}
            for host in self.groups[str(group)]
        ]
        return self.members[name]

    def route(self, where: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
        self.unknown_keys(where, given, _ROUTE_KEYS)
        path = str(given.get("path"))
        if not (path == "/" or _PATH.match(path.rstrip("/"))):
            self.bad(f"{where}.path", given.get("path"), "is no plain path", "begin it with /, no segment with a dot")
            return None
        if path.rstrip("/") == OWN_HEALTH:
            self.bad(f"{where}.path", path, "is answered by the balancer itself", "choose another path")
            return None
        if "root" in given:
            return self.files(where, given, path.rstrip("/") or "/")
        for key in sorted({"spa", "immutable"} & set(given)):
            self.bad(f"{where}.{key}", given[key], "is for files only", "give root, or remove it")
        members = self.service_members(f"{where}.service", given.get("service"))
        chosen = {**self.route_defaults, **given}
        if chosen["websocket"]:
            for key in ("timeout_send", "timeout_read"):
                chosen[key] = given.get(key, self.failover["websocket_timeout"])
        if chosen["balance"] not in BALANCES:
            self.bad(
                f"{where}.balance", chosen["balance"], "is no way to balance", unknown(chosen["balance"], BALANCES)
            )
        switches = {key: self.switch(f"{where}.{key}", chosen[key]) for key in SWITCHES}
        limit = self.limit(where, given)
        if members is None:
            return None
        return {
            "path": path.rstrip("/") or "/",
            "exact": False,
            "service": str(given["service"]),
            "members": members,
            "balance": str(chosen["balance"]),
            "rewrite": "strip" if switches["strip_prefix"] and path != "/" else "",
            "websocket": switches["websocket"],
            "buffering": switches["buffering"],
            "gzip": switches["gzip"],
            "body_max": self.size(f"{where}.body_max", chosen["body_max"]),
            "buffer_size": self.buffer(f"{where}.buffer_size", chosen["buffer_size"]),
            "cache": self.number(f"{where}.cache", chosen["cache"], least=0),
            "limit": limit,
            "log": True,
            **{key: self.number(f"{where}.{key}", chosen[key], least=1) for key in TIMEOUTS},
        }

    def switch(self, variable: str, value: Any) -> bool:
        if not isinstance(value, bool):
            self.bad(variable, value, "is neither true nor false", "give one of them")
        return bool(value)

    def limit(self, where: str, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """What one client may do on this route.

        A client may send `burst` requests more than its rate allows, and the debt is paid off at the rate: the first
        1 + burst of simultaneous requests pass, then one every `interval` ms.
        """
        chosen = {**self.route_defaults, **given}
        interval = self.rate(f"{where}.rate", chosen["rate"])
        burst, connections = (self.number(f"{where}.{key}", chosen[key], least=0) for key in ("burst", "connections"))
        if burst and not interval:
            self.bad(f"{where}.burst", burst, "goes with a rate", "give rate, such as 10/s")
        if interval * (burst + 1) > 1000 * MOST:
            problem = f"takes more than {MOST} s to pay off at {chosen['rate']}"
            self.bad(f"{where}.burst", burst, problem, f"give at most {1000 * MOST // interval - 1}")
        if not interval and not connections:
            return None
        # nginx counts in r/s and r/m.
        rate = str(chosen["rate"]).replace("/", "r/")
        return {"rate": rate, "interval": interval, "burst": burst, "connections": connections}

    def files(self, where: str, given: Mapping[str, Any], path: str) -> dict[str, Any]:
        root = str(given["root"])
        if self.balancer == "haproxy":
            self.bad(f"{where}.root", root, "cannot be served by HAProxy", "set lb_type: nginx, or route to a service")
        if not _FOLDER.match(root):
            self.bad(f"{where}.root", root, "is no plain absolute path", "give one such as /srv/www/app")
        for key in sorted(set(given) & _ROUTE_KEYS - _FILE_KEYS):
            self.bad(f"{where}.{key}", given[key], "does not go with root", "remove one of them")
        return {
            "path": path,
            "exact": False,
            "rewrite": "",
            "root": root.rstrip("/"),
            "spa": self.switch(f"{where}.spa", given.get("spa", False)),
            "immutable": self.switch(f"{where}.immutable", given.get("immutable", False)),
            "gzip": self.switch(f"{where}.gzip", given.get("gzip", self.route_defaults["gzip"])),
            "limit": self.limit(where, given),
        }

    def health_route(self, where: str, name: Any, routes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """`/health` of a site asks the service behind it, so that it tells whether the site works at all."""
        if not routes or any(route["path"] == "/health" for route in routes):
            return []
        served = [route for route in routes if "service" in route]
        name = name or next(
            (route["service"] for route in sorted(served, key=lambda route: route["path"] != "/")), None
        )
        if name is None:
            return []
        members = self.service_members(f"{where}.health", name)
        path = str(self.services[name].get("health") or "") if members is not None else ""
        if not path:
            return []
        return [
            {
                "path": "/health",
                "exact": True,
                "service": str(name),
                "members": members,
                # Whoever asks for it, the answer is the service's, not that of the one server that a client stays on.
                "balance": "least_conn" if self.route_defaults["balance"] in STICKY else self.route_defaults["balance"],
                "rewrite": "" if path == "/health" else path,
                "websocket": False,
                "body_max": 1024,
                "buffer_size": self.plain_settings["buffer_size"],
                "buffering": True,
                "cache": 0,
                "gzip": False,
                "limit": None,
                "log": False,
                **dict.fromkeys(TIMEOUTS, HEALTH_TIMEOUT),
            }
        ]

    def hosts(self, where: str, given: Any) -> list[str]:
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            self.bad(where, given, "is no list with entries", "give the host names that the site answers to")
            return []
        found = [str(host).lower() for host in given]
        for host in found:
            if not _HOST.match(host):
                self.bad(where, host, "is no host name", "give it without scheme, port or wildcard")
        return found

    def origins(self, where: str, given: Any) -> list[str]:
        if isinstance(given, str) or not isinstance(given, Sequence):
            self.bad(where, given, "is no list", "give origins such as https://www.example.com")
            return []
        for origin in given:
            if not _ORIGIN.match(str(origin)):
                self.bad(
                    where, origin, "is no origin", "give scheme, name and port in small letters, without a path or *"
                )
        return [str(origin) for origin in given]

    def site(self, where: str, given: Mapping[str, Any]) -> dict[str, Any]:
        self.unknown_keys(where, given, _SITE_KEYS)
        name = str(given.get("name"))
        if not _NAME.match(name) or name in TAKEN_NAMES:
            self.bad(f"{where}.name", given.get("name"), "is no name for a site", "use small letters, digits, - and _")
        certificate = str(given.get("certificate", "host"))
        if not _NAME.match(certificate):
            self.bad(
                f"{where}.certificate", certificate, "is no name of a certificate", "give acme, fleet, host or a name"
            )
        hosts = self.hosts(f"{where}.hosts", given.get("hosts"))
        routes: list[dict[str, Any]] = []
        for here, entry in self.entries(f"{where}.routes", given.get("routes"), "{path: /, service: api}"):
            route = self.route(here, entry)
            if route and any(route["path"] == other["path"] for other in routes):
                self.bad(f"{here}.path", entry["path"], "is routed twice in this site", "remove one")
            elif route:
                routes.append(route)
        # The longest path comes first: HAProxy takes the first match, nginx the longest.
        ordered = [
            *self.health_route(where, given.get("health"), routes),
            *sorted(routes, key=lambda route: (-len(route["path"]), route["path"])),
        ]
        for route in sorted(ordered, key=lambda route: (route["exact"], len(route["path"]), route["path"])):
            self.attach(route, name, hosts[0] if hosts else "")
        return {
            "name": name,
            "hosts": hosts,
            "cors": self.origins(f"{where}.cors", given.get("cors") or []),
            "certificate": name if certificate in OWN_CERTIFICATES else certificate,
            "routes": ordered,
        }

    def challenges(self, sites: Sequence[Mapping[str, Any]]) -> list[str]:
        """Who may have the answer to an ACME challenge: what the inventory says, else every balancer's certbot.

        Whichever balancer the authority asks has to find the one that asked for the certificate.
        """
        if self.acme:
            return [self.acme]
        if not any(site.get("certificate") == "acme" for site in sites):
            return []
        return [
            _endpoint(_address(host, self.hostvars.get(host) or {}), self.acme_port)
            for host in self.groups.get(BALANCERS, ())
        ]

    @staticmethod
    def unique(name: str, taken: set[str]) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    def upstream(self, shared: Mapping[str, Any], balance: str) -> str:
        """The name of a service's upstream with this balance, which is made if there is none yet."""
        service = str(shared["service"])
        name = service if balance == self.route_defaults["balance"] else f"{service}_{balance}"
        self.upstreams.setdefault(name, {"name": name, **shared, "balance": balance})
        return name

    def attach(self, route: dict[str, Any], site: str, host: str) -> None:
        """Give a route its nginx upstream and its HAProxy backend.

        An upstream is there once for each service and balance. A backend is there once for each service and set of
        settings, which HAProxy keeps in the backend; a server is asked for its health in the first one of its service.
        """
        route["id"] = self.unique(f"{site}_{_SLUG.sub('_', route['path']).strip('_') or 'root'}", self.ids)
        if "root" in route:
            return
        service, balance, path = route["service"], route["balance"], route["path"]
        said = self.services[service]
        ready = said.get("ready") or said.get("health")
        check = {"path": str(ready), "host": host} if ready else {}
        shared = {"service": service, "balance": balance, "members": route.pop("members"), "check": check}
        route["upstream"] = self.upstream(shared, balance)
        # Where nginx sends what it has no server left for: an upstream that keeps clients on one takes no backup.
        sticky = balance in STICKY and len(shared["members"]) > 1
        route["resort"] = self.upstream(shared, "least_conn") if sticky else ""
        own = ("id", "path", "exact", "upstream", "resort")
        settings = {key: value for key, value in route.items() if key not in own}
        if route["rewrite"] == "strip":
            settings["strip"] = path
        if route["limit"]:
            # Clients are counted for each route.
            settings["limit"] = {**route["limit"], "id": route["id"]}
        for backend in self.backends:
            if backend["settings"] == settings:
                route["backend"] = backend["name"]
                return
        plain = all(settings.get(key) == value for key, value in self.plain_settings.items())
        name = service if plain else self.unique(route["id"], set(self.services))
        route["backend"] = name
        self.backends.append(
            {
                "name": name,
                "settings": settings,
                **shared,
                "check_times": {key: said.get(key, self.failover[key]) for key in CHECK_TIMES},
                "track": next((other["name"] for other in self.backends if other["service"] == service), ""),
            }
        )


def build_model(
    sites: Sequence[Mapping[str, Any]],
    services: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
    hostvars: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    ciphers: Sequence[str] | None = None,
    balancer: str = "",
) -> dict[str, Any]:
    """Resolve the routing model, or raise ModelError with all that is wrong with it.

    :param balancer: nginx or haproxy, to refuse what it cannot do; nothing is refused without.
    """
    builder = _Builder(services, groups, hostvars, defaults or {}, balancer)
    found = builder.entries("lb_sites", sites, "{name: api, hosts: [api.example.com], routes: [...]}") if sites else []
    built = [builder.site(where, site) for where, site in found]
    _refuse_overlaps(built, builder)
    chosen_headers = {**HEADER_DEFAULTS, **(headers or {})}
    for name, value in chosen_headers.items():
        if not _HEADER_NAME.match(str(name)) or not _HEADER_VALUE.match(str(value)):
            builder.bad(f"lb_headers.{name}", value, "cannot be a header", 'leave out ", \\, $ and control characters')
    chosen_ciphers = list(ciphers or CIPHER_DEFAULTS)
    for cipher in chosen_ciphers:
        if cipher not in KNOWN_CIPHERS:
            builder.bad("lb_tls_ciphers", cipher, "is no AEAD cipher of TLS 1.2", unknown(cipher, KNOWN_CIPHERS))
    if builder.problems:
        raise ModelError(builder.problems)
    return {
        "sites": built,
        "hosts": [host for site in built for host in site["hosts"]],
        "upstreams": list(builder.upstreams.values()),
        "backends": builder.backends,
        "failover": builder.failover,
        "acme": builder.challenges([site for _where, site in found]),
        "exempt": builder.exempt,
        "headers": {name: str(chosen_headers[name]) for name in sorted(chosen_headers) if chosen_headers[name]},
        "hidden_headers": sorted(chosen_headers),
        "ciphers": chosen_ciphers,
        "gzip_min": GZIP_MIN,
    }


def _refuse_overlaps(sites: Sequence[Mapping[str, Any]], builder: _Builder) -> None:
    names: set[str] = set()
    owners: dict[str, str] = {}
    for index, site in enumerate(sites):
        if site["name"] in names:
            builder.bad(f"lb_sites[{index}].name", site["name"], "is the name of two sites", "rename one")
        names.add(site["name"])
        for host in site["hosts"]:
            if host in owners:
                builder.bad(
                    f"lb_sites[{index}].hosts", host, f"site {owners[host]} answers to it already", "remove one"
                )
            owners.setdefault(host, site["name"])


def _address(host: str, variables: Mapping[str, Any]) -> str:
    for key in ("vmfleet_address", "ansible_host"):
        if variables.get(key):
            return str(variables[key])
    return host


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
