# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Live paths that are replaced by what was restored beside them, while the units that use them are stopped.

All is by rename on one file system. Each step can be killed: :meth:`Beside.undo` finds out how far it had come.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence

from .._durable import fsync_directory
from .._host import run_command
from .model import Refused
from .sources import Context
from .tree import mounted

STAGING, FORMER = ".restored", ".before-restore"
# Seconds until a unit has started or stopped.
STARTED = 600


def remove(path: str) -> None:
    """Removes a file or a folder with all that is in it, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _rename(old: str, new: str) -> None:
    os.rename(old, new)
    for folder in sorted({os.path.dirname(old), os.path.dirname(new)}):
        fsync_directory(folder)


def systemctl(context: Context, verb: str, units: Sequence[str], *options: str) -> None:
    """Starts or stops units. :raises EngineFailed: when one does not."""
    if units:
        # A service that has lost its data may have failed too often to be started again.
        run_command({"argv": ["systemctl", "reset-failed", *units], "timeout": STARTED})
        context.command(f"{verb} {', '.join(units)}", ["systemctl", verb, *options, *units], timeout=STARTED)


def mount_points(device: str) -> list[str]:
    """Where a device, or something on it, is mounted."""
    argv = ["lsblk", "--noheadings", "--raw", "--output=MOUNTPOINT", device]
    return run_command({"argv": argv, "timeout": 60}, check=f"look at {device}").stdout.split()


class Beside:
    """``start`` are those of the ``units`` that run when all is done.

    ``carry`` is called with a live path that was just put away, and the one in its place: for what is to stay.
    """

    def __init__(
        self,
        context: Context,
        units: Sequence[str],
        start: Sequence[str] | None = None,
        carry: Callable[[str, str], None] = lambda old, new: None,
    ) -> None:
        self.context = context
        self.units = units
        self.start = units if start is None else start
        self.carry = carry

    @staticmethod
    def choose(places: Mapping[str, str]) -> dict[str, bool]:
        """Live paths, and whether they are there. ``places`` says of each where its staged version will be.

        :raises Refused: when one cannot be replaced.
        """
        for path in places:
            if not os.path.isdir(os.path.dirname(path)):
                raise Refused(f"{os.path.dirname(path)} is not there; make it, or apply the role that owns {path}")
            for other in (path + STAGING, path + FORMER):
                if os.path.lexists(other):
                    raise Refused(f"{other} is there, and no restore is open that made it; move it away")
            points = mounted(path)
            if points:
                raise Refused(f"{', '.join(points)}: is mounted there, and {path} can only be swapped without it")
        return {path: os.path.lexists(path) for path in places}

    def swap(self, existed: Mapping[str, bool], places: Mapping[str, str]) -> None:
        """:raises EngineFailed: when a unit does not stop or start."""
        systemctl(self.context, "stop", self.units)
        for path in existed:
            if os.path.lexists(path):
                _rename(path, path + FORMER)
            _rename(places[path], path)
            self.carry(path + FORMER, path)
            remove(path + STAGING)
        systemctl(self.context, "start", self.start)

    @staticmethod
    def swapped(existed: Mapping[str, bool], places: Mapping[str, str]) -> list[str]:
        """The paths at which a swap has begun."""
        return [
            path
            for path, was in existed.items()
            if os.path.lexists(path + FORMER)
            or (not was and os.path.lexists(path) and not os.path.lexists(places[path]))
        ]

    def undo(self, existed: Mapping[str, bool], places: Mapping[str, str]) -> None:
        """What was live before is so again, and nothing is left beside it."""
        swapped = self.swapped(existed, places)
        if swapped:
            systemctl(self.context, "stop", self.units)
        for path in swapped:
            remove(path + STAGING)
            if os.path.lexists(path):
                if os.path.lexists(path + FORMER):
                    self.carry(path, path + FORMER)
                _rename(path, path + STAGING)
            if os.path.lexists(path + FORMER):
                _rename(path + FORMER, path)
        for path in existed:
            remove(path + STAGING)
        if all(map(os.path.lexists, existed)):
            systemctl(self.context, "start", self.start)

    @staticmethod
    def commit(existed: Mapping[str, bool]) -> None:
        """Removes what was live before."""
        for path in existed:
            remove(path + FORMER)
