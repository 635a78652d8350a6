# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: fleet_verdict
type: aggregate
short_description: Writes the reports of a verdict that a run did not come to
version_added: 0.1.0
description:
  - The task M(vmfleet.ops.fleet_verdict) writes its reports itself. When the run ends before it, by a play that breaks,
    hosts that are all lost, an earlier play that fails, or Ctrl-C, this callback writes them in its place, with the
    arguments of the task, so that whoever reads the reports does not find those of an earlier run.
  - Such a verdict is always V(crit). It has what the hosts have told until then, why the others have told nothing, and
    the statement that the run did not come to its verdict. Checks from outside are not made.
  - Nothing is written for a task without O(vmfleet.ops.fleet_verdict#module:report), and none that C(--tags), C(when)
    or C(--limit) left out.
requirements:
  - To be named, as C(vmfleet.ops.fleet_verdict), in C(callbacks_enabled) of C(ansible.cfg) or in the environment
    variable C(ANSIBLE_CALLBACKS_ENABLED).
notes:
  - A run that is ended by SIGKILL writes nothing.
author: vmfleet.ops maintainers (@vmfleet)
"""

EXAMPLES = r"""
ansible.cfg: |
  [defaults]
  callbacks_enabled = vmfleet.ops.fleet_verdict
"""

import atexit
import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.callback import CallbackBase
from ansible.template import Templar

NAMES = ("vmfleet.ops.fleet_verdict", "fleet_verdict")

# The engine of the checks uses it, and Python refuses to load it once it has begun to exit.
importlib.import_module("concurrent.futures.thread")


class CallbackModule(CallbackBase):
    """Knows what a run meant to judge, and looks at its end whether it did."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "vmfleet.ops.fleet_verdict"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._playbook: Any = None
        self._reached: set[str] = set()
        self._failures: dict[str, str] = {}
        self._manager: Any = None
        # Ctrl-C ends a run without telling its callbacks. Workers are forks, and not this process.
        self._process = os.getpid()
        atexit.register(self._interrupted)

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self._playbook = playbook

    def v2_playbook_on_play_start(self, play: Any) -> None:
        # All plays have the same; which ones get to run is not known before.
        self._manager = play.get_variable_manager()

    def v2_runner_on_ok(self, result: Any) -> None:
        self._note(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._note(result, skipped=True)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._note(result)
        if not ignore_errors:
            self._blame(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._blame(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._finish("the run ended before it")

    def _note(self, result: Any, skipped: bool = False) -> None:
        if result._task.action in NAMES and (skipped or "verdict" in result._result):
            self._reached.add(result._task._uuid)

    def _blame(self, result: Any) -> None:
        words = str(result._result.get("msg") or "").strip()
        self._failures[result._host.get_name()] = f"{result._task.get_name()}: {words or 'failed'}"

    def _interrupted(self) -> None:
        if os.getpid() == self._process:
            self._finish("the run was interrupted")

    def _finish(self, why: str) -> None:
        playbook, self._playbook = self._playbook, None
        # Without a play nothing was begun: a check of the syntax, a list of the tasks.
        if playbook is None or self._manager is None:
            return
        if self._failures:
            host, words = next(reversed(self._failures.items()))
            why += f"; the last failure was on {host}: {words}"
        for play in playbook.get_plays():
            for task in _verdict_tasks(play.pre_tasks + play.tasks + play.post_tasks):
                if task._uuid not in self._reached:
                    try:
                        self._write(play, task, why)
                    except AnsibleError as error:
                        self._display.warning(f"fleet_verdict: no report was written: {error}")

    def _write(self, play: Any, task: Any, why: str) -> None:
        # Only here: most runs have no need of it.
        from ansible_collections.vmfleet.ops.plugins.plugin_utils._arguments import validated
        from ansible_collections.vmfleet.ops.plugins.plugin_utils._fleet_verdict import VerdictError
        from ansible_collections.vmfleet.ops.plugins.plugin_utils._verdict_play import ARGUMENT_SPEC, judge_play
        from ansible_collections.vmfleet.ops.plugins.plugin_utils._verdict_report import summary, write_reports

        variables: Mapping[str, Any] = self._manager.get_vars(play=play, task=task)
        if not variables.get("ansible_play_hosts_all") or not task.evaluate_tags(
            play.only_tags, play.skip_tags, all_vars=variables
        ):
            return
        templar = Templar(loader=play.get_loader(), variables=variables)
        try:
            # What is seen from outside takes time, and is not asked for any more.
            arguments = templar.template({name: value for name, value in task.args.items() if name != "checks"})
            # Until ansible-core 2.19 the one who runs a task takes these out.
            given = {key: value for key, value in arguments.items() if value != variables.get("omit")}
            options = validated("fleet_verdict", ARGUMENT_SPEC, given)
            if not options["report"]:
                return
            verdict = judge_play(options, variables, failures=self._failures, broken=why)
            write_reports(Path(options["report"]), verdict)
        except VerdictError as error:
            self._display.warning(f"fleet_verdict: no report was written: {error}")
            return
        self._display.display(f"{summary(verdict)}\nThe run did not come to its verdict; reports: {options['report']}")


def _verdict_tasks(entries: Any) -> Iterator[Any]:
    """The tasks of a play that give a verdict, also inside of blocks."""
    for entry in entries:
        if hasattr(entry, "block"):
            yield from _verdict_tasks(entry.block + entry.rescue + entry.always)
        elif entry.action in NAMES:
            yield entry
