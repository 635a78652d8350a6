"""Committed changes that are taken back: exactly, one by one, not over what came since, whatever kills it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from declarations import ASK, CONF, firewall, gone, snapshots, web
from lab import ROOT, Host, Run, converge, converge_play, diff_text, failed, play, succeeded

ENGINE = [ROOT / "plugins" / "module_utils" / f"_{name}.py" for name in ("rollback", "transaction")]
TEXTS = [path.read_text() for path in ENGINE]
STEPS = ["trial", *re.findall(r'fail_point\("(reopened|back-[a-z]+)"\)', "".join(TEXTS)), "taken-back"]

OLD = web("hello", "1.0")
NEW = web("goodday", "1.1")
EXTRA = {
    "name": "extra",
    "groups": [{"name": "extras"}],
    "users": [{"name": "extra", "group": "extras", "home": "/srv/extra", "shell": "/usr/sbin/nologin"}],
    "directories": [{"path": "/srv/extra/deep", "owner": "extra", "mode": "0700"}],
    "files": [{"dest": "/etc/extra.conf", "content": "extra\n"}, {"dest": "/etc/motd", "content": "taken over\n"}],
    "commands": [{"name": "Leave a trace", "argv": ["touch", "/srv/trace"], "creates": "/srv/trace"}],
}
# The whole of a host, but for what counts its changes, what the host itself goes on writing, and what commands leave.
WHOLE = r"""
    cd /
    find etc srv usr/local var/lib/vmfleet \
        ! -path 'var/lib/vmfleet/history*' ! -name generation \
        ! -path 'etc/*-' ! -path 'srv/archive/*' ! -path srv/trace ! -path srv/hello/former \
        ! -type d -printf '%p %u %g %m %l\n' -type f -exec sha256sum '{}' + | sort
    find etc srv usr/local -type d -printf '%p %u %g %m\n' | sort
    dpkg-query -W; getent passwd; getent group; systemctl list-unit-files --no-legend --no-pager | sort
    iptables -S | sort; cat /proc/sys/net/ipv4/tcp_keepalive_time; systemctl --failed --no-legend
    tr '\0' '\n' < /proc/$(systemctl show -p MainPID --value hello-web)/environ | grep ROLE
"""


@pytest.fixture(scope="module")
def hosts(hosts: list[Host]) -> list[Host]:
    """One release is enough here: what differs between releases has its tests elsewhere."""
    return hosts[:1]


@pytest.fixture(autouse=True)
def _old_state(hosts: list[Host]) -> None:
    """Every test begins in the old state, with nothing to take back."""
    succeeded_all(play([converge_play(hosts, firewall(), OLD, gone("extra"))]))
    for host in hosts:
        host.sh("rm -rf /var/lib/vmfleet/history /srv/trace /srv/extra; userdel extra; groupdel extras; true")


def succeeded_all(run: Run) -> None:
    assert run.rc == 0, run.output


def whole(hosts: Sequence[Host]) -> dict[str, str]:
    return {host.name: host.sh(f"{ASK}\n{WHOLE}") for host in hosts}


def rollback_task(**arguments: Any) -> dict[str, Any]:
    return {"name": "Take back", "vmfleet.ops.rollback": {"confirm_timeout": 8, **arguments}}


def rollback(
    hosts: Sequence[Host],
    *,
    check: bool = False,
    options: Sequence[str] = ("--diff",),
    env: dict[str, str] | None = None,
    **arguments: Any,
) -> Run:
    book = converge_play(hosts)
    book["tasks"] = [{**rollback_task(**arguments), "check_mode": check}]
    return play([book], options=options, env=env)


def history(host: Host) -> str:
    return host.sh("ls /var/lib/vmfleet/history", check=False)


def test_the_steps_are_known() -> None:
    assert len(STEPS) == 9, STEPS


def test_a_change_is_taken_back_exactly(hosts: list[Host]) -> None:
    """Two roles and one of everything; check mode tells it; what was before the change stands, and nothing else."""
    before, served = whole(hosts), snapshots(hosts)
    run = play([converge_play(hosts, NEW, EXTRA)], options=["-vvv"])
    succeeded_all(run)
    changed = whole(hosts)
    rehearsal = succeeded(rollback(hosts, check=True, options=["--diff", "-vvv"]), hosts, changed=True)
    assert whole(hosts) == changed
    done = rollback(hosts, options=["--diff", "-vvv"])
    for host, foretold, told in zip(hosts, rehearsal, succeeded(done, hosts, changed=True)):
        assert told["changes"] == foretold["changes"]
        assert diff_text(told) == diff_text(foretold)
        assert told["roles"] == ["extra", "web"]
        assert told["stays"] == ["extra: Leave a trace"]
        assert {
            f"file {CONF}: former content",
            "file /etc/extra.conf: absent",
            "package hello-web: 1.0",
            "sysctl net.ipv4.tcp_keepalive_time: 7005",
            "user extra: absent",
            "firewall: former rules",
            "command Note the greeting: undone",
            "service hello-web.service: restarted",
        } <= set(told["changes"])
        assert "-greeting=goodday" in done.output and "+greeting=hello" in done.output
        assert "s3cr3t" not in run.output + done.output
        assert told["history"] == [] and history(host) == ""
        assert host.sh("ls -A /var/lib/vmfleet/transactions") == ""
    assert snapshots(hosts) == served
    assert whole(hosts) == before
    again = play([converge_play(hosts, firewall(), OLD)])
    assert not any(result["changed"] for host in hosts for result in again.of(host)), again.output
    succeeded(converge(hosts, NEW), hosts, changed=True)


def test_changes_are_taken_back_one_by_one_and_only_the_newest_are_kept(hosts: list[Host]) -> None:
    states = [whole(hosts)]
    for number in range(3):
        files = [{"dest": "/etc/motd", "content": f"{number}\n"}, {"dest": f"/etc/extra{number}", "content": "x"}]
        extra = {"name": "extra", "files": files, "history": 2}
        succeeded(converge(hosts, extra), hosts, changed=True)
        states.append(whole(hosts))
    for host in hosts:
        assert len(history(host).split()) == 2
        assert host.sh("stat -c %a /var/lib/vmfleet/history /var/lib/vmfleet/history/*") == "700\n700\n700"
        assert host.sh("cat /var/lib/vmfleet/history/*/*/new/* 2>/dev/null; true") == ""
    listing = converge_play(hosts)
    listing["tasks"] = [{"vmfleet.ops.rollback_info": {}}]
    shown = play([listing])
    first, second = shown.one(hosts[0])["history"]
    assert first["change"] > second["change"] and first["roles"] == ["extra"]
    older = rollback(hosts, change=second["change"])
    failed(older, hosts, f"file /etc/motd .by change {re.escape(first['change'])}; take that back first.", "look")
    for number in (2, 1):
        succeeded(rollback(hosts), hosts, changed=True)
        assert whole(hosts) == states[number]
    for result in succeeded(rollback(hosts), hosts, changed=False):
        assert result["msg"] == "there is no change to take back: /var/lib/vmfleet/history has none"
    failed(rollback(hosts, change=first["change"]), hosts, f"{first['change']}' is not kept on this host", "look")


def test_a_role_that_left_comes_back_with_what_it_had_replaced(hosts: list[Host]) -> None:
    succeeded(converge(hosts, EXTRA), hosts, changed=True)
    before = whole(hosts)
    succeeded(converge(hosts, gone("extra")), hosts, changed=True)
    succeeded(rollback(hosts), hosts, changed=True)
    assert whole(hosts) == before


def test_what_was_done_since_is_not_lost_without_a_word(hosts: list[Host]) -> None:
    before = whole(hosts)
    succeeded(converge(hosts, NEW), hosts, changed=True)
    for host in hosts:
        host.sh(f"echo more >> {CONF}; sysctl -qw net.ipv4.tcp_keepalive_time=7100")
        host.sh("ufw allow 4321/tcp; systemctl disable hello-web; apt-get -qq -y install hello-web=1.2 >/dev/null 2>&1")
    drifted = whole(hosts)
    for check in (True, False):
        for result in failed(rollback(hosts, check=check), hosts, "changed since then.*With force", "look"):
            assert set(result["drift"]) == {
                f"file {CONF}",
                "sysctl net.ipv4.tcp_keepalive_time",
                "file /etc/ufw/user.rules",
                "file /etc/ufw/user6.rules",
                "service hello-web.service",
                "package hello-web",
            }
    assert whole(hosts) == drifted
    succeeded(rollback(hosts, force=True), hosts, changed=True)
    assert whole(hosts) == before


def test_packages_that_cannot_go_back_are_known_before(hosts: list[Host]) -> None:
    succeeded(converge(hosts, NEW), hosts, changed=True)
    changed = whole(hosts)
    for host in hosts:
        host.sh("cp /srv/archive/Packages /tmp/Packages; sed -i '/Version: 1.0/s/1.0/0.9/' /srv/archive/Packages")
        host.sh("apt-get -qq update")
    try:
        failed(rollback(hosts, check=True), hosts, "packages: E: Version '1.0' for 'hello-web' was not found", "look")
        failed(rollback(hosts), hosts, "Nothing was changed", "look")
    finally:
        for host in hosts:
            host.sh("mv /tmp/Packages /srv/archive/Packages; apt-get -qq update")
    assert whole(hosts) == changed


def test_killed_at_every_step_one_after_the_other(hosts: list[Host]) -> None:
    """Each run goes a step further and is killed there; the last one, of any role, finishes."""
    before = whole(hosts)
    succeeded_all(play([converge_play(hosts, NEW, EXTRA)]))
    book = converge_play(hosts)
    book["tasks"] = [
        {**rollback_task(), "name": step, "ignore_errors": True, "environment": {"VMFLEET_FAIL_AT": step}}
        for step in STEPS
    ]
    bystander = {"name": "bystander", "files": [{"dest": "/etc/bystander", "content": "x"}]}
    book["tasks"].append({"vmfleet.ops.converge": bystander})
    run = play([book])
    succeeded_all(run)
    for host in hosts:
        *killed, last = run.of(host)
        assert [result["outcome"] for result in killed] == ["failed"] * len(STEPS), run.output
        assert last["changes"][0] == "took back the interrupted transaction of web"
        assert host.sh("ls -A /var/lib/vmfleet/transactions") == ""
    succeeded(converge(hosts, gone("bystander")), hosts, changed=True)
    assert whole(hosts) == before


def test_an_unfinished_one_is_finished_and_nothing_more(hosts: list[Host]) -> None:
    succeeded(converge(hosts, {"name": "extra", "files": [{"dest": "/etc/motd", "content": "1\n"}]}), hosts)
    before = whole(hosts)
    succeeded(converge(hosts, {"name": "extra", "files": [{"dest": "/etc/motd", "content": "2\n"}]}), hosts)
    book = converge_play(hosts)
    killed = {**rollback_task(), "ignore_errors": True, "environment": {"VMFLEET_FAIL_AT": "reopened"}}
    book["tasks"] = [killed, rollback_task()]
    run = play([book])
    succeeded_all(run)
    for host in hosts:
        last = run.of(host)[-1]
        assert last["changes"] == [f"finished taking back change {last['change']}"]
        assert len(last["history"]) == 1
    assert whole(hosts) == before


def test_former_rules_that_lock_the_operator_out_are_not_kept(hosts: list[Host]) -> None:
    """The change was made over a connection that stood; its former rules let nobody in."""
    book = converge_play(hosts, firewall(), {"name": "extra", "files": [{"dest": "/etc/motd", "content": "1\n"}]})
    shut = {"ansible.builtin.command": "ufw --force delete allow 22/tcp"}
    book["tasks"].insert(0, shut)
    succeeded_all(play([book]))
    changed = whole(hosts)
    run = rollback(hosts, env={"ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_TIMEOUT": "3"})
    failed(run, hosts, "could not reach the host over a new connection within 8 s")
    for host in hosts:
        host.wait('test -z "$(ls -A /var/lib/vmfleet/transactions)"', 60)
        assert len(history(host).split()) == 1
    assert whole(hosts) == changed


def test_a_full_disk_costs_the_history_and_not_the_change(hosts: list[Host]) -> None:
    """What was kept before goes as well, so that the change before this one does not pass for the last."""
    succeeded(converge(hosts, {"name": "extra", "files": [{"dest": "/etc/motd", "content": "1\n"}]}), hosts)
    # Links take no room in the file system of the test, but what is noted of them does.
    links = [{"dest": f"/etc/extra.d/{number}", "state": "link", "target": "nowhere"} for number in range(150)]
    fill = "dd if=/dev/zero of=/var/lib/vmfleet/.filler bs=4k 2>/dev/null; touch /run/filled"
    extra = {
        "name": "extra",
        "files": links,
        "commands": [{"name": "Fill the disk", "shell": fill, "creates": "/run/filled"}],
    }
    for host in hosts:
        host.sh("""
            rm -f /run/filled; cp -a /var/lib/vmfleet /tmp/kept
            mount -t tmpfs -o size=1m tmpfs /var/lib/vmfleet; cp -a /tmp/kept/. /var/lib/vmfleet
        """)
    try:
        run = converge(hosts, extra)
        succeeded(run, hosts, changed=True)
        assert "can not be taken back" in " ".join(run.output.split())
        for host in hosts:
            assert host.sh("ls -A /var/lib/vmfleet/transactions") == ""
            assert len(history(host).split()) <= 1
            assert "/etc/extra.d" in host.sh("cat /var/lib/vmfleet/history/*/*/note.json || echo none of /etc/extra.d")
        succeeded(converge(hosts, extra), hosts, changed=False)
    finally:
        for host in hosts:
            host.sh("""
                rm -f /var/lib/vmfleet/.filler; rm -rf /tmp/kept; cp -a /var/lib/vmfleet /tmp/kept
                umount /var/lib/vmfleet; rm -rf /var/lib/vmfleet; mv /tmp/kept /var/lib/vmfleet
            """)
