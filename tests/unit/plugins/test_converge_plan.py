"""What differs, in words and as work: pure functions over a real host's answer."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils import _ufw
from ansible_collections.vmfleet.ops.plugins.module_utils._desired import manifest_path
from ansible_collections.vmfleet.ops.plugins.module_utils._plan import Plan
from ansible_collections.vmfleet.ops.plugins.module_utils._probe import parse_tuple
from converge_case import ROLE, observed, plan

IN_ORDER: dict[str, Any] = {
    "packages": ["openssh-server", {"name": "hello-web", "version": "1.*"}],
    "groups": [{"name": "hello"}],
    "users": [{"name": "hello", "group": "hello", "groups": ["adm"]}],
    "files": [entry for entry in ROLE["files"] if entry["dest"] not in ("/etc/it's here",)],
    "firewall": [],
    "firewall_options": None,
    "commands": ROLE["commands"][:2] + ROLE["commands"][3:],
    "services": [{"name": "hello-web", "enabled": True, "state": "started"}],
}


def record(**overrides: Any) -> dict[str, Any]:
    """The record that a host in order would have."""
    first = plan(**{**IN_ORDER, **overrides})
    files = [entry for entry in first.payload["files"] if entry["dest"] == manifest_path("case")]
    return dict(json.loads(files[0]["content"]))


@pytest.fixture
def host() -> dict[str, Any]:
    """A host on which the role IN_ORDER stands."""
    found = observed()
    # The answer to a guard that IN_ORDER leaves out.
    del found["commands"][2]
    found["manifest"] = record()
    found["paths"]["/etc/sysctl.d/60-vmfleet-case.conf"] = {
        "kind": "file",
        "owner": "root",
        "group": "root",
        "mode": "0644",
        "sha256": next(e["sha256"] for e in plan(**IN_ORDER).desired["files"] if "sysctl.d" in e["dest"]),
    }
    return found


def in_order(host: dict[str, Any], **overrides: Any) -> Plan:
    return plan(host, **{**IN_ORDER, **overrides})


def actions(result: Plan) -> dict[str, str | None]:
    return {service["name"]: service["trigger"] for service in result.payload["services"]}


def test_a_host_in_order_has_no_plan(host: dict[str, Any]) -> None:
    result = in_order(host)
    assert result.changes == []
    assert result.payload["work"] is False
    assert result.payload["files"] == []


def test_the_recorded_hosts_agree_on_the_plan() -> None:
    assert plan(observed("bookworm")).changes == plan(observed("trixie")).changes


def test_differences_are_named() -> None:
    changes = plan().changes
    for words in (
        "package no-such-package: installed",
        "group nobody-has-this: present",
        "user hello: groups=+mail",
        "file /etc/it's here: root:root 0644",
        "command Due: done",
        "service no-such",
    ):
        if words != "service no-such":
            assert words in changes
    assert not any("no-such.service" in change for change in changes), "a unit that nobody wants running"


DRIFT: list[tuple[list[Any], Any, str]] = [
    (["paths", "/etc/hello-web.conf", "sha256"], "0", "file /etc/hello-web.conf: root:root 0644, new content"),
    (["paths", "/etc/hello-web.conf", "mode"], "0600", "file /etc/hello-web.conf: root:root 0644"),
    (["paths", "/etc/hello-web.conf", "owner"], "games", "file /etc/hello-web.conf: root:root 0644"),
    (["paths", "/etc/hello-web.conf", "kind"], "link", "file /etc/hello-web.conf: root:root 0644"),
    (["paths", "/etc/hello/link", "target"], "other", "file /etc/hello/link: -> target-of-hello"),
    (
        ["paths", "/etc/not-wanted"],
        {"kind": "file", "mode": "0644", "owner": "root", "group": "root"},
        "file /etc/not-wanted: absent",
    ),
    (["paths", "/srv/hello", "mode"], "0777", "directory /srv/hello: hello:hello 0750"),
    (["packages", "hello-web", "version"], "2.0", "package hello-web: 1.*"),
    (["packages", "hello-web", "status"], "config-files", "package hello-web: 1.*"),
    (["groups", "adm", "members"], [], "user hello: groups=+adm"),
    (["users", "hello", "gid"], "7", "user hello: group=hello"),
    (["sysctl", "net.ipv4.tcp_keepalive_time"], "1", "sysctl net.ipv4.tcp_keepalive_time: 7005"),
    (["services", "hello-web.service", "ActiveState"], "failed", "service hello-web.service: started"),
    (["services", "hello-web.service", "UnitFileState"], "disabled", "service hello-web.service: enabled"),
    (["services", "hello-web.service", "LoadState"], "masked", "service hello-web.service: unmasked"),
    (["services", "hello-web.service", "NeedDaemonReload"], "yes", "service hello-web.service: unit file loaded"),
    (["commands", 0, "rc"], 1, "command Guarded: done"),
    (["commands", 0, "stdout"], "else", "command Guarded: done"),
    (["commands", 1, "rc"], 1, "command Created: done"),
    (["manifest"], None, "record of role case: current"),
]


@pytest.mark.parametrize(
    ("where", "value", "words"), DRIFT, ids=[".".join(map(str, row[0])) + f"={row[1]}" for row in DRIFT]
)
def test_each_drift_is_the_whole_plan(host: dict[str, Any], where: list[Any], value: Any, words: str) -> None:
    place = host
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    result = in_order(host)
    assert words in result.changes
    others = [change for change in result.changes if change != words and not change.startswith("command Upon change")]
    assert others == []
    assert result.payload["work"] is True


def changed_file(host: dict[str, Any], path: str) -> dict[str, Any]:
    found = copy.deepcopy(host)
    found["paths"][path]["sha256"] = "0"
    return found


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ({"on_change": "reload"}, "reload"),
        ({"on_change": "restart"}, "restart"),
        ({"on_change": "none"}, None),
        ({"on_change": "none", "reload_on": ["/etc/hello-*"]}, "reload"),
        ({"on_change": "reload", "restart_on": ["/etc/hello-web.conf"]}, "restart"),
        ({"on_change": "restart", "reload_on": ["/etc/hello-web.conf", "command *"]}, "reload"),
        ({"on_change": "restart", "state": "stopped"}, None),
    ],
)
def test_what_a_changed_file_asks_of_a_service(
    host: dict[str, Any], service: dict[str, Any], expected: str | None
) -> None:
    role = {"services": [{"name": "hello-web", "state": "started", **service}], "commands": []}
    assert actions(in_order(changed_file(host, "/etc/hello-web.conf"), **role)) == {"hello-web.service": expected}


def test_a_service_that_cannot_reload_is_restarted(host: dict[str, Any]) -> None:
    changed = changed_file(host, "/etc/hello-web.conf")
    changed["services"]["hello-web.service"]["CanReload"] = "no"
    assert actions(in_order(changed)) == {"hello-web.service": "restart"}


def test_a_file_that_concerns_no_service_touches_none(host: dict[str, Any]) -> None:
    files = [
        {**entry, "on_change": "none"} if entry["dest"] == "/etc/hello-web.conf" else entry
        for entry in IN_ORDER["files"]
    ]
    role = {"files": files, "commands": []}
    assert actions(in_order(changed_file(host, "/etc/hello-web.conf"), **role)) == {"hello-web.service": None}


def test_packages_and_units_ask_for_a_restart_of_their_own_service(host: dict[str, Any]) -> None:
    services = [{"name": name, "on_change": "reload"} for name in ("hello-web", "ssh")]
    host["packages"]["hello-web"]["version"] = "2"
    assert actions(in_order(host, services=services)) == {"hello-web.service": "restart", "ssh.service": "restart"}
    host["packages"]["hello-web"]["version"] = "1.0"
    drop_in = changed_file(host, "/etc/systemd/system/hello-web.service.d/vmfleet.conf")
    assert actions(in_order(drop_in, services=services, commands=[])) == {
        "hello-web.service": "restart",
        "ssh.service": None,
    }


def test_stale_files_dropped_services_and_settings(host: dict[str, Any]) -> None:
    host["manifest"] = record()
    host["manifest"]["files"].append("/etc/older.conf")
    host["manifest"]["services"].append("older.service")
    host["manifest"]["sysctl"]["vm.swappiness"] = "60"
    result = in_order(host, commands=[])
    assert set(result.changes) == {
        "file /etc/older.conf: as it was before the role",
        "service older.service: stopped, disabled",
        "sysctl vm.swappiness: 60",
    }
    gone = [entry for entry in result.payload["files"] if entry["dest"] == "/etc/older.conf"]
    assert gone[0]["give_back"] is True
    assert result.payload["sysctl"] == {"vm.swappiness": "60"}


def test_settings_keep_what_was_before_the_role() -> None:
    fresh = observed()
    fresh["sysctl"]["net.ipv4.tcp_keepalive_time"] = "7200"
    first = plan(fresh, **IN_ORDER)
    kept = json.loads(next(e["content"] for e in first.payload["files"] if e["dest"] == manifest_path("case")))
    assert kept["sysctl"] == {"net.ipv4.tcp_keepalive_time": "7200"}
    later = observed()
    later["manifest"] = {**kept, "files": []}
    second = plan(later, **{**IN_ORDER, "sysctl": {"net.ipv4.tcp_keepalive_time": 9}})
    again = json.loads(next(e["content"] for e in second.payload["files"] if e["dest"] == manifest_path("case")))
    assert again["sysctl"] == {"net.ipv4.tcp_keepalive_time": "7200"}


def test_absent_undoes_what_the_record_says_and_nothing_else(host: dict[str, Any]) -> None:
    host["manifest"]["packages"] = ["hello-web"]
    result = in_order(host, state="absent")
    assert "package hello-web: absent" in result.changes
    assert "package openssh-server: absent" not in result.changes
    assert "service hello-web.service: stopped, disabled" in result.changes
    assert "file /etc/hello-web.conf: as it was before the role" in result.changes
    assert [entry["dest"] for entry in result.payload["files"]][-1] == manifest_path("case")
    assert result.payload["users"] == result.payload["directories"] == result.payload["commands"] == []
    assert result.payload["verify"] == []
    host["manifest"] = None
    assert in_order(host, state="absent").changes == []


def test_sensitive_content_is_in_the_payload_and_in_no_words(host: dict[str, Any]) -> None:
    host["paths"]["/etc/hello/secret.conf"]["sha256"] = "0"
    result = in_order(host)
    assert "s3cr3t" in str(result.payload["files"])
    assert "s3cr3t" not in str([result.changes, result.before, result.after])
    assert [entry["sensitive"] for entry in result.texts] == [True]


def test_an_installation_has_every_file_looked_at_again(host: dict[str, Any]) -> None:
    del host["packages"]["hello-web"]
    result = in_order(host)
    assert {entry["dest"] for entry in result.payload["files"]} >= {entry["dest"] for entry in IN_ORDER["files"]}
    assert [change for change in result.changes if change.startswith("file ")] == []


# -- firewall -------------------------------------------------------------------------------------------------------


def stored(*lines: str) -> list[dict[str, str]]:
    return [parse_tuple(f"### tuple ### {line}") for line in lines]


def comment(text: str) -> str:
    return f"comment={text.encode().hex()}"


MINE, OTHERS = comment("vmfleet:case x"), comment("vmfleet:other x")
RULE = [{"port": 80, "from": ["10.0.0.0/8"], "comment": "x"}]


def firewall(host: dict[str, Any], rules: list[dict[str, str]], **overrides: Any) -> dict[str, Any] | None:
    host["ufw"]["rules"] = rules
    return in_order(host, **{"firewall": RULE, **overrides}).payload["firewall"]  # type: ignore[no-any-return]


def test_rules_are_a_set(host: dict[str, Any]) -> None:
    one, two = f"allow tcp 80 0.0.0.0/0 any 10.0.0.0/8 in {MINE}", f"allow tcp 81 0.0.0.0/0 any 10.0.0.0/8 in {MINE}"
    both = [*RULE, {"port": 81, "from": ["10.0.0.0/8"], "comment": "x"}]
    assert firewall(host, stored(two, one), firewall=both) is None
    change = firewall(host, stored(one, two))
    assert change is not None
    assert [rule["port"] for rule in change["remove"]] == ["81"]
    assert change["add"] == []
    assert change["risky"]


def test_rules_of_others_stay_unless_the_role_owns_the_firewall(host: dict[str, Any]) -> None:
    rules = stored(
        f"allow tcp 80 0.0.0.0/0 any 10.0.0.0/8 in {MINE}",
        "allow any 5 0.0.0.0/0 any 0.0.0.0/0 in",
        f"allow any 6 0.0.0.0/0 any 0.0.0.0/0 in {OTHERS}",
    )
    assert firewall(host, rules) is None
    change = firewall(host, rules, firewall_options={"enabled": True})
    assert change is not None
    assert [rule["port"] for rule in change["remove"]] == ["5"]
    assert firewall(host, rules, firewall_options={"enabled": True, "exclusive": False}) is None


def test_the_same_rule_with_another_comment_or_action(host: dict[str, Any]) -> None:
    renamed = firewall(host, stored(f"allow tcp 80 0.0.0.0/0 any 10.0.0.0/8 in {comment('vmfleet:case y')}"))
    assert renamed is not None
    assert (len(renamed["add"]), renamed["remove"]) == (1, [])
    denied = firewall(host, stored(f"deny tcp 80 0.0.0.0/0 any 10.0.0.0/8 in {MINE}"))
    assert denied is not None
    assert (len(denied["add"]), denied["remove"]) == (1, [])


def test_two_roles_share_a_rule_until_the_last_of_them_leaves(host: dict[str, Any]) -> None:
    place = "allow tcp 80 0.0.0.0/0 any 10.0.0.0/8 in"
    joined = firewall(host, stored(f"{place} {OTHERS}"))
    assert joined is not None
    assert [(rule["comment"], rule["new"]) for rule in joined["add"]] == [("vmfleet:case,other x", False)]
    assert joined["remove"] == []
    assert not joined["risky"]
    both = comment("vmfleet:case,other x")
    assert firewall(host, stored(f"{place} {both}")) is None
    left = firewall(host, stored(f"{place} {both}"), firewall=[])
    assert left is not None
    assert [(rule["comment"], rule["new"]) for rule in left["add"]] == [("vmfleet:other x", False)]
    assert left["remove"] == []


def test_any_is_a_rule_for_each_family(host: dict[str, Any]) -> None:
    any_rule = [{"port": 80, "from": ["any"], "comment": "x"}]
    four, six = f"allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 in {MINE}", f"allow tcp 80 ::/0 any ::/0 in {MINE}"
    assert firewall(host, stored(four, six), firewall=any_rule) is None
    assert firewall(host, stored(four), firewall=any_rule) is not None
    host["ufw"]["options"]["IPV6"] = "no"
    assert firewall(host, stored(four), firewall=any_rule) is None


def test_no_firewall_on_the_host_is_nothing_to_open(host: dict[str, Any]) -> None:
    host["ufw"]["installed"] = False
    assert firewall(host, []) is None


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("allow tcp 80 0.0.0.0/0 any 10.0.0.0/8 in", "delete allow in proto tcp from 10.0.0.0/8 to 0.0.0.0/0 port 80"),
        ("deny tcp 25 ::/0 any ::/0 out", "delete deny out proto tcp from ::/0 to ::/0 port 25"),
        (
            "allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 in_eth0",
            "delete allow in on eth0 proto tcp from 0.0.0.0/0 to 0.0.0.0/0 port 80",
        ),
        (
            "route:allow tcp 443 10.0.0.0/8 any 0.0.0.0/0 in_eth0!out_eth1",
            "route delete allow in on eth0 out on eth1 proto tcp from 0.0.0.0/0 to 10.0.0.0/8 port 443",
        ),
        (
            "limit_log tcp 22 0.0.0.0/0 any 0.0.0.0/0 in",
            "delete limit in log proto tcp from 0.0.0.0/0 to 0.0.0.0/0 port 22",
        ),
        (
            "allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 OpenSSH - in",
            "delete allow in from 0.0.0.0/0 to 0.0.0.0/0 app OpenSSH",
        ),
        (
            "allow udp 1024:65535 10.1.0.0/16 53 10.0.0.0/8 in",
            "delete allow in proto udp from 10.0.0.0/8 port 53 to 10.1.0.0/16 port 1024:65535",
        ),
    ],
)
def test_how_a_stored_rule_is_deleted(line: str, argv: str) -> None:
    assert _ufw._remove(stored(line)[0]) == ["ufw", "--force", *argv.split()]


def test_how_a_rule_is_added() -> None:
    rule = {"action": "allow", "proto": "vrrp", "port": "any", "source": "10.0.0.1", "comment": "x", "new": True}
    assert " ".join(_ufw._add(rule, first=False)) == "ufw allow in proto vrrp from 10.0.0.1 to any comment x"
    assert " ".join(_ufw._add({**rule, "proto": "tcp", "port": "80"}, first=True)) == (
        "ufw prepend allow in proto tcp from 10.0.0.1 to any port 80 comment x"
    )


SETTING = "/var/lib/hello-more.conf"
HELLO_MORE = {"name": "hello-more", "first": {SETTING: "make_default = false\n"}}


def ahead(host: dict[str, Any]) -> Plan:
    return in_order(host, preinstall=[HELLO_MORE])


def test_what_a_package_of_another_role_must_find_comes_before_it_and_is_not_this_roles(host: dict[str, Any]) -> None:
    result = ahead(host)
    assert result.changes == ["file /var/lib/hello-more.conf: root:root 0644", "package hello-more: installed"]
    assert result.payload["packages"]["preinstalled"] == ["hello-more"]
    laid = next(entry for entry in result.payload["files"] if entry["dest"] == SETTING)
    assert (laid["content"], laid["before_packages"], laid["take_over"]) == (b"make_default = false\n", True, False)
    # The record is in order: it does not name the file.
    assert manifest_path("case") not in [entry["dest"] for entry in result.payload["files"] if entry is not laid]


def test_a_setting_that_is_there_is_left_and_another_one_is_its_roles_to_settle(host: dict[str, Any]) -> None:
    laid = next(entry for entry in ahead(host).payload["files"] if entry["dest"] == SETTING)
    there = {"kind": "file", "owner": "root", "group": "root", "mode": "0644", "sha256": laid["sha256"]}
    host["paths"][SETTING] = there
    assert ahead(host).changes == ["package hello-more: installed"]
    host["paths"][SETTING] = {**there, "sha256": "other"}
    assert not ahead(host).changed


def test_the_role_of_the_package_has_the_setting_as_a_file_of_its_own(host: dict[str, Any]) -> None:
    result = in_order(host, packages=[*IN_ORDER["packages"], HELLO_MORE])
    assert f"file {SETTING}: root:root 0644" in result.changes
    assert SETTING in record(packages=[*IN_ORDER["packages"], HELLO_MORE])["files"]
