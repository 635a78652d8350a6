# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The change itself, on the host: lock, journal, stage, validate, swap, reload, verify, commit, or all back."""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import fnmatch
import grp
import json
import os
import pwd
import shlex
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils import _apt, _history, _ufw
from ansible_collections.vmfleet.ops.plugins.module_utils._desired import PREINSTALLED, STATE_DIR
from ansible_collections.vmfleet.ops.plugins.module_utils._durable import fsync_directory
from ansible_collections.vmfleet.ops.plugins.module_utils._health.runner import prove
from ansible_collections.vmfleet.ops.plugins.module_utils._host import (
    CommandError,
    Redactor,
    end_orphan,
    run,
    run_command,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._journal import (
    ORIGINALS,
    Journal,
    keep_copy,
    kind_of,
    put_back,
    read_generation,
    same,
    temporary_name,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._records import (
    group_record,
    is_up,
    observe,
    service_record,
    sysctl_path,
    unit_state,
    user_record,
)

# Not below STATE_DIR: check mode takes the lock as well and leaves nothing behind.
LOCK = "/run/vmfleet.lock"
# How long a service must stay up after it was touched before it counts as running, in seconds.
SETTLE = 1.5


class TransactionError(RuntimeError):
    """A change that did not come about; ``result`` is what the task reports."""

    def __init__(self, message: str, **result: Any) -> None:
        super().__init__(message)
        self.result = result


class Interrupted(RuntimeError):
    """The run was asked to end."""


def fail_point(phase: str) -> None:
    """Lets the tests kill a run at a given phase, as a power cut or the OOM killer would."""
    if os.environ.get("VMFLEET_FAIL_AT") == phase:
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def host_lock(timeout: float) -> Iterator[int]:
    """One change at a time on a host; yields the descriptor that holds the lock.

    :raises TransactionError: when another run holds it for longer than ``timeout`` seconds.
    """
    descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TransactionError(
                        f"another run has been changing this host for more than {timeout:g} s; wait for it to end, or "
                        "raise lock_timeout",
                        phase="lock",
                    ) from None
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)


def _account(lookup: Any, name: str, what: str) -> int:
    try:
        record = lookup(name)
    except KeyError:
        if name.isdigit():
            return int(name)
        raise TransactionError(
            f"there is no {what} {name!r} on the host; declare it or the package that makes it"
        ) from None
    return int(record[2])


def owner_ids(entry: dict[str, Any]) -> tuple[int, int]:
    """Numeric owner and group of a declared file or directory."""
    return _account(pwd.getpwnam, entry["owner"], "user"), _account(grp.getgrnam, entry["group"], "group")


def _matches_declaration(entry: dict[str, Any]) -> bool:
    """Whether a file on the host already is as declared (apt may have changed it since the probe)."""
    path, kind = entry["dest"], kind_of(entry["dest"])
    if entry["state"] == "absent":
        return kind == "absent" and not entry.get("give_back")
    if entry["state"] == "link":
        return kind == "link" and os.readlink(path) == entry["target"]
    if kind != "file":
        return False
    status = os.lstat(path)
    if (status.st_uid, status.st_gid) != owner_ids(entry) or stat.S_IMODE(status.st_mode) != int(entry["mode"], 8):
        return False
    with open(path, "rb") as handle:
        return bool(handle.read() == entry["content"])


def _missing(path: str) -> list[str]:
    """The directories that have to be made for ``path`` to be one, innermost first."""
    missing = []
    while kind_of(path) == "absent":
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def _concerned(old: dict[str, Any]) -> list[str]:
    """What a journal's old state is the state of, packages aside, by the names that ``observe`` takes."""
    return [
        *(f"file {entry['dest']}" for entry in old["files"]),
        *(f"directory {entry['path']}" for entry in old["directories"]),
        *(f"user {name}" for name in old["users"]),
        *(f"group {name}" for name in old["groups"]),
        *(f"sysctl {key}" for key in old["sysctl"]),
        *(f"service {service['name']}" for service in old["services"]),
        *(f"file {path}" for path in _ufw.STATE_FILES if old["firewall"] is not None),
        *(f"file {_apt.POLICY}" for _once in range(old["packages"] is not None)),
    ]


class Transaction:
    """One role's change on this host.

    :param payload: the planner's payload, file contents decoded.
    """

    def __init__(self, payload: dict[str, Any]) -> None:
        self.payload = payload
        self.journal = Journal(payload["name"])
        # Records of all that is named, as they were.
        self.before: dict[str, Any] = {}
        # What the history says of the change.
        self.made: dict[str, Any] = {}
        self.phase = "journal"
        self.files = payload["files"]
        # Services that were acted upon, as they were when it was done.
        self.touched: dict[str, dict[str, str]] = {}
        # When the last of them was.
        self.touched_at = 0.0
        self.swapped: list[str] = []

    # -- phases, in order -------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Everything up to, not including, the commit.

        :raises TransactionError, CommandError, CheckFailed, OSError, Interrupted: the caller takes back.
        """
        self.enter("journal")
        old = self._old_state()
        self.before = observe(_concerned(old))
        self.journal.open(old)
        fail_point("journaled")
        # ufw takes its rules away itself, so that comes before its own removal.
        firewall_first = bool(self.payload["firewall"]) and "ufw" in self.payload["packages"]["remove"]
        if firewall_first:
            self._firewall()
        self.enter("packages")
        self._packages()
        self.enter("accounts")
        self._accounts()
        self.enter("stage")
        self._directories()
        pending = [entry for entry in self.files if not entry["before_packages"] and not _matches_declaration(entry)]
        self.stage(pending)
        self.enter("validate")
        self.validate(pending)
        self.enter("swap")
        self._swap(pending)
        self.enter("sysctl")
        self._sysctl()
        if not firewall_first:
            self._firewall()
        self.enter("reload")
        self._daemon_reload()
        self._commands("before_services")
        self.enter("services")
        self._services()
        self._commands("after_services")
        self.enter("verify")
        self._assert_up()
        for check in self.payload["verify"]:
            prove(check, self._assert_up)
        self._settle()
        self.made = self._made()
        fail_point("verified")

    def _firewall(self) -> None:
        self.enter("firewall")
        if self.payload["firewall"]:
            _ufw.apply(self.payload["firewall"])

    def enter(self, phase: str) -> None:
        """Notes the phase for the error message, the journal and the tests."""
        self.phase = phase
        if phase != "journal":
            self.journal.mark(phase)
        fail_point(phase)

    def _old_state(self) -> dict[str, Any]:
        """The journal: the state to which everything named in the payload goes back."""
        payload = self.payload
        self.journal.prepare()
        files = []
        for number, entry in enumerate(self.files):
            kind = kind_of(entry["dest"])
            if kind in ("directory", "other"):
                raise TransactionError(f"{entry['dest']} is a {kind}; a file cannot take its place")
            copy = f"old/{number}"
            if kind != "absent":
                keep_copy(entry["dest"], self.journal.path(copy))
            # Of a file that the role no longer has nothing is known.
            secret = entry.get("sensitive", True)
            files.append({"dest": entry["dest"], "copy": copy if kind != "absent" else None, "sensitive": secret})
        returned = {}
        for number, entry in enumerate(self.files):
            if self._returns(entry):
                returned[self._original(entry)] = copy = f"old/{number}.original"
                keep_copy(self._original(entry), self.journal.path(copy))
        if payload["packages"]["preinstalled"]:
            there = os.path.exists(PREINSTALLED)
            if there:
                keep_copy(PREINSTALLED, self.journal.path("old/preinstalled"))
            files.append({"dest": PREINSTALLED, "copy": "old/preinstalled" if there else None, "sensitive": False})
        directories = [
            {"path": parent, "missing": _missing(parent), "old": None}
            for parent in dict.fromkeys(os.path.dirname(entry["dest"]) for entry in self.files)
            if kind_of(parent) == "absent"
        ]
        for entry in payload["directories"]:
            missing = _missing(entry["path"])
            if kind_of(entry["path"]) not in ("absent", "directory"):
                raise TransactionError(f"{entry['path']} is a {kind_of(entry['path'])}, not a directory")
            status = os.lstat(entry["path"]) if not missing else None
            directories.append(
                {
                    "path": entry["path"],
                    "missing": missing,
                    "old": [status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)] if status else None,
                }
            )
        packages = payload["packages"]["install"] or payload["packages"]["remove"]
        policy = None
        if packages and os.path.exists(_apt.POLICY):
            policy = "old/policy-rc.d"
            keep_copy(_apt.POLICY, self.journal.path(policy))
        sysctl = {}
        for key in payload["sysctl"]:
            try:
                with open(sysctl_path(key), encoding="ascii") as handle:
                    sysctl[key] = handle.read().strip()
            except OSError as error:
                if payload["state"] == "absent":
                    continue
                raise TransactionError(f"sysctl {key}: {error.strerror}; is it a setting of this kernel?") from error
        return {
            "format": 1,
            "role": payload["name"],
            "files": files,
            "originals": [
                self._original(entry)
                for entry in self.files
                if entry.get("take_over") and not os.path.lexists(self._original(entry))
            ],
            "returned": returned,
            "directories": directories,
            "packages": _apt.installed_versions() if packages else None,
            "policy": policy,
            "groups": {group["name"]: group_record(group["name"]) for group in payload["groups"]},
            "users": {user["name"]: user_record(user["name"]) for user in payload["users"]},
            "namesakes": {user["name"]: group_record(user["name"]) for user in payload["users"]},
            "sysctl": sysctl,
            "firewall": _ufw.save(self.journal.directory, "old/ufw") if payload["firewall"] else None,
            "services": [
                {**service_record(service["name"]), "trigger": service["trigger"]} for service in payload["services"]
            ],
            "commands": [command["name"] for command in payload["commands"]],
            "undo": [command.get("undo") for command in payload["commands"]],
        }

    def _packages(self) -> None:
        work = self.payload["packages"]
        # A service on its way out ends while its package is still whole.
        for service in self.payload["services"]:
            if service["state"] == "stopped" and is_up(unit_state(service["name"])):
                run(["systemctl", "stop", "--", service["name"]], check=f"stop {service['name']}")
            if service["state"] == "stopped" and service["enabled"] is False and not service["masked"]:
                # Later its unit file may be gone, and systemctl would leave the link that enables it.
                self._enable(service["name"], False)
        early = [entry for entry in self.files if entry["before_packages"] and not _matches_declaration(entry)]
        self.stage(early)
        self._validate_each(early)
        self._swap(early)
        if not work["install"] and not work["remove"]:
            return
        _apt.forbid_starts()
        fail_point("policy")
        try:
            _apt.install(work["install"], refresh=any(entry["dest"].startswith("/etc/apt/") for entry in early))
        finally:
            _apt.allow_starts(self.journal.copy("policy"))
        if work["preinstalled"]:
            with open(PREINSTALLED, "a", encoding="utf-8") as handle:
                handle.write("".join(f"{name}\n" for name in work["preinstalled"]))
        if work["remove"]:
            _apt.remove(self._unclaimed(work["remove"]))

    def _unclaimed(self, names: list[str]) -> list[str]:
        """Packages that no other role's record counts as its own."""
        claimed: set[str] = set()
        for record in os.listdir(f"{STATE_DIR}/roles"):
            if record != f"{self.payload['name']}.json":
                with open(f"{STATE_DIR}/roles/{record}", encoding="utf-8") as handle:
                    claimed.update(json.load(handle).get("packages", []))
        return [name for name in names if name not in claimed]

    def _accounts(self) -> None:
        for group in self.payload["groups"]:
            options = ["-g", str(group["gid"])] if group.get("gid") is not None else []
            if group_record(group["name"]) is None:
                options += ["-r"] if group["system"] else []
                self.journal.mark(f"group {group['name']}")
                run(["groupadd", *options, group["name"]], check=f"make group {group['name']}")
            elif options:
                run(["groupmod", *options, group["name"]], check=f"change group {group['name']}")
        for user in self.payload["users"]:
            options = []
            for flag, key in (("-u", "uid"), ("-g", "group"), ("-d", "home"), ("-s", "shell")):
                if user.get(key) is not None:
                    options += [flag, str(user[key])]
            if user["groups"]:
                options += ["-G", ",".join(user["groups"])]
            if user_record(user["name"]) is None:
                options += ["-r"] if user["system"] else []
                options += [] if user.get("group") else ["-U"]
                options += ["-m"] if user["create_home"] else ["-M"]
                self.journal.mark(f"user {user['name']}")
                run(["useradd", *options, user["name"]], check=f"make user {user['name']}")
            else:
                options += ["-a"] if user["groups"] else []
                if options:
                    run(["usermod", *options, user["name"]], check=f"change user {user['name']}")

    def _directories(self) -> None:
        for entry in self.payload["directories"]:
            os.makedirs(entry["path"], mode=0o755, exist_ok=True)
            os.chown(entry["path"], *owner_ids(entry))
            os.chmod(entry["path"], int(entry["mode"], 8))

    def _staged(self, entry: dict[str, Any]) -> str:
        return f"{self.journal.path('new')}{entry['dest']}"

    def _original(self, entry: dict[str, Any]) -> str:
        return f"{ORIGINALS}/{self.payload['name']}{entry['dest']}"

    def _returns(self, entry: dict[str, Any]) -> bool:
        """Whether what stood in a file's place before the role comes back."""
        return bool(entry.get("give_back")) and os.path.lexists(self._original(entry))

    def stage(self, entries: list[dict[str, Any]]) -> None:
        """Writes the new versions into a tree of their own, as they will be: owner, mode and place in the tree."""
        for entry in entries:
            path = self._staged(entry)
            self._mirror(os.path.dirname(entry["dest"]))
            if self._returns(entry):
                keep_copy(self._original(entry), path)
            elif entry["state"] == "link":
                os.symlink(entry["target"], path)
            elif entry["state"] == "file":
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "wb") as handle:
                    handle.write(entry["content"])
                    handle.flush()
                    os.fchown(handle.fileno(), *owner_ids(entry))
                    os.fchmod(handle.fileno(), int(entry["mode"], 8))
                    os.fsync(handle.fileno())

    def _mirror(self, directory: str) -> None:
        """The directories above a staged file, with the looks of the real ones."""
        if directory == "/":
            return
        self._mirror(os.path.dirname(directory))
        path = self.journal.path("new") + directory
        if not os.path.isdir(path):
            os.mkdir(path)
            if os.path.isdir(directory):
                status = os.stat(directory)
                os.chown(path, status.st_uid, status.st_gid)
                os.chmod(path, stat.S_IMODE(status.st_mode))

    def _validate_each(self, entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            if entry["state"] == "file" and entry["validate"]:
                command = [word.replace("%s", self._staged(entry)) for word in shlex.split(entry["validate"])]
                run(command, check=f"validate {entry['dest']}")

    def validate(self, entries: list[dict[str, Any]]) -> None:
        """Per file on the staged file; per role in a mount namespace where the staged files are already in place."""
        self._validate_each(entries)
        if not self.payload["validate"]:
            return
        view = self._overlays(entries)
        for command in self.payload["validate"]:
            argv = list(command["argv"]) if "argv" in command else ["/bin/sh", "-c", command["shell"]]
            if command.get("user"):
                argv = ["runuser", "-u", command["user"], "--", *argv]
            inside = [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "--",
                "/bin/sh",
                "-c",
                " && ".join([*view, 'exec "$@"']),
                "sh",
                *argv,
            ]
            outcome = run(
                inside, stdin=command.get("stdin"), environment=command["environment"], timeout=command["timeout"]
            )
            if outcome.rc != 0:
                shown = type(outcome)(tuple(argv), outcome.rc, outcome.stdout, outcome.stderr)
                raise CommandError("validate the staged files", shown)

    def _overlays(self, entries: list[dict[str, Any]]) -> list[str]:
        """Shell words that lay the staged tree over the real one within a mount namespace.

        Whatever a validator writes there ends in memory and vanishes with the namespace.
        """
        directories: set[str] = set()
        for entry in entries:
            directory = os.path.dirname(entry["dest"])
            while not os.path.isdir(directory):
                directory = os.path.dirname(directory)
            directories.add(directory)
        tops = [one for one in sorted(directories) if not any(one.startswith(other + "/") for other in directories)]
        scratch = self.journal.path("view")
        os.makedirs(scratch, mode=0o700, exist_ok=True)
        words = [f"mount -t tmpfs -o mode=0700 tmpfs {shlex.quote(scratch)}"]
        for number, top in enumerate(tops):
            upper, work = f"{scratch}/{number}", f"{scratch}/{number}.work"
            lower = f"{self.journal.path('new')}{top}:{top}"
            words.append(f"mkdir {upper} {work}")
            words += [f"{tool} --reference={shlex.quote(top)} {upper}" for tool in ("chown", "chmod")]
            words.append(
                f"mount -t overlay overlay -o {shlex.quote(f'lowerdir={lower},upperdir={upper},workdir={work}')} "
                f"{shlex.quote(top)}"
            )
        gone = [entry["dest"] for entry in entries if entry["state"] == "absent" and not self._returns(entry)]
        if gone:
            words.append(f"rm -f -- {' '.join(map(shlex.quote, gone))}")
        return words

    def _swap(self, entries: list[dict[str, Any]]) -> None:
        """All new versions are brought beside their names first, where a full disk still harms nothing."""
        for entry in entries:
            if entry["state"] != "absent" or self._returns(entry):
                os.makedirs(os.path.dirname(entry["dest"]), exist_ok=True)
                keep_copy(self._staged(entry), temporary_name(entry["dest"]))
            if entry.get("take_over"):
                self._keep_original(entry)
        fail_point("placed")
        for number, entry in enumerate(entries):
            if os.path.lexists(temporary_name(entry["dest"])):
                os.replace(temporary_name(entry["dest"]), entry["dest"])
            elif os.path.lexists(entry["dest"]):
                os.unlink(entry["dest"])
            self.swapped.append(entry["dest"])
            if number == 0:
                fail_point("swapped-one")
        for directory in {os.path.dirname(entry["dest"]) for entry in entries}:
            if os.path.isdir(directory):
                fsync_directory(directory)

    def commit(self) -> list[str]:
        """The new state is complete. What it replaced is kept, so that it can be taken back later.

        :returns: what is to be said if that cannot be.
        """
        problem = None
        if self.payload["history"]:
            committed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            problem = _history.keep(self.journal, self.payload["change"], {"committed": committed, **self.made})
        else:
            self.journal.close()
        fail_point("committed")
        # What was given back is the host's again, whatever becomes of it.
        for entry in self.files:
            if self._returns(entry):
                os.unlink(self._original(entry))
        _history.forget(self.payload["history"])
        return [f"role {self.payload['name']}: {problem}"] if problem else []

    def _made(self) -> dict[str, Any]:
        """Record before and after of each thing that was named, and the commands whose effect stays."""
        data = self.journal.data
        before, after = dict(self.before), observe(self.before)
        if data["packages"] is not None:
            now = _apt.installed_versions()
            for name in {*data["packages"], *now}:
                if data["packages"].get(name) != now.get(name):
                    before[f"package {name}"], after[f"package {name}"] = data["packages"].get(name), now.get(name)
        stays = [
            name
            for number, (name, undo) in enumerate(zip(data["commands"], data["undo"]))
            if not undo and self.journal.reached(f"command {number}")
        ]
        return {"before": before, "after": after, "stays": stays}

    def _keep_original(self, entry: dict[str, Any]) -> None:
        original = self._original(entry)
        # One that is there already is the older one: the role's record was lost.
        if kind_of(entry["dest"]) != "absent" and not os.path.lexists(original):
            keep_copy(entry["dest"], original)

    def _sysctl(self) -> None:
        for key in self.journal.data["sysctl"]:
            value = self.payload["sysctl"][key]
            with open(sysctl_path(key), "w", encoding="ascii") as handle:
                handle.write(value)

    def _daemon_reload(self) -> None:
        stale = any(
            unit_state(service["name"]).get("NeedDaemonReload") == "yes" for service in self.payload["services"]
        )
        if (
            stale
            or self.payload["packages"]["install"]
            or any(path.startswith(("/etc/systemd/", "/lib/systemd/", "/usr/lib/systemd/")) for path in self.swapped)
        ):
            run(["systemctl", "daemon-reload"], check="load the unit files")

    def _due(self, command: dict[str, Any]) -> bool:
        """Asks the guard again: packages and files of this very transaction may have answered it."""
        if command.get("unless"):
            outcome = run_command(command["unless"])
            expected = command["unless"].get("stdout")
            return outcome.rc != 0 or (expected is not None and outcome.stdout.strip() != expected.strip())
        if command.get("creates"):
            return not os.path.exists(command["creates"])
        return any(
            fnmatch.fnmatchcase(name, pattern)
            for name in [*self.swapped, *(["packages"] if self.payload["packages"]["install"] else [])]
            for pattern in command["on_change_of"]
        )

    def _commands(self, when: str) -> None:
        for number, command in enumerate(self.payload["commands"]):
            if command["when"] != when or not self._due(command):
                continue
            self.journal.mark(f"command {number}")
            fail_point("command")
            run_command(command, check=command["name"], pid_file=self.journal.path("running"))
            if (command.get("unless") or command.get("creates")) and self._due(command):
                raise TransactionError(
                    f"{command['name']}: the command ended well, but its guard still finds the work undone",
                    phase=self.phase,
                )

    def _services(self) -> None:
        for service in self.payload["services"]:
            name = service["name"]
            state = unit_state(name)
            found = state.get("LoadState") != "not-found"
            if not found and service["state"] != "started":
                continue
            if service["masked"] != (state.get("LoadState") == "masked"):
                run(
                    ["systemctl", "mask" if service["masked"] else "unmask", "--", name], check=f"mask or unmask {name}"
                )
            if service["enabled"] is not None and not service["masked"]:
                self._enable(name, service["enabled"])
            up = is_up(state)
            if service["state"] == "started" and not up:
                self._act("start", name, state)
            elif service["state"] == "stopped":
                if up or state.get("ActiveState") == "activating":
                    self._act("stop", name, state)
            elif up and service["trigger"]:
                # The unit may be another one than when it was looked at.
                self._act("restart" if state.get("CanReload") == "no" else service["trigger"], name, state)
                fail_point("service")

    def _enable(self, name: str, enabled: bool) -> None:
        state = unit_state(name).get("UnitFileState", "")
        if enabled != (state in ("enabled", "enabled-runtime", "static", "alias", "generated", "indirect", "linked")):
            run(
                ["systemctl", "enable" if enabled else "disable", "--", name],
                check=f"{'enable' if enabled else 'disable'} {name}",
            )

    def _act(self, verb: str, name: str, before: dict[str, str]) -> None:
        if verb in ("start", "restart"):
            # Our starts must not count towards the limit that ends a crash loop.
            run(["systemctl", "reset-failed", "--", name])
        try:
            run(["systemctl", verb, "--", name], check=f"{verb} {name}")
            if verb != "stop":
                self.touched[name] = before if verb == "reload" else unit_state(name)
                self.touched_at = time.monotonic()
        except CommandError as error:
            raise TransactionError(
                str(error),
                command=list(error.outcome.argv),
                rc=error.outcome.rc,
                stdout=error.outcome.stdout,
                stderr=error.outcome.stderr + _log_of(name),
                phase=self.phase,
            ) from error

    def _assert_up(self) -> None:
        """Every service that is to run does, and one that was touched has not been started anew since.

        :raises TransactionError: with the service's last words.
        """
        for service in self.payload["services"]:
            if service["state"] != "started":
                continue
            name = service["name"]
            state, touched = unit_state(name), self.touched.get(name)
            same = touched is None or all(state.get(key) == touched.get(key) for key in ("InvocationID", "NRestarts"))
            if not is_up(state) or not same:
                raise TransactionError(
                    f"{name} did not stay up: {state.get('ActiveState')} ({state.get('SubState')}, "
                    f"{state.get('Result')})",
                    phase=self.phase,
                    stderr=_log_of(name),
                )

    def _settle(self) -> None:
        """A service whose checks have passed counts as running once it has stayed up for a while.

        One look at the end of it is enough: a start in between shows in the unit's counters.
        """
        if self.touched:
            time.sleep(max(0.0, self.touched_at + SETTLE - time.monotonic()))
            self._assert_up()


def _log_of(unit: str) -> str:
    """The last words of a unit."""
    return "\n" + run(["journalctl", "-u", unit, "-n", "15", "-o", "cat", "--no-pager"]).stdout


# -- taking back ----------------------------------------------------------------------------------------------------


def former_packages(before: dict[str, Any]) -> dict[str, str]:
    """The installed packages with those as they were that are among the records of what was before."""
    moved = {name.partition(" ")[2]: record for name, record in before.items() if name.startswith("package ")}
    wanted = {**_apt.installed_versions(), **moved}
    return {name: version for name, version in wanted.items() if version is not None}


class _Undo:
    """Restores the state in a journal; every step is tried, whatever becomes of the others."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.data = journal.data
        self.errors: list[str] = []
        # Whether a service was acted upon.
        self.touched = False

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Runs one step and keeps its error."""
        try:
            yield
        except (CommandError, OSError, TransactionError, KeyError) as error:
            detail = error.outcome.stderr.strip() if isinstance(error, CommandError) else ""
            self.errors.append(f"{what}: {error} {detail}".strip())

    def run(self) -> list[str]:
        """Takes the transaction back and returns what could not be restored, empty when all was."""
        end_orphan(self.journal.path("running"))
        packages = self.data["packages"] is not None
        if packages:
            with self.step("the package manager of the interrupted run"):
                _apt.wait_for_end()
        fail_point("back-commands")
        self._stop_new_services()
        self._undo_commands()
        fail_point("back-files")
        self._files()
        firewall = self.data["firewall"] if self.journal.reached("firewall") else None
        if packages:
            fail_point("back-packages")
            with self.step("packages"):
                if firewall and not firewall["copies"]:
                    # Without ufw nobody could take its rules out of the kernel.
                    _ufw.turn_off()
                _apt.forbid_starts()
                former = self._former_packages()
                if any(_apt.way_back(former)):
                    self._differed()
                _apt.back_to(former)
            with self.step("policy-rc.d"):
                _apt.allow_starts(self.journal.copy("policy"))
            # dpkg may have written while it went back.
            self._files()
        for path in self.data["originals"]:
            with self.step(path), contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for path, copy in self.data.get("returned", {}).items():
            with self.step(path):
                if not os.path.lexists(path):
                    put_back(self.journal.path(copy), path)
        fail_point("back-accounts")
        self._accounts()
        self._directories()
        for key, value in self.data["sysctl"].items():
            with self.step(f"sysctl {key}"), open(sysctl_path(key), "w", encoding="ascii") as handle:
                handle.write(value)
        fail_point("back-firewall")
        with self.step("firewall"):
            if firewall is not None:
                _ufw.restore(self.journal.directory, firewall)
        with self.step("unit files"):
            run(["systemctl", "daemon-reload"], check="load the unit files")
        fail_point("back-services")
        self._services()
        if self.journal.note:
            self._settle()
        return self.errors

    def _differed(self) -> None:
        """Notes, for the case that this run is killed, that services have something to take up again."""
        # A disk without room is no reason to leave a file as it is.
        with contextlib.suppress(OSError):
            self.journal.mark("put back")

    def _former_packages(self) -> dict[str, str]:
        """All packages as they were. Of a committed transaction only what it moved: others may have come since."""
        if not self.journal.note:
            return dict(self.data["packages"])
        return former_packages(self.journal.note["before"])

    def _settle(self) -> None:
        """What ran before runs now, and goes on to: nobody looks at the checks of a state that is gone."""
        names = [service["name"] for service in self.data["services"] if service["active"] and self.touched]
        time.sleep(SETTLE if names else 0)
        for name in names:
            with self.step(f"service {name}"):
                state = unit_state(name)
                if not is_up(state):
                    raise TransactionError(f"does not run: {state.get('ActiveState')} ({state.get('Result')})")

    def _stop_new_services(self) -> None:
        for service in self.data["services"]:
            if not service["active"]:
                with self.step(f"stop {service['name']}"):
                    state = unit_state(service["name"])
                    if state.get("ActiveState") not in ("inactive", "failed", None):
                        run(["systemctl", "stop", "--", service["name"]], check=f"stop {service['name']}")
                    run(["systemctl", "reset-failed", "--", service["name"]])
            if not service["found"]:
                # Once the unit file is gone, systemctl would leave the link that enables it.
                with self.step(f"disable {service['name']}"):
                    if unit_state(service["name"]).get("UnitFileState") == "enabled":
                        run(["systemctl", "disable", "--", service["name"]], check=f"disable {service['name']}")

    def _undo_commands(self) -> None:
        """Undoes commands, last first. One that fails is tried once more by the next run, then left at that.

        Nobody can mend an undo that cannot work, and it must not keep the host from ever being changed again.
        """
        for number, undo in reversed(list(enumerate(self.data["undo"]))):
            if not undo or not self.journal.reached(f"command {number}") or self.journal.reached(f"undone {number}"):
                continue
            last_try = self.journal.reached(f"undo {number}")
            self.journal.mark(f"undo {number}")
            with self.step("undo a command"):
                outcome = run_command(undo)
                if outcome.rc != 0 and not last_try:
                    raise CommandError("undo a command", outcome)
                self.journal.mark(f"undone {number}")

    def _files(self) -> None:
        for entry in self.data["files"]:
            with self.step(entry["dest"]):
                temporary = temporary_name(entry["dest"])
                if os.path.lexists(temporary):
                    os.unlink(temporary)
                copy = self.journal.path(entry["copy"]) if entry["copy"] else None
                if copy is None and os.path.lexists(entry["dest"]):
                    self._differed()
                    os.unlink(entry["dest"])
                elif copy and not same(copy, entry["dest"]):
                    self._differed()
                    os.makedirs(os.path.dirname(entry["dest"]), exist_ok=True)
                    put_back(copy, entry["dest"])

    def _accounts(self) -> None:
        for name, record in self.data["users"].items():
            with self.step(f"user {name}"):
                now = user_record(name)
                # An account that a package made stays, as it does when a package is removed.
                if record is None and now is not None and self.journal.reached(f"user {name}"):
                    run(["userdel", name], check=f"remove user {name} again")
                    namesake = self.data["namesakes"][name]
                    if namesake is not None and group_record(name) is None:
                        # userdel takes the group of the same name with it, also one that was there before.
                        run(["groupadd", "-g", str(namesake["gid"]), name], check=f"make group {name} again")
                elif record is not None and now is not None and record != now:
                    run(
                        [
                            "usermod",
                            "-u",
                            str(record["uid"]),
                            "-g",
                            str(record["gid"]),
                            "-d",
                            record["home"],
                            "-s",
                            record["shell"],
                            "-G",
                            ",".join(record["groups"]),
                            name,
                        ],
                        check=f"restore user {name}",
                    )
        for name, record in self.data["groups"].items():
            with self.step(f"group {name}"):
                now = group_record(name)
                if record is None and now is not None and self.journal.reached(f"group {name}"):
                    run(["groupdel", name], check=f"remove group {name} again")
                elif record is not None and now is not None and now != record:
                    run(["groupmod", "-g", str(record["gid"]), name], check=f"restore group {name}")

    def _directories(self) -> None:
        for entry in self.data["directories"]:
            with self.step(entry["path"]):
                if entry["old"] is not None:
                    os.chown(entry["path"], entry["old"][0], entry["old"][1])
                    os.chmod(entry["path"], entry["old"][2])
                for path in entry["missing"]:
                    try:
                        os.rmdir(path)
                    except OSError as error:
                        # What came to lie in it is not ours to delete.
                        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                            raise

    def _services(self) -> None:
        concerned = self.journal.reached("services") and self.journal.reached("put back")
        for service in self.data["services"]:
            name = service["name"]
            with self.step(f"service {name}"):
                state = unit_state(name)
                if state.get("LoadState") == "not-found" or not service["found"]:
                    continue
                if service["masked"] != (state.get("LoadState") == "masked"):
                    run(["systemctl", "mask" if service["masked"] else "unmask", "--", name], check="mask or unmask")
                if service["enabled"] in ("enabled", "disabled") and state.get("UnitFileState") != service["enabled"]:
                    run(
                        ["systemctl", "enable" if service["enabled"] == "enabled" else "disable", "--", name],
                        check="restore enablement",
                    )
                if not service["active"]:
                    continue
                if not is_up(state):
                    self.touched = True
                    run(["systemctl", "reset-failed", "--", name])
                    run(["systemctl", "restart", "--", name], check=f"start {name} again")
                elif service["trigger"] and concerned:
                    self.touched = True
                    run(["systemctl", "reset-failed", "--", name])
                    if run(["systemctl", service["trigger"], "--", name]).rc != 0:
                        run(["systemctl", "restart", "--", name], check=f"restart {name} on its old configuration")


def take_back(journal: Journal) -> None:
    """Restores what a journal holds and closes it.

    :raises TransactionError: naming what could not be restored; the journal stays for the next run.
    """
    errors = _Undo(journal).run()
    if errors:
        raise TransactionError(
            f"role {journal.role}: not everything could be put back: {'; '.join(errors)}. Mend the cause, and the next "
            f"run tries again; or remove {journal.directory} to keep the host as it is now.",
            phase="take back",
        )
    fail_point("taken-back")
    journal.close()


def recover() -> list[str]:
    """Takes back every transaction that was killed; the caller holds the lock. Returns the roles' names."""
    roles = []
    for journal in Journal.pending():
        take_back(journal)
        roles.append(journal.role)
    return roles


def _decode(payload: dict[str, Any]) -> dict[str, Any]:
    for entry in payload["files"]:
        if "content" in entry:
            entry["content"] = base64.b64decode(entry["content"])
    return payload


def _secret_lines(command: dict[str, Any]) -> Iterator[str]:
    if command.get("secrets") is None:
        yield command.get("stdin") or ""
        return
    for secret in command["secrets"]:
        # The first word of a line counts as a directive, which is shown.
        yield f"secret {secret}"


def _secrets(payload: dict[str, Any]) -> Iterator[str]:
    for entry in payload["files"]:
        if entry.get("sensitive") and "content" in entry:
            yield entry["content"].decode(errors="replace")
    for command in [*payload["commands"], *payload["verify"]]:
        if command.get("sensitive"):
            yield from _secret_lines(command)
            for part in (command, command.get("unless") or {}, command.get("undo") or {}):
                if part is not command and command.get("secrets") is None:
                    yield part.get("stdin") or ""
                yield from (f"secret {value}" for value in (part.get("environment") or {}).values())


def wait_for_word(journal: Journal, commit: Callable[[], object], seconds: float, descriptor: int) -> None:
    """Stays behind as a process of its own: commits when the controller reports back, else takes everything back.

    This is the dead man's switch of a firewall change: a controller that was locked out cannot say anything.

    :param seconds: how long it waits.
    :param descriptor: holds the host's lock.
    """
    if os.fork():
        return
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    try:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.path.exists(journal.path("confirmed")):
                commit()
                return
            time.sleep(0.05)
        take_back(journal)
    finally:
        os.close(descriptor)
        os._exit(0)


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """A lost terminal does not end a change; a request to end takes it back; what is made is readable as declared.

    Afterwards the process is as it was: under Mitogen it goes on to other tasks.
    """

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted(f"ended by signal {number}")

    former = {
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, interrupt),
        signal.SIGINT: signal.signal(signal.SIGINT, interrupt),
    }
    umask = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(umask)
        for number, handler in former.items():
            signal.signal(number, handler)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """:func:`carry_out` for the action: ``check_mode`` is part of the request, and a failure is an answer as well."""
    check_mode = request.pop("check_mode")
    try:
        return carry_out(request, check_mode)
    except TransactionError as error:
        return {"failed": True, "msg": str(error), **error.result}


def carry_out(payload: dict[str, Any], check_mode: bool = False) -> dict[str, Any]:
    """One role's change on the host.

    :param payload: the planner's payload with file contents in base64.
    :param check_mode: stage and validate only, and leave nothing behind.
    :returns: ``changed``; ``stale`` when another run was in between and the host must be looked at again;
        ``recovered``, the roles whose killed transactions were taken back; ``awaiting_word``, seconds within which the
        controller must confirm a firewall change.
    :raises TransactionError: after everything was put back.
    """
    payload = _decode(payload)
    redact = Redactor(_secrets(payload))

    with orderly_end(), host_lock(payload["lock_timeout"]) as descriptor:
        recovered = [] if check_mode else recover()
        if recovered or read_generation() != payload["generation"]:
            return {"changed": bool(recovered), "stale": True, "recovered": recovered}
        if not payload["work"]:
            # The open journal that was seen is gone, without a change.
            return {"changed": False, "stale": True, "recovered": []}
        transaction = Transaction(payload)
        if check_mode:
            return _rehearse(transaction, redact)
        try:
            transaction.apply()
        except Exception as error:
            raise _failure(transaction, error, redact) from error
        firewall = payload["firewall"]
        if firewall and firewall["risky"]:
            wait_for_word(transaction.journal, transaction.commit, firewall["confirm"], descriptor)
            fail_point("awaiting-word")
            return {"changed": True, "awaiting_word": firewall["confirm"]}
        return {"changed": True, "warnings": transaction.commit()}


def _rehearse(transaction: Transaction, redact: Redactor) -> dict[str, Any]:
    """Staging and validation without a change, for check mode on a host that has the packages already."""
    transaction.journal = Journal.scratch(transaction.journal.role)
    try:
        pending = [entry for entry in transaction.files if not _matches_declaration(entry)]
        transaction.phase = "validate"
        transaction.stage(pending)
        transaction.validate(pending)
    except Exception as error:
        raise _described(error, redact, "validate", "nothing was changed (check mode)") from error
    finally:
        shutil.rmtree(transaction.journal.directory, ignore_errors=True)
    return {"changed": True}


def _described(error: Exception, redact: Redactor, phase: str, outcome: str) -> TransactionError:
    result: dict[str, Any] = {"phase": phase}
    if isinstance(error, TransactionError):
        result.update(error.result)
    if isinstance(error, CommandError):
        result.update(
            command=list(error.outcome.argv),
            rc=error.outcome.rc,
            stdout=error.outcome.stdout,
            stderr=error.outcome.stderr,
        )
    for key in ("stdout", "stderr"):
        if key in result:
            result[key] = redact(result[key])
    if "command" in result:
        result["command"] = [redact(word) for word in result["command"]]
    return TransactionError(f"{redact(str(error))} (phase {result['phase']}); {outcome}", **result)


def _failure(transaction: Transaction, error: Exception, redact: Redactor) -> TransactionError:
    """Takes everything back and says how that went."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not os.path.exists(transaction.journal.path("journal.json")):
        shutil.rmtree(transaction.journal.directory, ignore_errors=True)
        return _described(error, redact, transaction.phase, "nothing was changed")
    fail_point("take-back")
    try:
        take_back(transaction.journal)
    except TransactionError as second:
        return _described(error, redact, transaction.phase, redact(str(second)))
    return _described(error, redact, transaction.phase, "everything was put back as it was")
