"""The checks in pytest-testinfra, one test each; BENCH_CHECKS names the file that lists them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

CHECKS = json.loads(Path(os.environ["BENCH_CHECKS"]).read_text())


@pytest.mark.parametrize("check", CHECKS, ids=[check["name"] for check in CHECKS])
def test_check(host: Any, check: dict[str, Any]) -> None:
    if check["type"] == "http":
        assert host.check_output("curl -fsS -m 5 %s", check["url"]) == '{"status": "ready"}'
    elif check["type"] == "tcp":
        assert host.addr("127.0.0.1").port(check["port"]).is_reachable
    elif check["type"] == "postgresql":
        assert host.check_output("runuser -u postgres -- psql -XAtqc 'SELECT 1'") == "1"
    elif check["type"] == "redis":
        assert host.check_output("redis-cli ping") == "PONG"
    else:
        file = host.file(check["path"])
        assert file.exists
        assert file.mode == 0o640
