"""The whole site on a fresh local fleet: first run, verdict, second run, drift, bad input.

The tests of this file build on each other in order, as a fleet's days do.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from controllers import CORES, controller, interpreter
from junitparser import JUnitXml
from lab import ROOT, Host, Run
from site_fleet import HOSTS, PREFIX, docker, script, site


def verify(tmp_path: Path, **keywords: Any) -> dict[str, Any]:
    """The report of a run of verify.yml that found the fleet healthy; Prometheus gets the time to ask its targets."""
    options = ("-e", "verify_wait=40", "-e", f"verify_report={tmp_path / 'verdict'}")
    run = site(tmp_path, *options, playbook="verify", **keywords)
    assert run.rc == 0, run.output[-6000:]
    report: dict[str, Any] = json.loads((tmp_path / "verdict" / "verdict.json").read_text())
    return report


def recorded(tmp_path: Path) -> tuple[dict[str, str], Path]:
    """An environment in which ssh notes its executions, and the file where it does."""
    log, wrapper = tmp_path / "ssh.log", tmp_path / "ssh"
    wrapper.write_text(
        f'#!/bin/sh\nprintf "%s " "$@" | tr "\\n" " " >>{log}\necho >>{log}\nexec {shutil.which("ssh")} "$@"\n'
    )
    wrapper.chmod(0o755)
    return {"ANSIBLE_SSH_EXECUTABLE": str(wrapper)}, log


def changed_hosts(run: Run) -> dict[str, list[str]]:
    """Hosts on which something changed, with what did."""
    return {
        line["host"]: line["result"].get("changes", ["?"])
        for line in run.results
        if line["result"].get("changed") and line["outcome"] != "skipped"
    }


def converges(run: Run) -> Counter[str]:
    """Role transactions looked at, per host."""
    return Counter(line["host"] for line in run.results if "Converge" in line["task"] and line["outcome"] == "ok")


def test_check_and_diff_on_bare_hosts_change_nothing(fleet: dict[str, Host], tmp_path: Path) -> None:
    run = site(tmp_path, "--check", "--diff")
    assert run.rc == 0, run.output[-6000:]
    assert set(changed_hosts(run)) == set(HOSTS)
    for host in fleet.values():
        assert host.sh("ls -A /var/lib/vmfleet 2>/dev/null || true") == ""


def test_a_bad_variable_stops_before_any_change(fleet: dict[str, Host], tmp_path: Path) -> None:
    run = site(tmp_path, "-e", "redis_port=seventy", "-e", '{"vmfleet_flows": {"ssh": ["nobody-knows-this-group"]}}')
    assert run.rc != 0
    assert "redis_port" in run.output and "seventy" in run.output
    assert "nobody-knows-this-group" in run.output
    for host in fleet.values():
        assert host.sh("ls -A /var/lib/vmfleet 2>/dev/null || true") == ""


def test_first_run_brings_everything_up(fleet: dict[str, Host], tmp_path: Path) -> None:
    run = site(tmp_path)
    assert run.rc == 0, run.output[-6000:]
    assert set(changed_hosts(run)) == set(HOSTS)
    verify(tmp_path)


def test_second_run_looks_once_per_host_and_changes_nothing(fleet: dict[str, Host], tmp_path: Path) -> None:
    # Keeps on the hosts what their first roles asked before there was a place to keep it.
    run = site(tmp_path)
    assert run.rc == 0, run.output[-6000:]
    assert changed_hosts(run) == {}
    environment, log = recorded(tmp_path)
    run = site(tmp_path, "--diff", env=environment)
    assert run.rc == 0, run.output[-6000:]
    assert changed_hosts(run) == {}
    executions = log.read_text().splitlines()
    assert executions
    assert not [line for line in executions if "python" in line], "a module was transferred"
    looks = converges(run)
    assert set(looks) == set(HOSTS)
    for name, host in ((name, fleet[name]) for name in HOSTS):
        address = script("scripts/python", "-m", "ansible", "inventory", "-i", "inventories/local", "--host", name)
        number = json.loads(address.stdout)["fleet_number"]
        mine = [line for line in executions if f".{number} " in line and f"{PREFIX}" in line]
        assert len(mine) == 1, f"{host.name}: {len(mine)} executions for preflight and {looks[name]} roles"


def test_every_host_proves_its_health_and_the_fleet_gets_a_verdict(fleet: dict[str, Host], tmp_path: Path) -> None:
    """What is broken is named on its host; who is frozen or cannot be reached counts."""
    environment, log = recorded(tmp_path)
    report = verify(tmp_path, env=environment)
    assert "/bin/sh" in log.read_text() and "python" not in log.read_text(), "a module was transferred"
    assert {name: host["reach"] for name, host in report["hosts"].items()} == dict.fromkeys(
        [*HOSTS, "outside"], "answered"
    )
    assert sum(len(host["checks"]) for host in report["hosts"].values()) >= 150
    # Also before the timer has made the first one.
    for name in ("db1", "cache1"):
        checks = {check["name"]: check["state"] for check in report["hosts"][name]["checks"]}
        assert checks["the newest snapshot set in main is fresh"] == "ok"
    outside = {check["name"]: check for check in report["hosts"]["outside"]["checks"]}
    for balancer in ("lb1", "lb2"):
        assert outside[f"site api through {balancer} is healthy"]["latency_ms"]["samples"] == 20
        assert f"a WebSocket echoes through {balancer}" in outside
    assert re.match(
        r"row \d+ is on the replica, a value",
        outside["a row reaches the replica, a value comes back from Redis"]["message"],
    )
    reports = tmp_path / "verdict"
    assert JUnitXml.fromfile(str(reports / "junit.xml")).failures == 0
    fleet["mon1"].sh("promtool check metrics", stdin=(reports / "verdict.prom").read_bytes())
    rules = {rule["name"]: rule["state"] for rule in report["rules"]}
    versions = [f"versions of {group}" for group in ("app", "db", "redis")]
    assert rules == dict.fromkeys(("replication", "balancers", *versions, "clocks"), "ok")

    ghost = tmp_path / "ghost.yml"
    ghost.write_text("all: {hosts: {ghost: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n")
    fleet["cache1"].sh("systemctl stop redis-server")
    # Another engine than the controller's, which then brings its own.
    fleet["cache1"].sh("sed -i '$a # another version' /usr/local/lib/vmfleet/_host.py")
    docker("pause", fleet["pool1"])
    try:
        options = ["-e", "verify_wait=0", "-e", "verify_timeout=15", "-e", f"verify_report={tmp_path}"]
        broken = site(tmp_path, "-i", str(ghost), *options, "--limit", "cache1,db1,pool1,ghost", playbook="verify")
    finally:
        docker("unpause", fleet["pool1"])
        fleet["cache1"].sh("systemctl start redis-server; sed -i '$d' /usr/local/lib/vmfleet/_host.py")
    assert broken.rc != 0
    report = json.loads((tmp_path / "verdict.json").read_text())
    states = {name: (host["reach"], host["state"]) for name, host in report["hosts"].items()}
    assert states == {
        "cache1": ("answered", "crit"),
        "db1": ("answered", "ok"),
        "pool1": ("failed", "unknown"),
        "ghost": ("unreachable", "crit"),
    }, broken.output[-6000:]
    assert any("redis" in problem["name"] for problem in report["problems"] if problem["subject"] == "cache1")
    assert "Verdict crit" in broken.output and report["unjudged"] == ["replication"]

    once = {"ANSIBLE_SSH_RETRIES": "0"}
    nobody = site(tmp_path, "-i", str(ghost), *options, "--limit", "ghost", playbook="verify", env=once)
    assert nobody.rc != 0
    assert "Verdict crit: 1 crit (1 hosts, 0 checks)" in nobody.output

    # The timer has told node_exporter too.
    metrics = "/var/lib/prometheus/node-exporter/vmfleet_health.prom"
    fleet["mon1"].wait(f"grep -q ^vmfleet_health_state {metrics} && promtool check metrics <{metrics}", 150)


@CORES
def test_other_cores_find_the_same(
    fleet: dict[str, Host], tmp_path: Path, core: str, versions: tuple[str, ...]
) -> None:
    """The second run and the unit tests, by the oldest and the newest ansible-core."""
    requirements = (
        "-r",
        str(ROOT / "requirements" / "controller.txt"),
        f"ansible-core=={core}.*",
        "junitparser",
        "pytest-xdist",
        "PyYAML",
        "websockets",
    )
    python = str(controller(interpreter(*versions), *requirements) / "bin" / "python")
    run = site(tmp_path, python=python)
    assert run.rc == 0, run.output[-6000:]
    assert changed_hosts(run) == {}
    assert set(converges(run)) == set(HOSTS)
    units = script(python, "-m", "pytest", "tests/unit", "-q", "-n", "auto", "-p", "no:cacheprovider")
    assert units.returncode == 0, units.stdout[-6000:]
    assert " passed" in units.stdout


def test_limit_and_tags_reach_only_what_they_name(fleet: dict[str, Host], tmp_path: Path) -> None:
    run = site(tmp_path, "--limit", "cache1", "--tags", "redis")
    assert run.rc == 0, run.output[-6000:]
    assert changed_hosts(run) == {}
    assert converges(run) == {"cache1": 1}


def test_a_balancer_changes_its_kind_and_back(fleet: dict[str, Host], tmp_path: Path) -> None:
    for kind, other in (("haproxy", "nginx"), ("nginx", "haproxy")):
        run = site(tmp_path, "--limit", "lb1", "--tags", "lb", "-e", f"lb_type={kind}")
        assert run.rc == 0, run.output[-6000:]
        states = fleet["lb1"].sh(f"systemctl is-active {kind} {other} || true").split()
        assert states == ["active", "inactive"]
        verify(tmp_path)
    assert changed_hosts(site(tmp_path)) == {}


def test_drift_is_named_and_mended(fleet: dict[str, Host], tmp_path: Path) -> None:
    fleet["lb1"].sh("echo '# by hand' >> /etc/nginx/nginx.conf")
    fleet["lb2"].sh("chmod 0666 /etc/haproxy/haproxy.cfg")
    fleet["cache1"].sh("systemctl stop redis-server")
    fleet["pool1"].sh("systemctl disable pgbouncer")
    fleet["db1"].sh("ufw allow 9999/tcp")
    fleet["api1"].sh(
        "ufw --force delete $(ufw status numbered | sed -n 's/^\\[ *\\([0-9]*\\)\\] 9100.*/\\1/p' | head -n 1)"
    )
    fleet["mon1"].sh("apt-get -qq -y remove logrotate >/dev/null 2>&1 || apt-get -qq -y remove curl >/dev/null")
    expected = {
        "lb1": "file /etc/nginx/nginx.conf",
        "lb2": "file /etc/haproxy/haproxy.cfg",
        "cache1": "service redis-server.service",
        "pool1": "service pgbouncer.service",
        "db1": "firewall rule allow 9999/tcp",
        "api1": "firewall rule allow 9100/tcp",
        "mon1": "package ",
    }
    predicted = site(tmp_path, "--check", "--diff")
    assert predicted.rc == 0, predicted.output[-6000:]
    mended = site(tmp_path, "--diff")
    assert mended.rc == 0, mended.output[-6000:]
    for run in (predicted, mended):
        for host, words in expected.items():
            assert any(change.startswith(words) for change in changed_hosts(run)[host]), changed_hosts(run)
            assert words in run.output
    assert changed_hosts(predicted) == changed_hosts(mended)
    assert changed_hosts(site(tmp_path)) == {}
    verify(tmp_path)
