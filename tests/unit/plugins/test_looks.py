"""What preflight asked for all roles is used once, and only as long as it is sure to be true."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible import constants as C
from ansible_collections.vmfleet.ops.plugins.module_utils import _probe
from ansible_collections.vmfleet.ops.plugins.module_utils._desired import STATE_DIR
from ansible_collections.vmfleet.ops.plugins.module_utils._probe import build_script, parse_answer
from ansible_collections.vmfleet.ops.plugins.plugin_utils import _looks as looks
from converge_case import RELEASES, answer, desired

SCRIPT = build_script(desired())


@pytest.fixture(autouse=True)
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    return tmp_path


def kept(host: str = "db1") -> str:
    text = f"\n@@vmfleet-preflight more\n{answer(RELEASES[0], SCRIPT)}\n@@vmfleet-preflight end\n"
    looks.keep(host, text)
    return text


def test_an_answer_serves_once_and_for_its_host() -> None:
    text = kept()
    assert looks.wanted("db1")
    assert not looks.wanted("db2")
    assert looks.take("db2", SCRIPT) is None
    assert looks.take("db1", SCRIPT) == text
    assert parse_answer(desired(), SCRIPT, text)["packages"]["hello-web"]["status"] == "installed"
    assert looks.take("db1", SCRIPT) is None


def test_another_question_gets_no_answer() -> None:
    kept()
    assert looks.take("db1", build_script(desired(packages=["nginx"]))) is None


def test_an_answer_to_an_older_version_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    kept()
    monkeypatch.setattr(_probe, "SHARED", _probe.SHARED.replace("CanReload", "CanStart"))
    assert looks.take("db1", build_script(desired())) is None


def test_an_answer_that_was_cut_short_is_none() -> None:
    text = kept()
    looks.keep("db1", text[: len(text) // 2])
    assert looks.take("db1", SCRIPT) is None


def test_a_change_anywhere_spoils_all() -> None:
    kept()
    looks.spoil()
    assert looks.take("db1", SCRIPT) is None


def test_without_preflight_there_is_nothing_to_spoil(run_folder: Path) -> None:
    looks.spoil()
    assert list(run_folder.iterdir()) == []


def test_an_old_answer_is_none(run_folder: Path) -> None:
    kept()
    for path in (run_folder / "vmfleet-looks").iterdir():
        os.utime(path, (0, 0))
    assert looks.take("db1", SCRIPT) is None


def sh(script: str, root: Path) -> str:
    """Run for real, with the host's folder elsewhere."""
    text = f'PATH="{root}/bin:$PATH"\n' + script.replace(STATE_DIR, str(root / "state"))
    return subprocess.run(["sh", "-s"], input=text, capture_output=True, text=True).stdout


def test_a_host_keeps_probes_answers_all_of_them_and_forgets_those_of_roles_that_go(run_folder: Path) -> None:
    (run_folder / "bin").mkdir()
    tool = run_folder / "bin" / "systemctl"
    tool.write_text(f'#!/bin/sh\necho "$*" >>{run_folder}/calls\nshift 4\nprintf "Names=%s\\n\\n" "$@"\n')
    tool.chmod(0o755)
    probes = {
        name: build_script(desired(name=name, files=[], packages=[], commands=[], services=[{"name": f"{name}.it's"}]))
        for name in ("one", "two")
    }
    for name, probe in probes.items():
        sh(looks.and_keep_it(probe, name, absent=False), run_folder)
    assert not (run_folder / "state").exists(), "a host without any role has nothing to keep"

    (run_folder / "state").mkdir()
    for name, probe in probes.items():
        sh(looks.and_keep_it(probe, name, absent=False), run_folder)
    folder = run_folder / "state" / "probes"
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        name: probe.replace(STATE_DIR, str(run_folder / "state")) for name, probe in probes.items()
    }
    assert {path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())} == {0o700, 0o600}
    calls = run_folder / "calls"
    calls.unlink(missing_ok=True)
    looks.keep("db1", sh(looks.ASK_ALL, run_folder))
    asked = calls.read_text().splitlines()
    assert len(asked) == 1
    assert asked[0].endswith("-- one.it's.service two.it's.service")
    for name, probe in probes.items():
        assert looks.take("db1", probe), name
    sh(looks.and_keep_it(probes["one"], "one", absent=True), run_folder)
    assert [path.name for path in folder.iterdir()] == ["two"]
