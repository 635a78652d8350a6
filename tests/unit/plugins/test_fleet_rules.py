"""Rules between hosts: each is broken once and named with its remedy."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils import _fleet_rules as rules

GROUPS = {
    "all": ["lb1", "api1", "db1", "db2"],
    "lb": ["lb1"],
    "app": ["api1"],
    "db": ["db1", "db2"],
    "db_primary": ["db1"],
    "db_replica": ["db2"],
    "redis": [],
}
SERVICES = {
    "api": {"group": "app", "port": 8081, "health": "/health", "ready": "/ready", "metrics": "/metrics"},
    "ws": {"group": "app", "port": 8082, "health": "/health"},
}
ROLES = ["postgresql", "redis", "node_exporter"]


def test_a_sound_model_has_no_problem() -> None:
    flows = {"ssh": ["any"], "app": ["lb"], "postgresql": ["app", "10.0.0.0/8", "2001:db8::1"], "redis": ["redis"]}
    sites = [{"name": "api", "hosts": ["a.example.com"], "routes": [{"path": "/", "service": "api"}]}]
    assert rules.check_flows(flows, GROUPS, SERVICES, ROLES) == []
    assert rules.check_services(SERVICES, GROUPS) == []
    assert rules.check_routing({"lb_sites": sites, "vmfleet_services": SERVICES}, GROUPS) == []
    assert rules.check_routing({"lb_sites": None, "vmfleet_services": None}, GROUPS) == []
    assert rules.check_addresses({"a": "10.0.0.1", "b": "10.0.0.2", "c": "2001:db8::3"}) == []
    assert rules.check_database_groups(GROUPS) == []
    assert rules.check_database_groups({"db": [], "db_primary": []}) == []
    assert rules.check_lb_types({"lb1": "nginx"}) == []


SHARED = ["10.0.0.9/24", "fd00::9"]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"lb1": (SHARED, None), "lb2": (SHARED, None)}, []),
        (
            {"lb1": (SHARED, None), "lb2": (None, 7)},
            [
                "keepalived_addresses = None: is not what lb1 has, ['10.0.0.9/24', 'fd00::9'], on lb2; set it for the",
                "keepalived_router_id = 7: is not what lb1 has, None, on lb2",
            ],
        ),
        ({"lb1": ("10.0.0.9", None)}, ["= '10.0.0.9': is no list"]),
        ({"lb1": (["10.0.0.300", "10.0.0.9"], None)}, ["= '10.0.0.300': is no address; give one such as"]),
        ({"lb1": (["10.0.0.0/24"], None)}, ["= '10.0.0.0/24': is a network; give one address of it"]),
        ({"lb1": (["10.0.0.2/24"], None)}, ["= '10.0.0.2/24': is lb2's own; give one that no host has"]),
        ({"lb1": (["fd00::9"], None)}, ["has none of the family of 10.0.0.1 (lb1)"]),
    ],
)
def test_shared_addresses(members: Any, expected: list[str]) -> None:
    problems = rules.check_shared_addresses({"lb": members}, {"lb1": "10.0.0.1", "lb2": "10.0.0.2"})
    assert len(problems) == len(expected), problems
    for problem, words in zip(problems, expected):
        assert words in str(problem)


@pytest.mark.parametrize(
    ("flows", "expected"),
    [
        ({"postgres": ["app"]}, "did you mean postgresql?"),
        ({"redis": ["apps"]}, "did you mean app?"),
        ({"redis": ["10.0.0.300"]}, "is neither a group"),
        ({"redis": "app"}, "is no list"),
        (["redis"], "is no mapping"),
    ],
)
def test_flows(flows: Any, expected: str) -> None:
    (problem,) = rules.check_flows(flows, GROUPS, SERVICES, ROLES)
    assert expected in str(problem)
    assert problem.variable.startswith("vmfleet_flows")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"group": "api"}, "vmfleet_services.api.group = 'api': is no group of the inventory"),
        ({"port": "8081"}, "vmfleet_services.api.port = '8081': is no port"),
        ({"port": 8082}, "vmfleet_services.ws.port = 8082: is the port of api on api1 too; give another port"),
        ({"health": "health"}, "vmfleet_services.api.health = 'health': is no path"),
        ({"helth": "/health"}, "did you mean health?"),
        ({"check_interval": "5s"}, "vmfleet_services.api.check_interval = '5s': is out of range"),
    ],
)
def test_services(change: dict[str, Any], expected: str) -> None:
    (problem,) = rules.check_services({**SERVICES, "api": {**SERVICES["api"], **change}}, GROUPS)
    assert expected in str(problem)


def test_services_of_different_groups_may_share_a_host_but_no_port() -> None:
    groups = {**GROUPS, "workers": ["api1", "db1"], "others": ["db1"]}
    services = {"api": {"group": "app", "port": 1}, "b": {"group": "others", "port": 1}}
    assert rules.check_services(services, groups) == []
    found = rules.check_services({**services, "jobs": {"group": "workers", "port": 1}}, groups)
    assert [problem.problem for problem in found] == ["is the port of api on api1 too", "is the port of b on db1 too"]


def test_routing_is_judged_by_the_balancers_own_model() -> None:
    sites = [{"name": "a", "hosts": ["x"], "routes": [{"path": "/", "service": "apii"}]}]
    (problem,) = rules.check_routing({"lb_sites": sites, "vmfleet_services": SERVICES}, GROUPS)
    assert str(problem) == "lb_sites[0].routes[0].service = 'apii': is no service; did you mean api?"
    sites[0]["routes"] = [{"path": "/", "service": "api"}]
    wrong = {"api": {**SERVICES["api"], "group": "nowhere"}}
    assert rules.check_routing({"lb_sites": sites, "vmfleet_services": wrong}, GROUPS) == []


def test_addresses() -> None:
    found = rules.check_addresses({"a": "10.0.0.1", "b": "10.0.0.1", "c": "c.example.com"})
    assert [problem.problem for problem in found] == [
        "belongs to both a and b",
        "is the address of c and no IP address",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"db_primary": []}, "must hold exactly one host"),
        ({"db_primary": ["db1", "db2"], "db_replica": []}, "must hold exactly one host"),
        ({"db_replica": ["db1", "db2"]}, "is in db_primary too"),
        ({"db_replica": []}, "group db: db2: is neither in db_primary nor in db_replica"),
    ],
)
def test_database_groups(change: dict[str, list[str]], expected: str) -> None:
    found = rules.check_database_groups({**GROUPS, **change})
    assert any(expected in str(problem) for problem in found)


def test_lb_types() -> None:
    found = rules.check_lb_types({"lb1": "traefik", "lb2": None})
    assert [problem.value for problem in found] == ["'traefik'", "None"]


class TestConnectionBudget:
    DATABASES: ClassVar[list[dict[str, Any]]] = [
        {"name": "app"},
        {"name": "reports", "hosts": ["db_replica"], "parameters": {"max_db_connections": 10}},
    ]

    def demand(self, **settings: Any) -> dict[str, Any]:
        return rules.pooler_demand({"max_db_connections": 50, **settings}, self.DATABASES, GROUPS)

    def test_each_database_counts_on_its_server(self) -> None:
        assert self.demand() == {"db1": 50, "db2": 10}
        assert rules.pooler_demand({"max_db_connections": 50}, [{"name": "a"}, {"name": "b"}], GROUPS) == {"db1": 100}

    def test_what_fits_passes(self) -> None:
        servers = {"db1": rules.server_connections({"max_connections": 200}, None), "db2": (100, 23)}
        assert servers["db1"] == (200, 23)
        assert rules.check_connection_budget(servers, {"pool1": self.demand()}) == []
        assert rules.check_connection_budget(servers, {}) == []

    def test_three_poolers_of_a_hundred_are_too_many_for_two_hundred(self) -> None:
        demand = {f"pool{number}": self.demand(max_db_connections=100) for number in (1, 2, 3)}
        servers = {"db1": rules.server_connections({"max_connections": "200"}, 5), "db2": (100, 23)}
        (problem,) = rules.check_connection_budget(servers, demand)
        assert "= 300 connections to db1, which has 200 - 8 for superusers and direct users = 192" in str(problem)

    def test_no_limit_is_no_budget(self) -> None:
        (problem,) = rules.check_connection_budget({"db1": (200, 23)}, {"pool1": self.demand(max_db_connections=0)})
        assert "lets pool1 open any number" in str(problem)


def test_groups_have_their_members_and_a_majority() -> None:
    groups = {"app": ["a1", "a2"], "opensearch": ["o1", "o2"], "etcd": ["e1", "e2", "e3"], "elasticsearch": ["x1"]}
    (two,) = rules.check_quorums(groups)
    assert str(two) == "group opensearch = ['o1', 'o2']: 2 members have no majority when one is gone; have 1 or 3"
    assert rules.check_members({"app": 2, "none": 0}, groups) == []
    assert [str(problem) for problem in rules.check_members({"app": 3, "ap": 1, "etcd": "3"}, groups)] == [
        "vmfleet_members.ap = 1: is no group of the inventory; did you mean app?",
        "vmfleet_members.app = 3: the group has 2: a1, a2; add hosts, or ask for less",
        "vmfleet_members.etcd = '3': is no number of hosts; give a whole number",
    ]
    (shape,) = rules.check_members(["app"], groups)
    assert "is no mapping" in str(shape)
