"""What several files say of the same thing."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def requirements(name: str) -> set[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith(("#", "-r", "ansible-core"))}


def test_an_execution_environment_gets_what_a_controller_needs() -> None:
    assert requirements("meta/ee-requirements.txt") == requirements("requirements/controller.txt")
    dependencies = yaml.safe_load((ROOT / "meta/execution-environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert all((ROOT / path).is_file() for path in dependencies.values())


def test_the_supported_cores_are_the_same_everywhere() -> None:
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text(encoding="utf-8"))["requires_ansible"]
    assert runtime == ">=2.17.0"
    assert "ansible-core>=2.17,<2.22" in (ROOT / "requirements/controller.txt").read_text(encoding="utf-8")
    assert "ansible-core 2.17 to 2.21" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_changelog_fragment_tells_of_the_coming_release() -> None:
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))["version"]
    released = yaml.safe_load((ROOT / "changelogs/changelog.yaml").read_text(encoding="utf-8"))["releases"]
    assert version in released or any((ROOT / "changelogs/fragments").glob("*.yml"))
