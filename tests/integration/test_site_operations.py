"""Looking into a fleet that is broken in places, and loading the sites of one that works."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lab import ROOT, Host, Run
from site_fleet import site

# One host of each kind that tells something of its own.
CHOSEN = "lb1,lb2,api1,db1,pool1,cache1"
# Words that nobody would find by chance, put where secrets are and told where bundles look.
SEEDED = {
    "environment": "open-sesame-of-the-shop",
    "literal": "literal-of-somebodys-data",
    "argument": "argument-of-somebodys-data",
    "option": "option-of-a-process",
}


@pytest.fixture(scope="module")
def hosts(fleet: dict[str, Host], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    """The fleet with the site on it."""
    run = site(tmp_path_factory.mktemp("site"))
    assert run.rc == 0, run.output[-6000:]
    return fleet


@pytest.fixture
def troubles(hosts: dict[str, Host]) -> Iterator[None]:
    """A query that blocks another, a service that is down, a unit that failed, and secrets in many places."""
    hosts["db1"].sh(
        "su postgres -c \"psql -qc 'create table if not exists diagnosed (word text)'\"; "
        "echo 'begin; lock table diagnosed; select pg_sleep(600);' >/tmp/holds; "
        f"echo \"insert into diagnosed values ('{SEEDED['literal']}')\" >/tmp/waits; "
        "for one in holds waits; do systemd-run -q --unit=test-$one --uid=postgres psql -qf /tmp/$one; sleep 2; done"
    )
    hosts["db1"].wait("su postgres -c \"psql -Atc 'select 1 from pg_locks where not granted'\" | grep 1", 30)
    hosts["cache1"].sh(
        "export REDISCLI_AUTH=$(cat /etc/redis/auth); r='redis-cli --tls --insecure'; "
        "$r config set slowlog-log-slower-than 0 >/dev/null; "
        f"$r set visitor {SEEDED['argument']} >/dev/null; $r config set slowlog-log-slower-than 10000 >/dev/null"
    )
    hosts["api1"].sh(
        f"umask 077; echo 'SHOP_WORD={SEEDED['environment']}' >/etc/shop.env; "
        f"systemd-run -q --unit=test-shop sh -c 'echo read {SEEDED['environment']}; sleep 600'; "
        f"systemd-run -q --unit=test-option sh -c 'sleep 600; :' --db-password={SEEDED['option']}; "
        "systemd-run -q --unit=test-fails false; sleep 1; "
        # What a service says into its own journal.
        f"logger -p daemon.err 'shop cannot log in with {SEEDED['environment']}'"
    )
    hosts["pool1"].sh("systemctl stop pgbouncer")
    yield
    hosts["pool1"].sh("systemctl start pgbouncer")
    hosts["db1"].sh("systemctl stop test-waits test-holds; systemctl reset-failed 'test-*' || true")
    # A server does not notice at once that a client has gone.
    others = "query ~ 'pg_sleep|diagnosed' and pid <> pg_backend_pid()"
    ended = f"select pg_terminate_backend(pid) from pg_stat_activity where {others}"
    hosts["db1"].sh(f'su postgres -c "psql -qc \\"{ended}\\" -c \\"drop table diagnosed\\""; rm /tmp/holds /tmp/waits')
    hosts["api1"].sh("systemctl stop test-shop test-option; systemctl reset-failed 'test-*'; rm /etc/shop.env")


def bundles(folder: Path) -> dict[str, dict[str, str]]:
    """The texts of all archives, by host and file."""
    found: dict[str, dict[str, str]] = {}
    for path in folder.glob("*.tar.gz"):
        assert path.stat().st_mode & 0o077 == 0
        with tarfile.open(path) as archive:
            for entry in archive.getmembers():
                host, _slash, name = entry.name.partition("/")
                content = archive.extractfile(entry)
                assert content is not None
                found.setdefault(host, {})[name] = content.read().decode()
    return found


def secrets_of_fleet(hosts: dict[str, Host]) -> set[str]:
    """What the roles keep secret on these hosts, read there and not by the code under test."""
    values = {hosts["cache1"].sh("cat /etc/redis/auth")}
    environment = hosts["api1"].sh("cat /etc/api/api.env /etc/ws/ws.env")
    values |= {line.partition("=")[2].strip("\"'") for line in environment.splitlines() if "=" in line}
    values |= set(hosts["pool1"].sh("cut -d '\"' -f 4 /etc/pgbouncer/userlist.txt").splitlines())
    for host in ("db1", "lb1"):
        values |= set(hosts[host].sh("grep -hv -e - /etc/vmfleet/tls/*.key").splitlines())
    return {value for value in values if len(value) >= 8}


def test_bundles_of_a_broken_fleet(hosts: dict[str, Host], troubles: None, tmp_path: Path) -> None:
    ghost = tmp_path / "ghost.yml"
    ghost.write_text("all: {hosts: {ghost: {ansible_host: 127.0.0.1, ansible_port: 1}}}\n")
    folder = tmp_path / "bundles"
    run = site(
        tmp_path, "-i", str(ghost), "--limit", f"{CHOSEN},ghost", "-e", f"diagnose_directory={folder}",
        "-e", '{"diagnose_secret_files": ["/etc/shop.env"], "diagnose_timeout": 400}', playbook="diagnose",
    )  # fmt: skip
    assert run.rc == 4, f"one host cannot be reached, and that is all that is wrong:\n{run.output[-6000:]}"
    assert "ghost: cannot be reached" in run.output
    texts = bundles(folder)
    assert set(texts) == set(CHOSEN.split(","))

    blocked = [line for line in run.one("db1")["findings"] if line.startswith("blocked query: pid ")]
    assert len(blocked) == 1, run.output[-6000:]
    assert " waits for " in blocked[0] and "insert into diagnosed values (?)" in blocked[0]
    assert blocked[0] in run.output
    assert any("failed unit: test-fails" in line for line in run.one("api1")["findings"])
    assert any("pgbouncer runs" in line for line in run.one("pool1")["findings"])
    assert "pgbouncer/console.txt" in run.one("pool1")["incomplete"]
    for host, name, word in (
        ("db1", "postgresql/connections.txt", "pg_sleep"),
        ("db1", "postgresql/locks.txt", "AccessExclusiveLock"),
        ("db1", "postgresql/replication.txt", "pg_is_in_recovery"),
        ("cache1", "redis/info.txt", "redis_version"),
        ("cache1", "redis/slow-commands.txt", '"set"'),
        ("lb1", "network/listening.txt", ":443"),
        ("lb1", "network/firewall.txt", "Status: active"),
        ("lb1", "network/names.txt", "db1: "),
        ("api1", "journal/api.service.txt", "api"),
        ("pool1", "units/pgbouncer.service.txt", "inactive"),
        ("api1", "system/processes-by-memory.txt", "--db-password="),
    ):
        assert word in texts[host][name], f"{host}: {name}\n{texts[host][name][:2000]}"
    for host, files in texts.items():
        manifest = json.loads(files["manifest.json"])
        assert {entry["file"] for entry in manifest["items"]} | {"manifest.json"} == set(files)
        assert json.loads(files["vmfleet/verdict.json"])["results"]
        assert "journal/errors.txt" in files, host

    everything = "\n".join([run.output, *(text for files in texts.values() for text in files.values())])
    for secret in secrets_of_fleet(hosts) | set(SEEDED.values()):
        assert secret not in everything, "a secret is in a bundle"
    assert len(secrets_of_fleet(hosts)) > 8


def load(tmp_path: Path, *options: str) -> Run:
    common = ["loadtest_host=cache1", "loadtest_duration=5", "loadtest_rate=10", f"loadtest_report={tmp_path}"]
    return site(tmp_path, *(part for one in common for part in ("-e", one)), *options, playbook="loadtest")


def refused(run: Run, words: str) -> None:
    assert run.rc != 0
    assert [line["outcome"] for line in run.results] == ["failed"], "nothing comes after the proof"
    assert words in run.results[0]["result"]["msg"], run.output[-4000:]


def test_a_load_that_is_not_wanted_is_refused(hosts: dict[str, Host], tmp_path: Path) -> None:
    refused(
        load(tmp_path, "-e", '{"loadtest_targets": [{"site": "elsewhere"}]}'), "is no site of the inventory; use api"
    )
    refused(load(tmp_path, "-e", "vmfleet_environment=production"), "-e loadtest_confirm=production if you mean it")
    assert not (tmp_path / "load.json").exists()


def test_load_is_judged_by_goals_and_by_the_run_before(hosts: dict[str, Host], tmp_path: Path) -> None:
    for name in ("lb1", "lb2"):
        site_answers = "curl -sfk --resolve api.supernova.test:443:127.0.0.1 https://api.supernova.test/health"
        hosts[name].wait(site_answers, 90)
    # What a busy machine can reach: how fast it is here is no matter of this test.
    generous = '{"loadtest_goals": {"p50": 5000, "p95": 9000, "p99": 9900, "rate": 0.2}}'
    run = load(tmp_path, "-e", generous)
    assert run.rc == 0, run.output[-6000:]
    assert "Every goal is reached." in run.output
    report = json.loads((tmp_path / "load.json").read_text())
    total = report["total"]
    assert total["statuses"].keys() == {"200"} and total["errors"] == 0
    assert 10 <= total["requests"] <= 60
    assert 0 < total["p50"] <= total["p95"] <= total["p99"] <= total["max"]
    assert {target["balancer"] for target in report["targets"]} == {"lb1", "lb2"}

    # A run before that was much better, and services that are gone now.
    report["total"].update(rate=1000.0, p50=0.001)
    baseline = tmp_path / "before.json"
    baseline.write_text(json.dumps(report))
    applications = [host for name, host in hosts.items() if name.startswith("api")]
    for host in applications:
        host.sh("systemctl stop api")
    try:
        worse = load(tmp_path, "-e", generous, "-e", f"loadtest_baseline={baseline}")
    finally:
        for host in applications:
            host.sh("systemctl start api")
    assert worse.rc != 0
    problems = json.loads((tmp_path / "load.json").read_text())["problems"]
    assert problems == worse.results[-1]["result"]["problems"]
    assert any("of the requests failed" in problem and " with 50" in problem for problem in problems), problems
    assert any("there were 1000" in problem for problem in problems), problems


def test_the_last_change_of_the_fleet_is_taken_back(hosts: dict[str, Host], tmp_path: Path) -> None:
    """Balancers, applications and a firewall are changed by one run, and are what they were after the rollback."""
    variables = {}
    for name in ("app", "all/platform"):
        variables.update(yaml.safe_load((ROOT / f"inventories/local/group_vars/{name}.yml").read_text()))
    new = {
        "lb_headers": {"X-Trial": "after"},
        "demo_environment": {**variables["demo_environment"], "VERSION": "2"},
        "vmfleet_flows": {**variables["vmfleet_flows"], "redis": ["app", "monitoring", "lb"]},
    }
    (tmp_path / "new.yml").write_text(yaml.safe_dump(new))
    reached = {"lb1", "lb2", "api1", "api2", "api3", "cache1"}
    look = (
        "for one in nginx/nginx.conf haproxy/haproxy.cfg systemd/system/api.service ufw/user.rules; do "
        "test ! -e /etc/$one || sha256sum /etc/$one; done; "
        "curl -sk https://localhost/health -H 'Host: api.supernova.test' -D - -o /dev/null | grep -i trial; "
        "curl -s http://localhost:8081/version; true"
    )
    before = {name: hosts[name].sh(look) for name in sorted(reached)}
    run = site(tmp_path, "-e", f"@{tmp_path / 'new.yml'}")
    assert run.rc == 0, run.output[-6000:]
    assert {line["host"] for line in run.results if line["result"].get("changed")} == reached
    after = {name: hosts[name].sh(look) for name in sorted(reached)}
    assert [name for name in sorted(reached) if before[name] == after[name]] == []
    assert "x-trial: after" in after["lb1"].lower() and '"2"' in after["api1"]

    foretold = site(tmp_path, "--check", "--diff", playbook="rollback")
    assert foretold.rc == 0, foretold.output[-6000:]
    assert "firewall: former rules" in foretold.output
    unsaid = site(tmp_path, "-e", "rollback_confirm=production", playbook="rollback")
    assert unsaid.rc != 0 and "say -e rollback_confirm=local" in unsaid.output
    assert {name: hosts[name].sh(look) for name in sorted(reached)} == after

    done = site(tmp_path, "-e", "rollback_confirm=local", "-e", "verify_wait=40", playbook="rollback")
    assert done.rc == 0, done.output[-6000:]
    assert "Verdict ok" in done.output
    order = [line["host"] for line in done.results if line["task"] == "Take it back" and line["outcome"] == "ok"]
    assert order == ["lb1", "lb2", "api1", "api2", "api3", "cache1"]
    assert {name: hosts[name].sh(look) for name in sorted(reached)} == before
    again = site(tmp_path)
    assert again.rc == 0, again.output[-6000:]
    assert not [line for line in again.results if line["result"].get("changed")]
    for secret in secrets_of_fleet(hosts):
        assert secret not in done.output + foretold.output, "a secret is shown"
