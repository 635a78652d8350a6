# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Has the writers of a PostgreSQL cluster wait, by locks on all tables; readers go on, and nobody gets an error.

A session in each database holds them while it sleeps. The server ends it after its time, whoever else has died.
"""

from __future__ import annotations

import subprocess
import time
from typing import IO, Any, cast

from .._host import PATH
from .model import EngineFailed

NAME = "vmfleet-fence"
# Between two attempts writers get through that have waited for the first one.
PACE = 0.3
LOCK = """DO $$DECLARE wanted text; BEGIN
  FOR wanted IN SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p') AND relpersistence <> 't'
    AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema') ORDER BY oid
  LOOP EXECUTE 'LOCK TABLE ONLY ' || wanted || ' IN EXCLUSIVE MODE'; END LOOP;
END$$;"""
HOLDING = f"FROM pg_stat_activity WHERE application_name = '{NAME}'"


class Fence:
    """Around the cluster of a server, see ``postgresql.Server``."""

    def __init__(self, server: Any, account: str) -> None:
        self.server = server
        self.account = account

    def close(self, seconds: float) -> dict[str, Any]:
        """Locks all tables of all databases for ``seconds``. Returns what :meth:`open` is told.

        :raises EngineFailed: when a writer does not come to an end in half of that; then nothing is locked.
        """
        ends = time.monotonic() + seconds
        databases = self.server.ask("SELECT datname FROM pg_database WHERE datallowconn").splitlines()
        # Whoever waits for a lock of an attempt that fails must not be taken for a part of a deadlock.
        patience = int(self.server.ask("SELECT setting FROM pg_settings WHERE name = 'deadlock_timeout'")) * 7 // 10
        try:
            for name in databases:
                while not self._lock(name, patience, ends - time.monotonic()):
                    if time.monotonic() > ends - seconds / 2:
                        raise EngineFailed(f"writers in database {name} do not come to an end; try again, or later")
                    time.sleep(PACE)
            return {"databases": len(databases), "transactions": self._transactions()}
        except EngineFailed:
            self.open({})
            raise

    def _lock(self, database: str, patience: int, seconds: float) -> bool:
        """One attempt, of at most ``patience`` milliseconds. The session outlives this process."""
        process = subprocess.Popen(
            ["runuser", "-u", self.account, "--", *self.server.argv, f"--dbname={database}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd="/",
            env={"PATH": PATH, "LC_ALL": "C.UTF-8", "PGAPPNAME": NAME, "PGCONNECT_TIMEOUT": "10"},
            start_new_session=True,
        )
        pipes: tuple[IO[str], IO[str]] = cast(Any, (process.stdin, process.stdout))
        write, read = pipes
        write.write(
            f"BEGIN; SET LOCAL idle_in_transaction_session_timeout = '{int(seconds * 1000) + 1000}';\n"
            f"SET LOCAL statement_timeout = {patience};\n{LOCK}\nSET LOCAL statement_timeout = 0;\n"
            f"\\echo locked\nSELECT pg_sleep({seconds:.3f});\n"
        )
        write.close()
        if read.readline().strip() == "locked":
            return True
        process.wait()
        return False

    def _transactions(self) -> str:
        """The number of the next transaction that writes."""
        return str(self.server.ask("SELECT pg_snapshot_xmax(pg_current_snapshot())"))

    def open(self, fence: dict[str, Any]) -> str:
        """Ends the locks. Returns how something can have been written in spite of them, or nothing."""
        transactions = self._transactions()
        locked = int(
            self.server.ask(
                f"SELECT count(*) FILTER (WHERE wait_event = 'PgSleep') {HOLDING};\n"
                f"SELECT pg_terminate_backend(pid) {HOLDING};\n"
            ).split("\n")[0]
        )
        if locked != fence.get("databases"):
            return f"the tables of {locked} databases out of {fence.get('databases')} were locked to the end"
        if transactions != fence["transactions"]:
            return f"transactions {fence['transactions']} to {transactions} were not kept out"
        return ""
