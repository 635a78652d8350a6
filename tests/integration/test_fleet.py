"""scripts/fleet itself: boots what it is told, reuses what stands, takes away only what is its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

ROOT = Path(__file__).resolve().parents[2]
PREFIX = f"{os.environ.get('VMFLEET_PREFIX') or 'vmfleet'}-selftest"


def fleet(*arguments: str, root: Path = ROOT, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "VMFLEET_SUBNET"}
    done = subprocess.run(
        [str(root / "scripts" / "fleet"), *arguments],
        env={**environment, "VMFLEET_PREFIX": PREFIX},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def containers() -> dict[str, str]:
    client = docker.from_env()
    found = client.containers.list(all=True, filters={"label": f"vmfleet.prefix={PREFIX}"})
    return {container.name: container.id for container in found}


@pytest.fixture
def booted() -> Iterator[str]:
    fleet("down")
    yield fleet("up", "--host", "one", "--host", "two").stdout
    fleet("down")


@pytest.mark.usefixtures("booted")
def test_hosts_are_reused_and_started_again() -> None:
    before = containers()
    assert set(before) == {f"{PREFIX}-one", f"{PREFIX}-two"}
    key = fleet("ssh", "one", "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout
    fleet("ssh", "one", "echo 10.0.0.1 mine | sudo tee -a /etc/hosts; echo x | sudo tee /root/kept")
    docker.from_env().containers.get(f"{PREFIX}-one").stop(timeout=20)
    docker.from_env().containers.get(f"{PREFIX}-two").pause()
    again = fleet("up", "--host", "one", "--host", "two").stdout
    assert "one started" in again
    assert "two unpaused" in again
    assert containers() == before
    assert fleet("ssh", "one", "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout == key
    assert fleet("ssh", "one", "sudo cat /root/kept; grep -c mine /etc/hosts").stdout.split() == ["x", "1"]
    assert "one stands" in fleet("up", "--host", "one").stdout


@pytest.mark.usefixtures("booted")
def test_hosts_look_like_machines() -> None:
    state = fleet("ssh", "one", "systemctl is-system-running; id -un; sudo id -un; getent hosts two | wc -l").stdout
    assert state.split() == ["running", "ops", "root", "1"]
    # What careful tools do to these files has to work: write beside, rename over.
    fleet(
        "ssh", "one", "for f in hosts hostname resolv.conf; do sudo cp /etc/$f /etc/.$f; sudo mv /etc/.$f /etc/$f; done"
    )
    # Published container images forbid packages to start services.
    fleet("ssh", "one", "test ! -e /usr/sbin/policy-rc.d")


@pytest.mark.usefixtures("booted")
def test_down_leaves_nothing_behind() -> None:
    fleet("down", "one")
    assert set(containers()) == {f"{PREFIX}-two"}
    standing = json.loads((ROOT / ".fleet" / PREFIX / "hosts.yml").read_text())
    assert list(standing["all"]["hosts"]) == ["two"]
    docker.from_env().containers.get(f"{PREFIX}-two").pause()
    fleet("down")
    assert containers() == {}
    assert docker.from_env().networks.list(filters={"label": f"vmfleet.prefix={PREFIX}"}) == []
    assert not (ROOT / ".fleet" / PREFIX).exists()
    fleet("down")


@pytest.mark.usefixtures("booted")
def test_another_checkout_cannot_touch_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for command in (["up", "--host", "one"], ["down"]):
        refused = fleet(*command, root=tmp_path, check=False)
        assert refused.returncode == 1
        assert f"belongs to the checkout {ROOT}" in refused.stderr
    assert len(containers()) == 2


def test_mistakes_are_explained() -> None:
    assert "no host nobody" in fleet("up", "nobody", check=False).stderr
    assert "scripts/fleet status" in fleet("ssh", "nobody", check=False).stderr
