# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which load may be sent, and whether what came of it is good: pure functions over plain data."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.vmfleet.ops.plugins.module_utils._load_run import PERCENTILES

MOST_RATE = 10000
MOST_SECONDS = 900
# Inventories that say they are one of these are there to be tried out.
TRIAL = ("development", "local", "staging", "test")
# Milliseconds by which a percentile may always differ from that of another run.
NOISE_MS = 5.0


class LoadError(ValueError):
    """A load that is refused; the message names variable, value and remedy."""


def check_bounds(rate: float, duration: int, tolerance: float) -> None:
    """Bounded in rate (requests a second, all targets together) and time (seconds)."""
    for name, value, most in (("rate", rate, MOST_RATE), ("duration", duration, MOST_SECONDS)):
        if not 1 <= value <= most:
            raise LoadError(f"loadtest_{name} = {value}: is out of bounds; give 1 to {most}")
    if not 0 <= tolerance <= 10:
        raise LoadError(f"loadtest_tolerance = {tolerance}: is no share; give for example 0.25")


def check_consent(environment: str, confirm: str) -> None:
    """Whoever loads anything but a trial platform says so, by its name."""
    if environment not in TRIAL and confirm != environment:
        raise LoadError(
            f"loadtest_confirm = {confirm!r}: this inventory is of {environment!r} (vmfleet_environment), whose users "
            f"would feel the load; say -e loadtest_confirm={environment} if you mean it"
        )


def choose_targets(
    wanted: Sequence[Mapping[str, Any]],
    sites: Sequence[Mapping[str, Any]],
    balancers: Mapping[str, tuple[str, int]],
    rate: float,
) -> list[dict[str, Any]]:
    """Each wanted path through each balancer, the rate shared out evenly. Without wishes, every site.

    :param wanted: ``site`` and ``path``, by default what every site answers.
    :param sites: those of the inventory's routing model.
    :param balancers: address and HTTPS port by host.
    :raises LoadError: for anything that is not in the inventory.
    """
    known = {str(site["name"]): site for site in sites}
    if not balancers:
        raise LoadError("group lb: has no hosts; without a balancer there is no site to load")
    if not known:
        raise LoadError("lb_sites: is empty, so there is nothing to load")
    chosen = []
    for number, wish in enumerate(wanted or [{"site": name} for name in known]):
        where = f"loadtest_targets[{number}]"
        name = str(wish.get("site", ""))
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"use {', '.join(sorted(known))}"
            raise LoadError(f"{where}.site = {name!r}: is no site of the inventory; {remedy}")
        path = str(wish.get("path") or _default_path(known[name]))
        if not path.startswith("/") or path.startswith("//") or any(c.isspace() for c in path):
            raise LoadError(f"{where}.path = {path!r}: is no path; give one such as /search?q=a")
        _check_route(where, path, known[name])
        chosen.append((name, str(known[name]["hosts"][0]), path))
    share = rate / (len(chosen) * len(balancers))
    return [
        {
            "name": f"{site}{path}",
            "balancer": balancer,
            "host": host,
            "path": path,
            "address": address,
            "port": port,
            "rate": round(share, 4),
        }
        for site, host, path in chosen
        for balancer, (address, port) in balancers.items()
    ]


def _default_path(site: Mapping[str, Any]) -> str:
    """What the balancers answer for a site by asking the service behind it; else its first route."""
    routes = [route for route in site.get("routes") or () if not route.get("websocket")]
    if site.get("health") or any(route["path"] == "/" and route.get("service") for route in routes):
        return "/health"
    return str(routes[0]["path"]) if routes else "/"


def _check_route(where: str, path: str, site: Mapping[str, Any]) -> None:
    plain = path.partition("?")[0]
    if plain == "/health" and site.get("health"):
        return
    routes = [route for route in site.get("routes") or () if _covers(str(route["path"]), plain)]
    if not routes:
        paths = ", ".join(str(route["path"]) for route in site.get("routes") or ())
        raise LoadError(f"{where}.path = {path!r}: no route of site {site['name']} has it; its routes are {paths}")
    if max(routes, key=lambda route: len(str(route["path"]))).get("websocket"):
        raise LoadError(f"{where}.path = {path!r}: is a route for WebSockets; choose one that answers requests")


def _covers(route: str, path: str) -> bool:
    return route == "/" or path == route or path.startswith(f"{route.rstrip('/')}/")


def judge(total: Mapping[str, Any], goals: Mapping[str, float]) -> list[str]:
    """What misses its goal: percentiles in ms, errors and rate as shares of the requests and of the rate asked for."""
    problems = []
    for name, _share in PERCENTILES:
        if total[name] is not None and total[name] > goals[name]:
            problems.append(f"{name} is {total[name]:g} ms, the goal {goals[name]:g} ms")
    if total["errors"] > goals["errors"]:
        told = ", ".join(f"{count} with {code if code != '0' else 'no answer'}" for code, count in _bad(total))
        problems.append(
            f"{total['errors']:.2%} of the requests failed ({told or 'none was answered'}), "
            f"the goal {goals['errors']:.2%}"
        )
        if "429" in total["statuses"]:
            problems.append(
                "429 comes from the limits of routes; to load what is behind them, "
                "exempt the load host in lb_defaults.exempt"
            )
    if total["rate"] < goals["rate"] * total["asked"]:
        problems.append(f"{total['rate']:g} requests a second came about, {total['asked']:g} were asked for")
    return problems


def _bad(total: Mapping[str, Any]) -> Iterable[tuple[str, int]]:
    return [(code, count) for code, count in total["statuses"].items() if not 200 <= int(code) < 400]


def check_baseline(document: Any, load: Mapping[str, Any]) -> Mapping[str, Any]:
    """The totals of an earlier report.

    :param load: ``rate``, ``duration``, ``http2`` and ``targets`` (names), which must be the same.
    :raises LoadError: when it is no report, or one of another load.
    """
    if not isinstance(document, dict) or not isinstance(document.get("total"), dict) or "load" not in document:
        raise LoadError("loadtest_baseline: is no load.json of an earlier run")
    for key, value in load.items():
        if document["load"].get(key) != value:
            raise LoadError(
                f"loadtest_baseline: is of another load, {key} {document['load'].get(key)!r} and not {value!r}; "
                "take a new one, or ask for the same"
            )
    total: Mapping[str, Any] = document["total"]
    return total


def compare(total: Mapping[str, Any], baseline: Mapping[str, Any], tolerance: float) -> list[str]:
    """What is worse than the baseline by more than the tolerance (a share)."""
    problems = []
    for name, _share in PERCENTILES:
        former, now = baseline.get(name), total[name]
        if former is not None and now is not None and now > former * (1 + tolerance) and now - former > NOISE_MS:
            problems.append(f"{name} is {now:g} ms, it was {former:g} ms")
    if total["rate"] < baseline["rate"] * (1 - tolerance):
        problems.append(f"{total['rate']:g} requests a second came about, there were {baseline['rate']:g}")
    return problems


def table(report: Mapping[str, Any]) -> str:
    """Targets and their sum, one line each."""
    rows = [
        ("path", "through", "asked/s", "rate/s", "requests", "errors", *(name for name, _s in PERCENTILES), "max ms")
    ]
    for entry in [*report["targets"], {**report["total"], "name": "all", "balancer": ""}]:
        figures = [entry[name] for name, _share in (*PERCENTILES, ("max", 100))]
        rows.append(
            (
                entry["name"], entry["balancer"], f"{entry['asked']:g}", f"{entry['rate']:g}", str(entry["requests"]),
                f"{entry['errors']:.2%}", *("-" if figure is None else f"{figure:g}" for figure in figures),
            )
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines += [
        f"{entry['name']} through {entry['balancer']}: {entry['said']}" for entry in report["targets"] if entry["said"]
    ]
    return "\n".join(lines)
