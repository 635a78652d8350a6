"""Controllers of other versions: virtual environments with another ansible-core, made once."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest
from lab import ROOT

CACHE = ROOT / ".cache" / "controllers"
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"

# The oldest and the newest ansible-core, with the interpreters that each runs on, preferred ones first.
CORES = pytest.mark.parametrize(
    ("core", "versions"), [("2.17", ("3.11", "3.12", "3.10")), ("2.21", ("3.13", "3.12", "3.14"))]
)


def controller(python: Path | str, *requirements: str) -> Path:
    """The home of a virtual environment with these requirements."""
    words = [Path(word).name if "/" in word else word for word in requirements if word != "-r"]
    home = CACHE / "-".join(words).replace("==", "-").replace("*", "x")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        # Tests of another fleet may want the same one at this moment.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            _make(home, python, requirements)
    return home


def _make(home: Path, python: Path | str, requirements: tuple[str, ...]) -> None:
    for command in (
        [str(python), "-m", "venv", "--clear", str(home)],
        [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    (home / "ready").touch()


def interpreter(*versions: str) -> Path:
    for version in versions:
        for found in [
            *PYENV.glob(f"{version}.*/bin/python"),
            *(Path(p) / f"python{version}" for p in os.get_exec_path()),
        ]:
            if found.exists():
                return found
    pytest.skip(f"no interpreter of {', '.join(versions)} on PATH or below {PYENV}")
