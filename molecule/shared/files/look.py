"""Looks at a host as the checks of a scenario say, all of them in one execution.

Stock Python only: what a role claims is not judged by the collection's own code. Reads the checks as JSON from standard
input; its arguments are the names that `only` may have. What each came to goes to standard error, reports to standard
output; ends with 1 if a check failed or none was made. docs/testing.md says what a check may have.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Callable


class Wrong(Exception):
    """What was seen instead."""


class Stay(urllib.request.HTTPRedirectHandler):
    """Answers with a redirect are answers."""

    def redirect_request(self, *_: Any) -> None:
        return None


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")


def expect(holds: bool, seen: object) -> None:
    if not holds:
        raise Wrong(str(seen)[-2000:])


def service(check: Mapping[str, Any]) -> str:
    argv = ["systemctl", "show", check["service"], "--property=ActiveState", "--property=UnitFileState"]
    shown = run(argv).stdout.split()
    wanted = {f"ActiveState={check.get('active', 'active')}", f"UnitFileState={check.get('enabled', 'enabled')}"}
    expect(wanted <= set(shown), shown)
    return ""


def command(check: Mapping[str, Any]) -> str:
    done = run(["runuser", "-u", check.get("user", "root"), "--", "/bin/sh", "-c", check["command"]])
    printed = done.stdout.rstrip("\n")
    right = done.returncode == check.get("rc", 0) and re.search(str(check.get("stdout", "")), printed)
    expect(bool(right), f"rc {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def url(check: Mapping[str, Any]) -> str:
    request = urllib.request.Request(check["url"], headers=check.get("headers", {}))  # noqa: S310 - a scenario says which
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=30) as answer:
            status, body = answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        status, body = error.code, error.read().decode(errors="replace")
    expect(status == check.get("status", 200) and bool(re.search(check.get("body", ""), body)), f"{status} {body}")
    return ""


def port(check: Mapping[str, Any]) -> str:
    with socket.socket() as connection:
        connection.settimeout(5)
        failed = connection.connect_ex((check.get("address", "127.0.0.1"), int(check["port"])))
    expect(bool(failed) is (check.get("state") == "stopped"), os.strerror(failed) if failed else "it answers")
    return ""


def path(check: Mapping[str, Any]) -> str:
    name = check["path"]
    expect(os.path.lexists(name) is check.get("exists", True), "is there" if os.path.lexists(name) else "is not there")
    if not os.path.lexists(name):
        return ""
    found = os.lstat(name)
    seen = {
        "mode": f"{stat.S_IMODE(found.st_mode):04o}",
        "owner": pwd.getpwuid(found.st_uid).pw_name,
        "group": grp.getgrgid(found.st_gid).gr_name,
    }
    expect(all(check.get(key, value) == value for key, value in seen.items()), seen)
    if "contains" in check:
        with open(name, encoding="utf-8", errors="replace") as handle:
            content = handle.read()
        expect(bool(re.search(check["contains"], content)), content)
    return ""


KINDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "service": service,
    "command": command,
    "url": url,
    "port": port,
    "path": path,
}
# How often a kind is asked again, a second apart; what systemd and the files say is said at once.
RETRIES = {"command": 5, "url": 5, "port": 10}


def look(check: Mapping[str, Any], kind: str) -> str:
    """What it printed. :raises Wrong: when it is so still after its retries."""
    retries = int(check.get("retries", RETRIES.get(kind, 0)))
    for left in range(retries, -1, -1):
        try:
            return KINDS[kind](check)
        except (Wrong, OSError) as error:
            if not left:
                raise Wrong(str(error)) from error
        time.sleep(1)
    raise AssertionError("retries is negative")


def main() -> int:
    made = failed = 0
    for check in json.load(sys.stdin):
        if check.get("only", sys.argv[1]) not in sys.argv[1:]:
            continue
        (kind,) = KINDS.keys() & check.keys()
        made += 1
        name = check.get("name", f"{kind} {check[kind]}")
        try:
            printed = look(check, kind)
        except Wrong as error:
            failed += 1
            sys.stderr.write(f"FAILED  {name}: {error}\n")
            continue
        sys.stderr.write(f"ok      {name}\n")
        if check.get("report"):
            sys.stdout.write(printed)
    sys.stderr.write(f"{made - failed} of {made} checks hold\n")
    return 1 if failed or not made else 0


if __name__ == "__main__":
    sys.exit(main())
