# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Redis, by a snapshot that it makes itself (BGSAVE), kept by restic.

A server with an append-only log reads that, and not its snapshot. So the snapshot is restored as the beginning of such
a log, which it may be: Redis then builds its log around it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._host import run_command
from .beside import STAGING, STARTED, Beside, remove
from .model import Damaged, EngineFailed, Member, Refused, now
from .restic import Kept
from .sources import PATIENCE, Target

ACCOUNT = "redis"
UNIT = "redis-server.service"
CONFIGURATION = "/etc/redis/redis.conf"
# The server that reads what was restored before anybody relies on it.
SCRATCH = "vmfleet-backup-redis.service"
SNAPSHOT = "dump.rdb"
# Seconds between two looks at a snapshot that is being made.
PACE = 0.2
# Seconds until the process that writes a snapshot has noted its time.
FORKED = 10


@dataclass
class Options:
    """What role redis announces. ``ca`` is the authority that the server's certificate is held against."""

    port: int
    tls: bool
    password_file: str
    directory: str
    appendonly: bool
    append_file: str = "appendonly.aof"
    ca: str = ""


class Server:
    """A server that is asked by redis-cli, which gets the password in its environment, where only root sees it."""

    def __init__(self, source: Redis, reach: Sequence[str]) -> None:
        self.source = source
        self.reach = reach

    def ask(self, *command: str) -> str:
        """:raises EngineFailed: when it does not answer, or with an error."""
        try:
            with open(self.source.options.password_file, encoding="utf-8") as handle:
                password = handle.read().strip()
        except OSError as error:
            raise EngineFailed(f"{self.source.options.password_file}: {error.strerror}") from error
        said = self.source.context.command(
            "ask Redis",
            ["redis-cli", *self.reach, *command],
            environment={"REDISCLI_AUTH": password} if password else {},
            timeout=60,
        ).stdout.strip()
        # redis-cli ends well after an error, and knows no option for it before 7.0.
        if re.match(r"\(error\)|[A-Z]+ ", said):
            raise EngineFailed(f"ask Redis: {command[0]}: {said[:500]}")
        return said

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO, by field."""
        return dict(line.strip().partition(":")[::2] for line in self.ask("INFO", section).splitlines())

    def keys(self) -> int:
        """In all its databases."""
        return sum(int(found) for found in re.findall(r"keys=([0-9]+)", self.ask("INFO", "keyspace")))

    def loaded(self) -> None:
        """Waits until it has read its data. :raises EngineFailed:"""
        deadline = time.monotonic() + STARTED
        while True:
            try:
                if self.info("persistence").get("loading") == "0":
                    return
            except EngineFailed:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise EngineFailed("Redis is still loading its data")
            time.sleep(PACE)


class Redis(Kept):
    """See the module."""

    kind = "redis"
    takes = Options
    options: Options

    @property
    def _server(self) -> Server:
        trust = ["--cacert", self.options.ca] if self.options.ca else ["--insecure"]
        return Server(self, ["-p", str(self.options.port), *(["--tls", *trust] if self.options.tls else [])])

    def plan(self) -> None:
        size = self.estimate()
        for place in (self.context.spool, self.options.directory):
            self.context.room(place, size, "the snapshot of Redis")

    def estimate(self) -> int:
        return int(self._server.info("memory")["used_memory"])

    def _begin(self) -> int:
        """Has the server begin a snapshot of this moment. Returns the time of the one before, in seconds since 1970."""
        server = self._server
        deadline = time.monotonic() + PATIENCE
        said = ""
        while not said and time.monotonic() < deadline:
            # One that is being made began too early to count.
            idle = server.info("persistence")["rdb_bgsave_in_progress"] == "0"
            former = int(server.ask("LASTSAVE"))
            # Redis notes saves by the second: only in a later one this save can be told from the one before.
            if not idle or int(server.ask("TIME").split()[0]) <= former:
                time.sleep(PACE)
                continue
            try:
                # It may wait for a rewrite of the log to end.
                said = server.ask("BGSAVE", "SCHEDULE")
            except EngineFailed as error:
                if "in progress" not in str(error):
                    raise
        while "started" not in said:
            seen = server.info("persistence")
            if seen["rdb_bgsave_in_progress"] != "0" or int(seen["rdb_last_save_time"]) > former:
                break
            if time.monotonic() > deadline:
                raise EngineFailed(f"{self.name}: Redis does not begin with a snapshot")
            time.sleep(PACE)
        return former

    def _end(self, former: int) -> tuple[str, int]:
        """Waits for a snapshot that was begun. Returns its path, and the server's memory in bytes."""
        server = self._server
        deadline = time.monotonic() + PATIENCE
        while True:
            seen = server.info("persistence")
            idle = seen["rdb_bgsave_in_progress"] == "0"
            if idle and int(seen["rdb_last_save_time"]) > former:
                break
            if (idle and seen["rdb_last_bgsave_status"] != "ok") or time.monotonic() > deadline:
                raise EngineFailed(f"{self.name}: BGSAVE failed; see /var/log/redis/redis-server.log")
            time.sleep(PACE)
        folder, file = (server.ask("CONFIG", "GET", name).splitlines()[-1] for name in ("dir", "dbfilename"))
        return os.path.join(folder, file), int(server.info("memory")["used_memory"])

    def mark(self, set_id: str, work: dict[str, Any]) -> dict[str, Any]:
        return {"began": now(), "former": self._begin(), "begun": time.time()}

    def finish(self, set_id: str, work: dict[str, Any]) -> Member:
        folder = self.scratch()
        path, memory = self._end(work["former"])
        # A later snapshot takes the name, and leaves this one alone.
        try:
            os.link(path, f"{folder}/{SNAPSHOT}")
        except OSError:
            shutil.copyfile(path, f"{folder}/{SNAPSHOT}")
        digests, made = self._look(folder)
        if made > work["begun"] + FORKED:
            raise EngineFailed(f"{self.name}: Redis has made another snapshot since, see its `save`; try again")
        return self.save(
            set_id,
            work["began"],
            [folder],
            engine=f"Redis {self._server.info('server')['redis_version']}",
            digests=digests,
            details={"folder": folder, "memory": memory},
        )

    def _look(self, folder: str) -> tuple[dict[str, Any], int]:
        """Digest of a snapshot, and what Redis' own tool finds in it; when it was begun, in seconds since 1970.

        :raises Damaged:
        """
        path = f"{folder}/{SNAPSHOT}"
        digest = hashlib.sha256()
        with open(path, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
        try:
            said = self.context.command("read the snapshot of Redis", ["redis-check-rdb", path]).stdout
        except EngineFailed as error:
            raise Damaged(f"{self.name}: {error}") from error
        counts = {
            name: int(found[1]) if (found := re.search(pattern, said)) else 0
            for name, pattern in (
                ("keys", r"\[info\] ([0-9]+) keys read"),
                ("expires", r"\[info\] ([0-9]+) expires"),
                ("ctime", r"AUX FIELD ctime = '([0-9]+)'"),
            )
        }
        made = counts.pop("ctime")
        return {"sha256": digest.hexdigest(), **counts}, made

    def _restore(self, label: str, folder: str, digests: dict[str, Any], place: str) -> None:
        """Makes a data folder of a member. :raises Damaged: when it is not what was saved."""
        tree = self.fetch(label, folder)
        found, _made = self._look(tree)
        if found != digests:
            raise Damaged(f"{self.name}: {label} has {found} instead of {digests}")
        account = pwd.getpwnam(ACCOUNT)
        os.mkdir(place, 0o750)
        file = f"{place}/{self.options.append_file if self.options.appendonly else SNAPSHOT}"
        # Across file systems, so that it can be renamed there.
        shutil.move(f"{tree}/{SNAPSHOT}", file)
        os.chmod(file, 0o640)
        for path in (file, place):
            os.chown(path, account.pw_uid, account.pw_gid)

    def _try(self, place: str, digests: dict[str, Any], memory: int) -> dict[str, Any]:
        """Has a server of its own read a data folder, if there is memory for a second one.

        :raises Damaged: when it does not come up, or has not all keys.
        """
        proven = {"keys": digests["keys"], "loaded": False}
        with open("/proc/meminfo", encoding="ascii") as handle:
            available = int(re.findall(r"MemAvailable: +([0-9]+)", handle.read())[0]) * 1024
        if available < memory * 5 // 4:
            self.context.say(f"{self.name}: not loaded beside the live one, {available} B of memory are available")
            return proven
        log, socket = f"{place}/restore.log", f"{place}/restore.socket"
        argv = [
            # The first to go should memory run short after all.
            *("systemd-run", f"--unit={SCRATCH}", "--collect", "--quiet", f"--uid={ACCOUNT}", f"--gid={ACCOUNT}"),
            *("--property=Type=notify", "--property=OOMScoreAdjust=1000", f"--property=TimeoutStartSec={STARTED}"),
            *("redis-server", CONFIGURATION, "--supervised", "systemd", "--daemonize", "no", "--port", "0"),
            *("--tls-port", "0", "--unixsocket", socket, "--dir", place, "--pidfile", f"{place}/restore.pid"),
            *("--logfile", log, "--dbfilename", SNAPSHOT, "--save", "", "--maxmemory", "0"),
        ]
        self.settle()
        # Redis wants the folder of its configuration before it takes the other one.
        lost = not os.path.lexists(self.options.directory)
        try:
            if lost:
                os.mkdir(self.options.directory, 0o755)
            self.context.command("have Redis read what was restored", argv, timeout=STARTED + 60)
            server = Server(self, ["-s", socket])
            server.loaded()
            found = server.keys()
        except EngineFailed as error:
            raise Damaged(f"{self.name}: {self._said(log) or error}") from error
        finally:
            self.settle()
            if lost:
                os.rmdir(self.options.directory)
        # Those with a time to live may be over it by now.
        if not digests["keys"] - digests["expires"] <= found <= digests["keys"]:
            raise Damaged(f"{self.name}: Redis has read {found} keys of {digests['keys']}")
        for path in (log, socket):
            remove(path)
        return {**proven, "loaded": True}

    @staticmethod
    def _said(log: str) -> str:
        try:
            with open(log, encoding="utf-8", errors="replace") as handle:
                return " ".join(handle.read().split("\n")[-4:]).strip()
        except OSError:
            return ""

    def fence(self, seconds: float) -> dict[str, Any]:
        server = self._server
        version = server.info("server")["redis_version"]
        if tuple(map(int, version.split(".")[:2])) < (6, 2):
            raise Refused(f"{self.name}: Redis {version} cannot have writers wait, 6.2 can; leave the fence out")
        ends = time.monotonic() + seconds
        server.ask("CLIENT", "PAUSE", str(int(seconds * 1000)), "WRITE")
        return {"ends": ends}

    def unfence(self, fence: dict[str, Any]) -> str:
        self._server.ask("CLIENT", "UNPAUSE")
        late = time.monotonic() - fence.get("ends", 0.0)
        return f"{self.name}: its writers went on {late:.1f} s too early" if late >= 0 else ""

    def settle(self) -> None:
        run_command({"argv": ["systemctl", "stop", SCRATCH], "timeout": STARTED})

    def prove(self, member: Member) -> dict[str, Any]:
        place = os.path.join(self.context.spool, f"{self.name}.server")
        remove(place)
        self._restore(member.label, member.details["folder"], member.digests, place)
        return self._try(place, member.digests, member.details["memory"])

    @property
    def _beside(self) -> Beside:
        return Beside(self.context, [UNIT])

    def choose(self, member: Member, members: Sequence[Member], target: Target) -> dict[str, Any]:
        self.only_own_moment(target)
        places = {self.options.directory: self.options.directory + STAGING}
        return {
            "label": member.label,
            "size": member.size,
            "digests": member.digests,
            "details": member.details,
            "places": places,
            "existed": self._beside.choose(places),
        }

    def stage(self, choice: dict[str, Any]) -> dict[str, Any]:
        (place,) = choice["places"].values()
        self.context.room(place, choice["size"], f"the snapshot {choice['label']}")
        self._restore(choice["label"], choice["details"]["folder"], choice["digests"], place)
        return self._try(place, choice["digests"], choice["details"]["memory"])

    def swap(self, choice: dict[str, Any]) -> None:
        self._beside.swap(choice["existed"], choice["places"])
        self._server.loaded()

    def undo(self, choice: dict[str, Any]) -> None:
        self.settle()
        if not all(choice["existed"].values()):
            with contextlib.suppress(OSError):
                os.rmdir(self.options.directory)  # empty, of a killed trial
        self._beside.undo(choice["existed"], choice["places"])

    def commit(self, choice: dict[str, Any]) -> None:
        self._beside.commit(choice["existed"])
