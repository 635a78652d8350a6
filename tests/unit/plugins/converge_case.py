"""The declaration that the unit tests of converge share, and hosts as the probe found them.

The answers in fixtures/ were printed by a real Debian 12 host, for now under both names: the one for Debian 13 is
yet to be recorded with tests/integration/record_probes.py.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.vmfleet.ops.plugins.module_utils._desired import ARGUMENT_SPEC, normalise
from ansible_collections.vmfleet.ops.plugins.module_utils._plan import Plan, make_plan
from ansible_collections.vmfleet.ops.plugins.module_utils._probe import build_script, nonce_of, parse_answer

FIXTURES = Path(__file__).parent / "fixtures"
RELEASES = ("bookworm", "trixie")
GROUPS = {"app": ["10.1.0.1", "10.1.0.2"], "db": ["fd00::5"], "nameless": ["db1.example"]}

ROLE: dict[str, Any] = {
    "name": "case",
    "packages": ["openssh-server", {"name": "hello-web", "version": "1.0"}, "no-such-package"],
    "groups": [{"name": "hello"}, {"name": "nobody-has-this"}],
    "users": [{"name": "hello", "group": "hello", "groups": ["adm", "mail"], "shell": "/usr/sbin/nologin"}],
    "directories": [{"path": "/srv/hello", "owner": "hello", "group": "hello", "mode": "0750"}],
    "files": [
        {"dest": "/etc/hello-web.conf", "content": "greeting=hello\nport=8800\n"},
        {
            "dest": "/etc/hello/secret.conf",
            "content": "token=s3cr3t-hello\n",
            "mode": "600",
            "owner": "hello",
            "sensitive": True,
        },
        {"dest": "/etc/hello/link", "state": "link", "target": "target-of-hello"},
        {"dest": "/etc/it's here", "content": "odd"},
        {"dest": "/etc/not-wanted", "state": "absent"},
    ],
    "sysctl": {"net.ipv4.tcp_keepalive_time": 7005},
    "firewall": [{"port": 22, "from": ["any"], "comment": "operator"}],
    "firewall_options": {"enabled": True},
    "units": [{"name": "hello-web.service.d/vmfleet.conf", "content": "[Service]\nEnvironment=ROLE=hello\n"}],
    "commands": [
        {
            "name": "Guarded",
            "argv": ["true"],
            "unless": {
                "shell": 'cat; echo "$WORD"',
                "stdin": "one 'two'\n",
                "user": "hello",
                "environment": {"WORD": "it's $HOME"},
                "stdout": "one 'two'\nit's $HOME",
            },
        },
        {"name": "Created", "argv": ["true"], "creates": "/etc/hostname"},
        {"name": "Due", "argv": ["true"], "unless": {"argv": ["false"]}},
        {"name": "Upon change", "argv": ["true"], "on_change_of": ["/etc/hello*", "packages"], "notify": True},
    ],
    "services": [{"name": "hello-web", "enabled": True, "state": "started"}, {"name": "ssh"}, {"name": "no-such"}],
}


def desired(**overrides: Any) -> dict[str, Any]:
    """The normal form of the shared role with changes."""
    validated = ArgumentSpecValidator(ARGUMENT_SPEC).validate({**copy.deepcopy(ROLE), **overrides})
    assert not validated.error_messages, validated.error_messages
    return normalise(validated.validated_parameters, lambda entry: str(entry["content"]).encode(), GROUPS.__getitem__)


def answer(release: str, script: str) -> str:
    """What a host printed, as if it had been asked by this very script."""
    text = (FIXTURES / f"probe-{release}.txt").read_text(encoding="utf-8")
    return text.replace("@@NONCE ", f"@@{nonce_of(script)} ")


def observed(release: str = "trixie", **changes: Any) -> dict[str, Any]:
    """A host as the probe found it, with changes by key."""
    wanted = desired()
    script = build_script(wanted)
    result = parse_answer(wanted, script, answer(release, script))
    return {**result, **changes}


def plan(host: dict[str, Any] | None = None, **overrides: Any) -> Plan:
    return make_plan(desired(**overrides), host or observed())
