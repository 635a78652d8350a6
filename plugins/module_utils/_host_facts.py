# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Facts of a host from one shell script: the names and types of Ansible's own setup, without Python on the host.

Only what the roles use is asked for. A fact that the host does not tell is left out, as setup does.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._desired import STATE_DIR
from ansible_collections.vmfleet.ops.plugins.module_utils._probe import SHOW

MARKER = "@@vmfleet-preflight"
FAMILY = {"debian": "Debian", "ubuntu": "Debian"}
DISTRIBUTION = {"debian": "Debian", "ubuntu": "Ubuntu"}

_SECTIONS = (
    ("id", "id -u; id -un"),
    ("os", "c /etc/os-release || c /usr/lib/os-release"),
    ("debian", "c /etc/debian_version"),
    ("uname", "uname -r; uname -m"),
    ("nodename", "uname -n"),
    ("fqdn", "timeout 5 hostname -f"),
    ("memory", "grep -E '^(MemTotal|MemFree|MemAvailable|SwapTotal|SwapFree):' /proc/meminfo"),
    ("cpu", "grep -E '^(processor|physical id|siblings|cpu cores)[[:space:]]*:' /proc/cpuinfo"),
    ("nproc", "nproc"),
    ("init", "c /proc/1/comm"),
    ("systemd", "test -d /run/systemd/system && command -v systemctl"),
    ("apt", "command -v apt-get && command -v dpkg-query"),
    ("route4", "ip -4 route get 8.8.8.8"),
    ("route6", "ip -6 route get 2404:6800:400a:800::1012"),
    ("addresses", "ip -o addr show"),
    ("disk", "df -P -T -B1 /"),
    ("roles", f"for i in {STATE_DIR}/roles/*.json; do echo \"$i\"; done"),
)


class FactsError(RuntimeError):
    """The host did not answer as a host does; the message is what it said instead."""


def build_script(python: str = "python3", more: str = ":") -> str:
    """The script for ``sh -s``.

    :arg python: the interpreter that modules will use.
    :arg more: a command whose output comes along as the section ``more``.
    """
    lines = [
        "LC_ALL=C PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
        "export LC_ALL PATH",
        SHOW,
        f"m() {{ printf '\\n{MARKER} %s\\n' \"$1\"; }}",
        "probe() {",
    ]
    for title, body in (
        *_SECTIONS,
        ("python", f'p=$(command -v {shlex.quote(python)}) && echo "$p" && readlink -f "$p"'),
        ("more", more),
    ):
        lines += [f"m {title}", body]
    return "\n".join([*lines, "m end", "}", "probe </dev/null 2>/dev/null", ""])


def parse_answer(answer: str) -> dict[str, list[str]]:
    """The answer's lines by section.

    :raises FactsError: when the answer is cut short or is something else altogether.
    """
    sections: dict[str, list[str]] = {}
    for part in ("\n" + answer.replace("\r\n", "\n")).split(f"\n{MARKER} ")[1:]:
        title, _newline, body = part.partition("\n")
        sections[title] = [line for line in body.split("\n") if line.strip()]
    if "end" not in sections:
        raise FactsError(answer.strip()[-500:] or "nothing at all")
    return sections


def facts_of(sections: dict[str, list[str]]) -> dict[str, Any]:
    """Facts with setup's ``ansible_`` names, and ``vmfleet_roles``: the roles that the host has on record."""

    def first(title: str) -> str:
        return (sections.get(title) or [""])[0].strip()

    nodename = first("nodename")
    fqdn = first("fqdn") or nodename
    facts: dict[str, Any] = {
        "nodename": nodename,
        "hostname": nodename.split(".")[0],
        "fqdn": fqdn,
        "domain": fqdn.partition(".")[2],
        "system": "Linux",
        "user_id": (sections.get("id") or ["", ""])[-1].strip(),
        "service_mgr": "systemd" if first("systemd") else first("init"),
        "pkg_mgr": "apt" if len(sections.get("apt") or []) == 2 else "unknown",
        **_release(sections),
        **_memory(sections.get("memory") or []),
        **_processors(sections.get("cpu") or []),
        **_network(sections),
        **_disk(sections.get("disk") or []),
    }
    uname = sections.get("uname") or []
    if len(uname) == 2:
        facts.update(kernel=uname[0].strip(), machine=uname[1].strip(), architecture=uname[1].strip())
    if first("nproc").isdigit():
        facts["processor_nproc"] = int(first("nproc"))
    # The link's name says the version; asking the interpreter would start it.
    found = re.search(r"python(\d+)\.(\d+)$", (sections.get("python") or [""])[-1].strip())
    if found:
        facts["python_version"] = f"{found[1]}.{found[2]}"
        facts["python"] = {"executable": first("python"), "version": {"major": int(found[1]), "minor": int(found[2])}}
    # A folder without any answers with the pattern itself.
    roles = [line.rpartition("/")[2].removesuffix(".json") for line in sections.get("roles") or []]
    return {
        **{f"ansible_{name}": value for name, value in facts.items()},
        "vmfleet_roles": [name for name in roles if name != "*"],
    }


def _release(sections: dict[str, list[str]]) -> dict[str, Any]:
    release = {}
    for line in sections.get("os") or []:
        name, _equals, value = line.partition("=")
        release[name] = " ".join(shlex.split(value)) if value else ""
    identity = release.get("ID", "")
    version = release.get("VERSION_ID", "")
    point = (sections.get("debian") or [""])[0].strip()
    # Debian's os-release knows no point release.
    if identity == "debian" and re.match(r"\d+(\.\d+)*$", point):
        version = point
    return {
        "distribution": DISTRIBUTION.get(identity, release.get("NAME", identity)),
        "distribution_release": release.get("VERSION_CODENAME", ""),
        "distribution_version": version,
        "distribution_major_version": version.partition(".")[0],
        "os_family": FAMILY.get(identity, release.get("ID_LIKE", identity).partition(" ")[0].capitalize()),
    }


def _memory(lines: list[str]) -> dict[str, Any]:
    result = {}
    for line in lines:
        name, value = line.split(":")
        result[f"{name.lower()}_mb"] = int(value.split()[0]) // 1024
    return result


def _processors(lines: list[str]) -> dict[str, Any]:
    processors = 0
    packages: set[str] = set()
    siblings = cores = 0
    for line in lines:
        name, _colon, value = (part.strip() for part in line.partition(":"))
        if name == "processor":
            processors += 1
        elif name == "physical id":
            packages.add(value)
        elif name == "siblings":
            siblings = int(value)
        elif name == "cpu cores":
            cores = int(value)
    if not processors:
        return {}
    # Processors without a topology (most of ARM) count as packages of one core, as setup counts them.
    count = len(packages) or processors
    threads = max(1, siblings // cores) if cores else 1
    return {
        "processor_count": count,
        "processor_cores": cores or 1,
        "processor_threads_per_core": threads,
        "processor_vcpus": threads * count * (cores or 1),
    }


def _network(sections: dict[str, list[str]]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "default_ipv4": {},
        "default_ipv6": {},
        "all_ipv4_addresses": [],
        "all_ipv6_addresses": [],
    }
    interfaces: list[str] = []
    for line in sections.get("addresses") or []:
        words = line.split()
        if len(words) < 4 or words[2] not in ("inet", "inet6"):
            continue
        if words[1] not in interfaces:
            interfaces.append(words[1])
        address = words[3].partition("/")[0]
        if words[2] == "inet" and not address.startswith("127."):
            result["all_ipv4_addresses"].append(address)
        elif words[2] == "inet6" and address != "::1":
            result["all_ipv6_addresses"].append(address)
    result["interfaces"] = interfaces
    for family in ("4", "6"):
        words = " ".join(sections.get(f"route{family}") or []).split()
        route = {
            fact: words[words.index(word) + 1]
            for word, fact in (("dev", "interface"), ("src", "address"), ("via", "gateway"))
            if word in words[:-1]
        }
        if "address" in route and route.get("interface") != "lo":
            result[f"default_ipv{family}"] = route
    return result


def _disk(lines: list[str]) -> dict[str, Any]:
    words = lines[-1].split() if len(lines) > 1 else []
    if len(words) < 7 or not words[2].isdigit():
        return {}
    mount = {"device": words[0], "fstype": words[1], "mount": words[6]}
    return {"mounts": [{**mount, "size_total": int(words[2]), "size_available": int(words[4])}]}


def assumed_facts(name: str, address: str | None) -> dict[str, Any]:
    """What is taken for granted of a host that is not asked: a Debian 13 machine of middling size."""
    facts: dict[str, Any] = {
        "nodename": name,
        "hostname": name.split(".")[0],
        "fqdn": name,
        "domain": name.partition(".")[2],
        "system": "Linux",
        "distribution": "Debian",
        "distribution_release": "trixie",
        "distribution_version": "13.1",
        "distribution_major_version": "13",
        "os_family": "Debian",
        "kernel": "6.12.0-amd64",
        "machine": "x86_64",
        "architecture": "x86_64",
        "memtotal_mb": 32768,
        "memfree_mb": 16384,
        "memavailable_mb": 24576,
        "swaptotal_mb": 0,
        "swapfree_mb": 0,
        "processor_count": 1,
        "processor_cores": 8,
        "processor_threads_per_core": 1,
        "processor_vcpus": 8,
        "processor_nproc": 8,
        "service_mgr": "systemd",
        "pkg_mgr": "apt",
        "python_version": "3.13",
        "python": {"executable": "/usr/bin/python3", "version": {"major": 3, "minor": 13}},
        "interfaces": ["lo", "eth0"],
        "default_ipv4": {"address": address, "interface": "eth0"} if address else {},
        "default_ipv6": {},
        "all_ipv4_addresses": [address] if address else [],
        "all_ipv6_addresses": [],
        "mounts": [],
        "user_id": "root",
    }
    return {**{f"ansible_{key}": value for key, value in facts.items()}, "vmfleet_roles": []}
