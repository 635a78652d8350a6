"""How a host is reached: lock-outs, broken connections, sudo, connection plugins, strategies, cores."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from controllers import CACHE, CORES, controller, interpreter
from declarations import firewall, gone
from lab import PREFIX, ROOT, Host, Run, converge, converge_play, failed, play, playing, succeeded


def small(name: str = "small") -> dict[str, Any]:
    """A role that any host can carry: file, directory, command."""
    return {
        "name": name,
        "directories": [{"path": f"/srv/{name}", "mode": "0700"}],
        "files": [{"dest": f"/etc/{name}.conf", "content": "{{ inventory_hostname }}\n", "mode": "0600"}],
        "commands": [{"name": "Touch", "argv": ["touch", f"/srv/{name}/x"], "creates": f"/srv/{name}/x"}],
    }


def first_and_again(hosts: Sequence[Host], env: dict[str, str] | None = None, **keywords: Any) -> Run:
    """Nothing there, then the first run, then a run that finds nothing to do."""
    for host in hosts:
        host.sh("rm -rf /etc/small.conf /srv/small /var/lib/vmfleet/roles/small.json /var/lib/vmfleet/originals/small")
    options = {key: keywords.pop(key) for key in ("inventory", "command") if key in keywords}
    run = play([converge_play(hosts, small(), small(), **keywords)], env=env, **options)
    assert run.rc == 0, run.output
    for host in hosts:
        assert [result["changed"] for result in run.of(host)] == [True, False], run.output
        assert host.sh("cat /etc/small.conf; stat -c '%U %a' /etc/small.conf") == f"{host.name}\nroot 600"
    return run


# -- firewall -------------------------------------------------------------------------------------------------------


def test_a_firewall_that_locks_the_operator_out_is_taken_back(hosts: list[Host]) -> None:
    succeeded(converge(hosts, firewall()), hosts)
    rules = [host.sh("iptables -S ufw-user-input; cat /etc/ufw/user.rules") for host in hosts]
    began = time.monotonic()
    run = converge(hosts, {**firewall(), "firewall": []}, env={"ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_TIMEOUT": "3"})
    failed(run, hosts, "could not reach the host over a new connection within 8 s.*Check the rule for")
    for host in hosts:
        host.wait('test -z "$(ls -A /var/lib/vmfleet/transactions)"', 60)
    assert time.monotonic() - began < 120
    assert [host.sh("iptables -S ufw-user-input; cat /etc/ufw/user.rules") for host in hosts] == rules
    succeeded(converge(hosts, firewall()), hosts, changed=False)


def test_enabling_without_a_way_in_is_taken_back_to_off(hosts: list[Host]) -> None:
    one = hosts[:1]
    one[0].sh("ufw --force disable; ufw --force delete allow 22/tcp")
    role = {**firewall(), "firewall": []}
    run = converge(one, role, env={"ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_TIMEOUT": "3"})
    failed(run, one, "could not reach the host over a new connection")
    one[0].wait('test -z "$(ls -A /var/lib/vmfleet/transactions)"', 60)
    assert one[0].sh("ufw status") == "Status: inactive"
    succeeded(converge(one, firewall()), one, changed=True)
    succeeded(converge(one, firewall()), one, changed=False)


# -- connection lost ------------------------------------------------------------------------------------------------


def test_connection_lost_in_the_middle(hosts: list[Host]) -> None:
    """The host goes on by itself; the run says that it lost it; the next one finds nothing to do."""
    one = hosts[:1]
    linger = {
        "name": "Linger",
        "shell": "touch /run/lingering; sleep 5; touch /run/lingered",
        "creates": "/run/lingered",
    }
    role = {"name": "lost", "files": [{"dest": "/etc/lost.conf", "content": "new\n"}], "commands": [linger]}
    one[0].sh("rm -f /run/linger*")
    network = f"{PREFIX}-net"
    address = one[0].sh("hostname -I").split()[0]
    with playing([converge_play(one, role)], env={"ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_TIMEOUT": "3"}) as (
        _process,
        finish,
    ):
        one[0].wait("test -e /run/lingering", 60)
        subprocess.run(["docker", "network", "disconnect", network, one[0].container], check=True)
        try:
            run = finish()
        finally:
            subprocess.run(
                ["docker", "network", "connect", "--ip", address, "--alias", one[0].name, network, one[0].container],
                check=True,
            )
    assert run.rc != 0
    assert run.of(one[0])[-1]["outcome"] in ("unreachable", "failed"), run.output
    one[0].wait('test -e /run/lingered && test -z "$(ls -A /var/lib/vmfleet/transactions)"', 60)
    assert one[0].sh("cat /etc/lost.conf") == "new"
    succeeded(converge(one, role), one, changed=False)
    succeeded(converge(one, gone("lost")), one, changed=True)


# -- secrets --------------------------------------------------------------------------------------------------------

SECRETS = {
    "file": "s3cr3tFILEfile",
    "quoted": "s3cr3t QUOTED;one",
    "stdin": "s3cr3tSTDIN0",
    "guard": "s3cr3tGUARD0",
    "env": "s3cr3tENVIRON",
    "old": "s3cr3tOLDfile",
}


def secretive(broken: bool) -> dict[str, Any]:
    dest = "/etc/hushed.conf"
    return {
        "name": "hushed",
        "files": [
            {
                "dest": dest,
                "sensitive": True,
                "mode": "0600",
                "content": f'password {SECRETS["file"]}\nphrase = "{SECRETS["quoted"]}"\n',
            }
        ],
        "commands": [
            {
                "name": "Use it",
                "sensitive": True,
                "shell": "cat > /run/hushed; chmod 600 /run/hushed; sleep 1; cat /run/hushed",
                "stdin": SECRETS["stdin"],
                "environment": {"PGPASSWORD": SECRETS["env"]},
                "unless": {
                    "shell": "sleep 0.5; cat >/dev/null; test -s /run/hushed",
                    "stdin": SECRETS["guard"],
                    "environment": {"PGPASSWORD": SECRETS["env"]},
                },
            },
        ],
        "validate": [{"argv": ["sh", "-c", f"cat {dest} >&2; exit {int(broken)}"]}],
    }


@pytest.mark.parametrize("broken", [True, False])
def test_secrets_are_seen_nowhere(hosts: list[Host], broken: bool) -> None:
    one = hosts[:1]
    one[0].sh(
        "rm -f /etc/hushed.conf /run/hushed /var/lib/vmfleet/roles/hushed.json; "
        f"echo 'password {SECRETS['old']}' > /etc/hushed.conf; chmod 600 /etc/hushed.conf"
    )
    one[0].sh(
        "touch /run/sampling /run/started;"
        " (while [ -e /run/sampling ]; do ps axww -o args; sleep 0.02; done > /run/ps 2>&1) &"
    )
    run = converge(one, secretive(broken), options=["-vvv"])
    one[0].sh("rm /run/sampling; sleep 0.2")
    if broken:
        result = failed(run, one, "validate the staged files", "validate")[0]
        assert "********" in result["stderr"]
    else:
        succeeded(run, one, changed=True)
    one[0].put("/run/words", "\n".join(SECRETS.values()) + "\n", "0600")
    for name, word in SECRETS.items():
        assert word not in run.output, name
    assert "s3cr3t" not in run.output
    assert one[0].sh("wc -l < /run/ps") > "1"
    assert one[0].sh("grep -c s3cr3t /run/ps", check=False) == "0"
    assert one[0].sh("journalctl --since -5min | grep -Fc -f /run/words", check=False) == "0"
    readable = one[0].sh(
        "find / -xdev -newer /run/started -type f -perm /o+r -print0 | xargs -0 grep -lF -f /run/words 2>/dev/null",
        check=False,
    )
    assert readable == ""
    # What may come back is kept for root: the former text, and how to undo a command.
    kept = one[0].sh("find /var/lib/vmfleet -type f | xargs grep -lF -f /run/words", check=False).split()
    history = r"/var/lib/vmfleet/history/[^/]+/[^/]+-hushed/(old/\d+|journal\.json)"
    former = r"/var/lib/vmfleet/originals/hushed/etc/hushed\.conf"
    assert [path for path in kept if not re.fullmatch(f"{history}|{former}", path)] == []
    assert not broken or not [path for path in kept if re.fullmatch(history, path)]
    assert set(one[0].sh("stat -c %a /var/lib/vmfleet/[ho]*/").split()) == {"700"}
    if not broken:
        succeeded(converge(one, secretive(False)), one, changed=False)
        succeeded(converge(one, gone("hushed")), one, changed=True)


# -- sudo, connections, strategies ----------------------------------------------------------------------------------


def test_sudo_with_a_password(hosts: list[Host]) -> None:
    for host in hosts:
        host.sh("""
            id careful 2>/dev/null || useradd -m -s /bin/bash careful
            echo 'careful:open sesame' | chpasswd
            echo 'careful ALL=(ALL) ALL' > /etc/sudoers.d/careful
            install -d -m 700 -o careful ~careful/.ssh
            install -o careful -m 600 ~ops/.ssh/authorized_keys ~careful/.ssh/authorized_keys
        """)
    login = {"ansible_user": "careful", "ansible_become_password": "open sesame"}
    run = first_and_again(hosts, vars=login)
    assert "open sesame" not in run.output
    refused = play([converge_play(hosts, small(), vars={**login, "ansible_become_password": "wrong"})])
    assert refused.rc != 0
    assert all(refused.of(host)[-1]["outcome"] in ("failed", "unreachable") for host in hosts)


def test_without_become_the_message_says_what_to_set(hosts: list[Host]) -> None:
    failed(
        play([converge_play(hosts, small(), vars={"ansible_become": False})]),
        hosts,
        "must be changed as root; set become: true",
    )


@pytest.mark.parametrize("settings", [{"strategy": "free"}, {"vars": {"ansible_pipelining": False}}, {"serial": 1}])
def test_strategies_and_transfers(hosts: list[Host], settings: dict[str, Any]) -> None:
    first_and_again(hosts, **settings)


def test_rerun_needs_one_execution_and_no_python(hosts: list[Host]) -> None:
    """The promise of the converged path: one ssh execution, no module, whatever the role."""
    one = hosts[:1]
    first_and_again(one)
    run = play([converge_play(one, small())], options=["-vvv"])
    assert run.one(one[0])["changed"] is False
    assert run.output.count("SSH: EXEC ssh") == 1, run.output
    assert "AnsiballZ" not in run.output
    assert "vmfleet-engine" not in run.output


def test_connection_local(hosts: list[Host]) -> None:
    """On the host itself, by its own ansible-core, as root and by sudo."""
    one = next((host for host in hosts if host.release == "trixie"), None)
    if one is None:
        pytest.skip("only Debian 13 has an ansible-core that is new enough")
    one.sh(
        "command -v ansible-playbook >/dev/null || { apt-get -qq update; apt-get -qq -y --no-install-recommends install"
        " ansible-core >/dev/null 2>&1; }"
    )
    target = "/usr/share/ansible/collections/ansible_collections/vmfleet/ops"
    tar = subprocess.run(
        ["tar", "-C", str(ROOT), "--exclude=__pycache__", "-c", "plugins", "meta", "galaxy.yml"],
        capture_output=True,
        check=True,
    ).stdout
    one.sh(f"mkdir -p {target} && tar -C {target} -x", stdin=tar)
    book = (
        "- {hosts: localhost, gather_facts: false, become: true, tasks: [{vmfleet.ops.converge: {name: small, files:"
        " [{dest: /etc/small.conf, content: x}]}}]}"
    )
    one.put("/tmp/book.yml", book)
    for user in ("root", "ops"):
        one.sh("rm -rf /etc/small.conf /var/lib/vmfleet/roles/small.json /var/lib/vmfleet/originals/small")
        command = (
            f"cd /tmp && runuser -u {user} -- env HOME=/tmp/{user} LC_ALL=C.UTF-8 ansible-playbook -c local book.yml"
        )
        assert "changed=1 " in one.sh(command)
        assert "changed=0 " in one.sh(command)


@pytest.fixture(scope="session")
def community_docker() -> Path:
    """The connection plugin's collection, out of the distribution of collections on PyPI."""
    target = CACHE / "collections"
    if not (target / "ansible_collections" / "community" / "docker").is_dir():
        target.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "--only-binary=:all:",
                "-d",
                str(target),
                "ansible",
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            pytest.skip(f"the collections cannot be downloaded here: {done.stderr.strip()[-200:]}")
        wheel = next(target.glob("ansible-*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(
                target,
                [
                    name
                    for name in archive.namelist()
                    if name.startswith(
                        (
                            "ansible_collections/community/docker/",
                            "ansible_collections/community/library_inventory_filtering_v1/",
                        )
                    )
                ],
            )
        wheel.unlink()
    return target


def test_connection_docker(hosts: list[Host], community_docker: Path, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    lines = [
        f"{host.name}: {{ansible_host: {host.container}, ansible_connection: community.docker.docker}}"
        for host in hosts
    ]
    inventory.write_text("---\nall: {hosts: {" + ", ".join(lines) + "}}\n")
    env = {"ANSIBLE_COLLECTIONS_PATH": f"{ROOT / '.collections'}:{community_docker}"}
    first_and_again(hosts, env=env, inventory=inventory)


# -- other controllers ----------------------------------------------------------------------------------------------


@CORES
def test_other_cores(hosts: list[Host], core: str, versions: tuple[str, ...]) -> None:
    home = controller(interpreter(*versions), f"ansible-core=={core}.*")
    first_and_again(hosts, command=[str(home / "bin" / "ansible-playbook")])


@pytest.fixture
def mitogen() -> dict[str, str]:
    core = subprocess.run(
        [sys.executable, "-c", "import ansible.release as r; print(r.__version__)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    home = controller(sys.executable, f"ansible-core=={core}", "mitogen==0.3.54")
    strategies = next(home.glob("lib/python3*/site-packages/ansible_mitogen/plugins/strategy"))
    return {"ANSIBLE_STRATEGY_PLUGINS": str(strategies), "HOME_OF_CORE": str(home)}


def test_mitogen(hosts: list[Host], mitogen: dict[str, str]) -> None:
    """Also a firewall change, whose dead man's switch is a process that stays behind."""
    command = [f"{mitogen['HOME_OF_CORE']}/bin/ansible-playbook"]
    first_and_again(hosts, env=mitogen, command=command, strategy="mitogen_linear")
    roles = [
        {**firewall(), "firewall": [*firewall()["firewall"], {"port": 4444, "from": ["any"]}]},
        firewall(),
        firewall(),
    ]
    run = play([converge_play(hosts, *roles, strategy="mitogen_linear")], env=mitogen, command=command)
    assert run.rc == 0, run.output
    for host in hosts:
        assert [result["changed"] for result in run.of(host)][1:] == [True, False], run.output
        assert host.sh("ls -A /var/lib/vmfleet/transactions") == ""


def test_rules_that_were_flushed_are_loaded_again(hosts: list[Host]) -> None:
    """Together with a missing rule, which ufw could not add to chains that are not there."""
    succeeded(converge(hosts, firewall()), hosts)
    for host in hosts:
        host.sh("ufw --force delete allow 22/tcp; iptables -P INPUT ACCEPT; iptables -F; iptables -X")
    results = succeeded(converge(hosts, firewall()), hosts, changed=True)
    for host, result in zip(hosts, results, strict=True):
        assert "firewall: stored rules loaded" in result["changes"]
        assert "22/tcp" in host.sh("ufw status")
    succeeded(converge(hosts, firewall()), hosts, changed=False)
