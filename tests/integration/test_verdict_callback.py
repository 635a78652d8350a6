"""Reports of a run that broke before its verdict: the callback writes them, on the oldest and the newest core too."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from controllers import CORES, controller, interpreter
from junitparser import JUnitXml
from lab import Run, play, playing

ENABLED = {"ANSIBLE_CALLBACKS_ENABLED": "record,vmfleet.ops.fleet_verdict", "ANSIBLE_SSH_RETRIES": "0"}


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Two hosts that are this machine, and one where nobody is."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    lost = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    path = tmp_path / "hosts.yml"
    path.write_text(json.dumps({"all": {"hosts": {"a": here, "b": here, "lost": lost}}}))
    return path


def verdict_play(report: Path | str, hosts: str, *between: Mapping[str, Any]) -> dict[str, Any]:
    """As verify.yml has it, with tasks before the verdict, and nothing that makes it go on without lost hosts."""
    look = {
        "vmfleet.ops.health": {"checks": [{"type": "file", "path": "/"}]},
        "register": "vmfleet_health",
        "name": "Look",
    }
    judge = {"vmfleet.ops.fleet_verdict": {"report": str(report), "baseline": "{{ nothing | default(omit) }}"}}
    tasks = [look, *between, {"block": [{"name": "Judge", "tags": ["judging"], **judge}]}]
    return {"hosts": hosts, "gather_facts": False, "tasks": tasks}


def fail(words: str, **more: Any) -> dict[str, Any]:
    return {"name": "Break", "ansible.builtin.fail": {"msg": words}, **more}


def broken(report: Path) -> tuple[dict[str, Any], str]:
    """The verdict of a broken run, and what it says of it."""
    data: dict[str, Any] = json.loads((report / "verdict.json").read_text())
    assert data["verdict"] == "crit" and not data["healthy"]
    (rule,) = [rule for rule in data["rules"] if rule["name"] == "the run came to its verdict"]
    junit = JUnitXml.fromfile(str(report / "junit.xml"))
    assert junit.failures and not any(suite.name == "" for suite in junit)
    assert "the run came to its verdict" in (report / "report.html").read_text()
    assert "vmfleet_verdict_state 2" in (report / "verdict.prom").read_text()
    return data, str(rule["message"])


def reach(data: Mapping[str, Any]) -> dict[str, str]:
    return {name: host["reach"] for name, host in data["hosts"].items()}


def a_play_breaks(inventory: Path, report: Path, command: Sequence[str] | None = None) -> Run:
    plays = [verdict_play(report, "a,b", fail("no space left"))]
    run = play(plays, inventory=inventory, env=ENABLED, command=command)
    data, words = broken(report)
    assert run.rc == 2 and "did not come to its verdict" in run.output
    # What they have told before is not lost.
    assert reach(data) == {"a": "answered", "b": "answered"} and data["hosts"]["a"]["checks"]
    assert "Break: no space left" in words
    return run


def test_a_play_breaks(inventory: Path, tmp_path: Path) -> None:
    a_play_breaks(inventory, tmp_path / "report")


@CORES
def test_a_play_breaks_on_other_cores(inventory: Path, tmp_path: Path, core: str, versions: tuple[str, ...]) -> None:
    home = controller(interpreter(*versions), f"ansible-core=={core}.*")
    run = a_play_breaks(inventory, tmp_path / "report", [str(home / "bin" / "ansible-playbook")])
    assert "DEPRECATION" not in run.output and "Traceback" not in run.output


def test_an_earlier_play_breaks(inventory: Path, tmp_path: Path) -> None:
    """A failed batch ends the playbook: the play that judges is never begun."""
    first = {"hosts": "a,b", "gather_facts": False, "tasks": [fail("{{ inventory_hostname }} is full")]}
    run = play([first, verdict_play(tmp_path, "a,b")], inventory=inventory, env=ENABLED)
    data, _words = broken(tmp_path)
    assert run.rc == 2 and reach(data) == {"a": "missing", "b": "missing"}
    assert data["hosts"]["b"]["message"] == "there is no result of its checks: Break: b is full"


def test_all_hosts_are_lost(inventory: Path, tmp_path: Path) -> None:
    run = play([verdict_play(tmp_path, "lost")], inventory=inventory, env=ENABLED)
    data, words = broken(tmp_path)
    assert run.rc == 4 and reach(data) == {"lost": "unreachable"} and "the last failure was on lost" in words


def test_ctrl_c(inventory: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    wait = {"name": "Wait", "ansible.builtin.shell": f"touch {begun}; sleep 300"}
    plays = [verdict_play(tmp_path, "a", wait)]
    with playing(plays, inventory=inventory, env=ENABLED) as (process, finish):
        deadline = time.monotonic() + 120
        while not begun.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        # The terminal sends it to the whole group.
        os.killpg(process.pid, signal.SIGINT)
        run = finish()
    data, words = broken(tmp_path)
    assert run.rc not in (0, 2), run.output
    assert reach(data) == {"a": "answered"} and words.startswith("the run was interrupted")


@pytest.mark.parametrize(
    ("options", "hosts"),
    [(["--skip-tags", "judging"], "a"), (["--limit", "b"], "a"), (["--syntax-check"], "a"), (["--list-tasks"], "a")],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_what_was_never_asked_for_is_not_reported(
    inventory: Path, tmp_path: Path, options: list[str], hosts: str
) -> None:
    run = play([verdict_play(tmp_path / "report", hosts)], inventory=inventory, env=ENABLED, options=options)
    assert run.rc == 0 and not (tmp_path / "report").exists(), run.output


def test_a_verdict_is_not_written_twice(inventory: Path, tmp_path: Path) -> None:
    """Neither a bad one, nor one that is followed by a failure."""
    bad = verdict_play(tmp_path, "a")
    bad["tasks"][0].update({"ignore_errors": True})
    bad["tasks"][0]["vmfleet.ops.health"] = {"checks": [{"type": "file", "path": "/nowhere"}]}
    run = play([bad], inventory=inventory, env=ENABLED)
    assert run.rc == 2 and "did not come to its verdict" not in run.output
    good = verdict_play(tmp_path, "a")
    good["tasks"].append(fail("after it"))
    run = play([good], inventory=inventory, env=ENABLED)
    assert run.rc == 2 and json.loads((tmp_path / "verdict.json").read_text())["verdict"] == "ok"
    assert len(json.loads((tmp_path / "history.json").read_text())["runs"]) == 2
