"""The journal: copies that nobody else can change, one commit point, and generations."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils import _journal
from ansible_collections.vmfleet.ops.plugins.module_utils._journal import Journal, keep_copy, put_back, same


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("STATE_DIR", "TRANSACTIONS", "ORIGINALS", "GENERATION"):
        path = getattr(_journal, name).replace("/var/lib/vmfleet", str(tmp_path / "state"))
        monkeypatch.setattr(_journal, name, path)
    return tmp_path / "state"


def opened(role: str = "web") -> Journal:
    journal = Journal(role)
    journal.prepare()
    journal.open({"files": []})
    return journal


def test_a_copy_is_not_a_second_name(tmp_path: Path) -> None:
    file, copy = tmp_path / "file", tmp_path / "deep" / "copy"
    file.write_text("old")
    file.chmod(0o604)
    os.setxattr(file, "user.note", b"kept")
    keep_copy(str(file), str(copy))
    assert same(str(file), str(copy))
    assert os.getxattr(copy, "user.note") == b"kept"
    with file.open("a") as handle:
        handle.write(" and new")
    assert copy.read_text() == "old"
    assert not same(str(file), str(copy))
    put_back(str(copy), str(file))
    assert file.read_text() == "old"
    assert stat.S_IMODE(file.stat().st_mode) == 0o604
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "file"]


def test_links_are_kept_as_links(tmp_path: Path) -> None:
    link, copy = tmp_path / "link", tmp_path / "copy"
    link.symlink_to("nowhere")
    keep_copy(str(link), str(copy))
    assert same(str(link), str(copy))
    link.unlink()
    link.write_text("a file now")
    assert not same(str(link), str(copy))
    put_back(str(copy), str(link))
    assert os.readlink(link) == "nowhere"


def test_mode_and_owner_count_as_difference(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_text("x")
    assert same(str(one), str(two))
    two.chmod(0o600)
    assert not same(str(one), str(two))
    assert not same(str(one), str(tmp_path / "missing"))


def test_every_begin_and_end_raises_the_generation(state: Path) -> None:
    assert _journal.read_generation() == "0"
    seen = []
    for _time in range(3):
        journal = opened()
        seen.append(int(_journal.read_generation()))
        journal.close()
        seen.append(int(_journal.read_generation()))
    assert seen == [1, 2, 3, 4, 5, 6]
    assert (state / "generation").stat().st_size == 21


def test_a_generation_that_makes_no_sense_is_replaced(state: Path) -> None:
    state.mkdir()
    (state / "generation").write_bytes(b"\0" * 21)
    _journal.raise_generation()
    assert int(_journal.read_generation()) == 1


def test_only_an_open_journal_is_pending(state: Path) -> None:
    opened("open").mark("swap")
    unready = Journal("unready")
    unready.prepare()
    opened("done").close()
    (state / "transactions" / ".half.done").mkdir()
    pending = Journal.pending()
    assert [journal.role for journal in pending] == ["open"]
    assert pending[0].data == {"files": []}
    assert pending[0].reached("swap")
    assert not pending[0].reached("services")
    assert sorted(os.listdir(state / "transactions")) == ["open"]


def test_only_root_sees_a_transaction(state: Path) -> None:
    opened()
    for path in ("transactions", "transactions/web", "transactions/web/old", "originals"):
        assert stat.S_IMODE((state / path).stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "transactions/web/journal.json").stat().st_mode) == 0o600
