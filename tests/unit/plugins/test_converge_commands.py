# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a command's guard may say in the diff, and what of a command never shows."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._host import Redactor
from ansible_collections.vmfleet.ops.plugins.module_utils._plan import Plan, _plan_commands
from ansible_collections.vmfleet.ops.plugins.module_utils._transaction import _secrets


def planned(guard: dict[str, Any], **unless: Any) -> Plan:
    command = {"name": "Grant", "unless": {"stdout": "", **unless}, "on_change_of": [], "notify": False}
    desired = {"name": "db", "state": "present", "history": 5, "lock_timeout": 1, "commands": [command]}
    plan = Plan(desired, {"generation": "0", "commands": {0: guard}})
    _plan_commands(plan)
    return plan


def test_guard_that_may_be_shown_names_what_is_due() -> None:
    plan = planned({"rc": 0, "stdout": "GRANT a\nGRANT b"}, shown=True)
    assert plan.before == ["command Grant: due", "  GRANT a", "  GRANT b"]
    assert plan.after == ["command Grant: done"]


def test_guard_is_not_shown_unasked() -> None:
    assert planned({"rc": 0, "stdout": "GRANT a"}).before == ["command Grant: due"]


def test_silent_guard_means_nothing_is_due() -> None:
    assert not planned({"rc": 0, "stdout": ""}, shown=True).changed


def redacted(text: str, **command: Any) -> str:
    entry = {"sensitive": True, "stdin": "ALTER ROLE application PASSWORD 'SCRAM$abc=:defghi=';", **command}
    return Redactor(_secrets({"files": [], "verify": [], "commands": [entry]}))(text)


def test_named_secrets_alone_are_hidden() -> None:
    said = redacted("application: PASSWORD SCRAM$abc=:defghi=", secrets=["SCRAM$abc=:defghi="])
    assert "application" in said and "PASSWORD" in said
    assert "SCRAM$abc" not in said and "defghi" not in said


@pytest.mark.parametrize("word", ["application", "PASSWORD", ":defghi"])
def test_without_names_every_longer_word_is_hidden(word: str) -> None:
    assert word not in redacted(f"there was {word} in it")
