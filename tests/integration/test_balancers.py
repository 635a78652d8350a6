"""Servers are drained, weighed and put back on nginx and HAProxy at once, and no request is lost.

The tests of this file build on each other in order.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab import ROOT, Host, Run, play
from load import Answer, Load, WebSocket

PREFIX = f"{os.environ.get('VMFLEET_PREFIX') or 'vmfleet'}-drain"
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k != "VMFLEET_SUBNET"}, "VMFLEET_PREFIX": PREFIX}
RELEASES = {"lb1": "trixie", "lb2": "bookworm", "app1": "trixie", "app2": "trixie", "app3": "trixie"}
KINDS = {"lb1": "nginx", "lb2": "haproxy"}
CONFIGS = {
    "lb1": ["/etc/nginx/nginx.conf", "/etc/nginx/vmfleet/upstreams.conf", "/etc/nginx/conf.d/vmfleet-sites.conf"],
    "lb2": ["/etc/haproxy/haproxy.cfg", "/etc/haproxy/crt-list.txt"],
}
NAME = "api.supernova.test"
# How long the test under load lasts, and how many requests a second each balancer gets in it.
LOAD_SECONDS, LOAD_RATE = 300, 100
ROUTES = [
    # A server that says nothing for so long is given up, and a GET goes to another: twice within tries_timeout (10 s).
    {"path": "/", "service": "api", "timeout_connect": 2, "timeout_read": 4},
    {"path": "/slow", "service": "api"},
    {"path": "/sticky", "service": "api", "balance": "ip_hash"},
    {"path": "/ws", "service": "ws", "websocket": True},
]


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


def declare(path: Path, servers: int = 2, routes: list[dict[str, Any]] | None = None, **variables: Any) -> None:
    """Write the inventory: both balancers before this many servers, with more routes and variables."""
    standing = yaml.safe_load((ROOT / ".fleet" / PREFIX / "hosts.yml").read_text())["all"]
    for name, kind in KINDS.items():
        standing["hosts"][name]["lb_type"] = kind
    document = {
        "all": {
            "vars": {
                **standing["vars"],
                "vmfleet_services": {
                    "api": {"group": "app", "port": 8081, "ready": "/ready", "health": "/health"},
                    "ws": {"group": "app", "port": 8082, "ready": "/ready"},
                },
                "lb_sites": [{"name": "api", "hosts": [NAME], "routes": ROUTES + (routes or [])}],
                "nginx_allow_from": ["any"],
                "haproxy_allow_from": ["any"],
                **variables,
            },
            "hosts": standing["hosts"],
            "children": {
                "lb": {"hosts": {name: {} for name in KINDS}},
                "app": {"hosts": {f"app{number + 1}": {} for number in range(servers)}},
            },
        }
    }
    path.write_text(yaml.safe_dump(document))


@pytest.fixture(scope="module")
def inventory(hosts: dict[str, Member], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inventory") / "hosts.yml"
    declare(path)
    certificate = (
        "mkdir -p /etc/vmfleet/tls && cd /etc/vmfleet/tls && [ -e host.pem ] || { openssl req -x509 -newkey ec"
        " -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout host.key -out host.crt -subj /CN=api 2>/dev/null"
        " && cat host.key host.crt > host.pem; }"
    )
    for name in KINDS:
        hosts[name].sh("command -v openssl >/dev/null || { apt-get -qq update && apt-get -qq -y install openssl; }")
        hosts[name].sh(certificate)
    for name in servers(hosts):
        hosts[name].put("/usr/local/lib/echo.py", (ROOT / "tests/integration/front_door/echo_backend.py").read_text())
        for service, port in (("echo", 8081), ("echo-ws", 8082)):
            start = f"/usr/bin/python3 /usr/local/lib/echo.py 0.0.0.0 {port} {name}"
            hosts[name].put(f"/etc/systemd/system/{service}.service", f"[Service]\nExecStart={start}\nRestart=always\n")
        hosts[name].sh("rm -f /run/echo-*; systemctl daemon-reload && systemctl restart echo echo-ws")
    run = roles(path)
    assert run.rc == 0, run.output[-6000:]
    return path


def servers(hosts: dict[str, Member]) -> list[str]:
    return [name for name in hosts if name not in KINDS]


def roles(inventory: Path) -> Run:
    tasks: list[dict[str, Any]] = [{"ansible.builtin.setup": {"gather_subset": ["!all", "min"]}}]
    tasks += [{"ansible.builtin.include_role": {"name": "vmfleet.ops.{{ lb_type }}"}}]
    book = {"hosts": "lb", "gather_facts": False, "become": True, "tasks": tasks}
    return play([book], inventory=inventory)


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
    assert {answer.status for answer in load.answers} == {200}, (load.counts(), load.errors)
    return {answer.server for answer in load.answers}


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
        "lb1": {"api", "api_ip_hash", "ws"},
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
        assert {answer.status for answer in load.answers} == {200}, (load.path, load.counts(), load.errors)
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


def test_haproxy_gives_the_only_server_left_a_second(hosts: dict[str, Member]) -> None:
    """Where the only one that HAProxy knows to be up is killed and comes back at once, no GET is given up before."""
    hosts["app1"].sh("systemctl stop echo")
    hosts["lb2"].wait("journalctl -t haproxy -o cat -g 'api_root/app1 is' -n 1 | grep -q DOWN")
    try:
        with Load(address(hosts["lb2"]), NAME, rate=LOAD_RATE) as load:
            for _ in range(8):
                time.sleep(2)
                hosts["app2"].sh("systemctl kill --signal=KILL echo")
                works(hosts["app2"])
            time.sleep(2)
    finally:
        hosts["app1"].sh("systemctl start echo")
    lost = [answer for answer in load.answers if answer.method == "GET" and answer.status != 200]
    assert not [answer for answer in lost if answer.taken < 0.9 or not answer.status], (load.counts(), lost)


@dataclass
class Trial:
    """Faults under load, with the moments at which a server may have lost what it was given."""

    hosts: dict[str, Member]
    inventory: Path
    faults: list[tuple[str, str, float, float]] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    steps: list[tuple[float, str]] = field(default_factory=list)
    more: bool = False

    def step_at(self, moment: float) -> str:
        """The step that had begun last."""
        return max((step for step in self.steps if step[0] <= moment), default=(0.0, "nothing"))[1]

    @contextlib.contextmanager
    def fault(self, kind: str, name: str, seconds: float) -> Iterator[Member]:
        begun = time.monotonic()
        yield self.hosts[name]
        time.sleep(seconds)
        self.done[kind] += 1
        self.faults.append((kind, name, begun, time.monotonic()))

    def over(self, name: str) -> None:
        """What the server still holds of the fault's requests is answered or lost once it works again."""
        works(self.hosts[name])
        kind, _, begun, _ = self.faults[-1]
        self.faults[-1] = (kind, name, begun, time.monotonic())

    def stopped(self, name: str) -> None:
        with self.fault("stopped", name, 2) as host:
            host.sh("systemctl stop echo")
        host.sh("systemctl start echo")
        self.over(name)

    def killed(self, name: str) -> None:
        with self.fault("killed", name, 1) as host:
            host.sh("systemctl kill --signal=KILL echo")
        self.over(name)

    def frozen(self, name: str) -> None:
        """Its kernel still takes connections, so whoever was sent there waits until it goes on."""
        with self.fault("frozen", name, 10) as host:
            host.sh("systemctl kill --signal=STOP echo")
        host.sh("systemctl kill --signal=CONT echo")
        self.over(name)

    def unreachable(self, name: str) -> None:
        """As a machine that lost its power: nothing comes back from it."""
        routes = [f"blackhole {address(host)}/32" for host in both(self.hosts)]
        with self.fault("unreachable", name, 8) as host:
            host.sh(" && ".join(f"ip route add {route}" for route in routes))
        host.sh(" && ".join(f"ip route del {route}" for route in routes))
        self.over(name)

    def restarted_while_drained(self, name: str) -> None:
        """Planned work: nothing is lost, POSTs included, so this is no fault."""
        drained = lb_server(self.inventory, name=name, state="drain", services=["api"])
        fine(drained, changed=True)
        self.hosts[name].sh("systemctl restart echo")
        fine(lb_server(self.inventory, name=name, state="ready", services=["api"]), changed=True)
        self.done["drained, restarted and put back"] += 1

    def reloaded(self) -> None:
        for name, kind in KINDS.items():
            self.hosts[name].sh(f"systemctl reload {kind}")
        self.done["reloaded"] += 1

    def reconfigured(self) -> None:
        """A route and a server more, or less: nothing else changes."""
        self.more = not self.more
        self.declare()
        before = {name: self.config(name) for name in KINDS}
        run = roles(self.inventory)
        assert run.rc == 0, run.output
        for name in KINDS:
            lines = Counter(self.config(name))
            lines.subtract(before[name])
            added = {line for line, count in lines.items() if count > 0}
            removed = {line for line, count in lines.items() if count < 0}
            gained, lost = (added, removed) if self.more else (removed, added)
            assert any("app3" in line for line in gained), gained
            assert any("/added" in line for line in gained), gained
            assert not lost, (name, lost)
        self.done["reconfigured"] += 1

    def config(self, name: str) -> list[str]:
        return self.hosts[name].sh(f"cat {' '.join(CONFIGS[name])}").splitlines()

    def declare(self, **variables: Any) -> None:
        declare(
            self.inventory,
            3 if self.more else 2,
            [{"path": "/added", "service": "api"}] if self.more else [],
            **variables,
        )

    def misconfigured(self) -> None:
        """A value that only the balancer itself can refuse: the run fails, and what was served is served on."""
        before = {name: self.config(name) for name in KINDS}
        self.declare(nginx_certificate="missing", haproxy_certificate="missing")
        run = roles(self.inventory)
        self.declare()
        for name in KINDS:
            assert run.of(name)[-1]["outcome"] == "failed", run.output
            assert "missing." in str(run.of(name)[-1]), run.output
            assert self.config(name) == before[name]
        self.done["misconfigured"] += 1

    def logged(self, request: Answer, balancer: str) -> str:
        """What the balancer wrote down about a request."""
        log = f"/var/log/{KINDS[balancer]}/access.log"
        return self.hosts[balancer].sh(f"grep -F '/?{request.tag} ' {log}", check=False).strip()

    def culprit(self, lost: Answer, balancer: str) -> str:
        """The fault that hit a server while it had this request, as the balancer's log tells; empty if none did."""
        sent_to = r"(\d[\d.]+):8081 [\d.-]" if KINDS[balancer] == "nginx" else r" api\w*/(app\d) "
        found = re.search(sent_to, self.logged(lost, balancer))
        names = {address(self.hosts[name]): name for name in servers(self.hosts)}
        server = names.get(found[1], found[1]) if found else ""
        for kind, name, begun, ended in self.faults:
            if name == server and begun <= lost.begun + lost.taken and lost.begun <= ended and lost.status:
                return f"{kind} {name}"
        return ""


def test_no_request_is_lost_while_servers_fail_and_balancers_change(hosts: dict[str, Member], inventory: Path) -> None:
    """300 s of load on both balancers while servers and configurations come and go.

    No GET is lost. A POST is only lost with a server that had it already, where to send it again might do it twice; and
    none is done twice.
    """
    for host in map(hosts.__getitem__, servers(hosts)):
        host.sh("rm -f /run/echo-*-posts")
    trial = Trial(hosts, inventory)
    loads = {host.name: Load(address(host), NAME, rate=LOAD_RATE, tag=host.name) for host in both(hosts)}
    sockets = {
        (host.name, every): WebSocket(address(host), NAME, "/ws", every) for host in both(hosts) for every in (0, 30)
    }
    steps: list[tuple[Callable[..., None], tuple[str, ...]]] = [
        (trial.stopped, ("app1",)),
        # Close together: the next fault comes before the balancers have forgotten the last. One server always works,
        # though a balancer may not know it yet.
        (trial.stopped, ("app2",)),
        (trial.killed, ("app1",)),
        (trial.killed, ("app2",)),
        (trial.reloaded, ()),
        (trial.frozen, ("app2",)),
        (trial.stopped, ("app1",)),
        (trial.reconfigured, ()),
        (trial.unreachable, ("app1",)),
        (trial.killed, ("app2",)),
        (trial.misconfigured, ()),
        (trial.restarted_while_drained, ("app2",)),
    ]
    begun = time.monotonic()
    with contextlib.ExitStack() as sending:
        for load in loads.values():
            sending.enter_context(load)
        for step, names in itertools.cycle(steps):
            trial.steps.append((time.monotonic(), " ".join((step.__name__, *names))))
            step(*names)
            time.sleep(1)
            seconds = time.monotonic() - begun
            # A machine too busy to send as fast as wanted gets twice the time; the report tells the rate.
            sent_all = all(len(load.answers) >= LOAD_RATE * LOAD_SECONDS for load in loads.values())
            enough = LOAD_SECONDS if sent_all else 2 * LOAD_SECONDS
            if seconds > enough and trial.done["reconfigured"] >= 2:
                break
    seconds = time.monotonic() - begun
    held = {key: socket.finish() for key, socket in sockets.items()}

    report = [f"{seconds:.0f} s; {', '.join(f'{what} {count} times' for what, count in sorted(trial.done.items()))}"]
    failures = []
    processed = Counter(
        tag for name in servers(hosts) for tag in hosts[name].sh(f"cat /run/echo-{name}-posts || true").split()
    )
    for name, load in loads.items():
        lost = [answer for answer in load.answers if answer.status != 200]
        reasons = Counter(trial.culprit(answer, name) for answer in lost if answer.method == "POST")
        unexplained = [answer for answer in lost if answer.method == "GET" or not trial.culprit(answer, name)]
        twice = [tag for tag, times in processed.items() if tag.startswith(f"{name}-") and times > 1]
        unsaid = [answer.tag for answer in load.answers if answer[:2] == ("POST", 200) and not processed[answer.tag]]
        report.append(
            f"feature 2, 20, 81: {KINDS[name]} {RELEASES[name]}: {len(load.answers) / seconds:.0f} requests/s,"
            f" {load.counts()}, {load.latency()} ms; POSTs lost with a server: {dict(reasons) or 'none'};"
            f" POSTs done twice: {len(twice)}"
        )
        failures += [
            f"{name}, {trial.step_at(answer.begun)}: {answer} {load.errors.get(answer.tag, '')}"
            f" {trial.logged(answer, name)}"
            for answer in unexplained
        ]
        failures += [f"{name}: {tag} was done twice" for tag in twice]
        failures += [f"{name}: only {len(load.answers)} requests"] * (3 * len(load.answers) < LOAD_RATE * LOAD_SECONDS)
        failures += [f"{name}: {tag} was answered with 200 and never done" for tag in unsaid]
    for (name, every), stood in held.items():
        said = sockets[name, every].messages
        report.append(
            f"feature 8: {KINDS[name]} {RELEASES[name]}: a WebSocket with a message"
            f" {f'every {every} s' if every else 'at the end only'} stood for {stood:.0f} s ({said} messages), over"
            f" {trial.done['reloaded'] + trial.done['reconfigured']} reloads"
        )
        assert stood >= LOAD_SECONDS
    (ROOT / "tests/output").mkdir(exist_ok=True)
    (ROOT / "tests/output/front-door-under-load.txt").write_text("\n".join(report) + "\n")
    print("\n".join(report))
    assert not failures, failures[:20]
