"""The rules across hosts, the baseline and the reports."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.plugin_utils._fleet_verdict import (
    Finding,
    Host,
    Rules,
    Verdict,
    VerdictError,
    check_baseline,
    judge,
    make_quorums,
    read_host,
)
from ansible_collections.vmfleet.ops.plugins.plugin_utils._report_page import RUNS, page, plot, remember, trend
from ansible_collections.vmfleet.ops.plugins.plugin_utils._verdict_play import look_from_outside
from ansible_collections.vmfleet.ops.plugins.plugin_utils._verdict_report import (
    junit,
    summary,
    table,
    textfile,
    write_reports,
)
from junitparser import Error, Failure, JUnitXml

GROUPS = {"app": ["api1", "api2", "api3"]}
ZONES = {"api1": "a", "api2": "b", "api3": "b"}


def check(name: str = "it runs", state: str = "ok", **more: Any) -> dict[str, Any]:
    role = more.pop("role", "app")
    words = {"type": "systemd", "service": role, "message": f"{name} is {state}", "seconds": 0.1}
    return {"name": name, "role": role, "state": state, **words, **more}


def host(name: str, *checks: dict[str, Any] | str, asked: tuple[float, float] = (100.0, 101.0)) -> Host:
    entries = [check(state=entry) if isinstance(entry, str) else entry for entry in checks or ["ok"]]
    return read_host(name, {"results": entries, "asked": list(asked), "seconds": 0.2})


def quorum(at_least: str, **more: Any) -> Rules:
    return Rules(
        quorums=make_quorums([{"group": "app", "at_least": at_least, **more}], GROUPS, lambda name, _: ZONES[name])
    )


def the(verdict: Verdict, rule: str) -> Finding:
    (finding,) = [finding for finding in verdict.rules if finding.name.startswith(rule)]
    return finding


def problems(verdict: Verdict) -> list[tuple[str, str]]:
    return [(finding.subject, finding.state) for finding in verdict.problems if not finding.known]


def test_a_healthy_fleet_and_no_fleet() -> None:
    verdict = judge([host("api1"), host("api2")], Rules())
    assert (verdict.state, verdict.healthy, verdict.problems) == ("ok", True, [])
    with pytest.raises(VerdictError, match="no hosts"):
        judge([], Rules())


@pytest.mark.parametrize(
    ("result", "reach", "state"),
    [
        (None, "missing", "crit"),
        ({"unreachable": True, "msg": "no route"}, "unreachable", "crit"),
        ({"failed": True, "msg": "timed out"}, "failed", "unknown"),
        ({"results": []}, "failed", "unknown"),
        ({"skipped": True}, "failed", "unknown"),
    ],
)
def test_who_gives_no_answer_counts(result: dict[str, Any] | None, reach: str, state: str) -> None:
    silent = read_host("api2", result)
    assert (silent.reach, silent.state) == (reach, state)
    verdict = judge([host("api1"), silent], Rules())
    assert not verdict.healthy and problems(verdict) == [("api2", state)]
    assert verdict.problems[0].message


class TestQuorum:
    def test_the_few_only_warn(self) -> None:
        verdict = judge([host("api1"), host("api2", "crit"), host("api3")], quorum("2"))
        assert verdict.healthy and verdict.state == "warn"
        assert the(verdict, "at least 2 of app").message == "2 of 3 well, not api2"
        assert all(finding.tolerated for finding in verdict.problems if finding.subject == "api2")

    def test_too_few_fail(self) -> None:
        verdict = judge([host("api1"), host("api2", "crit"), read_host("api3", None)], quorum("66%"))
        assert the(verdict, "at least 66% of app").state == "crit"
        assert problems(verdict) == [("api2", "crit"), ("api3", "crit"), ("fleet", "crit")]

    def test_it_forgives_its_service_and_no_other(self) -> None:
        ill = host("api2", check(state="crit"), check("disk", "crit", role="base"))
        verdict = judge([host("api1"), ill, host("api3")], quorum("2", service="app"))
        assert [finding.name for finding in verdict.problems if finding.state == "crit"] == ["base: disk"]
        silent = judge([host("api1"), read_host("api2", None), host("api3")], quorum("2", service="app"))
        assert the(silent, "at least 2").state == "warn" and not silent.healthy

    def test_every_zone_has_its_own(self) -> None:
        verdict = judge([host("api1", "crit"), host("api2"), host("api3")], quorum("1", zone="rack"))
        assert {finding.name: finding.state for finding in verdict.rules} == {
            "at least 1 of app in a well": "crit",
            "at least 1 of app in b well": "ok",
        }

    def test_a_part_of_the_group_is_not_judged(self) -> None:
        verdict = judge([host("api1")], quorum("2"))
        assert verdict.healthy and verdict.unjudged == ["at least 2 of app well"]

    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            ({"group": "none", "at_least": "1"}, "'none' is no group"),
            ({"group": "app", "at_least": "most"}, "'most' is neither"),
            ({"group": "app", "at_least": "101%"}, "'101%' is neither"),
            ({"group": "app", "at_least": "4"}, "there are 3"),
            ({"group": "app", "at_least": "1", "zone": "rack"}, "no variable rack"),
        ],
    )
    def test_a_rule_that_cannot_hold_is_refused(self, rule: dict[str, str], words: str) -> None:
        with pytest.raises(VerdictError, match=words):
            make_quorums([rule], GROUPS, lambda _host, _name: None)


def database(name: str, role: str, system: str = "1", receivers: int = 1, version: str = "17.1") -> Host:
    data = {"role": role, "system": system, "receivers": receivers, "version": version}
    return host(name, check(f"answers as {role}", type="postgresql", role="postgresql", data=data))


class TestReplication:
    RULES = Rules(primaries=["db1"], replicas=["db2", "db3"], same_version={"db": ["db1", "db2", "db3"]})

    def judge(self, *hosts: Host) -> Finding:
        return the(judge(hosts, self.RULES), "replication")

    def test_one_leads_and_all_others_follow(self) -> None:
        hosts = database("db1", "primary"), database("db2", "replica"), database("db3", "replica")
        assert self.judge(*hosts).state == "ok"

    @pytest.mark.parametrize(
        ("second", "words"),
        [
            (database("db2", "primary"), "db1, db2 are primaries of one cluster"),
            (database("db2", "replica", receivers=0), "db2 receives nothing"),
            (database("db2", "replica", system="2"), "there is no primary (db2)"),
            (read_host("db2", None), "nothing is known of the replica db2"),
        ],
    )
    def test_what_is_not_so_is_named(self, second: Host, words: str) -> None:
        finding = self.judge(database("db1", "primary"), second, database("db3", "replica"))
        assert finding.state == "crit" and words in finding.message

    def test_versions_of_a_group_are_equal(self) -> None:
        hosts = database("db1", "primary"), database("db2", "replica", version="17.2"), database("db3", "replica")
        finding = the(judge(hosts, self.RULES), "versions of db")
        assert (finding.state, finding.message) == ("crit", "postgresql: 17.1 on db1, db3, 17.2 on db2")

    def test_a_part_of_it_is_not_judged(self) -> None:
        assert judge([database("db1", "primary")], self.RULES).unjudged == ["replication"]


def balancer(name: str, kind: str, **servers: str) -> Host:
    seen = {path.replace("_", "/"): state for path, state in servers.items()}
    return host(name, check("servers", type=kind, role=kind, data={"servers": seen}))


def test_balancers_see_the_same_servers_whatever_they_call_their_backends() -> None:
    nginx = balancer("lb1", "nginx", api_api1="UP", api_api2="UP", ws_api1="UP")
    same = balancer("lb2", "haproxy", site_api1="UP 1/2", site_api2="no check", own_x="DOWN")
    assert the(judge([nginx, same], Rules()), "balancers").state == "ok"
    other = balancer("lb2", "haproxy", site_api1="UP", site_api2="UP", more_api2="DOWN")
    finding = the(judge([nginx, other], Rules()), "balancers")
    assert (finding.state, finding.message) == ("crit", "api2 is healthy for lb1 but not for lb2")
    drained = [balancer(name, "haproxy", site_api1="MAINT", site_api2="UP") for name in ("lb1", "lb2")]
    assert the(judge(drained, Rules()), "balancers").state == "ok"
    assert judge([nginx], Rules()).rules == []


def test_certificates_of_a_group_are_the_same() -> None:
    hosts = [
        host(name, check("site", type="tls", data={"sha256": digest})) for name, digest in (("a", "1"), ("b", "2"))
    ]
    rules = Rules(same_certificate={"lb": ["a", "b"]})
    assert the(judge(hosts, rules), "certificates of lb").message == "app: site: 1 on a, 2 on b"
    assert judge(hosts[:1], rules).healthy


def sharer(name: str, *held: str, of: tuple[str, ...] = ("lb1", "lb2")) -> Host:
    view = {address: address in held for address in ("10.0.0.9/24", "fd00::9/64")}
    data = {"held": view, "sharers": list(of)}
    return host(name, check("shared addresses", type="floating", role="keepalived", data=data))


@pytest.mark.parametrize(
    ("first", "second", "state", "words"),
    [
        (("10.0.0.9/24",), (), "ok", "lb1 of lb1, lb2"),
        ((), (), "crit", "nobody of lb1, lb2"),
        (("10.0.0.9/24",), ("10.0.0.9/24",), "crit", "lb1, lb2 of lb1, lb2"),
    ],
)
def test_a_shared_address_has_one_holder(
    first: tuple[str, ...], second: tuple[str, ...], state: str, words: str
) -> None:
    others = ("fd00::9/64",)
    verdict = judge([sharer("lb1", *first, *others), sharer("lb2", *second)], Rules())
    finding = the(verdict, "holder of 10.0.0.9/24")
    assert (finding.state, finding.message) == (state, words)
    assert the(verdict, "holder of fd00::9/64").state == "ok"


def test_a_holder_is_looked_for_among_all_that_share() -> None:
    verdict = judge([sharer("lb2")], Rules())
    assert verdict.unjudged == ["holder of 10.0.0.9/24", "holder of fd00::9/64"] and verdict.healthy
    silent = judge([sharer("lb1"), read_host("lb2", None)], Rules())
    assert the(silent, "holder of 10").message == "nobody of lb1, lb2; nothing is known of lb2"


@pytest.mark.parametrize(("time", "state"), [(100.5, "ok"), (98.5, "ok"), (97.0, "crit"), (103.5, "crit")])
def test_a_clock_is_wrong_only_beyond_doubt(time: float, state: str) -> None:
    verdict = judge([host("a", check("clock", type="clock", data={"time": time}))], Rules(clock_bound=2.0))
    assert the(verdict, "clocks").state == state


class TestBaseline:
    BEFORE = (host("api1", "crit"), host("api2", "warn"), host("api3", "unknown"))

    def baseline(self) -> Any:
        return check_baseline(json.loads(json.dumps(judge(self.BEFORE, Rules()).as_data())))

    def test_old_faults_do_not_blame_a_change(self) -> None:
        verdict = judge(self.BEFORE, Rules(), self.baseline())
        assert verdict.state == "ok" and len(verdict.problems) == 3
        assert "3 known before" in summary(verdict) and "known    api1: app: it runs" in table(verdict)

    def test_what_got_worse_or_is_new_does(self) -> None:
        worse = judge([host("api1", "crit"), host("api2", "crit")], Rules(), self.baseline())
        assert problems(worse) == [("api2", "crit")]
        new = judge([host("api1", check("another", "crit"))], Rules(), self.baseline())
        assert problems(new) == [("api1", "crit")]
        # Only of the hosts that were asked.
        assert new.mended == ["api1: app: it runs"]

    @pytest.mark.parametrize("data", [[], {"format": 2, "problems": []}, {"format": 1, "problems": [{"state": "x"}]}])
    def test_another_file_is_refused(self, data: Any) -> None:
        with pytest.raises(VerdictError, match="no report"):
            check_baseline(data)


class TestReports:
    HOSTS = (
        host("api1", check("a <b>\0 & c", "crit"), check("slow", "warn"), check("odd", "unknown")),
        read_host("api2", {"unreachable": True, "msg": "no route\nto host"}),
        host("api3"),
    )

    def test_the_table_names_hosts_rules_and_problems(self) -> None:
        lines = table(judge(self.HOSTS, quorum("2"))).splitlines()
        assert lines[0].split() == ["host", "verdict", "ok", "warn", "crit", "unknown"]
        assert lines[1].split() == ["api1", "crit", ".", "1", "1", "1"]
        assert lines[2].split() == ["api2", "unreachable"]
        assert any(line.startswith("at least 2 of app well  crit") for line in lines)
        assert "crit     api2: the host answers: no route to host" in lines

    def test_junit_is_what_parsers_expect(self) -> None:
        text = junit(judge(self.HOSTS, quorum("2")), "2026-11-24T12:00:00+00:00")
        report = JUnitXml.fromstring(text.encode())
        assert (report.tests, report.failures, report.errors) == (6, 3, 1)
        suites = {suite.name: suite for suite in report}
        assert list(suites) == ["api1", "api2", "api3", "fleet"]
        outcomes = {case.name: case.result for case in suites["api1"]}
        ((name, (failure,)),) = [(name, found) for name, found in outcomes.items() if "<b>" in name]
        assert name == "a <b>? & c" and isinstance(failure, Failure)
        assert (failure.message, failure.type) == ("a <b>? & c is crit", "crit")
        assert outcomes["slow"] == [] and isinstance(outcomes["odd"][0], Error)
        assert suites["api1"].time == pytest.approx(0.3)
        # What it counts is what its own sums say.
        before = (report.tests, report.failures, report.errors)
        report.update_statistics()  # type: ignore[no-untyped-call]
        assert (report.tests, report.failures, report.errors) == before

    def test_junit_passes_what_was_known(self) -> None:
        baseline = judge(self.HOSTS, Rules()).as_data()
        text = junit(judge(self.HOSTS, Rules(), baseline), "2026-11-24T12:00:00+00:00")
        report = JUnitXml.fromstring(text.encode())
        assert (report.tests, report.failures, report.errors) == (5, 0, 0)

    def test_the_textfile_tells_states_and_nothing_of_what_was_seen(self) -> None:
        text = textfile(judge(self.HOSTS, quorum("2")), 1.5)
        assert "vmfleet_verdict_state 2\n" in text and "vmfleet_verdict_timestamp_seconds 1.5\n" in text
        assert 'vmfleet_verdict_host_answered{host="api2"} 0\n' in text
        assert (
            'vmfleet_verdict_check_state{host="api1",check="odd",role="app",service="app",type="systemd"} 3\n' in text
        )
        assert 'vmfleet_verdict_rule_state{rule="at least 2 of app well"} 2\n' in text
        assert "is crit" not in text and "no route" not in text
        assert all(re.fullmatch(r"# .*|vmfleet_\w+({.*})? [0-9.]+", line) for line in text.splitlines())

    def test_all_of_them_are_written_and_the_last_runs_are_kept(self, tmp_path: Path) -> None:
        folder = tmp_path / "new" / "reports"
        for run in range(RUNS + 2):
            write_reports(folder, judge(self.HOSTS[2:] if run else self.HOSTS, Rules()))
        assert sorted(path.name for path in folder.iterdir()) == [
            "history.json", "junit.xml", "report.html", "verdict.json", "verdict.prom",
        ]  # fmt: skip
        runs = json.loads((folder / "history.json").read_text())["runs"]
        assert [run["verdict"] for run in runs] == ["ok"] * RUNS
        (folder / "history.json").write_text('{"format": 1, "runs": [{"time": 1}, 7')
        write_reports(folder, judge(self.HOSTS, Rules()))
        (run,) = json.loads((folder / "history.json").read_text())["runs"]
        assert run["hosts"] == {"api1": "crit", "api2": "crit", "api3": "ok"}
        assert "api2: the host answers" in run["problems"]
        with pytest.raises(VerdictError, match=r"report: .*history\.json: .*Not a directory"):
            write_reports(folder / "history.json", judge(self.HOSTS, Rules()))


class TestPage:
    """Its behaviour in a browser is for tests/integration/test_report_page.py."""

    def report(self, *hosts: Host, **more: Any) -> dict[str, Any]:
        return {"time": "2026-11-24T12:00:00+00:00", **judge(hosts, Rules()).as_data(), **more}

    def test_it_needs_nothing_else(self) -> None:
        report = self.report(host("a", check("<script>alert(1)</script>")))
        text = page(report, remember(None, report))
        # The one source is the empty icon.
        assert re.findall(r"""(?:src|href)=["'](?!#)([^"']*)""", text) == ["data:,"]
        assert not re.search("https?:|url[(]|@import", text)
        assert text.count("<script") == 1 and "&lt;script&gt;alert(1)" in text

    def test_a_plot_has_its_marks_in_order(self) -> None:
        figures = {"p50": 2.0, "p95": 20.0, "p99": 150.0, "max": 200.0}
        drawn = plot({"latency_ms": figures, "latencies_ms": [2.0, 20.0, 200.0, 0.0]})
        assert list(drawn["marks"].values()) == sorted(drawn["marks"].values())
        assert [words for _place, words in drawn["axis"]] == ["0.1", "1", "10", "100", "1000"]
        assert drawn["tries"][0] == drawn["axis"][0][0] and drawn["tries"][-1] < drawn["axis"][-1][0]

    def test_a_trend_needs_two_runs(self) -> None:
        assert trend([None, 3.0]) == trend([]) == ""
        assert trend([4.0, None, 2.0]) == "2.0,2.0 98.0,10.0"
        assert trend([0.0, 0.0])

    def test_how_long_something_is_wrong(self) -> None:
        history: Any = None
        for state in ("crit", "ok", "crit", "crit"):
            report = self.report(host("a", state))
            history = remember(history, report)
        assert "in the last 2 runs, since 2026-11-24 12:00:00 UTC" in page(report, history)


class TestOutside:
    def test_the_controller_counts_like_a_host(self, tmp_path: Path) -> None:
        (tmp_path / "there").touch()
        checks = [{"type": "file", "name": name, "path": str(tmp_path / name)} for name in ("there", "missing")]
        (outside,) = look_from_outside(checks, 0.0)
        verdict = judge([host("a"), outside], Rules())
        assert problems(verdict) == [("outside", "crit")] and verdict.problems[0].name == "missing"
        assert summary(verdict).endswith("(1 hosts, 3 checks)")

    def test_nothing_to_look_at_is_no_host_and_a_wrong_check_is_refused(self) -> None:
        assert look_from_outside([], 0.0) == []
        with pytest.raises(VerdictError, match=r"checks: .*'nothing' is none of"):
            look_from_outside([{"type": "nothing"}], 0.0)


def test_a_run_that_broke_is_never_well() -> None:
    verdict = judge([host("a")], Rules(broken="the run was interrupted"))
    assert not verdict.healthy and the(verdict, "the run came to").message == "the run was interrupted"
    silent = read_host("b", None, "Converge Redis: no space left")
    assert silent.message == "there is no result of its checks: Converge Redis: no space left"
