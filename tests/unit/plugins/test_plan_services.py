"""What a change asks of services, and what becomes of them when their role is taken off."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.vmfleet.ops.plugins.module_utils._desired import ARGUMENT_SPEC, normalise
from ansible_collections.vmfleet.ops.plugins.module_utils._plan import Plan, make_plan

RUNNING = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled"}
FILE = {"dest": "/etc/thing.conf", "content": "new\n"}


def plan(arguments: dict[str, Any], manifest: dict[str, Any] | None = None, **state: str) -> Plan:
    validated = ArgumentSpecValidator(ARGUMENT_SPEC).validate({"name": "thing", **arguments})
    assert not validated.error_messages
    desired = normalise(validated.validated_parameters, lambda entry: str(entry["content"]).encode(), lambda group: [])
    observed: dict[str, Any] = {
        "root": True,
        "python": True,
        "generation": "0",
        "pending": [],
        "manifest": manifest,
        "paths": {},
        "packages": {},
        "users": {},
        "groups": {},
        "sysctl": {},
        "services": {service["name"]: {**RUNNING, **state} for service in desired["services"]},
        "ufw": {"installed": False, "rules": [], "options": {}, "live": False},
        "commands": {},
        "preinstalled": [],
    }
    return make_plan(desired, observed)


def record_of(made: Plan) -> dict[str, Any]:
    (record,) = (entry for entry in made.payload["files"] if entry["dest"].endswith("/roles/thing.json"))
    return dict(json.loads(record["content"]))


@pytest.mark.parametrize(
    ("service", "owned"),
    [
        ({"name": "thing", "state": "started"}, True),
        ({"name": "thing", "enabled": False}, True),
        ({"name": "thing", "reload_on": ["/etc/*"]}, False),
    ],
)
def test_only_a_service_that_the_role_runs_is_on_its_record(service: dict[str, Any], owned: bool) -> None:
    made = plan({"files": [FILE], "services": [service]})
    assert record_of(made)["services"] == (["thing.service"] if owned else [])


def test_a_service_of_the_host_hears_of_what_was_given_back_and_goes_on() -> None:
    service = {"name": "ssh", "on_change": "none", "reload_on": ["/etc/thing.conf"]}
    manifest = {"format": 1, "name": "thing", "files": ["/etc/thing.conf"], "packages": [], "services": []}
    made = plan({"state": "absent", "files": [FILE], "services": [service]}, manifest)
    assert made.payload["services"] == [
        {"name": "ssh.service", "enabled": None, "state": None, "masked": False, "trigger": "reload"}
    ]


def test_a_service_of_the_role_ends_with_it() -> None:
    manifest = {"format": 1, "name": "thing", "files": [], "packages": [], "services": ["thing.service"]}
    made = plan({"state": "absent", "services": [{"name": "thing", "state": "started"}]}, manifest)
    assert [(item["name"], item["state"], item["enabled"]) for item in made.payload["services"]] == [
        ("thing.service", "stopped", False)
    ]
