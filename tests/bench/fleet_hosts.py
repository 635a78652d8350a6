"""The fleets that the benchmarks run on; each has a prefix of its own and belongs to the benchmarks alone."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from fleet_settings import Settings, settings  # noqa: E402


@dataclass(frozen=True)
class Fleet:
    prefix: str
    inventory: Path

    @functools.cached_property
    def settings(self) -> Settings:
        return settings(self.prefix)

    @property
    def env(self) -> dict[str, str]:
        return {"VMFLEET_PREFIX": self.prefix}

    @property
    def control_path(self) -> str:
        return f"{self.settings.control_path_dir}/"

    def _command(self, *arguments: str) -> None:
        subprocess.run(
            [str(ROOT / "scripts" / "fleet"), *arguments], cwd=ROOT, env={**os.environ, **self.env}, check=True
        )

    def up(self) -> None:
        self._command("up", "--inventory", str(self.inventory))

    def down(self) -> None:
        self._command("down")

    def containers(self) -> dict[str, Any]:
        """Docker's containers by host name."""
        found = docker.from_env().containers.list(filters={"label": f"vmfleet.prefix={self.prefix}"})
        return {container.labels["vmfleet.host"]: container for container in found}
