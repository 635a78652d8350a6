"""Facts from the shell script: real answers of hosts, and the machine at hand against Ansible's own setup."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils import _host_facts as host_facts

TRIXIE = """
@@vmfleet-preflight id
0
root

@@vmfleet-preflight os
PRETTY_NAME="Debian GNU/Linux 13 (trixie)"
NAME="Debian GNU/Linux"
VERSION_ID="13"
VERSION="13 (trixie)"
VERSION_CODENAME=trixie
ID=debian

@@vmfleet-preflight debian
13.1

@@vmfleet-preflight uname
6.12.41+deb13-amd64
x86_64

@@vmfleet-preflight nodename
db1

@@vmfleet-preflight fqdn
db1.example.com

@@vmfleet-preflight memory
MemTotal:       32865096 kB
MemFree:        10240000 kB
MemAvailable:   20480000 kB
SwapTotal:             0 kB
SwapFree:              0 kB

@@vmfleet-preflight cpu
processor\t: 0
physical id\t: 0
siblings\t: 4
cpu cores\t: 2
processor\t: 1
physical id\t: 1
siblings\t: 4
cpu cores\t: 2

@@vmfleet-preflight nproc
8

@@vmfleet-preflight init
systemd

@@vmfleet-preflight systemd
/usr/bin/systemctl

@@vmfleet-preflight apt
/usr/bin/apt-get
/usr/bin/dpkg-query

@@vmfleet-preflight route4
8.8.8.8 via 10.0.0.1 dev eth0 src 10.0.0.31 uid 0
    cache

@@vmfleet-preflight route6

@@vmfleet-preflight addresses
1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
1: lo    inet6 ::1/128 scope host noprefixroute \\       valid_lft forever
2: eth0    inet 10.0.0.31/24 brd 10.0.0.255 scope global eth0\\       valid_lft forever
2: eth0    inet6 fe80::1/64 scope link \\       valid_lft forever

@@vmfleet-preflight disk
Filesystem     Type    1-blocks        Used   Available Capacity Mounted on
/dev/vda1      ext4 105152176128 8000000000 92000000000       8% /

@@vmfleet-preflight python
/usr/bin/python3
/usr/bin/python3.13

@@vmfleet-preflight end
"""


def facts(answer: str) -> dict[str, Any]:
    found = host_facts.facts_of(host_facts.parse_answer(answer))
    return {name[len("ansible_") :]: value for name, value in found.items()}


def test_debian_13() -> None:
    found = facts(TRIXIE)
    assert found["distribution"] == "Debian"
    assert found["os_family"] == "Debian"
    assert found["distribution_release"] == "trixie"
    assert found["distribution_version"] == "13.1"
    assert found["distribution_major_version"] == "13"
    assert (found["hostname"], found["fqdn"], found["domain"]) == ("db1", "db1.example.com", "example.com")
    assert found["memtotal_mb"] == 32094
    assert found["processor_vcpus"] == 8
    assert found["default_ipv4"] == {"interface": "eth0", "address": "10.0.0.31", "gateway": "10.0.0.1"}
    assert found["default_ipv6"] == {}
    assert found["all_ipv4_addresses"] == ["10.0.0.31"]
    assert found["all_ipv6_addresses"] == ["fe80::1"]
    assert found["service_mgr"] == "systemd"
    assert found["pkg_mgr"] == "apt"
    assert found["python_version"] == "3.13"
    assert found["mounts"][0]["size_total"] == 105152176128


def test_ubuntu_keeps_the_version_of_os_release() -> None:
    answer = (
        TRIXIE.replace("ID=debian", "ID=ubuntu")
        .replace('VERSION_ID="13"', 'VERSION_ID="24.04"')
        .replace("VERSION_CODENAME=trixie", "VERSION_CODENAME=noble")
        .replace("\n13.1\n", "\ntrixie/sid\n")
    )
    found = facts(answer)
    assert found["distribution"] == "Ubuntu"
    assert found["os_family"] == "Debian"
    assert found["distribution_version"] == "24.04"
    assert found["distribution_major_version"] == "24"


def test_a_terminal_puts_carriage_returns_in_and_changes_nothing() -> None:
    assert facts(TRIXIE.replace("\n", "\r\n")) == facts(TRIXIE)


@pytest.mark.parametrize("answer", ["", "sudo: a password is required", TRIXIE.replace("preflight end", "preflight e")])
def test_what_is_no_answer_is_refused(answer: str) -> None:
    with pytest.raises(host_facts.FactsError):
        host_facts.parse_answer(answer)


def test_processors_without_a_topology_are_counted() -> None:
    arm = TRIXIE.replace("physical id", "serial").replace("siblings", "x").replace("cpu cores", "y")
    assert facts(arm)["processor_vcpus"] == 2


def test_missing_tools_leave_facts_out_and_break_nothing() -> None:
    found = facts("\n".join(f"\n@@vmfleet-preflight {title}\n" for title in ("id", "end")))
    assert found["default_ipv4"] == {}
    assert "python" not in found
    assert "mounts" not in found


@pytest.mark.parametrize(("told", "roles"), [("base.json\n/r/nginx.json", ["base", "nginx"]), ("*.json", [])])
def test_roles_on_record(told: str, roles: list[str]) -> None:
    answer = f"\n{host_facts.MARKER} roles\n/r/{told}\n{host_facts.MARKER} end\n"
    assert host_facts.facts_of(host_facts.parse_answer(answer))["vmfleet_roles"] == roles


def test_assumed_facts_have_the_names_of_asked_ones() -> None:
    assert set(host_facts.assumed_facts("a", "10.0.0.1")) >= set(host_facts.facts_of(host_facts.parse_answer(TRIXIE)))


def test_the_machine_at_hand_looks_as_setup_sees_it(tmp_path: Path) -> None:
    answer = subprocess.run(
        ["sh", "-s"], input=host_facts.build_script(sys.executable), capture_output=True, text=True, check=True
    ).stdout
    (tmp_path / "ansible.cfg").touch()
    (tmp_path / "hosts").write_text(f"localhost ansible_connection=local ansible_python_interpreter={sys.executable}\n")
    arguments = json.dumps({"gather_subset": ["!all", "min", "network", "hardware"]})
    ansible = str(Path(sys.executable).with_name("ansible"))
    output = subprocess.run(
        [ansible, "-i", str(tmp_path / "hosts"), "localhost", "-m", "ansible.builtin.setup", "-a", arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(tmp_path),
            "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
        },
    ).stdout
    expected = json.loads(output[output.index("{") :])["ansible_facts"]
    found = host_facts.facts_of(host_facts.parse_answer(answer))
    same = (
        "architecture",
        "distribution",
        "distribution_major_version",
        "distribution_release",
        "distribution_version",
        "hostname",
        "kernel",
        "machine",
        "memtotal_mb",
        "nodename",
        "os_family",
        "pkg_mgr",
        "processor_cores",
        "processor_count",
        "processor_nproc",
        "processor_threads_per_core",
        "processor_vcpus",
        "service_mgr",
        "swaptotal_mb",
        "system",
    )
    for name in same:
        assert found[f"ansible_{name}"] == expected[f"ansible_{name}"], name
    # Other interfaces may come and go between the two looks.
    default = expected["ansible_default_ipv4"].get("address")
    assert default is None or default in found["ansible_all_ipv4_addresses"]
    assert found["ansible_default_ipv4"].items() <= expected["ansible_default_ipv4"].items()
    assert expected["ansible_python_version"].startswith(found["ansible_python_version"])
