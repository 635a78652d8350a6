# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks that speak a service's own language: PostgreSQL, PgBouncer, Redis, search, balancers, Prometheus."""

from __future__ import annotations

import csv
import io
import json
import re
import socket
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .model import CRIT, CannotTell, Check, CheckFailed, CheckType, Key, Seen, grade, matches
from .shared import Shared
from .types_net import TLS_KEYS, connect, fetch, wrap

# -- PostgreSQL ---------------------------------------------------------------------------------------------------

# The receiver calls itself streaming before it has asked for anything, and again each time that the primary refuses it.
# Until a message has come, both times are the one of its start; a message always comes, because it asks for WAL from
# the beginning of a segment on.
STREAMING = "pg_stat_wal_receiver WHERE status = 'streaming' AND last_msg_send_time <> last_msg_receipt_time"

# Each gives one number and words on it. Percentages of 2^31 transactions and of max_connections.
MEASURES = {
    "connections": """SELECT round(100.0 * count(*) / current_setting('max_connections')::int, 1),
        count(*) || ' of ' || current_setting('max_connections') || ' connections'
        FROM pg_stat_activity WHERE backend_type = 'client backend'""",
    "transaction_age": """SELECT
        coalesce(round(max(extract(epoch FROM clock_timestamp() - xact_start))::numeric, 1), 0),
        coalesce('oldest transaction: process ' || (array_agg(pid ORDER BY xact_start))[1], 'no open transaction')
        FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
        AND xact_start IS NOT NULL""",
    "wraparound": """SELECT round(max(100.0 * age(datfrozenxid) / 2147483648), 2),
        'oldest database: ' || (array_agg(datname ORDER BY age(datfrozenxid) DESC))[1] FROM pg_database""",
    "slots": """SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0),
        coalesce('inactive slots: ' || string_agg(slot_name, ', '), 'no inactive slot')
        FROM pg_replication_slots WHERE NOT active""",
    "replicas": """SELECT count(*), coalesce('streaming to ' || string_agg(application_name, ', '), 'streaming to none')
        FROM pg_stat_replication WHERE state = 'streaming'""",
    "replication_lag": f"""SELECT greatest(0, pg_wal_lsn_diff(latest_end_lsn, pg_last_wal_replay_lsn())),
        status || ', last word ' || round(extract(epoch FROM clock_timestamp() - last_msg_receipt_time)) || ' s ago'
        FROM {STREAMING}""",  # noqa: S608 - a constant
    "archiver": """SELECT CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') THEN 1 ELSE 0 END,
        archived_count || ' archived, ' || failed_count || ' failed' FROM pg_stat_archiver""",
    "settings": """SELECT count(*), coalesce(string_agg(problem, '; '), 'files and server agree') FROM (
        SELECT 'waits for a restart: ' || name FROM pg_settings WHERE pending_restart
        UNION ALL SELECT sourcefile || ' line ' || sourceline || ': ' || error FROM pg_file_settings
        WHERE error IS NOT NULL
        UNION ALL SELECT 'pg_hba.conf line ' || line_number || ': ' || error FROM pg_hba_file_rules
        WHERE error IS NOT NULL) AS found (problem)""",
}
UNITS = {"connections": " %", "transaction_age": " s", "wraparound": " %", "slots": " B", "replication_lag": " B"}
# What is wrong without any threshold.
DEFAULTS = {"archiver": {"ge": 1}, "settings": {"ge": 1}, "connections": 95, "wraparound": 50}
ROLE = f"""SELECT CASE WHEN pg_is_in_recovery() THEN 'replica' ELSE 'primary' END, current_setting('server_version'),
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
    (SELECT system_identifier FROM pg_control_system()),
    (SELECT count(*) FROM {STREAMING})"""  # noqa: S608 - a constant


def _rows(check: Check, shared: Shared, query: str, default_user: str | None = None) -> list[list[str]]:
    argv = [check["psql"], f"--port={check['port']}", f"--dbname={check['database']}"]
    argv += [f"--host={check['host']}"] if check["host"] else []
    argv += [f"--username={check['login'] or default_user}"] if check["login"] or default_user else []
    environment = {"PGPASSFILE": check["passfile"]} if check["passfile"] else {}
    if check["sslmode"]:
        environment["PGSSLMODE"] = check["sslmode"]
    if check["ca"]:
        environment["PGSSLROOTCERT"] = check["ca"]
    return shared.query(argv, check["user"], environment, query, check.timeout)


def postgresql(check: Check, shared: Shared) -> Seen:
    if check["query"]:
        return _judge_query(check, _rows(check, shared, check["query"]))
    if check["measure"] == "role":
        role, version, position, identifier, receivers = _rows(check, shared, ROLE)[0]
        if check["role"] and role != check["role"]:
            raise CheckFailed(f"it is the {role} and not the {check['role']}")
        data = {"role": role, "version": version, "lsn": position, "system": identifier, "receivers": int(receivers)}
        return Seen(f"{role}, version {version}", data=data)
    rows = _rows(check, shared, MEASURES[check["measure"]])
    if not rows:
        raise CheckFailed("no WAL receiver streams from the primary")
    if check.warn is None and check.crit is None:
        check.crit = DEFAULTS.get(check["measure"])
    return grade(check, float(rows[0][0]), UNITS.get(check["measure"], ""), rows[0][1])


def _judge_query(check: Check, rows: list[list[str]]) -> Seen:
    value: Any = rows[0][0] if rows else None
    if check["expect"] is not None and not matches(value, check["expect"]):
        raise CheckFailed(f"the query gave {str(value)[:200]!r}, wanted {check['expect']}")
    if check.warn is not None or check.crit is not None:
        try:
            return grade(check, float(value), "", f"the query gave {value}")
        except (TypeError, ValueError):
            raise CannotTell(f"the query gave {str(value)[:100]!r} and no number") from None
    return Seen(f"the query gave {str(value)[:100]}")


def _show(check: Check, shared: Shared, what: str, needed: str) -> list[dict[str, str]]:
    """What the pooler's console shows. The columns differ between versions, the first line of this form names them.

    :raises CannotTell: when the column ``needed`` is not among them.
    """
    rows = _rows(check, shared, f"\\t off\nSHOW {what};\n\\t on", "pgbouncer")
    header = rows[0] if rows else []
    if needed not in header:
        raise CannotTell(f"SHOW {what} gave no answer")
    return [dict(zip(header, row)) for row in rows[1:] if len(row) == len(header)]


def pgbouncer(check: Check, shared: Shared) -> Seen:
    if check["query"]:
        return _judge_query(check, _rows(check, shared, check["query"]))
    pools = _show(check, shared, "POOLS", "cl_waiting")
    databases = _show(check, shared, "DATABASES", "paused")
    held = [f"{row['name']} is {key}" for row in databases for key in ("paused", "disabled") if row.get(key) == "1"]
    if held:
        raise CheckFailed(f"{', '.join(held)} by its administrator")
    # It says itself only what came of the last try, and with no client at hand it does not try.
    for row in databases:
        for host in row.get("host", "").split(","):
            if host and not host.startswith("/"):
                connect(host, int(row["port"]), check.timeout / 2).close()
    waiting = sum(int(pool["cl_waiting"]) for pool in pools)
    longest = max((int(pool["maxwait"]) for pool in pools), default=0)
    words = f"{len(pools)} pools, {waiting} clients wait, the longest for {longest} s"
    if check.warn is None and check.crit is None:
        check.warn, check.crit = {"gt": 0}, {"gt": 5}
    return grade(check, longest, " s", words, data={"waiting": waiting})


# -- Redis --------------------------------------------------------------------------------------------------------


class Redis:
    """As much of RESP2 as the checks need."""

    def __init__(self, check: Check) -> None:
        raw: socket.socket = connect(check["host"], check["port"], check.timeout)
        raw.settimeout(check.timeout)
        self._socket = wrap(check, raw, check["server_name"] or check["host"]) if check["tls"] else raw
        self._file = self._socket.makefile("rb")

    def ask(self, *words: str) -> Any:
        """One command. An error of the server is returned as a RuntimeError, not raised."""
        parts = [word.encode() for word in words]
        try:
            self._socket.sendall(
                b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
            )
            return self._answer()
        except socket.timeout as error:
            raise CheckFailed("the server accepts connections but gives no answer") from error
        except (OSError, ValueError) as error:
            raise CheckFailed(f"the connection broke: {error}") from error

    def _answer(self) -> Any:
        line = self._file.readline()
        if not line:
            raise ValueError("closed by the server")
        kind, rest = line[:1], line[1:].rstrip().decode(errors="replace")
        if kind == b"-":
            return RuntimeError(rest)
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return None if rest == "-1" else self._file.read(int(rest) + 2)[:-2].decode(errors="replace")
        if kind == b"*":
            return [self._answer() for _number in range(max(0, int(rest)))]
        return rest

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def redis(check: Check, shared: Shared) -> Seen:
    client = Redis(check)
    try:
        if check["refuses_strangers"]:
            answer = client.ask("PING")
            if not (isinstance(answer, RuntimeError) and str(answer).startswith("NOAUTH")):
                raise CheckFailed(f"it lets in who has no password: {answer}")
        if check["password_file"]:
            try:
                with open(check["password_file"], encoding="utf-8") as handle:
                    password = handle.read().strip()
            except OSError as error:
                raise CannotTell(f"{check['password_file']}: {error.strerror}") from error
            answer = client.ask("AUTH", *([check["login"]] if check["login"] else []), password)
            if isinstance(answer, RuntimeError):
                raise CheckFailed(f"the password is refused: {str(answer).split()[0]}")
        if check["sentinel"]:
            answer = client.ask("SENTINEL", "CKQUORUM", check["sentinel"])
            if isinstance(answer, RuntimeError):
                raise CheckFailed(str(answer))
            return Seen(str(answer))
        answer = client.ask("PING")
        if answer != "PONG":
            raise CheckFailed(f"PING was answered with {answer}")
        text = client.ask("INFO")
    finally:
        client.close()
    if isinstance(text, RuntimeError):
        raise CheckFailed(str(text))
    info = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return _judge_redis(check, info)


def _judge_redis(check: Check, info: dict[str, str]) -> Seen:
    role = {"slave": "replica", "master": "primary"}.get(info.get("role", ""), info.get("role", "unknown"))
    if check["role"] and role != check["role"]:
        raise CheckFailed(f"it is the {role} and not the {check['role']}")
    if info.get("loading") == "1":
        raise CheckFailed("it is still loading its data")
    if role == "replica" and info.get("master_link_status") != "up":
        raise CheckFailed(f"the link to its primary is {info.get('master_link_status')}")
    for key in ("rdb_last_bgsave_status", "aof_last_write_status", "aof_last_bgrewrite_status"):
        if info.get(key, "ok") != "ok":
            raise CheckFailed(f"it cannot write to its disk: {key} is {info[key]}")
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    share = round(100 * used / limit, 1) if limit else 0.0
    words = f"{role}, version {info.get('redis_version')}, {used / 2**20:.0f} MiB"
    data = {"role": role, "version": info.get("redis_version", "")}
    return grade(check, share, " %", words + (f", {share} % of maxmemory" if limit else ""), data=data)


# -- search, balancers, Prometheus ----------------------------------------------------------------------------------


def _json(check: Check, url: str) -> Any:
    status, _headers, content, _phases = fetch(check, url)
    if status != 200:
        raise CheckFailed(f"{url}: status {status}: {content[:200].decode(errors='replace')}")
    try:
        return json.loads(content)
    except ValueError:
        raise CheckFailed(f"{url}: the answer is no JSON") from None


def search(check: Check, shared: Shared) -> Seen:
    health = _json(check, check["url"].rstrip("/") + "/_cluster/health")
    status, nodes = str(health.get("status")), int(health.get("number_of_nodes", 0))
    words = f"{health.get('cluster_name')} is {status}, {nodes} nodes"
    if status == "red" or status not in ("green", "yellow") or nodes < check["nodes"]:
        raise CheckFailed(f"{words}; wanted {check['nodes']} nodes")
    state = "warn" if status == "yellow" and not check["yellow_is_ok"] else "ok"
    return Seen(words, state, float(nodes), " nodes", data={"nodes": nodes, "status": status})


def _balance(check: Check, servers: dict[str, str]) -> Seen:
    down = sorted(name for name, state in servers.items() if not state.startswith(("UP", "no check", "DRAIN", "MAINT")))
    data = {"servers": servers}
    up: dict[str, int] = {}
    for name, state in servers.items():
        backend = name.partition("/")[0]
        up[backend] = up.get(backend, 0) + (state.startswith("UP") or state == "no check")
    words = f"{len(servers) - len(down)} of {len(servers)} servers up" + (f", not {', '.join(down)}" if down else "")
    if not servers and check["min_up"]:
        raise CheckFailed("it knows no server at all")
    empty = sorted(backend for backend, number in up.items() if number < check["min_up"])
    if empty:
        return Seen(f"{words}; fewer than {check['min_up']} in {', '.join(empty)}", CRIT, float(len(down)), data=data)
    return grade(check, len(down), " down", words, data=data)


def haproxy(check: Check, shared: Shared) -> Seen:
    """Servers by the runtime interface, ``show stat``."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(check.timeout)
        try:
            connection.connect(check["socket"])
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError as error:
            raise CheckFailed(f"{check['socket']}: {error.strerror or error}") from error
    rows = csv.DictReader(io.StringIO(text.lstrip("# ")))
    return _balance(check, {
        f"{row['pxname']}/{row['svname']}": row["status"]
        for row in rows
        if row.get("svname") not in ("FRONTEND", "BACKEND", None) and row.get("type") == "2"
    })  # fmt: skip


def nginx(check: Check, shared: Shared) -> Seen:
    """nginx itself keeps no state of its servers that can be asked for: they are tried from here, as it would."""
    try:
        with open(check["upstreams"], encoding="utf-8") as handle:
            text = handle.read()
    except OSError as error:
        raise CannotTell(f"{check['upstreams']}: {error.strerror}") from error
    servers: dict[str, str] = {}
    asked: dict[str, str] = {}
    for name, body in re.findall(r"^upstream\s+(\S+)\s*\{(.*?)^\}", text, re.MULTILINE | re.DOTALL):
        for endpoint, rest in re.findall(r"^\s*server\s+([^\s;]+)([^\n]*)", body, re.MULTILINE):
            label = rest.partition("#")[2].strip() or endpoint
            if f"{name}/{label}" in servers:
                continue  # the same one as its own backup
            if re.search(r"\bdown\b", rest.partition(";")[0]):
                servers[f"{name}/{label}"] = "MAINT"
                continue
            asked[f"{name}/{label}"] = endpoint
            servers[f"{name}/{label}"] = ""
    endpoints = sorted(set(asked.values()))
    if endpoints:
        # All at once: those that are cut off do not answer before the time is up.
        with ThreadPoolExecutor(min(32, len(endpoints))) as pool:
            state = dict(zip(endpoints, pool.map(lambda endpoint: _answers(endpoint, check.timeout / 2), endpoints)))
        servers.update((server, state[endpoint]) for server, endpoint in asked.items())
    return _balance(check, servers)


def _answers(endpoint: str, timeout: float) -> str:
    target = urllib.parse.urlsplit(f"//{endpoint}")
    try:
        connect(target.hostname or "", target.port or 80, timeout).close()
    except CheckFailed:
        return "DOWN"
    return "UP"


def prometheus(check: Check, shared: Shared) -> Seen:
    url = check["url"].rstrip("/")
    if check["query"]:
        found = _json(check, f"{url}/api/v1/query?{urllib.parse.urlencode({'query': check['query']})}")["data"]
        result = found["result"]
        value = result if found["resultType"] == "scalar" else (result[0]["value"] if result else None)
        if value is None:
            raise CheckFailed(f"{check['query']} gives no series")
        if check["expect"] is not None and not matches(float(value[1]), check["expect"]):
            raise CheckFailed(f"{check['query']} is {value[1]}, wanted {check['expect']}")
        return grade(check, float(value[1]), "", f"{check['query']} is {value[1]}")
    targets = _json(check, f"{url}/api/v1/targets?state=active")["data"]["activeTargets"]
    down = [target for target in targets if target["health"] != "up"]
    if len(targets) < check["min_targets"]:
        raise CheckFailed(f"{len(targets)} targets instead of at least {check['min_targets']}")
    words = f"{len(targets) - len(down)} of {len(targets)} targets up"
    if down:
        words += ": " + "; ".join(f"{one['scrapeUrl']} {one['lastError'] or one['health']}" for one in down[:3])
    if check.warn is None and check.crit is None:
        check.crit = {"ge": 1}
    return grade(check, len(down), " down", words)


PSQL_KEYS = {
    "psql": Key("str", "The client.", "/usr/bin/psql"),
    "host": Key("str", "Address, or the folder of the socket."),
    "port": Key("int", "The port.", 5432),
    "database": Key("str", "The database.", "postgres"),
    "login": Key("str", "The role to log in as."),
    "user": Key("str", "The account on this host that asks.", "postgres"),
    "passfile": Key("str", "A file of passwords, see PGPASSFILE; passwords are never part of a check."),
    "sslmode": Key("str", "As libpq takes it."),
    "ca": Key("str", "File of the authority to trust."),
    "query": Key("str", "A query; its first value is judged."),
    "expect": Key("any", "The value or matcher for it."),
}
HTTP_KEYS = {
    "method": Key("str", "The method.", "GET"),
    "headers": Key("dict", "Headers to send.", {}),
    "host_header": Key("str", "The name to ask for."),
    "body_sent": Key("str", "A body to send."),
    **TLS_KEYS,
}
TYPES = (
    CheckType("postgresql", postgresql, {
        **PSQL_KEYS,
        "measure": Key("str", "What to look at, without query.", "role", choices=("role", *MEASURES)),
        "role": Key("str", "What it must be, for measure role.", choices=("primary", "replica")),
    }, "A PostgreSQL server. Thresholds: what the query or measure gives.", target=("measure", "query")),
    CheckType("pgbouncer", pgbouncer, {
        **PSQL_KEYS,
        "host": Key("str", "Address, or the folder of the socket.", "/run/pgbouncer"),
        "port": Key("int", "The port.", 6432),
        "database": Key("str", "The database; its own console by default.", "pgbouncer"),
    }, "A pooler: a query through it, or its databases and their servers, and its waiting clients. Thresholds: the"
        " longest wait in seconds.", target=("database",)),
    CheckType("redis", redis, {
        "host": Key("str", "Address or name.", "127.0.0.1"),
        "port": Key("int", "The port.", 6379),
        "login": Key("str", "The user of its access lists."),
        "password_file": Key("str", "A file with the password."),
        "refuses_strangers": Key("bool", "Whether it must refuse who has no password.", False),
        "role": Key("str", "What it must be.", choices=("primary", "replica")),
        "sentinel": Key("str", "Ask a Sentinel for the quorum of this name instead."),
        "tls": Key("bool", "Whether it speaks TLS.", False),
        "server_name": Key("str", "The name to be verified."),
        **TLS_KEYS,
    }, "Answer, role, link to the primary, persistence. Thresholds: memory in per cent of maxmemory.",
        target=("host", "port")),
    CheckType("search", search, {
        "url": Key("str", "Base of the REST interface.", required=True),
        "nodes": Key("int", "Nodes that must be there.", 1),
        "yellow_is_ok": Key("bool", "Whether missing replicas are no warning.", False),
        **HTTP_KEYS,
    }, "OpenSearch or Elasticsearch.", target=("url",)),
    CheckType("haproxy", haproxy, {
        "socket": Key("str", "The runtime socket.", "/run/haproxy/admin.sock"),
        "min_up": Key("int", "Servers that must be up in each backend.", 1),
    }, "Servers as HAProxy sees them. Thresholds: servers down.", target=("socket",), settles=True),
    CheckType("nginx", nginx, {
        "upstreams": Key("str", "The file with the upstream blocks.", "/etc/nginx/vmfleet/live.conf"),
        "min_up": Key("int", "Servers that must answer in each upstream.", 1),
    }, "Servers of nginx's upstreams, tried one by one. Thresholds: servers down.", target=("upstreams",),
        settles=True),
    CheckType("prometheus", prometheus, {
        "url": Key("str", "Base of its interface.", required=True),
        "min_targets": Key("int", "Targets that there must be.", 1),
        "query": Key("str", "A query instead of the targets."),
        "expect": Key("any", "The value or matcher for it."),
        **HTTP_KEYS,
    }, "Targets, or a query. Thresholds: targets down, or what the query gives.", target=("url", "query")),
)  # fmt: skip
