"""Faults in the middle of a change: the old state serves or the new one is complete, and the next run converges."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from declarations import ASK, CONF, SECRET, firewall, gone, snapshots, web
from lab import ROOT, Host, converge, converge_play, failed, play, playing, succeeded

ENGINE = ROOT / "plugins" / "module_utils" / "_transaction.py"
FAIL_POINTS = sorted(set(re.findall(r'(?:fail_point|self\.enter)\("([a-z-]+)"\)', ENGINE.read_text())))
# Only a run that fails comes through these.
TAKING_BACK = {"take-back", "taken-back"}
# What taking back itself comes through, here after a failure and in test_converge_rollback.py after a commit.
STEPS_BACK = {point for point in FAIL_POINTS if point.startswith("back-")}
# Either end of a run that came through.
ENDS = {"committed", "awaiting-word"}

OLD = web("hello", "1.0")
NEW = web("goodday", "1.0")
# The same with a package to move; only where that matters, because apt takes its time.
UPGRADE = web("goodday", "1.1")
UPGRADING = {"packages", "policy"}


@pytest.fixture(scope="module")
def hosts(hosts: list[Host]) -> list[Host]:
    """One release is enough here: what differs between releases has its tests elsewhere."""
    return hosts[:1]


@pytest.fixture(scope="module")
def states(hosts: list[Host]) -> dict[str, dict[str, str]]:
    """What the two states look like, as reached by runs that nothing disturbed."""
    result = {}
    for name, role in (("upgrade", UPGRADE), ("new", NEW), ("old", OLD)):
        succeeded(converge(hosts, firewall(), role), hosts)
        result[name] = snapshots(hosts)
    return result


@pytest.fixture(autouse=True)
def _old_state(hosts: list[Host], states: dict[str, dict[str, str]]) -> Iterator[None]:
    """Every test begins in the old state, also after one that failed."""
    if snapshots(hosts) != states["old"]:
        succeeded(converge(hosts, OLD), hosts)
    assert snapshots(hosts) == states["old"]
    yield
    for host in hosts:
        host.sh("umount /etc/hello /var/lib/vmfleet /usr/share/hello-web /var/cache/apt/archives 2>/dev/null; true")


def assert_old(hosts: Sequence[Host], states: dict[str, dict[str, str]]) -> None:
    now = snapshots(hosts)
    for host in hosts:
        assert now[host.name] == states["old"][host.name], f"{host.name} is not in its old state"
        assert host.sh("ls -A /var/lib/vmfleet/transactions") == ""


def assert_converges(
    hosts: Sequence[Host], states: dict[str, dict[str, str]], state: str = "new"
) -> list[dict[str, Any]]:
    """The next run reaches the new state and the one after it finds nothing to do."""
    role = {"new": NEW, "upgrade": UPGRADE}[state]
    run = play([converge_play(hosts, role, role)])
    assert run.rc == 0, run.output
    now = snapshots(hosts)
    first = []
    for host in hosts:
        results = run.of(host)
        assert [result["changed"] for result in results][-1] is False, run.output
        assert now[host.name] == states[state][host.name]
        first.append(results[0])
    return first


def test_the_fail_points_are_known() -> None:
    assert len(FAIL_POINTS) >= 20, FAIL_POINTS
    assert set(FAIL_POINTS) >= ENDS | TAKING_BACK


@pytest.mark.parametrize("point", sorted(set(FAIL_POINTS) - TAKING_BACK - STEPS_BACK - ENDS))
def test_killed(hosts: list[Host], states: dict[str, dict[str, str]], point: str) -> None:
    """SIGKILL at every phase; the next run takes back what was begun, then converges."""
    state = "upgrade" if point in UPGRADING else "new"
    run = converge(hosts, UPGRADE if point in UPGRADING else NEW, fail_at=point)
    assert run.rc != 0, f"{point} was never reached\n{run.output}"
    for host in hosts:
        assert run.of(host)[-1]["outcome"] in ("failed", "unreachable"), run.output
        if point not in ("service", "services", "verify", "verified"):
            assert host.sh(ASK) == "1.0 hello", "the old service does not serve"
    for result in assert_converges(hosts, states, state):
        assert result["changed"]
        recovered = any("interrupted transaction of web" in change for change in result["changes"])
        assert recovered is (point != "journal")


def test_killed_after_the_commit(hosts: list[Host], states: dict[str, dict[str, str]]) -> None:
    """The controller does not learn of it, but the change stands."""
    role = web("goodday", firewall=OLD["firewall"])
    run = converge(hosts, role, fail_at="committed")
    assert run.rc != 0, run.output
    succeeded(converge(hosts, role), hosts, changed=False)


def test_killed_before_the_controller_could_confirm_a_firewall_change(
    hosts: list[Host], states: dict[str, dict[str, str]]
) -> None:
    """Nobody reports back: the host waits, takes the change back by itself, and the next run waits for that."""
    run = converge(hosts, {**firewall(), "firewall": []}, fail_at="awaiting-word")
    assert run.rc != 0, run.output
    for host in hosts:
        assert host.sh("ls -A /var/lib/vmfleet/transactions") == "firewall"
    succeeded(converge(hosts, firewall()), hosts, changed=False)
    assert_old(hosts, states)


@pytest.mark.parametrize("point", sorted(TAKING_BACK))
def test_killed_while_taking_back(hosts: list[Host], states: dict[str, dict[str, str]], point: str) -> None:
    broken = web("goodday", "1.1", verify=[{"type": "tcp", "port": 9, "startup": 1}])
    run = converge(hosts, broken, fail_at=point)
    assert run.rc != 0, run.output
    # Whatever runs next, of whatever role, finishes the work first.
    run = converge(hosts, {"name": "bystander", "files": [{"dest": "/etc/bystander", "content": point}]})
    for result in succeeded(run, hosts, changed=True):
        assert result["changes"][0] == "took back the interrupted transaction of web"
    assert_old(hosts, states)
    succeeded(converge(hosts, gone("bystander")), hosts, changed=True)


def test_killed_run_whose_drift_was_mended_by_hand_is_still_taken_back(
    hosts: list[Host], states: dict[str, dict[str, str]]
) -> None:
    converge(hosts, NEW, fail_at="verified")
    rehearsal = converge(hosts, NEW, check=True)
    for result in succeeded(rehearsal, hosts, changed=True):
        assert any("interrupted transaction" in change for change in result["changes"])
    succeeded(converge(hosts, OLD), hosts, changed=True)
    assert_old(hosts, states)


BROKEN: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "role validation",
        {"validate": [{"argv": ["sh", "-c", f"grep -n greeting {CONF} >&2; exit 4"]}]},
        "validate",
        "validate the staged files.*returned 4",
    ),
    (
        "file validation",
        {"files": [{"dest": CONF, "content": "greeting=goodday\n", "validate": "sh -c 'echo wrong >&2; exit 5' %s"}]},
        "validate",
        f"validate {CONF}",
    ),
    (
        "dies on start",
        {"files": [{"dest": CONF, "content": "greeting=goodday\ndie=start\n"}]},
        "verify",
        "did not stay up|not running",
    ),
    (
        "dies soon after",
        {"files": [{"dest": CONF, "content": "greeting=goodday\ndie=soon\n"}]},
        "verify",
        "did not stay up",
    ),
    (
        "dies on reload",
        {
            "files": [{"dest": CONF, "content": "greeting=hello\nport=8800\ndie=reload\n"}],
            "packages": OLD["packages"],
            "units": OLD["units"],
            "services": [{"name": "hello-web", "enabled": True, "state": "started", "on_change": "reload"}],
        },
        "verify",
        "did not stay up",
    ),
    (
        "check fails",
        {"verify": [{"type": "http", "url": "http://127.0.0.1:8800/", "body": "^other$", "startup": 2}]},
        "verify",
        "body does not match",
    ),
    (
        "command fails",
        {"commands": [{"name": "Fail", "argv": ["sh", "-c", "echo why >&2; exit 9"], "creates": "/nope"}]},
        "reload",
        "Fail.*returned 9",
    ),
    (
        "command without effect",
        {"commands": [{"name": "Idle", "argv": ["true"], "creates": "/nope"}]},
        "reload",
        "guard still",
    ),
    (
        "unknown owner",
        {"directories": [{"path": "/srv/hello2/deep", "owner": "nobody-here"}]},
        "stage",
        "no user 'nobody-here'",
    ),
    (
        "unknown package",
        {"packages": ["hello-web", "no-such-package-here"]},
        "packages",
        "Unable to locate|no-such-package-here",
    ),
    ("unknown version", {"packages": [{"name": "hello-web", "version": "9.9"}]}, "packages", "install packages"),
    ("unknown sysctl", {"sysctl": {"net.ipv4.no_such_setting": 1}}, "journal", "is it a setting of this kernel"),
    ("directory in the way", {"files": [{"dest": "/etc/hello", "content": "x"}]}, "journal", "is a directory"),
]


@pytest.mark.parametrize(("what", "overrides", "phase", "words"), BROKEN, ids=[row[0] for row in BROKEN])
def test_broken_change_is_taken_back(
    hosts: list[Host], states: dict[str, dict[str, str]], what: str, overrides: dict[str, Any], phase: str, words: str
) -> None:
    run = converge(hosts, web("goodday", **overrides))
    for result in failed(run, hosts, words, phase):
        assert re.search("everything was put back as it was|nothing was changed", result["msg"])
        assert result["diff"]
        if "command" in result:
            assert result["rc"] != 0
            assert result["stderr"] + result["stdout"]
    assert_old(hosts, states)


def test_check_mode_finds_what_validation_would_refuse(hosts: list[Host], states: dict[str, dict[str, str]]) -> None:
    broken = web(files=[{"dest": CONF, "content": "nothing\n"}])
    traces = "ls -lAR /var/lib/vmfleet /run | grep -v -e ^total | grep -i -e check -e new"
    before = [host.sh(traces, check=False) for host in hosts]
    failed(converge(hosts, broken, check=True), hosts, "validate the staged files", "validate")
    assert [host.sh(traces, check=False) for host in hosts] == before
    assert_old(hosts, states)


def test_first_install_that_fails_leaves_no_trace(hosts: list[Host], states: dict[str, dict[str, str]]) -> None:
    succeeded(converge(hosts, gone()), hosts, changed=True)
    for host in hosts:
        host.sh(
            "dpkg -P hello-web >/dev/null 2>&1; userdel hello; "
            "rm -rf /srv/hello /etc/hello /etc/systemd/system/hello-web.service.d /var/log/hello-web.starts"
        )
    traces = (
        "find /etc /srv -newer /tmp/mark -type f | grep -v -e /etc/ufw -e passwd -e group -e shadow -e subuid -e subgid"
    )
    for host in hosts:
        host.sh("sleep 0.1; touch /tmp/mark")
    broken = web(verify=[{"type": "tcp", "port": 9, "startup": 1}])
    failed(converge(hosts, broken), hosts, "Connection refused", "verify")
    for host in hosts:
        assert host.sh("dpkg-query -W -f '${db:Status-Status}' hello-web", check=False) in (
            "",
            "config-files",
            "not-installed",
        )
        assert host.sh("id hello", check=False) == ""
        assert host.sh("getent group hello", check=False) == ""
        assert host.sh("ls -d /srv/hello /etc/hello", check=False) == ""
        assert host.sh(traces, check=False) == ""
        assert host.sh("find /etc/systemd/system -name 'hello-web*'", check=False) == ""
        assert set(host.sh("cat /var/log/hello-web.starts").split()) <= {"hello"}
        assert host.sh("find /var/lib/vmfleet/originals/web ! -type d", check=False) == ""


def fill(host: Host, path: str, size: str = "64k", keep: bool = True) -> None:
    """Puts a small full disk under a path, with what was there before."""
    host.sh(f"""
        mkdir -p {path} && cp -a {path} /tmp/kept && mount -t tmpfs -o size={size} tmpfs {path}
        {"cp -a /tmp/kept/. " + path if keep else ":"}
        chmod --reference=/tmp/kept {path}; rm -r /tmp/kept
        dd if=/dev/zero of={path}/.filler bs=4k 2>/dev/null; true
    """)


@pytest.mark.parametrize(
    ("path", "room", "phase"),
    [
        ("/var/lib/vmfleet", 0, "journal"),
        ("/var/lib/vmfleet", 10, "stage"),
        ("/etc/hello", 0, "swap"),
    ],
)
def test_full_disk(hosts: list[Host], states: dict[str, dict[str, str]], path: str, room: int, phase: str) -> None:
    """The records' disk full from the start, full while staging, and a full disk where a file has to go."""
    for host in hosts:
        # Kept changes need their room too.
        fill(host, path, "1m")
        host.sh(f"truncate -s -{room * 4}k {path}/.filler")
    # No upgrade: apt has its own tests.
    big = web(
        "hello",
        "1.0",
        files=[
            *OLD["files"][:1],
            {"dest": SECRET, "content": "x" * 60000, "mode": "0600", "owner": "hello"},
            *OLD["files"][2:],
        ],
    )
    failed(converge(hosts, big), hosts, "No space left", phase)
    for host in hosts:
        assert host.sh(ASK) == "1.0 hello"
        host.sh(f"rm {path}/.filler")
    assert_old(hosts, states)
    succeeded(play([converge_play(hosts, big)]), hosts, changed=True)
    succeeded(converge(hosts, OLD), hosts, changed=True)


def archive(host: Host, former: str, method: str) -> None:
    """How apt gets at the archive: in place (file) or by a download (copy)."""
    host.sh(f"sed -i s,{former}:/srv,{method}:/srv, /etc/apt/sources.list.d/archive.list; apt-get -qq update")


@pytest.mark.parametrize("path", ["/var/cache/apt/archives", "/usr/share/hello-web"])
def test_full_disk_while_apt_works(hosts: list[Host], states: dict[str, dict[str, str]], path: str) -> None:
    """No room for the archive, and no room for what is in it."""
    for host in hosts:
        fill(host, path, "1m", keep=False)
        if path.startswith("/var/cache"):
            archive(host, "file", "copy")
    try:
        failed(converge(hosts, web("goodday", "1.2")), hosts, "install packages", "packages")
        for host in hosts:
            assert host.sh("dpkg --audit") == ""
        assert_old(hosts, states)
    finally:
        for host in hosts:
            host.sh(f"umount {path}")
            archive(host, "copy", "file")
    assert_converges(hosts, states)


# The engine is given to Python on the command line; the shells and sudo around it begin otherwise.
ENGINE_PROCESS = "-f '^python3 -I -c'"


@pytest.mark.parametrize("victim", ["engine", "engine and apt"])
def test_killed_while_apt_works(hosts: list[Host], states: dict[str, dict[str, str]], victim: str) -> None:
    """The engine dies while dpkg runs a maintainer script; apt goes on alone, or dies as well."""
    slow = web("goodday", "1.3")
    with playing([converge_play(hosts, slow)]) as (_process, finish):
        for host in hosts:
            host.wait("pgrep -f '[h]ello-web.postinst'", 60)
            host.sh(f"pkill -KILL {ENGINE_PROCESS}")
            if victim == "engine and apt":
                host.sh("pkill -KILL apt-get; pkill -KILL dpkg; true")
        run = finish()
    assert run.rc != 0
    assert_converges(hosts, states)
    for host in hosts:
        assert host.sh("dpkg --audit") == ""
        assert "default" not in host.sh("cat /var/log/hello-web.starts")


def test_two_runs_at_once_do_not_mix(hosts: list[Host], states: dict[str, dict[str, str]]) -> None:
    """Same role, different states: both end well and one of the two states is whole."""
    with playing([converge_play(hosts, NEW)]) as (_a, one), playing([converge_play(hosts, OLD)]) as (_b, other):
        runs = [one(), other()]
    for run in runs:
        succeeded(run, hosts)
    now = snapshots(hosts)
    for host in hosts:
        assert now[host.name] in (states["old"][host.name], states["new"][host.name])


def test_two_runs_of_two_roles_at_once(hosts: list[Host]) -> None:
    roles = [
        {
            "name": f"two-{n}",
            "files": [{"dest": f"/etc/two-{n}", "content": "x"}],
            "commands": [{"name": "Linger", "shell": "sleep 1; touch /run/two", "creates": f"/run/two-{n}"}],
        }
        for n in (1, 2)
    ]
    for role in roles:
        role["commands"][0]["shell"] = f"sleep 1; touch {role['commands'][0]['creates']}"  # type: ignore[index]
    with playing([converge_play(hosts, roles[0])]) as (_a, one), playing([converge_play(hosts, roles[1])]) as (_b, two):
        for run in (one(), two()):
            succeeded(run, hosts, changed=True)
    succeeded_run = play([converge_play(hosts, *roles)])
    assert not any(result["changed"] for host in hosts for result in succeeded_run.of(host)), succeeded_run.output
    converge(hosts, *(gone(str(role["name"])) for role in roles))


def test_lock_that_is_held_for_too_long(hosts: list[Host], states: dict[str, dict[str, str]]) -> None:
    for host in hosts:
        host.sh("flock /run/vmfleet.lock sleep 15 >/dev/null 2>&1 &")
    failed(converge(hosts, web("goodday", lock_timeout=1)), hosts, "another run has been changing this host", "lock")
    for host in hosts:
        host.sh("pkill -x sleep; true")
    assert_old(hosts, states)


LINGER = {
    "name": "Linger",
    "shell": "touch /run/lingering; sleep 4; touch /run/lingered",
    "creates": "/run/lingered",
    "undo": {"argv": ["rm", "-f", "/run/lingering", "/run/lingered"]},
}


@pytest.fixture
def lingering(hosts: list[Host]) -> Iterator[dict[str, Any]]:
    """The new state with a command that takes its time."""
    for host in hosts:
        host.sh("rm -f /run/linger*")
    yield web("goodday", commands=[*NEW["commands"], LINGER])
    for host in hosts:
        host.sh("rm -f /run/linger*")


def test_controller_killed(hosts: list[Host], states: dict[str, dict[str, str]], lingering: dict[str, Any]) -> None:
    """kill -9 of ansible-playbook and its connections: the host goes on to the end by itself."""
    with playing([converge_play(hosts, lingering)]) as (process, finish):
        for host in hosts:
            host.wait("test -e /run/lingering", 60)
        os.killpg(process.pid, signal.SIGKILL)
        finish()
    for host in hosts:
        host.wait('test -z "$(ls -A /var/lib/vmfleet/transactions)"', 60)
    assert snapshots(hosts) == states["new"]
    succeeded(converge(hosts, NEW), hosts, changed=False)


def test_terminated_engine_takes_back(
    hosts: list[Host], states: dict[str, dict[str, str]], lingering: dict[str, Any]
) -> None:
    with playing([converge_play(hosts, lingering)]) as (_process, finish):
        for host in hosts:
            host.wait("test -e /run/lingering", 60)
            host.sh(f"pkill -TERM {ENGINE_PROCESS}")
        run = finish()
    failed(run, hosts, "ended by signal 15")
    assert_old(hosts, states)
