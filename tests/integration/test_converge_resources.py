"""Every resource: made, compared, mended, taken away."""

from __future__ import annotations

from typing import Any

import pytest
from declarations import ASK, CONF, DROP_IN, SECRET, firewall, gone, web
from lab import Host, converge, cycle, diff_text, failed, succeeded
from packages import STARTS


@pytest.fixture(scope="module", autouse=True)
def _firewall(hosts: list[Host]) -> None:
    succeeded(converge(hosts, firewall()), hosts)
    succeeded(converge(hosts, firewall()), hosts, changed=False)


@pytest.fixture
def standing(hosts: list[Host]) -> list[Host]:
    """Hosts on which the role stands."""
    if any(web_state(host) != "hello" for host in hosts):
        succeeded(converge(hosts, web()), hosts)
    return hosts


def web_state(host: Host) -> str:
    """What the service's greeting is; a test that left more than that behind breaks only itself."""
    return host.sh(f"{ASK} | cut -d' ' -f2", check=False)


def test_first_run_makes_everything_and_check_mode_says_so(hosts: list[Host]) -> None:
    succeeded(converge(hosts, gone()), hosts)
    for host in hosts:
        host.sh(f"dpkg -P hello-web >/dev/null 2>&1; rm -f {STARTS}; userdel hello 2>/dev/null; true")
    before = {host.name: host.sh("ls -lR /etc | md5sum; cat /etc/passwd /etc/group") for host in hosts}
    rehearsal = converge(hosts, web(), check=True)
    for result in succeeded(rehearsal, hosts, changed=True):
        assert "s3cr3t" not in str(result)
    for host in hosts:
        assert host.sh("ls -lR /etc | md5sum; cat /etc/passwd /etc/group") == before[host.name]
    real = converge(hosts, web())
    succeeded(real, hosts, changed=True)
    for host in hosts:
        assert diff_text(rehearsal.one(host)) == diff_text(real.one(host))
        assert rehearsal.one(host)["changes"] == real.one(host)["changes"]
        assert host.sh(ASK) == "1.0 hello"
        assert host.sh(f"cat {STARTS}") == "hello", "the package ran with another configuration than ours"
        assert host.sh("systemctl is-enabled hello-web; systemctl is-active hello-web") == "enabled\nactive"
        assert (
            host.sh("tr '\\0' '\\n' < /proc/$(systemctl show -p MainPID --value hello-web)/environ | grep ROLE")
            == "ROLE=hello"
        )
        assert host.sh(f"stat -c '%U %G %a' {SECRET} /srv/hello") == "hello root 600\nhello hello 750"
        assert host.sh("readlink /etc/hello/link") == "target-of-hello"
        assert host.sh("cat /proc/sys/net/ipv4/tcp_keepalive_time /srv/hello/noted") == "7005\nhello"
        assert "adm" in host.sh("id -nG hello")
        assert host.sh("ls /usr/sbin/policy-rc.d", check=False) == ""
        assert "8805/tcp" in host.sh("ufw status")
        assert host.sh("python3 -c 'import json; json.load(open(\"/etc/ansible/facts.d/vmfleet_web.fact\"))'") == ""
        assert host.sh("ls -A /var/lib/vmfleet/transactions") == ""
    succeeded(converge(hosts, web()), hosts, changed=False)


DRIFT: list[tuple[str, str, str]] = [
    # what somebody does by hand, what the diff must name, what proves the repair
    (f"echo tampered >> {CONF}", f"file {CONF}", f"! grep tampered {CONF}"),
    (f"chmod 0644 {SECRET}", f"file {SECRET}: hello:root 0600", f"test $(stat -c %a {SECRET}) = 600"),
    ("chown root /srv/hello", "directory /srv/hello", "test $(stat -c %U /srv/hello) = hello"),
    ("ln -sfn elsewhere /etc/hello/link", "file /etc/hello/link", "test $(readlink /etc/hello/link) = target-of-hello"),
    ("rm /etc/motd", "file /etc/motd", "grep -q hello /etc/motd"),
    (
        "echo 99 > /proc/sys/net/ipv4/tcp_keepalive_time",
        "sysctl net.ipv4.tcp_keepalive_time: 7005",
        "grep -q 7005 /proc/sys/net/ipv4/tcp_keepalive_time",
    ),
    (
        "rm /etc/sysctl.d/60-vmfleet-web.conf",
        "file /etc/sysctl.d/60-vmfleet-web.conf",
        "test -s /etc/sysctl.d/60-vmfleet-web.conf",
    ),
    ("gpasswd -d hello adm", "user hello: groups=+adm", "id -nG hello | grep -w adm"),
    ("ufw --force delete allow 8700/tcp", "firewall rule allow 8700/tcp from any", "ufw status | grep 8700/tcp"),
    ("ufw allow 9999/tcp comment 'vmfleet:web by hand'", "firewall rule allow 9999/tcp", "! ufw status | grep 9999"),
    (f"sed -i s/hello/other/ {DROP_IN}; systemctl daemon-reload", f"file {DROP_IN}", f"grep -q hello {DROP_IN}"),
    ("systemctl stop hello-web", "service hello-web.service: ", "systemctl is-active hello-web"),
    ("systemctl disable hello-web", "service hello-web.service: enabled", "systemctl is-enabled hello-web"),
    (
        "rm /etc/vmfleet/checks.d/web.json",
        "file /etc/vmfleet/checks.d/web.json",
        "test -s /etc/vmfleet/checks.d/web.json",
    ),
    ("echo x > /srv/hello/noted", "command Note the greeting: done", "grep -q hello /srv/hello/noted"),
]


def test_drift_is_found_named_and_mended(standing: list[Host]) -> None:
    """All at once: each must be named by its own words."""
    for host in standing:
        for action, _words, _proof in DRIFT:
            host.sh(f"{{ {action}; }} >/dev/null 2>&1")
    for host, result in zip(standing, cycle(standing, web()), strict=True):
        named = "\n".join(result["changes"])
        assert "+tampered" not in result["output"]
        assert "-tampered" in result["output"]
        for action, words, proof in DRIFT:
            assert words in named, f"{action}: {words!r} is not among\n{named}"
            host.sh(f"{{ {proof}; }} >/dev/null")


ALONE: list[tuple[str, str]] = [
    ("systemctl stop hello-web", "service hello-web.service: started"),
    ("systemctl disable hello-web", "service hello-web.service: enabled"),
    ("systemctl mask --now hello-web", "service hello-web.service: unmasked"),
    ("apt-get -qq -y remove hello-web", "package hello-web: 1.0"),
    ("systemctl kill -s KILL hello-web; sleep 0.3", "service hello-web.service: started"),
    ("rm -r /etc/hello", f"file {SECRET}"),
    ("userdel hello", "user hello: present"),
]


@pytest.mark.parametrize(("action", "words"), ALONE)
def test_one_drift_alone_is_mended(standing: list[Host], action: str, words: str) -> None:
    for host in standing:
        host.sh(f"{{ {action}; }} >/dev/null 2>&1")
    for host, result in zip(standing, cycle(standing, web()), strict=True):
        assert any(change.startswith(words) for change in result["changes"]), result["changes"]
        assert host.sh(f"{ASK}; systemctl is-enabled hello-web") == "1.0 helloenabled"


def test_a_unit_changed_by_hand_but_not_loaded_is_loaded_again(standing: list[Host]) -> None:
    for host in standing:
        host.sh(f"sed -i s/hello/other/ {DROP_IN}; systemctl daemon-reload; sed -i s/other/hello/ {DROP_IN}")
    for result in succeeded(converge(standing, web()), standing, changed=True):
        assert result["changes"] == ["service hello-web.service: unit file loaded"]
    succeeded(converge(standing, web()), standing, changed=False)


def test_only_the_service_concerned_is_touched(standing: list[Host]) -> None:
    pid = {host.name: host.sh("systemctl show -p MainPID --value hello-web") for host in standing}
    files = web()["files"]
    files[3]["content"] = "another motd\n"
    succeeded(converge(standing, web(files=files)), standing, changed=True)
    for host in standing:
        assert host.sh("systemctl show -p MainPID --value hello-web") == pid[host.name]


def test_reload_keeps_the_process_and_restart_does_not(standing: list[Host]) -> None:
    services = [{"name": "hello-web", "enabled": True, "state": "started", "on_change": "restart", "reload_on": [CONF]}]
    pid = {host.name: host.sh("systemctl show -p MainPID --value hello-web") for host in standing}
    files = web("howdy")["files"][:1] + web()["files"][1:]
    role = web(files=files, services=services, verify=web("howdy")["verify"])
    results = succeeded(converge(standing, role), standing, changed=True)
    for host, result in zip(standing, results, strict=True):
        assert "service hello-web.service: reload" in diff_text(result)
        assert host.sh("systemctl show -p MainPID --value hello-web") == pid[host.name]
    # An upgrade and a unit take effect by a restart only, whatever the files ask for.
    reload_only = [{**services[0], "on_change": "reload"}]
    role = web(files=files, services=reload_only, verify=web("howdy")["verify"], units=web("newer")["units"])
    succeeded(converge(standing, role), standing, changed=True)
    for host in standing:
        assert host.sh("systemctl show -p MainPID --value hello-web") != pid[host.name]


def test_stale_files_and_dropped_services_go_and_originals_return(standing: list[Host]) -> None:
    for host in standing:
        host.sh("echo original > /etc/issue.hello; chmod 0640 /etc/issue.hello")
    extra = [
        {"dest": "/etc/issue.hello", "content": "ours\n"},
        {"dest": "/etc/hello/extra.conf", "content": "extra\n"},
    ]
    unit = {
        "name": "hello-tick.service",
        "content": "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n",
    }
    tick = {"name": "hello-tick", "enabled": True, "state": "started"}
    base = web()
    wider = web(files=base["files"] + extra, units=[*base["units"], unit], services=[*base["services"], tick])
    succeeded(converge(standing, wider), standing, changed=True)
    succeeded(converge(standing, wider), standing, changed=False)
    cycle(standing, base)
    for host in standing:
        assert host.sh("cat /etc/issue.hello; stat -c %a /etc/issue.hello") == "original\n640"
        assert host.sh("ls /etc/hello/extra.conf /etc/systemd/system/hello-tick.service", check=False) == ""
        assert host.sh("systemctl is-active hello-tick", check=False) == "inactive"
        assert host.sh("find /etc/systemd/system -name 'hello-tick*'") == ""


def test_absent_undoes_the_role(standing: list[Host]) -> None:
    for host in standing:
        host.sh("echo 'by hand' > /srv/hello/data")
    cycle(standing, gone())
    for host in standing:
        assert host.sh("dpkg-query -W -f '${db:Status-Status}' hello-web") in ("config-files", "not-installed")
        assert host.sh("pgrep -f '[h]ello-web'", check=False) == ""
        assert "vmfleet:web" not in host.sh("cat /etc/ufw/user.rules /etc/ufw/user6.rules")
        assert "8700" not in host.sh("ufw status")
        assert host.sh("cat /proc/sys/net/ipv4/tcp_keepalive_time") == "7200"
        assert "hello to you" not in host.sh("cat /etc/motd")
        assert (
            host.sh(
                f"ls -d {DROP_IN} {SECRET} /etc/sysctl.d/60-vmfleet-web.conf /etc/vmfleet/checks.d/web.json"
                " /etc/ansible/facts.d/vmfleet_web.fact /var/lib/vmfleet/roles/web.json",
                check=False,
            )
            == ""
        )
        assert host.sh("find /etc/systemd/system -name 'hello-web*'") in ("", "/etc/systemd/system/hello-web.service.d")
        assert host.sh("id -un hello; cat /srv/hello/data") == "hello\nby hand", "accounts and data stay"
    succeeded(converge(standing, gone(services=[{"name": "hello-web"}])), standing, changed=False)


def test_absent_of_what_never_was_touches_nothing(hosts: list[Host]) -> None:
    succeeded(
        converge(hosts, gone("never", services=[{"name": "ssh"}], packages=["openssh-server"])), hosts, changed=False
    )
    for host in hosts:
        assert host.sh("systemctl is-active ssh") == "active"


def test_firewall_rules_are_one_set_and_other_rules_stay(standing: list[Host]) -> None:
    for host in standing:
        host.sh("ufw allow 7777/tcp comment 'vmfleet:other mine' >/dev/null")
    rules: list[dict[str, Any]] = [
        {"port": ["8700", "9000:9010"], "from": ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32"], "comment": "set"},
        {"port": 53, "proto": "udp", "from": ["any"], "action": "limit"},
        {"port": 25, "from": ["any"], "action": "deny"},
        {"port": 7777, "from": ["any"], "comment": "as another role has it"},
    ]
    succeeded(converge(standing, web(firewall=rules)), standing, changed=True)
    succeeded(converge(standing, web(firewall=list(reversed(rules)))), standing, changed=False)
    for rule in rules:
        rule["comment"] = "other words"
    rules[2]["action"] = "reject"
    succeeded(converge(standing, web(firewall=rules)), standing, changed=True)
    succeeded(converge(standing, web(firewall=rules)), standing, changed=False)
    for host in standing:
        status = host.sh("ufw status")
        assert "REJECT" in status
        assert "9000:9010/tcp" in status
        assert "2001:db8::/32" in status
    succeeded(converge(standing, web()), standing, changed=True)
    for host in standing:
        assert "7777/tcp" in host.sh("ufw status"), "a rule of another role was taken away"
        host.sh("ufw --force delete allow 7777/tcp")


def test_the_owner_of_the_firewall_removes_what_nobody_declared(hosts: list[Host]) -> None:
    for host in hosts:
        host.sh("""
            ufw allow 5555; ufw allow from 192.0.2.1; ufw deny out 25/tcp; ufw allow in on eth0 to any port 80 proto tcp
            ufw route allow in on eth0 out on eth1 to 10.0.0.0/8 port 443 proto tcp; ufw limit log 2222/tcp
            ufw allow OpenSSH; ufw allow proto udp from 10.0.0.0/8 port 53 to 10.1.0.0/16 port 1024:65535
            ufw allow 8700/tcp comment 'vmfleet:web keep'
        """)
    cycle(hosts, firewall())
    for host in hosts:
        rules = host.sh("grep -h '### tuple' /etc/ufw/user.rules /etc/ufw/user6.rules | grep -v comment=", check=False)
        assert rules == "", rules
        assert "8700/tcp" in host.sh("ufw status")


def test_foreign_config_is_replaced_and_returned(hosts: list[Host]) -> None:
    """A file kept as original, taken over twice, is given back as it was at first."""
    for host in hosts:
        host.sh("printf first > /etc/kept.conf; chown games:games /etc/kept.conf; chmod 0604 /etc/kept.conf")
    role = {"name": "kept", "files": [{"dest": "/etc/kept.conf", "content": "a"}]}
    for content in ("a", "b"):
        role["files"][0]["content"] = content  # type: ignore[index]
        succeeded(converge(hosts, role), hosts, changed=True)
    succeeded(converge(hosts, gone("kept")), hosts, changed=True)
    for host in hosts:
        assert host.sh("cat /etc/kept.conf; stat -c ' %U %G %a' /etc/kept.conf") == "first games games 604"
        host.sh("rm /etc/kept.conf")
    # Nothing stood there the second time, so nothing returns.
    succeeded(converge(hosts, role), hosts, changed=True)
    succeeded(converge(hosts, gone("kept")), hosts, changed=True)
    for host in hosts:
        assert host.sh("ls /etc/kept.conf", check=False) == ""


def test_binary_source_links_and_odd_names(hosts: list[Host], tmp_path: Any) -> None:
    data = bytes(range(256)) * 300
    source = tmp_path / "blob"
    source.write_bytes(data)
    role = {
        "name": "odd",
        "files": [
            {"dest": "/srv/odd/a b'c\"$x", "source": str(source), "mode": "0400"},
            {"dest": "/srv/odd/no-newline", "content": "x"},
            {"dest": "/srv/odd/unicode-é", "content": "grüße\n"},
            {"dest": "/srv/odd/absent", "state": "absent"},
        ],
    }
    for host in hosts:
        host.sh("mkdir -p /srv/odd; touch /srv/odd/absent")
    cycle(hosts, role)
    for host in hosts:
        assert (
            host.sh('sha256sum < "/srv/odd/a b\'c\\"\\$x"').split()[0] == __import__("hashlib").sha256(data).hexdigest()
        )
        assert host.sh("ls /srv/odd/absent; wc -c < /srv/odd/no-newline", check=False) == "1"
    succeeded(converge(hosts, gone("odd")), hosts, changed=True)


def test_a_declaration_from_a_template(hosts: list[Host], tmp_path: Any) -> None:
    (tmp_path / "plan.yml.j2").write_text(
        "vars: {word: {{ greeting | to_json }}, lines: [1, 2]}\n"
        f"files: [{{dest: /srv/plan/b, template: {tmp_path}/b.j2, vars: {{end: '!'}}}}]\n"
        "commands:\n"
        "  - {name: Say it, argv: [tee, /srv/plan/c], "
        f"stdin_template: {tmp_path}/b.j2, vars: {{end: '?'}}, creates: /srv/plan/c}}\n"
    )
    (tmp_path / "b.j2").write_text("{{ word }} {{ lines | sum }}{{ end }}\n")
    role = {
        "name": "plan",
        "vars": {"greeting": "good day"},
        "declaration": str(tmp_path / "plan.yml.j2"),
        "directories": [{"path": "/srv/plan"}],
        "files": [{"dest": "/srv/plan/a", "content": "a\n"}],
    }
    cycle(hosts, role)
    for host in hosts:
        assert host.sh("cat /srv/plan/a /srv/plan/b /srv/plan/c") == "a\ngood day 3!\ngood day 3?"
    # What is given twice and is no list would hide one of the two.
    (tmp_path / "twice.yml.j2").write_text("sysctl: {net.ipv4.tcp_keepalive_time: 7200}\n")
    twice = {**role, "declaration": str(tmp_path / "twice.yml.j2"), "sysctl": {"net.ipv4.tcp_keepalive_intvl": 75}}
    failed(converge(hosts, twice), hosts, "sysctl is given twice: as an option, and in declaration")
    (tmp_path / "broken.yml.j2").write_text("files: [\n")
    failed(converge(hosts, {**role, "declaration": str(tmp_path / "broken.yml.j2")}), hosts, "yields no data")
    # With state absent the record on the host says what goes; a broken template is in nobody's way.
    succeeded(converge(hosts, gone("plan") | {"declaration": str(tmp_path / "broken.yml.j2")}), hosts, changed=True)
    for host in hosts:
        assert host.sh("ls /srv/plan") == "c"


def test_a_declaration_that_cannot_be_is_refused_before_the_host_is_touched(hosts: list[Host]) -> None:
    run = converge(hosts, web(firewall=[{"port": 70000, "from": ["any"]}]))
    failed(run, hosts, "role web: firewall: port: '70000' is not a port")
