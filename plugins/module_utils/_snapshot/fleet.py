# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One host's part in a set that several hosts make of the same moment.

Each step is a run of its own, and the controller begins none before all hosts are through with the one before. Between
steps the host is held, see :mod:`.hold`. A step that fails throws this part away, and the controller those of the
others; where it cannot, no later step comes, the hold ends, and the next run sweeps away what was made.

All parts are sealed before the first one is noted as complete. The fleet's set is whole as soon as one part says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from . import hold
from .engine import FAULTS, Engine, fail_point
from .model import SEALED, Manifest, Member, NotFound, Refused, check_id, now, parse_time
from .sources import Source

# What each step follows.
AFTER = {
    "copy": ("hold",),
    "fence": ("copy",),
    "mark": ("copy", "fence"),
    "release": ("mark",),
    "finish": ("release",),
    "seal": ("finish",),
}


class Part:
    """``attempt`` names the attempt among all hosts; a set's own name may have been tried before."""

    def __init__(self, engine: Engine, attempt: str, wait: float = 0.0) -> None:
        self.engine = engine
        self.attempt = attempt
        self.wait = wait

    def members(self) -> list[Source]:
        """What of this host is in such a set: one copy of each thing."""
        kinds = {source.kind for source in self.engine.sources}
        return [source for source in self.engine.sources if source.within not in kinds and not source.apart]

    def estimate(self) -> list[dict[str, Any]]:
        """As :meth:`Engine.estimate`; empty on a host that has nothing to save, such as a replica."""
        members = [source.name for source in self.members()]
        return self.engine.estimate(members) if members else []

    def hold(
        self, set_id: str, *, full: bool, reason: str, lease: float, attempted: str = ""
    ) -> list[dict[str, Any]]:
        """Proves that all copies can begin, and holds the host. ``lease`` is for how long after each step, in seconds,
        and ``attempted`` the time of the attempt, by which retention judges all parts.

        :raises Refused: then nothing is held.
        """
        began = now()
        if attempted:
            parse_time(attempted)
        with self.engine.run(self.wait, self.attempt):
            estimate = self.estimate()
            if estimate:
                manifest = Manifest(check_id(set_id), self.engine.host, SEALED, began, self.engine.repository.key.id)
                self.engine.catalogue.begin(manifest)
                hold.write(
                    {
                        "fleet": self.attempt, "set": set_id, "step": "hold", "lease": lease, "began": began,
                        "attempted": attempted, "full": full, "reason": reason,
                        "work": {entry["source"]: {} for entry in estimate},
                    }
                )  # fmt: skip
        return estimate

    @contextlib.contextmanager
    def _step(self, step: str) -> Iterator[tuple[dict[str, Any], list[Source]]]:
        """What is held, to be changed by the step, and the sources. A fault throws all of it away."""
        with self.engine.run(self.wait, self.attempt):
            entry = hold.read()
            if entry is None or entry["step"] not in AFTER[step]:
                held = f"after step {entry['step']}" if entry else "not"
                raise Refused(f"step {step}: this host is {held} held for {self.attempt}; make the set anew")
            try:
                yield entry, [source for source in self.engine.sources if source.name in entry["work"]]
                fail_point(f"fleet-{step}")
                hold.write({**entry, "step": step})
            except FAULTS as error:
                with contextlib.suppress(*FAULTS):
                    self._discard(entry["set"])
                self.engine.report(failed=str(error))
                raise

    def copy(self) -> None:
        """Copies what can be copied before the moment."""
        with self._step("copy") as (entry, sources):
            for source in sources:
                self.engine.say(f"{source.name}: copying")
                entry["work"][source.name] = source.ahead(entry["set"], entry["full"])

    def fence(self, seconds: float) -> None:
        """Has writers wait, for at most ``seconds``."""
        with self._step("fence") as (entry, sources):
            # What is noted is released, also when this run is killed now.
            entry["fence"] = {source.name: {} for source in sources}
            hold.write(entry)
            for source in sources:
                entry["fence"][source.name] = source.fence(seconds)

    def mark(self) -> None:
        """The moment itself."""
        with self._step("mark") as (entry, sources):
            entry["marked"] = {"began": now()}
            for source in sources:
                entry["work"][source.name].update(source.mark(entry["set"], entry["work"][source.name]))
            entry["marked"]["ended"] = now()

    def release(self) -> list[str]:
        """Lets writers go on. Returns how something can have been written in spite of the fence."""
        with self._step("release") as (entry, _sources):
            entry["problems"] = self.engine.let_go()
            entry["fenced"] = bool(entry.pop("fence", {})) and not entry["problems"]
        return list(entry["problems"])

    def finish(self) -> None:
        """Makes all members durable."""
        with self._step("finish") as (entry, sources):
            members = []
            for source in sources:
                self.engine.say(f"{source.name}: finishing")
                member = source.finish(entry["set"], entry["work"][source.name])
                if source.of_one_moment(member):
                    member = dataclasses.replace(member, consistency="fenced" if entry["fenced"] else "barrier")
                members.append(dataclasses.asdict(member))
            entry["members"] = members

    def seal(self, hosts: Sequence[str]) -> Manifest:
        """Seals this part. ``hosts`` are all that have one; they are through with :meth:`finish`."""
        with self._step("seal") as (entry, _sources):
            manifest = Manifest(
                id=entry["set"],
                host=self.engine.host,
                state=SEALED,
                began=entry["began"],
                key=self.engine.repository.key.id,
                reason=entry["reason"],
                sealed=now(),
                members=tuple(Member(**member) for member in entry["members"]),
                fleet={
                    "id": self.attempt, "hosts": sorted(hosts), "attempted": entry["attempted"], **entry["marked"],
                    "complete": "",
                },
            )  # fmt: skip
            self.engine.catalogue.write(manifest)
            self.engine.report(manifest)
        hold.remove()
        return manifest

    def complete(self, set_id: str) -> Manifest:
        """Notes that all parts are sealed. :raises Refused: when the set is of another attempt."""
        with self.engine.run(self.wait, self.attempt):
            manifest = self.engine.catalogue.load(set_id)
            if manifest.fleet.get("id") != self.attempt:
                raise Refused(f"set {set_id} of this host is no part of {self.attempt}")
            manifest = dataclasses.replace(manifest, fleet={**manifest.fleet, "complete": now()})
            self.engine.catalogue.write(manifest)
        return manifest

    def discard(self, set_id: str) -> bool:
        """Throws away what there is of this attempt, and lets everybody go on. Returns whether there was anything."""
        if not self._is_held() and not self._is_sealed(set_id):
            return False  # also when another run is at work
        with self.engine.run(self.wait, self.attempt):
            return self._discard(set_id)

    def _discard(self, set_id: str) -> bool:
        held, sealed = self._is_held(), self._is_sealed(set_id)
        if held:
            self.engine.let_go()
        if sealed:
            self.engine.catalogue.forget(self.engine.catalogue.load(set_id))
        if held or sealed:
            self.engine.sweep()
        return held or sealed

    def _is_held(self) -> bool:
        entry = hold.read()
        return entry is not None and entry["fleet"] == self.attempt

    def _is_sealed(self, set_id: str) -> bool:
        """Whether there is a sealed part of this attempt that is not noted as complete."""
        try:
            fleet = self.engine.catalogue.load(set_id).fleet
        except NotFound:
            return False
        return fleet.get("id") == self.attempt and not fleet["complete"]
