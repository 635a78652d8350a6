"""Redaction, and how commands are run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._host import (
    OUTPUT_LIMIT,
    CommandError,
    Redactor,
    end_orphan,
    run,
    start_time,
)

SECRETS = """\
# a comment stays readable
requirepass hunter22
password = "with spaces inside it"
url=postgres://app:pa;ss=w0rd@db/x
"user" "SCRAM-SHA-256$4096:salt$stored:server"
loneword1
short abc
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg
"""


@pytest.mark.parametrize(
    "quoted",
    [
        "line 2: requirepass hunter22: unknown",
        "unexpected 'hunter22' here",
        'near "with spaces inside it"',
        "cannot reach postgres://app:pa;ss=w0rd@db/x",
        "near SCRAM-SHA-256$4096:salt$stored:server",
        "bad token loneword1",
        "short abc",
        "near MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg",
    ],
)
def test_secrets_that_a_validator_quotes_are_hidden(quoted: str) -> None:
    shown = Redactor([SECRETS])(quoted)
    for secret in ("hunter22", "with spaces", "w0rd", "SCRAM", "stored", "loneword1", "abc", "MIGHAgEAMBMG"):
        assert secret not in shown


def test_ordinary_words_stay() -> None:
    text = "a comment stays readable: requirepass in line 2 of /etc/redis.conf"
    assert Redactor([SECRETS])(text) == text
    assert Redactor([])("hunter22") == "hunter22"


def test_a_secret_at_the_cut_is_hidden_before_the_cut() -> None:
    text = "x" * (OUTPUT_LIMIT // 2 - 4) + "hunter22" + "y" * OUTPUT_LIMIT
    shown = Redactor(["pass hunter22"])(text)
    assert len(shown) < OUTPUT_LIMIT + 20
    assert "hunt" not in shown


def test_a_failure_carries_what_the_command_said() -> None:
    with pytest.raises(CommandError) as error:
        run(["sh", "-c", "echo out; echo err >&2; exit 7"], check="do it")
    assert str(error.value).startswith("do it: `sh -c ")
    assert (error.value.outcome.rc, error.value.outcome.stdout, error.value.outcome.stderr) == (7, "out\n", "err\n")


def test_what_cannot_be_started_and_what_does_not_end() -> None:
    assert run(["/no/such/program"]).rc == 127
    outcome = run(["sh", "-c", "sleep 30 & sleep 30"], timeout=0.3)
    assert outcome.rc == 124
    assert "still running after 0.3 s" in outcome.stderr


def test_an_orphan_is_ended_but_not_a_stranger_with_its_number(tmp_path: Path) -> None:
    note = tmp_path / "running"
    child = os.posix_spawn("/bin/sleep", ["sleep", "30"], {}, setsid=True)
    note.write_text(f"{child} 1")
    end_orphan(str(note))
    assert start_time(child)
    note.write_text(f"{child} {start_time(child)}")
    end_orphan(str(note))
    assert os.waitpid(child, 0)[1] == 9
    end_orphan(str(tmp_path / "missing"))


def test_what_cannot_be_noted_is_not_started(tmp_path: Path) -> None:
    """A full disk ends no command that has run, and one that fills it is noted all the same."""
    note = tmp_path / "running"
    note.symlink_to("/dev/full")
    outcome = run(["touch", str(tmp_path / "ran")], pid_file=str(note))
    assert (outcome.rc, outcome.stderr) == (127, "[Errno 28] No space left on device")
    assert not (tmp_path / "ran").exists()
    note.unlink()
    outcome = run(["sh", "-c", f"sleep 0.2; cat {note}; echo; echo $$"], pid_file=str(note))
    noted, own = outcome.stdout.splitlines()
    assert noted.split()[0] == own
    assert not note.exists()


def test_stdin_reaches_the_command() -> None:
    began = time.monotonic()
    assert run(["cat"], stdin="text").stdout == "text"
    assert run(["cat"]).stdout == ""
    assert time.monotonic() - began < 5
