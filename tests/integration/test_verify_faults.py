"""Everything that can break is broken on the local fleet, and verify says what, where and why, in time.

Each batch breaks several things at once, has verify look at the fleet once, mends all of it and has verify look again.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fault_matrix import (
    DATA_AND_CONFIGURATION,
    HANDS,
    HOST_AND_UNITS,
    NETWORK,
    SERVICES,
    Fault,
    frozen,
    killed,
    stopped,
)
from lab import ROOT, Host
from site_fleet import PREFIX, docker, site

TABLE = ROOT / "tests" / "output" / "verify-faults.txt"
# Of `health`; a host that says nothing at all is given up by the playbook.
DEADLINE = 30.0
# Seconds that the fleet has to be green again.
RECOVERY = 240.0
# Whoever is outside sees it too when a service inside is broken; nothing of it is seen on the healthy fleet.
OUTSIDE = r"outside: .*"
# The machine's own load is the load of every container on it.
MACHINE = re.compile(r"\w+: base: processors keep up")


@pytest.fixture(scope="module")
def hosts(fleet: dict[str, Host], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Host]:
    """The fleet with the site on it and healthy."""
    run = site(tmp_path_factory.mktemp("site"))
    assert run.rc == 0, run.output[-6000:]
    fleet["api2"].sh("apt-get -qq -y install --no-install-recommends libfaketime >/dev/null")
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text("")
    return fleet


@pytest.fixture(scope="module")
def addresses(hosts: dict[str, Host]) -> dict[str, str]:
    template = f'{{{{(index .NetworkSettings.Networks "{PREFIX}-net").IPAddress}}}}'
    return {
        name: subprocess.run(
            ["docker", "inspect", "--format", template, host.container], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name, host in hosts.items()
    }


def verify(folder: Path, *options: str, silence: float = 300) -> tuple[int, dict[str, Any], str]:
    """Exit code, report and output of playbooks/verify.yml.

    :param silence: seconds until a host is given up.
    """
    arguments = ["-e", f"verify_report={folder}", "-e", f"verify_timeout={silence:.0f}", *options]
    run = site(folder, *arguments, playbook="verify", env={"ANSIBLE_SSH_RETRIES": "0", "ANSIBLE_TIMEOUT": "60"})
    report = folder / "verdict.json"
    assert report.exists(), run.output[-6000:]
    return run.rc, json.loads(report.read_text()), run.output


def problems(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {f"{problem['subject']}: {problem['name']}": problem for problem in report["problems"]}
    return {name: problem for name, problem in found.items() if not MACHINE.fullmatch(name)}


def prove_healthy(folder: Path) -> None:
    """What was mended is green; a machine with more to do than this gets several looks, an idle one needs one."""
    end = time.monotonic() + RECOVERY
    while True:
        # What needs a moment gets it; what is well costs none of it.
        code, report, output = verify(folder, "-e", "verify_wait=25")
        found = problems(report)
        if (code == 0 and not found) or time.monotonic() > end:
            break
    assert (code, found) == (0, {}), output[-6000:]


class Batch:
    """Breaks, looks, mends, looks."""

    def __init__(self, hosts: dict[str, Host], addresses: dict[str, str], folder: Path) -> None:
        self.hosts, self.addresses, self.folder = hosts, addresses, folder

    def _on_all(self, scripts: Sequence[tuple[str, str]]) -> None:
        """Scripts by host; those of one host one after the other."""

        def on(name: str) -> None:
            for host, script in scripts:
                if host == name and script:
                    for other, address in self.addresses.items():
                        script = script.replace(f"@{other}@", address)
                    self.hosts[name].sh(script)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(on, dict.fromkeys(host for host, _script in scripts)))

    def run(
        self,
        faults: Sequence[Fault],
        breaks: Callable[[], None] = lambda: None,
        mends: Callable[[], None] = lambda: None,
        silence: float = 300,
    ) -> None:
        started = time.monotonic()
        try:
            breaks()
            self._on_all([(fault.on or fault.host, fault.breaks) for fault in faults])
            broken = time.monotonic()
            code, report, output = verify(self.folder, "-e", "verify_wait=0", silence=silence)
        finally:
            looked = time.monotonic()
            mends()
            self._on_all([(fault.on or fault.host, fault.mends) for fault in faults])
        mended = time.monotonic()
        self._judge(faults, code, report, output)
        prove_healthy(self.folder)
        print(
            f"broken in {broken - started:.0f} s, looked at in {looked - broken:.0f} s, mended in"
            f" {mended - looked:.0f} s, proved in {time.monotonic() - mended:.0f} s"
        )

    def _judge(self, faults: Sequence[Fault], code: int, report: dict[str, Any], output: str) -> None:
        assert code != 0, output[-6000:]
        late = {name: host["seconds"] for name, host in report["hosts"].items() if host["seconds"] > DEADLINE + 1}
        assert not late, late
        left = problems(report)
        unnoticed = []
        for fault in faults:
            named = next(
                (
                    (name, problem)
                    for name, problem in left.items()
                    if re.match(fault.names, name)
                    and problem["state"] in ("crit", "unknown")
                    and re.search(fault.because, problem["message"], re.DOTALL | re.IGNORECASE)
                ),
                None,
            )
            if named is None:
                unnoticed.append(f"{fault.host}: {fault.what}")
                continue
            message = " ".join(named[1]["message"].split())[:160]
            with TABLE.open("a", encoding="utf-8") as table:
                table.write(f"{fault.host + ': ' + fault.what:<62} {named[0]:<75} {named[1]['state']:<8} {message}\n")
        shown = json.dumps({name: problem["message"] for name, problem in left.items()}, indent=1)
        assert not unnoticed, f"unnoticed: {unnoticed}\nreported: {shown}"
        expected = [OUTSIDE, *(pattern for fault in faults for pattern in (fault.names, *fault.also))]
        alarms = [name for name in left if not any(re.match(pattern, name) for pattern in expected)]
        assert not alarms, f"false alarms: {alarms}\nreported: {shown}"


@pytest.fixture
def batch(hosts: dict[str, Host], addresses: dict[str, str], tmp_path: Path) -> Batch:
    return Batch(hosts, addresses, tmp_path)


def test_the_healthy_fleet_raises_no_alarm(hosts: dict[str, Host], tmp_path: Path) -> None:
    prove_healthy(tmp_path)


def test_services_that_are_killed_and_stay_away(batch: Batch) -> None:
    batch.run([killed(*service) for service in SERVICES])


def test_services_that_are_frozen(batch: Batch) -> None:
    batch.run([frozen(*service) for service in SERVICES])


def test_disks_memory_firewalls_secrets_and_units(batch: Batch) -> None:
    batch.run(HOST_AND_UNITS)


def test_certificates_data_and_configuration(batch: Batch) -> None:
    # What is stopped decently too, where nothing else of the batch needs it.
    batch.run([*DATA_AND_CONFIGURATION, *(stopped(*SERVICES[number]) for number in (0, 1, 4))])


def test_networks_that_are_cut(batch: Batch) -> None:
    # What a look at the healthy fleet takes on this machine, and room for the timeouts of single checks.
    started = time.monotonic()
    prove_healthy(batch.folder)
    silence = 20 + 2 * (time.monotonic() - started)
    frozen_host, cut_off = batch.hosts["mon1"], batch.hosts["api2"]
    network = ["docker", "network"]

    def breaks() -> None:
        docker("pause", frozen_host)
        subprocess.run([*network, "disconnect", f"{PREFIX}-net", cut_off.container], check=True, timeout=60)

    def mends() -> None:
        docker("unpause", frozen_host)
        address = batch.addresses["api2"]
        subprocess.run(
            [*network, "connect", "--ip", address, f"{PREFIX}-net", cut_off.container], check=True, timeout=60
        )

    batch.run(NETWORK, breaks, mends, silence)


def test_what_was_done_by_hand_or_by_mistake(batch: Batch) -> None:
    batch.run(HANDS)


def test_there_were_enough_of_them() -> None:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 40, f"{len(lines)} faults"
    print("\n".join(lines))
