"""Trees, and what takes the place of a live path; restic itself is driven on real hosts, in molecule/backup."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot import frozen, restic, tree
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.beside import FORMER, STAGING, Beside
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.files import Files, Options
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.lvm import Volume
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import Key, Refused
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.repository import LocalPath
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.sources import Context


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with a file, its second name, a link, and a name that is no UTF-8."""
    live = tmp_path / "live"
    (live / "folder").mkdir(parents=True)
    (live / "file").write_text("content")
    os.link(live / "file", live / "folder" / "twin")
    (live / "link").symlink_to("file")
    with open(os.fsencode(live) + b"/\xff\n", "wb"):
        pass
    return live


def context(tmp_path: Path) -> Context:
    repository = LocalPath("main", Key("/key", "id", b"mac"), {"path": str(tmp_path / "kept" / "repository")})
    return Context("host", repository, str(tmp_path / "spool"), lambda line: None, 0, [repository.options["path"]])


class TestIndex:
    def test_survives_json(self, root: Path) -> None:
        found = tree.index(str(root))
        assert json.loads(json.dumps(found)) == found
        assert list(found) == [".", "file", "folder", "folder/twin", "link", "\udcff\n"]
        assert found["folder/twin"]["twin"] == "file"

    def test_a_copy_is_the_same(self, root: Path, tmp_path: Path) -> None:
        wanted = tree.index(str(root))
        root.rename(tmp_path / "other")
        assert tree.differences(wanted, tree.index(str(tmp_path / "other")), []) == []

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda root: (root / "file").chmod(0o600), "'file' has mode"),
            (lambda root: os.utime(root / "file", (1, 1)), "'file' has mtime"),
            (lambda root: (root / "link").unlink(), "'link' is missing"),
            (lambda root: (root / "more").touch(), "'more' should not be there"),
            (lambda root: os.truncate(root / "file", 2), "'file' has size 2 instead of 7"),
            (lambda root: (shutil.copy2(root / "file", root / "new"), (root / "new").rename(root / "folder" / "twin")),
             "'folder/twin' has twin"),
            (lambda root: ((root / "link").unlink(), (root / "link").symlink_to("x")), "'link' has target x"),
        ],
    )  # fmt: skip
    def test_every_difference_is_told(self, root: Path, change: Any, words: str) -> None:
        wanted = tree.index(str(root))
        change(root)
        told = tree.differences(wanted, tree.index(str(root)), [])
        assert any(line.startswith(words) for line in told), told

    def test_what_changed_meanwhile_may_be_anything(self, root: Path) -> None:
        marked: dict[str, list[int]] = {}
        before = tree.index(str(root), marked=marked)
        assert marked == tree.marks(str(root))
        (root / "folder" / "late").touch()
        with (root / "folder" / "twin").open("a") as handle:
            handle.write("more")
        moving = tree.changes(marked, tree.marks(str(root)))
        assert moving == ["file", "folder", "folder/late", "folder/twin"]
        (root / "folder" / "late").rename(root / "folder" / "came and went")
        assert tree.differences(before, tree.index(str(root)), moving) == []
        (root / "more").touch()
        assert "'more' should not be there" in tree.differences(before, tree.index(str(root)), moving)

    def test_what_is_left_out_is_not_looked_into(self, root: Path) -> None:
        left_out = tree.leaves_out([str(root / "folder"), "f?le"])
        assert list(tree.index(str(root), left_out)) == [".", "link", "\udcff\n"]
        assert [path for path, status in tree.walk(str(root), left_out) if status is None] == [
            str(root / "file"), str(root / "folder")
        ]  # fmt: skip


def test_mount_points_are_found() -> None:
    assert tree.mounted("/proc")[0] == "/proc"
    assert tree.mounted("/proc/self/nonesuch") == []


@pytest.mark.parametrize(
    ("device", "group", "name"),
    [("vg-lv", "vg", "lv"), ("rack--1-plain--data", "rack-1", "plain-data"), ("rack---data", "rack-", "data")],
)
def test_names_of_a_volume(device: str, group: str, name: str) -> None:
    assert frozen.named(device) == Volume(group, name)


class TestBeside:
    """Killed after each rename, and undone; without units, which are the business of systemd."""

    @pytest.mark.parametrize("existed", [True, False])
    @pytest.mark.parametrize("renames", [0, 1, 2, 3])
    def test_is_undone_from_wherever_it_was_killed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, existed: bool
    ) -> None:
        live, staged = str(tmp_path / "live"), str(tmp_path / f"live{STAGING}/deep/live")
        if existed:
            Path(live).mkdir()
            (Path(live) / "old").touch()
        places = {live: staged}
        was = Beside.choose(places)
        os.makedirs(staged)
        (Path(staged) / "new").touch()
        done: list[str] = []
        real = os.rename

        def rename(old: str, new: str) -> None:
            if len(done) == renames:
                raise KeyboardInterrupt
            done.append(new)
            real(old, new)

        monkeypatch.setattr(os, "rename", rename)
        beside = Beside(context(tmp_path), [])
        try:
            beside.swap(was, places)
        except KeyboardInterrupt:
            pass
        else:
            assert os.listdir(live) == ["new"]
        # The undo is killed at its first rename, too.
        renames = len(done)
        try:
            beside.undo(was, places)
        except KeyboardInterrupt:
            monkeypatch.setattr(os, "rename", real)
            beside.undo(was, places)
        assert sorted(os.listdir(tmp_path)) == (["live"] if existed else [])
        assert not existed or os.listdir(live) == ["old"]

    def test_commit_leaves_the_new_one_only(self, tmp_path: Path) -> None:
        live, staged = str(tmp_path / "live"), str(tmp_path / f"live{STAGING}")
        Path(live).write_text("old")
        places = {live: staged}
        was = Beside.choose(places)
        Path(staged).write_text("new")
        Beside(context(tmp_path), []).swap(was, places)
        assert Path(live + FORMER).read_text() == "old"
        Beside.commit(was)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]

    @pytest.mark.parametrize("suffix", [STAGING, FORMER])
    def test_what_it_did_not_make_it_does_not_take(self, tmp_path: Path, suffix: str) -> None:
        (tmp_path / f"live{suffix}").mkdir()
        with pytest.raises(Refused, match="no restore is open that made it"):
            Beside.choose({str(tmp_path / "live"): ""})

    def test_a_mount_point_is_refused(self) -> None:
        with pytest.raises(Refused, match="can only be swapped without it"):
            Beside.choose({"/proc": ""})


@pytest.mark.parametrize(
    ("paths", "exclude", "words"),
    [
        ([], [], "paths: has none"),
        (["srv"], [], "'srv' is no plain absolute path"),
        (["/"], [], "'/' is no plain absolute path"),
        (["{root}/../live"], [], "is no plain absolute path"),
        (["{root}", "{root}/folder"], [], "/folder is in .*live already"),
        (["{root}"], ["/elsewhere"], "/elsewhere is in none of"),
        (["{root}"], ["{root}"], "is in none of"),
        (["{root}"], ["[ab]"], "neither an absolute path nor a name"),
        (["{root}"], ["a/b"], "neither an absolute path nor a name"),
        (["{root}/nonesuch"], [], "nonesuch is not there"),
        (["{root}/link"], [], "is a link; name what it leads to"),
        (["/proc"], [], "is a mount point"),
        (["{parent}"], ["{parent}/spool"], "spool; name what is beside that"),
        (["{parent}/kept"], [], "repository is a mount point or of the backup itself"),
    ],
)
def test_what_cannot_be_restored_is_not_saved(root: Path, paths: list[str], exclude: list[str], words: str) -> None:
    (root.parent / "kept").mkdir()
    paths, exclude = ([text.format(root=root, parent=root.parent) for text in texts] for texts in (paths, exclude))
    with pytest.raises(Refused, match=words):
        Files("files", Options(paths, exclude), context(root.parent)).plan()


def test_what_is_excluded_is_not_counted_and_stays(root: Path) -> None:
    source = Files("files", Options([str(root)], ["file", "twin"]), context(root.parent))
    whole = Files("files", Options([str(root)]), context(root.parent)).estimate()
    assert whole - source.estimate() == 14
    new = root.parent / "new"
    (new / "folder").mkdir(parents=True)
    os.utime(new, (1, 1))
    source._carry(str(root), str(new))
    assert (new / "file").read_text() == (new / "folder" / "twin").read_text() == "content"
    assert new.stat().st_mtime == 1
    assert not (root / "file").exists()


@pytest.mark.parametrize(
    ("items", "gone"),
    [
        (["/nonesuch/a", "/nonesuch/b"], True),
        (["/nonesuch/a", "/etc"], False),
        (["/nonesuch/\ufffd"], False),
        ([], False),
    ],
)
def test_a_file_that_could_not_be_read_is_told_from_one_that_went_away(items: list[str], gone: bool) -> None:
    lines = [json.dumps({"message_type": "error", "error": {}, "during": "archival", "item": item}) for item in items]
    assert restic._only_gone("\n".join(["Warning: incomplete", *lines])) == gone


@pytest.fixture
def reader(tmp_path: Path) -> Any:
    """restic as one that reads the patterns it is given, and nothing else."""
    (tmp_path / "spool").mkdir(exist_ok=True)

    def read(options: list[str]) -> subprocess.Popen[str]:
        (option,) = options
        return subprocess.Popen(["cat", option.partition("=")[2]], stdout=subprocess.PIPE, text=True)

    return read


def test_restic_reads_nothing_before_the_work_is_done(tmp_path: Path, reader: Any) -> None:
    may_end, ended = threading.Event(), []

    def work() -> None:
        may_end.wait(10)
        ended.append(True)

    with restic.Restic(context(tmp_path), "files").after(work) as options:
        first = reader(options)
        with pytest.raises(subprocess.TimeoutExpired):
            first.communicate(timeout=0.2)
        may_end.set()
        assert first.communicate(timeout=10) == ("", None)
        # And again, as where restic had to make its repository first.
        assert reader(options).communicate(timeout=10) == ("", None)
    assert ended
    assert not list((tmp_path / "spool").iterdir())


def test_work_that_fails_keeps_nobody_waiting(tmp_path: Path, reader: Any) -> None:
    def work() -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"), restic.Restic(context(tmp_path), "files").after(work) as options:
        reader(options).communicate(timeout=10)
    # restic has ended before it read anything.
    with restic.Restic(context(tmp_path), "files").after(lambda: None):
        pass
