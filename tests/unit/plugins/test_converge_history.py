"""The history: committed transactions by run, the newest kept, the oldest given up first, opened again as one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils import _history, _journal
from ansible_collections.vmfleet.ops.plugins.module_utils._durable import write_durably
from ansible_collections.vmfleet.ops.plugins.module_utils._journal import Journal


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    places = ((_journal, ("TRANSACTIONS", "ORIGINALS", "GENERATION")), (_history, ("HISTORY", "TRANSACTIONS")))
    for module, names in places:
        for name in ("STATE_DIR", *names):
            path = getattr(module, name).replace("/var/lib/vmfleet", str(tmp_path / "state"))
            monkeypatch.setattr(module, name, path)
    return tmp_path / "state"


def kept(role: str, change: str) -> str | None:
    journal = Journal(role)
    journal.prepare()
    Path(journal.path("new", "secret")).write_text("x")
    journal.open({"role": role})
    return _history.keep(journal, change, {"committed": change, "before": {}, "after": {}})


def known() -> list[tuple[str, list[str]]]:
    return [(change.id, [journal.role for journal in change.journals]) for change in _history.changes()]


def test_transactions_of_a_run_are_one_change(state: Path) -> None:
    for role, change in (("web", "b-1"), ("db", "b-1"), ("web", "a-2"), ("web", "a-2")):
        assert kept(role, change) is None
    assert known() == [("b-1", ["db", "web"]), ("a-2", ["web", "web"])], "in the order of the host, not of their names"
    assert [entry["change"] for entry in _history.listed(_history.changes())] == ["a-2", "b-1"]
    assert _history.listed(_history.changes())[1]["roles"] == ["web", "db"]
    assert os.listdir(state / "transactions") == []
    for path in (state / "history").rglob("*"):
        assert path.name != "secret"
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077


def test_the_newest_are_kept() -> None:
    for number in range(12):
        kept("web", f"run-{number}")
    _history.forget(2)
    assert known() == [("run-10", ["web"]), ("run-11", ["web"])]
    kept("web", "run-12")
    assert [change for change, _roles in known()] == ["run-10", "run-11", "run-12"]
    _history.forget(0)
    assert known() == []


def test_a_change_is_opened_again_as_one(state: Path) -> None:
    kept("web", "first")
    for role in ("db", "web", "db"):
        kept(role, "second")
    before = int(_journal.read_generation())
    _history.changes()[-1].reopen()
    assert int(_journal.read_generation()) > before
    assert known() == [("first", ["web"])]
    assert _history.unfinished() == ["second"]
    roles = []
    # Killed after each of them, as it were.
    while pending := Journal.pending():
        assert pending[0].note is not None
        roles.append(pending[0].role)
        pending[0].close()
    assert roles == ["db", "web", "db"]
    assert os.listdir(state / "transactions") == []
    assert _history.unfinished() == []


@pytest.mark.parametrize(("failures", "left"), [(1, ["now"]), (2, [])])
def test_without_room_older_changes_go_and_the_commit_stands(
    state: Path, monkeypatch: pytest.MonkeyPatch, failures: int, left: list[str]
) -> None:
    kept("web", "before")
    calls = iter(range(9))

    def full(path: str, content: bytes, **options: Any) -> None:
        if next(calls) < failures:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_durably(path, content, **options)

    monkeypatch.setattr(_history, "write_durably", full)
    said = kept("web", "now")
    assert said is not None and "No space left on device" in said
    assert [change for change, _roles in known()] == left
    assert os.listdir(state / "transactions") == []
    assert Journal.pending() == []
