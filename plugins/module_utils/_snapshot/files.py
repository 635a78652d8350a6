# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files and folders, by restic.

An index of each tree is taken before restic reads it, and kept with the set; a look after it tells what has changed
meanwhile. All else has to come back as it was, with modes, owners, links and attributes. restic proves the content of
whatever it reads.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._host import run_command
from .beside import STAGING, Beside
from .frozen import frozen, nested, showing, subvolume, thaw
from .model import Damaged, Member, Refused, now
from .restic import Kept, literally
from .sources import Target
from .tree import Facts, changes, differences, index, is_below, leaves_out, marks, mounted, walk

INDEX = "index.json"
# How it tells of a file with holes.
SPARSE = '"sparse": true'


@dataclass
class Options:
    """What roles announce, and operators by ``backup_files`` of role backup.

    ``exclude`` has absolute paths, and names with ``*`` and ``?`` which are left out wherever they are. ``units`` use
    the files and are stopped while a restore swaps them.
    """

    paths: list[str]
    exclude: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)


def _within(view: str, path: str, left_out: Callable[[str], bool]) -> Callable[[str], bool]:
    """What is left out of a path, for a place where the same tree is."""
    return left_out if view == path else lambda place: left_out(path + place[len(view) :])


class Files(Kept):
    """See the module."""

    kind = "files"
    takes = Options
    options: Options

    def _check(self) -> None:
        """:raises Refused: for what can be neither saved nor restored."""
        paths, exclude = self.options.paths, self.options.exclude
        if not paths:
            raise Refused(f"{self.name}: paths: has none")
        for path in paths:
            if path != os.path.normpath(path) or not path.startswith("/") or path == "/":
                raise Refused(f"{self.name}: paths: {path!r} is no plain absolute path")
            around = [other for other in paths if other is not path and is_below(path, other)]
            if around:
                raise Refused(f"{self.name}: paths: {path} is in {around[0]} already")
        for pattern in exclude:
            if pattern.startswith("/") and pattern == os.path.normpath(pattern):
                if not any(pattern != path and is_below(pattern, path) for path in paths):
                    raise Refused(f"{self.name}: exclude: {pattern} is in none of {', '.join(paths)}")
            elif not pattern or set(pattern) & set("/[]\\"):
                raise Refused(
                    f"{self.name}: exclude: {pattern!r} is neither an absolute path nor a name with at most * and ?"
                )
        for unit in self.options.units:
            if self._state(unit)[0] == "not-found":
                raise Refused(f"{self.name}: units: there is no {unit}; apply its role first")

    def _state(self, unit: str) -> list[str]:
        argv = ["systemctl", "show", "--property=LoadState", "--property=ActiveState", "--property=UnitFileState", unit]
        said = run_command({"argv": argv, "timeout": 60}, check=f"look at {unit}").stdout
        fields = dict(line.partition("=")[::2] for line in said.splitlines())
        return [fields.get(name, "") for name in ("LoadState", "ActiveState", "UnitFileState")]

    def plan(self) -> None:
        self._check()
        for path in self.options.paths:
            if not os.path.lexists(path):
                raise Refused(f"{self.name}: {path} is not there; make it, or take it off the list")
            if os.path.islink(path):
                raise Refused(f"{self.name}: {path} is a link; name what it leads to, {os.path.realpath(path)}")
            inside = mounted(path)
            if path in inside:
                raise Refused(f"{self.name}: {path} is a mount point, which no restore can swap; name what is in it")
            if is_below(self.context.spool, path):
                # The index goes by it, which no exclusion may leave out.
                raise Refused(f"{self.name}: {path} holds {self.context.spool}; name what is beside that")
            for place in [*inside, *(place for place in self.context.places if is_below(place, path))]:
                if not any(is_below(place, pattern) for pattern in self.options.exclude):
                    raise Refused(
                        f"{self.name}: {place} is a mount point or of the backup itself, and cannot be saved with "
                        f"{path}; exclude it"
                    )
            inner = nested(path, leaves_out(self.options.exclude)) if subvolume(path) else []
            if inner:
                raise Refused(
                    f"{self.name}: {inner[0]} is a subvolume of its own, which a snapshot of {path} does not have; "
                    "exclude it, and give it an entry of its own"
                )

    def estimate(self) -> int:
        left_out = leaves_out(self.options.exclude)
        found = (status for path in self.options.paths for _place, status in walk(path, left_out))
        return sum(status.st_size for status in found if status is not None)

    def _excluded(self) -> Iterator[str]:
        """As restic has it."""
        for pattern in self.options.exclude:
            if pattern.startswith("/"):
                yield literally(pattern)
            else:
                yield from (f"{literally(path)}/**/{pattern}" for path in self.options.paths)

    def mark(self, set_id: str, work: dict[str, Any]) -> dict[str, Any]:
        began = now()
        left_out = leaves_out(self.options.exclude)
        folder = self.scratch()
        options = [f"--exclude={pattern}" for pattern in self._excluded()]
        before: dict[str, dict[str, Facts]] = {}
        marked: dict[str, dict[str, list[int]]] = {path: {} for path in self.options.paths}
        with frozen(self.context, self.options.paths) as views:

            def look() -> None:
                for path, view in sorted(views.items()):
                    before[path] = index(view, _within(view, path, left_out), marked[path])
                with open(f"{folder}/{INDEX}", "w", encoding="ascii") as handle:
                    handle.write(json.dumps(before))  # json.dump is many times slower

            with self.restic.after(look) as waiting:
                member = self.save(
                    set_id,
                    began,
                    [*self.options.paths, folder],
                    [*options, *waiting],
                    consistency="crash",
                    wrapper=showing(views),
                )
            moving = {path: changes(marked[path], marks(path, left_out)) for path in self.options.paths}
        details = {
            "folder": folder,
            "entries": sum(map(len, before.values())),
            # What stood still is as it was indexed, whatever became of the live tree.
            "moving": {path: moving[path] if views[path] == path else [] for path in moving},
            "still": not any(moving.values()),
        }
        return {"member": dataclasses.asdict(dataclasses.replace(member, details=details))}

    def finish(self, set_id: str, work: dict[str, Any]) -> Member:
        return Member(**work["member"])

    def of_one_moment(self, member: Member) -> bool:
        return bool(member.details["still"])

    def settle(self) -> None:
        thaw(self.context, self.options.paths)

    def prove(self, member: Member) -> dict[str, Any]:
        target = self.scratch(".proof")
        self.context.room(target, member.size, f"the files of {member.label}")
        self.restic.restore(member.label, target, "--verify")
        return self._compare(target, member.details, {path: target + path for path in member.details["moving"]})

    def _compare(self, target: str, details: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
        """Holds restored trees against their index, which was restored to ``target``.

        :raises Damaged: when one is not as it was.
        """
        found = {path: index(place) if os.path.lexists(place) else {} for path, place in places.items()}
        told = self._told(target, details)
        # Two texts take less time than entries one by one, which need a look only where they differ or have holes.
        if json.dumps(found) != told or SPARSE in told:
            wanted = json.loads(told)
            for path, place in places.items():
                for name, facts in wanted[path].items():
                    if facts["sparse"] and name in found[path]:
                        self._dig(os.path.normpath(os.path.join(place, name)))
                wrong = differences(wanted[path], found[path], details["moving"][path])
                if wrong:
                    raise Damaged(f"{self.name}: {path}: {len(wrong)} differences: {'; '.join(wrong[:3])}")
        return {"entries": details["entries"], "moving": sum(map(len, details["moving"].values()))}

    def _index(self, target: str, details: dict[str, Any]) -> dict[str, dict[str, Facts]]:
        """What a set knows of its trees, by path and name. :raises Damaged: when it was not restored to ``target``."""
        return dict(json.loads(self._told(target, details)))

    def _told(self, target: str, details: dict[str, Any]) -> str:
        """The same as text."""
        try:
            with open(f"{target}{details['folder']}/{INDEX}", encoding="ascii") as handle:
                return handle.read()
        except FileNotFoundError:
            raise Damaged(f"{self.name}: the set does not hold its index") from None

    def _dig(self, path: str) -> None:
        """Makes holes where nothing but zeros is: restic leaves out large ones only, and before 0.15 none."""
        status = os.lstat(path)
        self.context.command("make holes", ["fallocate", "--dig-holes", path])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def choose(self, member: Member, members: Sequence[Member], target: Target) -> dict[str, Any]:
        self.only_own_moment(target)
        self._check()
        # restic restores whole paths below its target.
        places = {path: f"{path}{STAGING}{path}" for path in member.details["moving"]}
        existed = self._beside([]).choose(places)
        states = {unit: self._state(unit) for unit in self.options.units}
        return {
            "label": member.label,
            "size": member.size,
            "details": member.details,
            "places": places,
            "existed": existed,
            "start": [unit for unit, state in states.items() if "active" in state or "enabled" in state],
        }

    def stage(self, choice: dict[str, Any]) -> dict[str, Any]:
        # The index comes with the first one.
        wanted = [choice["details"]["folder"]]
        for path in choice["places"]:
            self.context.room(os.path.dirname(path), choice["size"], f"the files of {choice['label']}")
            os.mkdir(path + STAGING, 0o700)
            includes = [f"--include={literally(place)}" for place in [path, *wanted]]
            # Not read again after it was written: what restic reads it decrypts, by a code of authentication.
            self.restic.restore(choice["label"], path + STAGING, *includes)
            wanted = []
        first = next(iter(choice["places"]))
        return self._compare(first + STAGING, choice["details"], choice["places"])

    def _beside(self, start: Sequence[str]) -> Beside:
        return Beside(self.context, self.options.units, start, self._carry)

    def _carry(self, old: str, new: str) -> None:
        """What is not saved stays with the live tree, where the restored one has a place for it."""
        if not self.options.exclude:
            return
        live = min(old, new, key=len)  # the other one has a suffix
        left_out = leaves_out(self.options.exclude)
        for place, status in walk(old, _within(old, live, left_out)):
            there = new + place[len(old) :]
            folders = [os.path.dirname(place), os.path.dirname(there)]
            if status is None and os.path.isdir(folders[1]) and not os.path.lexists(there):
                times = [(found.st_atime_ns, found.st_mtime_ns) for found in map(os.lstat, folders)]
                os.rename(place, there)
                for folder, was in zip(folders, times):
                    os.utime(folder, ns=was)

    def swap(self, choice: dict[str, Any]) -> None:
        self._beside(choice["start"]).swap(choice["existed"], choice["places"])

    def undo(self, choice: dict[str, Any]) -> None:
        self._beside(choice["start"]).undo(choice["existed"], choice["places"])

    def commit(self, choice: dict[str, Any]) -> None:
        self._beside(choice["start"]).commit(choice["existed"])
