# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Logical volumes of LVM: snapshots of them, and whole volumes as a source, by restic.

A restore fills a new volume beside the live one and has them change names.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .beside import FORMER, STAGING, mount_points, systemctl
from .model import EngineFailed, Member, Refused, now
from .restic import Kept
from .sources import Context, Target
from .tree import digest

# Of the volume's name: its snapshot while it is copied.
COPIED = ".vmfleet-copied"
TIMEOUT = 600
# What lvs is asked for of each volume: bytes, the thin pool it is in, and whether a snapshot has overflowed: 1, or -1
# where it cannot.
FACTS = ("lv_name", "lv_size", "vg_free", "pool_lv", "lv_snapshot_invalid")
# restic reads a device that the shell opens, as its standard input.
READ = ["sh", "-c", 'exec "$@" <"$0"']


def _run(context: Context, purpose: str, *argv: str) -> str:
    """Runs a program of LVM. :raises EngineFailed:"""
    return context.command(purpose, argv, timeout=TIMEOUT).stdout


@dataclass(frozen=True)
class Volume:
    """A logical volume by the names of its group and itself."""

    group: str
    name: str

    def __str__(self) -> str:
        return f"{self.group}/{self.name}"

    @property
    def device(self) -> str:
        """Where it is while it is active."""
        return f"/dev/{self}"

    def beside(self, suffix: str) -> Volume:
        return Volume(self.group, self.name + suffix)

    def group_facts(self, context: Context) -> dict[str, dict[str, str]]:
        """The :data:`FACTS` of all volumes in the group, by name. :raises EngineFailed: also where there is none."""
        options = ("--reportformat=json", "--units=b", "--nosuffix", "--binary", f"--options={','.join(FACTS)}")
        said = _run(context, f"look at the volume group {self.group}", "lvs", *options, self.group)
        return {facts["lv_name"]: facts for facts in json.loads(said)["report"][0]["lv"]}

    def snapshot_size(self, context: Context) -> list[str]:
        """The options of lvcreate for the room that a snapshot has for what is written meanwhile; nothing without room.

        One of a thin volume takes what its pool has; of others, a fifth of the volume, or what the group has.
        """
        facts = self.group_facts(context)[self.name]
        if facts["pool_lv"]:
            return ["--setactivationskip=n"]
        size = min(int(facts["vg_free"]), int(facts["lv_size"]) // 5)
        return [f"--size={size}b"] if size else []

    def take_snapshot(self, context: Context, suffix: str, size: Sequence[str]) -> Volume:
        """Makes a snapshot beside the volume, with a ``size`` of :meth:`snapshot_size`. :raises EngineFailed:"""
        made = self.beside(suffix)
        argv = ["lvcreate", "--quiet", "--snapshot", "--permission=r", f"--name={made.name}", *size, str(self)]
        _run(context, f"make a snapshot of {self}", *argv)
        return made

    def check_snapshot(self, context: Context, suffix: str) -> None:
        """:raises EngineFailed: when it overflowed: then what was read last is nothing."""
        facts = self.group_facts(context).get(self.name + suffix, {})
        if facts.get("lv_snapshot_invalid") == "1":
            raise EngineFailed(
                f"more was written to {self} than its snapshot has room for; "
                f"give the volume group {self.group} more space, or write less meanwhile"
            )

    def remove(self, context: Context) -> None:
        """Removes the volume, if it is there. :raises EngineFailed: when it is in use."""
        if self.name in self.group_facts(context):
            _run(context, f"remove {self}", "lvremove", "--quiet", "--yes", str(self))

    def rename(self, context: Context, name: str) -> None:
        _run(context, f"rename {self}", "lvrename", "--quiet", self.group, self.name, name)

    def activate(self, context: Context, active: bool) -> None:
        """:raises EngineFailed: when it is in use and should not be active."""
        argv = ["lvchange", "--quiet", "--activate", "y" if active else "n", str(self)]
        _run(context, f"{'' if active else 'de'}activate {self}", *argv)


@dataclass
class Options:
    """What operators announce by ``backup_lvm`` of role backup.

    ``volume`` is a group and a volume, as in ``vg0/data``. ``units`` use it, mount units among them, and are stopped
    while a restore swaps it.
    """

    volume: str
    units: list[str] = field(default_factory=list)


class LogicalVolume(Kept):
    """See the module."""

    kind = "lvm"
    takes = Options
    options: Options

    @functools.cached_property
    def volume(self) -> Volume:
        """:raises Refused: where LVM is not."""
        if shutil.which("lvs") is None:
            raise Refused(f"{self.name}: there is no lvs on this host; install lvm2")
        group, _slash, name = self.options.volume.partition("/")
        return Volume(group, name)

    def _group(self) -> dict[str, dict[str, str]]:
        return self.volume.group_facts(self.context)

    def plan(self) -> None:
        if self.volume.name not in self._group():
            raise Refused(f"{self.name}: volume: there is no {self.volume}")
        if not self.volume.snapshot_size(self.context):
            raise Refused(f"{self.name}: {self.volume.group} has no room for a snapshot of {self.volume}; extend it")

    def estimate(self) -> int:
        return int(self._group()[self.volume.name]["lv_size"])

    def mark(self, set_id: str, work: dict[str, Any]) -> dict[str, Any]:
        began = now()
        self.volume.take_snapshot(self.context, COPIED, self.volume.snapshot_size(self.context))
        return {"began": began}

    def finish(self, set_id: str, work: dict[str, Any]) -> Member:
        facts = self._group()[self.volume.name]
        device = self.volume.beside(COPIED).device
        try:
            options = ["--stdin", f"--stdin-filename={self.name}"]
            member = self.save(
                set_id,
                work["began"],
                [],
                options,
                engine="LVM",
                consistency="crash",
                digests={"sha256": digest(device, "sha256")},
                details={"size": int(facts["lv_size"]), "pool": facts["pool_lv"]},
                wrapper=[*READ, device],
            )
            self.volume.check_snapshot(self.context, COPIED)
        finally:
            self.settle()
        return member

    def settle(self) -> None:
        if shutil.which("lvs") is not None:
            self.volume.beside(COPIED).remove(self.context)

    def prove(self, member: Member) -> dict[str, Any]:
        said = self.restic.dump(member.label, self.name, "sha256sum")
        self.same(self.options.volume, member.digests["sha256"], said.split()[0])
        return {"bytes": member.details["size"]}

    def choose(self, member: Member, members: Sequence[Member], target: Target) -> dict[str, Any]:
        self.only_own_moment(target)
        group = self._group()
        for suffix in (STAGING, FORMER):
            if self.volume.name + suffix in group:
                raise Refused(
                    f"{self.name}: {self.volume}{suffix} is there, and no restore is open that made it; rename it"
                )
        live = group.get(self.volume.name)
        if live and not self.options.units:
            self._unused()
        pool = live["pool_lv"] if live else member.details["pool"]
        free = int(next(iter(group.values()))["vg_free"]) if group else member.details["size"]
        if pool not in group and free < member.details["size"]:
            raise Refused(
                f"{self.name}: {self.volume.group} has {free} B free, and a second {self.volume} takes "
                f"{member.details['size']} B; extend it"
            )
        return {
            "label": member.label,
            "size": member.details["size"],
            "sha256": member.digests["sha256"],
            "pool": pool if pool in group else "",
            "existed": live is not None,
        }

    def _unused(self) -> None:
        """:raises Refused: when the volume is mounted."""
        mounted = mount_points(self.volume.device) if os.path.exists(self.volume.device) else []
        if mounted:
            raise Refused(
                f"{self.name}: {self.volume} is mounted at {', '.join(mounted)}; name the mount unit and what uses it "
                "as units"
            )

    def stage(self, choice: dict[str, Any]) -> dict[str, Any]:
        staged, size = self.volume.beside(STAGING), f"{choice['size']}b"
        kind = ["--virtualsize", size, "--thinpool", choice["pool"]] if choice["pool"] else ["--size", size]
        argv = ["lvcreate", "--quiet", "--yes", f"--name={staged.name}", *kind, staged.group]
        _run(self.context, f"make {staged}", *argv)
        # A thin volume is made of zeros, others of what was there before.
        conv = "sparse,fsync" if choice["pool"] else "fsync"
        self.restic.dump(
            choice["label"], self.name, f"dd of={staged.device} bs=1M iflag=fullblock conv={conv} status=none"
        )
        self.same(self.options.volume, choice["sha256"], digest(staged.device, "sha256"))
        # It has the file system of the live one, by the same id, which is to be found once.
        staged.activate(self.context, False)
        return {"bytes": choice["size"]}

    def swap(self, choice: dict[str, Any]) -> None:
        systemctl(self.context, "stop", self.options.units)
        self._unused()
        if choice["existed"]:
            self.volume.activate(self.context, False)
            self.volume.rename(self.context, self.volume.name + FORMER)
        self.volume.beside(STAGING).rename(self.context, self.volume.name)
        self.volume.activate(self.context, True)
        systemctl(self.context, "start", self.options.units)

    def undo(self, choice: dict[str, Any]) -> None:
        group = self._group()
        former, staged = self.volume.beside(FORMER), self.volume.beside(STAGING)
        restored = former.name in group or not choice["existed"]
        if restored:
            systemctl(self.context, "stop", self.options.units)
            self.volume.remove(self.context)
        if former.name in group:
            former.rename(self.context, self.volume.name)
        staged.remove(self.context)
        if choice["existed"]:
            self.volume.activate(self.context, True)
            systemctl(self.context, "start", self.options.units)

    def commit(self, choice: dict[str, Any]) -> None:
        self.volume.beside(FORMER).remove(self.context)
