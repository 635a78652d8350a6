# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""``vmfleet-backup``: the snapshot sets of a host without Ansible, for its timer and for people."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, Callable

from .engine import Engine, read_settings
from .model import Refused, SnapshotError, new_id
from .sources import Target

# As the name of a repository, and what can be done with all of them.
ALL = "all"
WITH_ALL = ("snapshot", "list", "verify", "prune")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmfleet-backup", description=__doc__)
    parser.add_argument("--json", action="store_true", help="tell the outcome as JSON")
    parser.add_argument(
        "--repository", default="", help=f"which one; {ALL}: one after the other (snapshot, list, verify, prune)"
    )
    parser.add_argument("--wait", type=float, default=0.0, help="seconds to wait for another run (%(default)g)")
    commands = parser.add_subparsers(dest="command", required=True)

    snapshot = commands.add_parser("snapshot", help="make a set")
    snapshot.add_argument("set", nargs="?", default="", help="its name; by default the time")
    snapshot.add_argument("--only", type=_words, default=[], help="sources or types")
    snapshot.add_argument("--full", action="store_true", help="copies that stand alone, not on former ones")
    snapshot.add_argument("--reason", default="", help="a word for people")
    snapshot.add_argument("--prune", action="store_true", help="when it is made, remove the sets that no rule keeps")

    commands.add_parser("list", help="the sets of this host, the oldest first")

    verify = commands.add_parser("verify", help="prove a set, by default the newest")
    verify.add_argument("set", nargs="?", default="")
    verify.add_argument("--thorough", action="store_true", help="also by a restore into a scratch place")

    restore = commands.add_parser("restore", help="restore a set, by default the newest; the former data are kept")
    restore.add_argument("set", nargs="?", default="")
    restore.add_argument("--only", type=_words, default=[], help="sources")
    restore.add_argument("--database", default="", help="one database, from a logical copy")
    moment = restore.add_mutually_exclusive_group()
    moment.add_argument("--time", default="", help="to this time, such as 2026-11-25T19:00:00Z")
    moment.add_argument("--name", default="", help="to this restore point")
    moment.add_argument("--lsn", default="", help="to this position in the log")
    moment.add_argument("--latest", action="store_true", help="to the end of the archived log")
    restore.add_argument("--yes", action="store_true", help="do it; without this it is only said what would be done")

    commands.add_parser("commit", help="keep what was restored and remove the former data")
    commands.add_parser("undo", help="put the former data back")

    remove = commands.add_parser("remove", help="remove sets")
    remove.add_argument("set", nargs="+")

    export = commands.add_parser("export", help="write one database as a file for gzip, openssl and psql")
    export.add_argument("set", nargs="?", default="", help="by default the newest")
    export.add_argument("--database", required=True)
    export.add_argument("--to", required=True, help="a file that is not there")

    imported = commands.add_parser("import", help="make a database of such a file")
    imported.add_argument("file")
    imported.add_argument("--database", required=True, help="a name that no database has")

    archive = commands.add_parser("archive", help="have old files go, when they were proven to be archived")
    archive.add_argument("name", nargs="*", help="archives; by default all of this host")

    prune = commands.add_parser("prune", help="remove the sets that no rule keeps, and tell why the others stay")
    prune.add_argument("--dry-run", action="store_true", help="only tell")
    return parser


def _snapshot(engine: Engine, given: argparse.Namespace) -> Any:
    made = engine.take(given.set, given.only, full=given.full, reason=given.reason, wait=given.wait)
    if given.prune:
        engine.prune(given.wait)
    return engine.shown(made)


def _list(engine: Engine, given: argparse.Namespace) -> Any:
    return [engine.shown(manifest) for manifest in engine.catalogue.all()]


def _verify(engine: Engine, given: argparse.Namespace) -> Any:
    manifest, proven = engine.verify(given.set, thorough=given.thorough, wait=given.wait)
    return {**engine.shown(manifest), "proven": proven}


def _restore(engine: Engine, given: argparse.Namespace) -> Any:
    target = Target(given.time, given.name, given.lsn, given.latest, given.database)
    if not given.yes:
        return {"would": engine.choose(given.set, given.only, target), "remedy": "say --yes to do it"}
    return engine.restore(given.set, given.only, target, given.wait)


def _conclude(engine: Engine, given: argparse.Namespace) -> Any:
    entry = engine.conclude(given.command == "commit", given.wait)
    if entry is None:
        raise Refused("no restore is open")
    return {"set": entry["set"], "sources": sorted(entry["choices"])}


def _export(engine: Engine, given: argparse.Namespace) -> Any:
    return engine.export(given.database, given.to, given.set, given.wait)


def _import(engine: Engine, given: argparse.Namespace) -> Any:
    return engine.import_(given.database, given.file, given.wait)


def _archive(engine: Engine, given: argparse.Namespace) -> Any:
    return engine.archive(given.name, given.wait)


def _remove(engine: Engine, given: argparse.Namespace) -> Any:
    return engine.remove(given.set, given.wait)


def _prune(engine: Engine, given: argparse.Namespace) -> Any:
    judged = engine.judge()
    if not given.dry_run:
        judged = engine.prune(given.wait)
    gone = "goes" if given.dry_run else "gone"
    told = {set_id: reasons or [f"{gone}: no rule keeps it"] for set_id, reasons in judged.items()}
    return {"repository": engine.repository.name, "sets": told}


COMMANDS: dict[str, Callable[[Engine, argparse.Namespace], Any]] = {
    "snapshot": _snapshot,
    "list": _list,
    "verify": _verify,
    "restore": _restore,
    "commit": _conclude,
    "undo": _conclude,
    "export": _export,
    "import": _import,
    "archive": _archive,
    "remove": _remove,
    "prune": _prune,
}


def text(outcome: Any) -> list[str]:
    """A line for each set, or what else there is to tell."""
    if isinstance(outcome, list):
        return [line for entry in outcome for line in text(entry)]
    if not isinstance(outcome, dict) or "members" not in outcome:
        return [outcome if isinstance(outcome, str) else json.dumps(outcome, indent=2)]
    members = ", ".join(f"{member['source']} ({member['label']})" for member in outcome["members"])
    sizes = f"{outcome['size']} B, {outcome['stored']} B stored"
    words = [outcome[name] for name in ("repository", "id", "state", "sealed", "consistency")]
    return ["  ".join([*words, sizes, members])]


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _failed(error: SnapshotError) -> int:
    _say(f"vmfleet-backup: {error}")
    return error.code


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes are those of :mod:`.model`, after sysexits.h; argparse's 2 is for a wrong command line."""
    given = _parser().parse_args(argv)
    outcomes: list[Any] = []
    code = 0
    try:
        settings = read_settings()
        names = [given.repository]
        if given.repository == ALL:
            if given.command not in WITH_ALL:
                raise Refused(f"--repository: {ALL} is for {', '.join(WITH_ALL)}; name one for {given.command}")
            names = [entry["name"] for entry in settings["repositories"]]
            # The same name in all of them.
            given.set = getattr(given, "set", "") or (new_id() if given.command == "snapshot" else "")
    except SnapshotError as error:
        return _failed(error)
    for name in names:
        try:
            outcomes.append(COMMANDS[given.command](Engine(settings, name, _say), given))
        except SnapshotError as error:
            # One that fails keeps nothing from the others.
            code = _failed(error)
    if outcomes:
        outcome = outcomes if given.repository == ALL else outcomes[0]
        lines = [json.dumps(outcome, indent=2)] if given.json else text(outcome)
        sys.stdout.write("".join(f"{line}\n" for line in lines))
    return code
