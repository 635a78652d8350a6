# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the modules around the snapshot engine have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.engine import Engine, read_settings
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import SnapshotError


def serve(module: AnsibleModule, act: Callable[[Engine, dict[str, Any], bool], dict[str, Any]]) -> None:
    """Ends a module with what ``act`` gives for engine, arguments and check mode, or with the engine's error."""
    try:
        engine = Engine(read_settings(), module.params["repository"])
        module.exit_json(**act(engine, module.params, module.check_mode))
    except SnapshotError as error:
        module.fail_json(msg=str(error), code=error.code)
