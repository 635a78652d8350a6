#!/usr/bin/env python3
"""Writes numbers, each into PostgreSQL of one host and then into Redis of another, until a file goes away.

    writer.py CONTAINER CONTAINER FILE

At every moment Redis has the last number of PostgreSQL, or the one before. Prints the last number and the longest wait.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PSQL = "runuser -u postgres -- psql -XAtq shop"
PREPARE = (
    "DELETE FROM orders WHERE id < 0;"
    "PREPARE put (int) AS INSERT INTO orders (id, what) VALUES (-$1, 'both') RETURNING id;"
    "SELECT 'begin';"
)
REDIS = "REDISCLI_AUTH=$(cat /etc/redis/auth) redis-cli --tls --insecure"


def ask(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def main(first: str, second: str, file: str) -> None:
    sessions = [
        subprocess.Popen(
            ["docker", "exec", "-i", container, "sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for container, command in ((first, PSQL), (second, REDIS))
    ]
    number, longest = 0, 0.0
    ask(sessions[0], PREPARE)
    while Path(file).exists():
        number += 1
        began = time.monotonic()
        said = ask(sessions[0], f"EXECUTE put({number});")
        assert said == f"-{number}", said
        said = ask(sessions[1], f"SET both {number}")
        assert said == "OK", said
        longest = max(longest, time.monotonic() - began)
    for session in sessions:
        session.communicate()
    print(number, f"{longest:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
