"""Checks against the real services that no role of the site runs: a name server, Sentinels, mutual TLS, time, search.

OpenSearch is in no distribution: a stand-in answers for it, with what version 2.19 answers.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from lab import HERE, ROOT, Host, Run, play

PREFIX = f"{os.environ.get('VMFLEET_PREFIX') or 'vmfleet'}-types"
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k != "VMFLEET_SUBNET"}, "VMFLEET_PREFIX": PREFIX}
SERVICES = HERE / "health_services"
TLS = "/root/tls"


class Member(Host):
    @property
    def container(self) -> str:
        return f"{PREFIX}-{self.name}"


def command(*words: str) -> None:
    done = subprocess.run(
        [str(ROOT / "scripts/fleet"), *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    command("up", "--host", "types1", "--release", "trixie")
    member = Member("types1", "trixie")
    member.put("/root/search.py", (SERVICES / "search.py").read_text())
    member.put("/tmp/search-status", "green")
    member.sh("setsid python3 /root/search.py >/dev/null 2>&1 </dev/null &")
    member.put("/root/setup.sh", (SERVICES / "setup.sh").read_text())
    # Packages take longer than Host.sh gives.
    setup = ["docker", "exec", member.container, "bash", "/root/setup.sh"]
    done = subprocess.run(setup, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    yield member
    if not os.environ.get("VMFLEET_KEEP"):
        command("down")


def look(checks: Sequence[dict[str, Any]], **options: Any) -> dict[str, dict[str, Any]]:
    """Results by name, from one call of the module."""
    task = {"vmfleet.ops.health": {"checks": list(checks), "fail": False, **options}}
    book = {"hosts": "types1", "gather_facts": False, "become": True, "tasks": [task]}
    run: Run = play([book], inventory=ROOT / ".fleet" / PREFIX / "hosts.yml")
    assert run.rc == 0, run.output
    return {entry["name"]: entry for entry in run.one("types1")["results"]}


def judge(host: Host, expected: dict[str, tuple[dict[str, Any], str, str]], **options: Any) -> None:
    """Every check has its state, and says why."""
    # On a busy machine an answer may take its time.
    seen = look([{"name": name, "timeout": 30, **keys} for name, (keys, _state, _words) in expected.items()], **options)
    wrong = {
        name: (seen[name]["state"], seen[name]["message"])
        for name, (_keys, state, words) in expected.items()
        if seen[name]["state"] != state or words not in seen[name]["message"]
    }
    assert not wrong, json.dumps(wrong, indent=1)


def dns(query: str, **keys: Any) -> dict[str, Any]:
    return {"type": "dns", "query": query, "server": "127.0.0.1", "port": 5300, **keys}


def https(port: int, **keys: Any) -> dict[str, Any]:
    return {"type": "http", "url": f"https://127.0.0.1:{port}/", "ca": f"{TLS}/ca.crt", **keys}


def tls(**keys: Any) -> dict[str, Any]:
    return {"type": "tls", "port": 8445, "ca": f"{TLS}/ca.crt", "server_name": "www.example.test", **keys}


def redis(port: int, **keys: Any) -> dict[str, Any]:
    return {"type": "redis", "port": port, **keys}


PROMETHEUS = {"type": "prometheus", "url": "http://127.0.0.1:9091"}
SEARCH_URL = {"type": "search", "url": "http://127.0.0.1:9200"}
PROOF = {"client_certificate": f"{TLS}/client.crt", "client_key": f"{TLS}/client.key"}
STRANGER = {"client_certificate": f"{TLS}/stranger.crt", "client_key": f"{TLS}/stranger.key"}
QUORUM = redis(7100, sentinel="cache")
REPLICA = redis(7001, role="replica")


def test_names(host: Host) -> None:
    judge(host, {
        "both addresses": (dns("www.example.test", expect=["192.0.2.10", "192.0.2.11"]), "ok", "192.0.2.10, "),
        "an alias": (dns("alias.example.test", expect=["192.0.2.11"]), "ok", "192.0.2.11"),
        "of IPv6": (dns("www.example.test", record="AAAA"), "ok", "2001:db8::10"),
        "by the system": ({"type": "dns", "query": "localhost", "expect": ["127.0.0.1"]}, "ok", "127.0.0.1"),
        "not the one wanted": (dns("www.example.test", expect=["192.0.2.99"]), "crit", "wanted 192.0.2.99"),
        "a name that is not there": (dns("no.example.test"), "crit", "code 3"),
        "no record of the type": (dns("ns.example.test", record="AAAA"), "crit", "ns.example.test"),
        "a server that refuses": (dns("www.example.org"), "crit", "code 5"),
        "no server": (dns("www.example.test", port=5399, timeout=1), "crit", "127.0.0.1"),
    })  # fmt: skip


def test_mutual_tls_http2_and_certificates(host: Host) -> None:
    judge(host, {
        "proves itself": (https(8443, json={"by": "CN=client"}, **PROOF), "ok", "200"),
        "proves nothing": (https(8443), "crit", "400"),
        "is a stranger": (https(8443, **STRANGER), "crit", "400"),
        "another authority": (https(8445, ca=f"{TLS}/stranger.crt"), "crit", "certificate: "),
        "a proof that is not there": (https(8443, client_certificate="/root/no"), "unknown", "cannot be loaded"),
        "HTTP/2": (https(8445, http2=True), "ok", "200"),
        "HTTP/2 with a proof": (https(8443, http2=True, **PROOF), "ok", "200"),
        "no HTTP/2": (https(8444, http2=True, status=[302]), "crit", "HTTP/2 is not offered"),
        "a way": (https(8444, redirects=1, body="^arrived$", response_headers={"X-Way": "/there"}), "ok", "there: 200"),
        "no further": (https(8444), "crit", "status 302"),
        "names": (tls(names=["www.example.test", "api.example.test"]), "warn", "good until"),
        "a name it has not": (tls(names=["shop.example.test"]), "crit", "not for shop.example.test, only for www."),
        "asked for another name": (tls(server_name="shop.example.test"), "crit", "certificate: "),
        "days left": (tls(warn=5, crit=2), "ok", "good until"),
        "too few days left": (tls(warn=30, crit=15), "crit", "crit at <= 15 days"),
        "of a file": ({"type": "tls", "path": f"{TLS}/client.crt", "ca": f"{TLS}/ca.crt", "warn": 5}, "ok", "good"),
        "of a file, a stranger": ({"type": "tls", "path": f"{TLS}/stranger.crt", "ca": f"{TLS}/ca.crt"}, "crit", ""),
        "twenty tries": (https(8445, samples=20, latency={"p95": {"crit": 5000}}), "ok", "200"),
        "too slow": (https(8445, samples=20, latency={"p50": {"crit": 0.01}}), "crit", "p50 of 20 tries"),
    })  # fmt: skip


def test_time_and_backups(host: Host) -> None:
    host.put("/srv/backup/status.json", json.dumps({"finished": "2020-01-01T00:00:00Z", "size": 10}))
    clock = {"type": "clock", "server": "127.0.0.1", "warn": 5, "crit": 10}
    files = {"type": "backup", "path": "/srv/backup/*.dump"}
    status = {"type": "backup", "status": "/srv/backup/status.json"}
    judge(host, {
        "the same time": ({**clock, "port": 1123}, "ok", "s from 127.0.0.1"),
        "half a minute off": ({**clock, "port": 1124}, "crit", "+30."),
        "nobody tells": ({**clock, "port": 1199, "timeout": 1}, "unknown", "127.0.0.1"),
        "young enough": ({**files, "crit": 86400}, "ok", "2.0 h old, 4096 B"),
        "too old": ({**files, "crit": 3600}, "crit", "crit at >= 3600 s"),
        "too small": ({**files, "min_size": 5000}, "crit", "4096 B, less than 5000 B"),
        "none": ({**files, "path": "/srv/backup/*.tar"}, "crit", "nothing matches"),
        "of old": ({**status, "crit": 86400}, "crit", "h old, 10 B"),
        "never verified": ({**status, "max_verified_age": 86400}, "crit", "never verified"),
    })  # fmt: skip


def test_quorum_targets_and_clusters(host: Host) -> None:
    """Well, then broken, then mended."""
    password = {"password_file": "/root/password"}
    login = {"login": "probe", "password_file": "/root/probe"}
    judge(host, {
        "quorum": (QUORUM, "ok", "3 usable Sentinels"),
        "no such name": (redis(7100, sentinel="shop"), "crit", "No such master"),
        "primary": (redis(7000, role="primary", refuses_strangers=True, **password), "ok", "primary"),
        "a user of its lists": (redis(7000, **login), "ok", "primary"),
        "a wrong password": (redis(7000, password_file="/root/probe"), "crit", "password is refused: WRONGPASS"),
        "lets in anybody": (redis(7001, refuses_strangers=True), "crit", "lets in who has no password"),
        "replica": (REPLICA, "ok", "replica"),
        "is no primary": (redis(7001, role="primary"), "crit", "it is the replica and not the primary"),
        "targets": ({**PROMETHEUS, "min_targets": 2, "startup": 0}, "ok", "2 of 2 targets up"),
        "too few targets": ({**PROMETHEUS, "min_targets": 3}, "crit", "2 targets instead of at least 3"),
        "a query": ({**PROMETHEUS, "query": "count(up == 1)", "expect": 2}, "ok", "is 2"),
        "a query past its bound": ({**PROMETHEUS, "query": "scalar(count(up))", "crit": {"ge": 2}}, "crit", "ge 2"),
        "a query without answer": ({**PROMETHEUS, "query": "nothing_of_this_name"}, "crit", "gives no series"),
        "a query that is none": ({**PROMETHEUS, "query": "("}, "crit", "status 400"),
        "search": ({**SEARCH_URL, "nodes": 2}, "ok", "opensearch is green, 2 nodes"),
        "too few nodes": ({**SEARCH_URL, "nodes": 3}, "crit", "wanted 3 nodes"),
    }, wait=20)  # fmt: skip

    host.put("/tmp/search-status", "yellow")
    # Two of three Sentinels first: the last one alone may not promote anybody.
    host.sh("kill -KILL $(cat /tmp/7101/pid /tmp/7102/pid); sleep 2; kill -KILL $(pgrep -f '[r]edis-server.*:7000')")
    judge(host, {
        "quorum": (QUORUM, "crit", "NOQUORUM"),
        "primary": (redis(7000, **password), "crit", "Connection refused"),
        "replica": (REPLICA, "crit", "the link to its primary is down"),
        "search": (SEARCH_URL, "warn", "opensearch is yellow"),
        "search without replicas": ({**SEARCH_URL, "yellow_is_ok": True}, "ok", "yellow"),
        "targets": (PROMETHEUS, "ok", "2 of 2 targets up"),
    })  # fmt: skip

    host.put("/tmp/search-status", "red")
    judge(host, {"search": (SEARCH_URL, "crit", "opensearch is red")})
    host.sh("kill -KILL $(pgrep -f '[/]root/search.py')")
    host.wait(
        'wget -qO- http://127.0.0.1:9091/api/v1/targets | grep -q \'"health":"down"\''
        ' || python3 -c \'import urllib.request as u; assert b"down" in'
        ' u.urlopen("http://127.0.0.1:9091/api/v1/targets").read()\''
    )
    judge(host, {
        "search": (SEARCH_URL, "crit", "Connection refused"),
        "targets": (PROMETHEUS, "crit", "http://127.0.0.1:9200/metrics"),
    })  # fmt: skip


def test_a_frozen_server_is_given_up_in_time(host: Host) -> None:
    """Name server, Redis, web server and time server accept and say nothing; none of them holds up the run."""
    host.sh("kill -STOP $(pgrep -x named) $(pgrep -f '[r]edis-server.*:7001') $(pgrep -x nginx) $(cat /tmp/chrony.pid)")
    try:
        judge(host, {
            "names": (dns("www.example.test", timeout=2), "crit", "timed out"),
            "replica": (redis(7001, timeout=2), "crit", "gives no answer"),
            "web": (https(8445, timeout=2), "crit", "8445"),
            "certificate": (tls(timeout=2), "crit", "TLS"),
            "time": ({"type": "clock", "server": "127.0.0.1", "port": 1123, "timeout": 2}, "unknown", "timed out"),
            "host": ({"type": "load"}, "ok", "load"),
        }, deadline=15)  # fmt: skip
    finally:
        host.sh("kill -CONT $(pgrep -x named) $(pgrep -f '[r]edis-server.*:7001') $(pgrep -x nginx)")
