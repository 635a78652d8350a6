"""The role that the tests converge: one of every resource, small and quick."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from lab import Host

CONF = "/etc/hello-web.conf"
DROP_IN = "/etc/systemd/system/hello-web.service.d/vmfleet.conf"
SECRET = "/etc/hello/secret.conf"


def web(greeting: str = "hello", version: str = "1.0", **overrides: Any) -> dict[str, Any]:
    """Package, files, accounts, sysctl, firewall, drop-in, commands, service and checks of one service."""
    role: dict[str, Any] = {
        "name": "web",
        "packages": [{"name": "hello-web", "version": version}],
        "groups": [{"name": "hello"}],
        "users": [
            {"name": "hello", "group": "hello", "groups": ["adm"], "home": "/srv/hello", "shell": "/usr/sbin/nologin"}
        ],
        "directories": [{"path": "/srv/hello", "owner": "hello", "group": "hello", "mode": "0750"}],
        "files": [
            {"dest": CONF, "content": f"greeting={greeting}\nport=8800\n"},
            {
                "dest": SECRET,
                "content": f"token=s3cr3t-{greeting}\n",
                "mode": "0600",
                "owner": "hello",
                "sensitive": True,
            },
            {"dest": "/etc/hello/link", "state": "link", "target": f"target-of-{greeting}"},
            {"dest": "/etc/motd", "content": f"{greeting} to you\n", "on_change": "none"},
        ],
        "sysctl": {"net.ipv4.tcp_keepalive_time": 7000 + len(greeting)},
        "firewall": [
            {"port": 8800 + len(greeting), "from": ["10.0.0.0/8"], "comment": "web"},
            {"port": 8700, "from": ["any"]},
        ],
        "units": [{"name": "hello-web.service.d/vmfleet.conf", "content": f"[Service]\nEnvironment=ROLE={greeting}\n"}],
        "commands": [
            {
                "name": "Note the greeting",
                "shell": "cd /srv/hello; [ ! -e noted ] || mv noted former; cat > noted",
                "stdin": greeting,
                "user": "hello",
                "unless": {"argv": ["cat", "/srv/hello/noted"], "stdout": greeting, "user": "hello"},
                "undo": {"shell": "cd /srv/hello; rm -f noted; [ ! -e former ] || mv former noted"},
            },
        ],
        "services": [{"name": "hello-web", "enabled": True, "state": "started", "on_change": "restart"}],
        "validate": [{"argv": ["grep", "-q", "^greeting=", CONF]}],
        "verify": [{"type": "http", "url": "http://127.0.0.1:8800/", "body": f"^[0-9.]+ {greeting}$", "startup": 5}],
        "announce": {
            "checks": [{"type": "tcp", "port": 8800}],
            "facts": {"ports": {"web": 8800}},
        },
    }
    role.update(copy.deepcopy(overrides))
    return role


def gone(name: str = "web", **overrides: Any) -> dict[str, Any]:
    return {"name": name, "state": "absent", **overrides}


def firewall(**options: Any) -> dict[str, Any]:
    """The role that owns the firewall's switches; the operator's way in comes first."""
    return {
        "name": "firewall",
        "firewall": [{"port": 22, "from": ["any"], "comment": "operator"}],
        "firewall_options": {"enabled": True, "confirm_timeout": 8, **options},
    }


# A service that was just started may not listen yet.
ASK = "curl -s --retry 3 --retry-connrefused --retry-delay 1 http://127.0.0.1:8800/"
# All that the role brings to a host, as it is there.
SNAPSHOT = f"""
    cat {CONF} {DROP_IN} /srv/hello/noted /etc/vmfleet/checks.d/web.json /etc/ansible/facts.d/vmfleet_web.fact
    cat {SECRET} /etc/motd /etc/sysctl.d/60-vmfleet-web.conf /proc/sys/net/ipv4/tcp_keepalive_time
    readlink /etc/hello/link
    stat -c '%n %U %G %a' {CONF} {SECRET} {DROP_IN} /srv/hello /etc/hello
    dpkg-query -W hello-web
    id hello
    grep -h '^### tuple.*comment' /etc/ufw/user.rules /etc/ufw/user6.rules | sort
    iptables -S ufw-user-input | sort
    systemctl is-enabled hello-web
    systemctl show -p ActiveState,NeedDaemonReload hello-web
    {ASK}
    tr '\\0' '\\n' < /proc/$(systemctl show -p MainPID --value hello-web)/environ | grep ROLE
    ls /usr/sbin/policy-rc.d /etc/hello /etc/systemd/system/hello-web.service.d
    find /etc /usr /srv -name '*vmfleet-new*'
    cat /var/lib/vmfleet/roles/web.json
"""


def snapshots(hosts: Sequence[Host]) -> dict[str, str]:
    return {host.name: host.sh(f"{{ {SNAPSHOT}\n}} 2>&1", check=False) for host in hosts}
