# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Answers to the probes of all roles, from the one look that preflight takes at a host.

A host keeps the probe that each role sent last. Preflight runs them together, and a role that would send the very same
text takes its answer from here, so that a converged run costs one SSH execution for each host. An answer is good once,
for two minutes, and only until this run changes anything on any host.

The answers lie in the folder that Ansible makes for a run, for this user alone, and removes at its end.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import time
from pathlib import Path

from ansible import constants as C
from ansible_collections.vmfleet.ops.plugins.module_utils._desired import STATE_DIR
from ansible_collections.vmfleet.ops.plugins.module_utils._probe import ASK_PACKAGES, ASK_UNITS, is_whole, nonce_of

# Seconds. Whoever changes a host by hand meanwhile is noticed by the next run.
GOOD_FOR = 120
PROBES = f"{STATE_DIR}/probes"
# Units and packages of all of them are asked for at once; names are lines, of which the shell makes nothing else. Each
# probe gets a shell of its own, since they define functions of the same names.
ASK_ALL = f"""cd {PROBES} && {{
names() {{ sed -n "s/^#$1 //p" ./*; }}
newline='
'
units=$(names u) packages=$(names p)
VMFLEET_UNITS=$(IFS=$newline; set -f; {ASK_UNITS} $units)
VMFLEET_PACKAGES=$(IFS=$newline; set -f; {ASK_PACKAGES} $packages)
for i in ./*; do ( . "$i" ); done
}}"""


def _folder() -> Path:
    return Path(C.DEFAULT_LOCAL_TMP) / "vmfleet-looks"


def _answer(host: str) -> Path:
    return _folder() / hashlib.sha256(host.encode()).hexdigest()


def _changed() -> Path:
    return _folder() / "changed"


def keep(host: str, answer: str) -> None:
    """Remember what ``host`` said to `ASK_ALL`."""
    _folder().mkdir(mode=0o700, exist_ok=True)
    _answer(host).write_text(answer, encoding="utf-8")


def wanted(host: str) -> bool:
    """Whether preflight has asked ``host``, so that its probes should be kept there for the next time."""
    return _answer(host).exists()


def take(host: str, script: str) -> str | None:
    """The answer of ``host`` to this probe, or None if there is none that is good."""
    kept = _answer(host)
    with contextlib.suppress(OSError):
        if _changed().exists() or time.time() - kept.stat().st_mtime > GOOD_FOR:
            return None
        answer = kept.read_text(encoding="utf-8")
        if is_whole(script, answer):
            # Fails if it was taken before.
            kept.with_name(f"{kept.name}-{nonce_of(script)}").touch(exist_ok=False)
            return answer
    return None


def spoil() -> None:
    """No answer is good any more: this run is about to change something."""
    with contextlib.suppress(FileNotFoundError):
        _changed().touch()


def and_keep_it(script: str, name: str, absent: bool) -> str:
    """The probe, and after it what keeps it on the host for the next run, or forgets it with its role.

    A host on which no role has been leaves no trace of it, and one without room is asked anew each time.
    """
    path = shlex.quote(f"{PROBES}/{name}")
    if absent:
        return f"{script}rm -f {path}\n"
    draft, end = shlex.quote(f"{PROBES}/.{name}"), f"KEPT-{nonce_of(script)}"
    return (
        f"{script}test -d {STATE_DIR} && umask 077 && mkdir -p {PROBES} && {{ cat >{draft} && mv {draft} {path}; }}"
        f" 2>/dev/null <<'{end}'\n{script}{end}\n"
    )
