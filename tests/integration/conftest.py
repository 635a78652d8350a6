"""What the tests of this directory share: two bare hosts, one per Debian, and the local fleet.

VMFLEET_KEEP=1 leaves them standing after the run, for a look around and for a faster next run; VMFLEET_RELEASES (trixie
bookworm) narrows the choice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import packages
import pytest
from lab import Host, fleet
from site_fleet import HOSTS, SiteHost, script

RELEASES = {"deb13": "trixie", "deb12": "bookworm"}


@pytest.hookimpl(tryfirst=True)  # before xdist, which reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one fleet belong to one worker, in their order; those of different fleets run side by side."""
    on_site = {item.path for item in items if "fleet" in getattr(item, "fixturenames", ())}
    for item in items:
        module = item.path.stem
        group = "site" if item.path in on_site else "bare" if module.startswith("test_converge_") else module
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish(session: pytest.Session) -> None:
    lost = [item.nodeid for item in session.items if "@" not in item.nodeid]
    if getattr(session.config.option, "loadgroup", False) and lost:
        raise pytest.UsageError(f"pytest-xdist sees no groups, so two workers would share a fleet: {lost[0]}")


@pytest.fixture(scope="session")
def hosts() -> Iterator[list[Host]]:
    """Both hosts, with ufw installed but off and a private package archive at hand."""
    wanted = os.environ.get("VMFLEET_RELEASES", "trixie bookworm").split()
    present = [Host(name, release) for name, release in RELEASES.items() if release in wanted]
    assert present, f"VMFLEET_RELEASES names none of {', '.join(RELEASES.values())}"
    for host in present:
        fleet("up", "--host", host.name, "--release", host.release)
    for host in present:
        packages.prepare(host)
    yield present
    if not os.environ.get("VMFLEET_KEEP"):
        fleet("down")


@pytest.fixture(scope="session")
def deb13(hosts: list[Host]) -> Host:
    return hosts[0]


@pytest.fixture(scope="session")
def deb12(hosts: list[Host]) -> Host:
    return hosts[1]


@pytest.fixture(scope="session", name="fleet")
def site_fleet() -> Iterator[dict[str, Host]]:
    """The hosts of inventories/local, bare until a test runs the site on them."""
    booted = script("scripts/fleet", "up")
    assert booted.returncode == 0, booted.stdout + booted.stderr
    yield {name: SiteHost(name, "trixie") for name in HOSTS}
    if not os.environ.get("VMFLEET_KEEP"):
        script("scripts/fleet", "down")
