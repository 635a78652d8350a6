"""Action plugins with a spec of their own: what ansible-doc shows of them is that spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from ansible_collections.vmfleet.ops.plugins.action import load_test as load_test_action
from ansible_collections.vmfleet.ops.plugins.action import preflight as preflight_action
from ansible_collections.vmfleet.ops.plugins.module_utils import _desired, _rollback
from ansible_collections.vmfleet.ops.plugins.module_utils._health import cli
from ansible_collections.vmfleet.ops.plugins.modules import (
    converge,
    fleet_verdict,
    health,
    load_test,
    preflight,
    rollback,
)
from ansible_collections.vmfleet.ops.plugins.plugin_utils import _verdict_play


def told(options: Mapping[str, Any], nested: str) -> dict[str, Any]:
    """What both a spec and its documentation say of options."""
    return {
        name: {
            "type": option.get("type", "str"),
            "elements": option.get("elements"),
            "required": bool(option.get("required")),
            "default": option.get("default"),
            "choices": option.get("choices"),
            "options": told(option.get(nested) or {}, nested),
        }
        for name, option in options.items()
    }


@pytest.mark.parametrize(
    ("module", "spec"),
    [
        (converge, _desired.ARGUMENT_SPEC),
        (fleet_verdict, _verdict_play.ARGUMENT_SPEC),
        (health, cli.ARGUMENT_SPEC),
        (load_test, load_test_action.ARGUMENT_SPEC),
        (preflight, preflight_action.ARGUMENT_SPEC),
        (rollback, _rollback.ARGUMENT_SPEC),
    ],
    ids=["converge", "fleet_verdict", "health", "load_test", "preflight", "rollback"],
)
def test_the_documentation_is_the_spec(module: Any, spec: Mapping[str, Any]) -> None:
    documented = yaml.safe_load(module.DOCUMENTATION)["options"]
    assert told(documented, "suboptions") == told(spec, "options")
