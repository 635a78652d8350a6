# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Arguments of actions that run on the controller, where no AnsibleModule validates them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator


def validated(action: str, spec: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by their spec; one that is None, as ``omit`` may leave it, was not given.

    :raises AnsibleActionFail: for what the spec does not allow, with the action's name.
    """
    result = ArgumentSpecValidator(dict(spec)).validate(
        {key: value for key, value in given.items() if value is not None}
    )
    if result.error_messages:
        raise AnsibleActionFail(f"{action}: {'; '.join(result.error_messages)}")
    options: dict[str, Any] = result.validated_parameters
    return options
