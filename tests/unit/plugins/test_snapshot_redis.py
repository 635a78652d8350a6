"""When a snapshot of Redis counts; Redis itself is driven on real hosts, in molecule/backup."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._host import Outcome
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot import redis
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import EngineFailed, Key
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.redis import Options, Redis, Server
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.repository import LocalPath
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.sources import Context


class Told(Server):
    """Answers as it is told; each (saving, last save, status, time) holds until INFO is asked for again."""

    def __init__(self, states: list[tuple[int, int, str, int]], replies: list[str]) -> None:
        self.states: Iterator[tuple[int, int, str, int]] = iter(states)
        self.state = (0, 0, "ok", 0)
        self.replies = replies

    def ask(self, *command: str) -> str:
        if command[0] == "BGSAVE":
            said = self.replies.pop(0)
            if said.startswith("ERR"):
                raise EngineFailed(said)
            return said
        return {
            "LASTSAVE": str(self.state[1]),
            "TIME": f"{self.state[3]}\n123",
            "CONFIG": f"{command[-1]}\n" + ("/data" if command[-1] == "dir" else "some.rdb"),
        }[command[0]]

    def info(self, section: str) -> dict[str, str]:
        if section == "persistence":
            self.state = next(self.states)
        return {
            "rdb_bgsave_in_progress": str(self.state[0]),
            "rdb_last_save_time": str(self.state[1]),
            "rdb_last_bgsave_status": self.state[2],
            "used_memory": "5",
        }


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Redis:
    monkeypatch.setattr(redis, "PACE", 0)
    context = Context("host", LocalPath("main", Key("/key", "id", b"mac"), {}), str(tmp_path), lambda line: None)
    password = tmp_path / "auth"
    password.write_text("secret word")
    return Redis("redis", Options(6379, False, str(password), str(tmp_path), True), context)


STARTED, SCHEDULED = "Background saving started", "Background saving scheduled"


@pytest.mark.parametrize(
    ("states", "replies"),
    [
        # At once.
        ([(0, 10, "ok", 20), (1, 10, "ok", 20), (0, 21, "ok", 21)], [STARTED]),
        # One that is being made is waited for, and not taken for this one.
        ([(1, 10, "ok", 20), (0, 20, "ok", 21), (1, 20, "ok", 22), (0, 23, "ok", 23)], [STARTED]),
        # Another one began in that very moment.
        ([(0, 10, "ok", 20), (1, 10, "ok", 20), (0, 21, "ok", 22), (0, 23, "ok", 23)],
         ["ERR Background save already in progress", STARTED]),
        # The same second as the one before.
        ([(0, 20, "ok", 20), (0, 20, "ok", 21), (0, 22, "ok", 22)], [STARTED]),
        # Behind a rewrite of the log, after one that failed.
        ([(0, 10, "err", 20), (0, 10, "err", 20), (1, 10, "err", 21), (0, 22, "ok", 22)], [SCHEDULED]),
    ],
)  # fmt: skip
def test_only_a_snapshot_of_this_run_counts(
    source: Redis, monkeypatch: pytest.MonkeyPatch, states: list[Any], replies: list[str]
) -> None:
    server = Told(states, replies)
    monkeypatch.setattr(Redis, "_server", server)
    assert source._end(source._begin()) == ("/data/some.rdb", 5)
    assert not list(server.states)
    assert not replies


@pytest.mark.parametrize(
    ("states", "reply", "words"),
    [
        ([(0, 10, "ok", 20), (0, 10, "err", 20)], STARTED, "BGSAVE failed"),
        ([(0, 10, "ok", 20)], "ERR Can't BGSAVE", "Can't BGSAVE"),
    ],
)
def test_a_snapshot_that_failed_is_told(
    source: Redis, monkeypatch: pytest.MonkeyPatch, states: list[Any], reply: str, words: str
) -> None:
    monkeypatch.setattr(Redis, "_server", Told(states, [reply]))
    with pytest.raises(EngineFailed, match=words):
        source._end(source._begin())


@pytest.mark.parametrize("said", ["ERR unknown command", "NOAUTH Authentication required.", "LOADING Redis is loading"])
def test_an_answer_that_is_an_error_is_one(source: Redis, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def command(self: Context, purpose: str, argv: list[str], **given: Any) -> Any:
        assert "secret" not in " ".join(argv)
        assert given["environment"] == {"REDISCLI_AUTH": "secret word"}
        return Outcome(tuple(argv), 0, f"{said}\n", "")

    monkeypatch.setattr(Context, "command", command)
    with pytest.raises(EngineFailed, match=said.split()[0]):
        source._server.ask("PING")
    said = "# Server"
    assert source._server.ask("INFO") == said
