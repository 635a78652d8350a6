"""The front-door rows of the requirement sheets' error tables: what both balancers render lacks the fault.

Rows that only a running balancer can show are in tests/integration/front_door/promises.
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
PROMISES = ROOT / "tests/integration/front_door/promises"
# Every row of the tables E0, E1, E3 and E4 about the front door; each has a test here or a promise of the suite.
ROWS = {
    *(f"E0-{row:02}" for row in (*range(1, 22), 23, 29, 30, 31, 32)),
    *(f"E1-{row:02}" for row in (*range(1, 15), 37, 39, 41)),
    *(f"E3-{row:02}" for row in (1, 2, 3)),
    *(f"E4-{row:02}" for row in (*range(1, 10), 26, 28)),
}
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
            {
                "path": "/vector",
                "service": "api",
                "strip_prefix": True,
                "body_max": "50m",
                "balance": "hash",
                "timeout_read": 120,
            },
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


@pytest.fixture(scope="module")
def parts(nginx: dict[str, str], haproxy: str) -> dict[str, str]:
    """What is rendered, and the parts of it that the rows speak of."""

    def location(path: str) -> str:
        return nginx["sites.conf.j2"].split(f"location {path} {{")[1].split("\n    }")[0]

    def section(title: str) -> str:
        return re.split(r"\n(?=\S)", haproxy.split(f"\n{title}\n")[1])[0]

    return {
        "nginx": "".join(nginx.values()),
        "nginx main": nginx["nginx.conf.j2"],
        "nginx sites": nginx["sites.conf.j2"],
        "nginx upstreams": nginx["upstreams.conf.j2"],
        "haproxy": haproxy,
        "both": "".join(nginx.values()) + haproxy,
        "haproxy certificates": rendered("haproxy")["crt-list.txt.j2"],
        **{f"nginx {path}": location(path) for path in ("= /health", "/ws/", "/stream/", "/vector/")},
        **{
            f"haproxy {title}": section(title)
            for title in ("defaults", "frontend http", "backend api_root", "backend api_ws")
        },
    }


# Rows, part, whether the part has it, and what: a pattern, ^ and $ at the lines' ends.
TABLE = [
    ("E0-02 E1-03", "nginx main", True, r"^events \{"),
    ("E0-02 E1-03", "nginx main", True, r"^http \{"),
    ("E0-07", "both", False, r"Connection ['\"]?upgrade"),
    ("E0-10", "nginx upstreams", True, r"^    zone api 128k;$"),
    ("E0-11 E4-05", "nginx upstreams", True, r"^    hash \$binary_remote_addr consistent;$"),
    ("E0-12", "nginx upstreams", True, r"^    server 10\.0\.0\.1:8081 "),
    ("E0-12", "haproxy", True, r"^    server api1 10\.0\.0\.1:8081 "),
    ("E0-13 E1-07", "nginx sites", True, r"^    location /static/ \{"),
    ("E0-13 E1-07", "nginx sites", True, r"^        alias /srv/s/;$"),
    ("E0-18", "haproxy", True, r"^    log stdout format raw local0$"),
    ("E0-18", "haproxy defaults", True, r"^    log global$"),
    ("E0-18", "haproxy defaults", True, r"^    option httplog$"),
    ("E0-19", "both", False, r"http-request reject|return 444"),
    ("E0-20", "haproxy frontend http", True, r"redirect code 301 "),
    ("E0-20", "haproxy frontend http", False, r"track-sc"),
    ("E0-21 E1-14", "haproxy", True, r"http-request set-header X-Forwarded-For %\[src\]$"),
    ("E0-21 E1-14", "haproxy", True, r"http-request set-header X-Forwarded-Proto https$"),
    ("E0-21 E1-14", "haproxy defaults", True, r"^    timeout http-request 10s$"),
    ("E0-21 E1-14", "haproxy backend api_ws", True, r"^    timeout tunnel 3600s$"),
    ("E0-21 E1-14", "haproxy", True, r"^    stats socket /run/haproxy/admin.sock mode 660 "),
    ("E0-23 E1-14", "haproxy certificates", True, r"^/etc/vmfleet/tls/host\.pem$"),
    ("E0-23 E1-14", "both", False, r"/etc/ssl/"),
    ("E0-31", "both", False, r"X-XSS-Protection|expires "),
    ("E1-06 E4-04", "nginx /ws/", True, r"set \$vmfleet_websocket 1;"),
    ("E1-06", "nginx /stream/", True, r"^        proxy_buffering off;$"),
    ("E1-11 E4-08", "both", False, r"ssl_stapling|resolver"),
    ("E1-37", "nginx sites", False, r"proxy_pass https:"),
    ("E1-37", "haproxy backend api_root", False, r"^    server .* ssl"),
    ("E1-39", "haproxy backend api_root", True, r"http-check send meth GET uri /ready "),
    ("E1-41", "nginx /vector/", True, r"^        proxy_read_timeout 120s;$"),
    ("E4-02", "nginx = /health", True, r"proxy_pass http://api(/health)?;"),
    ("E4-04", "nginx /ws/", True, r"^        proxy_connect_timeout 5s;$"),
    ("E4-04", "nginx /ws/", True, r"^        proxy_read_timeout 3600s;$"),
    ("E4-04", "haproxy backend api_ws", True, r"^    timeout connect 5s$"),
    ("E4-05", "nginx upstreams", False, r"server [^;]*8081 weight=100;"),
    ("E4-26", "nginx sites", True, r"^    listen 127\.0\.0\.1:8080;$"),
    ("E4-26", "nginx sites", True, r"^        stub_status;$"),
    ("E4-28", "haproxy backend api_root", True, r" hdr Host api\.example\.com$"),
]


@pytest.mark.parametrize(("rows", "part", "has", "pattern"), TABLE, ids=lambda value: str(value).replace(" ", "-"))
def test_table(parts: dict[str, str], rows: str, part: str, has: bool, pattern: str) -> None:
    found = re.search(pattern, parts[part], re.MULTILINE)
    assert bool(found) == has, f"{rows}: {part}: {found or 'nothing found'}"


def test_every_row_has_a_test() -> None:
    promised = "".join(theme.read_text() for theme in PROMISES.glob("*.py"))
    named = set(re.findall(r"\bE\d-\d\d\b", promised + " ".join(rows for rows, *_ in TABLE)))
    named |= {f"E{table}-{row}" for name in globals() for table, row in re.findall(r"_e(\d)_(\d\d)(?=_)", name)}
    assert not ROWS - named, sorted(ROWS - named)


def directives(text: str, name: str) -> list[str]:
    return re.findall(rf"^ *{name} (.*);$", text, re.MULTILINE)


def test_e0_01_e1_01_zones_stand_at_the_http_level(nginx: dict[str, str]) -> None:
    assert len(directives(nginx["nginx.conf.j2"], "limit_req_zone")) == 2
    assert "_zone " not in nginx["sites.conf.j2"]


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


def test_e0_19_e1_02_e4_01_refusals_are_answers_with_429(nginx: dict[str, str], haproxy: str) -> None:
    assert "http-request reject" not in haproxy
    assert haproxy.count("deny deny_status 429") == 2
    for name in ("limit_req_status", "limit_conn_status"):
        assert directives(nginx["nginx.conf.j2"], name) == ["429"]
    for zone in directives(nginx["sites.conf.j2"], "limit_req"):
        assert f"{zone.split()[0]}:10m" in nginx["nginx.conf.j2"]


@pytest.mark.parametrize("release", ["bookworm", "trixie"])
def test_e0_30_e4_08_http_2_is_written_as_the_release_wants_it(release: str) -> None:
    sites = rendered("nginx", release)["sites.conf.j2"]
    assert ("http2 on;" in sites) == (release == "trixie")
    assert (" ssl http2" in sites) == (release == "bookworm")


def test_e0_32_e1_41_retries_are_bounded_and_answers_of_500_end_them(nginx: dict[str, str], haproxy: str) -> None:
    main = nginx["nginx.conf.j2"]
    assert directives(main, "proxy_next_upstream") == ["error timeout invalid_header"]
    assert directives(main, "proxy_next_upstream_tries") == ["3"]
    assert directives(main, "proxy_next_upstream_timeout") == ["10s"]
    assert "retry-on conn-failure empty-response junk-response\n" in haproxy
    # Silence is a reason to ask another server only where it is short.
    for backend in haproxy.split("\nbackend ")[1:]:
        limit = re.search(r"timeout server (\d+)s", backend)
        assert ("response-timeout" in backend) == bool(limit and int(limit[1]) < 10), backend


def test_what_a_sticky_upstream_has_no_server_left_for_goes_to_one_that_has(nginx: dict[str, str]) -> None:
    sites = nginx["sites.conf.j2"]
    for path in ("= /vector", "/vector/"):
        assert "error_page 502 = @api_vector;" in sites.split(f"location {path} {{")[1].split("\n    }")[0]
    resort = sites.split("location @api_vector {")[1].split("\n    }")[0]
    assert "proxy_pass http://api$vmfleet_path_api_vector;" in resort
    assert 'if ($vmfleet_none_left = "") {' in resort
    pattern = re.search(r'map \$upstream_addr \$vmfleet_none_left \{.*?"~(.*?)" 1;', nginx["nginx.conf.j2"], re.DOTALL)
    assert pattern
    for told, none_left in {
        "api_hash": True,
        "10.0.0.1:8081, api_hash": True,
        "10.0.0.1:8081": False,
        "[fd00::1]:8081, [fd00::2]:8081": False,
        "": False,
    }.items():
        assert bool(re.search(pattern[1], told)) == none_left, told


def test_e0_29_a_route_to_a_service_that_nobody_declared_is_refused() -> None:
    site = {**SITES[0], "routes": [{"path": "/memory", "service": "memory"}]}
    with pytest.raises(lb.ModelError, match="memory"):
        lb.build_model([site], SERVICES, GROUPS, HOSTVARS)


def test_e1_04_no_two_sites_have_a_name_in_common() -> None:
    with pytest.raises(lb.ModelError, match="answers to it already"):
        lb.build_model([*SITES, {**SITES[0], "name": "again"}], SERVICES, GROUPS, HOSTVARS)


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


def test_e1_13_statistics_are_closed(haproxy: str) -> None:
    assert "stats enable" not in haproxy
    assert re.findall(r"bind (\S+)$", haproxy.split("frontend metrics")[1], re.MULTILINE) == ["127.0.0.1:8404"]
