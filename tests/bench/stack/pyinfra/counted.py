"""Runs pyinfra and counts what it asks of the network: sessions on ssh connections, and connections."""

from __future__ import annotations

import atexit
import json
import os
from typing import Any

from paramiko import SFTPClient, Transport

COUNTS = {"connections": 0, "executions": 0, "uploads": 0}


def count(owner: Any, method: str, what: str) -> None:
    original = getattr(owner, method)

    def counted(*args: Any, **kwargs: Any) -> Any:
        COUNTS[what] += 1
        return original(*args, **kwargs)

    setattr(owner, method, counted)


def report() -> None:
    with open(os.environ["BENCH_EVENTS"], "w", encoding="utf-8") as file:
        json.dump(COUNTS, file)


count(Transport, "start_client", "connections")
count(Transport, "open_session", "executions")
count(SFTPClient, "putfo", "uploads")
atexit.register(report)

if __name__ == "__main__":
    # pyinfra patches the threads of the standard library on import, so it comes after the modules above.
    from pyinfra_cli.cli import cli

    cli()
