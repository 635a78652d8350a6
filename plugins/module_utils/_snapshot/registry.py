# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""All types of sources by the name that roles announce them with."""

from __future__ import annotations

from .files import Files
from .postgresql import Physical
from .postgresql_logical import Logical
from .redis import Redis
from .sources import Source

SOURCES: tuple[type[Source], ...] = (Physical, Logical, Files, Redis)
TYPES: dict[str, type[Source]] = {source.kind: source for source in SOURCES}
