"""Runs `ansible-test sanity` on a copy of the checkout, in a folder layout that ansible-test accepts.

    scripts/sanity                          every test
    scripts/sanity --test validate-modules  arguments go to ansible-test sanity

What it installs is kept below .cache/, not in the home folder. pip comes from the interpreter's own ensurepip, so that
nothing but packages of the configured index is fetched.
"""

from __future__ import annotations

import configparser
import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "ansible-test"
# ansible-test starts this where it would start pip's own bootstrap script, with pip's arguments.
BOOTSTRAP = """import subprocess, sys
# In a process of its own: ensurepip turns pip's configuration off for the rest of the one it runs in.
subprocess.check_call([sys.executable, "-m", "ensurepip"])
words = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *words]))
"""
PIP_VERSION = re.compile(r"""\bpip=["']([0-9.]+)["']""")


def tree(root: Path) -> list[str]:
    """What a release carries: files of the checkout, new ones too, less what git or galaxy.yml leaves out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    left_out = yaml.safe_load((root / "galaxy.yml").read_text(encoding="utf-8"))["build_ignore"]
    return [
        name
        for name in sorted(set(listed.split("\0")) - {""})
        if (root / name).is_file()
        and not any(fnmatch.fnmatch(name, pattern) or name.startswith(f"{pattern}/") for pattern in left_out)
    ]


def mirror(root: Path, target: Path) -> None:
    """The copy, in place: what ansible-test installed for itself below tests/output stays."""
    wanted = tree(root)
    for path in sorted(target.rglob("*"), reverse=True):
        name = path.relative_to(target).as_posix()
        if name.startswith(("tests/output/", ".git/")) or path.is_dir():
            continue
        if name not in wanted:
            path.unlink()
    for name in wanted:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name)


def pip_configuration(own: Path, environment: Mapping[str, str]) -> configparser.ConfigParser:
    """The user's settings and the variables that stand for settings; ansible-test hands none of these on."""
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(own, encoding="utf-8")
    if not settings.has_section("global"):
        settings.add_section("global")
    for name, value in environment.items():
        if name.startswith("PIP_") and name != "PIP_CONFIG_FILE":
            settings.set("global", name.removeprefix("PIP_").lower().replace("_", "-"), value)
    return settings


def prepare_home(home: Path) -> None:
    import ansible_test._internal as internal

    requirements = Path(next(iter(internal.__path__))) / "python_requirements.py"
    versions = PIP_VERSION.findall(requirements.read_text(encoding="utf-8"))
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in versions:
        (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(BOOTSTRAP, encoding="utf-8")
    settings = home / ".config" / "pip" / "pip.conf"
    settings.parent.mkdir(parents=True, exist_ok=True)
    with settings.open("w", encoding="utf-8") as stream:
        pip_configuration(Path.home() / ".config" / "pip" / "pip.conf", os.environ).write(stream)


def main(arguments: list[str]) -> int:
    home = CACHE / "home"
    prepare_home(home)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    collection = CACHE / "ansible_collections" / "vmfleet" / "ops"
    mirror(ROOT, collection)
    # Otherwise ansible-test finds the checkout around it, where all of this is ignored.
    subprocess.run(["git", "init", "--quiet"], cwd=collection, check=True)
    (collection / ".git/info/exclude").write_text("/tests/output/\n", encoding="utf-8")
    command = [str(Path(sys.executable).with_name("ansible-test")), "sanity", "--color", "no"]
    command += ["--venv", "--python", python, *arguments]
    return subprocess.run(command, cwd=collection, env={**os.environ, "HOME": str(home)}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
