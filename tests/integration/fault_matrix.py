"""The faults that verify must name, in batches: what is broken together is looked at by one run.

A fault has a script that breaks something on a host and one that mends it; ``@api1@`` stands for that host's address.
``names`` matches "HOST: ROLE: CHECK" (or "fleet: RULE") of the problem that must be reported, ``because`` its message.
``also`` matches what else follows from it by necessity: everything else that is reported is a false alarm.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    what: str
    host: str
    breaks: str
    mends: str
    names: str
    because: str
    also: tuple[str, ...] = ()
    # Where the scripts run, when not on the host that suffers.
    on: str = ""


REDIS = "REDISCLI_AUTH=$(cat /etc/redis/auth) redis-cli --tls --cacert /etc/vmfleet/tls/ca.crt"
PSQL = "cd / && runuser -u postgres -- psql -XAtq -c"
DATABASE = "postgresql@17-main"
PGBOUNCER = "cd / && runuser -u postgres -- psql -XAtq -h /run/pgbouncer -p 6432 -U pgbouncer -d pgbouncer -c"
# Whether it then is ready is what verify is to find out.
RESTART = "systemctl restart --no-block api; for i in $(seq 90); do sleep 1; systemctl is-active -q api && break; done"
# What applications and balancers see of a data tier that does not work.
TIERS = (r"api\d: app_service: \w+ is ready", r"lb\d: \w+: (nginx|HAProxy) has its servers", "fleet: balancers")
TARGETS = ("mon1: prometheus: Prometheus reaches its targets",)
STREAMS = (
    "db1: postgresql: the primary streams to its replicas",
    "db2: postgresql: (postgresql streams|the primary can be reached)",
    "fleet: replication",
)
HAPROXY_SERVERS = """python3 -c '
import socket, sys
def ask(line):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("/run/haproxy/admin.sock")
        connection.sendall(line.encode() + b"\\n")
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
for words in map(str.split, ask("show servers state").splitlines()[2:]):
    if words:
        ask(f"set server {words[1]}/{words[3]} state {sys.argv[1]}")
'"""
# Sessions without a client of their own: as many as its argument says, until the file goes.
SESSIONS = """setsid runuser -u postgres -- python3 -c '
import os, pathlib, socket, struct, sys, time
held = []
for number in range(int(sys.argv[1])):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect("/run/postgresql/.s.PGSQL.5432")
    words = struct.pack("!i", 196608) + b"user\\0postgres\\0database\\0postgres\\0\\0"
    held[-1].sendall(struct.pack("!i", len(words) + 4) + words)
    held[-1].recv(65536)
door = pathlib.Path("/run/postgresql/fault")
door.touch()
while door.exists():
    time.sleep(0.2)
' >/dev/null 2>&1 </dev/null"""
TEST_CERTIFICATE = "openssl req -x509 -key /etc/vmfleet/tls/host.key -subj /CN=stranger"
# Services with their host, the check that speaks for each, and what fails with it.
SERVICES = (
    ("nginx", "lb1", "nginx: nginx runs", ("lb1: nginx: .*",)),
    ("haproxy", "lb2", "haproxy: HAProxy runs", ("lb2: haproxy: .*",)),
    ("api", "api1", "app_service: api runs", (r"api1: app_service: api is \w+", *TIERS, *TARGETS)),
    ("ws", "api2", "app_service: ws runs", (r"api2: app_service: ws is \w+", *TIERS, *TARGETS)),
    (
        "prometheus-node-exporter",
        "api3",
        "node_exporter: host metrics (are served|come up at boot)",
        ("api3: node_exporter: .*", *TARGETS),
    ),
    (DATABASE, "db1", "postgresql: postgresql runs", ("db1: postgresql: .*", *STREAMS, *TIERS, "pool1: pgbouncer: .*")),
    (DATABASE, "db2", "postgresql: postgresql runs", ("db2: postgresql: .*", *STREAMS, "fleet: versions of db")),
    ("pgbouncer", "pool1", "pgbouncer: pgbouncer runs", ("pool1: pgbouncer: .*", *TIERS)),
    ("redis-server", "cache1", "redis: redis runs", ("cache1: redis: .*", *TIERS)),
    ("prometheus", "mon1", "prometheus: Prometheus runs", ("mon1: prometheus: .*",)),
)


def killed(unit: str, host: str, check: str, also: tuple[str, ...]) -> Fault:
    """Killed, and systemd may not start it again."""
    dropin = f"/run/systemd/system/{unit}.service.d"
    return Fault(
        f"{unit} killed",
        host,
        f"mkdir -p {dropin} && printf '[Service]\\nRestart=no\\n' >{dropin}/zz-fault.conf && systemctl daemon-reload"
        f" && systemctl kill --signal=KILL {unit}",
        f"rm -r {dropin} && systemctl daemon-reload && systemctl reset-failed {unit}; systemctl start {unit}",
        f"{host}: {check}",
        "is (failed|inactive|deactivating)",
        also,
    )


def frozen(unit: str, host: str, check: str, also: tuple[str, ...]) -> Fault:
    return Fault(
        f"{unit} frozen",
        host,
        f"systemctl kill --signal=STOP {unit}",
        f"systemctl kill --signal=CONT {unit}",
        f"{host}: {check}",
        "stopped by a signal",
        also,
    )


def stopped(unit: str, host: str, check: str, also: tuple[str, ...] = ()) -> Fault:
    return Fault(
        f"{unit} stopped",
        host,
        f"systemctl stop {unit}",
        f"systemctl start {unit}",
        f"{host}: {check}",
        "is inactive",
        also,
    )


def disabled(unit: str, host: str, check: str) -> Fault:
    return Fault(
        f"{unit} not enabled",
        host,
        f"systemctl disable {unit}",
        f"systemctl enable {unit}",
        f"{host}: {check}",
        "disabled at boot",
    )


def opened(path: str, host: str, role: str) -> Fault:
    """A secret that everybody may read."""
    return Fault(
        f"{path} readable by all",
        host,
        f"stat -c %a {path} >/root/mode && chmod 0644 {path}",
        f"chmod $(cat /root/mode) {path}",
        f"{host}: {role}: {path} is kept secret",
        "has mode 0644 instead of",
    )


HOST_AND_UNITS = [
    Fault(
        "a file system full",
        "lb1",
        "mkdir -p /srv/fault && mount -t tmpfs -o size=1m tmpfs /srv/fault; head -c 2M /dev/zero >/srv/fault/full || :",
        "umount /srv/fault",
        "lb1: base: the disks have room",
        "/srv/fault is 100.0 % full",
    ),
    Fault(
        "a file system out of inodes",
        "lb2",
        "mkdir -p /srv/fault && mount -t tmpfs -o size=1m,nr_inodes=20 tmpfs /srv/fault;"
        " for i in $(seq 30); do touch /srv/fault/$i 2>/dev/null || break; done",
        "umount /srv/fault",
        "lb2: base: the disks have inodes",
        "100.0 % of the inodes of /srv/fault",
    ),
    Fault(
        "a file system read-only",
        "api1",
        "mkdir -p /srv/fault && mount --bind /srv/fault /srv/fault && mount -o remount,bind,ro /srv/fault",
        "umount /srv/fault",
        "api1: base: the disks can be written",
        "/srv/fault is .* wanted rw",
    ),
    Fault(
        "memory used up",
        "api3",
        "sed 's/^MemAvailable:.*/MemAvailable: 1024 kB/' /proc/meminfo >/root/meminfo"
        " && mount --bind /root/meminfo /proc/meminfo",
        "umount /proc/meminfo",
        "api3: base: memory is left",
        "100.0 % of .* is in use",
    ),
    stopped("vmfleet-health.timer", "mon1", "base: the host looks at its health"),
    disabled("vmfleet-health.timer", "db2", "base: the host looks at its health"),
    disabled("ufw", "lb1", "firewall: firewall comes up at boot"),
    Fault("ufw off", "db1", "ufw disable", "ufw --force enable", "db1: firewall: firewall is active", "returned 1"),
    Fault(
        "rules by which no packet comes",
        "pool1",
        "iptables -P INPUT ACCEPT && iptables -F INPUT",
        # A reload alone would not bring the way into ufw's chains back.
        "ufw disable && /usr/lib/ufw/ufw-init flush-all && ufw --force enable",
        "pool1: firewall: firewall is active",
        "did not print",
    ),
    Fault(
        "sshd back to its defaults",
        "cache1",
        "mv /etc/ssh/sshd_config.d/10-vmfleet.conf /root/",
        "mv /root/10-vmfleet.conf /etc/ssh/sshd_config.d/",
        "cache1: base: sshd follows the drop-in",
        "did not print",
    ),
    disabled("nginx", "lb1", "nginx: nginx runs"),
    disabled("haproxy", "lb2", "haproxy: HAProxy runs"),
    disabled("api", "api2", "app_service: api runs"),
    disabled("prometheus-node-exporter", "api3", "node_exporter: host metrics come up at boot"),
    disabled("pgbouncer", "pool1", "pgbouncer: pgbouncer runs"),
    disabled("redis-server", "cache1", "redis: redis runs"),
    disabled("prometheus", "mon1", "prometheus: Prometheus runs"),
    opened("/etc/redis/auth", "cache1", "redis"),
    opened("/etc/pgbouncer/userlist.txt", "pool1", "pgbouncer"),
    opened("/etc/postgresql/17/main/replication.pgpass", "db2", "postgresql"),
    opened("/etc/vmfleet/tls/host.key", "db1", "tls"),
    opened("/etc/api/api.env", "api1", "app_service"),
]

DATA_AND_CONFIGURATION = [
    Fault(
        "host certificate expired",
        "lb1",
        "cp -p /etc/vmfleet/tls/host.crt /root/ && " + TEST_CERTIFICATE + " -not_before 20200101000000Z"
        " -not_after 20210101000000Z -out /etc/vmfleet/tls/host.crt",
        "cp -p /root/host.crt /etc/vmfleet/tls/",
        "lb1: tls: .*certificate",
        "expire",
        (r"lb1: \w+: .*certificate",),
    ),
    Fault(
        "host certificate of a stranger",
        "lb2",
        "cp -p /etc/vmfleet/tls/host.crt /root/ && " + TEST_CERTIFICATE + " -days 90 -out /etc/vmfleet/tls/host.crt",
        "cp -p /root/host.crt /etc/vmfleet/tls/",
        "lb2: tls: .*certificate",
        "self.signed",
        (r"lb2: \w+: .*certificate",),
    ),
    Fault(
        "application with a wrong database password",
        "api1",
        f"cp -p /etc/api/api.env /root/ && sed -i 's/^PGPASSWORD=.*/PGPASSWORD=wrong/' /etc/api/api.env; {RESTART}",
        f"cp -p /root/api.env /etc/api/; {RESTART}",
        "api1: app_service: api is ready",
        "database",
        (*TIERS[1:], *TARGETS),
    ),
    Fault(
        "application without a release",
        "api2",
        "mv /opt/ws/current /opt/ws/away",
        "mv /opt/ws/away /opt/ws/current",
        "api2: app_service: ws has a release",
        "is not there",
    ),
    Fault(
        "another release than elsewhere",
        "api3",
        "ln -sfn releases/0 /opt/api/current",
        "ln -sfn releases/1 /opt/api/current",
        "fleet: versions of app",
        "0 on api3",
    ),
    Fault(
        "a setting that waits for a restart",
        "db1",
        f'{PSQL} "ALTER SYSTEM SET max_wal_senders = 9" -c "SELECT pg_reload_conf()"',
        f'{PSQL} "ALTER SYSTEM RESET max_wal_senders" -c "SELECT pg_reload_conf()"',
        "db1: postgresql: postgresql runs on its present settings",
        "waits for a restart: max_wal_senders",
    ),
    Fault(
        "a line of pg_hba.conf that cannot be read",
        "db2",
        "cd /etc/postgresql/17/main && cp -p pg_hba.conf /root/ && echo 'host all nonsense' >>pg_hba.conf",
        "cp -p /root/pg_hba.conf /etc/postgresql/17/main/",
        "db2: postgresql: postgresql runs on its present settings",
        "pg_hba.conf line",
    ),
    Fault(
        "the replica's receiver stopped, its slot inactive",
        "db2",
        f"""{PSQL} "ALTER SYSTEM SET primary_conninfo = ''" -c "SELECT pg_reload_conf()"
        until {PSQL} "SELECT count(*) FROM pg_stat_wal_receiver" | grep -qx 0; do sleep 0.2; done""",
        f"""{PSQL} "ALTER SYSTEM RESET primary_conninfo" -c "SELECT pg_reload_conf()"
        until {PSQL} "SELECT status FROM pg_stat_wal_receiver" | grep -qx streaming; do sleep 0.2; done""",
        "db2: postgresql: postgresql streams from the primary",
        "no WAL receiver streams",
        STREAMS,
    ),
    Fault(
        "the pooler's list of users gone",
        "pool1",
        "mv /etc/pgbouncer/userlist.txt /root/",
        "mv /root/userlist.txt /etc/pgbouncer/",
        "pool1: pgbouncer: /etc/pgbouncer/userlist.txt is kept secret",
        "is not there",
    ),
    Fault(
        "Redis cannot save",
        "cache1",
        f"chown root:root /var/lib/redis && chmod 0555 /var/lib/redis && {REDIS} bgsave;"
        f" until {REDIS} info persistence | grep -q rdb_last_bgsave_status:err; do sleep 0.2; done",
        f"chown redis:redis /var/lib/redis && chmod 0750 /var/lib/redis && {REDIS} bgsave;"
        f" until {REDIS} info persistence | grep -q rdb_last_bgsave_status:ok; do sleep 0.2; done",
        "cache1: redis: redis answers",
        # By then Redis may refuse even the question.
        "rdb_last_bgsave_status is err|unable to persist",
        # It refuses writes then; and what it cannot do the application need not notice.
        ("cache1: redis: redis has memory left", *TIERS),
    ),
    Fault(
        "Prometheus with a broken configuration",
        "mon1",
        "cp -p /etc/prometheus/prometheus.yml /root/ && echo 'nonsense: [' >>/etc/prometheus/prometheus.yml;"
        " systemctl kill --signal=HUP prometheus; sleep 1",
        "cp -p /root/prometheus.yml /etc/prometheus/ && systemctl kill --signal=HUP prometheus",
        "mon1: prometheus: Prometheus runs on its present configuration",
        "does not match 'prometheus_config_last_reload_successful 1'",
    ),
]

NETWORK = [
    Fault(
        "a balancer cut off from a server",
        "lb1",
        "iptables -I OUTPUT -d @api1@ -p tcp --dport 8081 -j DROP",
        "iptables -D OUTPUT -d @api1@ -p tcp --dport 8081 -j DROP",
        "fleet: balancers",
        "api1 is healthy for lb2 but not for lb1",
        ("lb1: nginx: .*",),
    ),
    # What docker does to it, is in the test.
    Fault("a host without network", "api2", "", "", "api2: the host answers", ".", (*TIERS, *TARGETS)),
    Fault("a host frozen", "mon1", "", "", "mon1: the host answers", "."),
    Fault(
        "an application cut off from the pooler",
        "api3",
        "iptables -I OUTPUT -d @pool1@ -j DROP; systemctl restart --no-block ws",
        "iptables -D OUTPUT -d @pool1@ -j DROP",
        "api3: app_service: (api|ws) is ready",
        "database",
        (r"api3: app_service: \w+ (is \w+|runs)", *TIERS[1:]),
    ),
    Fault(
        "a replica cut off from its primary",
        "db2",
        "iptables -I OUTPUT -d @db1@ -j DROP",
        "iptables -D OUTPUT -d @db1@ -j DROP",
        "db2: postgresql: the primary can be reached",
        "timed out",
        STREAMS,
    ),
]

# What an operator, a bug or an attacker may have done.
HANDS = [
    Fault(
        "every server of nginx drained",
        "lb1",
        """awk '/^upstream/ { u = $2 } /^ *server .*# / { print u, $NF, "drain", 100 }'"""
        " /etc/nginx/vmfleet/upstreams.conf | sort -u >/var/lib/vmfleet/lb_server.nginx"
        " && /usr/local/lib/vmfleet/nginx-servers && systemctl reload nginx",
        "rm /var/lib/vmfleet/lb_server.nginx && /usr/local/lib/vmfleet/nginx-servers && systemctl reload nginx",
        "lb1: nginx: nginx has its servers",
        "fewer than 1 in",
        ("lb1: nginx: site .* is healthy", "fleet: balancers"),
    ),
    Fault(
        "a backend of HAProxy emptied",
        "lb2",
        HAPROXY_SERVERS + " maint",
        HAPROXY_SERVERS + " ready",
        "lb2: haproxy: HAProxy has its servers",
        "fewer than 1 in",
        ("lb2: haproxy: site .* is healthy", "fleet: balancers"),
    ),
    Fault(
        "a check that hangs",
        "api1",
        "printf '#!/bin/sh\\nexec sleep 300\\n' >/root/iptables && chmod 0755 /root/iptables"
        " && mount --bind /root/iptables /usr/sbin/iptables",
        "umount /usr/sbin/iptables",
        "api1: firewall: firewall is active",
        "still running after",
    ),
    Fault(
        "a clock that is ahead",
        "api2",
        # A library that shifts what Python reads: the clock itself is the whole machine's.
        "cp /usr/bin/python3.13 /root/python3 && printf '#!/bin/sh\\nexport FAKETIME=+90s"
        " FAKETIME_DONT_FAKE_MONOTONIC=1 LD_PRELOAD=%s\\nexec /root/python3 \"$@\"\\n'"
        " $(dpkg -L libfaketime | grep libfaketime.so.1) >/root/shifted"
        " && chmod 0755 /root/shifted && mount --bind /root/shifted /usr/bin/python3.13",
        "umount /usr/bin/python3.13",
        "fleet: clocks",
        "api2",
    ),
    Fault(
        "a host that announces nothing",
        "api3",
        "mv /etc/vmfleet/checks.d /root/",
        "mv /root/checks.d /etc/vmfleet/",
        "api3: the host answers",
        "no checks at all",
        ("fleet: versions of app",),
    ),
    Fault(
        "an announcement that cannot be read",
        "mon1",
        "cp -p /etc/vmfleet/checks.d/prometheus.json /root/ && echo '[' >/etc/vmfleet/checks.d/prometheus.json",
        "cp -p /root/prometheus.json /etc/vmfleet/checks.d/",
        "mon1: the host answers",
        "checks.d/prometheus.json",
    ),
    Fault(
        "PostgreSQL out of connections",
        "db1",
        f"""{SESSIONS} $({PSQL} "SELECT 195 - count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'") &
        for i in $(seq 100); do [ -e /run/postgresql/fault ] && exit 0; sleep 0.2; done; exit 1""",
        "rm /run/postgresql/fault; sleep 1",
        "db1: postgresql: postgresql has connections left",
        r"(19\d|200) of 200 connections|too many clients",
        # The checks need connections themselves.
        ("db1: postgresql: .*",),
    ),
    Fault(
        "the replica's slot lost",
        "db2",
        f"""until {PSQL} "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active" \\
            -c "SELECT pg_sleep(0.1)" -c "SELECT pg_drop_replication_slot('vmfleet_db2')"; do sleep 0.2; done""",
        f"""{PSQL} "SELECT pg_create_physical_replication_slot('vmfleet_db2')"
        until {PSQL} "SELECT state FROM pg_stat_replication" | grep -qx streaming; do sleep 0.5; done""",
        "db2: postgresql: postgresql streams from the primary",
        "no WAL receiver streams",
        STREAMS,
        on="db1",
    ),
    Fault(
        "the pooler paused",
        "pool1",
        f'{PGBOUNCER} "PAUSE demo"',
        f'{PGBOUNCER} "RESUME demo"',
        "pool1: pgbouncer: clients need not wait",
        "demo is paused",
        TIERS,
    ),
    Fault(
        "Redis full",
        "cache1",
        f"""{REDIS} eval "for i = 1, 61 do redis.call('set', 'fault:' .. i, string.rep('x', 1000000)) end" 0""",
        f"""{REDIS} eval "for i = 1, 61 do redis.call('del', 'fault:' .. i) end" 0""",
        "cache1: redis: redis has memory left",
        "of maxmemory",
        TIERS,
    ),
]
