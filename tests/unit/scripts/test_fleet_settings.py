"""Names, networks and secrets of the local fleet."""

from __future__ import annotations

import stat
from pathlib import Path

import fleet_settings
import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
BENCH = ("site", "ours", "stock", "pyinfra", "health", "balancer")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VMFLEET_PREFIX", raising=False)
    monkeypatch.delenv("VMFLEET_SUBNET", raising=False)
    monkeypatch.setattr(fleet_settings, "ROOT", tmp_path)


def test_defaults() -> None:
    fleet = fleet_settings.settings()
    assert (fleet.prefix, str(fleet.subnet), fleet.network) == ("vmfleet", "10.213.0.0/24", "vmfleet-net")
    assert fleet.address(11) == "10.213.0.11"


def test_every_prefix_gets_a_network_of_its_own() -> None:
    scenarios = [path.parent.name for path in REPOSITORY.glob("molecule/*/molecule.yml")]
    assert scenarios
    fleets = ["converge", "drain", "selftest", "site", "types", *scenarios]
    names = ["vmfleet", *(f"vmfleet-{name}" for name in fleets), *(f"bench-{name}" for name in BENCH)]
    assert len({fleet_settings.default_subnet(name) for name in names}) == len(names)
    assert fleet_settings.default_subnet("vmfleet-redis") == fleet_settings.default_subnet("vmfleet-redis")


def test_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMFLEET_PREFIX", "try")
    monkeypatch.setenv("VMFLEET_SUBNET", "10.9.8.0/24")
    fleet = fleet_settings.settings()
    assert (fleet.container("db1"), fleet.address(31)) == ("try-db1", "10.9.8.31")


@pytest.mark.parametrize("prefix", ["Upper", "-dash", "sp ace", "a/b", "x" * 41])
def test_prefix_that_docker_would_refuse(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setenv("VMFLEET_PREFIX", prefix)
    with pytest.raises(fleet_settings.FleetError, match="VMFLEET_PREFIX"):
        fleet_settings.settings()


@pytest.mark.parametrize("subnet", ["10.9.8.1/24", "10.9.0.0/16", "nonsense", "fd00::/64"])
def test_subnet_that_is_none(monkeypatch: pytest.MonkeyPatch, subnet: str) -> None:
    monkeypatch.setenv("VMFLEET_SUBNET", subnet)
    with pytest.raises(fleet_settings.FleetError, match="VMFLEET_SUBNET"):
        fleet_settings.settings()


def test_secrets_last_as_long_as_the_fleet() -> None:
    fleet = fleet_settings.settings()
    first = fleet.secret("database")
    assert fleet.secret("database") == first
    assert fleet.secret("redis") != first
    assert len(first) == 32
    assert stat.S_IMODE((fleet.state / "seed").stat().st_mode) == 0o600
    assert stat.S_IMODE(fleet.state.stat().st_mode) == 0o700
    (fleet.state / "seed").unlink()
    assert fleet.secret("database") != first
    assert sorted(path.name for path in fleet.state.iterdir()) == ["seed"]
