"""The smaller stack with pyinfra: the same files, services and rules as ../stock/site.yml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyinfra import host
from pyinfra.api import FactBase, operation
from pyinfra.facts.postgres import PostgresRoles
from pyinfra.facts.server import LinuxDistribution
from pyinfra.operations import apt, files, postgres, server, systemd

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
POSTGRESQL_VERSIONS = {12: "15", 13: "17"}


class UfwState(FactBase):
    """Rules as ufw stores them and its settings, from its files: starting ufw itself takes far longer."""

    def command(self) -> str:
        return (
            "grep -h '^### tuple ###' /etc/ufw/user.rules;"
            " grep -hE '^(ENABLED|DEFAULT_(IN|OUT)PUT_POLICY)=' /etc/ufw/ufw.conf /etc/default/ufw; true"
        )

    def process(self, output: list[str]) -> dict[str, Any]:
        rules = set()
        options = {}
        for line in output:
            if line.startswith("### tuple ###"):
                _action, _proto, port, _destination, _source_port, source = line.split()[3:9]
                rules.add((port, "any" if source == "0.0.0.0/0" else source))
            else:
                key, _, value = line.partition("=")
                options[key] = value.strip('"')
        return {"rules": rules, "options": options}


@operation()
def ufw(rules: list[tuple[str, str]]) -> Any:
    found = host.get_fact(UfwState)
    if found["options"].get("DEFAULT_INPUT_POLICY") != "DROP":
        yield "ufw default deny incoming"
    if found["options"].get("DEFAULT_OUTPUT_POLICY") != "ACCEPT":
        yield "ufw default allow outgoing"
    for port, source in rules:
        if (port, source) not in found["rules"]:
            yield f"ufw allow proto tcp from {source} to any port {port}"
    if found["options"].get("ENABLED") != "yes":
        yield "ufw logging low"
        yield "ufw --force enable"


def template(name: str, dest: str, *, user: str = "root", group: str = "root", mode: str = "644", **data: Any) -> Any:
    return files.template(
        name=f"Write {dest}",
        src=str(TEMPLATES / name),
        dest=dest,
        user=user,
        group=group,
        mode=mode,
        create_remote_dir=False,
        # As Ansible sets it, so that both render the same text.
        jinja_env_kwargs={"trim_blocks": True},
        **data,
    )


def base() -> None:
    apt.packages(
        name="Install base packages",
        packages=["ca-certificates", "curl", "logrotate", "sudo"],
        update=True,
        cache_time=3600,
    )
    server.timezone(name="Set the time zone", timezone="Etc/UTC")
    for scope in ("all", "default"):
        for key in ("accept_redirects", "send_redirects"):
            server.sysctl(
                name=f"Set {key} of {scope}",
                key=f"net.ipv4.conf.{scope}.{key}",
                value=0,
                persist=True,
                persist_file="/etc/sysctl.d/60-bench.conf",
            )
    files.directory(name="Make the folder of journald's settings", path="/etc/systemd/journald.conf.d", mode="755")
    journald = template("journald.conf.j2", "/etc/systemd/journald.conf.d/bench.conf")
    systemd.service(name="Restart journald", service="systemd-journald", restarted=True, _if=journald.did_change)
    sshd = template("sshd.conf.j2", "/etc/ssh/sshd_config.d/10-bench.conf")
    server.shell(name="Validate sshd", commands=["sshd -t"], _if=sshd.did_change)
    systemd.service(name="Keep sshd running", service="ssh", enabled=True)
    systemd.service(name="Reload sshd", service="ssh", reloaded=True, _if=sshd.did_change)


def certificates() -> None:
    server.group(name="Make the group that may read keys", group="ssl-cert", system=True)
    files.directory(name="Make the folder of certificates", path="/etc/bench-tls", group="ssl-cert", mode="755")
    for source, dest, group, mode in (
        ("ca.crt", "ca.crt", "root", "644"),
        (f"{host.name}.crt", "host.crt", "root", "644"),
        (f"{host.name}.key", "host.key", "ssl-cert", "640"),
        (f"{host.name}.pem", "host.pem", "ssl-cert", "640"),
    ):
        files.put(
            name=f"Copy {dest}",
            src=f"{host.data.pki}/{source}",
            dest=f"/etc/bench-tls/{dest}",
            user="root",
            group=group,
            mode=mode,
            create_remote_dir=False,
        )


def firewall() -> None:
    clients = [client["ansible_host"] for client in host.data.clients]
    rules = [("22", "any"), *[("9100", client) for client in clients]]
    if "nginx" in host.groups or "haproxy" in host.groups:
        rules += [("80", "any"), ("443", "any")]
    if "db" in host.groups:
        rules += [("5432", client) for client in clients]
    if "redis" in host.groups:
        rules += [("6379", client) for client in clients]
    apt.packages(name="Install ufw", packages=["ufw"])
    ufw(name="Allow what the host serves", rules=rules)


def node_exporter() -> None:
    apt.packages(name="Install node_exporter", packages=["prometheus-node-exporter"], no_recommends=True)
    files.directory(name="Make the folder of text file metrics", path="/var/lib/prometheus/node-exporter", mode="755")
    config = template("node_exporter.j2", "/etc/default/prometheus-node-exporter", address=host.data.address)
    systemd.service(name="Keep node_exporter running", service="prometheus-node-exporter", enabled=True)
    systemd.service(
        name="Restart node_exporter", service="prometheus-node-exporter", restarted=True, _if=config.did_change
    )


def nginx() -> None:
    apt.packages(name="Install nginx", packages=["nginx"])
    config = template("nginx.conf.j2", "/etc/nginx/nginx.conf")
    default = files.link(name="Remove the default site", path="/etc/nginx/sites-enabled/default", present=False)
    site = template("site.conf.j2", "/etc/nginx/sites-available/bench.conf", backends=host.data.backends)
    link = files.link(
        name="Enable the site",
        path="/etc/nginx/sites-enabled/bench.conf",
        target="/etc/nginx/sites-available/bench.conf",
    )

    def changed() -> bool:
        return any(step.did_change() for step in (config, default, site, link))

    server.shell(name="Validate nginx", commands=["nginx -t"], _if=changed)
    systemd.service(name="Keep nginx running", service="nginx", enabled=True)
    systemd.service(name="Reload nginx", service="nginx", reloaded=True, _if=changed)


def haproxy() -> None:
    apt.packages(name="Install HAProxy", packages=["haproxy"])
    config = template("haproxy.cfg.j2", "/etc/haproxy/haproxy.cfg", backends=host.data.backends)
    server.shell(name="Validate HAProxy", commands=["haproxy -c -f /etc/haproxy/haproxy.cfg"], _if=config.did_change)
    systemd.service(name="Keep HAProxy running", service="haproxy", enabled=True)
    systemd.service(name="Reload HAProxy", service="haproxy", reloaded=True, _if=config.did_change)


def redis() -> None:
    apt.packages(name="Install Redis", packages=["redis-server"])
    server.sysctl(
        name="Let the kernel overcommit memory",
        key="vm.overcommit_memory",
        value=1,
        persist=True,
        persist_file="/etc/sysctl.d/60-bench-redis.conf",
    )
    folder = "/etc/systemd/system/redis-server.service.d"
    files.directory(name="Make the folder of the unit's settings", path=folder, mode="755")
    limits = template("redis-limits.conf.j2", f"{folder}/bench.conf")
    config = template(
        "redis.conf.j2",
        "/etc/redis/redis.conf",
        user="redis",
        group="redis",
        mode="640",
        address=host.data.address,
        redis_password=host.data.password,
    )
    systemd.service(name="Keep Redis running", service="redis-server", enabled=True)
    systemd.service(
        name="Restart Redis",
        service="redis-server",
        restarted=True,
        daemon_reload=True,
        _if=lambda: limits.did_change() or config.did_change(),
    )


def postgresql() -> None:
    version = POSTGRESQL_VERSIONS[host.get_fact(LinuxDistribution)["major"]]
    directory = f"/etc/postgresql/{version}/main"
    service = f"postgresql@{version}-main"
    apt.packages(name="Install PostgreSQL", packages=["postgresql"])
    member = server.user(name="Let PostgreSQL read the key", user="postgres", groups=["ssl-cert"], append=True)
    config = template(
        "postgresql.conf.j2",
        f"{directory}/conf.d/bench.conf",
        user="postgres",
        group="postgres",
        address=host.data.address,
    )
    access = template(
        "pg_hba.conf.j2",
        f"{directory}/pg_hba.conf",
        user="postgres",
        group="postgres",
        mode="640",
        clients=host.data.clients,
    )
    systemd.service(name="Keep PostgreSQL running", service=service, enabled=True)
    systemd.service(
        name="Restart PostgreSQL",
        service=service,
        restarted=True,
        _if=lambda: config.did_change() or member.did_change(),
    )
    systemd.service(name="Reload PostgreSQL", service=service, reloaded=True, _if=access.did_change)
    # Given a password, pyinfra sets it anew on every run, because it cannot compare it.
    known = host.get_fact(PostgresRoles, _sudo_user="postgres")
    password = None if "bench" in known else host.data.password
    postgres.role(name="Create the role", role="bench", password=password, _sudo_user="postgres")
    postgres.database(name="Create the database", database="bench", owner="bench", _sudo_user="postgres")


base()
certificates()
firewall()
node_exporter()
if "nginx" in host.groups:
    nginx()
if "haproxy" in host.groups:
    haproxy()
if "redis" in host.groups:
    redis()
if "db" in host.groups:
    postgresql()
