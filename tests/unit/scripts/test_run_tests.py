"""The runner of the tests must not call an empty run a success."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import run_tests

ROOM = run_tests.Room(threading.Semaphore(2), threading.Event())


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    monkeypatch.setattr(run_tests, "OUTPUT", tmp_path)
    return tmp_path


def write(project: Path, source: str) -> None:
    (project / "tests" / "unit").mkdir(parents=True)
    (project / "tests" / "unit" / "test_it.py").write_text(source)


def test_counts_what_ran(project: Path) -> None:
    write(
        project,
        "import pytest\n"
        "def test_one(): pass\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_two(n): assert n == 1\n"
        "@pytest.mark.skip\n"
        "def test_three(): pass\n",
    )
    tally = run_tests.pytest("unit", "-p", "no:cacheprovider")
    assert (tally.passed, tally.failed, tally.skipped) == (2, 1, 1)
    assert tally.failures == ["unit: tests.unit.test_it.test_two[2]: assert 2 == 1"]


@pytest.mark.parametrize("source", ["", "import no_such_module\n"])
def test_a_stage_without_tests_fails(project: Path, source: str) -> None:
    write(project, source)
    tally = run_tests.pytest("unit", "-p", "no:cacheprovider")
    assert (tally.passed, tally.failed) == (0, 1)


def test_missing_stages_fail(project: Path) -> None:
    assert run_tests.pytest("integration").failed == 1
    assert run_tests.molecule([], ROOM).failed == 1
    assert run_tests.molecule(["nowhere"], ROOM).failed == 1


def scenario_that(project: Path, output: str, code: int) -> str:
    (project / "molecule" / "redis").mkdir(parents=True)
    (project / "molecule" / "redis" / "molecule.yml").touch()
    script = project / "scripts" / "molecule"
    script.parent.mkdir()
    script.write_text(f"#!{sys.executable}\nprint({output!r})\nraise SystemExit({code})\n")
    script.chmod(0o755)
    return "redis"


STEPS = [f"redis ➜ \x1b[33m{step}\x1b[0m: Executed: Successful" for step in ("converge", "idempotence", "verify")]


def test_a_scenario_passes_when_all_its_steps_ran(project: Path) -> None:
    scenario_that(project, "\n".join(STEPS), 0)
    assert run_tests.molecule([], ROOM) == run_tests.Tally(passed=1)


@pytest.mark.parametrize(("output", "code"), [("\n".join(STEPS), 1), ("\n".join(STEPS[:2]), 0), ("", 0)])
def test_a_scenario_fails_otherwise(project: Path, output: str, code: int) -> None:
    scenario_that(project, output, code)
    tally = run_tests.molecule([], ROOM)
    assert (tally.passed, tally.failed) == (0, 1)


def test_last_line_and_exit_code(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(project, "def test_one(): pass\n")
    monkeypatch.setattr(sys, "argv", ["test", "--only", "unit"])
    assert run_tests.main() == 0
    assert capfd.readouterr().out.splitlines()[-1] == "1 passed, 0 failed"
    (project / "tests" / "unit" / "test_it.py").write_text("")
    assert run_tests.main() == 1
    assert capfd.readouterr().out.splitlines()[-1] == "0 passed, 1 failed"


def test_lint_that_fails_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_options: subprocess.CompletedProcess([], 1, "", ""))
    assert run_tests.static("lint").failed == 1


def test_scenarios_with_load_wait_for_quiet_and_run_alone(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("haproxy", "nginx", "redis", "tls"):
        (project / "molecule" / name).mkdir(parents=True)
        (project / "molecule" / name / "molecule.yml").touch()
    room = run_tests.Room(threading.Semaphore(1), threading.Event())
    running: list[str] = []
    beside: dict[str, list[str]] = {}

    def scenario(name: str) -> tuple[str, str, float]:
        running.append(name)
        assert room.quiet.is_set() or name not in run_tests.LOADED
        if name == "tls":
            room.lanes.release()
            room.quiet.set()
        time.sleep(0.1)
        beside[name] = list(running)
        running.remove(name)
        return name, "", 0.0

    monkeypatch.setattr(run_tests, "scenario", scenario)
    assert run_tests.molecule([], room) == run_tests.Tally(passed=4)
    assert {name: beside[name] for name in run_tests.LOADED} == {"haproxy": ["haproxy"], "nginx": ["nginx"]}
