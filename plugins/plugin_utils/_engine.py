# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Calls a function of the collection on a host, as a module would be called, with the code compiled only once there.

Ansible's own wrapper compiles itself and the module anew for each task, for half a second of a processor: more than
all that a small change does on a host.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import re
import shlex
import zipfile
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.vmfleet.ops.plugins.plugin_utils._role_sources import COLLECTION, collection_root

# Parsing them all takes a worker a tenth of a second.
IMPORT = re.compile(r"^\s*from (\.*)([\w.]*) import (\([^)]*\)|.*)", re.MULTILINE)
WORD = re.compile(r"\w+")
PACKAGE = f"ansible_collections.{COLLECTION}.plugins.module_utils"
# In memory, so that it neither needs room on a full disk nor outlives a restart. An engine is a folder named after its
# content; one that was not used for a day is of an earlier version.
PLACE = "/run/vmfleet-engine"
BOOT = f"""
import base64, importlib, io, json, os, shutil, sys, time, zipfile
name, archive, function, request = sys.stdin.buffer.read().split(b"\\n")
place, engine = {PLACE!r}, {PLACE!r} + "/" + name.decode()
os.makedirs(place, mode=0o700, exist_ok=True)
if os.stat(place).st_uid != os.geteuid() or os.stat(place).st_mode & 0o022:
    sys.exit(place + " can be written to by others; remove it")
if not os.path.isdir(engine):
    for other in os.listdir(place):
        if time.time() - os.stat(place + "/" + other).st_mtime > 86400:
            shutil.rmtree(place + "/" + other, ignore_errors=True)
    fresh = f"{{engine}}.{{os.getpid()}}"
    zipfile.ZipFile(io.BytesIO(base64.b64decode(archive))).extractall(fresh)
    try:
        os.rename(fresh, engine)
    except OSError:
        shutil.rmtree(fresh)
os.utime(engine)
sys.path.insert(0, engine)
module, _dot, function = function.decode().rpartition(".")
answer = getattr(importlib.import_module({PACKAGE!r} + "." + module), function)(json.loads(base64.b64decode(request)))
print(json.dumps(answer))
"""


@functools.cache
def engine(module: str) -> tuple[str, str]:
    """A module of ``module_utils`` and all of the collection that it imports.

    :param module: its name below ``module_utils``.
    :returns: a name that stands for the content, and the files as a zip archive in base64.
    """
    root = collection_root(COLLECTION) / "plugins" / "module_utils"
    texts: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = root / f"{name.replace('.', '/')}.py"
        if not path.is_file():
            path = root / name.replace(".", "/") / "__init__.py"
        key = str(path.relative_to(root))
        # What is imported from a module may be another module, or something in it.
        if path.is_file() and key not in texts:
            texts[key] = path.read_bytes()
            waiting += _imported(name if path.name == "__init__.py" else name.rpartition(".")[0], texts[key])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for key in sorted(texts):
            archive.writestr(f"{PACKAGE.replace('.', '/')}/{key}", texts[key])
    digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]
    return digest, base64.b64encode(buffer.getvalue()).decode()


def _imported(package: str, text: bytes) -> list[str]:
    """Names below ``module_utils`` that a module may get from there, seen from its own package."""
    names = []
    for dots, source, imported in IMPORT.findall(text.decode()):
        if dots:
            parents = package.split(".") if package else []
            source = ".".join([*parents[: len(parents) + 1 - len(dots)], source]).strip(".")
        elif (source + ".").startswith(f"{PACKAGE}."):
            source = source[len(PACKAGE) + 1 :]
        else:
            continue
        names += [source, *(f"{source}.{name}".strip(".") for name in WORD.findall(imported))]
    # A module's package is imported before it.
    return [*names, *(name.rpartition(".")[0] for name in names if "." in name)]


def interpreter(action: ActionBase, variables: Mapping[str, Any]) -> str:
    """The Python of an action's host: the one that the inventory names, or the first on the path."""
    there = variables.get("ansible_delegated_vars", {}).get(action._task.delegate_to, variables)
    configured = str(action._templar.template(there.get("ansible_python_interpreter", "")))
    return configured if configured.startswith("/") else "python3"


def call(action: ActionBase, function: str, request: dict[str, Any], python: str) -> dict[str, Any]:
    """Calls ``module.function`` of ``module_utils`` on an action's host with a dictionary, and returns its answer.

    :param request: may hold secrets; it is seen neither in the process list nor in Ansible's output.
    :param python: the host's interpreter.
    :raises AnsibleActionFail: when the host gives no answer, with its last words.
    """
    name, archive = engine(function.rpartition(".")[0])
    words = [name, archive, function, base64.b64encode(json.dumps(request).encode()).decode()]
    command = f"{action._compute_environment_string()} {shlex.quote(python)} -I -c {shlex.quote(BOOT)}".strip()
    outcome = action._low_level_execute_command(command, in_data="\n".join(words).encode())
    lines = str(outcome["stdout"]).strip().splitlines()
    try:
        answer: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        said = str(outcome["stderr"]).strip()[-1000:] or "nothing"
        raise AnsibleActionFail(f"the host gave no answer (rc {outcome['rc']}) and said: {said}") from None
    return answer
