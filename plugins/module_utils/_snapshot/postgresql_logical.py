# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Databases of PostgreSQL one by one, by pg_dump, kept by restic.

Counts and digests of all tables are taken in the snapshot that pg_dump sees, so that a restored database can be held
against them, row by row.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, cast

from .._host import PATH
from .model import Damaged, EngineFailed, Member, Refused, now
from .postgresql import ACCOUNT, SOCKETS, Scratch, Server, own_folder
from .restic import Kept
from .sources import Target

JOBS = 2
# An extension whose tables only it can restore: between two calls, by its own version, and not in parallel. See its
# manual, "Logical backups with pg_dump and pg_restore".
TIMESCALE = "timescaledb"
# The longest name that PostgreSQL takes, less the longest suffix.
NAME_LENGTH = 63 - len("_restored")
# Values and names as text do not depend on what the server or the database sets.
PLAIN = """
SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; SET extra_float_digits = 1;
SET bytea_output = 'hex'; SET search_path = 'pg_catalog';
SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0;
"""
# A line of JSON for each table. The sum of hashes does not depend on the order of rows.
DIGESTS = """
SELECT format('SELECT json_build_array(%L, count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text) '
  'FROM ONLY %s AS t', oid::regclass, oid::regclass)
FROM pg_class
WHERE relkind = 'r' AND relpersistence <> 't'
  AND relnamespace::regnamespace::text NOT IN ('pg_catalog', 'information_schema')
  AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')
ORDER BY oid::regclass::text
\\gexec
"""
# What makes the database itself, for a staged one of another name. Lists are stored as they are written.
MAKE = """
SELECT format('CREATE DATABASE %s OWNER %I TEMPLATE template0 ENCODING %L LC_COLLATE %L LC_CTYPE %L', '{}',
  pg_get_userbyid(datdba), pg_encoding_to_char(encoding), datcollate, datctype) FROM pg_database WHERE datname = :'name'
UNION ALL
SELECT format('ALTER DATABASE %s SET %s TO %s', '{}', key, CASE WHEN key IN ('search_path', 'temp_tablespaces',
  'local_preload_libraries', 'session_preload_libraries') THEN value ELSE quote_literal(value) END)
FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase, unnest(setconfig) AS setting,
  LATERAL (SELECT split_part(setting, '=', 1), substr(setting, strpos(setting, '=') + 1)) AS pair (key, value)
WHERE datname = :'name' AND setrole = 0
UNION ALL
SELECT format('REVOKE ALL ON DATABASE %s FROM PUBLIC', '{}') FROM pg_database
WHERE datname = :'name' AND datacl IS NOT NULL
UNION ALL
SELECT format('GRANT %s ON DATABASE %s TO %s', privilege_type, '{}',
  CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END)
FROM pg_database, aclexplode(datacl) WHERE datname = :'name'
"""


@dataclass
class Options:
    """What role postgresql announces."""

    version: str
    port: int
    role: str
    databases: list[str] = field(default_factory=list)

    @property
    def binaries(self) -> str:
        return f"/usr/lib/postgresql/{self.version}/bin"


def quote(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


class Logical(Kept):
    """See the module."""

    kind = "postgresql_logical"
    takes = Options
    within = "postgresql"
    options: Options

    def is_member(self) -> bool:
        return self.options.role == "primary" and bool(self.options.databases)

    @property
    def server(self) -> Server:
        return Server(self, SOCKETS, self.options.port)

    def exists(self, name: str) -> bool:
        query = "SELECT count(*) FROM pg_database WHERE datname = :'name'"
        return self.server.ask(query, variables=[f"name={name}"]) == "1"

    def plan(self) -> None:
        for name in self.options.databases:
            if len(name.encode()) > NAME_LENGTH:
                raise Refused(
                    f"{self.name}: {name!r} is longer than {NAME_LENGTH} bytes, and a restore needs a longer one"
                )
            if not self.exists(name):
                raise Refused(f"{self.name}: there is no database {name!r}; apply role vmfleet.ops.postgresql")
        self.context.room(self.context.spool, self.estimate(), "the dumps")

    def estimate(self) -> int:
        query = (
            "SELECT coalesce(sum(pg_database_size(oid)), 0) FROM pg_database"
            " WHERE datname IN (SELECT json_array_elements_text(:'names'))"
        )
        return int(self.server.ask(query, variables=[f"names={json.dumps(self.options.databases)}"]))

    def _timescale(self, database: str) -> str:
        """The version of TimescaleDB in a database, or nothing."""
        query = "SELECT extversion FROM pg_extension WHERE extname = :'name'"
        return self.server.ask(query, database, variables=[f"name={TIMESCALE}"])

    def _tool(self, purpose: str, tool: str, *arguments: str) -> str:
        argv = [f"{self.options.binaries}/{tool}", *arguments]
        return self.context.command(purpose, argv, user=ACCOUNT).stdout

    @contextmanager
    def _session(self, database: str) -> Iterator[tuple[IO[str], IO[str]]]:
        """A session that stays open. When this process is killed, its end is closed and the session ends too."""
        argv = ["runuser", "-u", ACCOUNT, "--", *self.server.argv, f"--dbname={database}"]
        with subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env={"PATH": PATH, "LC_ALL": "C.UTF-8"},
        ) as process:
            write, read = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
            yield write, read
            write.close()
            read.read()
        if process.returncode:
            raise EngineFailed(f"{self.name}: the session in {database} ended with {process.returncode}")

    def _dump(self, database: str, folder: str) -> dict[str, list[Any]]:
        """Dumps a database into a new folder. Returns count and digest of each table, of the same snapshot."""
        with self._session(database) as (write, read):
            write.write(f"{PLAIN}BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\nSELECT pg_export_snapshot();\n")
            write.flush()
            snapshot = read.readline().strip()
            if not snapshot:
                raise EngineFailed(f"{self.name}: no session in {database}")
            self._tool(
                f"dump {database}", "pg_dump", f"--host={SOCKETS}", f"--port={self.options.port}",
                f"--dbname={database}", "--format=directory", f"--jobs={JOBS}", "--compress=0",
                f"--snapshot={snapshot}", f"--file={folder}",
            )  # fmt: skip
            write.write(f"{DIGESTS}\\echo\n")
            write.flush()
            return self._tables(iter(lambda: read.readline().strip(), ""))

    @staticmethod
    def _tables(lines: Any) -> dict[str, list[Any]]:
        return {table: [count, digest] for table, count, digest in map(json.loads, lines)}

    def of_one_moment(self, member: Member) -> bool:
        return False  # of one for each database

    def finish(self, set_id: str, work: dict[str, Any]) -> Member:
        began = now()
        folder = own_folder(self.scratch())
        databases = self.options.databases
        digests = {name: self._dump(name, f"{folder}/{number}") for number, name in enumerate(databases)}
        make = {name: self.server.ask(MAKE, variables=[f"name={name}"]).splitlines() for name in databases}
        roles = self._tool(
            "dump the roles", "pg_dumpall", f"--host={SOCKETS}", f"--port={self.options.port}", "--globals-only",
            "--no-tablespaces",
        )  # fmt: skip
        for name, content in (("globals.sql", roles), ("make.json", json.dumps(make))):
            with open(f"{folder}/{name}", "w", encoding="utf-8") as handle:
                handle.write(content)
        return self.save(
            set_id,
            began,
            [folder],
            engine=f"pg_dump {self.options.version}",
            digests=digests,
            details={
                "folder": folder,
                "version": self.options.version,
                TIMESCALE: {name: version for name in databases if (version := self._timescale(name))},
            },
        )

    def prove(self, member: Member) -> dict[str, Any]:
        tree = self.fetch(member.label, member.details["folder"])
        scratch = Scratch(self, own_folder(self.scratch(".server")))
        self._tool(
            "make a scratch server", "initdb", f"--pgdata={scratch.data}", "--auth=peer", "--encoding=UTF8",
            "--locale=C.UTF-8", "--no-sync",
        )  # fmt: skip
        versions = member.details.get(TIMESCALE, {})
        scratch.start(libraries=TIMESCALE if versions else "")
        try:
            scratch.ask(self._missing_roles(scratch, tree))
            tables = [
                self._load(scratch, tree, name, name, digests, versions.get(name, ""))
                for name, digests in member.digests.items()
            ]
        finally:
            scratch.remove()
        return {"databases": len(tables), "tables": sum(tables)}

    @staticmethod
    def _missing_roles(server: Server, tree: str) -> str:
        """SQL that makes the roles that a server lacks; those that it has stay as they are."""
        with open(f"{tree}/globals.sql", encoding="utf-8") as handle:
            lines = handle.read().splitlines()
        have = set(server.ask("SELECT quote_ident(rolname) FROM pg_roles").splitlines())
        made = [line[len("CREATE ROLE ") : -1] for line in lines if line.startswith("CREATE ROLE ")]
        starts = [(f"CREATE ROLE {role};", f"ALTER ROLE {role} ") for role in made if role not in have]
        return "\n".join(line for line in lines if any(line.startswith(start) for start in starts))

    @staticmethod
    def dump(tree: str, database: str) -> tuple[str, list[str]]:
        """Where the dump of a database is, and the SQL that makes the database, with ``{}`` for its name."""
        with open(f"{tree}/make.json", encoding="utf-8") as handle:
            make = json.load(handle)
        return f"{tree}/{list(make).index(database)}", make[database]

    def _load(
        self, server: Server, tree: str, database: str, name: str, digests: Mapping[str, Any], timescale: str
    ) -> int:
        """Restores a database under a name and holds it against its digests. Returns the number of tables.

        :param timescale: the version of TimescaleDB that is in it, or nothing.
        """
        folder, make = self.dump(tree, database)
        server.ask("".join(f"{line.replace('{}', quote(name))};\n" for line in make))
        if timescale:
            made = f"CREATE EXTENSION {TIMESCALE} VERSION '{timescale}'"
            server.ask(f"{made};\nSELECT timescaledb_pre_restore();\n", name)
        self._tool(
            f"restore {database}", "pg_restore", *server.argv[-2:], f"--dbname={name}", "--exit-on-error",
            f"--jobs={1 if timescale else JOBS}", "--no-tablespaces", folder,
        )  # fmt: skip
        if timescale:
            server.ask("SELECT timescaledb_post_restore();", name)
        found = self._tables(iter(server.ask(PLAIN + DIGESTS, name, timeout=86400).splitlines()))
        wrong = sorted(table for table in {*found, *digests} if found.get(table) != digests.get(table))
        if wrong:
            told = "; ".join(f"{table}: {found.get(table)} instead of {digests.get(table)}" for table in wrong[:3])
            raise Damaged(f"{self.name}: {database}: {len(wrong)} tables are not as they were saved: {told}")
        return len(found)

    def choose(self, member: Member, members: Sequence[Member], target: Target) -> dict[str, Any]:
        self.only_own_moment(target, databases=True)
        wanted = [target.database] if target.database else list(member.digests)
        for database in wanted:
            if database not in member.digests:
                raise Refused(f"{self.name}: has no database {database!r}; it has {', '.join(member.digests)}")
            for name in (f"{database}_restored", f"{database}_former"):
                if self.exists(name):
                    raise Refused(f"database {name!r} is there, and no restore is open that made it; rename it")
        versions = {name: version for name, version in member.details.get(TIMESCALE, {}).items() if name in wanted}
        available = "SELECT version FROM pg_available_extension_versions WHERE name = :'name'"
        have = self.server.ask(available, variables=[f"name={TIMESCALE}"]).split() if versions else []
        for database, version in versions.items():
            if version not in have:
                raise Refused(
                    f"{self.name}: {database!r} was saved with TimescaleDB {version}, and this server has "
                    f"{', '.join(have) or 'none'}; install that version, restore, and update the extension then"
                )
        return {
            "label": member.label,
            "folder": member.details["folder"],
            TIMESCALE: versions,
            "databases": {database: self.exists(database) for database in wanted},
            "digests": {database: member.digests[database] for database in wanted},
        }

    def stage(self, choice: dict[str, Any]) -> dict[str, Any]:
        tree = self.fetch(choice["label"], choice["folder"])
        server = self.server
        server.ask(self._missing_roles(server, tree))
        return {
            name: {
                "tables": self._load(
                    server, tree, name, f"{name}_restored", choice["digests"][name], choice[TIMESCALE].get(name, "")
                )
            }
            for name in choice["databases"]
        }

    def _shut(self, database: str) -> str:
        """SQL that lets nobody in and puts out who is in."""
        name = quote(database)
        literal = "'" + database.replace("'", "''") + "'"
        return (
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false;\n"
            f"SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE datname = {literal};\n"
        )

    def swap(self, choice: dict[str, Any]) -> None:
        for database, existed in choice["databases"].items():
            if existed:
                self.server.ask(self._shut(database))
        # All of them in one transaction.
        steps = ["BEGIN"]
        for database, existed in choice["databases"].items():
            if existed:
                steps.append(f"ALTER DATABASE {quote(database)} RENAME TO {quote(database + '_former')}")
            steps.append(f"ALTER DATABASE {quote(database + '_restored')} RENAME TO {quote(database)}")
        self.server.ask("".join(f"{step};\n" for step in [*steps, "COMMIT"]))

    def undo(self, choice: dict[str, Any]) -> None:
        for database, existed in choice["databases"].items():
            former = f"{database}_former"
            if self.exists(former):
                drop = f"DROP DATABASE IF EXISTS {quote(database)} WITH (FORCE);\n"
                self.server.ask(f"{drop}ALTER DATABASE {quote(former)} RENAME TO {quote(database)};\n")
            elif not existed:
                self.server.ask(f"DROP DATABASE IF EXISTS {quote(database)} WITH (FORCE);\n")
            if existed:
                self.server.ask(f"ALTER DATABASE {quote(database)} ALLOW_CONNECTIONS true;\n")
            self.server.ask(f"DROP DATABASE IF EXISTS {quote(database + '_restored')} WITH (FORCE);\n")

    def commit(self, choice: dict[str, Any]) -> None:
        for database in choice["databases"]:
            self.server.ask(f"DROP DATABASE IF EXISTS {quote(database + '_former')} WITH (FORCE);\n")
