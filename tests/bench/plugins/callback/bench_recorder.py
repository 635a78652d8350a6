# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writes down what a run does: host-tasks, executions on hosts, module transfers and the answers of probes."""

from __future__ import annotations

import base64
import functools
import json
import multiprocessing
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase
from ansible.plugins.connection import ssh

DOCUMENTATION = """
name: bench_recorder
type: aggregate
short_description: Records what a run does, for tests/bench
description:
  - Appends one JSON object a line to the file that the environment variable BENCH_EVENTS names.
  - With BENCH_ANSWERS set, what hosts answered to scripts on standard input is kept for bench_replay.
requirements:
  - Has to be enabled.
"""

# Code that is sent to a host: Ansible's wrapper of modules, and the collection's own way to call a function there.
MODULE_MARK = b"_ANSIBALLZ_WRAPPER"
CALL_MARK = "vmfleet-engine"


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "bench_recorder"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(os.environ["BENCH_EVENTS"], flags, 0o600)
        self._answers = bool(os.environ.get("BENCH_ANSWERS"))
        # Workers are forked from here, so they run the wrapped methods and share the file.
        os.set_inheritable(self._file, True)
        self._wrap("exec_command")
        self._wrap("put_file")
        self._wrap("fetch_file")

    def _write(self, **event: Any) -> None:
        # A single write to a file opened for appending keeps lines of concurrent workers whole.
        os.write(self._file, (json.dumps(event) + "\n").encode())

    def _wrap(self, method: str) -> None:
        original = getattr(ssh.Connection, method)

        @functools.wraps(original)
        def recorded(connection: Any, *args: Any, **kwargs: Any) -> Any:
            started = time.monotonic()
            result = original(connection, *args, **kwargs)
            data = kwargs.get("in_data")
            if data is None and method == "exec_command" and len(args) > 1:
                data = args[1]
            module = data is not None and MODULE_MARK in data[:8192]
            transfer = method == "put_file" or module or (method == "exec_command" and CALL_MARK in str(args[0]))
            # The connection knows an address only; the worker that it lives in knows whose task this is.
            worker: Any = multiprocessing.current_process()
            event = {
                "event": method,
                "task": worker._task._uuid,
                "host": worker._host.get_name(),
                "transfer": transfer,
                "seconds": round(time.monotonic() - started, 4),
            }
            if self._answers and data is not None and not transfer:
                event["script"] = data.decode()
                event["rc"] = result[0]
                event["stdout"] = base64.b64encode(result[1]).decode()
            self._write(**event)
            return result

        setattr(ssh.Connection, method, recorded)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        role = task._role.get_name() if task._role else ""
        self._write(event="start", task=task._uuid, host=host.get_name(), role=role, action=task.action)

    def _result(self, status: str, result: Any) -> None:
        # ansible-core 2.19 names these without an underscore.
        task = getattr(result, "task", None) or result._task
        host = getattr(result, "host", None) or result._host
        self._write(event="result", status=status, task=task._uuid, host=host.get_name())

    def v2_runner_on_ok(self, result: Any) -> None:
        self._result("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._result("failed", result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._result("skipped", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._result("unreachable", result)
