"""Every box of the lists leads to something that exists, or to a person for a reason; what breaks is named."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.vmfleet.ops.plugins.action import preflight
from ansible_collections.vmfleet.ops.plugins.module_utils import _fleet_rules, _preflight
from ansible_collections.vmfleet.ops.plugins.plugin_utils._checklists import load_checklist

ROOT = Path(__file__).resolve().parents[2]

DOCUMENT = yaml.safe_load((ROOT / "playbooks/vars/checklists.yml").read_text())
KINDS = {"rule", "preflight", "verify", "playbook", "manual"}
# The requirement sheets' own numbers of boxes.
NUMBERS = {
    "research_before": 10,
    "research_during": 9,
    "research_after": 7,
    "sei": 38,
    "flagwise_security": 16,
    "supernova_before": 10,
    "supernova_after": 10,
}
BOXES = [(name, box) for name, chosen in DOCUMENT["lists"].items() for box in chosen["boxes"]]


def test_the_lists_are_complete() -> None:
    assert {name: len(chosen["boxes"]) for name, chosen in DOCUMENT["lists"].items()} == NUMBERS
    for name, chosen in DOCUMENT["lists"].items():
        assert len({box["box"] for box in chosen["boxes"]}) == NUMBERS[name]


@pytest.mark.parametrize(("name", "box"), BOXES, ids=[f"{name}: {box['box']}" for name, box in BOXES])
def test_a_box_leads_somewhere(name: str, box: dict[str, Any]) -> None:
    (kind,) = set(box) - {"box"}
    assert kind in KINDS
    if kind == "rule":
        assert box["rule"] in DOCUMENT["rules"]
    elif kind == "preflight":
        places = (preflight, preflight._Host, _preflight, _fleet_rules)
        assert any(hasattr(place, box["preflight"]) for place in places)
    elif kind == "verify":
        for role in box["verify"]:
            said = [path.read_text() for path in (ROOT / "roles" / role).rglob("*") if path.suffix in (".yml", ".j2")]
            assert any("announce" in text and "checks" in text for text in said), role
    elif kind == "playbook":
        assert (ROOT / "playbooks" / box["playbook"]).is_file()
    else:
        assert len(box["manual"].split()) > 2, "a reason, please"


def test_every_rule_is_complete_and_used() -> None:
    used = {box["rule"] for _name, box in BOXES if "rule" in box}
    assert set(DOCUMENT["rules"]) == used
    groups = {"fleet", "all", "lb", "app", "redis", "db"}
    for name, rule in DOCUMENT["rules"].items():
        assert set(rule) == {"where", "variable", "holds", "problem", "remedy"}, name
        assert rule["where"] in groups, name


def test_the_page_is_made_from_the_lists() -> None:
    done = subprocess.run([str(ROOT / "scripts/checklists"), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_list_says_what_is_left() -> None:
    left = load_checklist("supernova_before").left()
    assert "[ ] benchmarks are met: run playbooks/loadtest.yml" in left
    assert any(line.startswith("[ ] tests pass: by hand; ") for line in left)
    assert not any("hardened" in line for line in left)
    with pytest.raises(LookupError, match="supernova_before"):
        load_checklist("supernova")


SOUND: dict[str, Any] = {
    "groups": {
        "app": ["a1", "a2", "a3"],
        **{name: ["h"] for name in ("lb", "db_replica", "pgbouncer", "redis", "backup", "monitoring")},
    },
    "vmfleet_services": {"api": {"port": 8081, "health": "/h", "ready": "/r", "metrics": "/m"}},
    "firewall_state": "present",
    "firewall_incoming": "deny",
    "vmfleet_flows": {"ssh": ["any"], "http": ["any"], "redis": ["app"]},
    "tls_state": "present",
    "redis_tls": True,
    "lb_sites": [
        {
            "cors": ["https://a.example"],
            "routes": [{"path": "/", "service": "api", "rate": "9/s"}, {"service": "ws", "websocket": True}],
        },
        {"routes": [{"path": "/s", "root": "/srv"}]},
    ],
    "lb_headers": {"X-A": "b"},
    "app_service_services": [{"name": "api", "memory_max": "1G"}],
    "base_unattended_upgrades": True,
    "base_sshd_hardening": True,
    "base_sshd_password_authentication": False,
}
BREAKS: dict[str, dict[str, Any]] = {
    "three_application_hosts": {"groups": {**SOUND["groups"], "app": ["a1", "a2"]}},
    "balancer": {"groups": {**SOUND["groups"], "lb": []}},
    "replica": {"groups": {**SOUND["groups"], "db_replica": []}},
    "pooling": {"groups": {**SOUND["groups"], "pgbouncer": []}},
    "cache": {"groups": {**SOUND["groups"], "redis": []}},
    "backup": {"groups": {**SOUND["groups"], "backup": []}},
    "monitoring": {"groups": {**SOUND["groups"], "monitoring": []}},
    "service_metrics": {"vmfleet_services": {"api": {"health": "/h", "ready": "/r"}}},
    "service_health": {"vmfleet_services": {"api": {"health": "/h", "metrics": "/m"}}},
    "firewall": {"firewall_incoming": "allow"},
    "flows": {"vmfleet_flows": {"redis": ["app", "any"]}},
    "data_in_transit": {"redis_tls": False},
    "rate_limits": {"lb_sites": [{"routes": [{"path": "/", "service": "api"}]}]},
    "security_headers": {"lb_headers": {"X-Frame-Options": ""}},
    "site_certificates": {"tls_state": "absent"},
    "cors": {"lb_sites": [{"cors": ["*"], "routes": []}]},
    "memory_limits": {"app_service_services": [{"name": "api"}]},
    "updates": {"base_unattended_upgrades": False},
    "hardened_ssh": {"base_sshd_password_authentication": True},
}


def test_each_rule_holds_for_a_sound_fleet_and_fails_by_itself() -> None:
    rules = load_checklist("sei").rules
    assert set(BREAKS) == set(rules)

    def broken(variables: dict[str, Any]) -> set[str]:
        templar = Templar(loader=DataLoader(), variables=variables)
        return {name for name, rule in rules.items() if str(templar.template(rule["holds"])) != "True"}

    assert broken(SOUND) == set()
    for name, change in BREAKS.items():
        assert broken({**SOUND, **change}) == {name}
