"""What a check is and how tries become a verdict."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import pwd
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.vmfleet.ops.plugins.action import health as health_action
from ansible_collections.vmfleet.ops.plugins.module_utils._desired import ARGUMENT_SPEC, DesiredError, normalise
from ansible_collections.vmfleet.ops.plugins.module_utils._health import cli, runner, types_system
from ansible_collections.vmfleet.ops.plugins.module_utils._health.judge import Judge, percentile, result, worst
from ansible_collections.vmfleet.ops.plugins.module_utils._health.model import (
    Check,
    CheckError,
    CheckFailed,
    CheckType,
    Seen,
    choose,
    load_announced,
    matches,
    parse_check,
    parse_checks,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._health.registry import TYPES
from websockets.sync.server import ServerConnection, serve

TODAY = datetime.date(2026, 11, 24)


def check(**keys: Any) -> Check:
    return parse_check({"type": "load", **keys}, TYPES)


def judged(given: Check, *states: str, patience: float = 0.0) -> Judge:
    """The judge after these tries, one a second, each of which took 10 ms."""
    judge = Judge(given, patience=patience)
    for second, state in enumerate(states, start=1):
        if judge.observe(Seen(state, state), second - 0.01, float(second), 0.0) is None:
            break
    return judge


def run(*entries: dict[str, Any], deadline: float = 5.0, **options: Any) -> dict[str, Any]:
    return runner.run_checks(parse_checks([("role", entry) for entry in entries], TYPES), deadline, **options)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"type": "tpc", "port": 1}, "'tpc' is none of"),
        ({"type": "tcp"}, "port: missing"),
        ({"type": "tcp", "port": "x"}, "'x' is no int"),
        ({"type": "tcp", "port": 1, "prot": 2}, "prot: no such key"),
        ({"type": "load", "severity": "bad"}, "none of crit, warn"),
        ({"type": "load", "warn": {"above": 1}}, "neither a number nor"),
        ({"type": "load", "warn": "high"}, "neither a number nor"),
        ({"type": "load", "samples": 0}, "less than 1"),
        ({"type": "load", "interval": -1}, "negative"),
        ({"type": "load", "latency": {"p90": {"warn": 1}}}, "use p50"),
        ({"type": "load", "waiver": {"until": "2026-01-01"}}, "needs a reason"),
        ({"type": "load", "waiver": {"reason": "known", "until": "soon"}}, "no date"),
    ],
)
def test_a_check_written_wrongly_is_refused(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckError, match=words):
        parse_check(entry, TYPES)


def test_no_checks_at_all_is_an_error() -> None:
    with pytest.raises(CheckError, match="no checks at all"):
        parse_checks([], TYPES)


def test_dependencies_exist_and_run_in_no_circle() -> None:
    with pytest.raises(CheckError, match="no check 'b'"):
        parse_checks([("", {"type": "load", "name": "a", "depends_on": ["b"]})], TYPES)
    circle = [("", {"type": "load", "name": one, "depends_on": [other]}) for one, other in ("ab", "ba")]
    with pytest.raises(CheckError, match="depends on itself"):
        parse_checks(circle, TYPES)


@pytest.mark.parametrize(
    ("seen", "wanted", "good"),
    [
        ("ok", "ok", True),
        ("8", 8, True),
        (True, True, True),
        (5, {"gt": 4, "lt": 6}, True),
        (5, {"gt": 5}, False),
        (None, {"gt": 5}, False),
        (["a"], {"contains": "a"}, True),
        ("abc", {"matches": "^a.c$"}, True),
        ([1, 2], {"length": {"ge": 2}}, True),
        (None, {"exists": False}, True),
        (["up", "up"], {"all": "up"}, True),
        (["up", "down"], {"all": "up"}, False),
        ("x", {"not": {"in": ["x"]}}, False),
    ],
)
def test_matchers(seen: Any, wanted: Any, good: bool) -> None:
    assert matches(seen, wanted) is good


@pytest.mark.parametrize(("percent", "wanted"), [(50, 5), (95, 10), (99, 10), (100, 10), (10, 1)])
def test_percentiles_are_of_nearest_rank(percent: int, wanted: int) -> None:
    assert percentile([float(number) for number in range(10, 0, -1)], percent) == wanted


def test_thresholds_of_tries_in_a_row() -> None:
    assert judged(check(success_threshold=2), "ok").state is None
    assert judged(check(success_threshold=2), "ok", "ok").state == "ok"
    assert judged(check(failure_threshold=3), "crit", "crit").state is None
    assert judged(check(failure_threshold=3), "crit", "ok").state == "ok"
    assert judged(check(failure_threshold=3), "crit", "crit", "crit").state == "crit"


def test_healthy_time_begins_anew_after_a_bad_try() -> None:
    given = check(min_healthy_time=2, failure_threshold=2)
    assert judged(given, "ok", "ok").state is None
    assert judged(given, "ok", "ok", "ok").state == "ok"
    assert judged(given, "ok", "ok", "crit", "ok", "ok").state is None


def test_patience_is_for_what_is_not_yet_good() -> None:
    assert judged(check(), "crit", "crit", patience=3).state is None
    assert judged(check(), "crit", "crit", "crit", patience=3).state == "crit"
    assert judged(check(), "crit", "ok", patience=3).state == "ok"


def test_a_balancer_gets_time_to_find_its_servers() -> None:
    balancer = parse_check({"type": "haproxy"}, TYPES)
    for given, tries in ((balancer, 3), (check(), 1)):
        judge = Judge(given, settling=2.5)
        for second in (1, 2, 3):
            if judge.observe(Seen("", "warn"), second - 0.5, float(second), 0.0) is None:
                break
        assert (judge.state, judge.attempts) == ("warn", tries)


def test_samples_give_percentiles_that_can_fail_it() -> None:
    given = check(samples=3, latency={"p95": {"warn": 5, "crit": 50}})
    judge = judged(given, "ok", "ok", "ok")
    entry = result(judge, TODAY)
    assert entry["latency_ms"]["samples"] == 3
    assert entry["state"] == "warn"
    assert "p95 of 3 tries is 10 ms" in entry["message"]


def test_what_is_optional_only_warns_but_unknown_stays_unknown() -> None:
    assert result(judged(check(optional=True), "crit"), TODAY)["state"] == "warn"
    assert result(judged(check(optional=True), "unknown"), TODAY)["state"] == "unknown"


def test_a_waiver_holds_until_its_day_and_fails_after_it() -> None:
    given = check(waiver={"reason": "disk is ordered", "until": "2026-11-24"})
    entry = result(judged(given, "crit"), TODAY)
    assert (entry["state"], entry["waived"]["state"]) == ("ok", "crit")
    for state in ("crit", "ok"):
        late = result(judged(given, state), TODAY + datetime.timedelta(days=1))
        assert late["state"] == "crit"
        assert "expired on 2026-11-24" in late["message"]


def test_unknown_never_passes() -> None:
    assert worst(["ok", "unknown", "warn"]) == "unknown"
    assert worst(["crit", "unknown"]) == "crit"
    assert worst([]) == "unknown"


def test_a_failure_is_laid_to_what_it_depends_on() -> None:
    outcome = run(
        {"type": "file", "name": "database", "path": "/does/not/exist"},
        {"type": "file", "name": "api", "path": "/nor/this", "depends_on": ["database"]},
    )
    assert [entry["state"] for entry in outcome["results"]] == ["crit", "unknown"]
    assert outcome["results"][1]["because_of"] == ["database"]
    assert not outcome["healthy"]


def test_names_of_checks_belong_to_their_roles() -> None:
    """Two roles may name a check alike; what depends on a third one is told from the other."""
    entries: list[tuple[str, dict[str, Any]]] = [
        ("a", {"type": "file", "name": "gone", "path": "/does/not/exist"}),
        ("a", {"type": "file", "name": "it runs", "path": "/nor/this", "depends_on": ["gone"]}),
        ("b", {"type": "file", "name": "it runs", "path": "/"}),
    ]
    outcome = runner.run_checks(parse_checks(entries, TYPES), 5.0)
    assert [entry["state"] for entry in outcome["results"]] == ["crit", "unknown", "ok"]


def test_file_systems_are_found_without_being_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local ones that can be written; one that fstab has read-only is meant to be so, one in memory comes and goes."""
    mounts, fstab = tmp_path / "mounts", tmp_path / "fstab"
    (tmp_path / "a b").mkdir()
    escaped = str(tmp_path / "a b").replace(" ", "\\040")
    lines = [f"/dev/a {escaped} ext4 rw,relatime 0 0", "/dev/b /boot ext4 ro 0 0", "tmpfs /run tmpfs ro 0 0"]
    mounts.write_text("\n".join([*lines, "proc /proc proc ro 0 0", "srv:/x /mnt nfs4 ro 0 0"]) + "\n")
    fstab.write_text("# by hand\n\n/dev/b /boot ext4 ro 0 2\n")
    tables = {"/proc/self/mounts": mounts, "/proc/1/mounts": mounts, "/etc/fstab": fstab}
    real = types_system._mounts
    monkeypatch.setattr(types_system, "_mounts", lambda table="/proc/self/mounts": real(str(tables[table])))
    assert types_system._local(parse_check({"type": "disk"}, TYPES)) == [str(tmp_path / "a b")]
    writable = {"type": "mount", "options": ["rw"]}
    entry = run(writable)["results"][0]
    assert (entry["state"], entry["message"]) == ("ok", "1 local file systems are as wanted")
    mounts.write_text(mounts.read_text().replace("ext4 rw", "ext4 ro"))
    entry = run(writable)["results"][0]
    assert entry["state"] == "crit"
    assert f"{tmp_path / 'a b'} is /dev/a (ext4, ro,relatime), wanted rw" in entry["message"]


def test_the_fullest_file_system_is_judged_and_all_that_are_full_are_named() -> None:
    disk = parse_check({"type": "disk", "warn": 80, "crit": 95}, TYPES)
    seen = types_system._fullest(
        disk, " %", [(10.0, "/ is 10 % full"), (99.0, "/a is 99 % full"), (85.0, "/b is 85 %")]
    )
    assert (seen.state, seen.value) == ("crit", 99.0)
    assert "/a is 99" in seen.message and "/b is 85" in seen.message and "/ is 10" not in seen.message
    seen = types_system._fullest(disk, " %", [(10.0, "/ is 10 % full"), (20.0, "/b is 20 % full")])
    assert (seen.state, seen.message) == ("ok", "/b is 20 % full, of 2 the fullest")


def test_a_file_belongs_to_whom_it_must(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    mine = {"type": "file", "path": str(path), "mode": "0600"}
    name = pwd.getpwuid(os.getuid()).pw_name
    good = run({**mine, "owner": name}, {**mine, "name": "by number", "group": str(os.getgid())})
    assert good["counts"]["ok"] == 2
    bad = run({**mine, "owner": "nobody"}, {**mine, "name": "open", "mode": "0640"})
    assert [entry["state"] for entry in bad["results"]] == ["crit", "crit"]
    assert f"has the owner {name} instead of nobody" in bad["results"][0]["message"]


def test_hanging_checks_do_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()

    def hang(_check: Check, _shared: Any) -> Seen:
        forever.wait(60)
        return Seen()

    types = {**TYPES, "hang": CheckType("hang", hang, {}, "", timeout=0.1)}
    monkeypatch.setattr(runner, "GRACE", 0.1)
    entries = [("", {"type": "hang", "name": f"hang {number}"}) for number in range(100)]
    entries += [("", {"type": "load", "name": f"load {number}"}) for number in range(100)]
    outcome = runner.run_checks(parse_checks(entries, types), 20.0)
    forever.set()
    assert outcome["counts"] == {"ok": 100, "warn": 0, "crit": 0, "unknown": 100}
    assert "no answer after 0.1 s" in outcome["results"][0]["message"]


def test_what_hung_is_tried_again_while_there_is_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that is busy for a moment is not ill."""
    forever, tries = threading.Event(), iter(range(10))

    def hang_once(_check: Check, _shared: Any) -> Seen:
        if next(tries) == 0:
            forever.wait(60)
        return Seen("awake")

    types = {**TYPES, "hang": CheckType("hang", hang_once, {}, "", timeout=0.1)}
    monkeypatch.setattr(runner, "GRACE", 0.1)
    outcome = runner.run_checks(parse_checks([("", {"type": "hang"})], types), 30.0, patience=20.0)
    forever.set()
    assert [(entry["state"], entry["attempts"]) for entry in outcome["results"]] == [("ok", 2)]


def test_the_first_try_waits_for_its_delay(tmp_path: Path) -> None:
    late = tmp_path / "late"
    threading.Timer(0.3, late.touch).start()
    patient = {"type": "file", "name": "patient", "path": str(late), "initial_delay": 1.0}
    hasty = {"type": "file", "name": "hasty", "path": str(late)}
    outcome = run(patient, hasty, deadline=30.0)
    assert [(entry["state"], entry["attempts"]) for entry in outcome["results"]] == [("ok", 1), ("crit", 1)]


def test_what_is_waived_passes_but_not_what_depends_on_it_and_fails_too() -> None:
    waiver = {"reason": "disk is ordered", "until": "2999-12-31"}
    outcome = run(
        {"type": "file", "name": "disk", "path": "/does/not/exist", "waiver": waiver},
        {"type": "file", "name": "data", "path": "/nor/this", "depends_on": ["disk"]},
    )
    assert [entry["state"] for entry in outcome["results"]] == ["ok", "crit"]
    assert (outcome["waived"], outcome["healthy"]) == (1, False)


def test_a_deadline_ends_a_run_with_what_is_known() -> None:
    outcome = run(
        {"type": "command", "argv": ["sleep", "60"], "timeout": 50},
        {"type": "file", "path": "/does/not/exist", "failure_threshold": 1000},
        {"type": "load"},
        deadline=1.0,
    )
    assert [entry["state"] for entry in outcome["results"]] == ["unknown", "crit", "ok"]
    assert "no verdict within the deadline of 1 s" in outcome["results"][0]["message"]


def test_converge_waits_and_says_what_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "there"
    threading.Timer(0.3, path.touch).start()
    runner.prove({"type": "file", "path": str(path), "interval": 0.1})
    failures: list[float] = []
    with pytest.raises(CheckFailed, match="is not there"):
        runner.prove(
            {"type": "file", "path": "/does/not/exist", "startup": 0.3, "interval": 0.1},
            lambda: failures.append(time.monotonic()),
        )
    assert failures
    with pytest.raises(CheckFailed, match="none of"):
        runner.prove({"type": "nothing"})


def test_announced_checks_carry_their_role(tmp_path: Path) -> None:
    (tmp_path / "redis.json").write_text(json.dumps([{"type": "load"}, {"type": "memory", "tags": ["host"]}]))
    checks = parse_checks(load_announced(str(tmp_path)), TYPES)
    assert [(one.role, one.service) for one in checks] == [("redis", "redis")] * 2
    assert [one.type.name for one in choose(checks, ["host"], [])] == ["memory"]
    assert [one.type.name for one in choose(checks, ["redis"], ["load"])] == ["memory"]
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(CheckError, match=r"bad\.json"):
        load_announced(str(tmp_path))


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps({"status": "ready", "dependencies": {"redis": "down"}, "hosts": [{"up": True}]}).encode()
        self.send_response(302 if self.path == "/old" else 200)
        if self.path == "/old":
            self.send_header("Location", "/new")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Version", "7")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Silence."""


@pytest.fixture
def url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    ("keys", "state", "words"),
    [
        ({"path": "/", "json": {"status": "ready", "hosts[0].up": True}}, "ok", "200"),
        ({"path": "/", "json": {"dependencies.redis": "ok"}}, "crit", 'dependencies.redis is "down"'),
        ({"path": "/", "body": "nothing such"}, "crit", "does not match"),
        ({"path": "/", "response_headers": {"x-version": {"ge": 8}}}, "crit", "header x-version is '7'"),
        ({"path": "/old"}, "crit", "status 302 instead of 200"),
        ({"path": "/old", "redirects": 1}, "ok", "/new: 200"),
        ({"path": "/", "status": [503, 429]}, "crit", "instead of 503 or 429"),
    ],
)
def test_http(url: str, keys: dict[str, Any], state: str, words: str) -> None:
    path = keys.pop("path")
    entry = run({"type": "http", "url": url + path, **keys})["results"][0]
    assert (entry["state"], words in entry["message"]) == (state, True), entry
    if state == "ok":
        assert list(entry["phases_ms"]) == ["dns", "connect", "first_byte", "transfer"]


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """The port of a WebSocket server by another hand, which echoes on /echo and is silent on /silent."""

    def handle(connection: ServerConnection) -> None:
        for message in connection:
            if connection.request is not None and connection.request.path == "/echo":
                connection.ping()
                connection.send(f"you said {message!s}")

    with serve(handle, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.socket.getsockname()[1])
        server.shutdown()


@pytest.mark.parametrize(
    ("keys", "state", "words"),
    [
        ({"path": "/echo"}, "ok", "upgraded"),
        ({"path": "/echo", "send": "hello", "expect": "^you said hello$"}, "ok", "answers as wanted"),
        ({"path": "/echo", "send": "x" * 3000, "expect": "x{3000}$"}, "ok", "answers as wanted"),
        ({"path": "/echo", "send": "hello", "expect": "^bye$"}, "crit", "but answers 'you said hello'"),
        ({"path": "/silent", "send": "hello", "expect": "."}, "crit", "no answer within 0.5 s"),
    ],
)
def test_websocket(echo: int, keys: dict[str, Any], state: str, words: str) -> None:
    path = keys.pop("path")
    entry = run({"type": "websocket", "url": f"ws://127.0.0.1:{echo}{path}", "timeout": 0.5, **keys})["results"][0]
    assert (entry["state"], words in entry["message"]) == (state, True), entry


def test_a_server_without_websockets_is_named(url: str) -> None:
    entry = run({"type": "websocket", "url": url.replace("http:", "ws:")})["results"][0]
    assert (entry["state"], "no upgrade: HTTP/1.1 200" in entry["message"]) == ("crit", True), entry


def test_a_door_that_must_be_closed(url: str) -> None:
    port = int(url.rpartition(":")[2])
    entry = run({"type": "tcp", "port": port, "closed": True})["results"][0]
    assert (entry["state"], "accepts connections, and should not" in entry["message"]) == ("crit", True)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        entry = run({"type": "tcp", "port": nobody.getsockname()[1], "closed": True})["results"][0]
    assert (entry["state"], "lets nobody in" in entry["message"]) == ("ok", True)


def test_a_link_tells_the_present_release(tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("releases/2.0")
    link = {"type": "file", "path": str(tmp_path / "current"), "state": "link", "follow": False}
    (entry,) = run(link)["results"]
    assert (entry["state"], entry["data"]) == ("ok", {"version": "2.0"})


def test_a_server_that_accepts_and_says_nothing_is_named() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        port = silent.getsockname()[1]
        outcome = run(
            {"type": "http", "url": f"http://127.0.0.1:{port}/", "timeout": 0.3},
            {"type": "redis", "port": port, "timeout": 0.3},
            {"type": "tcp", "port": port},
        )
    assert [entry["state"] for entry in outcome["results"]] == ["crit", "crit", "ok"]
    assert "no answer within" in outcome["results"][0]["message"]
    assert "gives no answer" in outcome["results"][1]["message"]


def test_backups_have_an_age_a_size_and_a_proof(tmp_path: Path) -> None:
    status = tmp_path / "status.json"
    now = time.time()
    base = {"type": "backup", "status": str(status), "crit": 3600, "min_size": 100, "max_verified_age": 60}
    for record, state, words in (
        ({"finished": now, "verified": now, "size": 100}, "ok", "100 B"),
        ({"finished": now - 7200, "verified": now, "size": 100}, "crit", "2.0 h old"),
        ({"finished": now, "verified": now, "size": 1}, "crit", "less than 100 B"),
        ({"finished": now, "size": 100}, "crit", "never verified"),
        ({"finished": now, "since": now, "size": 100}, "ok", "100 B"),
        ({"finished": now, "since": now - 999, "size": 100}, "crit", "never verified"),
        ({"since": now - 60}, "ok", "no backup has finished yet"),
        ({"since": now - 7200}, "crit", "no backup has finished yet, for 2.0 h"),
        ({"failed": "no route"}, "crit", "no route"),
        ({"since": now, "failed": "no route"}, "crit", "no route"),
        ({"finished": now, "verified": now - 999, "size": 100}, "crit", "last verified"),
        ({"finished": now, "size": 100, "failed": "no space"}, "crit", "no space"),
        ({}, "unknown", "finished"),
    ):
        status.write_text(json.dumps(record))
        entry = run(base)["results"][0]
        assert entry["state"] == state
        assert words in entry["message"]
    status.unlink()
    assert run(base)["results"][0]["state"] == "crit"


def test_a_thousand_files_are_one_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    outcome = run(*({"type": "file", "path": str(tmp_path / "file"), "name": str(n)} for n in range(1000)))
    assert outcome["counts"]["ok"] == 1000


def test_the_documentation_has_every_type_and_key() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "health.md").read_text(encoding="utf-8")
    for name, kind in TYPES.items():
        section = text.partition(f"### {name}\n")[2].partition("\n### ")[0]
        assert kind.help in section, name
        assert [key for key in kind.keys if f"| `{key}` |" not in section] == [], name


def test_a_wrong_check_stops_converge_before_the_host_is_contacted() -> None:
    arguments = ArgumentSpecValidator(ARGUMENT_SPEC).validate({"name": "web", "verify": [{"type": "htpp", "url": "x"}]})
    with pytest.raises(DesiredError, match="'htpp' is none of"):
        normalise(arguments.validated_parameters, lambda _entry: b"", lambda _group: [])


class TestOnTheHost:
    """``vmfleet-health``, which role base installs."""

    @pytest.fixture
    def announced(self, tmp_path: Path) -> Path:
        folder = tmp_path / "checks.d"
        folder.mkdir()
        (folder / "role.json").write_text(
            json.dumps(
                [
                    {"type": "file", "name": 'the "door" | is there', "path": str(tmp_path / "door")},
                    {"type": "command", "shell": "echo 12 # secret", "warn": 10, "unit": " %", "tags": ["slow"]},
                ]
            )
        )
        return folder

    def call(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
        code = cli.main(list(arguments))
        return code, capsys.readouterr().out.splitlines()

    def test_codes_and_first_lines_are_those_of_monitoring_plugins(
        self, announced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        where = f"--directory={announced}"
        code, lines = self.call(capsys, where)
        assert (code, len(lines)) == (2, 3)
        words, bar, data = lines[0].partition(" | ")
        assert words == 'HEALTH CRITICAL - 2 of 2 checks not ok: the "door" / is there, command echo'
        assert bar and " crit=1 " in data and data.endswith("'command echo'=12%")
        assert "|" not in "".join(lines[1:])
        (tmp_path / "door").touch()
        assert self.call(capsys, where)[0] == 1
        code, lines = self.call(capsys, where, "--skip-tags=slow")
        assert code == 0 and lines[0].startswith("HEALTH OK - 1 checks ok | time=")
        assert self.call(capsys, where, "--tags=file", "--quiet") == (0, [])
        code, lines = self.call(capsys, where, "--quiet")
        assert code == 1 and len(lines) == 2 and "|" not in lines[0]

    def test_what_cannot_be_read_is_unknown(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "broken.json").write_text("{")
        for arguments in (["--directory=/nowhere"], [f"--directory={tmp_path}"]):
            target = tmp_path / "health.prom"
            code, lines = self.call(capsys, *arguments, f"--textfile={target}")
            assert code == 3 and lines[0].startswith("HEALTH UNKNOWN - ")
            assert "\nvmfleet_health_state 3\n" in target.read_text()
        with pytest.raises(SystemExit) as ended:
            cli.main(["--nonsense"])
        assert ended.value.code == 3

    def test_json_has_everything(self, announced: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code, lines = self.call(capsys, f"--directory={announced}", "--json")
        outcome = json.loads("\n".join(lines))
        assert code == 2 and outcome["verdict"] == "crit" and outcome["time"] > 0
        assert [entry["state"] for entry in outcome["results"]] == ["crit", "warn"]

    def test_metrics_are_for_everybody_and_hold_no_secrets(
        self, announced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        target = tmp_path / "metrics" / "health.prom"
        # A host without node_exporter.
        assert self.call(capsys, f"--directory={announced}", f"--textfile={target}")[0] == 2
        target.parent.mkdir()
        assert self.call(capsys, f"--directory={announced}", f"--textfile={target}")[0] == 2
        content = target.read_text()
        assert 'check_state{check="the \\"door\\" | is there",role="role",service="role",type="file"} 2\n' in content
        assert 'vmfleet_health_checks{state="warn"} 1\n' in content
        assert "secret" not in content and str(tmp_path) not in content
        assert target.stat().st_mode & 0o777 == 0o644
        assert list(target.parent.iterdir()) == [target]
        target.unlink()
        target.mkdir()
        assert self.call(capsys, f"--directory={announced}", f"--textfile={target}")[0] == 73
        assert list(target.parent.iterdir()) == [target]

    def test_the_role_installs_the_whole_engine(self) -> None:
        utils = Path(cli.__file__).resolve().parents[1]
        role = utils.parents[1] / "roles" / "base"
        entries = yaml.safe_load((role / "vars" / "main.yml").read_text())["__base_engine_files"]
        installed = {
            (role / "files" / entry["source"]).resolve(): entry["dest"].removeprefix("/usr/local/lib/vmfleet/")
            for entry in entries
        }
        wanted = [path for pattern in health_action.ENGINE for path in utils.glob(pattern)]
        assert installed == {path: str(path.relative_to(utils)) for path in wanted}
        # What is installed finds all that it needs among it.
        for path in wanted:
            for line in path.read_text().splitlines():
                assert not line.startswith(("import ansible", "from ansible")), path


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"type": "command", "argv": ["/bin/true", "secret"]}, "command /bin/true"),
        ({"type": "http", "url": "https://user:secret@host/path?key=secret"}, "http https://host/path"),
    ],
)
def test_names_hold_no_secrets(keys: dict[str, Any], name: str) -> None:
    assert check(**keys).name == name
