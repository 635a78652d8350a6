# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""That a host is held for a set which it makes together with others, between the runs that are the steps of it.

The note ends by itself: in ``until``, on the clock that goes on from boot, and with the boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any

from .._durable import read_json, write_durably

PATH = "/run/vmfleet-backup.held"


def read() -> dict[str, Any] | None:
    """What was noted last, also when it has ended, or None."""
    entry: dict[str, Any] | None = read_json(PATH)
    return entry


def write(entry: dict[str, Any]) -> None:
    """Holds the host for ``lease`` seconds of the entry from now on."""
    write_durably(PATH, json.dumps({**entry, "until": time.monotonic() + entry["lease"]}).encode())


def lasts(entry: dict[str, Any] | None, set_of: str = "") -> bool:
    """Whether an entry keeps the runs of all but its own set waiting."""
    return entry is not None and entry["fleet"] != set_of and entry["until"] > time.monotonic()


def remove() -> None:
    """Frees the host."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(PATH)
