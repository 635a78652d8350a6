"""Throw-away hosts and playbook runs for the tests of converge."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PREFIX = f"{os.environ.get('VMFLEET_PREFIX') or 'vmfleet'}-converge"
FLEET_ENV = {**{k: v for k, v in os.environ.items() if k != "VMFLEET_SUBNET"}, "VMFLEET_PREFIX": PREFIX}
PLAY_TIMEOUT = 600


@dataclass(frozen=True)
class Host:
    """One container, looked at past Ansible so that a test does not believe what it tests."""

    name: str
    release: str

    @property
    def container(self) -> str:
        return f"{PREFIX}-{self.name}"

    def sh(self, script: str, check: bool = True, stdin: bytes | None = None) -> str:
        """Runs a script as root in the container and returns what it printed."""
        done = subprocess.run(
            ["docker", "exec", *(["-i"] if stdin is not None else []), self.container, "sh", "-c", script],
            capture_output=True,
            input=stdin,
            timeout=120,
        )
        out = done.stdout.decode(errors="replace")
        if check and done.returncode != 0:
            raise AssertionError(f"{self.name}: {script}\nrc {done.returncode}\n{out}\n{done.stderr.decode()}")
        return out.rstrip("\n")

    def put(self, path: str, content: str, mode: str = "0644") -> None:
        self.sh(f"mkdir -p $(dirname {path}); cat > {path}; chmod {mode} {path}", stdin=content.encode())

    def wait(self, script: str, seconds: float = 20) -> str:
        """Waits until a script succeeds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(AssertionError):
                return self.sh(script)
            time.sleep(0.2)
        return self.sh(script)


@dataclass
class Run:
    """One ansible-playbook run."""

    rc: int
    output: str
    results: list[dict[str, Any]] = field(default_factory=list)

    def of(self, host: Host | str) -> list[dict[str, Any]]:
        """A host's results, in order, each with its outcome."""
        name = host if isinstance(host, str) else host.name
        found = [{**line["result"], "outcome": line["outcome"]} for line in self.results if line["host"] == name]
        assert found, f"nothing ran on {name}:\n{self.output}"
        return found

    def one(self, host: Host | str) -> dict[str, Any]:
        """The only result of a host."""
        found = self.of(host)
        assert len(found) == 1, f"{len(found)} results:\n{self.output}"
        return found[0]


def ansible_playbook() -> list[str]:
    return [str(Path(sys.executable).with_name("ansible-playbook"))]


def environment(record: Path, more: Mapping[str, str]) -> dict[str, str]:
    return {
        **os.environ,
        "VMFLEET_RECORD": str(record),
        "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"),
        "ANSIBLE_CALLBACKS_ENABLED": "record",
        "ANSIBLE_NOCOLOR": "1",
        **more,
    }


@contextlib.contextmanager
def playing(
    plays: Sequence[dict[str, Any]],
    *,
    options: Sequence[str] = (),
    inventory: Path | None = None,
    env: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], Run]]]:
    """A running ansible-playbook and a function that waits for its end."""
    with tempfile.TemporaryDirectory(prefix="vmfleet-test-") as name:
        directory = Path(name)
        book, record = directory / "play.yml", directory / "record"
        book.write_text(f"---\n{yaml.safe_dump(list(plays), sort_keys=False, width=1000)}")
        record.touch()
        process = subprocess.Popen(
            [
                *(command or ansible_playbook()),
                "-i",
                str(inventory or ROOT / ".fleet" / PREFIX / "hosts.yml"),
                *options,
                str(book),
            ],
            cwd=ROOT,
            env=environment(record, env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

        def finish() -> Run:
            output, _none = process.communicate(timeout=PLAY_TIMEOUT)
            lines = [json.loads(line) for line in record.read_text().splitlines()]
            return Run(process.returncode, output, lines)

        try:
            yield process, finish
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


def play(plays: Sequence[dict[str, Any]], **options: Any) -> Run:
    with playing(plays, **options) as (_process, finish):
        return finish()


def converge_play(
    hosts: Sequence[Host], *roles: dict[str, Any], fail_at: str | None = None, **keywords: Any
) -> dict[str, Any]:
    """A play with one converge task per role."""
    tasks = [{"name": f"Converge {role.get('name', 'a role')}", "vmfleet.ops.converge": role} for role in roles]
    result: dict[str, Any] = {
        "hosts": ",".join(host.name for host in hosts),
        "gather_facts": False,
        "become": True,
        "tasks": tasks,
        **keywords,
    }
    if fail_at:
        result["environment"] = {"VMFLEET_FAIL_AT": fail_at}
    return result


def converge(
    hosts: Sequence[Host],
    *roles: dict[str, Any],
    check: bool = False,
    fail_at: str | None = None,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    **keywords: Any,
) -> Run:
    flags = ["--diff", *(["--check"] if check else []), *options]
    return play([converge_play(hosts, *roles, fail_at=fail_at, **keywords)], options=flags, env=env)


def succeeded(run: Run, hosts: Sequence[Host], changed: bool | None = None) -> list[dict[str, Any]]:
    """The results, after making sure that every host ran and was well; ``changed`` says what each must report."""
    assert run.rc == 0, run.output
    results = [result for host in hosts for result in run.of(host)]
    for result in results:
        assert result["outcome"] == "ok", run.output
        if changed is not None:
            assert result["changed"] is changed, f"changed={result['changed']}: {result.get('changes')}\n{run.output}"
    return results


def cycle(hosts: Sequence[Host], role: dict[str, Any], **keywords: Any) -> list[dict[str, Any]]:
    """Check mode, the run, and the run again, in one playbook: the first two say the same, the last nothing.

    Returns the results of the run, one per host.
    """
    book = converge_play(hosts, role, role, role, **keywords)
    book["tasks"][0]["check_mode"] = True
    run = play([book], options=["--diff"])
    results = []
    for host in hosts:
        found = run.of(host)
        assert run.rc == 0, run.output
        rehearsal, real, again = found
        assert real["changes"] == rehearsal["changes"], run.output
        assert diff_text(real) == diff_text(rehearsal), run.output
        assert (rehearsal["changed"], real["changed"], again["changed"]) == (True, True, False), run.output
        results.append({**real, "output": run.output})
    return results


def failed(run: Run, hosts: Sequence[Host], pattern: str, phase: str | None = None) -> list[dict[str, Any]]:
    """The failures, one per host, with a message that matches."""
    results = []
    for host in hosts:
        result = run.of(host)[-1]
        assert result["outcome"] == "failed", run.output
        assert re.search(pattern, result["msg"], re.DOTALL), result["msg"]
        if phase is not None:
            assert result["phase"] == phase, result
        assert result["changed"] is False
        results.append(result)
    return results


def diff_text(result: dict[str, Any]) -> str:
    """A result's diff as one text, after stripping nothing: for comparison and for the search of words."""
    return json.dumps(result.get("diff", []), indent=1, sort_keys=True)


def fleet(*arguments: str) -> None:
    done = subprocess.run(
        [str(ROOT / "scripts" / "fleet"), *arguments], env=FLEET_ENV, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"scripts/fleet {shlex.join(arguments)}\n{done.stdout}{done.stderr}"
