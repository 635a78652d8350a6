"""The normal form of a declaration, and what is refused before a host is contacted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils import _desired
from ansible_collections.vmfleet.ops.plugins.module_utils._desired import DesiredError
from converge_case import desired


def dests(normal: dict[str, Any]) -> list[str]:
    return [entry["dest"] for entry in normal["files"]]


def test_names_modes_units_and_settings_get_one_form() -> None:
    normal = desired(sysctl={"net/ipv4/ip_local_port_range": "1024  65535"})
    assert normal["packages"][0] == {"name": "openssh-server", "version": None, "state": "present", "first": []}
    assert normal["files"][1]["mode"] == "0600"
    assert [service["name"] for service in normal["services"]] == [
        "hello-web.service",
        "ssh.service",
        "no-such.service",
    ]
    assert normal["sysctl"] == {"net.ipv4.ip_local_port_range": "1024 65535"}
    assert "/etc/systemd/system/hello-web.service.d/vmfleet.conf" in dests(normal)
    assert "/etc/sysctl.d/60-vmfleet-case.conf" in dests(normal)


def test_what_is_announced_becomes_drop_ins_with_their_folders() -> None:
    checks = [{"type": "tcp", "port": 1}]
    normal = desired(name="a-b", announce={"checks": checks, "facts": {"ports": {"x": 1}}})
    by_dest = {entry["dest"]: entry for entry in normal["files"]}
    secret = {"path": "/etc/hello/secret.conf", "owner": "hello", "group": "root", "mode": "0600"}
    secret |= {"name": "/etc/hello/secret.conf is kept secret", "type": "file"}
    assert json.loads(by_dest["/etc/vmfleet/checks.d/a-b.json"]["content"]) == [*checks, secret]
    assert json.loads(by_dest["/etc/ansible/facts.d/vmfleet_a_b.fact"]["content"]) == {"ports": {"x": 1}}
    assert "/etc/vmfleet/backup.d/a-b.json" not in by_dest
    assert by_dest["/etc/vmfleet/checks.d/a-b.json"]["notify"] is False
    assert {"/etc/vmfleet/checks.d", "/etc/ansible/facts.d"} <= {entry["path"] for entry in normal["directories"]}
    assert normal["verify"] == checks
    assert desired(verify=[], announce={"checks": checks})["verify"] == []


def test_vrrp_is_without_a_port_and_the_others_are_not() -> None:
    (rule,) = desired(firewall=[{"proto": "vrrp", "from": ["10.0.0.1"]}])["rules"]
    assert (rule["proto"], rule["port"], rule["source"]) == ("vrrp", "any", "10.0.0.1")
    for mistake in ({"from": ["any"]}, {"proto": "vrrp", "port": 112, "from": ["any"]}):
        with pytest.raises(DesiredError, match="only vrrp is without a port"):
            desired(firewall=[mistake])


def test_rules_are_expanded_resolved_and_deduplicated() -> None:
    normal = desired(
        firewall=[
            {"port": [80, "8000:8010"], "from": ["app", "10.1.0.1/32", "10.2.3.4/8"], "comment": "web"},
            {"port": 53, "proto": "udp", "from": ["db", "any"], "action": "limit"},
        ]
    )
    rules = [(r["action"], r["proto"], r["port"], r["source"], r["comment"]) for r in normal["rules"]]
    assert rules == [
        *(
            ("allow", "tcp", port, source, "vmfleet:case web")
            for port in ("80", "8000:8010")
            for source in ("10.1.0.1", "10.1.0.2", "10.0.0.0/8")
        ),
        ("limit", "udp", "53", "fd00::5", "vmfleet:case"),
        ("limit", "udp", "53", "any", "vmfleet:case"),
    ]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "No"}, "name: 'No' must be lower-case"),
    ({"packages": ["Bad Name"]}, "packages: 'Bad Name' is not the name of a Debian package"),
    ({"packages": [{"name": "x1", "versoin": "1"}]}, "unknown keys ['versoin']; use name, version, state"),
    ({"packages": [{"name": "x1", "state": "latest"}]}, "packages: x1: state: 'latest' is neither present nor absent"),
    ({"files": [{"dest": "etc/x", "content": ""}]}, "files: dest: 'etc/x' is not a plain absolute path"),
    ({"files": [{"dest": "/etc/../x", "content": ""}]}, "files: dest: '/etc/../x' is not a plain absolute path"),
    ({"files": [{"dest": "/a\nb", "content": ""}]}, "is not a plain absolute path"),
    ({"files": [{"dest": "/a\\b", "content": ""}]}, "is not a plain absolute path"),
    (
        {"files": [{"dest": "/a", "content": "", "mode": "644x"}]},
        "files: /a: mode: '644x' is not an octal mode; quote it",
    ),
    ({"files": [{"dest": "/a", "content": "", "validate": "true"}]}, "files: validate: 'true' has no %s"),
    ({"files": [{"dest": "/a", "state": "link"}]}, "files: target: '/a' is a link without a target"),
    ({"files": [{"dest": "/a", "content": ""}, {"dest": "/a", "content": "b"}]}, "'/a' is declared twice in one role"),
    ({"units": [{"name": "x", "content": ""}]}, "units: name: 'x' has none of the suffixes"),
    ({"firewall": [{"port": 0, "from": ["any"]}]}, "firewall: port: '0' is not a port; use 1 to 65535"),
    ({"firewall": [{"port": "9:8", "from": ["any"]}]}, "firewall: port: '9:8' is not a port"),
    (
        {"firewall": [{"port": 1, "from": ["nowhere"]}]},
        "firewall: from: 'nowhere' is neither any, an address or network",
    ),
    ({"firewall": [{"port": 1, "from": ["nameless"]}]}, "set vmfleet_address"),
    ({"firewall": [{"port": 1, "from": ["any"], "comment": "it's"}]}, "contains a quote"),
    ({"commands": [{"name": "x", "argv": ["a"]}]}, "commands: 'x' has no guard; give unless, creates or on_change_of"),
    ({"commands": [{"name": "x", "creates": "/x"}]}, "commands: x: 'x' needs exactly one of argv and shell"),
    ({"commands": [{"name": "x", "argv": [], "creates": "/x"}]}, "has an empty argv"),
    ({"commands": [{"name": "x", "argv": ["a"], "creates": "/x", "user": "a b"}]}, "'a b' is not an account name"),
    (
        {"commands": [{"name": "x", "argv": ["a"], "creates": "/x", "environment": {"A-B": "1"}}]},
        "'A-B' is not the name of",
    ),
    ({"users": [{"name": "a b"}]}, "'a b' is not an account name"),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=[words for _overrides, words in REFUSED])
def test_errors_name_argument_value_and_remedy(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(DesiredError) as error:
        desired(**overrides)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("installed", "wanted", "expected"),
    [("1.0", None, True), ("1.0", "1.0", True), ("1.0-1", "1.0", False), ("7:7.0.15-1", "7:7.0.*", True)],
)
def test_pins(installed: str, wanted: str | None, expected: bool) -> None:
    assert _desired.version_matches(installed, wanted) is expected
