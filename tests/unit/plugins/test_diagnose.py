"""A support bundle is complete whatever is broken on the host, bounded, and free of the secrets that stand there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils import _diagnose as diagnose
from ansible_collections.vmfleet.ops.plugins.module_utils._desired import DesiredError, announcements


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The places on a host that are read, in a folder."""
    monkeypatch.setattr(diagnose, "SYSTEM", (("system/overview", "echo all is told"),))
    for folder in ("state/roles", "state/transactions", "etc/vmfleet/diagnose.d", "etc/vmfleet/checks.d"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def announce(host: Path, role: str, *entries: dict[str, Any]) -> None:
    (host / f"etc/vmfleet/diagnose.d/{role}.json").write_text(json.dumps(entries))


def collect(host: Path, **options: Any) -> dict[str, Any]:
    return diagnose.collect(root=str(host), state=str(host / "state"), **{"deadline": 20.0, **options})


def test_what_is_announced_is_asked_and_what_it_finds_is_told(host: Path) -> None:
    announce(
        host,
        "db",
        {"name": "info", "argv": ["echo", "hello"]},
        {"name": "blocked", "shell": "echo pid 7 waits", "finding": True},
    )
    bundle = collect(host)
    assert bundle["files"]["db/info.txt"] == "hello\n"
    assert bundle["files"]["system/overview.txt"] == "all is told\n"
    assert "pid 7 waits" in bundle["findings"]
    assert json.loads(bundle["files"]["manifest.json"])["findings"] == bundle["findings"]


def test_what_fails_is_named_and_keeps_what_it_said(host: Path) -> None:
    announce(host, "db", {"name": "broken", "shell": "echo half; echo no server >&2; exit 2"})
    (host / "etc/vmfleet/diagnose.d/bad.json").write_text("{")
    bundle = collect(host)
    assert bundle["incomplete"]["db/broken.txt"] == "returned 2: no server"
    assert bundle["files"]["db/broken.txt"].startswith("half\n")
    assert "bad.json" in bundle["incomplete"]["vmfleet/bad.json"]
    # No checks at all is no verdict, and not the end of the bundle.
    assert "no checks at all" in bundle["incomplete"]["vmfleet/verdict.json"]


def test_what_hangs_is_given_up(host: Path) -> None:
    announce(host, "db", {"name": "hangs", "argv": ["sleep", "60"]}, {"name": "info", "argv": ["echo", "hello"]})
    begun = time.monotonic()
    bundle = collect(host, deadline=3.0)
    assert time.monotonic() - begun < 30
    assert bundle["incomplete"]["db/hangs.txt"] == "not finished in time"
    assert bundle["files"]["db/info.txt"] == "hello\n"


def test_secrets_in_the_files_of_roles_are_nowhere(host: Path) -> None:
    secret = host / "auth"
    secret.write_text("open-sesame\n")
    secret.chmod(0o600)
    (host / "state/roles/db.json").write_text(json.dumps({"name": "db", "files": [str(secret)], "services": []}))
    announce(
        host,
        "db",
        {"name": "log", "shell": f"echo login with $(cat {secret})", "finding": True},
        {"name": "error", "shell": f"cat {secret} >&2; exit 1"},
    )
    bundle = collect(host)
    assert "login with ********" in bundle["findings"]
    assert "open-sesame" not in json.dumps(bundle)


def test_size_is_bounded(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnose, "ITEM_LIMIT", 1000)
    announce(host, "db", {"name": "much", "shell": "echo first; yes | head -n 5000; echo last"})
    text = collect(host)["files"]["db/much.txt"]
    assert len(text) < 1100
    assert text.startswith("first\n") and text.endswith("last\n") and "characters left out" in text


def test_open_changes_and_findings_without_end(host: Path) -> None:
    (host / "state/transactions/redis").mkdir()
    announce(host, "db", {"name": "many", "shell": "seq 1 100", "finding": True})
    findings = collect(host)["findings"]
    assert any("the change of role redis is open" in line for line in findings)
    assert "80 more in db/many.txt" in findings


def test_units_come_from_the_records() -> None:
    records = [{"services": ["redis-server", "vmfleet-health.timer"]}, {"services": ["redis-server"]}, {}]
    assert diagnose.units_of(records) == ["redis-server.service", "vmfleet-health.timer", "vmfleet-health.service"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "../passwd", "shell": "id"}, "names no file of its own"),
        ({"name": "info"}, "needs one of argv and shell"),
        ({"name": "info", "shell": "id", "argv": ["id"]}, "needs one of argv and shell"),
    ],
)
def test_what_cannot_be_asked_is_refused_on_the_controller(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(DesiredError, match=words):
        announcements("db", {"diagnose": [entry]})


def test_an_announcement_becomes_a_drop_in() -> None:
    entry = {"name": "info", "shell": "id", "argv": None, "finding": False}
    (file,) = announcements("db", {"checks": [], "diagnose": [entry]})
    assert file["dest"] == "/etc/vmfleet/diagnose.d/db.json"
    assert json.loads(file["content"]) == [{"name": "info", "shell": "id", "finding": False}]
