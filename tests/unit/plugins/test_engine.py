"""Functions of the collection are called on a host with all that they import, and compiled once."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.vmfleet.ops.plugins.plugin_utils import _engine


class Here:
    """An action whose host is this machine."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def _compute_environment_string(self) -> str:
        return "SEEN=yes"

    def _low_level_execute_command(self, command: str, in_data: bytes) -> dict[str, Any]:
        self.commands.append(command)
        outcome = subprocess.run(["/bin/sh", "-c", command], input=in_data, capture_output=True, check=False)
        return {"rc": outcome.returncode, "stdout": outcome.stdout.decode(), "stderr": outcome.stderr.decode()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this machine keeps engines."""
    folder = tmp_path / "engines"
    monkeypatch.setattr(_engine, "BOOT", _engine.BOOT.replace(_engine.PLACE, str(folder)))
    return folder


def look(action: Any, path: Path) -> dict[str, Any]:
    return _engine.call(action, "_records.observe", {f"file {path}": None}, sys.executable)


def test_the_answer_is_that_of_the_function(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret-name"
    path.write_text("x", encoding="utf-8")
    path.chmod(0o640)
    action = Here()
    assert look(action, path)[f"file {path}"]["mode"] == "100640"
    path.chmod(0o600)
    assert look(action, path)[f"file {path}"]["mode"] == "100600"
    # The environment of the task is there, and what is asked is not in the process list.
    assert action.commands[0].startswith(f"SEEN=yes {shlex.quote(sys.executable)} -I -c ")
    assert "secret-name" not in "".join(action.commands)


def test_code_is_compiled_once_and_for_its_owner_only(place: Path, tmp_path: Path) -> None:
    look(Here(), tmp_path)
    engines = list(place.iterdir())
    assert [engine.name for engine in engines] == [_engine.engine("_records")[0]]
    compiled = {path: path.stat().st_mtime_ns for path in place.rglob("*.pyc")}
    assert any("_records" in path.name for path in compiled)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    look(Here(), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*.pyc")} == compiled


def test_an_engine_that_was_not_used_for_a_day_goes_with_the_next_version(place: Path, tmp_path: Path) -> None:
    old, young = place / "old", place / "young"
    place.mkdir(mode=0o700)
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    look(Here(), tmp_path)
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_others_can_write_to_is_not_trusted(place: Path, tmp_path: Path) -> None:
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(AnsibleActionFail, match="can be written to by others; remove it"):
        look(Here(), tmp_path)


def test_a_host_that_gives_no_answer_is_quoted(place: Path) -> None:
    with pytest.raises(AnsibleActionFail, match=r"(?s)no answer \(rc 1\).*has no attribute 'no_such'"):
        _engine.call(Here(), "_records.no_such", {}, sys.executable)
    with pytest.raises(AnsibleActionFail, match="rc 127"):
        _engine.call(Here(), "_records.observe", {}, "/no/python3")


@pytest.mark.parametrize("module", ["_transaction", "_rollback", "_snapshot.engine", "_health.cli"])
def test_nothing_that_is_imported_is_left_out(place: Path, module: str) -> None:
    """Isolated, so that only the archive has the collection; the answer to nothing is told after the imports."""
    with pytest.raises(AnsibleActionFail, match="has no attribute 'no_such'"):
        _engine.call(Here(), f"{module}.no_such", {}, sys.executable)
