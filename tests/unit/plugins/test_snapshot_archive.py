"""Old files go only when they are proven to be archived. Copies are made by cp here; restic is in molecule/backup."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot import engine
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.archive import Archive
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.engine import Engine
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import (
    Damaged,
    EngineFailed,
    NotFound,
    Refused,
)

DAY = 86400


class Copies:
    """What :class:`Restic` does, into a folder."""

    version = "cp 1"

    def __init__(self, place: Path) -> None:
        self.place = place
        self.fails = self.spoils = False

    def save(
        self, set_id: str, paths: Sequence[str], option: str, listing: str, *, wrapper: Sequence[str]
    ) -> dict[str, Any]:
        assert (option, list(wrapper)) == ("--files-from-raw", [])
        if self.fails:
            raise EngineFailed("no copy")
        (self.place / set_id).mkdir()
        names = [name[1:] for name in Path(listing).read_bytes().split(b"\0") if name]
        command: list[Any] = ["cp", "-a", "--parents", "-t", self.place / set_id, *names]
        subprocess.run(command, cwd="/", check=True, timeout=60)
        return {"snapshot_id": set_id, "total_bytes_processed": 1, "data_added": 1}

    def restore(self, label: str, target: str, *options: str) -> None:
        subprocess.run(["cp", "-a", f"{self.place / label}/.", target], check=True, timeout=60)
        if self.spoils:
            spoilt = Path(f"{target}{self.place.parent}/tree/old")
            spoilt.write_text("OLD")
            os.utime(spoilt, ns=(0, OLD_NS))

    def snapshots(self) -> list[dict[str, Any]]:
        return [{"id": path.name} for path in self.place.iterdir()]

    def check(self, read_all: bool) -> None:
        return

    def keep(self, labels: Sequence[str]) -> None:
        for path in self.place.iterdir():
            if path.name not in labels:
                shutil.rmtree(path)


OLD_NS = int(time.time() - 100 * DAY) * 10**9


class Host:
    """A tree with two old files and a new one, and the archive of it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.tree = root, root / "tree"
        self.copies = Copies(root / "copies")
        self.copies.place.mkdir()
        monkeypatch.setattr(Archive, "restic", self.copies)
        for name in ("STATE", "JOURNAL", "LOCK"):
            monkeypatch.setattr(engine, name, str(root / name.lower()))
        (self.tree / "deep").mkdir(parents=True)
        for name in ("old", "deep/old", "new", "old.kept"):
            (self.tree / name).write_text(name[-3:])
            if name != "new":
                os.utime(self.tree / name, ns=(0, OLD_NS))
        (root / "key").write_text("a key of enough length")
        (root / "key").chmod(0o600)
        (root / "repository").mkdir()
        (root / "backup.d").mkdir()
        self.announce()

    def announce(self, **options: Any) -> None:
        entry = {"type": "archive", "name": "tidy", "paths": [str(self.tree)], "exclude": ["*.kept"], **options}
        (self.root / "backup.d" / "backup.json").write_text(json.dumps([entry]))

    def engine(self) -> Engine:
        entry = {"name": "main", "kind": "path", "path": str(self.root / "repository"), "keep": {"last": 1}}
        return Engine(
            {
                "host": "db1",
                "repositories": [{**entry, "key_file": str(self.root / "key")}],
                "sources": str(self.root / "backup.d"),
                "spool": str(self.root / "spool"),
            }
        )

    def has(self) -> list[str]:
        return sorted(str(path.relative_to(self.tree)) for path in self.tree.rglob("*") if path.is_file())


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


ALL = ["deep/old", "new", "old", "old.kept"]


def test_what_is_old_goes_and_as_many_are_archived(host: Host) -> None:
    (made,) = host.engine().archive()
    assert (made["archived"], made["removed"], made["left"]) == (2, 2, 0)
    assert host.has() == ["new", "old.kept"]
    (manifest,) = host.engine().catalogue.all()
    assert (manifest.id, manifest.state, manifest.is_archive) == (made["set"], "verified", True)
    assert host.engine().archive() == []


@pytest.mark.parametrize(("fault", "error"), [("fails", EngineFailed), ("spoils", Damaged)])
def test_an_archive_that_failed_leaves_everything(host: Host, fault: str, error: type[Exception]) -> None:
    setattr(host.copies, fault, True)
    with pytest.raises(error):
        host.engine().archive()
    assert host.has() == ALL
    assert host.engine().catalogue.all() == []
    assert list(host.copies.place.iterdir()) == []
    setattr(host.copies, fault, False)
    assert host.engine().archive()[0]["removed"] == 2


def test_what_changed_since_stays(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Engine.verify

    def verify(self: Engine, *arguments: Any, **options: Any) -> Any:
        proven = real(self, *arguments, **options)
        os.utime(host.tree / "old", ns=(0, OLD_NS))  # as old as before, and written again
        return proven

    monkeypatch.setattr(Engine, "verify", verify)
    (made,) = host.engine().archive()
    assert (made["archived"], made["removed"], made["left"]) == (2, 1, 1)
    assert host.has() == ["new", "old", "old.kept"]


def test_all_names_of_a_file_go(host: Host) -> None:
    os.link(host.tree / "old", host.tree / "deep" / "twin")
    (made,) = host.engine().archive()
    assert (made["archived"], made["removed"], made["left"]) == (3, 3, 0)
    assert host.has() == ["new", "old.kept"]


def test_it_is_no_set_that_saves_the_host(host: Host) -> None:
    host.engine().archive()
    with pytest.raises(NotFound):
        host.engine().catalogue.newest()
    with pytest.raises(Refused, match="anything to save"):
        host.engine().take()
    assert not list(host.root.glob("state/status-*"))


def test_pruning_goes_by_its_own_age(host: Host) -> None:
    set_id = host.engine().archive()[0]["set"]
    assert host.engine().prune() == {set_id: ["an archive"]}
    host.announce(keep_days=1)
    assert host.engine().prune() == {set_id: ["an archive"]}
    (manifest,) = host.engine().catalogue.all()
    later = host.engine()
    later.catalogue.write(dataclasses.replace(manifest, sealed="2026-01-01T00:00:00.000000Z"))
    assert later.prune() == {set_id: []}
    assert later.catalogue.all() == []
    assert list(host.copies.place.iterdir()) == []


def test_nothing_old_is_told(host: Host) -> None:
    host.announce(days=1000)
    assert host.engine().archive() == []
    with pytest.raises(Refused, match=r"nothing in .*tree is 1000 days old"):
        host.engine().take("asked", ["tidy"])
    with pytest.raises(Refused, match="no archive other; this host has tidy"):
        host.engine().archive(["other"])


class TestRestore:
    @pytest.fixture
    def archived(self, host: Host) -> str:
        set_id = str(host.engine().archive()[0]["set"])
        shutil.rmtree(host.tree / "deep")
        return set_id

    def test_comes_back_beside_what_is_there(self, host: Host, archived: str) -> None:
        host.engine().restore(archived)
        assert host.has() == ALL
        assert (host.tree / "old").stat().st_mtime_ns == OLD_NS
        host.engine().conclude(True)
        assert host.has() == ALL
        assert not list(host.root.glob("tree.*"))

    def test_is_undone(self, host: Host, archived: str) -> None:
        host.engine().restore(archived)
        (host.tree / "new").write_text("newer")
        host.engine().conclude(False)
        assert host.has() == ["new", "old.kept"]
        assert not (host.tree / "deep").exists()
        assert (host.tree / "new").read_text() == "newer"
        assert not list(host.root.glob("tree.*"))

    def test_takes_nobodys_place(self, host: Host, archived: str) -> None:
        (host.tree / "old").write_text("another")
        with pytest.raises(Refused, match=r"has 1 of the files already: old"):
            host.engine().restore(archived)
        assert (host.tree / "old").read_text() == "another"
        assert not list(host.root.glob("tree.*"))

    def test_killed_in_the_middle_is_undone(
        self, host: Host, archived: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.rename

        def rename(old: str, new: str) -> None:
            if new.endswith("tree/old"):
                raise KeyboardInterrupt
            real(old, new)

        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                host.engine().restore(archived)
        assert "deep/old" in host.has()
        with host.engine().run():
            assert host.has() == ["new", "old.kept"]
        assert host.engine().pending() is None
