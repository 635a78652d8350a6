"""Sets, manifests and runs, with a source of plain files; the engines themselves are driven on real hosts."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import hmac
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.vmfleet.ops.plugins.filter.fleet_sets import fleet_sets
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot import cli, engine, hold, model, postgresql
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.catalogue import Catalogue
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.engine import Engine
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.fleet import AFTER, Part
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import (
    Busy,
    Damaged,
    EngineFailed,
    HostFailed,
    Key,
    Manifest,
    Member,
    NotFound,
    Refused,
    Unavailable,
    WrongKey,
    pack,
    parse_time,
    unpack,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.postgresql import Physical
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.registry import TYPES, open_repository
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.sources import Source, Target

ROOT = Path(__file__).resolve().parents[3]
SECRET = "a long and random secret"
# Repositories are opened hundreds of times here, and nobody attacks their key.
model.ROUNDS = 1


@dataclass
class Options:
    path: str
    breaks: str = ""


class Folder(Source):
    """One file, copied as a whole; enough of a source to prove what the engine does around one."""

    kind = "folder"
    takes = Options
    moments = True

    def _stored(self, label: str) -> str:
        return os.path.join(str(self.context.repository.options["path"]), "data", f"{self.name}-{label}")

    def _fails(self, step: str) -> None:
        if self.options.breaks == step:
            raise EngineFailed(f"{self.name} breaks at {step}")

    def plan(self) -> None:
        self._fails("plan")

    def estimate(self) -> int:
        return os.path.getsize(self.options.path)

    def fence(self, seconds: float) -> dict[str, Any]:
        Path(f"{self.options.path}.fence").touch()
        self._fails("fence")
        return {"size": os.path.getsize(self.options.path)}

    def unfence(self, fence: dict[str, Any]) -> str:
        Path(f"{self.options.path}.fence").unlink()
        return "" if fence == {"size": os.path.getsize(self.options.path)} else f"{self.name} was written"

    def mark(self, set_id: str, work: dict[str, Any]) -> dict[str, Any]:
        os.makedirs(os.path.dirname(self._stored("")), exist_ok=True)
        shutil.copy(self.options.path, self._stored(set_id))
        self._fails("mark")
        return {}

    def finish(self, set_id: str, work: dict[str, Any]) -> Member:
        self._fails("copy")
        size = self.estimate()
        return Member(self.name, self.kind, "cp 1", set_id, "crash", model.now(), model.now(), size, size)

    def verify(self, member: Member, thorough: bool) -> dict[str, Any]:
        self._fails("verify")
        if not os.path.exists(self._stored(member.label)):
            raise Damaged(f"{member.label} is gone")
        return {"thorough": thorough}

    def choose(self, member: Member, members: Sequence[Member], target: Target) -> dict[str, Any]:
        if target.time and parse_time(target.time) < parse_time(members[0].ended):
            raise Refused("before the first backup")
        return {"label": member.label}

    def stage(self, choice: dict[str, Any]) -> dict[str, Any]:
        shutil.copy(self._stored(choice["label"]), f"{self.options.path}.staged")
        self._fails("stage")
        return {"staged": True}

    def swap(self, choice: dict[str, Any]) -> None:
        os.rename(self.options.path, f"{self.options.path}.former")
        self._fails("swap")
        os.rename(f"{self.options.path}.staged", self.options.path)

    def undo(self, choice: dict[str, Any]) -> None:
        if os.path.exists(f"{self.options.path}.former"):
            os.rename(f"{self.options.path}.former", self.options.path)
        if os.path.exists(f"{self.options.path}.staged"):
            os.unlink(f"{self.options.path}.staged")

    def commit(self, choice: dict[str, Any]) -> None:
        os.unlink(f"{self.options.path}.former")

    def prune(self, keep: Sequence[Member]) -> None:
        wanted = {self._stored(member.label) for member in keep}
        folder = Path(self._stored("")).parent
        for path in folder.glob(f"{self.name}-*") if folder.exists() else []:
            if str(path) not in wanted:
                path.unlink()


@pytest.fixture
def key(tmp_path: Path) -> Key:
    path = tmp_path / "key"
    path.write_text(SECRET)
    path.chmod(0o600)
    return Key.load(str(path))


@dataclass
class Place:
    """A host in a folder: two sources, a repository, and the engine's own state."""

    root: Path

    def announce(self, **breaks: str) -> None:
        folder = self.root / "backup.d"
        folder.mkdir(exist_ok=True)
        for name in ("one", "two"):
            entry = {"type": "folder", "name": name, "path": str(self.root / name), "breaks": breaks.get(name, "")}
            (folder / f"{name}.json").write_text(json.dumps([entry]))

    def engine(self, repository: str = "", **keep: int) -> Engine:
        return Engine(self.settings(**keep), repository)

    def settings(self, **keep: int) -> dict[str, Any]:
        common = {"kind": "path", "key_file": str(self.root / "key"), "keep": keep}
        repositories = [{"name": name, "path": str(self.root / name), **common} for name in ("repository", "remote")]
        return {
            "host": "db1",
            "repositories": repositories,
            "sources": str(self.root / "backup.d"),
            "spool": str(self.root / "state" / "spool"),
        }

    def write(self, text: str) -> None:
        for name in ("one", "two"):
            (self.root / name).write_text(f"{name} {text}")

    def read(self) -> list[str]:
        return [(self.root / name).read_text().removeprefix(f"{name} ") for name in ("one", "two")]

    def stored(self, repository: str = "repository") -> list[str]:
        return sorted(path.name for path in (self.root / repository / "data").glob("*"))

    def metrics(self) -> str:
        return (self.root / "metrics" / "backup.prom").read_text()

    def status(self, repository: str = "repository") -> dict[str, Any]:
        return dict(json.loads((self.root / "state" / f"status-{repository}.json").read_text()))


def redirect(root: Path) -> None:
    """The engine's places, below a folder of the test."""
    engine.STATE = str(root / "state")
    engine.JOURNAL = str(root / "state" / "restore.json")
    engine.LOCK = str(root / "lock")
    engine.TEXTFILE = str(root / "metrics" / "backup.prom")
    hold.PATH = str(root / "held")
    TYPES["folder"] = Folder


@pytest.fixture
def place(tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("STATE", "JOURNAL", "LOCK", "TEXTFILE"):
        monkeypatch.setattr(engine, name, getattr(engine, name))
    monkeypatch.setattr(hold, "PATH", hold.PATH)
    monkeypatch.setitem(TYPES, "folder", Folder)
    redirect(tmp_path)
    (tmp_path / "repository").mkdir()
    (tmp_path / "metrics").mkdir()
    result = Place(tmp_path)
    result.announce()
    result.write("first")
    return result


def manifest(key: Key, **changes: Any) -> Manifest:
    member = Member("postgresql", "postgresql", "x 1", "F", "application", "t", "t", 3, 2, details={"lsn": "0/1"})
    given = Manifest("s", "db1", model.SEALED, "2026-01-01T00:00:00.000000Z", key.id, members=(member,))
    return dataclasses.replace(given, **changes)


class TestManifest:
    def test_comes_back_as_it_was(self, key: Key) -> None:
        given = manifest(key)
        assert unpack(pack(given, key), key, "x") == given

    def test_has_one_form(self, key: Key) -> None:
        text = pack(manifest(key), key)
        assert text == model.canonical(json.loads(text))

    def test_every_changed_byte_is_noticed(self, key: Key) -> None:
        text = pack(manifest(key), key)
        for position in range(len(text) - 1):
            broken = bytearray(text)
            broken[position] ^= 1
            with pytest.raises((Damaged, WrongKey, Refused)):
                unpack(bytes(broken), key, "x")

    def test_a_cut_one_is_damaged(self, key: Key) -> None:
        with pytest.raises(Damaged, match="is no manifest"):
            unpack(pack(manifest(key), key)[:-5], key, "x")

    def test_another_key_is_told_from_damage(self, key: Key, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.write_text("another long and random secret")
        other.chmod(0o600)
        with pytest.raises(WrongKey, match=f"was made with key {key.id}"):
            unpack(pack(manifest(key), key), Key.load(str(other)), "x")

    def test_a_later_format_is_refused(self, key: Key) -> None:
        with pytest.raises(Refused, match="format 3"):
            unpack(pack(manifest(key, format=3), key), key, "x")

    def test_an_earlier_format_is_read(self, key: Key) -> None:
        body = dataclasses.asdict(manifest(key, format=1))
        del body["fleet"]
        code = hmac.new(key.mac, model.canonical(body), hashlib.sha256).hexdigest()
        assert unpack(model.canonical({"manifest": body, "hmac": code}), key, "x") == manifest(key)

    def test_is_worth_what_its_weakest_member_is(self, key: Key) -> None:
        strong = manifest(key).members[0]
        weak = dataclasses.replace(strong, consistency="crash")
        assert manifest(key, members=(strong, weak)).consistency == "crash"

    def test_holds_no_secret(self, key: Key) -> None:
        assert SECRET not in pack(manifest(key), key).decode() + repr(key)


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [("short", 0o600, "5 characters"), (SECRET, 0o644, "make it 0600"), (None, 0o600, "No such file")],
)
def test_a_key_that_does_not_protect_is_refused(tmp_path: Path, content: str | None, mode: int, words: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(WrongKey, match=words):
        Key.load(str(path))


@pytest.mark.parametrize("text", ["", "../x", "a/b", "a..b", "-x", "x" * 64, "a b"])
def test_what_cannot_name_a_set_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        model.check_id(text)


@pytest.mark.parametrize(("text", "words"), [("noon", "is no time"), ("2026-01-01T00:00:00", "has no time zone")])
def test_a_time_must_be_one_moment(text: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        parse_time(text)


def test_times_are_compared_as_moments() -> None:
    assert parse_time("2026-01-01T01:00:00+01:00") == parse_time("2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"type": "tapes"}, "'tapes' is none of"),
        ({"type": "folder"}, "path: missing"),
        ({"type": "folder", "path": 1}, "path: 1 is no str"),
        ({"type": "folder", "path": "/x", "mode": "fast"}, "mode: no such key"),
    ],
)
def test_a_wrong_announcement_is_refused(place: Place, entry: dict[str, Any], words: str) -> None:
    (place.root / "backup.d" / "three.json").write_text(json.dumps([entry]))
    with pytest.raises(Refused, match=words):
        place.engine()


class TestTake:
    def test_a_set_is_sealed_and_listed(self, place: Place) -> None:
        made = place.engine().take("first", reason="test")
        assert [member.source for member in made.members] == ["one", "two"]
        assert place.engine().catalogue.all() == [made]
        assert (made.state, made.reason, made.consistency) == ("sealed", "test", "crash")
        assert place.status()["set"] == "first"
        assert 'vmfleet_backup_last_run_failed{repository="repository"} 0.0\n' in place.metrics()

    def test_nothing_is_ever_overwritten(self, place: Place) -> None:
        place.engine().take("first")
        with pytest.raises(Refused, match="never overwritten"):
            place.engine().take("first")
        assert place.stored() == ["one-first", "two-first"]

    def test_all_members_or_none(self, place: Place) -> None:
        place.engine().take("first")
        place.announce(two="copy")
        with pytest.raises(EngineFailed, match="two breaks at copy"):
            place.engine().take("second")
        assert [entry.id for entry in place.engine().catalogue.all()] == ["first"]
        assert place.engine().catalogue.ids("copying") == []
        assert place.stored() == ["one-first", "two-first"]
        status = place.status()
        assert (status["set"], status["failed"]) == ("first", "two breaks at copy")
        assert 'vmfleet_backup_last_run_failed{repository="repository"} 1.0\n' in place.metrics()

    def test_a_full_disk_is_told_and_leaves_no_trace(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(source: Folder, set_id: str, work: dict[str, Any]) -> dict[str, Any]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/spool/one")

        place.engine().take("first")
        monkeypatch.setattr(Folder, "mark", full)
        with pytest.raises(HostFailed, match=r"^/spool/one: No space left on device$") as told:
            place.engine().take("second")
        assert told.value.code == 74
        assert place.status()["failed"] == str(told.value)
        assert place.stored() == ["one-first", "two-first"]

    def test_what_cannot_begin_leaves_no_trace(self, place: Place) -> None:
        place.announce(two="plan")
        with pytest.raises(EngineFailed):
            place.engine().take("first")
        assert place.stored() == []

    def test_one_run_at_a_time(self, place: Place) -> None:
        with place.engine().run(), pytest.raises(Busy):
            place.engine().take("first")

    def test_a_repository_that_is_not_there_is_not_made(self, place: Place) -> None:
        (place.root / "repository").rmdir()
        with pytest.raises(Unavailable, match="mount or make"):
            place.engine().take("first")
        assert "mount or make" in place.status()["failed"]
        assert not (place.root / "repository").exists()

    def test_an_estimate_changes_nothing(self, place: Place) -> None:
        assert [entry["size"] for entry in place.engine().estimate()] == [9, 9]
        assert place.stored() == []

    def test_nothing_to_save_is_an_error(self, place: Place) -> None:
        shutil.rmtree(place.root / "backup.d")
        with pytest.raises(Refused, match="no role of this host"):
            place.engine().take("first")


STEPS = ("hold", "copy", "fence", "mark", "release", "finish", "seal")


def part(place: Place, attempt: str = "a", wait: float = 0.0) -> Part:
    return Part(place.engine(), attempt, wait)


def steps(place: Place, upto: str = "seal", lease: float = 60.0) -> None:
    """Takes the steps of a part of set ``both`` up to one of them."""
    for step in STEPS[: STEPS.index(upto) + 1]:
        if step == "hold":
            part(place).hold("both", full=False, reason="test", lease=lease)
        elif step == "fence":
            part(place).fence(5)
        elif step == "seal":
            part(place).seal(["db1", "cache1"])
        else:
            getattr(part(place), step)()


class TestFleet:
    def test_a_part_is_sealed_and_then_noted_as_complete(self, place: Place) -> None:
        steps(place)
        made = place.engine().catalogue.load("both")
        assert (made.consistency, made.reason, made.fleet["complete"]) == ("fenced", "test", "")
        assert made.fleet["hosts"] == ["cache1", "db1"]
        assert made.began < made.fleet["began"] <= made.fleet["ended"] < made.sealed
        assert part(place).complete("both").fleet["complete"] > made.sealed
        assert not part(place).discard("both"), "all the others count on it"
        place.engine().restore("both", set_of="a")

    @pytest.mark.parametrize("upto", STEPS[:-1])
    def test_other_runs_wait_until_the_last_step(self, place: Place, upto: str) -> None:
        steps(place, upto)
        with pytest.raises(Busy):
            place.engine().take("other")
        with pytest.raises(Busy):
            part(place, "b").hold("other", full=False, reason="", lease=60)
        assert part(place).discard("both")
        assert not part(place).discard("both")
        assert place.engine().take("other").id == "other"
        assert place.stored() == ["one-other", "two-other"]

    @pytest.mark.parametrize("upto", STEPS[:-1])
    def test_nothing_is_left_of_one_that_nobody_ends(self, place: Place, upto: str) -> None:
        steps(place, upto, lease=0.0)
        place.engine().take("other")
        assert place.stored() == ["one-other", "two-other"]
        assert not list(place.root.glob("*.fence"))
        with pytest.raises(Refused, match="not held for a"):
            part(place).copy()
        assert place.engine().catalogue.ids() == ["other"]

    @pytest.mark.parametrize("step", sorted(AFTER))
    def test_one_that_is_killed_leaves_nothing(self, place: Place, step: str) -> None:
        steps(place, STEPS[STEPS.index(step) - 1], lease=0.0)
        call = {"seal": "seal(['db1'])", "fence": "fence(5)"}.get(step, f"{step}()")
        killed(place, f"test_snapshot.part(place).{call}", f"fleet-{step}")
        place.engine().take("other")
        # What was sealed stays, as a set of this host alone.
        whole = ["both", "other"] if step == "seal" else ["other"]
        assert place.engine().catalogue.ids() == whole
        assert place.stored() == [f"{source}-{name}" for source in ("one", "two") for name in whole]
        assert not list(place.root.glob("*.fence"))

    def test_steps_have_an_order(self, place: Place) -> None:
        steps(place, "hold")
        with pytest.raises(Refused, match="step mark: this host is after step hold held for a"):
            part(place).mark()

    @pytest.mark.parametrize(
        ("breaks", "upto"), [("plan", "hold"), ("fence", "fence"), ("mark", "mark"), ("copy", "finish")]
    )
    def test_all_members_or_none(self, place: Place, breaks: str, upto: str) -> None:
        place.engine().take("first")
        place.announce(two=breaks)
        with pytest.raises(EngineFailed, match=f"two breaks at {breaks}"):
            steps(place, upto)
        place.announce()
        assert not list(place.root.glob("*.fence"))
        assert place.engine().take("second").id == "second"
        assert place.stored() == ["one-first", "one-second", "two-first", "two-second"]

    def test_a_fence_that_did_not_hold_is_told(self, place: Place) -> None:
        steps(place, "mark")
        place.write("more")
        assert part(place).release() == ["one was written", "two was written"]
        part(place).finish()
        assert part(place).seal(["db1"]).consistency == "barrier"

    def test_a_sealed_part_goes_with_the_others(self, place: Place) -> None:
        steps(place)
        assert not part(place, "b").discard("both")
        assert part(place).discard("both")
        assert (place.engine().catalogue.ids(), place.stored()) == ([], [])

    def test_a_set_of_another_attempt_is_not_taken_for_this_one(self, place: Place) -> None:
        steps(place)
        with pytest.raises(Refused, match="is no part of b"):
            part(place, "b").complete("both")
        with pytest.raises(Refused, match="is no part of b"):
            place.engine().choose("both", set_of="b")

    def test_a_host_with_nothing_to_save_takes_no_part(self, place: Place) -> None:
        shutil.rmtree(place.root / "backup.d")
        assert part(place).hold("both", full=False, reason="", lease=60) == []
        assert hold.read() is None


def test_sets_of_a_fleet_are_whole_or_not() -> None:
    def told(attempt: str, complete: str, consistency: str = "fenced") -> dict[str, Any]:
        fleet = {"id": attempt, "hosts": ["a", "b"], "began": attempt, "complete": complete}
        return {"id": "s", "reason": "", "consistency": consistency, "sealed": "t", "fleet": fleet}

    alone = {"id": "nightly", "fleet": {}}
    found = fleet_sets(
        {"a": [alone, told("1", ""), told("2", "t"), told("3", "")], "b": [told("2", "", "barrier"), told("3", "")]}
    )
    assert [(entry["attempt"], entry["whole"], entry["missing"]) for entry in found] == [
        ("1", False, ["b"]),
        ("2", True, []),
        ("3", False, []),
    ]
    assert found[1]["consistency"] == "barrier"


class TestVerify:
    def test_is_noted(self, place: Place) -> None:
        place.engine().take("first")
        made, proven = place.engine().verify(thorough=True)
        assert (made.state, proven["one"]) == ("verified", {"thorough": True})
        assert place.engine().catalogue.load("first").verified == place.status()["verified"]

    def test_damage_is_told_and_noted(self, place: Place) -> None:
        place.engine().take("first")
        (place.root / "repository/data/two-first").unlink()
        with pytest.raises(Damaged, match="first is gone"):
            place.engine().verify("first")
        assert place.engine().catalogue.load("first").state == "sealed"
        assert place.status()["failed"].startswith("set first is not sound: ")

    def test_what_keeps_it_from_being_proven_is_not_said_of_the_data(self, place: Place) -> None:
        place.engine().take("first")
        place.announce(two="verify")
        with pytest.raises(EngineFailed):
            place.engine().verify("first")
        assert place.status()["failed"] == "set first could not be proven: two breaks at verify"


class TestRemove:
    def test_takes_only_what_is_its_own(self, place: Place) -> None:
        for name in ("first", "second"):
            place.engine().take(name)
        assert place.engine().remove(["first", "nonesuch"]) == ["first"]
        assert place.stored() == ["one-second", "two-second"]

    def test_never_the_last_proven_one(self, place: Place) -> None:
        place.engine().take("first")
        place.engine().verify("first")
        place.engine().take("second")
        with pytest.raises(Refused, match="last set that was proven"):
            place.engine().remove(["first"])
        assert len(place.engine().catalogue.all()) == 2

    def test_nothing_goes_while_a_manifest_cannot_be_read(self, place: Place) -> None:
        for name in ("first", "second"):
            place.engine().take(name)
        (place.root / "repository/catalogue/db1/second.json").write_text("{}")
        with pytest.raises(Damaged):
            place.engine().remove(["first"])
        assert len(place.stored()) == 4


class TestPrune:
    def test_takes_what_no_rule_keeps(self, place: Place) -> None:
        for name in ("first", "second", "third"):
            place.engine().take(name)
        judged = place.engine(last=2).judge()
        assert judged == {"first": [], "second": ["of the last 2"], "third": ["of the last 2", "the newest"]}
        assert len(place.engine().catalogue.ids()) == 3
        assert place.engine(last=2).prune() == judged
        assert place.engine().catalogue.ids() == ["second", "third"]
        assert place.stored() == ["one-second", "one-third", "two-second", "two-third"]
        assert all(place.engine(last=2).prune().values())

    def test_without_rules_all_stay(self, place: Place) -> None:
        place.engine().take("first")
        with pytest.raises(Refused, match="backup_keep"):
            place.engine().judge()
        assert all(place.engine().prune().values())

    def test_after_a_new_set_and_never_after_none(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cli, "read_settings", lambda: place.settings(last=1))
        assert cli.main(["snapshot", "first", "--prune"]) == 0
        place.announce(two="copy")
        assert cli.main(["snapshot", "second", "--prune"]) == 70
        assert place.engine().catalogue.ids() == ["first"]
        place.announce()
        assert cli.main(["snapshot", "third", "--prune"]) == 0
        assert place.engine().catalogue.ids() == ["third"]

    def test_a_killed_one_is_finished_by_the_next_run(self, place: Place) -> None:
        for name in ("first", "second", "third"):
            place.engine().take(name)
        killed(place, "place.engine(last=1).prune()", "forgotten")
        assert place.engine().catalogue.ids() == ["second", "third"]
        assert "one-first" in place.stored()
        with place.engine().run():
            pass
        assert place.stored() == ["one-second", "one-third", "two-second", "two-third"]
        assert place.engine().catalogue.ids("copying") == []

    def test_one_that_cannot_be_read_keeps_all(self, place: Place) -> None:
        for name in ("first", "second"):
            place.engine().take(name)
        (place.root / "repository/catalogue/db1/second.json").write_text("{}")
        with pytest.raises(Damaged):
            place.engine(last=1).prune()
        assert len(place.stored()) == 4
        assert place.status()["failed"].startswith("pruning: ")


class TestSeveralRepositories:
    @pytest.fixture(autouse=True)
    def remote(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(cli, "read_settings", lambda: place.settings(last=1))
        folder = place.root / "remote"
        folder.mkdir()
        return folder

    def test_each_has_sets_of_its_own(self, place: Place) -> None:
        place.engine().take("first")
        place.engine("remote").take("second")
        assert [place.engine(name).catalogue.ids() for name in ("repository", "remote")] == [["first"], ["second"]]
        with pytest.raises(Refused, match="'tape' is none of those that this host has: repository, remote"):
            place.engine("tape")

    def test_the_first_is_meant_where_none_is_named(self, place: Place) -> None:
        assert cli.main(["snapshot", "first"]) == 0
        assert cli.main(["--repository", "remote", "restore", "first"]) == 66
        assert not place.stored("remote")

    def test_all_get_a_set_of_the_same_name(self, place: Place, capsys: Any) -> None:
        assert cli.main(["--repository", "all", "--json", "snapshot"]) == 0
        first, second = json.loads(capsys.readouterr().out)
        assert (first["repository"], second["repository"]) == ("repository", "remote")
        assert first["id"] == second["id"]
        assert cli.main(["--repository", "all", "restore", first["id"]]) == 64

    def test_one_that_fails_keeps_nothing_from_the_others(self, place: Place, remote: Path) -> None:
        for name in ("repository", "remote"):
            place.engine(name).take("former")
        (place.root / "repository").rename(place.root / "away")
        assert cli.main(["--repository", "all", "snapshot", "new", "--prune"]) == 69
        (place.root / "away").rename(place.root / "repository")
        assert [place.engine(name).catalogue.ids() for name in ("repository", "remote")] == [["former"], ["new"]]
        assert (place.status()["set"], place.status("remote")["set"]) == ("former", "new")
        assert place.status()["failed"]
        assert not place.status("remote")["failed"]
        assert 'vmfleet_backup_last_run_failed{repository="repository"} 1.0\n' in place.metrics()
        assert 'vmfleet_backup_last_run_failed{repository="remote"} 0.0\n' in place.metrics()

    def test_a_restore_is_ended_without_its_repository(self, place: Place, remote: Path) -> None:
        place.engine("remote").take("first")
        place.write("second")
        place.engine("remote").restore("first")
        shutil.rmtree(remote)
        assert place.engine("remote").conclude(keep=False) is not None
        assert place.read() == ["second", "second"]


class TestRestore:
    def test_former_data_stay_until_commit(self, place: Place) -> None:
        place.engine().take("first")
        place.write("second")
        assert place.engine().restore("first")["proven"] == {"one": {"staged": True}, "two": {"staged": True}}
        assert place.read() == ["first", "first"]
        assert (place.root / "one.former").read_text() == "one second"
        with pytest.raises(Refused, match="neither committed nor undone"):
            place.engine().restore("first")
        assert place.engine().conclude(keep=True) is not None
        assert not (place.root / "one.former").exists()
        assert place.engine().conclude(keep=True) is None

    def test_is_undone(self, place: Place) -> None:
        place.engine().take("first")
        place.write("second")
        place.engine().restore("first")
        place.engine().conclude(keep=False)
        assert place.read() == ["second", "second"]

    @pytest.mark.parametrize("step", ["stage", "swap"])
    def test_a_failure_puts_all_back(self, place: Place, step: str) -> None:
        place.engine().take("first")
        place.write("second")
        place.announce(two=step)
        with pytest.raises(EngineFailed):
            place.engine().restore("first")
        assert place.read() == ["second", "second"]
        assert place.engine().pending() is None
        assert not list(place.root.glob("*.staged"))

    def test_what_cannot_be_had_is_refused(self, place: Place) -> None:
        with pytest.raises(NotFound, match="no set at all"):
            place.engine().restore()
        place.engine().take("first")
        with pytest.raises(NotFound, match="no set second; the newest are first"):
            place.engine().restore("second")
        with pytest.raises(Refused, match="before the first"):
            place.engine().restore(target=Target(time="2020-01-01T00:00:00Z"))
        with pytest.raises(NotFound, match="has no member of source three"):
            place.engine().restore(names=["three"])
        assert place.engine().pending() is None


FAIL_POINTS = ["begun", "copied-folder", "seal", "sealed"]
RESTORE_POINTS = ["restore-staging", "restore-swapping", "swapped-folder", "restore-swapped"]
KILLED = """
import sys
sys.path[:0] = {path!r}
import test_snapshot
from pathlib import Path
place = test_snapshot.Place(Path(sys.argv[1]))
test_snapshot.redirect(place.root)
{call}
"""


def killed(place: Place, call: str, point: str) -> None:
    """Runs it in a process of its own that is killed at a point."""
    code = KILLED.format(path=[str(Path(__file__).parent), *sys.path], call=call)
    done = subprocess.run(
        [sys.executable, "-c", code, str(place.root)], env={**os.environ, "VMFLEET_FAIL_AT": point}, timeout=60
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("point", FAIL_POINTS)
def test_a_killed_run_leaves_a_whole_set_or_none(place: Place, point: str) -> None:
    place.engine().take("first")
    killed(place, "place.engine().take('second')", point)
    whole = [entry.id for entry in place.engine().catalogue.all()]
    assert whole == (["first", "second"] if point == "sealed" else ["first"])
    place.engine().take("third")
    assert [entry.id for entry in place.engine().catalogue.all()] == [*whole, "third"]
    assert place.stored() == sorted(f"{source}-{name}" for source in ("one", "two") for name in [*whole, "third"])
    assert place.engine().catalogue.ids("copying") == []


@pytest.mark.parametrize("point", RESTORE_POINTS)
def test_a_killed_restore_is_undone_or_complete(place: Place, point: str) -> None:
    place.engine().take("first")
    place.write("second")
    killed(place, "place.engine().restore('first')", point)
    if point == "restore-swapped":
        assert place.read() == ["first", "first"]
        assert place.engine().pending() is not None
        return
    with place.engine().run():
        pass
    assert place.read() == ["second", "second"]
    assert not list(place.root.glob("*.staged"))
    place.engine().restore("first")
    assert place.read() == ["first", "first"]


def test_a_killed_commit_is_finished(place: Place) -> None:
    place.engine().take("first")
    place.write("second")
    place.engine().restore("first")
    killed(place, "place.engine().conclude(keep=True)", "restore-committing")
    # No way back, also when it is asked for: of the former data a part may be gone.
    assert place.engine().conclude(keep=False) is None
    assert place.read() == ["first", "first"]
    assert not list(place.root.glob("*.former"))


def test_every_point_of_the_engine_is_tried() -> None:
    text = Path(engine.__file__).read_text()
    assert text.count("fail_point(") == 9
    # One of them is the definition, those of pruning and archives are tried elsewhere, and another one stands for all
    # phases of a restore.
    assert len(FAIL_POINTS + RESTORE_POINTS) == 8


def test_the_command_tells_failures_apart(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(cli, "read_settings", place.settings)
    assert cli.main(["snapshot", "first"]) == 0
    assert cli.main(["snapshot", "first"]) == 64
    assert cli.main(["restore", "second"]) == 66
    assert cli.main(["commit"]) == 64
    capsys.readouterr()
    assert cli.main(["restore", "first"]) == 0
    assert "say --yes" in capsys.readouterr().out
    assert cli.main(["restore", "first", "--yes"]) == 0
    assert cli.main(["undo"]) == 0
    capsys.readouterr()
    assert cli.main(["--json", "list"]) == 0
    assert [entry["id"] for entry in json.loads(capsys.readouterr().out)] == ["first"]
    (place.root / "key").chmod(0o644)
    assert cli.main(["list"]) == 77


def test_the_catalogues_of_hosts_are_apart(place: Place) -> None:
    made = place.engine().take("first")
    other = Catalogue(open_repository(place.settings()["repositories"][0]), "db2")
    assert made.id not in other.ids()
    with pytest.raises(NotFound, match="none at all"):
        other.load("first")


class TestWhereARecoveryBegins:
    """Copies a, b on timeline 1; a restore to LSN 0/400 began timeline 2, with copy d; c was made on 1 after that."""

    COPIES = (("a", 1, "0/100"), ("b", 1, "0/300"), ("c", 1, "0/500"), ("d", 2, "0/600"))

    @pytest.fixture
    def cluster(self, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Physical:
        data = tmp_path / "17"
        (data / "pg_wal").mkdir(parents=True)
        (data / "pg_wal" / "00000002.history").write_text("1\t0/400\tbefore 2026\n")
        options = postgresql.Options("17", "main", 5432, "primary", str(data), "/etc")
        cluster = Physical("postgresql", options, place.engine().context)
        monkeypatch.setattr(
            cluster, "_info", lambda: {"backup": [{"label": label, "info": {"size": 1}} for label, _, _ in self.COPIES]}
        )
        monkeypatch.setattr(cluster, "_timeline", lambda system: 2)
        return cluster

    def choose(self, cluster: Physical, target: Target) -> dict[str, Any]:
        members = [
            Member("postgresql", "postgresql", "x", label, "application", "t", f"2026-01-0{day}T00:00:00Z", 1, 1, {},
                   {"timeline": timeline, "lsn_stop": lsn, "system": "7", "point": f"vmfleet-{label}"})
            for day, (label, timeline, lsn) in enumerate(self.COPIES, start=1)
        ]  # fmt: skip
        return cluster.choose(members[1], members, target)

    @pytest.mark.parametrize(
        ("target", "label"),
        [
            (Target(time="2026-01-05T00:00:00Z"), "d"),
            (Target(time="2026-01-03T12:00:00Z"), "b"),
            (Target(time="2026-01-02T01:00:00+01:00"), "a"),
            (Target(lsn="0/550"), "b"),
            (Target(lsn="0/600"), "d"),
            (Target(latest=True), "d"),
            (Target(name="vmfleet-c"), "c"),
            (Target(), "b"),
        ],
    )
    def test_at_the_newest_copy_on_the_way_to_the_target(self, cluster: Physical, target: Target, label: str) -> None:
        chosen = self.choose(cluster, target)
        assert chosen["label"] == label
        assert f"--target-timeline={1 if target.of_the_set else 2}" in chosen["arguments"]

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            (Target(time="2026-01-01T00:00:00Z"), "before the end of the first copy, a"),
            (Target(lsn="0/FF"), "before the end of the first copy, a"),
            (Target(lsn="100"), "is no LSN"),
            (Target(database="shop"), "whole clusters"),
        ],
    )
    def test_what_cannot_be_had_is_refused(self, cluster: Physical, target: Target, words: str) -> None:
        with pytest.raises(Refused, match=words):
            self.choose(cluster, target)

    def test_data_of_an_unknown_restore_are_not_touched(self, cluster: Physical) -> None:
        Path(f"{cluster.options.data_directory}.before-restore").mkdir()
        with pytest.raises(Refused, match="move it away"):
            self.choose(cluster, Target(latest=True))


def test_the_role_installs_the_whole_engine() -> None:
    listed = yaml.safe_load((ROOT / "roles/backup/vars/main.yml").read_text())["__backup_engine_files"]
    utils = ROOT / "plugins/module_utils"
    wanted = [utils / "_durable.py", utils / "_host.py", *(utils / "_snapshot").glob("*.py")]
    assert sorted(listed) == sorted(str(path.relative_to(utils)) for path in wanted)
    for path in wanted:
        assert "ansible" not in "".join(line for line in path.read_text().splitlines() if "import" in line), path


@pytest.mark.parametrize(
    ("first", "last", "size", "names"),
    [
        ("000000010000000000000003", "000000010000000000000003", 16 << 20, ["000000010000000000000003"]),
        (
            "0000000200000001000000FE", "000000020000000200000001", 16 << 20,
            [
                "0000000200000001000000FE", "0000000200000001000000FF",
                "000000020000000200000000", "000000020000000200000001",
            ],
        ),
        (
            "000000010000000000000003", "000000010000000100000000", 1 << 30,
            ["000000010000000000000003", "000000010000000100000000"],
        ),
    ],
)  # fmt: skip
def test_the_log_that_a_copy_needs(first: str, last: str, size: int, names: list[str]) -> None:
    assert postgresql._segments(first, last, size) == names
