"""The routing model: what both balancers render, and each way to get it wrong."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.vmfleet.ops.plugins.filter.lb_model import lb_model
from ansible_collections.vmfleet.ops.plugins.module_utils import _lb_model as lb

ROLES = Path(__file__).resolve().parents[3] / "roles"
GROUPS = {"app": ["api1", "api2", "api3"], "empty": []}
HOSTVARS = {
    "api1": {"vmfleet_address": "10.0.0.1", "ansible_host": "192.0.2.1"},
    "api2": {"ansible_host": "10.0.0.2"},
    "api3": {"vmfleet_address": "fd00::3"},
}
SERVICES = {
    "api": {"group": "app", "port": 8081, "health": "/health", "ready": "/ready"},
    "ws": {"group": "app", "port": 8082, "health": "/alive"},
    "tcp": {"group": "app", "port": 8083},
    "nobody": {"group": "empty", "port": 9000},
}
SITE = {
    "name": "api",
    "hosts": ["api.example.com"],
    "routes": [
        {"path": "/", "service": "api"},
        {"path": "/ws", "service": "ws", "websocket": True},
        {"path": "/vector/", "service": "api", "strip_prefix": True, "body_max": "50M", "timeout_read": 120},
    ],
}


def model(*sites: Any, **rest: Any) -> dict[str, Any]:
    return lb.build_model(list(sites) or [SITE], SERVICES, GROUPS, HOSTVARS, **rest)


def site(*routes: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {
        "name": "a",
        "hosts": ["a.example.com"],
        "routes": list(routes) or [{"path": "/", "service": "api"}],
        **rest,
    }


def problems(*sites: Any, **rest: Any) -> list[str]:
    with pytest.raises(lb.ModelError) as caught:
        model(*sites, **rest)
    return [str(problem) for problem in caught.value.problems]


def test_members_come_from_the_inventory() -> None:
    (upstream,) = [entry for entry in model()["upstreams"] if entry["name"] == "api"]
    assert upstream["members"] == [
        {"name": "api1", "endpoint": "10.0.0.1:8081"},
        {"name": "api2", "endpoint": "10.0.0.2:8081"},
        {"name": "api3", "endpoint": "[fd00::3]:8081"},
    ]


def test_routes_stand_longest_first_after_the_health_route() -> None:
    (built,) = model()["sites"]
    assert [route["path"] for route in built["routes"]] == ["/health", "/vector", "/ws", "/"]


def test_a_route_keeps_its_settings() -> None:
    (built,) = model()["sites"]
    vector = built["routes"][1]
    assert vector["rewrite"] == "strip"
    assert vector["body_max"] == 50 * 1024**2
    assert (vector["timeout_connect"], vector["timeout_read"]) == (5, 120)
    websocket = built["routes"][2]
    assert (websocket["timeout_connect"], websocket["timeout_read"], websocket["timeout_send"]) == (5, 3600, 3600)


def test_health_asks_the_service_behind_the_site() -> None:
    health = model(site({"path": "/x", "service": "ws"}))["sites"][0]["routes"][0]
    assert (health["exact"], health["service"], health["rewrite"], health["log"]) == (True, "ws", "/alive", False)
    assert health["timeout_read"] == lb.HEALTH_TIMEOUT
    assert model(site(health="ws"))["sites"][0]["routes"][0]["service"] == "ws"
    own = model(site({"path": "/health", "service": "tcp"}))["sites"][0]["routes"]
    assert [(route["path"], route["exact"]) for route in own] == [("/health", False)]
    assert [route["path"] for route in model(site({"path": "/", "service": "tcp"}))["sites"][0]["routes"]] == ["/"]


def test_one_upstream_for_each_service_and_balance() -> None:
    built = model(site({"path": "/", "service": "api"}, {"path": "/s", "service": "api", "balance": "ip_hash"}))
    assert [(entry["name"], entry["balance"]) for entry in built["upstreams"]] == [
        ("api", "least_conn"),
        ("api_ip_hash", "ip_hash"),
    ]
    assert built["sites"][0]["routes"][1]["resort"] == "api"


def test_a_balance_that_keeps_clients_has_a_last_resort() -> None:
    built = model(site(), defaults={"balance": "ip_hash"})
    assert [(entry["name"], entry["balance"]) for entry in built["upstreams"]] == [
        ("api", "ip_hash"),
        ("api_least_conn", "least_conn"),
    ]
    health, root = built["sites"][0]["routes"]
    assert (root["upstream"], root["resort"]) == ("api", "api_least_conn")
    assert (health["upstream"], health["resort"]) == ("api_least_conn", "")


def test_backends_are_shared_and_checked_once() -> None:
    built = model(SITE, site())
    backends = {entry["name"]: entry for entry in built["backends"]}
    assert list(backends) == ["api", "api_ws", "api_vector", "api_health"]
    assert {name: entry["track"] for name, entry in backends.items()} == {
        "api": "",
        "api_ws": "",
        "api_vector": "api",
        "api_health": "api",
    }
    assert backends["api"]["check"] == {"path": "/ready", "host": "api.example.com"}
    assert backends["api_ws"]["check"]["path"] == "/alive"
    assert [route["backend"] for route in built["sites"][1]["routes"]] == ["api_health", "api"]


def test_names_of_backends_are_unique() -> None:
    clashing: list[dict[str, Any]] = [
        {**SITE, "name": "a", "routes": [{"path": f"/b{sep}c", "service": "api", "body_max": size}]}
        for sep, size in (("-", 1), ("_", 2))
    ]
    routes = clashing[0]["routes"] + clashing[1]["routes"]
    built = model(
        site(*routes, {"path": "/pi", "service": "tcp"}), {**site(), "name": "a_b", "hosts": ["b.example.com"]}
    )
    names = [entry["name"] for entry in built["backends"]]
    assert len(names) == len(set(names))
    ids = [route["id"] for entry in built["sites"] for route in entry["routes"]]
    assert len(ids) == len(set(ids))


def test_a_service_without_a_path_has_no_http_check() -> None:
    (backend,) = model(site({"path": "/", "service": "tcp"}))["backends"]
    assert backend["check"] == {}


def test_a_service_may_say_how_often_it_is_asked() -> None:
    services = {**SERVICES, "ws": {**SERVICES["ws"], "check_interval": 10, "check_fall": 2}}
    built = lb.build_model([SITE], services, GROUPS, HOSTVARS, {"check_interval": 5, "check_rise": 3})
    times = {entry["service"]: entry["check_times"] for entry in built["backends"]}
    assert times["api"] == {"check_interval": 5, "check_fall": 3, "check_rise": 3}
    assert times["ws"] == {"check_interval": 10, "check_fall": 2, "check_rise": 3}


def test_an_empty_group_is_no_fault() -> None:
    built = model(site({"path": "/", "service": "nobody"}))
    assert built["backends"][0]["members"] == built["upstreams"][0]["members"] == []
    assert model(*[])["sites"][0]["hosts"] == ["api.example.com"]
    assert lb.build_model([], {}, {}, {})["sites"] == []


def test_certificates() -> None:
    assert model(site())["sites"][0]["certificate"] == "host"
    assert model(site(certificate="fleet"))["sites"][0]["certificate"] == "a"
    assert model(site(certificate="acme"))["sites"][0]["certificate"] == "a"
    assert model(site(certificate="given"))["sites"][0]["certificate"] == "given"


def test_every_balancer_may_have_the_answer_to_a_challenge() -> None:
    groups = {**GROUPS, "lb": ["api1", "api3"]}

    def acme(certificate: str, **defaults: Any) -> Any:
        return lb.build_model([site(certificate=certificate)], SERVICES, groups, HOSTVARS, defaults)["acme"]

    assert acme("fleet") == []
    assert acme("acme") == ["10.0.0.1:8402", "[fd00::3]:8402"]
    assert acme("acme", acme_port=9)[0] == "10.0.0.1:9"
    assert acme("fleet", acme="10.9.9.9:80") == ["10.9.9.9:80"]


def test_headers_add_to_the_built_in_ones() -> None:
    built = model(headers={"X-Frame-Options": "", "Content-Security-Policy": "default-src 'self'"})
    assert "X-Frame-Options" not in built["headers"]
    assert "X-Frame-Options" in built["hidden_headers"]
    assert built["headers"]["Content-Security-Policy"] == "default-src 'self'"
    assert built["headers"]["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("sites", "expected"),
    [
        (
            [site({"path": "/v", "service": "api"}, {"path": "/v/", "service": "ws"})],
            "lb_sites[0].routes[1].path = '/v/': is routed twice in this site; remove one",
        ),
        (
            [site({"path": "/", "service": "apii"})],
            "lb_sites[0].routes[0].service = 'apii': is no service; did you mean api?",
        ),
        ([site({"path": "/"})], "lb_sites[0].routes[0].service: is no service; known are api, nobody, tcp, ws"),
        (
            [site(), {**site(), "name": "b", "hosts": ["A.example.com"]}],
            "lb_sites[1].hosts = 'a.example.com': site a answers to it already; remove one",
        ),
        (
            [site(), {**site(), "hosts": ["b.example.com"]}],
            "lb_sites[1].name = 'a': is the name of two sites; rename one",
        ),
        ([site(health="apii")], "lb_sites[0].health = 'apii': is no service; did you mean api?"),
        ([site(name="Api")], "lb_sites[0].name = 'Api': is no name for a site"),
        ([site(name="host")], "lb_sites[0].name = 'host': is no name for a site"),
        ([site(hosts=[])], "lb_sites[0].hosts = []: is no list with entries"),
        ([site(hosts="a.example.com")], "lb_sites[0].hosts = 'a.example.com': is no list with entries"),
        ([site(hosts=["https://a.example.com"])], "is no host name; give it without scheme, port or wildcard"),
        ([site(hosts=["*.example.com"])], "is no host name"),
        ([site(certificate="../x")], "lb_sites[0].certificate = '../x': is no name of a certificate"),
        ([site(rutes=[])], "lb_sites[0].rutes = []: is unknown; did you mean routes?"),
        ([{**site(), "routes": []}], "lb_sites[0].routes = []: is no list with entries"),
        ([{**site(), "routes": ["/"]}], "lb_sites[0].routes[0] = '/': is no mapping"),
        ("api", "lb_sites = 'api': is no list with entries"),
        ([site({"path": "v", "service": "api"})], "lb_sites[0].routes[0].path = 'v': is no plain path"),
        ([site({"path": "/a/../b", "service": "api"})], "is no plain path"),
        ([site({"path": '/a";', "service": "api"})], "is no plain path"),
        ([site({"path": "/lb-health", "service": "api"})], "is answered by the balancer itself"),
        ([site({"path": "/", "service": "api", "balance": "random"})], "balance = 'random': is no way to balance"),
        ([site({"path": "/", "service": "api", "body_max": "10x"})], "body_max = '10x': is no size"),
        ([site({"path": "/", "service": "api", "timeout_read": 0})], "timeout_read = 0: is out of range"),
        ([site({"path": "/", "service": "api", "timeout_send": "5s"})], "timeout_send = '5s': is out of range"),
        ([site({"path": "/", "service": "api", "rate": "10"})], "rate = '10': is no rate; give 10/s or 5/m"),
        ([site({"path": "/", "service": "api", "rate": "-1/s"})], "rate = '-1/s': is no rate"),
        ([site({"path": "/", "service": "api", "connections": -1})], "connections = -1: is out of range"),
        (
            [site({"path": "/", "service": "api", "connections": 65536})],
            "connections = 65536: is out of range; give a whole number from 0 to 65535",
        ),
        ([site({"path": "/", "service": "api", "timeout_read": 2147484})], "timeout_read = 2147484: is out of range"),
        (
            [site({"path": "/", "service": "api", "rate": "1/m", "burst": 50000})],
            "burst = 50000: takes more than 2147483 s to pay off at 1/m; give at most 35790",
        ),
        ([site({"path": "/", "service": "api", "rate": "1/s", "burst": -1})], "burst = -1: is out of range"),
        ([site({"path": "/", "service": "api", "burst": 5})], "burst = 5: goes with a rate"),
        ([site({"path": "/", "service": "api", "cache": -5})], "cache = -5: is out of range"),
        ([site({"path": "/", "service": "api", "gzip": "on"})], "gzip = 'on': is neither true nor false"),
        ([site({"path": "/", "service": "api", "buffer_size": "32k"})], "buffer_size = '32k': is out of range"),
        ([site({"path": "/", "service": "api", "spa": True})], "spa = True: is for files only"),
        ([site({"path": "/", "root": "srv"})], "root = 'srv': is no plain absolute path"),
        ([site({"path": "/", "root": "/srv/../etc"})], "root = '/srv/../etc': is no plain absolute path"),
        ([site({"path": "/", "root": "/srv", "cache": 5})], "cache = 5: does not go with root"),
        ([site(cors=["*"])], "lb_sites[0].cors = '*': is no origin"),
        ([site(cors=["https://a.example.com/x"])], "is no origin"),
        ([site({"path": "/", "service": "api", "web_socket": True})], "web_socket = True: is unknown; did you mean"),
    ],
)
def test_each_fault_is_named(sites: Any, expected: str) -> None:
    with pytest.raises(lb.ModelError) as caught:
        lb.build_model(sites, SERVICES, GROUPS, HOSTVARS)
    (problem,) = caught.value.problems
    assert expected in str(problem)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"group": "ap"}, "vmfleet_services.api.group = 'ap': is no group of the inventory"),
        ({"port": "8081"}, "vmfleet_services.api.port = '8081': is no port"),
        ({"ready": "ready now"}, "vmfleet_services.api.ready = 'ready now': is no plain path"),
        ({"check_fall": 0}, "vmfleet_services.api.check_fall = 0: is out of range"),
        ({"check_interval": 2147484}, "vmfleet_services.api.check_interval = 2147484: is out of range"),
    ],
)
def test_a_service_that_cannot_be_used_is_named(change: dict[str, Any], expected: str) -> None:
    services = copy.deepcopy(SERVICES)
    services["api"].update(change)
    with pytest.raises(lb.ModelError, match=r".") as caught:
        lb.build_model([site(health="ws")], services, GROUPS, HOSTVARS)
    (problem,) = caught.value.problems
    assert expected in str(problem)


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        ({"defaults": {"trys": 2}}, "lb_defaults.trys = 2: is unknown; did you mean tries?"),
        ({"defaults": {"tries": 0}}, "lb_defaults.tries = 0: is out of range"),
        ({"defaults": {"body_max": "much"}}, "lb_defaults.body_max = 'much': is no size"),
        ({"defaults": {"rate": "fast"}}, "lb_defaults.rate = 'fast': is no rate"),
        ({"defaults": {"connections": -1}}, "lb_defaults.connections = -1: is out of range"),
        ({"defaults": {"exempt": ["office"]}}, "lb_defaults.exempt = 'office': is no network"),
        ({"defaults": {"acme": "8402"}}, "lb_defaults.acme = '8402': is no IP address with a port"),
        ({"defaults": {"acme": "ca.nowhere:8402"}}, "lb_defaults.acme = 'ca.nowhere:8402': is no IP address"),
        ({"defaults": {"acme_port": -1}}, "lb_defaults.acme_port = -1: is out of range"),
        (
            {"defaults": {"acme_port": 65536}},
            "acme_port = 65536: is out of range; give a whole number from 1 ",
        ),
        ({"headers": {"X-A": 'a"b'}}, "lb_headers.X-A"),
        ({"headers": {"X-A": "a\r\nSet-Cookie: b"}}, "lb_headers.X-A"),
        ({"headers": {"X A": "a"}}, "lb_headers.X A"),
        ({"ciphers": ["ECDHE-RSA-AES256-GCM-SHA512"]}, "did you mean ECDHE-RSA-AES256-GCM-SHA384?"),
    ],
)
def test_what_goes_along_is_judged_too(rest: dict[str, Any], expected: str) -> None:
    assert any(expected in problem for problem in problems(**rest))


def test_a_limit_lets_one_and_burst_pass_and_then_one_each_interval() -> None:
    routes: list[dict[str, Any]] = [
        {"path": "/", "service": "api", "rate": "10/s", "burst": 20},
        {"path": "/auth", "service": "api", "rate": "5/m", "burst": 5},
        {"path": "/files", "service": "api", "connections": 10},
        {"path": "/free", "service": "api"},
    ]
    built = model(site(*routes))
    limits = {route["path"]: route["limit"] for route in built["sites"][0]["routes"]}
    assert limits["/"] == {"rate": "10r/s", "interval": 100, "burst": 20, "connections": 0}
    assert limits["/auth"] == {"rate": "5r/m", "interval": 12000, "burst": 5, "connections": 0}
    assert limits["/files"]["connections"] == 10
    assert limits["/free"] is None is limits["/health"]


def test_clients_are_counted_for_each_route() -> None:
    limited = {"service": "api", "rate": "10/s"}
    built = model(site({"path": "/a", **limited}, {"path": "/b", **limited}))
    backends = {route["path"]: route["backend"] for route in built["sites"][0]["routes"]}
    assert backends["/a"] != backends["/b"]


def test_haproxy_refuses_files_by_name() -> None:
    files = site({"path": "/", "root": "/srv/app", "spa": True})
    assert model(files, balancer="nginx")["sites"][0]["routes"][0]["root"] == "/srv/app"
    assert "root" in str(problems(files, balancer="haproxy"))
    assert "cannot be served by HAProxy; set lb_type: nginx" in problems(files, balancer="haproxy")[0]


def test_what_only_the_other_balancer_finds_broken_servers_by_is_refused_by_name() -> None:
    (problem,) = problems(defaults={"max_fails": 2}, balancer="haproxy")
    assert problem == (
        "lb_defaults.max_fails = 2: is for nginx only; HAProxy finds broken servers by check_interval, check_fall,"
        " check_rise; remove it, or give it in nginx_defaults"
    )
    (problem,) = problems(defaults={"check_fall": 2}, balancer="nginx")
    assert "lb_defaults.check_fall = 2: is for HAProxy only" in problem
    services = {**SERVICES, "api": {**SERVICES["api"], "check_fall": 2}}
    with pytest.raises(lb.ModelError) as caught:
        lb.build_model([site()], services, GROUPS, HOSTVARS, balancer="nginx")
    assert str(caught.value) == (
        "lb_sites[0].routes[0].service = 'api': has check_fall, which is for HAProxy only; nginx finds broken servers"
        " by fail_timeout, max_fails; remove it, or give it in haproxy_services"
    )
    for balancer, kept in (("haproxy", "check_fall"), ("nginx", "max_fails"), ("", "max_fails")):
        assert model(defaults={kept: 7}, balancer=balancer)["failover"][kept] == 7


def test_all_faults_come_at_once() -> None:
    assert len(problems(site({"path": "v", "service": "api"}, {"path": "/", "service": "x"}, name="B"))) == 3


def test_the_filter_says_what_is_wrong() -> None:
    with pytest.raises(AnsibleFilterError, match="did you mean api"):
        lb_model([site({"path": "/", "service": "apii"})], SERVICES, GROUPS, HOSTVARS)
    assert lb_model([SITE], SERVICES, GROUPS, HOSTVARS) == model()


@pytest.mark.parametrize("role", ["nginx", "haproxy"])
def test_the_specs_tell_the_built_in_values(role: str) -> None:
    options = yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
    told = options[f"{role}_defaults"]["options"]
    built_in = {**lb.ROUTE_DEFAULTS, **lb.FAILOVER_DEFAULTS, **lb.GENERAL_DEFAULTS}
    assert set(told) == set(built_in)
    for name, value in built_in.items():
        assert str(value).lower() in told[name]["description"].rpartition("Built in is ")[2], name


def test_both_roles_take_the_same_model() -> None:
    nginx, haproxy = (
        yaml.safe_load((ROLES / role / "meta/argument_specs.yml").read_text().replace(role, "R"))["argument_specs"][
            "main"
        ]
        for role in ("nginx", "haproxy")
    )
    for name in ("sites", "services", "defaults", "headers", "tls_ciphers"):
        mine, other = (spec["options"][f"R_{name}"] for spec in (nginx, haproxy))
        assert mine["default"] == other["default"], name
        assert set(mine.get("options", {})) == set(other.get("options", {})), name
