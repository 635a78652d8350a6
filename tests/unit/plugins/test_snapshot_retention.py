"""Which sets stay: the rules, and what no rule may take."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import SEALED, Manifest, Member, Refused
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.retention import Keep, judge

NOW = datetime.datetime(2026, 3, 31, 12, tzinfo=datetime.timezone.utc)
ALL = ("db", "files")


def made(when: str, *sources: str, name: str = "", **changes: Any) -> Manifest:
    """A set that was sealed at a time such as 03-31T02, named after it."""
    members = tuple(Member(source, "x", "x", "x", "crash", "t", "t", 1, 1) for source in sources or ALL)
    return Manifest(name or when, "h", SEALED, "", "k", sealed=f"2026-{when}:00:00Z", members=members, **changes)


def nightly(days: int) -> list[Manifest]:
    """One each night, back from the day of NOW."""
    starts = (NOW - datetime.timedelta(days=day) for day in range(days))
    return [made(f"{start:%m-%d}T02") for start in starts]


def kept(sets: list[Manifest], now: datetime.datetime = NOW, sources: tuple[str, ...] = ALL, **rules: Any) -> list[str]:
    keep = Keep.of(rules)
    assert keep is not None
    # In whatever order a catalogue has them.
    judged = judge(sorted(sets, key=lambda entry: entry.id[::-1]), keep, sources, now)
    return [set_id for set_id, reasons in judged.items() if reasons]


def test_each_rule_keeps_the_last_of_its_buckets() -> None:
    sets = nightly(90)
    assert kept(sets, last=3) == ["03-29T02", "03-30T02", "03-31T02"]
    assert kept(sets, daily=2) == ["03-30T02", "03-31T02"]
    # Sundays, and what the week has so far.
    assert kept(sets, weekly=3) == ["03-22T02", "03-29T02", "03-31T02"]
    assert kept(sets, monthly=2) == ["02-28T02", "03-31T02"]
    assert kept(sets, within="2d") == ["03-29T02", "03-30T02", "03-31T02"]
    assert kept(sets, last=1, weekly=2, monthly=2) == ["02-28T02", "03-29T02", "03-31T02"]


def test_days_without_sets_do_not_count() -> None:
    sets = [made("01-05T02"), made("01-05T20"), made("01-20T02"), made("02-07T02")]
    assert kept(sets, daily=3) == ["01-05T20", "01-20T02", "02-07T02"]


def test_days_are_those_of_utc() -> None:
    sets = [made("03-10T23"), made("03-11T00")]
    assert kept(sets, daily=2) == ["03-10T23", "03-11T00"]


def test_what_a_name_says_does_not_count() -> None:
    sets = [made("03-01T02", name="2026-12-31"), made("03-02T02", name="2020-01-01")]
    assert kept(sets, last=1) == ["2020-01-01"]


def test_the_last_proven_one_stays() -> None:
    sets = [made("03-01T02", verified="t"), made("03-02T02", verified="t"), made("03-03T02"), made("03-04T02")]
    assert kept(sets, last=1) == ["03-02T02", "03-04T02"]


def test_the_newest_stays_however_old_it_is() -> None:
    sets = [made("01-01T02"), made("01-03T02")]
    assert kept(sets, within="1h") == ["01-03T02"]


def test_a_set_of_one_source_pushes_out_none_of_all() -> None:
    sets = [made("03-01T02"), made("03-01T20", "files"), made("03-02T02"), made("03-02T20", "files")]
    assert kept(sets, daily=1) == ["03-02T02", "03-02T20"]
    assert kept(sets, last=2) == ["03-01T02", "03-02T02", "03-02T20"]


def test_the_last_of_a_source_stays_while_the_host_has_it() -> None:
    sets = [made("01-01T02", "db"), made("03-01T02", "files"), made("03-02T02", "files")]
    assert kept(sets, within="1d") == ["01-01T02", "03-01T02", "03-02T02"]
    assert kept(sets, last=1, sources=("files",)) == ["03-02T02"]


def test_what_lies_in_the_future_stays_and_takes_no_place() -> None:
    sets = [made("03-29T02"), made("03-30T02", verified="t"), made("11-01T02", verified="t"), made("12-01T02")]
    assert kept(sets, last=1) == ["03-30T02", "11-01T02", "12-01T02"]
    sets[1] = made("03-30T02")
    sets[0] = made("03-29T02", verified="t")
    assert kept(sets, last=1) == ["03-29T02", "03-30T02", "11-01T02", "12-01T02"]


def together(when: str, attempted: str, source: str) -> Manifest:
    fleet = {"hosts": ["a", "b"], "attempted": f"2026-{attempted}:00:00Z", "began": f"2026-{when}:00:00Z"}
    return made(when, source, name=f"all {attempted}", fleet=fleet)


def test_hosts_with_equal_rules_keep_the_same_sets_of_a_fleet() -> None:
    """Their own sets lie otherwise, and one was marked on the next day there."""
    fleet = ["03-01T12", "03-10T12", "03-10T23", "03-20T12"]
    one = [together(when, when, "db") for when in fleet]
    other = [together(when, when, "files") for when in fleet]
    other[2] = together("03-11T00", "03-10T23", "files")
    first = kept([*one, *nightly(5)], last=1, daily=2)
    second = kept([*other, *(made(f"03-{day}T13") for day in (10, 11, 20, 21))], last=1, daily=2)
    expected = ["all 03-10T23", "all 03-20T12"]
    assert [name for name in first if name.startswith("all")] == expected
    assert [name for name in second if name.startswith("all")] == expected


def test_nothing_said_keeps_everything() -> None:
    assert Keep.of({}) is None


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"last": 0, "within": ""}, "keeps nothing"),
        ({"daily": -1}, "daily: -1 is no number"),
        ({"daily": "7"}, "daily: '7' is no number"),
        ({"last": True}, "last: True"),
        ({"within": "30"}, "within: '30' is no time"),
        ({"yearly": 1}, "yearly: no such rule"),
    ],
)
def test_rules_that_cannot_be_are_refused(rules: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        Keep.of(rules)
