# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One read-only look at a host in plain shell: the script that asks, and the parser of its answer.

The script needs only what Debian marks essential, plus the tools of the resources that are asked about. It travels
on standard input, so that nothing of it stands in a process list, and it starts no Python.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._desired import PREINSTALLED, STATE_DIR, manifest_path

UNIT_PROPERTIES = ("Names", "LoadState", "ActiveState", "SubState", "UnitFileState", "NeedDaemonReload", "CanReload")
# cat for small files; a process for each of them would be half the cost of a probe. Not for /proc/sys: a shell reads
# byte by byte, and the kernel tells numbers to the first read only.
SHOW = """c() { while IFS= read -r line || [ -n "$line" ]; do printf '%s\\n' "$line"; done <"$1"; }"""
# Units and packages. When the probes of several roles run together, the variables hold what was asked once for all of
# them: systemctl alone is half the cost of a probe.
FIELDS = "${Package}\\t${Architecture}\\t${db:Status-Status}\\t${Version}\\n"
ASK_UNITS = f"systemctl show -p {','.join(UNIT_PROPERTIES)} --"
ASK_PACKAGES = f"dpkg-query -W -f '{FIELDS}' --"
SHARED = f"""u() {{ if [ -n "$VMFLEET_UNITS" ]; then printf '%s\\n' "$VMFLEET_UNITS"; else {ASK_UNITS} "$@"; fi; }}
p() {{ if [ -n "$VMFLEET_PACKAGES" ]; then printf '%s\\n' "$VMFLEET_PACKAGES"; else {ASK_PACKAGES} "$@"; fi; }}
"""
PRELUDE = f"""LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
{SHOW}
"""


class ProbeError(RuntimeError):
    """The host did not answer the probe as a host does; the message says what it said instead."""


def _words(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


def shell_command(command: dict[str, Any], delimiter: str) -> str:
    """A normalised command as shell text; its stdin travels as a here-document, never as an argument."""
    body = _words(command["argv"]) if "argv" in command else "sh -c " + shlex.quote(command["shell"])
    if command.get("user"):
        body = f"runuser -u {shlex.quote(command['user'])} -- {body}"
    # Assignments, not arguments of env: the process list shows only the latter.
    environment = "".join(f"{key}={shlex.quote(value)} " for key, value in sorted(command["environment"].items()))
    text = f"{environment}timeout {int(command['timeout'])} {body} 2>/dev/null"
    if command.get("stdin") is None:
        return text
    return f"{text} <<'{delimiter}'\n{command['stdin'].rstrip(chr(10))}\n{delimiter}"


def build_script(desired: dict[str, Any]) -> str:
    """The probe for one role: sections ``@@<nonce> <title>`` followed by the tools' own output."""
    name = desired["name"]
    files = [*desired["files"], *(entry for item in desired["preinstall"] for entry in item["first"])]
    paths = [entry["dest"] for entry in files]
    regular = [entry["dest"] for entry in files if entry["state"] == "file"]
    links = [entry["dest"] for entry in desired["files"] if entry["state"] == "link"]
    paths += [entry["path"] for entry in desired["directories"]]
    packages = [entry["name"] for entry in [*desired["packages"], *desired["preinstall"]]]
    users = [entry["name"] for entry in desired["users"]]
    groups = sorted(
        {entry["name"] for entry in desired["groups"]}
        | {group for user in desired["users"] for group in user["groups"]}
    )
    services = [entry["name"] for entry in desired["services"]]

    open_transactions = f'for i in {STATE_DIR}/transactions/*; do test -e "$i" && printf "%s\\n" "${{i##*/}}"; done'
    sections: list[tuple[str, str]] = [
        ("id", "id -u; command -v python3"),
        ("journal", f"c {STATE_DIR}/generation; {open_transactions}"),
        ("manifest", f"c {manifest_path(name)}"),
        ("preinstalled", f"c {PREINSTALLED}"),
    ]
    if paths:
        sections.append(("stat", f"stat --printf '%n\\t%f\\t%U\\t%G\\n' -- {_words(paths)}"))
    if regular:
        sections.append(("sha256", f"sha256sum -- {_words(regular)}"))
    for index, path in enumerate(links):
        sections.append((f"link {index}", f"readlink -- {shlex.quote(path)}"))
    if packages:
        sections.append(("packages", f"p {_words(packages)}"))
    if users:
        sections.append(("passwd", f"getent passwd {_words(users)}"))
    if groups or users:
        primary = [entry["group"] for entry in desired["users"] if entry.get("group")]
        sections.append(("group", f"getent group {_words([*groups, *primary])}"))
    for key in desired["sysctl"]:
        sections.append((f"sysctl {key}", f"cat /proc/sys/{shlex.quote(key.replace('.', '/'))}"))
    if services:
        sections.append(("services", f"u {_words(services)}"))
    sections.append(("ufw", "test -x /usr/sbin/ufw && echo installed"))
    sections.append(("rules", "grep -h '^### tuple ###' /etc/ufw/user.rules /etc/ufw/user6.rules"))
    if desired["firewall_options"]:
        sections.append(
            ("ufw-options", "grep -hE '^(ENABLED|LOGLEVEL|IPV6|DEFAULT_.*_POLICY)=' /etc/ufw/ufw.conf /etc/default/ufw")
        )
        # The stored rules stand in the file as iptables gets them, so that both can be counted alike. A chain that is
        # not there has no number: no rule stored and no chain is not the same.
        stored = "grep -c '^-A ufw-user-input' /etc/ufw/user.rules"
        loaded = "rules=$(iptables -S ufw-user-input) && printf '%s\\n' \"$rules\" | grep -c '^-A'"
        sections.append(("ufw-live", f"{stored}\n{loaded}"))

    # Of all that is asked and of how, so that the answer to an older version's probe is not taken for one to this.
    text = "".join([PRELUDE, SHARED, *(f"{title}{body}" for title, body in sections)]) + json.dumps(
        [desired["commands"], name], default=repr, sort_keys=True
    )
    nonce = hashlib.sha256(text.encode()).hexdigest()[:12]
    # The comments are for those who ask for several roles at once.
    lines = [f"#u {name}" for name in services] + [f"#p {name}" for name in packages]
    lines += [PRELUDE + SHARED + f"m() {{ printf '\\n@@{nonce} %s\\n' \"$*\"; }}", "probe() {"]
    for title, body in sections:
        lines += [f"m {shlex.quote(title)}", body]
    for index, command in enumerate(desired["commands"]):
        if command.get("unless"):
            lines += [
                f"m 'command {index}'",
                shell_command(command["unless"], f"END-{nonce}"),
                f"m 'status {index}' $?",
            ]
        elif command.get("creates"):
            lines += [f"test -e {shlex.quote(command['creates'])}", f"m 'status {index}' $?"]
    lines += ["m end", "}", "probe </dev/null 2>/dev/null"]
    return "\n".join(lines) + "\n"


def nonce_of(script: str) -> str:
    """The marker by which a script's sections are told from the tools' output."""
    return script.split("@@", 1)[1].split(" ", 1)[0]


def is_whole(script: str, answer: str) -> bool:
    """Whether a script's answer stands in this text from beginning to end."""
    return all(f"\n@@{nonce_of(script)} {title}\n" in answer for title in ("id", "end"))


def _sections(script: str, answer: str) -> dict[str, str]:
    marker = f"\n@@{nonce_of(script)} "
    parts = ("\n" + answer.replace("\r\n", "\n")).split(marker)
    result = {}
    for part in parts[1:]:
        title, _newline, body = part.partition("\n")
        result[title] = body
    if "end" not in result:
        raise ProbeError(answer.strip()[-500:] or "nothing at all")
    return result


def _kind(raw_mode: int) -> str:
    return {0o100000: "file", 0o040000: "directory", 0o120000: "link"}.get(raw_mode & 0o170000, "other")


def parse_answer(desired: dict[str, Any], script: str, answer: str) -> dict[str, Any]:
    """The answer as data, keyed by resource.

    :returns: ``root``, ``python``, ``generation``, ``pending`` (roles with an open journal), ``manifest``,
        ``preinstalled``, ``paths``,
        ``packages``, ``users``, ``groups``, ``sysctl``, ``services``, ``ufw`` and ``commands``.
    :raises ProbeError: when the answer is cut short or is something else altogether.
    """
    sections = _sections(script, answer)

    def lines(title: str) -> list[str]:
        return [line for line in sections.get(title, "").split("\n") if line]

    identity = lines("id")
    journal = lines("journal")
    generation = journal.pop(0) if journal and journal[0].isdigit() else "0"
    try:
        manifest = json.loads(sections.get("manifest") or "null")
    except ValueError:
        manifest = None

    paths: dict[str, dict[str, Any]] = {}
    for line in lines("stat"):
        path, mode, owner, group = line.split("\t")
        raw = int(mode, 16)
        paths[path] = {"kind": _kind(raw), "mode": f"{raw & 0o7777:04o}", "owner": owner, "group": group}
    for line in lines("sha256"):
        checksum, path = line[:64], line[66:]
        if path in paths:
            paths[path]["sha256"] = checksum
    links = [entry["dest"] for entry in desired["files"] if entry["state"] == "link"]
    for index, path in enumerate(links):
        if path in paths and lines(f"link {index}"):
            paths[path]["target"] = lines(f"link {index}")[0]

    packages = {}
    for line in lines("packages"):
        package, architecture, status, version = line.split("\t")
        packages[package] = packages[f"{package}:{architecture}"] = {"status": status, "version": version}

    services = {}
    units: dict[str, dict[str, str]] = {}
    for block in sections.get("services", "").split("\n\n"):
        properties = dict(line.split("=", 1) for line in block.split("\n") if "=" in line)
        units.update(dict.fromkeys(properties.pop("Names", "").split(), properties))
    for service in desired["services"]:
        if service["name"] not in units:
            raise ProbeError(f"systemctl says nothing of {service['name']}")
        services[service["name"]] = units[service["name"]]

    commands: dict[int, dict[str, Any]] = {}
    for title in sections:
        if title.startswith("status "):
            _word, number, status = title.split(" ")
            commands[int(number)] = {"rc": int(status), "stdout": sections.get(f"command {number}", "").strip()}

    return {
        "root": bool(identity) and identity[0] == "0",
        "python": len(identity) > 1,
        "generation": generation,
        "pending": journal,
        "manifest": manifest,
        "preinstalled": lines("preinstalled"),
        "paths": paths,
        "packages": packages,
        "users": _users(lines("passwd")),
        "groups": _groups(lines("group")),
        "sysctl": {key: " ".join(sections.get(f"sysctl {key}", "").split()) for key in desired["sysctl"]},
        "services": services,
        "ufw": {
            "installed": bool(lines("ufw")),
            "rules": [parse_tuple(line) for line in lines("rules")],
            "options": dict(line.split("=", 1) for line in lines("ufw-options")),
            "live": len(lines("ufw-live")) == 2 and len(set(lines("ufw-live"))) == 1,
        },
        "commands": commands,
    }


def _users(lines: Iterable[str]) -> dict[str, dict[str, str]]:
    keys = ("name", "password", "uid", "gid", "gecos", "home", "shell")
    return {line.split(":")[0]: dict(zip(keys, line.split(":"))) for line in lines}


def _groups(lines: Iterable[str]) -> dict[str, dict[str, Any]]:
    result = {}
    for line in lines:
        name, _password, gid, members = [*line.split(":"), "", "", ""][:4]
        result[name] = {"gid": gid, "members": [member for member in members.split(",") if member]}
    return result


def parse_tuple(line: str) -> dict[str, str]:
    """A rule as ufw stores it, ``### tuple ### action proto dport dst sport src [apps] direction [comment=hex]``."""
    words = line.split()[3:]
    comment = ""
    if words and words[-1].startswith("comment="):
        comment = bytes.fromhex(words.pop()[len("comment=") :]).decode(errors="replace")
    action, proto, dport, dst, sport, src = (words + [""] * 6)[:6]
    return {
        "action": action,
        "proto": proto,
        "port": dport,
        "destination": dst,
        "source_port": sport,
        "source": src,
        "direction": " ".join(words[6:]),
        "comment": comment,
    }


def content_script(paths: Iterable[str]) -> str:
    """Asks for the text of files, for a diff; base64 keeps odd bytes whole."""
    lines = [PRELUDE]
    for path in paths:
        quoted = shlex.quote(path)
        lines.append(f"echo; echo '@@' {quoted}; head -c 262144 -- {quoted} | base64 -w 0")
    return "\n".join(lines) + "\n"


def parse_contents(answer: str) -> dict[str, str]:
    """Path to text, in base64, of the files that could be read."""
    result = {}
    lines = answer.replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines):
        if line.startswith("@@ "):
            result[line[3:]] = lines[number + 1] if number + 1 < len(lines) else ""
    return result
