"""The sample inventories pass preflight without their hosts; what is broken in a copy is reported at once."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ["prod", "staging"]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
VAULT = str(Path(sys.executable).with_name("ansible-vault"))
PASSWORD = ROOT / "inventories/sample-vault-password"


def play(inventory: Path, *arguments: str, playbook: str = "playbooks/preflight.yml") -> tuple[int, str]:
    done = subprocess.run(
        [PLAYBOOK, "-i", str(inventory), playbook, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
    )
    return done.returncode, done.stdout + done.stderr


def secrets(sample: str) -> dict[str, str]:
    vault = ROOT / "inventories" / sample / "group_vars/all/vault.yml"
    shown = subprocess.run(
        [VAULT, "view", "--vault-password-file", str(PASSWORD), str(vault)], capture_output=True, text=True, check=True
    ).stdout
    return {name: value for name, value in yaml.safe_load(shown).items() if isinstance(value, str)}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The production sample with its vault open, to be broken."""
    target = tmp_path / "mine"
    shutil.copytree(ROOT / "inventories/prod", target)
    (target / "group_vars/all/vault.yml").write_text(yaml.safe_dump(secrets("prod")))
    return target


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_is_sound(sample: str) -> None:
    status, output = play(ROOT / "inventories" / sample, "-e", "preflight_offline=true")
    assert status == 0, output
    assert "[WARNING]" not in output, output
    hosts = yaml.safe_load((ROOT / "inventories" / sample / "hosts.yml").read_text())["all"]["children"]
    assert set(hosts) == {"lb", "app", "db", "pgbouncer", "redis", "backup", "monitoring"}
    assert output.count("ok=1") >= 8


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_site_can_be_read_with_a_sample(sample: str) -> None:
    status, output = play(ROOT / "inventories" / sample, "--syntax-check", playbook="playbooks/site.yml")
    assert status == 0, output


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_vault_is_encrypted_and_its_secrets_are_in_no_other_file(sample: str) -> None:
    text = (ROOT / "inventories" / sample / "group_vars/all/vault.yml").read_text()
    assert text.startswith("$ANSIBLE_VAULT;1.1;AES256\n")
    values = secrets(sample).values()
    assert len(values) >= 6
    for path in (ROOT / "inventories" / sample).rglob("*.yml"):
        assert not any(value in path.read_text() for value in values)


def test_no_host_is_contacted_with_secrets_that_everybody_knows() -> None:
    status, output = play(ROOT / "inventories/staging", "-e", "ansible_connection=local", "-e", "ansible_become=false")
    assert status != 0
    assert "vault_password_is_public = True: the secrets of this inventory are the sample's" in output


def test_all_that_is_wrong_is_said_at_once(copy: Path) -> None:
    known = secrets("prod")
    values = dict(known)
    del values["vault_postgresql_replication_password"]
    values["vault_redis_password"] = "CHANGEME"
    (copy / "group_vars/all/vault.yml").write_text(yaml.safe_dump(values))
    with (copy / "group_vars/redis.yml").open("a") as stream:
        stream.write("redis_maxmemory_policy: lru\nredis_apendonly: true\n")
    platform = (copy / "group_vars/all/platform.yml").read_text()
    platform = platform.replace("redis: [app, monitoring]", "redis: [apps, monitoring]")
    platform = platform.replace("service: ws, websocket", "service: wss, websocket")
    (copy / "group_vars/all/platform.yml").write_text(platform)
    hosts = (copy / "hosts.yml").read_text().replace("10.20.3.11", "10.20.4.11").replace("db1:", "db1: &first")
    hosts = hosts.replace("lb2: {ansible_host: 10.20.0.12, lb_type: nginx}", "lb2: {ansible_host: 10.20.0.12}")
    (copy / "hosts.yml").write_text(hosts)
    data = (copy / "group_vars/all/data.yml").read_text().replace("max_db_connections: 50", "max_db_connections: 150")
    (copy / "group_vars/all/data.yml").write_text(data)

    status, output = play(copy, "-e", "preflight_offline=true")
    assert status != 0
    for expected in (
        "redis_password = (hidden): is a placeholder",
        "redis_maxmemory_policy = 'lru': value of redis_maxmemory_policy must be one of",
        "redis_apendonly: is no variable of role redis; did you mean redis_appendonly?",
        "postgresql_replication_password: refers to vault_postgresql_replication_password, which is not defined",
        "vmfleet_flows.redis = 'apps': is neither a group, an address or network, nor any; did you mean app?",
        "'wss'",
        "vmfleet_address = '10.20.4.11': belongs to both",
        "lb_type = None: is no balancer that lb2 can run; give one of nginx, haproxy",
        "the poolers may open 150 (pool1) + 150 (pool2) = 300 connections to db1, which has 200 - 23",
    ):
        assert expected in output, expected
    for value in known.values():
        assert value not in output
    assert "Lay the foundation" not in output


def given_certificate(end: datetime.datetime) -> dict[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "www.example.com")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, end - datetime.timedelta(days=90), end)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {"certificate": certificate.decode(), "private_key": private.decode()}


def test_a_front_door_that_cannot_work_is_refused_before_any_change(copy: Path) -> None:
    """Both kinds of balancer are in this inventory: what only nginx can do is refused for the other's sake."""
    platform = (copy / "group_vars/all/platform.yml").read_text()
    platform = platform.replace("service: ws, websocket", "service: ws, connections: 65536, websocket")
    platform = platform.replace("certificate: fleet", "certificate: elsewhere")
    platform = platform.replace(
        "    routes:\n", "    routes:\n      - {path: /static, root: /srv/static}\n      - {path: /, service: api}\n", 1
    )
    platform = platform.replace("[10.20.0.10/24]", "[10.20.0.300, 10.20.0.11/24]")
    platform += "lb_tls_ciphers: [ECDHE-RSA-AES256-GCM-SHA512]\nkeepalived_interval: 0\nprometheus_port: 9100\n"
    expired = given_certificate(datetime.datetime(2001, 2, 3))
    other = given_certificate(datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=60))
    certificates = [{"name": "bought", **expired}, {"name": "shop", **other}, {"name": "forgotten"}]
    platform += yaml.safe_dump({"tls_certificates": certificates})
    sites = [
        f"  - {{name: {name}, hosts: [{host}], certificate: {certificate}, routes: [{{path: /, service: api}}]}}\n"
        for name, host, certificate in (("shop", "shop.example.com", "shop"), ("again", "API.example.com", "host"))
    ]
    platform = platform.replace("\n# An address that belongs", "".join(sites) + "\n# An address that belongs")
    (copy / "group_vars/all/platform.yml").write_text(platform)
    hosts = (copy / "hosts.yml").read_text().replace("10.20.0.12, lb_type: nginx", "10.20.0.12, lb_type: haproxy")
    hosts = hosts.replace("10.20.1.12", "api2.nowhere")
    (copy / "hosts.yml").write_text(hosts)

    status, output = play(copy, "-e", "preflight_offline=true nginx_http_port=443")
    assert status != 0
    for expected in (
        "connections = 65536: is out of range; give a whole number from 0 to 65535",
        "root = '/srv/static': cannot be served by HAProxy; set lb_type: nginx",
        "is routed twice in this site; remove one",
        "did you mean ECDHE-RSA-AES256-GCM-SHA384?",
        "nginx_https_port = 443: is the same as nginx_http_port",
        "has a site whose certificate is neither host, fleet, acme nor in tls_certificates",
        "keepalived_addresses = '10.20.0.300': is no address; give one such as 10.20.0.10/24",
        "keepalived_addresses = '10.20.0.11/24': is lb1's own; give one that no host has",
        "keepalived_interval = 0: is out of range; give 0.1 to 10 seconds",
        "prometheus_port = 9100: is node_exporter_port of the same host too; change one of them",
        "tls_certificates[0]: the certificate expired on 2001-02-03T00:00:00Z; give its successor",
        "tls_certificates[1]: the certificate does not cover shop.example.com (it carries no names)",
        "tls_certificates[2] = 'forgotten': has no certificate; give certificate and private_key, or names",
        "lb_sites[2].hosts = 'api.example.com': site api answers to it already; remove one",
        "vmfleet_address = 'api2.nowhere': is the address of api2 and no IP address",
    ):
        assert expected in output, expected
    assert "Lay the foundation" not in output


def test_an_empty_group_is_no_problem(copy: Path) -> None:
    hosts = yaml.safe_load((copy / "hosts.yml").read_text())
    children = hosts["all"]["children"]
    for group in ("pgbouncer", "monitoring", "lb"):
        children[group] = {"hosts": {}}
    children["db"] = {"children": {"db_primary": {"hosts": {}}, "db_replica": {"hosts": {}}}}
    (copy / "hosts.yml").write_text(yaml.safe_dump(hosts))
    app = (copy / "group_vars/app.yml").read_text().replace("hostvars[groups.pgbouncer | first].ansible_host", "'x'")
    (copy / "group_vars/app.yml").write_text(app)
    status, output = play(copy, "-e", "preflight_offline=true")
    assert status == 0, output


def test_an_open_box_stops_the_play_by_its_name(copy: Path) -> None:
    platform = (copy / "group_vars/all/platform.yml").read_text().replace("redis: [app, monitoring]", "redis: [any]")
    (copy / "group_vars/all/platform.yml").write_text(platform)
    hosts = yaml.safe_load((copy / "hosts.yml").read_text())
    hosts["all"]["children"]["opensearch"] = {"hosts": {"os1": {"ansible_host": "10.20.5.1"}, "os2": {}}}
    del hosts["all"]["children"]["app"]["hosts"]["api3"]
    (copy / "hosts.yml").write_text(yaml.safe_dump(hosts))
    arguments = [
        "-e",
        "preflight_offline=true redis_tls=false",
        "-e",
        '{"vmfleet_members": {"app": 3, "pgbouncer": 2}}',
    ]
    status, output = play(copy, *arguments, "-e", "preflight_checklist=sei")
    assert status != 0
    for expected in (
        "(box 'network policy' of SEI Platform, 38 boxes)",
        "groups.app: has 2 hosts, where 3 are asked for; add hosts to the group (box 'three hosts at least' of",
        "(box 'rate limits' of",
        "[ ] penetration test is done: by hand; testers from outside do it",
        "vmfleet_members.app = 3: the group has 2: api1, api2; add hosts, or ask for less",
        "group opensearch = ['os1', 'os2']: 2 members have no majority when one is gone; have 1 or 3",
    ):
        assert expected in output, expected
    assert "vmfleet_members.pgbouncer" not in output
    assert "cache" not in [line.strip() for line in output.splitlines()]


def test_an_unknown_list_is_named(copy: Path) -> None:
    status, output = play(copy, "-e", "preflight_offline=true", "-e", "preflight_checklist=seu")
    assert status != 0
    # YAML may double the quotes.
    expected = "preflight_checklist = 'seu': is no list; there are flagwise_security, research_after"
    assert expected in output.replace("''", "'")
