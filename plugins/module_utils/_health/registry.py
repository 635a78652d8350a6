# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""All types of checks by name."""

from __future__ import annotations

from . import types_net, types_service, types_system
from .model import CheckType

TYPES: dict[str, CheckType] = {
    entry.name: entry for module in (types_system, types_net, types_service) for entry in module.TYPES
}
