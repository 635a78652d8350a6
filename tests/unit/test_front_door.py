"""The front-door rows of the requirement sheets' error tables: what both balancers render lacks the fault.

Rows that only a running balancer can show are in tests/integration/front_door/suite.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible_collections.vmfleet.ops.plugins.module_utils import _lb_model as lb

ROOT = Path(__file__).resolve().parents[2]
GROUPS = {"app": ["api1", "api2"]}
HOSTVARS = {"api1": {"vmfleet_address": "10.0.0.1"}, "api2": {"vmfleet_address": "10.0.0.2"}}
SERVICES = {
    "api": {"group": "app", "port": 8081, "health": "/health", "ready": "/ready"},
    "ws": {"group": "app", "port": 8082},
}
SITES: list[dict[str, Any]] = [
    {
        "name": "api",
        "hosts": ["api.example.com", "www.example.com"],
        "cors": ["https://www.example.com"],
        "routes": [
            {"path": "/", "service": "api", "rate": "10/s", "burst": 20},
            {"path": "/ws", "service": "ws", "websocket": True},
            {"path": "/vector", "service": "api", "strip_prefix": True, "body_max": "50m", "balance": "hash"},
            {"path": "/auth", "service": "api", "rate": "5/m", "burst": 5},
            {"path": "/cached", "service": "api", "cache": 300},
            {"path": "/stream", "service": "api", "buffering": False},
        ],
    }
]
FILES = [
    {"name": "files", "hosts": ["f.example.com"], "routes": [{"path": "/static", "root": "/srv/s", "immutable": True}]}
]


def rendered(role: str, release: str = "trixie") -> dict[str, str]:
    """The role's templates by name, with its own defaults."""
    folder = ROOT / "roles" / role
    variables = yaml.safe_load((folder / "defaults/main.yml").read_text())
    sites = SITES + (FILES if role == "nginx" else [])
    variables[f"__{role}_model"] = lb.build_model(sites, SERVICES, GROUPS, HOSTVARS, balancer=role)
    variables["__nginx_http2_directive"] = release not in ("bookworm", "jammy", "noble")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder / "templates"), trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["to_json"] = json.dumps
    environment.filters["regex_escape"] = re.escape
    environment.filters["flatten"] = lambda lists: [item for part in lists for item in part]
    return {
        path.name: environment.get_template(path.name).render(variables) for path in (folder / "templates").glob("*.j2")
    }


@pytest.fixture(scope="module")
def nginx() -> dict[str, str]:
    return rendered("nginx")


@pytest.fixture(scope="module")
def haproxy() -> str:
    return rendered("haproxy")["haproxy.cfg.j2"]


def directives(text: str, name: str) -> list[str]:
    return re.findall(rf"^ *{name} (.*);$", text, re.MULTILINE)


def test_e0_01_e1_01_zones_stand_at_the_http_level(nginx: dict[str, str]) -> None:
    assert len(directives(nginx["nginx.conf.j2"], "limit_req_zone")) == 2
    assert "_zone " not in nginx["sites.conf.j2"]


def test_e0_02_e1_03_the_main_file_has_events_and_http(nginx: dict[str, str]) -> None:
    assert re.search(r"^events \{", nginx["nginx.conf.j2"], re.MULTILINE)
    assert re.search(r"^http \{", nginx["nginx.conf.j2"], re.MULTILINE)


@pytest.mark.parametrize("cipher", ["ECDHE-RSA-AES256-GCM-SHA512", "DHE-RSA-AES256-GCM-SHA512"])
def test_e0_03_e3_01_ciphers_that_do_not_exist_are_refused(cipher: str) -> None:
    with pytest.raises(lb.ModelError, match=cipher):
        lb.build_model(SITES, SERVICES, GROUPS, HOSTVARS, ciphers=[cipher, lb.CIPHER_DEFAULTS[0]])


def test_e0_04_e3_02_plain_http_only_redirects(nginx: dict[str, str], haproxy: str) -> None:
    for server in nginx["sites.conf.j2"].split("\nserver {")[1:]:
        if "listen 80" in server:
            assert "proxy_pass" not in server
    frontend = haproxy.split("frontend http\n")[1].split("\nfrontend ")[0]
    assert "redirect code 301" in frontend
    assert "use_backend" not in frontend


def test_e0_05_e0_06_e1_08_e4_03_e4_06_headers_are_said_once_with_always(nginx: dict[str, str], haproxy: str) -> None:
    headers = directives(nginx["nginx.conf.j2"], "add_header")
    assert all(header.endswith(" always") for header in headers), headers
    assert "add_header" not in nginx["sites.conf.j2"] + nginx["upstreams.conf.j2"]
    for name in lb.HEADER_DEFAULTS:
        assert len([header for header in headers if header.startswith(f"{name} ")]) == 1
        assert name in directives(nginx["nginx.conf.j2"], "proxy_hide_header")
        assert haproxy.count(f"http-after-response set-header {name} ") == 2, "once in each frontend"


def test_e0_07_e0_08_e1_05_connections_to_the_service_are_kept(nginx: dict[str, str]) -> None:
    assert directives(nginx["nginx.conf.j2"], "proxy_http_version") == ["1.1"]
    assert "Connection $vmfleet_connection" in directives(nginx["nginx.conf.j2"], "proxy_set_header")
    assert "proxy_set_header" not in nginx["sites.conf.j2"]
    assert nginx["upstreams.conf.j2"].count("keepalive 32;") == nginx["upstreams.conf.j2"].count("upstream ")


def test_e0_10_counters_of_failures_are_shared_by_the_workers(nginx: dict[str, str]) -> None:
    assert nginx["upstreams.conf.j2"].count(" zone ") == nginx["upstreams.conf.j2"].count("upstream ")


def test_a_group_that_rests_as_a_whole_is_asked_all_the_same(nginx: dict[str, str]) -> None:
    """nginx refuses a backup where clients are kept on a server."""
    for block in nginx["upstreams.conf.j2"].split("\nupstream ")[1:]:
        backups = re.findall(r"server (\S+) .* max_fails=0 backup; # (\S+)", block)
        declared = re.findall(r"server (\S+) .* max_fails=3 .*; # (\S+)", block)
        assert backups == ([] if "hash" in block else declared)


def test_e0_11_a_network_is_spread_when_the_balance_is_hash(nginx: dict[str, str]) -> None:
    assert directives(nginx["upstreams.conf.j2"], "hash") == ["$binary_remote_addr consistent"]


def test_e0_12_servers_are_addresses(nginx: dict[str, str], haproxy: str) -> None:
    assert "server 10.0.0.1:8081 " in nginx["upstreams.conf.j2"]
    assert "server api1 10.0.0.1:8081 " in haproxy


def test_e0_13_e1_07_files_cannot_be_left(nginx: dict[str, str]) -> None:
    assert "location /static/ {" in nginx["sites.conf.j2"]
    assert directives(nginx["sites.conf.j2"], "alias") == ["/srv/s/"]


def test_e0_14_bodies_have_their_limit_on_each_route(nginx: dict[str, str], haproxy: str) -> None:
    assert {str(10 << 20), str(50 << 20)} <= set(directives(nginx["sites.conf.j2"], "client_max_body_size"))
    for size in (10 << 20, 50 << 20):
        assert f"content-length) gt {size} }}" in haproxy


def test_e0_16_e0_17_prefixes_are_whole_segments_and_stripped_by_both(nginx: dict[str, str], haproxy: str) -> None:
    assert "location /vector/ {" in nginx["sites.conf.j2"]
    assert "location = /vector {" in nginx["sites.conf.j2"]
    assert "-m beg /vector/\n" in haproxy
    assert "-m beg /vector\n" not in haproxy
    assert "replace-path '^/vector/?(.*)' '/\\1'" in haproxy


def test_e0_18_haproxy_logs(haproxy: str) -> None:
    assert "log /dev/log local0" in haproxy
    assert "    log global" in haproxy.split("\ndefaults\n")[1].split("\nfrontend")[0]


def test_e0_19_e1_02_e4_01_refusals_are_answers_with_429(nginx: dict[str, str], haproxy: str) -> None:
    assert "http-request reject" not in haproxy
    assert haproxy.count("deny deny_status 429") == 2
    for name in ("limit_req_status", "limit_conn_status"):
        assert directives(nginx["nginx.conf.j2"], name) == ["429"]
    for zone in directives(nginx["sites.conf.j2"], "limit_req"):
        assert f"{zone.split()[0]}:10m" in nginx["nginx.conf.j2"]


def test_e0_20_the_redirect_is_permanent_and_counts_in_no_limit(haproxy: str) -> None:
    frontend = haproxy.split("frontend http\n")[1].split("\nfrontend ")[0]
    assert "track-sc" not in frontend


def test_e0_21_e1_14_haproxy_tells_who_asks_and_has_all_timeouts(haproxy: str) -> None:
    for line in (
        "http-request set-header X-Forwarded-For %[src]",
        "http-request set-header X-Forwarded-Proto https",
        "timeout http-request 10s",
        "timeout tunnel 3600s",
        "stats socket /run/haproxy/admin.sock",
    ):
        assert line in haproxy, line


@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_e0_30_e4_08_http_2_is_written_as_the_release_wants_it(release: str) -> None:
    sites = rendered("nginx", release)["sites.conf.j2"]
    assert ("http2 on;" in sites) == (release == "trixie")
    assert (" ssl http2" in sites) == (release == "bookworm")


def test_e0_31_x_xss_protection_is_not_sent(nginx: dict[str, str], haproxy: str) -> None:
    assert "X-XSS-Protection" not in "".join(nginx.values()) + haproxy


def test_e0_32_e1_41_retries_are_bounded_and_answers_of_500_end_them(nginx: dict[str, str], haproxy: str) -> None:
    main = nginx["nginx.conf.j2"]
    assert directives(main, "proxy_next_upstream") == ["error timeout invalid_header"]
    assert directives(main, "proxy_next_upstream_tries") == ["3"]
    assert directives(main, "proxy_next_upstream_timeout") == ["10s"]
    assert "retry-on conn-failure empty-response junk-response\n" in haproxy


def test_e1_04_no_two_sites_have_a_name_in_common() -> None:
    with pytest.raises(lb.ModelError, match="answers to it already"):
        lb.build_model([*SITES, {**SITES[0], "name": "again"}], SERVICES, GROUPS, HOSTVARS)


def test_e1_06_streams_are_not_buffered(nginx: dict[str, str]) -> None:
    location = nginx["sites.conf.j2"].split("location /stream/ {")[1].split("\n    }")[0]
    assert "proxy_buffering off;" in location


def test_e0_09_e1_09_e1_10_the_cache_is_defined_and_keyed_by_host(nginx: dict[str, str], haproxy: str) -> None:
    main = nginx["nginx.conf.j2"]
    assert "keys_zone=vmfleet:" in main
    assert directives(main, "proxy_cache_key") == ["$scheme$host$request_uri"]
    assert (
        directives(main, "proxy_no_cache")
        == directives(main, "proxy_cache_bypass")
        == ["$http_authorization $http_cookie"]
    )
    assert "cache-use vmfleet if !personal" in haproxy


def test_e1_11_e4_08_no_stapling_is_asked_for(nginx: dict[str, str]) -> None:
    assert "ssl_stapling" not in "".join(nginx.values())


def test_e1_13_statistics_are_closed(haproxy: str) -> None:
    assert "stats enable" not in haproxy
    assert re.findall(r"bind (\S+)$", haproxy.split("frontend metrics")[1], re.MULTILINE) == ["127.0.0.1:8404"]


def test_e4_02_health_asks_the_service(nginx: dict[str, str]) -> None:
    location = nginx["sites.conf.j2"].split("location = /health {")[1].split("\n    }")[0]
    assert "proxy_pass http://api/health;" in location or "proxy_pass http://api;" in location


def test_e4_04_a_websocket_that_cannot_connect_fails_over_within_seconds(nginx: dict[str, str], haproxy: str) -> None:
    location = nginx["sites.conf.j2"].split("location /ws/ {")[1].split("\n    }")[0]
    assert directives(location, "proxy_connect_timeout") == ["5s"]
    assert directives(location, "proxy_read_timeout") == ["3600s"]
    assert "timeout connect 5s" in haproxy.split("backend api_ws\n")[1].split("\nbackend")[0]


def test_e4_28_checks_name_a_host_of_the_site(haproxy: str) -> None:
    assert "http-check send meth GET uri /ready ver HTTP/1.1 hdr Host api.example.com" in haproxy
