"""The part ``health``: a thousand checks on one host by our module, testinfra, serverspec and loops of modules."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet_hosts import ROOT, Fleet
from measure import RunFailed, Sample, run, summary

HERE = Path(__file__).resolve().parent / "checks"
KINDS = {"http": 250, "tcp": 250, "postgresql": 150, "redis": 150, "file": 200}
# A thousand calls of a module would take a quarter of an hour: so many of each kind are timed, the rest is reckoned.
SHARE = 15
TIMEOUT = 900.0
USER = "ops"


class Hosts(Fleet):
    """The host that is asked, and one that serverspec runs on, so that nothing is installed on this machine."""

    def up(self) -> None:
        self._command("up", "--host", "asked1", "--host", "runner1")


def checks() -> list[dict[str, Any]]:
    """The checks as our module takes them; the other tools read the same list."""
    details: dict[str, Callable[[int], dict[str, Any]]] = {
        "http": lambda number: {"url": f"http://127.0.0.1:8000/{number}", "json": {"status": "ready"}},
        "tcp": lambda number: {"port": (8000, 6379, 5432)[number % 3]},
        "postgresql": lambda _number: {"query": "SELECT 1", "expect": "1"},
        "redis": lambda _number: {},
        "file": lambda number: {"path": f"/srv/checks/{number}", "mode": "0640"},
    }
    return [
        # On a machine that is not alone an answer may take long: that is to show in the times.
        {"name": f"{kind} {number}", "type": kind, "timeout": 60, **details[kind](number)}
        for kind, total in KINDS.items()
        for number in range(total)
    ]


class Tools:
    """Each tool's command, run and measured."""

    def __init__(self, fleet: Hosts, cache: Path, python: Path) -> None:
        self.fleet, self.cache, self.python = fleet, cache, python
        self.settings = fleet.settings
        self.containers = fleet.containers()
        self.address = self.settings.address(int(self.containers["asked1"].labels["vmfleet.number"]))
        self.list = cache / "checks.json"
        self.list.write_text(json.dumps(checks()))

    def _measure(
        self, label: str, command: Sequence[str], pattern: str, env: Mapping[str, str] | None = None
    ) -> tuple[Sample, re.Match[str]]:
        """A run, and what the pattern finds in its output: the proof that all was asked and all was well."""
        log = self.cache / f"health-{label}.log"
        containers = [box.id for box in self.containers.values()]
        paths = [self.fleet.control_path]
        environment = {**self.fleet.env, "ANSIBLE_NOCOLOR": "1", **(env or {})}
        sample = run(
            command, cwd=ROOT, env=environment, log=log, timeout=TIMEOUT, control_paths=paths, containers=containers
        )
        found = re.search(pattern, log.read_text(errors="replace"))
        if not found:
            raise RunFailed(f"{label} did not come to the end expected; see {log}")
        return sample, found

    def _playbook(self, python: Path, name: str, variables: Mapping[str, Any]) -> list[str]:
        given = self.cache / f"health-{name}.json"
        given.write_text(json.dumps(variables))
        inventory = str(self.settings.state / "hosts.yml")
        options = ["-i", inventory, "--limit", "asked1", "-e", f"@{given}"]
        return [str(python), "-m", "ansible", "playbook", *options, str(HERE / f"{name}.yml")]

    def ours(self) -> tuple[Sample, dict[str, Any]]:
        """One call of the module; with it the engine's own seconds and the memory of the process on the host."""
        asked = self.containers["asked1"]
        asked.exec_run(["rm", "-f", "/root/memory"])
        command = self._playbook(Path(sys.executable), "ours", {"checks": checks()})
        sample, found = self._measure("ours", command, r"(?s)BENCH (\{.*?\}.*?\})")
        outcome = json.loads(found[1].replace('\\"', '"'))
        if outcome["counts"]["ok"] != sum(KINDS.values()):
            raise RunFailed(f"ours: not all checks are ok: {outcome['counts']}")
        memory = max(map(int, asked.exec_run(["cat", "/root/memory"])[1].split()))
        return sample, {"engine_seconds": outcome["seconds"], "host_rss_mb": round(memory / 1024, 1)}

    def testinfra(self) -> Sample:
        config = self.cache / "health-ssh.conf"
        settings = {
            "User": USER,
            "IdentityFile": self.settings.key,
            "UserKnownHostsFile": self.settings.known_hosts,
            "ControlMaster": "auto",
            "ControlPath": f"{self.fleet.control_path}testinfra",
            "ControlPersist": "60",
        }
        config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        options = [f"--hosts=ssh://{USER}@{self.address}", f"--ssh-config={config}", "--sudo", "-p", "no:cacheprovider"]
        command = [
            str(self.python),
            "-m",
            "pytest",
            "-q",
            "-c",
            "/dev/null",
            *options,
            str(HERE / "testinfra_checks.py"),
        ]
        return self._measure("testinfra", command, rf"{sum(KINDS.values())} passed", {"BENCH_CHECKS": str(self.list)})[
            0
        ]

    def serverspec(self) -> Sample:
        environment = {"HOST": self.address, "USER": USER, "KEY": "/root/key", "CHECKS": "/root/checks.json"}
        flags = [f"--env=BENCH_{name}={value}" for name, value in environment.items()]
        command = ["docker", "exec", *flags, self.containers["runner1"].name, "rspec", "/root/checks_spec.rb"]
        return self._measure("serverspec", command, rf"{sum(KINDS.values())} examples, 0 failures")[0]

    def loops(self) -> dict[str, Any]:
        """A share of each kind, and what all of them would take: seconds."""
        every = checks()

        def timed(kind: str, chosen: list[dict[str, Any]]) -> float:
            command = self._playbook(self.python, "loops", {"checks": chosen, "kind": kind})
            return self._measure(f"loop-{kind}", command, r"asked1 +: ok=\d .* failed=0")[0].wall

        timed("none", every[:1])
        empty = timed("none", every[:1])
        each = {}
        for kind in KINDS:
            wall = timed(kind, [check for check in every if check["type"] == kind][:SHARE])
            each[kind] = round((wall - empty) / SHARE, 3)
        return {
            "share": SHARE,
            "seconds_each": each,
            "wall": round(empty + sum(each[kind] * KINDS[kind] for kind in KINDS)),
        }


def prepare(fleet: Hosts, cache: Path) -> None:
    """Services on the one host, serverspec on the other."""
    boxes = fleet.containers()

    def copy(path: Path, host: str, target: str) -> None:
        subprocess.run(["docker", "cp", "-q", str(path), f"{boxes[host].name}:{target}"], check=True)

    def shell(host: str, script: str) -> None:
        subprocess.run(["docker", "exec", boxes[host].name, "sh", "-c", script], check=True, timeout=TIMEOUT)

    copy(HERE / "setup.sh", "asked1", "/root/setup.sh")
    shell("asked1", "sh /root/setup.sh")
    packages = "ruby-serverspec ruby-ed25519 ruby-bcrypt-pbkdf"
    shell("runner1", f"apt-get -qq update && apt-get -qq -y install --no-install-recommends {packages} >/dev/null")
    for path, target in (
        (fleet.settings.key, "key"),
        (HERE / "checks_spec.rb", "checks_spec.rb"),
        (cache / "checks.json", "checks.json"),
    ):
        copy(path, "runner1", f"/root/{target}")
    shell("runner1", "chown root:root /root/key && chmod 0600 /root/key")


def measure(
    fleet: Hosts, cache: Path, python: Path, repeat: int, tell: Callable[[str, Sample], None]
) -> dict[str, Any]:
    """The result of the part. The three tools take turns; the loops run once."""
    tools = Tools(fleet, cache, python)
    prepare(fleet, cache)
    samples: dict[str, list[Sample]] = {"ours": [], "testinfra": [], "serverspec": []}
    details: list[dict[str, Any]] = []
    tools.ours()
    for turn in range(repeat):
        sample, more = tools.ours()
        samples["ours"].append(sample)
        details.append(more)
        tell("ours", sample)
        # They take long and hardly vary.
        if turn < 2:
            for name, measured in (("testinfra", tools.testinfra), ("serverspec", tools.serverspec)):
                samples[name].append(measured())
                tell(name, samples[name][-1])
    loops = tools.loops()
    ours = statistics.median(sample.wall for sample in samples["ours"])
    walls = {name: statistics.median(sample.wall for sample in found) for name, found in samples.items()}
    walls["loops"] = loops["wall"]
    return {
        "checks": sum(KINDS.values()),
        "kinds": KINDS,
        "tools": {name: summary(found) for name, found in samples.items()},
        "loops": loops,
        "host": {key: max(entry[key] for entry in details) for key in details[0]},
        "ratios_to_ours": {name: round(wall / ours, 1) for name, wall in walls.items() if name != "ours"},
    }
