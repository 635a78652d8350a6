"""The results as short Markdown tables, for people and for the README."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

TOOLS = {"ours": "vmfleet.ops", "stock": "stock modules", "pyinfra": "pyinfra"}


def _rows(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"


def _cost(label: str, found: dict[str, Any]) -> list[object]:
    return [
        label,
        _seconds(found["wall"]),
        _seconds(found["cpu"] + found["masters_cpu"]),
        _seconds(found["hosts_cpu"]),
        f"{found['rss_mb']:.0f} MB",
    ]


def fleet(result: dict[str, Any]) -> list[str]:
    labels = {
        "first": "first run on bare hosts",
        "rerun": "re-run, nothing to do",
        "check": "`--check --diff`, nothing to do",
        "check_bare": "`--check --diff` on bare hosts",
    }
    counts = result["rerun_counts"]
    most = counts["ssh_executions_per_role_and_host_max"]
    words = (
        f"A re-run takes {counts['host_tasks_per_host']} host-tasks a host, {most} SSH executions at most for a role"
        f" on a host, {counts['ssh_executions']} in all, and {counts['module_transfers']} module transfers."
    )
    return [
        f"The whole site on the local fleet, {result['hosts']} hosts:",
        "",
        *_rows(
            ["", "wall", "controller CPU", "hosts' CPU", "largest process"],
            [_cost(label, result[key]) for key, label in labels.items()],
        ),
        "",
        words,
    ]


def stack(result: dict[str, Any]) -> list[str]:
    rows = []
    for name, found in result["tools"].items():
        counts = found["counts"]
        ratio = result["ratios_to_ours"].get(name)
        rows.append(
            [
                TOOLS[name],
                _seconds(found["rerun"]["wall"]),
                f"{ratio['rerun']:.1f}" if ratio else "-",
                _seconds(found["rerun"]["cpu"] + found["rerun"]["masters_cpu"]),
                _seconds(found["rerun"]["hosts_cpu"]),
                counts["ssh_executions"],
                counts["module_transfers"],
                counts["host_tasks_per_host"],
                _seconds(found["first"]["wall"]),
            ]
        )
    return [
        f"The same end state of a smaller stack on {result['hosts']} hosts, the tools in turn (medians):",
        "",
        *_rows(
            [
                "",
                "re-run",
                "times ours",
                "controller CPU",
                "hosts' CPU",
                "SSH executions",
                "module transfers",
                "tasks a host",
                "first run",
            ],
            rows,
        ),
    ]


def scale(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            found["hosts"],
            *_cost("", found)[1:3],
            f"{1000 * found['cpu'] / found['hosts']:.0f} ms",
            *_cost("", found)[4:],
        ]
        for found in result["curve"]
    ]
    return [
        f"The re-run of the site by fleet size, on stand-in hosts, {result['forks']} forks:",
        "",
        *_rows(["hosts", "wall", "controller CPU", "CPU a host", "largest process"], rows),
    ]


def health(result: dict[str, Any]) -> list[str]:
    labels = {"ours": "vmfleet.ops.health, one call", "testinfra": "pytest-testinfra", "serverspec": "serverspec"}
    ratios = {"ours": 1.0, **result["ratios_to_ours"]}
    rows = [[label, _seconds(result["tools"][name]["wall"]), f"{ratios[name]:.1f}"] for name, label in labels.items()]
    rows.append(["loops of modules, reckoned", _seconds(result["loops"]["wall"]), f"{ratios['loops']:.1f}"])
    host = result["host"]
    words = (
        f"The engine itself takes {host['engine_seconds']:.1f} s of it and {host['host_rss_mb']:.0f} MB on the host."
        f" Of the loops {result['loops']['share']} checks of each kind were timed."
    )
    kinds = ", ".join(f"{number} {kind}" for kind, number in result["kinds"].items())
    return [
        f"{result['checks']} checks of one host over ssh ({kinds}):",
        "",
        *_rows(["", "wall", "times ours"], rows),
        "",
        words,
    ]


def balancer(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"{found['kind']}, {found['label']}" if found["kind"] else found["label"],
            found["requests_per_second"],
            *(f"{found[f'{key}_ms']:.1f} ms" for key in ("p50", "p95", "p99")),
            f"{found['errors']:.2%}",
            "yes" if found["meets_target"] else "no",
        ]
        for found in result["variants"]
    ]
    target = result["target"]
    compared = [
        [
            kind,
            f"{result['ours_to_default'][kind]:.2f}",
            *(f"{cost[key]:.2f}" for key in ("TLS", "headers", "limits")),
        ]
        for kind, cost in result["cost"].items()
    ]
    words = (
        f"Requests of 1 KiB through one balancer, {result['connections']} connections, {result['rounds']} runs of"
        f" {result['seconds']} s each in turns (medians); the target is {target['requests_per_second']} requests/s, p95"
        f" under {target['p95_ms']:.0f} ms, errors below {target['errors']:.1%}:"
    )
    return [
        words,
        "",
        *_rows(["", "requests/s", "p50", "p95", "p99", "errors", "at the target"], rows),
        "",
        "Requests/s as shares, within each turn:",
        "",
        *_rows(
            ["", "ours to default, both TLS", "TLS to plain", "with headers to without", "with limits to without"],
            compared,
        ),
    ]


def backup(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            way["what"],
            way["name"],
            *(f"{_seconds(way[key])} ({way[f'{key}_to_ours']:.2f})" for key in ("save", "restore")),
            f"{way['stored'] / 1e6:.0f} MB",
        ]
        for way in result["ways"]
    ]
    later = [
        [
            what,
            _seconds(found["full_seconds"]),
            _seconds(found["incremental_seconds"]),
            f"{found['incremental_seconds'] / found['full_seconds']:.0%}",
            f"{found['full_bytes'] / 1e6:.1f} MB",
            f"{found['incremental_bytes'] / 1e6:.1f} MB",
            f"{found['incremental_bytes'] / found['full_bytes']:.1%}",
        ]
        for what, found in result["incremental"].items()
    ]
    files, target = result["files"], result["target"]
    words = (
        f"A database of {result['database_bytes'] / 1e9:.1f} GB and {files['count']} files of"
        f" {files['bytes'] / 1e6:.0f} MB saved and restored, {result['rounds']} times in turns (medians); in brackets"
        " how often our time it is. The targets are"
        f" {target['pipeline']:.0f} or more for pipelines with openssl, {1 / target['by_hand']:.2f} or more by hand:"
    )
    share = f"the target is less than {target['incremental']:.0%} of a full one"
    return [
        words,
        "",
        *_rows(["", "", "save", "restore", "stored"], rows),
        "",
        f"A second copy, after one in a hundred rows or files was changed; {share}:",
        "",
        *_rows(["", "full", "second", "", "full", "second", ""], later),
    ]


PARTS = {"fleet": fleet, "stack": stack, "scale": scale, "health": health, "balancer": balancer, "backup": backup}


def table(results: Path) -> str:
    """Every part that has results."""
    blocks = []
    for part, render in PARTS.items():
        path = results / f"{part}.json"
        if path.exists():
            document = json.loads(path.read_text())
            facts = document["machine"]
            versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
            origin = f"{document['date']}, {facts['cpus']} CPUs, {facts['memory_gib']} GiB, {versions}"
            blocks.append("\n".join([*render(document), "", f"({origin})"]))
    return "\n\n".join(blocks) or "No results yet."
