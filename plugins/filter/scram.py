# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""SCRAM-SHA-256 verifiers that PostgreSQL and PgBouncer can share."""

from __future__ import annotations

DOCUMENTATION = r"""
name: scram_sha_256
short_description: Make the SCRAM-SHA-256 verifier of a PostgreSQL role
version_added: 0.1.0
description:
  - Makes the string that PostgreSQL keeps in C(pg_authid.rolpassword) for a password (RFC 5802, RFC 7677).
  - PgBouncer logs in to the server with a verifier only if the server has exactly the same one, salt included. The
    salt is therefore fixed for a role of a cluster. It is the first 16 bytes of the SHA-256 digest over the names of
    cluster and role. The password never enters the salt, since a fast hash of it would be an oracle for guesses.
  - The same arguments give the same verifier, so a host can be compared with what it ought to have.
  - The password is prepared with SASLprep (RFC 4013) as PostgreSQL and PgBouncer do. One that SASLprep refuses is
    used as it stands, again as they do.
positional: _input, role, cluster
options:
  _input:
    description: Password in clear text.
    type: string
    required: true
  role:
    description: Name of the role.
    type: string
    required: true
  cluster:
    description: Name of the database cluster. All servers and poolers of a cluster use the same one.
    type: string
    required: true
  iterations:
    description: Rounds of PBKDF2. PostgreSQL's own default is 4096.
    type: int
    default: 4096
author:
  - vmfleet.ops maintainers (@vmfleet)
"""

EXAMPLES = r"""
- name: Give the pooler the verifier of a role
  vmfleet.ops.converge:
    name: userlist
    files:
      - content: "\"app\" \"{{ app_password | vmfleet.ops.scram_sha_256('app', 'supernova') }}\"\n"
        dest: /etc/pgbouncer/userlist.txt
        mode: "0640"
        sensitive: true
"""

RETURN = r"""
_value:
  description: The verifier, C(SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>).
  type: string
"""

import base64
import hashlib
import hmac
import stringprep
import unicodedata
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

SALT_BYTES = 16
MIN_ITERATIONS = 4096


class _Refused(ValueError):
    """SASLprep does not allow the text."""


_PROHIBITED: tuple[Callable[[str], bool], ...] = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)


def _saslprep(text: str) -> str:
    mapped = "".join(
        " " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char)
    )
    prepared = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    if not prepared or any(test(char) for char in prepared for test in _PROHIBITED):
        raise _Refused(text)
    if any(stringprep.in_table_d1(char) for char in prepared) and (
        any(stringprep.in_table_d2(char) for char in prepared)
        or not stringprep.in_table_d1(prepared[0])
        or not stringprep.in_table_d1(prepared[-1])
    ):
        raise _Refused(text)
    return prepared


def _prepared_password(password: str) -> bytes:
    # PostgreSQL leaves ASCII as it is, control characters included.
    if password.isascii():
        return password.encode("ascii")
    try:
        return _saslprep(password).encode("utf-8")
    except _Refused:
        return password.encode("utf-8")


def _salt(role: str, cluster: str) -> bytes:
    # The length in front keeps ("ab", "c") and ("a", "bc") apart.
    names = b"".join(len(part).to_bytes(4, "big") + part for part in (cluster.encode(), role.encode()))
    return hashlib.sha256(b"vmfleet.ops scram salt" + names).digest()[:SALT_BYTES]


def _verifier(password: str, salt: bytes, iterations: int) -> str:
    salted_password = hashlib.pbkdf2_hmac("sha256", _prepared_password(password), salt, iterations)
    stored_key = hashlib.sha256(hmac.digest(salted_password, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted_password, b"Server Key", "sha256")
    salt_text, stored_text, server_text = (
        base64.b64encode(part).decode("ascii") for part in (salt, stored_key, server_key)
    )
    return f"SCRAM-SHA-256${iterations}:{salt_text}${stored_text}:{server_text}"


def scram_sha_256(password: str, role: str, cluster: str, iterations: int = MIN_ITERATIONS) -> str:
    """Return the verifier of a role's password in a cluster."""
    named = {"password": password, "role": role, "cluster": cluster}
    for name, value in named.items():
        if not isinstance(value, str) or not value:
            raise AnsibleFilterError(f"scram_sha_256: {name} must be a string that is not empty")
        if "\x00" in value:
            raise AnsibleFilterError(f"scram_sha_256: {name} must not contain a NUL character")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < MIN_ITERATIONS:
        raise AnsibleFilterError(f"scram_sha_256: iterations must be a number of at least {MIN_ITERATIONS}")
    return _verifier(password, _salt(role, cluster), iterations)


class FilterModule:
    """Filters for SCRAM."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"scram_sha_256": scram_sha_256}
