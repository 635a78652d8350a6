"""Action plugins with a spec of their own: what ansible-doc shows of them is that spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from ansible_collections.vmfleet.ops.plugins.action import fleet_verdict as fleet_verdict_action
from ansible_collections.vmfleet.ops.plugins.action import load_test as load_test_action
from ansible_collections.vmfleet.ops.plugins.action import preflight as preflight_action
from ansible_collections.vmfleet.ops.plugins.module_utils import _desired
from ansible_collections.vmfleet.ops.plugins.modules import converge, fleet_verdict, load_test, preflight


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
        (fleet_verdict, fleet_verdict_action.ARGUMENT_SPEC),
        (load_test, load_test_action.ARGUMENT_SPEC),
        (preflight, preflight_action.ARGUMENT_SPEC),
    ],
    ids=["converge", "fleet_verdict", "load_test", "preflight"],
)
def test_the_documentation_is_the_spec(module: Any, spec: Mapping[str, Any]) -> None:
    documented = yaml.safe_load(module.DOCUMENTATION)["options"]
    assert told(documented, "suboptions") == told(spec, "options")
