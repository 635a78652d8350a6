# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What must hold between hosts: rules of the inventory's model that no single host's spec can express.

Pure functions over plain data. Each returns problems and touches nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._lb_model import (
    CHECK_TIMES,
    ModelError,
    build_model,
    check_number,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._preflight import Problem, shown, unknown

LB_TYPES = ("nginx", "haproxy")
# Flows that are not named after a role.
GENERAL_FLOWS = frozenset({"ssh", "http", "https", "app", "prometheus", "monitoring"})
SERVICE_KEYS = frozenset({"group", "port", "health", "ready", "metrics", *CHECK_TIMES})
# Connections that come past the poolers, unless vmfleet_direct_connections says otherwise: exporter, backup, health
# checks, operators. Replicas take none of max_connections.
DIRECT_CONNECTIONS = 20
# Groups of servers that decide by majority.
QUORUM_GROUPS = ("elasticsearch", "etcd", "opensearch", "sentinel")
_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]*$")

Groups = Mapping[str, Sequence[str]]


def _is_network(value: str) -> bool:
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        return False
    return True


def check_flows(flows: Any, groups: Groups, services: Iterable[str], roles: Iterable[str]) -> list[Problem]:
    """``vmfleet_flows``: known flows from known groups, networks or any."""
    if not isinstance(flows, Mapping):
        return [Problem("vmfleet_flows", shown(flows), "is no mapping", "give flow: [groups, networks or any]")]
    known = GENERAL_FLOWS | set(services) | set(roles)
    problems = []
    for flow, sources in sorted(flows.items()):
        where = f"vmfleet_flows.{flow}"
        if flow not in known:
            problems.append(Problem(where, shown(sources), "no role opens a port for this flow", unknown(flow, known)))
        if isinstance(sources, str) or not isinstance(sources, Sequence):
            problems.append(Problem(where, shown(sources), "is no list", "give a list of groups, networks or any"))
            continue
        problems += [
            Problem(where, shown(source), "is neither a group, an address or network, nor any", unknown(source, groups))
            for source in sources
            if source != "any" and source not in groups and not _is_network(str(source))
        ]
    return problems


def check_quorums(groups: Groups) -> list[Problem]:
    """No two servers that need a majority: when one of them is gone, the other has none, and stops."""
    return [
        Problem(
            f"group {name}", shown(list(groups[name])), "2 members have no majority when one is gone", "have 1 or 3"
        )
        for name in QUORUM_GROUPS
        if len(groups.get(name, ())) == 2
    ]


def check_members(members: Any, groups: Groups) -> list[Problem]:
    """``vmfleet_members``: how many hosts groups must at least have."""
    if not isinstance(members, Mapping):
        return [Problem("vmfleet_members", shown(members), "is no mapping", "give group: number")]
    problems = []
    for group, wanted in sorted(members.items()):
        where = f"vmfleet_members.{group}"
        if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
            problems.append(Problem(where, shown(wanted), "is no number of hosts", "give a whole number"))
        elif group not in groups and wanted:
            problems.append(Problem(where, shown(wanted), "is no group of the inventory", unknown(group, groups)))
        elif len(groups.get(group, ())) < wanted:
            found = ", ".join(groups[group]) or "no host"
            problems.append(
                Problem(
                    where, shown(wanted), f"the group has {len(groups[group])}: {found}", "add hosts, or ask for less"
                )
            )
    return problems


def check_services(services: Any, groups: Groups) -> list[Problem]:
    """``vmfleet_services``: known groups, ports that are ports and not taken twice on a host, paths."""
    if not isinstance(services, Mapping):
        return [Problem("vmfleet_services", shown(services), "is no mapping", "give name: {group, port, health}")]
    problems = []
    taken: dict[tuple[str, int], str] = {}
    for name, service in sorted(services.items()):
        where = f"vmfleet_services.{name}"
        if not _NAME.match(str(name)):
            problems.append(Problem(where, "", "is no plain name", "use lower-case letters, digits, - and _"))
        if not isinstance(service, Mapping):
            problems.append(Problem(where, shown(service), "is no mapping", "give {group, port, health}"))
            continue
        for key in sorted(set(service) - SERVICE_KEYS):
            problems.append(Problem(f"{where}.{key}", shown(service[key]), "is unknown", unknown(key, SERVICE_KEYS)))
        group = service.get("group")
        if group not in groups:
            problems.append(
                Problem(f"{where}.group", shown(group), "is no group of the inventory", unknown(group, groups))
            )
        port = service.get("port")
        if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
            problems.append(Problem(f"{where}.port", shown(port), "is no port", "give a number from 1 to 65535"))
        else:
            hosts = groups.get(str(group), ())
            others = {taken[host, port]: host for host in hosts if (host, port) in taken}
            problems += [
                Problem(f"{where}.port", shown(port), f"is the port of {other} on {host} too", "give another port")
                for other, host in others.items()
            ]
            taken.update({(host, port): str(name) for host in hosts})
        for key in ("health", "ready", "metrics"):
            path = service.get(key)
            if path is not None and not (isinstance(path, str) and path.startswith("/") and " " not in path):
                problems.append(Problem(f"{where}.{key}", shown(path), "is no path", "begin it with /"))
        for key in CHECK_TIMES:
            problems += check_number(f"{where}.{key}", service.get(key, 1), least=1)
    return problems


def check_routing(model: Mapping[str, Any], groups: Groups) -> list[Problem]:
    """``lb_sites`` and what goes with them, judged by the code that the balancers render from.

    ``model`` holds the variables by name; those that are not set are None or absent.
    """
    services = model.get("vmfleet_services")
    try:
        build_model(
            model.get("lb_sites") or [],
            services if isinstance(services, Mapping) else {},
            groups,
            {},
            model.get("lb_defaults"),
            model.get("lb_headers"),
            model.get("lb_tls_ciphers"),
            str(model.get("lb_type") or ""),
        )
    except ModelError as error:
        # Services have a rule of their own, which also looks at those that no route leads to.
        return [problem for problem in error.problems if not problem.variable.startswith("vmfleet_services.")]
    return []


def check_addresses(addresses: Mapping[str, Any]) -> list[Problem]:
    """``vmfleet_address`` of every host: an IP address that no other host has."""
    problems = []
    owners: dict[str, str] = {}
    for host, address in addresses.items():
        try:
            plain = str(ipaddress.ip_address(str(address)))
        except ValueError:
            problems.append(
                Problem(
                    "vmfleet_address",
                    shown(address),
                    f"is the address of {host} and no IP address",
                    "set vmfleet_address; firewall rules and peers need a number",
                )
            )
            continue
        other = owners.setdefault(plain, host)
        if other != host:
            problems.append(
                Problem(
                    "vmfleet_address", shown(plain), f"belongs to both {other} and {host}", "give each host its own"
                )
            )
    return problems


def check_shared_addresses(pairs: Mapping[str, Mapping[str, tuple[Any, Any]]], own: Mapping[str, Any]) -> list[Problem]:
    """``keepalived_addresses`` and ``keepalived_router_id``: the same for the hosts of a group, and nobody's own.

    :param pairs: group to host to the two, for groups of which a host has addresses.
    :param own: every host's ``vmfleet_address``.
    """
    name = "keepalived_addresses"
    owners = {str(address): host for host, address in own.items()}
    problems = []
    for group, members in pairs.items():
        first, values = next(iter(members.items()))
        for host, others in members.items():
            problems += [
                Problem(
                    variable,
                    shown(other),
                    f"is not what {first} has, {shown(value)}, on {host}",
                    f"set it for the group {group}",
                )
                for variable, value, other in zip((name, "keepalived_router_id"), values, others)
                if other != value
            ]
        addresses = values[0]
        if isinstance(addresses, str) or not isinstance(addresses, Sequence):
            problems.append(Problem(name, shown(addresses), "is no list", "give addresses such as 10.20.0.10/24"))
            continue
        versions = set()
        for address in addresses:
            try:
                found = ipaddress.ip_interface(str(address))
            except ValueError:
                problems.append(Problem(name, shown(address), "is no address", "give one such as 10.20.0.10/24"))
                continue
            versions.add(found.version)
            if found.network.num_addresses > 2 and found.ip == found.network.network_address:
                problems.append(Problem(name, shown(address), "is a network", "give one address of it"))
            if str(found.ip) in owners:
                problems.append(
                    Problem(name, shown(address), f"is {owners[str(found.ip)]}'s own", "give one that no host has")
                )
        mine = str(own.get(first, ""))
        if versions and _is_network(mine) and ipaddress.ip_address(mine).version not in versions:
            problems.append(
                Problem(
                    name, shown(addresses), f"has none of the family of {mine} ({first})", "add one: VRRP goes there"
                )
            )
    return problems


def check_database_groups(groups: Groups) -> list[Problem]:
    """One primary when there are databases, and each of them in exactly one part."""
    members, primaries, replicas = (list(groups.get(name, ())) for name in ("db", "db_primary", "db_replica"))
    problems = []
    if (members or replicas) and len(primaries) != 1:
        problems.append(
            Problem(
                "group db_primary", shown(primaries), "must hold exactly one host", "move one database host into it"
            )
        )
    problems += [
        Problem(f"group db_replica: {host}", "", "is in db_primary too", "keep it in one of the two")
        for host in replicas
        if host in primaries
    ]
    problems += [
        Problem(f"group db: {host}", "", "is neither in db_primary nor in db_replica", "put it into one of the two")
        for host in members
        if host not in primaries and host not in replicas
    ]
    return problems


def check_lb_types(types: Mapping[str, Any]) -> list[Problem]:
    """``lb_type`` of each balancer."""
    return [
        Problem("lb_type", shown(value), f"is no balancer that {host} can run", f"give one of {', '.join(LB_TYPES)}")
        for host, value in types.items()
        if value not in LB_TYPES
    ]


def server_connections(settings: Mapping[str, Any], direct: Any) -> tuple[int, int]:
    """Connections that a server has for poolers, and what was taken off for others.

    :param direct: connections of those that come past the poolers, such as exporter, backup and operators.
    """

    def number(key: str, default: int) -> int:
        value = settings.get(key)
        return int(value) if value is not None and str(value).isdigit() else default

    reserved = number("superuser_reserved_connections", 3) + number("reserved_connections", 0)
    reserved += int(direct) if str(direct).isdigit() else DIRECT_CONNECTIONS
    return number("max_connections", 100), reserved


def pooler_demand(settings: Mapping[str, Any], databases: Any, groups: Groups) -> dict[str, int | None]:
    """The most connections that a pooler opens to each server; None where nothing limits it.

    ``max_db_connections`` counts for each database and server.
    """
    demand: dict[str, int | None] = {}
    for database in databases if isinstance(databases, Sequence) else ():
        limits = {**settings, **(database.get("parameters") or {})}
        limit = int(limits.get("max_db_connections") or 0)
        for target in database.get("hosts") or ["db_primary"]:
            for host in groups.get(target, [target]):
                before = demand.get(host, 0)
                demand[host] = before + limit if limit and before is not None else None
    return demand


def check_connection_budget(
    servers: Mapping[str, tuple[int, int]], poolers: Mapping[str, Mapping[str, int | None]]
) -> list[Problem]:
    """What poolers may open must fit into each server's ``max_connections`` less what others need.

    :param servers: host to ``max_connections`` and connections kept for others.
    :param poolers: host to the demand on each server.
    """
    problems = []
    unlimited = sorted({pooler for pooler, demand in poolers.items() if None in demand.values()})
    if unlimited:
        problems.append(
            Problem(
                "pgbouncer_settings.max_db_connections",
                "0",
                f"lets {', '.join(unlimited)} open any number of connections",
                "give a number",
            )
        )
    for server, (maximum, others) in servers.items():
        shares = {pooler: count for pooler, demand in poolers.items() if (count := demand.get(server))}
        if sum(shares.values()) <= maximum - others:
            continue
        parts = " + ".join(f"{count} ({pooler})" for pooler, count in shares.items())
        problems.append(
            Problem(
                "postgresql_settings.max_connections",
                str(maximum),
                f"the poolers may open {parts} = {sum(shares.values())} connections to {server}, which has"
                f" {maximum} - {others} for superusers and direct users = {maximum - others}",
                "raise it, or lower max_db_connections in pgbouncer_settings",
            )
        )
    return problems
