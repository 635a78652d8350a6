"""Servers are drained, weighed and put back on nginx and HAProxy at once, and no request is lost.

The tests of this file build on each other in order.
"""

from __future__ import annotations

import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import ROOT, Host, Run, play
from load import Load

PREFIX = f"{os.environ.get('VMFLEET_PREFIX') or 'vmfleet'}-drain"
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k != "VMFLEET_SUBNET"}, "VMFLEET_PREFIX": PREFIX}
RELEASES = {"lb1": "trixie", "lb2": "bookworm", "app1": "trixie", "app2": "trixie"}
KINDS = {"lb1": "nginx", "lb2": "haproxy"}
NAME = "api.supernova.test"
VARIABLES = {
    "vmfleet_services": {"api": {"group": "app", "port": 8081, "ready": "/ready", "health": "/health"}},
    "lb_sites": [
        {
            "name": "api",
            "hosts": [NAME],
            "routes": [
                {"path": "/", "service": "api"},
                {"path": "/sticky", "service": "api", "balance": "ip_hash"},
            ],
        }
    ],
}


class Member(Host):
    @property
    def container(self) -> str:
        return f"{PREFIX}-{self.name}"


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Member]]:
    for release in sorted(set(RELEASES.values())):
        names = [f"--host={name}" for name, one in RELEASES.items() if one == release]
        command = [str(ROOT / "scripts/fleet"), "up", "--release", release, *names]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    yield {name: Member(name, release) for name, release in RELEASES.items()}
    if not os.environ.get("VMFLEET_KEEP"):
        subprocess.run([str(ROOT / "scripts/fleet"), "down"], env=ENVIRONMENT, timeout=600)


@pytest.fixture(scope="module")
def inventory(hosts: dict[str, Member], tmp_path_factory: pytest.TempPathFactory) -> Path:
    standing = yaml.safe_load((ROOT / ".fleet" / PREFIX / "hosts.yml").read_text())["all"]
    for name, kind in KINDS.items():
        standing["hosts"][name]["lb_type"] = kind
    document = {
        "all": {
            "vars": {**standing["vars"], **VARIABLES, "nginx_allow_from": ["any"], "haproxy_allow_from": ["any"]},
            "hosts": standing["hosts"],
            "children": {
                "lb": {"hosts": {"lb1": {}, "lb2": {}}},
                "app": {"hosts": {"app1": {}, "app2": {}}},
            },
        }
    }
    path = tmp_path_factory.mktemp("inventory") / "hosts.yml"
    path.write_text(yaml.safe_dump(document))
    certificate = (
        "mkdir -p /etc/vmfleet/tls && cd /etc/vmfleet/tls && [ -e host.pem ] || { openssl req -x509"
        " -newkey rsa:2048 -nodes -days 2 -keyout host.key -out host.crt -subj /CN=api 2>/dev/null"
        " && cat host.key host.crt > host.pem; }"
    )
    for name in KINDS:
        hosts[name].sh("command -v openssl >/dev/null || { apt-get -qq update && apt-get -qq -y install openssl; }")
        hosts[name].sh(certificate)
    for name in ("app1", "app2"):
        hosts[name].put("/usr/local/lib/echo.py", (ROOT / "tests/integration/front_door/echo_backend.py").read_text())
        unit = f"[Service]\nExecStart=/usr/bin/python3 /usr/local/lib/echo.py 0.0.0.0 8081 {name}\nRestart=always\n"
        hosts[name].put("/etc/systemd/system/echo.service", unit)
        hosts[name].sh("systemctl daemon-reload && systemctl restart echo")
    run = roles(path)
    assert run.rc == 0, run.output[-6000:]
    return path


def roles(inventory: Path) -> Run:
    tasks: list[dict[str, Any]] = [{"ansible.builtin.setup": {"gather_subset": ["!all", "min"]}}]
    tasks += [{"ansible.builtin.include_role": {"name": "vmfleet.ops.{{ lb_type }}"}}]
    return play([{"hosts": "lb", "gather_facts": False, "become": True, "tasks": tasks}], inventory=inventory)


def lb_server(inventory: Path, *options: str, **args: Any) -> Run:
    """One task for a host that is no balancer, as in a playbook that rolls through the application hosts."""
    tasks = [{"vmfleet.ops.lb_server": args}]
    return play(
        [{"hosts": "app1", "gather_facts": False, "tasks": tasks}], inventory=inventory, options=["--diff", *options]
    )


def fine(run: Run, changed: bool) -> dict[str, Any]:
    result = run.one("app1")
    assert run.rc == 0, run.output
    assert result["changed"] is changed, run.output
    return result


def refused(run: Run, *words: str) -> dict[str, Any]:
    result = run.one("app1")
    assert run.rc != 0, run.output
    for word in words:
        assert word in result["msg"], result["msg"]
    return result


def address(host: Member) -> str:
    return host.sh("hostname -I").split()[0]


def served(host: Member, path: str, number: int = 12) -> set[str]:
    """Names of the servers that answer; anything but 200 fails."""
    load = Load(address(host), NAME, path, rate=20)
    with load:
        time.sleep(number / 20)
    assert {status for _, status, *_ in load.answers} == {200}, (load.counts(), load.errors)
    return {name for _, _, name, _, _ in load.answers}


def works(host: Member) -> None:
    """Wait until the server of a host answers again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"http://{address(host)}:8081/ready", timeout=2):
                return
        except OSError:
            assert time.monotonic() < deadline, f"{host.name} does not come back"
            time.sleep(0.05)


def both(hosts: dict[str, Member]) -> list[Member]:
    return [hosts[name] for name in KINDS]


def test_check_mode_predicts_and_changes_nothing(hosts: dict[str, Member], inventory: Path) -> None:
    result = fine(lb_server(inventory, "--check", name="app1", state="drain"), changed=True)
    assert {name: set(one) for name, one in result["former"].items()} == {
        "lb1": {"api", "api_ip_hash"},
        "lb2": set(result["former"]["lb2"]),
    }
    assert result["settings"]["lb1"]["api"] == {"state": "drain", "weight": 100}
    for host in both(hosts):
        assert served(host, "/") == {"app1", "app2"}


def test_mistakes_are_named(inventory: Path, hosts: dict[str, Member]) -> None:
    refused(
        lb_server(inventory, name="app11", state="drain"), "'app11'", "did you mean app1?", "app1, app2", "lb1", "lb2"
    )
    refused(lb_server(inventory, name="app1", state="drain", services=["apy"]), "'apy'", "did you mean api?")
    refused(lb_server(inventory, name="app1", weight=101), "weight = 101")
    refused(lb_server(inventory, name="app1", state="drain", least=2), "least=2")
    refused(lb_server(inventory, name="app1", state="drain", balancers=["lbs"]), "'lbs'")


def test_a_drained_server_gets_nothing_new_and_finishes_what_it_has(hosts: dict[str, Member], inventory: Path) -> None:
    slow = [Load(address(host), NAME, "/slow?6", rate=4) for host in both(hosts)]
    steady = [Load(address(host), NAME, path) for host in both(hosts) for path in ("/", "/sticky")]
    for load in [*slow, *steady]:
        load.__enter__()
    time.sleep(1.5)
    for load in slow:
        load._stop.set()
    drained = lb_server(inventory, name="app1", state="drain", timeout=60)
    begun = time.monotonic()
    time.sleep(2)
    until = time.monotonic()
    for load in [*slow, *steady]:
        load.__exit__()
    result = fine(drained, changed=True)
    assert result["sessions"] == {"lb1": 0, "lb2": 0}
    for load in [*slow, *steady]:
        assert {status for _, status, *_ in load.answers} == {200}, (load.path, load.counts(), load.errors)
        assert set(load.servers(begun, until)) <= {"app2"}
    for load in slow:
        assert "app1" in load.servers(0, begun), load.answers
    fine(lb_server(inventory, name="app1", state="drain"), changed=False)


def test_a_drain_outlives_the_role_reload_and_restart(hosts: dict[str, Member], inventory: Path) -> None:
    run = roles(inventory)
    assert run.rc == 0, run.output
    assert not [line for line in run.results if line["result"].get("changed")], run.output
    for action in ("reload", "restart"):
        for name, kind in KINDS.items():
            hosts[name].sh(f"systemctl {action} {kind}")
        time.sleep(2)
        for host in both(hosts):
            assert served(host, "/") == served(host, "/sticky") == {"app2"}, action
    # A new configuration too.
    hosts["lb1"].sh("echo '# by hand' >> /etc/nginx/vmfleet/upstreams.conf")
    hosts["lb2"].sh("echo '# by hand' >> /etc/haproxy/haproxy.cfg")
    assert roles(inventory).rc == 0
    for host in both(hosts):
        assert served(host, "/") == {"app2"}


def test_a_server_comes_back_only_when_it_is_ready(hosts: dict[str, Member], inventory: Path) -> None:
    hosts["app1"].sh("touch /run/echo-app1-broken")
    refused(lb_server(inventory, name="app1", state="ready", timeout=2), "/ready answers 503", "stays drained")
    for host in both(hosts):
        assert served(host, "/") == {"app2"}
    hosts["app1"].sh("rm /run/echo-app1-broken")
    fine(lb_server(inventory, name="app1", state="ready"), changed=True)
    for host in both(hosts):
        assert served(host, "/") == {"app1", "app2"}


def test_weights_and_putting_back(hosts: dict[str, Member], inventory: Path) -> None:
    former = fine(lb_server(inventory, name="app1", weight=10), changed=True)["former"]
    assert former["lb1"]["api"] == {"state": "ready", "weight": 100}
    assert "weight=10 " in hosts["lb1"].sh("grep 'app1$' /etc/nginx/vmfleet/live.conf")
    fine(lb_server(inventory, name="app1", former=former), changed=True)
    fine(lb_server(inventory, name="app1", former=former), changed=False)


def test_one_balancer_that_fails_takes_the_others_back(hosts: dict[str, Member], inventory: Path) -> None:
    hosts["lb1"].sh("systemctl stop nginx")
    result = refused(
        lb_server(inventory, name="app1", state="drain"), "lb1: neither nginx nor haproxy", "put back on lb2"
    )
    assert result["changed"] is False
    hosts["lb1"].sh("systemctl start nginx")
    for host in both(hosts):
        assert served(host, "/") == {"app1", "app2"}


def test_sessions_that_do_not_end(hosts: dict[str, Member], inventory: Path) -> None:
    slow = [Load(address(host), NAME, "/slow?15", rate=4) for host in both(hosts)]
    for load in slow:
        load.__enter__()
    time.sleep(1.5)
    for load in slow:
        load._stop.set()
    try:
        refused(
            lb_server(inventory, name="app1", state="drain", timeout=2), "still had sessions after 2 s", "put back on"
        )
    finally:
        for load in slow:
            load.__exit__()
    for host in both(hosts):
        assert served(host, "/") == {"app1", "app2"}


def test_no_request_is_lost_while_servers_fail(hosts: dict[str, Member], inventory: Path) -> None:
    """Stopped and killed one after the other, frozen; drained and put back; the balancers reloaded meanwhile."""
    loads = [Load(address(host), NAME, rate=40) for host in both(hosts)]
    for load in loads:
        load.__enter__()
    time.sleep(1)
    # Close together: the next fault comes before the balancers have forgotten the last. One server always works.
    for name, fault in [("app1", "stop"), ("app2", "stop"), ("app1", "kill"), ("app2", "kill"), ("app1", "stop")]:
        hosts[name].sh(f"systemctl {fault} echo" if fault == "stop" else "systemctl kill --signal=KILL echo")
        time.sleep(2)
        hosts[name].sh("systemctl start echo")
        works(hosts[name])
    for name, kind in KINDS.items():
        hosts[name].sh(f"systemctl reload {kind}")
    time.sleep(6)
    # Its kernel still takes connections, so whoever was sent there waits until it goes on.
    hosts["app2"].sh("systemctl kill --signal=STOP echo")
    time.sleep(10)
    hosts["app2"].sh("systemctl kill --signal=CONT echo")
    time.sleep(2)
    fine(lb_server(inventory, name="app1", state="drain"), changed=True)
    time.sleep(2)
    fine(lb_server(inventory, name="app1", state="ready"), changed=True)
    for load in loads:
        load.__exit__()
    for load in loads:
        print(load.address, load.counts(), load.latency(), load.errors[:5])
        lost = [one for one in load.answers if one[0] == "GET" and one[1] != 200]
        assert not lost, (load.counts(), load.errors, lost[:10])
        # A POST that the stopped or killed server may have begun is not sent again.
        assert sum(1 for one in load.answers if one[1] != 200) <= 10, (load.counts(), load.errors)
