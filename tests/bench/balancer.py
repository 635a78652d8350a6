"""Load through the balancers as our roles set them up, beside the distribution's configuration and the service."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fleet_hosts import Fleet
from measure import RunFailed

CONNECTIONS = 64
WARM_UP = 1
SECONDS = 4
# What one of the systems in mind asks for.
TARGET = {"requests_per_second": 10_000, "p95_ms": 500.0, "errors": 0.001}


@dataclass(frozen=True)
class Variant:
    """One way to the service. ``kind`` is the balancer, empty for none."""

    kind: str
    label: str
    url: str

    @property
    def name(self) -> str:
        return f"{self.kind} {self.label}".strip()


def variants() -> list[Variant]:
    """In the order in which they take their turns: what is compared stands side by side."""
    found = [Variant("", "direct", "http://app1.bench.test:8081/")]
    for kind in ("nginx", "haproxy"):
        found += [
            Variant(kind, "default, plain", f"http://{kind}-stock.bench.test/"),
            Variant(kind, "default, TLS", f"https://{kind}-stock.bench.test/"),
            Variant(kind, "ours", f"https://{kind}-ours.bench.test/"),
            Variant(kind, "ours, no headers", f"https://{kind}-bare.bench.test/"),
            Variant(kind, "ours, limits", f"https://{kind}-ours.bench.test/limited"),
        ]
    return found


def load(container: Any, url: str, seconds: int) -> dict[str, Any]:
    """One bounded run of wrk in the client's container.

    :raises RunFailed: when wrk did not run, or nothing was answered.
    """
    command = ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "5s", "-s", "/root/report.lua", url]
    done = subprocess.run(
        ["docker", "exec", container.id, *command], capture_output=True, text=True, timeout=seconds + 60
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise RunFailed(f"wrk {url}: {(done.stderr or done.stdout).strip()[-300:]}")
    seen: dict[str, Any] = json.loads(lines[-1])
    if not seen["requests"]:
        raise RunFailed(f"wrk {url}: nothing was answered")
    seen["rate"] = seen["requests"] / seen["seconds"]
    return seen


def merged(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of the rounds; errors of all of them together."""
    requests = sum(sample["requests"] for sample in samples)
    return {
        "requests_per_second": round(statistics.median(sample["rate"] for sample in samples)),
        "requests_per_second_all": [round(sample["rate"]) for sample in samples],
        **{
            f"{key}_ms": round(statistics.median(sample[key] for sample in samples), 2) for key in ("p50", "p95", "p99")
        },
        "errors": sum(sample["refused"] + sample["broken"] for sample in samples) / requests,
    }


def meets(seen: Mapping[str, Any]) -> bool:
    """Whether a merged result is at the target."""
    return bool(
        seen["requests_per_second"] >= TARGET["requests_per_second"]
        and seen["p95_ms"] < TARGET["p95_ms"]
        and seen["errors"] < TARGET["errors"]
    )


def rounds(fleet: Fleet, repeat: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All variants in turns; each comparison is the median of the ratios within the turns.

    :raises RunFailed: when the load cannot be made.
    """
    client = fleet.containers()["client1"]
    chosen = variants()
    samples: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in chosen}
    for variant in chosen:
        load(client, variant.url, WARM_UP)
    for number in range(repeat):
        for variant in chosen:
            seen = load(client, variant.url, SECONDS)
            samples[variant.name].append(seen)
            say(f"round {number + 1}, {variant.name}: {seen['rate']:.0f} requests/s, p95 {seen['p95']:.1f} ms")

    def ratio(name: str, base: str) -> float:
        shares: list[float] = [
            mine["rate"] / theirs["rate"] for mine, theirs in zip(samples[name], samples[base], strict=True)
        ]
        return round(statistics.median(shares), 2)

    results = {name: merged(seen) for name, seen in samples.items()}
    return {
        "connections": CONNECTIONS,
        "seconds": SECONDS,
        "rounds": repeat,
        "target": TARGET,
        "variants": [
            {
                "kind": variant.kind,
                "label": variant.label,
                **results[variant.name],
                "meets_target": meets(results[variant.name]),
            }
            for variant in chosen
        ],
        # For the same work: TLS in front, plain HTTP behind.
        "ours_to_default": {kind: ratio(f"{kind} ours", f"{kind} default, TLS") for kind in ("nginx", "haproxy")},
        "cost": {
            kind: {
                "TLS": ratio(f"{kind} default, TLS", f"{kind} default, plain"),
                "headers": ratio(f"{kind} ours", f"{kind} ours, no headers"),
                "limits": ratio(f"{kind} ours, limits", f"{kind} ours"),
            }
            for kind in ("nginx", "haproxy")
        },
    }
