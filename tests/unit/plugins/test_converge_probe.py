"""The probe's script is plain shell, and real answers become data."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._probe import (
    ProbeError,
    build_script,
    content_script,
    nonce_of,
    parse_answer,
    parse_contents,
    parse_tuple,
)
from converge_case import RELEASES, answer, desired, observed


@pytest.mark.parametrize("overrides", [{}, {"state": "absent"}, {"name": "bare", "files": [], "services": []}])
@pytest.mark.parametrize("shell", ["dash", "bash", "sh"])
def test_the_script_is_valid_shell(overrides: dict[str, Any], shell: str) -> None:
    script = build_script(desired(**overrides))
    done = subprocess.run([shell, "-n"], input=script.encode(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b""), script


def test_the_script_changes_nothing_and_starts_no_interpreter() -> None:
    script = build_script(desired())
    assert "python3 " not in script
    assert ">" not in script.replace(">/dev/null", "").replace("2>/dev/null", "").replace("'\\t%U\\t%G\\n'", "")


def test_guards_see_their_stdin_and_environment_and_no_argument_shows_them() -> None:
    """Run for real, without what asks for accounts and units."""
    wanted = desired(services=[])
    for command in wanted["commands"]:
        (command.get("unless") or {}).pop("user", None)
    script = build_script(wanted)
    done = subprocess.run(["sh", "-s"], input=script, capture_output=True, text=True)
    commands = parse_answer(wanted, script, done.stdout)["commands"]
    assert commands[0] == {"rc": 0, "stdout": "one 'two'\nit's $HOME"}
    assert commands[1]["rc"] == 0
    assert commands[2]["rc"] == 1
    assert 3 not in commands
    assert not any("env" in line.split() for line in script.splitlines())


@pytest.mark.parametrize("release", RELEASES)
def test_a_real_answer(release: str) -> None:
    host = observed(release)
    assert host["root"]
    assert host["python"]
    assert host["generation"].isdigit()
    assert host["pending"] == []
    assert host["manifest"] is None
    assert host["packages"]["openssh-server"]["status"] == "installed"
    assert host["packages"]["hello-web"] == {"status": "installed", "version": "1.0"}
    assert "no-such-package" not in host["packages"]
    conf = host["paths"]["/etc/hello-web.conf"]
    assert (conf["kind"], conf["owner"], conf["mode"], len(conf["sha256"])) == ("file", "root", "0644", 64)
    assert host["paths"]["/etc/hello/link"]["target"] == "target-of-hello"
    assert host["paths"]["/srv/hello"] == {"kind": "directory", "mode": "0750", "owner": "hello", "group": "hello"}
    assert "/etc/it's here" not in host["paths"]
    assert host["users"]["hello"]["shell"] == "/usr/sbin/nologin"
    assert "hello" in host["groups"]["adm"]["members"]
    assert "nobody-has-this" not in host["groups"]
    assert host["sysctl"] == {"net.ipv4.tcp_keepalive_time": "7005"}
    assert host["services"]["hello-web.service"]["ActiveState"] == "active"
    assert host["services"]["ssh.service"]["CanReload"] == "yes"
    assert host["services"]["no-such.service"]["LoadState"] == "not-found"
    assert host["ufw"]["installed"]
    assert host["ufw"]["live"]
    assert host["ufw"]["options"]["ENABLED"] == "yes"
    owners = {rule["comment"].split()[0] for rule in host["ufw"]["rules"]}
    assert owners == {"vmfleet:firewall", "vmfleet:web"}
    assert host["commands"][0]["rc"] == 0
    assert host["commands"][2]["rc"] == 1


def test_an_answer_with_carriage_returns_and_noise_before_it() -> None:
    wanted = desired()
    script = build_script(wanted)
    text = answer("trixie", script)
    noisy = "Welcome to this host\r\n" + text.replace("\n", "\r\n")
    assert parse_answer(wanted, script, noisy) == parse_answer(wanted, script, text)


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_an_answer_that_was_cut_short_is_no_answer(cut: int) -> None:
    wanted = desired()
    script = build_script(wanted)
    lines = answer("trixie", script).split("\n")
    end = next(number for number, line in enumerate(lines) if line == f"@@{nonce_of(script)} end")
    with pytest.raises(ProbeError):
        parse_answer(wanted, script, "\n".join(lines[: max(end - cut, 0)]))
    with pytest.raises(ProbeError, match="refused"):
        parse_answer(wanted, script, "sudo: refused\n")


def test_rules_as_ufw_stores_them() -> None:
    rule = parse_tuple("### tuple ### allow tcp 8805 0.0.0.0/0 any 10.0.0.0/8 in comment=766d666c6565743a7765622078")
    assert (rule["port"], rule["source"], rule["comment"]) == ("8805", "10.0.0.0/8", "vmfleet:web x")
    rule = parse_tuple("### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 OpenSSH - in")
    assert (rule["direction"], rule["comment"]) == ("OpenSSH - in", "")


def test_contents_come_back_whole() -> None:
    done = subprocess.run(
        ["sh", "-s"], input=content_script(["/etc/hostname", "/no/such"]), capture_output=True, text=True
    )
    contents = parse_contents(done.stdout)
    assert contents["/etc/hostname"]
    assert contents["/no/such"] == ""
