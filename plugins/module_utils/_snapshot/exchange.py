# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One database as a file that only needs gzip, openssl and psql: SQL, compressed, encrypted with AES-256 in CBC mode.

That cipher does not notice what is changed in a file, so there is a code of authentication beside it (HMAC-SHA256 of
the encrypted file, in the form of ``sha256sum``), which is checked before anything is decrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from .._durable import fsync_directory, write_durably
from .model import Damaged, Key, Member, NotFound, Refused
from .postgresql import ACCOUNT
from .postgresql_logical import TIMESCALE, Logical, quote

SUFFIX = ".hmac"
# Of PBKDF2 with SHA-256, from the secret to the keys of cipher and code; see OWASP's "Password Storage Cheat Sheet".
ROUNDS = 600_000
SALT = b"vmfleet.ops export"
# The secret is read from a file: arguments are seen by everybody.
CIPHER = f'openssl enc -aes-256-cbc -md sha256 -pbkdf2 -iter {ROUNDS} -pass "file:$1"'


def _code(path: str, key: Key) -> str:
    with open(key.path, "rb") as handle:
        secret = handle.read().strip()
    code = hmac.new(hashlib.pbkdf2_hmac("sha256", secret, SALT, ROUNDS), digestmod=hashlib.sha256)
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            code.update(block)
    return code.hexdigest()


def write(source: Logical, member: Member, database: str, path: str) -> int:
    """Writes a database of a set as a file, and the code beside it. Returns the bytes of the file.

    :raises Refused: when the file is there already, or the database needs more than SQL to be restored.
    """
    if database not in member.digests:
        raise NotFound(f"{source.name}: has no database {database!r}; it has {', '.join(member.digests)}")
    if member.details.get(TIMESCALE, {}).get(database):
        raise Refused(f"{source.name}: {database!r} has TimescaleDB, which plain SQL cannot restore; restore the set")
    for there in (path, path + SUFFIX):
        if os.path.lexists(there):
            raise Refused(f"{there} is there already; files are never overwritten")
    dump, _make = source.dump(source.fetch(member.label, member.details["folder"]), database)
    restore = f'runuser -u {ACCOUNT} -- "$2/pg_restore" --no-tablespaces --file=- "$3"'
    script = f'set -o pipefail; umask 077; {restore} | gzip | {CIPHER} -salt -out "$4"'
    argv = ["bash", "-c", script, "export", source.context.repository.key.path, source.options.binaries, dump]
    temporary = f"{path}.new"
    try:
        source.context.command(f"export {database}", [*argv, temporary])
        code = f"{_code(temporary, source.context.repository.key)}  {os.path.basename(path)}\n"
        descriptor = os.open(temporary, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        # A file without its code is none.
        write_durably(path + SUFFIX, code.encode())
        os.rename(temporary, path)
        fsync_directory(os.path.dirname(path) or ".")
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)
    return os.path.getsize(path)


def read(source: Logical, path: str, database: str) -> None:
    """Makes a database of a file.

    :raises Refused: when there is a database of that name.
    :raises Damaged: when the file is not what :func:`write` has made with this key; then nothing is decrypted.
    """
    try:
        with open(path + SUFFIX, encoding="ascii", errors="replace") as handle:
            code = handle.read().split(maxsplit=1)[:1]
    except FileNotFoundError:
        raise NotFound(f"{path + SUFFIX} is not there; without it nobody knows who wrote {path}") from None
    key = source.context.repository.key
    if not code or not hmac.compare_digest(code[0].encode(), _code(path, key).encode()):
        raise Damaged(f"{path}: is not what was written, or was written with another key than {key.path}")
    if source.exists(database):
        raise Refused(f"there is a database {database!r}; give another name, look at it, and rename the two")
    server = source.server
    server.ask(f"CREATE DATABASE {quote(database)} TEMPLATE template0")
    psql = " ".join(f"'{word}'" for word in (*server.argv, "--single-transaction"))
    script = f'set -o pipefail; {CIPHER} -d -in "$2" | gunzip | runuser -u {ACCOUNT} -- {psql} --dbname="$3" >/dev/null'
    try:
        source.context.command(f"import {database}", ["bash", "-c", script, "import", key.path, path, database])
    except Exception:
        server.ask(f"DROP DATABASE {quote(database)}")
        raise
