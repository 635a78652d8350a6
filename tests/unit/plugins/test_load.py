"""Which load may be sent where, what its log comes to, and when that is not good enough."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils import _load_run as run
from ansible_collections.vmfleet.ops.plugins.plugin_utils import _load_verdict as load

SITES: list[dict[str, Any]] = [
    {
        "name": "api",
        "hosts": ["api.example.com", "www.example.com"],
        "routes": [{"path": "/", "service": "api"}, {"path": "/ws", "service": "ws", "websocket": True}],
    },
    {"name": "docs", "hosts": ["docs.example.com"], "routes": [{"path": "/guide", "service": "docs"}]},
]
BALANCERS = {"lb1": ("10.0.0.1", 443), "lb2": ("10.0.0.2", 8443)}
GOALS = {"p50": 100.0, "p95": 500.0, "p99": 1000.0, "errors": 0.001, "rate": 0.95}


def total(**changes: Any) -> dict[str, Any]:
    figures = {"asked": 20.0, "rate": 20.0, "errors": 0.0, "statuses": {"200": 600}, "requests": 600}
    return {**figures, "p50": 10.0, "p95": 20.0, "p99": 30.0, "max": 40.0, **changes}


def test_the_rate_is_shared_by_paths_and_balancers() -> None:
    targets = load.choose_targets(
        [{"site": "api", "path": "/a?b=c"}, {"site": "docs", "path": "/guide/x"}], SITES, BALANCERS, 20
    )
    assert [(target["host"], target["path"], target["address"], target["port"]) for target in targets] == [
        ("api.example.com", "/a?b=c", "10.0.0.1", 443),
        ("api.example.com", "/a?b=c", "10.0.0.2", 8443),
        ("docs.example.com", "/guide/x", "10.0.0.1", 443),
        ("docs.example.com", "/guide/x", "10.0.0.2", 8443),
    ]
    assert sum(target["rate"] for target in targets) == 20


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"site": "apy"}, "loadtest_targets[0].site = 'apy': is no site of the inventory; did you mean api?"),
        ({"site": "https://elsewhere.example"}, "is no site of the inventory; use api, docs"),
        ({"site": "api", "path": "https://elsewhere.example/"}, "is no path"),
        ({"site": "api", "path": "//elsewhere.example/"}, "is no path"),
        ({"site": "api", "path": "/a --connect-to=elsewhere"}, "is no path"),
        ({"site": "docs", "path": "/guides"}, "no route of site docs has it; its routes are /guide"),
        ({"site": "api", "path": "/ws/1"}, "is a route for WebSockets"),
    ],
)
def test_what_is_not_in_the_inventory_is_refused(wanted: dict[str, str], words: str) -> None:
    with pytest.raises(load.LoadError) as refusal:
        load.choose_targets([wanted], SITES, BALANCERS, 20)
    assert words in str(refusal.value)


def test_without_wishes_each_site_is_asked_for_what_it_has() -> None:
    paths = [target["path"] for target in load.choose_targets([], SITES, {"lb1": ("10.0.0.1", 443)}, 20)]
    assert paths == ["/health", "/guide"]


def test_nothing_to_load_is_an_error() -> None:
    with pytest.raises(load.LoadError, match="group lb: has no hosts"):
        load.choose_targets([], SITES, {}, 20)
    with pytest.raises(load.LoadError, match="lb_sites: is empty"):
        load.choose_targets([], [], BALANCERS, 20)


@pytest.mark.parametrize(("rate", "duration", "name"), [(10001, 30, "rate"), (20, 901, "duration"), (0, 30, "rate")])
def test_rate_and_time_are_bounded(rate: float, duration: int, name: str) -> None:
    with pytest.raises(load.LoadError, match=f"loadtest_{name} = .* is out of bounds"):
        load.check_bounds(rate, duration, 0.25)


def test_production_is_loaded_only_by_its_name() -> None:
    load.check_consent("local", "")
    load.check_consent("production", "production")
    for confirm in ("", "yes", "staging"):
        with pytest.raises(load.LoadError, match="loadtest_confirm=production"):
            load.check_consent("production", confirm)


def test_the_command_asks_one_balancer_for_the_site() -> None:
    (target, *_) = load.choose_targets([{"site": "api"}], SITES, {"lb1": ("fd00::1", 443)}, 25)
    argv = run.argv_of(target, 30, "/tmp/log", http2=False)
    assert {"--h1", "--clients=3", "--duration=30", "--connect-to=[fd00::1]:443", "--rps=8.3333"} <= set(argv)
    assert argv[-1] == "https://api.example.com/health"
    assert "--h1" not in run.argv_of(target, 30, "/tmp/log", http2=True)


def test_the_log_comes_to_figures() -> None:
    lines = [f"1700000000000000\t{status}\t{ms * 1000}" for status, ms in ((200, 10), (200, 20), (302, 30), (429, 1))]
    found = run.summary(run.parse_log([*lines, "1700000000000000\t-1\t5000000", "half a li"]), 5)
    assert (found["requests"], found["rate"], found["errors"]) == (5, 1.0, 0.4)
    assert found["statuses"] == {"0": 1, "200": 2, "302": 1, "429": 1}
    assert (found["p50"], found["p95"], found["max"]) == (10.0, 30.0, 30.0)
    assert run.summary([], 5)["errors"] == 1.0


def test_goals() -> None:
    assert load.judge(total(), GOALS) == []
    assert load.judge(total(p50=101.0, p99=1500.0), GOALS) == [
        "p50 is 101 ms, the goal 100 ms",
        "p99 is 1500 ms, the goal 1000 ms",
    ]
    assert load.judge(total(rate=18.0), GOALS) == ["18 requests a second came about, 20 were asked for"]
    limited = load.judge(total(errors=0.5, statuses={"200": 300, "429": 200, "0": 100}), GOALS)
    assert limited[0] == "50.00% of the requests failed (200 with 429, 100 with no answer), the goal 0.10%"
    assert "lb_defaults.exempt" in limited[1]
    none = load.judge(total(errors=1.0, statuses={}, requests=0, rate=0.0, p50=None, p95=None, p99=None), GOALS)
    assert "none was answered" in none[0]


def test_a_baseline_is_of_the_same_load() -> None:
    asked = {"rate": 20.0, "duration": 30, "http2": False, "targets": ["api/"]}
    assert load.check_baseline({"load": asked, "total": total()}, asked) == total()
    with pytest.raises(load.LoadError, match=r"of another load, rate 50\.0 and not 20\.0"):
        load.check_baseline({"load": {**asked, "rate": 50.0}, "total": total()}, asked)
    with pytest.raises(load.LoadError, match=r"is no load\.json"):
        load.check_baseline([], asked)


def test_what_is_worse_than_before_is_told() -> None:
    assert load.compare(total(p50=14.0, p95=25.0), total(), 0.25) == [], "4 ms may be anything, 25% are tolerated"
    assert load.compare(total(p95=26.0), total(), 0.25) == ["p95 is 26 ms, it was 20 ms"]
    assert load.compare(total(rate=10.0), total(), 0.25) == ["10 requests a second came about, there were 20"]


def test_the_table_has_all_targets_and_their_sum() -> None:
    report = {"targets": [{**total(p50=None), "name": "api/", "balancer": "lb1", "said": "refused"}], "total": total()}
    lines = load.table(report).splitlines()
    assert " ".join(lines[0].split()) == "path through asked/s rate/s requests errors p50 p95 p99 max ms"
    assert lines[1].split()[:7] == ["api/", "lb1", "20", "20", "600", "0.00%", "-"]
    assert lines[2].startswith("all ")
    assert lines[3] == "api/ through lb1: refused"
