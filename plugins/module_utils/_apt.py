# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Packages in one apt transaction, without letting any of them start a service."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._host import CommandError, run
from ansible_collections.vmfleet.ops.plugins.module_utils._journal import put_back

POLICY = "/usr/sbin/policy-rc.d"
# 101: "action forbidden by policy", see invoke-rc.d(8).
POLICY_TEXT = "#!/bin/sh\n# vmfleet.ops: services start only once their own configuration stands.\nexit 101\n"
LISTS = "/var/lib/apt/lists"
LISTS_MAX_AGE = 3600
# systemctl's own variable: each package asks for a daemon-reload, and one after the last of them does it.
NO_RELOADS = {"SYSTEMD_OFFLINE": "1"}
# apt's and dpkg's own.
LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock")
LOCK_WAIT = 300
OPTIONS = [
    "-o",
    f"DPkg::Lock::Timeout={LOCK_WAIT}",
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "Dpkg::Use-Pty=0",
    "-q",
    "-y",
]


def installed_versions() -> dict[str, str]:
    """Every installed package (``name:arch``) and its version."""
    outcome = run(
        ["dpkg-query", "-W", "-f", "${binary:Package}\t${db:Status-Status}\t${Version}\n"], check="list packages"
    )
    rows = (line.split("\t") for line in outcome.stdout.splitlines())
    return {name: version for name, status, version in rows if status == "installed"}


def _update(force: bool) -> None:
    newest = 0.0
    if os.path.isdir(LISTS):
        names = [name for name in os.listdir(LISTS) if name.endswith(("_Packages", "_Packages.lz4", "InRelease"))]
        newest = os.path.getmtime(LISTS) if names else 0.0
    if force or time.time() - newest > LISTS_MAX_AGE:
        run(["apt-get", *OPTIONS, "update"], timeout=900, check="refresh the package lists")
        os.utime(LISTS)


def wait_for_end() -> None:
    """Waits until no package manager runs, such as one that outlived the run which had started it.

    :raises OSError: when one still runs after LOCK_WAIT seconds.
    """
    deadline = time.monotonic() + LOCK_WAIT
    for path in LOCKS:
        with open(path, "w", encoding="ascii") as handle:
            while True:
                try:
                    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)


def repair() -> None:
    """Completes what an interrupted package manager left half done."""
    wait_for_end()
    if run(["dpkg", "--audit"]).stdout.strip():
        run(["dpkg", "--force-confdef", "--force-confold", "--configure", "-a"], timeout=1800)
        run(["apt-get", *OPTIONS, "--fix-broken", "install"], timeout=1800, check="repair an interrupted installation")


def forbid_starts() -> None:
    """Keeps packages from starting services; :func:`allow_starts` ends it."""
    with open(POLICY + ".vmfleet", "w", encoding="ascii") as handle:
        handle.write(POLICY_TEXT)
        os.fchmod(handle.fileno(), 0o755)
    os.replace(POLICY + ".vmfleet", POLICY)


def allow_starts(kept: str | None) -> None:
    """Puts the host's own policy back, or removes ours; ``kept`` is a copy of the former one."""
    if kept:
        put_back(kept, POLICY)
        return
    try:
        with open(POLICY, encoding="utf-8", errors="replace") as handle:
            ours = handle.read() == POLICY_TEXT
    except FileNotFoundError:
        return
    if ours:
        os.unlink(POLICY)


def install(packages: Sequence[dict[str, Any]], refresh: bool = False) -> None:
    """Installs or moves packages to a version in one transaction.

    The caller reloads systemd's units afterwards, and forbids starts beforehand.

    :param packages: ``{name, version, status}``; version may be a glob, status is dpkg's word for the present state.
    :raises CommandError: with apt's output.
    """
    if not packages:
        return
    repair()
    _update(refresh)
    names = [item["name"] + (f"={item['version']}" if item["version"] else "") for item in packages]
    options = [*OPTIONS, "--no-install-recommends", "--allow-downgrades"]
    if any(item.get("status") == "config-files" for item in packages):
        # The package was here before; conffiles deleted since then would else stay away.
        options += ["-o", "Dpkg::Options::=--force-confmiss"]
    argv = ["apt-get", *options, "install", *names]
    try:
        run(argv, timeout=3600, check="install packages", environment=NO_RELOADS)
    except CommandError as error:
        if "404" not in error.outcome.stderr and "Unable to locate" not in error.outcome.stderr:
            raise
        _update(True)
        run(argv, timeout=3600, check="install packages", environment=NO_RELOADS)


def remove(names: Sequence[str]) -> None:
    """Removes packages, never purges: their data and configuration stay."""
    if names:
        repair()
        run(["apt-get", *OPTIONS, "remove", *names], timeout=1800, check="remove packages")


def way_back(versions: dict[str, str]) -> tuple[list[str], list[str]]:
    """What has to be removed, and what installed in which version, for a former set of packages."""
    now = installed_versions()
    new = [name for name in now if name not in versions]
    return new, [f"{name}={version}" for name, version in versions.items() if now.get(name) != version]


def cannot_go_back(versions: dict[str, str]) -> str | None:
    """Why the set of installed packages cannot become what it was, found out without a change; None if it can."""
    new, old = way_back(versions)
    if not new and not old:
        return None
    outcome = run(["apt-get", *OPTIONS, "-s", "--allow-downgrades", "install", *old, *(f"{name}-" for name in new)])
    if outcome.rc != 0:
        words = [line for line in outcome.stderr.splitlines() if line.startswith("E: ")]
        return "; ".join(words) or f"apt-get returned {outcome.rc}"
    expected = {name.partition(":")[0] for name in new}
    gone = {line.split()[1] for line in outcome.stdout.splitlines() if line.startswith("Remv ")}
    others = sorted(gone - expected)
    return f"{', '.join(others)} would have to go as well" if others else None


def back_to(versions: dict[str, str]) -> None:
    """Brings the set of installed packages back to what it was.

    :raises CommandError: when an old version cannot be had any more; apt's output names it.
    """
    repair()
    new, old = way_back(versions)
    if new:
        run(["apt-get", *OPTIONS, "remove", *new], timeout=1800, check="remove the new packages again")
    if old:
        run(
            ["apt-get", *OPTIONS, "--allow-downgrades", "install", *old],
            timeout=1800,
            check="install the former package versions again",
        )
