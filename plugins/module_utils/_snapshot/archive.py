# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Old files, which go from the host when they were proven to be in the repository.

What is archived is a set of its own, and stands apart from those that save the host. It is restored into the live tree:
its files come back to where nothing is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .._durable import read_json, write_durably
from . import files
from .beside import STAGING, remove
from .model import ARCHIVE, Damaged, Member, Refused, now
from .sources import Target
from .tree import Facts, changes, differences, digest, identity, index, is_below, leaves_out, marks

# Folders that a restore made, for whoever undoes it.
MADE = "made.json"


@dataclass
class Options(files.Options):
    """What operators announce by ``backup_archives`` of role backup.

    ``days`` is the age of files that go, since their content changed. ``keep_days`` is that of archives which pruning
    takes; with 0 they stay.
    """

    days: int = 90
    keep_days: int = 0


def _at(path: str, name: str) -> str:
    """Where a name of an index is; a path that is a file has one name, ``.``."""
    return os.path.normpath(os.path.join(path, name))


def _folders(root: str, names: Iterable[str]) -> list[str]:
    """All folders that names of a path need, itself included, those above first."""
    found = set()
    for name in names:
        place = os.path.dirname(_at(root, name))
        while is_below(place, root) and place not in found:
            found.add(place)
            place = os.path.dirname(place)
    return sorted(found)


def _is(path: str, facts: Facts) -> bool:
    """Whether a file is still the one that was indexed."""
    try:
        return bool(identity(os.lstat(path)) == facts["changed"])
    except OSError:
        return False


class Archive(files.Files):
    """See the module."""

    kind = ARCHIVE
    takes = Options
    apart = True
    options: Options

    def due(self) -> dict[str, dict[str, Facts]]:
        """The facts of what is old enough, by path and by name in it, and as ``changed`` its identity. Only files are:
        folders stay.
        """
        before = int((time.time() - self.options.days * 86400) * 1_000_000)
        left_out = leaves_out(self.options.exclude)
        due = {}
        for path in self.options.paths:
            marked: dict[str, list[int]] = {}
            due[path] = {
                name: {**facts, "changed": marked[name]}
                for name, facts in index(path, left_out, marked).items()
                if stat.S_ISREG(facts["mode"]) and facts["mtime"] < before
            }
        return due

    def plan(self) -> None:
        super().plan()
        if self.options.days < 1:
            raise Refused(f"{self.name}: days: {self.options.days} is less than 1")
        if not any(self.due().values()):
            raise Refused(f"{self.name}: nothing in {', '.join(self.options.paths)} is {self.options.days} days old")

    def estimate(self) -> int:
        return sum(facts["size"] for found in self.due().values() for facts in found.values())

    def mark(self, set_id: str, work: dict[str, Any]) -> dict[str, Any]:
        began = now()
        folder = self.scratch()
        due = self.due()
        for path, found in due.items():
            for name, facts in found.items():
                facts["sha256"] = digest(_at(path, name), "sha256")
        with open(f"{folder}/{files.INDEX}", "w", encoding="ascii") as handle:
            handle.write(json.dumps(due))
        listing = f"{folder}.list"
        with open(listing, "wb") as handle:
            names = [_at(path, name) for path, found in due.items() for name in found]
            handle.write(b"".join(os.fsencode(name) + b"\0" for name in [*names, folder]))
        member = self.save(set_id, began, [], ["--files-from-raw", listing], consistency="crash")
        left_out = leaves_out(self.options.exclude)
        moving = {}
        for path, found in due.items():
            after = marks(path, left_out)
            was = {name: facts["changed"] for name, facts in found.items()}
            moving[path] = changes(was, {name: after[name] for name in found if name in after})
        details = {"folder": folder, "entries": sum(map(len, due.values())), "moving": moving}
        return {"member": dataclasses.asdict(dataclasses.replace(member, details=details))}

    def _compare(self, target: str, details: dict[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
        wanted = self._index(target, details)
        for path, place in places.items():
            found = index(place) if os.path.lexists(place) else {}
            found = {name: found[name] for name in wanted[path] if name in found}
            moving = set(details["moving"][path])
            wrong = differences(wanted[path], found, moving)
            wrong += [
                f"{name!r} has other content"
                for name, facts in wanted[path].items()
                if name in found and name not in moving and digest(_at(place, name), "sha256") != facts["sha256"]
            ]
            if wrong:
                raise Damaged(f"{self.name}: {path}: {len(wrong)} differences: {'; '.join(wrong[:3])}")
        return {"entries": sum(map(len, wanted.values())), "moving": sum(map(len, details["moving"].values()))}

    def clear(self, member: Member) -> tuple[int, int]:
        """Removes from the host what a proven member has. Returns the numbers of files that went and that stay, because
        they are not what was archived any more.
        """
        wanted = self._index(self.fetch(member.label, member.details["folder"]), {"folder": ""})
        gone = left = 0
        for path, found in wanted.items():
            # Names of one file are judged together: when one of them goes, it is a change of the others.
            names_of: dict[str, list[str]] = {}
            for name, facts in found.items():
                names_of.setdefault(facts["twin"], []).append(name)
            for names in names_of.values():
                if all(_is(_at(path, name), found[name]) for name in names):
                    for name in names:
                        os.unlink(_at(path, name))
                    gone += len(names)
                else:
                    left += sum(os.path.lexists(_at(path, name)) for name in names)
        return gone, left

    def choose(self, member: Member, members: Any, target: Target) -> dict[str, Any]:
        self.only_own_moment(target)
        for path in member.details["moving"]:
            if not os.path.isdir(os.path.dirname(path)):
                raise Refused(f"{os.path.dirname(path)} is not there; make it, or apply the role that owns {path}")
            if os.path.lexists(path + STAGING):
                raise Refused(f"{path + STAGING} is there, and no restore is open that made it; move it away")
        return {
            "label": member.label,
            "size": member.size,
            "details": member.details,
            "places": {path: f"{path}{STAGING}{path}" for path in member.details["moving"]},
        }

    def stage(self, choice: dict[str, Any]) -> dict[str, Any]:
        proven = super().stage(choice)
        for path, found in self._staged(choice).items():
            taken = [name for name in found if os.path.lexists(_at(path, name))]
            if taken:
                raise Refused(f"{self.name}: {path} has {len(taken)} of the files already: {', '.join(taken[:3])}")
        return proven

    def _staged(self, choice: dict[str, Any]) -> dict[str, dict[str, Facts]]:
        return self._index(next(iter(choice["places"])) + STAGING, choice["details"])

    def swap(self, choice: dict[str, Any]) -> None:
        for path, found in self._staged(choice).items():
            place = choice["places"][path]
            made = [folder for folder in _folders(path, found) if not os.path.isdir(folder)]
            write_durably(f"{path}{STAGING}/{MADE}", json.dumps(made).encode())
            for folder in made:
                os.mkdir(folder, 0o700)
                staged = os.lstat(place + folder[len(path) :])
                os.chown(folder, staged.st_uid, staged.st_gid)
                os.chmod(folder, stat.S_IMODE(staged.st_mode))
            for name in found:
                if os.path.lexists(_at(place, name)):
                    os.rename(_at(place, name), _at(path, name))

    def undo(self, choice: dict[str, Any]) -> None:
        for path, place in choice["places"].items():
            made = read_json(f"{path}{STAGING}/{MADE}")
            if made is None:
                continue  # nothing was swapped here
            for name in self._staged(choice)[path]:
                if not os.path.lexists(_at(place, name)):
                    os.unlink(_at(path, name))
            for folder in reversed(made):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)  # something else may be in it by now
        self.commit(choice)

    def commit(self, choice: dict[str, Any]) -> None:
        # The first one tells what there was in all of them.
        for path in reversed(choice["places"]):
            remove(path + STAGING)
