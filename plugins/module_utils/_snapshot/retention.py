# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which sets stay and which go: a pure function of their manifests, the rules and the time.

Sets are judged by the moment that their manifest records, in UTC, and never by their names. The rules are applied to
each source by itself, so that a set of one source does not push out that of all; and to the sets which the same hosts
have made together apart from others, by a moment that all their parts record alike. Hosts with equal rules therefore
keep the same sets of a fleet.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .model import Manifest, Refused, parse_time

# What a bucket is called, for a moment; the last set in each is kept.
BUCKETS = {"daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m"}
COUNTS = ("last", *BUCKETS)
WITHIN = re.compile(r"([1-9][0-9]*)([hdwmy])")
HOURS = {"h": 1, "d": 24, "w": 7 * 24, "m": 31 * 24, "y": 366 * 24}


@dataclass(frozen=True)
class Keep:
    """How many of the newest sets stay, and the last ones of how many days, weeks and months that have sets; zero is
    none. ``within`` is a time before the newest set, such as 30d (h, d, w, m of 31 days, y of 366)."""

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    within: str = ""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Keep | None:
        """Rules as the settings have them; None, which keeps everything, where there are none.

        :raises Refused: for a rule that cannot be, and rules by which nothing would stay.
        """
        if not given:
            return None
        unknown = sorted(set(given) - {*COUNTS, "within"})
        if unknown:
            raise Refused(f"keep: {', '.join(unknown)}: no such rule; there are {', '.join(COUNTS)} and within")
        for name in COUNTS:
            count = given.get(name, 0)
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise Refused(f"keep: {name}: {count!r} is no number of sets; give 0 or more")
        within = str(given.get("within") or "")
        if within and not WITHIN.fullmatch(within):
            raise Refused(f"keep: within: {within!r} is no time; give one such as 30d, of h, d, w, m or y")
        rules = cls(**{name: given.get(name, 0) for name in COUNTS}, within=within)
        if rules == cls():
            raise Refused("keep: keeps nothing; give a rule more than zero, or no rule at all to keep everything")
        return rules

    @property
    def period(self) -> datetime.timedelta:
        """``within``; nothing where it is not given."""
        found = WITHIN.fullmatch(self.within)
        return datetime.timedelta(hours=int(found[1]) * HOURS[found[2]] if found else 0)


def moment(manifest: Manifest) -> datetime.datetime:
    """The recorded time by which a set is judged. All parts of a set of several hosts have the same one."""
    shared = manifest.fleet.get("attempted") or manifest.fleet.get("began")
    return parse_time(shared or manifest.sealed or manifest.began)


def _by_rules(sets: Sequence[Manifest], keep: Keep) -> Iterable[tuple[str, str]]:
    """Id and reason for each set of one series, the newest first, that a rule keeps."""
    for manifest in sets[: keep.last]:
        yield manifest.id, f"of the last {keep.last}"
    for rule, form in BUCKETS.items():
        buckets: dict[str, Manifest] = {}
        for manifest in sets:
            buckets.setdefault(moment(manifest).strftime(form), manifest)
        for bucket in list(buckets)[: getattr(keep, rule)]:
            yield buckets[bucket].id, f"{rule}, of {bucket}"
    for manifest in sets:
        if keep.within and moment(manifest) >= moment(sets[0]) - keep.period:
            yield manifest.id, f"within {keep.within}"


def judge(
    sets: Iterable[Manifest], keep: Keep, sources: Collection[str], now: datetime.datetime
) -> dict[str, list[str]]:
    """Why each sealed set stays, by id, the oldest first; what has no reason goes.

    :param sources: names of the sources that the host still has; others keep nothing.
    :param now: a set from after it stays, as the newest, and takes no other's place.
    """
    ordered = sorted(sets, key=lambda manifest: (moment(manifest), manifest.id))
    reasons: dict[str, list[str]] = {manifest.id: [] for manifest in ordered}
    past: list[Manifest] = []
    for manifest in ordered:
        if moment(manifest) > now:
            reasons[manifest.id].append("its time is in the future")
        else:
            past.insert(0, manifest)

    series: dict[tuple[str, ...], list[Manifest]] = {}
    newest: dict[str, Manifest] = {}
    for manifest in past:
        for source in sorted({member.source for member in manifest.members} & set(sources)):
            series.setdefault((source, *sorted(manifest.fleet.get("hosts", []))), []).append(manifest)
            newest.setdefault(source, manifest)
    for entries in series.values():
        for set_id, reason in _by_rules(entries, keep):
            if reason not in reasons[set_id]:
                reasons[set_id].append(reason)
    for manifest in past[:1]:
        reasons[manifest.id].append("the newest")
    for manifest in [manifest for manifest in past if manifest.verified][:1]:
        reasons[manifest.id].append("the last that was proven")
    for source, manifest in newest.items():
        if not reasons[manifest.id]:
            reasons[manifest.id].append(f"the last of {source}")
    return reasons
