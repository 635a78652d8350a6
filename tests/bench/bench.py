"""Measures what the collection costs; see README.md in this folder."""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import datetime
import json
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backup
import balancer
import check_stack
import health
import pki
import report
from fleet_hosts import ROOT, Fleet
from measure import RunFailed, Sample, machine, run, summary
from replay import key_of

HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache" / "bench"
RESULTS = HERE / "results"
STACK = HERE / "stack"
BALANCER = HERE / "balancer"
BACKUP = HERE / "backup"
LOCAL = ROOT / "inventories" / "local"

SIZES = (1, 10, 100, 300, 1000)
# Above this size one run has to do: it takes minutes and hardly varies.
SMALL = 100
TIMEOUT_FIRST = 900.0
TIMEOUT_RERUN = 300.0
TIMEOUT_SCALE = 1200.0
FIRST_CLONE = (10, 128)

STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f}s] {text}", flush=True)


def tell(what: str, sample: Sample) -> None:
    others = f", others used {sample.others_cpu:.1f} s" if sample.others_cpu > 0.1 * sample.wall else ""
    say(f"{what}: {sample.wall:.2f} s, CPU {sample.cpu:.2f} s{others}")


# --- recording -------------------------------------------------------------------------------------------------------


# A stand-in host can answer each role, and not what another host would have said to all of them together.
ONE_BY_ONE = ["-e", "preflight_prefetch=false"]


def recorder_env(name: str, answers: bool = False) -> tuple[dict[str, str], Path, Path]:
    events, executions = CACHE / f"{name}.events", CACHE / f"{name}.ssh"
    for path in (events, executions):
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
    env = {
        "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "plugins" / "callback"),
        "ANSIBLE_CALLBACKS_ENABLED": "bench_recorder",
        "ANSIBLE_SSH_EXECUTABLE": str(HERE / "bin" / "ssh"),
        "ANSIBLE_SCP_EXECUTABLE": str(HERE / "bin" / "scp"),
        "ANSIBLE_SFTP_EXECUTABLE": str(HERE / "bin" / "sftp"),
        "BENCH_EVENTS": str(events),
        "BENCH_SSH_LOG": str(executions),
    }
    return env | ({"BENCH_ANSWERS": "1"} if answers else {}), events, executions


def read_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def counts(events: Sequence[Mapping[str, Any]], executions: Path) -> dict[str, Any]:
    """Totals of a run, and the most executions that one role needed on one host."""
    roles = {event["task"]: event["role"] or "preflight and plays" for event in events if event["event"] == "start"}
    done = [event for event in events if event["event"] == "result" and event["status"] != "skipped"]
    calls = [event for event in events if event["event"] in ("exec_command", "put_file", "fetch_file")]
    hosts = {event["host"] for event in events if event["event"] == "start"}
    per_role = collections.Counter((roles.get(event["task"], ""), event["host"]) for event in calls)
    return {
        "hosts": len(hosts),
        "host_tasks": len(done),
        "host_tasks_per_host": round(len(done) / len(hosts), 1),
        "ssh_executions": len(executions.read_text().splitlines()),
        "ssh_executions_per_role_and_host_max": max(per_role.values(), default=0),
        "module_transfers": sum(1 for event in calls if event["transfer"]),
    }


# --- running Ansible -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A command that can be run again and again, and how to see in its output that nothing had to be changed."""

    name: str
    command: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    fleet: Fleet | None
    unchanged: re.Pattern[str]

    def measure(
        self,
        label: str,
        timeout: float,
        *,
        settled: bool = False,
        more: Sequence[str] = (),
        env: Mapping[str, str] = {},
    ) -> Sample:
        log = CACHE / f"{self.name}-{label}.log"
        containers = [box.id for box in self.fleet.containers().values()] if self.fleet else []
        sample = run(
            [*self.command, *more],
            cwd=self.cwd,
            env={**self.env, **env},
            log=log,
            timeout=timeout,
            control_paths=[self.fleet.control_path] if self.fleet else [],
            containers=containers,
        )
        if settled and not self.unchanged.search(log.read_text(errors="replace")):
            raise RunFailed(f"{self.name}: a run that should find nothing to do changed something; see {log}")
        return sample


NOTHING_CHANGED = re.compile(
    r"PLAY RECAP[^\n]*\n(?:\S+ +: ok=\d+ +changed=0 +unreachable=0 +failed=0 .*\n)+\s*(?:\n|\Z)"
)
PYINFRA_UNCHANGED = re.compile(r"^ *Grand total +\d+ +- +- +\d+", re.MULTILINE)


def ansible(
    name: str,
    python: str,
    playbook: Path,
    inventories: Sequence[Path],
    fleet: Fleet | None,
    *,
    options: Sequence[str] = (),
    env: Mapping[str, str] = {},
) -> Job:
    command = [python, "-m", "ansible", "playbook", str(playbook), *options]
    for inventory in inventories:
        command += ["-i", str(inventory)]
    environment = {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", **(fleet.env if fleet else {}), **env}
    return Job(name, command, ROOT, environment, fleet, NOTHING_CHANGED)


def ansible_version(python: str) -> str:
    code = "from importlib.metadata import version; print(version('ansible-core'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def bench_venv() -> Path:
    """Interpreter of the environment with the other tools; made when it is missing."""
    folder = ROOT / ".venv-bench"
    python = folder / "bin" / "python"
    core = ansible_version(sys.executable)
    stamp, wanted = folder / "requirements", f"{core}\n{(HERE / 'requirements.txt').read_text()}"
    if not python.exists() or not stamp.exists() or stamp.read_text() != wanted:
        say("installing stock Ansible and the other tools into .venv-bench")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run(
            [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                f"ansible-core=={core}",
                "-r",
                str(HERE / "requirements.txt"),
            ],
            check=True,
        )
        stamp.write_text(wanted)
    return python


@contextlib.contextmanager
def standing(fleets: Sequence[Fleet], keep: bool, fresh: bool = True) -> Iterator[None]:
    try:
        for fleet in fleets:
            if fresh:
                fleet.down()
            fleet.up()
        yield
    finally:
        if not keep:
            for fleet in fleets:
                fleet.down()


def write(part: str, content: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    versions = {"ansible-core": ansible_version(sys.executable)}
    document = {
        "part": part,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": {**versions, **content.get("versions", {})},
        **{key: value for key, value in content.items() if key != "versions"},
    }
    (RESULTS / f"{part}.json").write_text(json.dumps(document, indent=2) + "\n")


# --- the parts -------------------------------------------------------------------------------------------------------


def site_fleet() -> Fleet:
    return Fleet("bench-site", LOCAL)


def site_job(fleet: Fleet | None, inventories: Sequence[Path] = (LOCAL,), name: str = "site", **more: Any) -> Job:
    # An authority of its own, so that a standing demo keeps its certificates.
    authority = f"tls_ca_dir={CACHE / 'pki' / name}"
    options = ["-e", authority, *more.pop("options", ())]
    return ansible(name, sys.executable, ROOT / "playbooks" / "site.yml", inventories, fleet, options=options, **more)


def measure_fleet(arguments: argparse.Namespace) -> None:
    """The local fleet: first run on bare hosts, the run that finds nothing to do, and check mode."""
    fleet = site_fleet()
    job = site_job(fleet)
    shutil.rmtree(CACHE / "pki" / "site", ignore_errors=True)
    # The recording of this run serves the part scale, whose fleet may be gone by then.
    with standing([fleet], arguments.keep):
        check_bare = job.measure("check-bare", TIMEOUT_FIRST, more=["--check", "--diff"])
        tell("check mode on bare hosts", check_bare)
        first = job.measure("first", TIMEOUT_FIRST)
        tell("first run on bare hosts", first)
        tell("warm-up", job.measure("warm-up", TIMEOUT_RERUN, settled=True))
        reruns, checks = [], []
        for _round in range(arguments.repeat):
            reruns.append(job.measure("rerun", TIMEOUT_RERUN, settled=True))
            tell("re-run", reruns[-1])
            checks.append(job.measure("check", TIMEOUT_RERUN, settled=True, more=["--check", "--diff"]))
            tell("check mode", checks[-1])
        env, events, executions = recorder_env("site")
        job.measure("counted", TIMEOUT_RERUN, settled=True, env=env)
        found = counts(read_events(events), executions)
        record(job)
        say(f"counted: {json.dumps(found)}")
    write(
        "fleet",
        {
            "hosts": found["hosts"],
            "check_bare": summary([check_bare]),
            "first": summary([first]),
            "rerun": summary(reruns),
            "check": summary(checks),
            "rerun_counts": found,
        },
    )


def record(job: Job) -> None:
    """A re-run whose answers, one to each role, are kept for the stand-in hosts."""
    env, events_file, _executions = recorder_env("site", answers=True)
    job.measure("recorded", TIMEOUT_RERUN, settled=True, env=env, more=ONE_BY_ONE)
    events = read_events(events_file)
    folder = CACHE / "answers"
    shutil.rmtree(folder, ignore_errors=True)
    for event in events:
        if "script" in event:
            place = folder / event["host"]
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            stdout = base64.b64decode(event["stdout"]).decode()
            answer = {"rc": event["rc"], "stdout": stdout, "seconds": event["seconds"]}
            (place / f"{key_of(event['script'])}.json").write_text(json.dumps(answer))


def clones(size: int) -> Path:
    """An inventory that adds application hosts to the local one until there are as many as asked."""
    local = subprocess.run(
        [sys.executable, "-m", "ansible", "inventory", "-i", str(LOCAL), "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    inventory = json.loads(local.stdout)
    members = inventory["app"]["hosts"]
    known = len(inventory["_meta"]["hostvars"])
    lines = ["---", "all:", "  vars: {ansible_connection: bench_replay}", "  children:", "    app:", "      hosts:"]
    for number in range(size - known):
        low, high = divmod(number, 250)
        address = f"{FIRST_CLONE[0]}.{FIRST_CLONE[1]}.{low}.{high + 1}"
        replays = members[number % len(members)]
        lines.append(f"        clone{number:04}: {{bench_replays: {replays}, ansible_host: {address}}}")
    if size <= known:
        lines[-1] += " {}"
    path = CACHE / f"clones-{size}.yml"
    path.write_text("\n".join(lines) + "\n")
    return path


def measure_scale(arguments: argparse.Namespace) -> None:
    """The re-run for fleets of many sizes, on stand-in hosts that answer as the local fleet did."""
    answers = CACHE / "answers"
    if arguments.record or not answers.is_dir():
        fleet = site_fleet()
        with standing([fleet], arguments.keep, fresh=False):
            job = site_job(fleet)
            tell("first run", job.measure("first", TIMEOUT_FIRST))
            record(job)
    env = {
        "ANSIBLE_CONNECTION_PLUGINS": str(HERE / "plugins" / "connection"),
        "BENCH_REPLAY": str(answers),
        **site_fleet().env,
    }
    curve = []
    for size in arguments.sizes:
        options = ["--forks", str(arguments.forks), *ONE_BY_ONE]
        if size == 1:
            options += ["--limit", "api1"]
        job = site_job(None, (LOCAL, clones(size)), "scale", options=options, env=env)
        # The first pass issues the clones' certificates; with many of them nothing else is worth the wait.
        more = [] if size <= SMALL else ["--tags", "tls"]
        tell(f"{size} hosts, warm-up", job.measure(f"warm-up-{size}", TIMEOUT_SCALE, settled=True, more=more))
        repeat = arguments.repeat if size <= SMALL else 1
        samples = []
        for _round in range(repeat):
            samples.append(job.measure(f"{size}", TIMEOUT_SCALE, settled=True))
            tell(f"{size} hosts", samples[-1])
        curve.append({"hosts": size, **summary(samples)})
    write("scale", {"forks": arguments.forks, "curve": curve})


def measure_stack(arguments: argparse.Namespace) -> None:
    """The smaller stack's end state by our roles, by stock modules and by pyinfra, in turn."""
    python = bench_venv()
    password = secrets.token_urlsafe(18)
    names = arguments.tools
    fleets = {name: Fleet(f"bench-{name}", STACK / "inventory") for name in names}

    def environment(name: str) -> dict[str, str]:
        return {**fleets[name].env, "BENCH_PASSWORD": password, "BENCH_PKI": str(CACHE / "pki" / name)}

    pyinfra = Job(
        "pyinfra",
        [str(python.with_name("pyinfra")), "-y", "inventory.py", "deploy.py"],
        STACK / "pyinfra",
        environment("pyinfra") if "pyinfra" in names else {},
        fleets.get("pyinfra"),
        PYINFRA_UNCHANGED,
    )
    makers = {
        "ours": lambda: ansible(
            "ours",
            sys.executable,
            STACK / "ours" / "site.yml",
            [STACK / "inventory"],
            fleets["ours"],
            env=environment("ours"),
        ),
        "stock": lambda: ansible(
            "stock",
            str(python),
            STACK / "stock" / "site.yml",
            [STACK / "inventory"],
            fleets["stock"],
            env=environment("stock"),
        ),
        "pyinfra": lambda: pyinfra,
    }
    jobs = {name: makers[name]() for name in names}
    results: dict[str, Any] = {name: {} for name in names}
    shutil.rmtree(CACHE / "pki" / "ours", ignore_errors=True)
    with standing(list(fleets.values()), arguments.keep):
        for name, job in jobs.items():
            if name != "ours":
                shutil.rmtree(CACHE / "pki" / name, ignore_errors=True)
                addresses = {
                    host: fleets[name].settings.address(int(box.labels["vmfleet.number"]))
                    for host, box in fleets[name].containers().items()
                }
                pki.issue(CACHE / "pki" / name, addresses)
            first = job.measure("first", TIMEOUT_FIRST)
            tell(f"{name}, first run", first)
            results[name]["first"] = summary([first])
        for name, job in jobs.items():
            tell(f"{name}, warm-up", job.measure("warm-up", TIMEOUT_RERUN, settled=True))
        for name, fleet in fleets.items():
            state = check_stack.check(fleet, password)
            if state.problems:
                raise RunFailed(f"{name} did not reach the end state:\n  " + "\n  ".join(state.problems))
            results[name]["firewall_rules"] = sum(state.rules.values())
            say(f"{name} reached the end state, {sum(state.rules.values())} firewall rules")
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        for _round in range(arguments.repeat):
            for name, job in jobs.items():
                samples[name].append(job.measure("rerun", TIMEOUT_RERUN, settled=True))
                tell(f"{name}, re-run", samples[name][-1])
        for name, job in jobs.items():
            results[name]["rerun"] = summary(samples[name])
            results[name]["counts"] = count_stack(name, job, python)
    ratios = {}
    if "ours" in names:
        for name in names:
            # Runs of one round stand beside each other, so a busy minute hits all of them.
            pairs = [theirs.wall / mine.wall for mine, theirs in zip(samples["ours"], samples[name], strict=True)]
            ratios[name] = {
                "rerun": round(statistics.median(pairs), 2),
                "first": round(results[name]["first"]["wall"] / results["ours"]["first"]["wall"], 2),
            }
    code = "from importlib.metadata import version; print(version('pyinfra'))"
    version = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    write("stack", {"versions": {"pyinfra": version}, "hosts": 8, "tools": results, "ratios_to_ours": ratios})


def count_stack(name: str, job: Job, python: Path) -> dict[str, Any]:
    env, events, executions = recorder_env(name)
    if name != "pyinfra":
        job.measure("counted", TIMEOUT_RERUN, settled=True, env=env)
        return counts(read_events(events), executions)
    counted = Job("pyinfra", [str(python), "counted.py", *job.command[1:]], job.cwd, job.env, job.fleet, job.unchanged)
    counted.measure("counted", TIMEOUT_RERUN, settled=True, env=env)
    found: dict[str, int] = json.loads(events.read_text())
    assert job.fleet is not None
    hosts = len(job.fleet.containers())
    log = (CACHE / "pyinfra-counted.log").read_text()
    operations = re.search(r"Grand total +(\d+)", log)
    total = int(operations.group(1)) if operations else 0
    return {
        "hosts": hosts,
        "host_tasks": total,
        "host_tasks_per_host": round(total / hosts, 1),
        "ssh_executions": found["executions"],
        "ssh_connections": found["connections"],
        "uploads": found["uploads"],
        "module_transfers": 0,
    }


def measure_health(arguments: argparse.Namespace) -> None:
    """A thousand checks on one host, by our module and by what people write such checks with."""
    python = bench_venv()
    fleet = health.Hosts("bench-health", LOCAL)
    with standing([fleet], arguments.keep):
        write("health", health.measure(fleet, CACHE, python, arguments.repeat, tell))


def measure_balancer(arguments: argparse.Namespace) -> None:
    """Requests through our balancers, the distribution's, and past both, in turns."""
    fleet = Fleet("bench-balancer", BALANCER / "inventory")
    env = {"BENCH_PKI": str(CACHE / "pki" / "balancer"), **fleet.env}
    job = ansible("balancer", sys.executable, BALANCER / "site.yml", [BALANCER / "inventory"], fleet, env=env)
    with standing([fleet], arguments.keep, fresh=not arguments.keep):
        tell("set up", job.measure("set-up", TIMEOUT_FIRST))
        found = balancer.rounds(fleet, arguments.repeat, say)
        versions = {}
        for kind in ("nginx", "haproxy"):
            told = fleet.containers()[f"{kind}-ours"].exec_run([kind, "-v"]).output.decode()
            versions[kind] = next(iter(re.findall(r"\d+\.[\d.]*\d", told)), "")
    write("balancer", {"versions": versions, **found})


def measure_backup(arguments: argparse.Namespace) -> None:
    """A database and a tree of files saved and restored, by our engine, those under it, and shell pipelines."""
    fleet = Fleet("bench-backup", BACKUP / "inventory")
    env = {"BENCH_PKI": str(CACHE / "pki" / "backup"), **fleet.env}
    sizes = {"bench_scale": backup.SCALE * arguments.share, "bench_files": backup.FILES * arguments.share}
    options = [word for name, size in sizes.items() for word in ("-e", f"{name}={max(1, round(size))}")]
    job = ansible(
        "backup", sys.executable, BACKUP / "site.yml", [BACKUP / "inventory"], fleet, options=options, env=env
    )
    with standing([fleet], arguments.keep):
        tell("set up", job.measure("set-up", TIMEOUT_FIRST))
        found = backup.measure(fleet, arguments.repeat, say)
    if arguments.share == 1:
        write("backup", found)
    else:
        # No result: of another size, it says nothing on the one that is asked for.
        say(json.dumps(found))


PARTS = {
    "fleet": measure_fleet,
    "stack": measure_stack,
    "scale": measure_scale,
    "health": measure_health,
    "balancer": measure_balancer,
    "backup": measure_backup,
}


def sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    top.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, table (default: all of them)"
    )
    top.add_argument("--repeat", type=int, default=5, help="timed runs of each kind (5)")
    top.add_argument(
        "--sizes", type=sizes, default=list(SIZES), help="fleet sizes of the part scale (1,10,100,300,1000)"
    )
    top.add_argument("--forks", type=int, default=20, help="forks of the part scale (20)")
    top.add_argument(
        "--tools",
        type=lambda text: text.split(","),
        default=["ours", "stock", "pyinfra"],
        help="tools of the part stack (ours,stock,pyinfra)",
    )
    top.add_argument("--share", type=float, default=1, help="share of the part backup's full size (1); less tells only")
    top.add_argument("--record", action="store_true", help="scale: record the answers anew")
    top.add_argument("--keep", action="store_true", help="leave the fleets standing")
    return top


def main() -> int:
    arguments = parser().parse_args()
    unknown = set(arguments.parts) - {*PARTS, "table"}
    if unknown or arguments.repeat < 1:
        print(
            f"bench: no such part: {', '.join(sorted(unknown))}" if unknown else "bench: --repeat is at least 1",
            file=sys.stderr,
        )
        return 2
    CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parts = arguments.parts or [*PARTS, "table"]
    try:
        for part, measure in PARTS.items():
            if part in parts:
                measure(arguments)
    except (RunFailed, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return 130
    print(report.table(RESULTS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
