# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Takes secrets out of texts whose content nobody knows beforehand: logs, process lists, what services print.

Two ways together: what has the shape of a secret (``password=...``, credentials in a URL, a private key, a verifier),
and values that are known to be secret, wherever they turn up. A file in which only some things are secret is read for
those; hiding all of its words would leave nothing to diagnose with.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

HIDDEN = "********"
# Shorter ones are too common to be hidden wherever they occur.
SHORTEST = 6
# Much larger files hold data.
LARGEST_FILE = 1 << 20

_KEY = r"[\w.-]{0,60}?(?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|api[_-]?key|private[_-]?key|_key)"
_SHAPES = (
    # A whole key, also one whose end was cut off.
    (re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL), HIDDEN),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/@:]*:)[^\s/@]+(?=@)", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\b(?:proxy-)?authorization\W+(?:(?:basic|bearer|digest)\s+)?)\S+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\b(?:set-)?cookie\s*:\s*).+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"\bSCRAM-SHA-256\$\S+|\bmd5[0-9a-f]{32}\b|\$(?:2[aby]|5|6|y|argon2\w*)\$\S{10,}"), HIDDEN),
    # JSON Web Tokens.
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
    # SQL and Redis: PASSWORD 'x', requirepass x, masterauth x, AUTH x.
    (re.compile(r"(\bpassword\s+)(?:'(?:[^']|'')*'|\"[^\"]*\")", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(\b(?:requirepass|masterauth)\s+)\S+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(
            rf"(\b{_KEY}[\"']?\s*[=:]\s*)"
            r"(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|(?![\"'])[^\s,;&\"'}\]]+)",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    # An option and its value as two words.
    (re.compile(rf"(--?{_KEY}\s+)(?!-)\S+", re.IGNORECASE), rf"\1{HIDDEN}"),
)
_KEYED = re.compile(rf"^\s*[\"']?{_KEY}[\"']?\s*[=:\s]\s*(.+)$", re.IGNORECASE)
_ENVIRONMENT = re.compile(r"^\s*(?:export\s+)?[A-Z_][A-Z0-9_]*=(.+)$")
_QUOTED_PAIR = re.compile(r'^"[^"]*"\s+"([^"]+)"')
_CREDENTIALS = re.compile(r"://[^\s/@:]*:([^\s/@]+)@")
# A word, a number, a path, a host's name or address: nothing that a generator of secrets prints.
_PLAIN = re.compile(r"^(?:[a-z]+|[A-Z]+|[\d.:/]+|(?:~|\.{0,2})/.*|[\w-]+(?:\.[\w-]+)+(?::\d+)?|true|false|\*)$")
SECRET_NAME = re.compile(r"(^|_)(pass(word|phrase|wd)?|secrets?|token|private_key|credentials?)$")


class Redaction:
    """Takes what is secret out of texts.

    :param secrets: values that are secret wherever they turn up; those under SHORTEST characters are ignored.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        lines = {line.strip() for secret in secrets for line in str(secret).splitlines()}
        ordered = sorted((line for line in lines if len(line) >= SHORTEST), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __call__(self, text: str) -> str:
        if self._known:
            text = self._known.sub(HIDDEN, text)
        for shape, replacement in _SHAPES:
            text = shape.sub(replacement, text)
        return text


def _looks_random(word: str) -> bool:
    """Whether a word has a piece as a generator of secrets makes it."""
    return any(
        (len(piece) >= 8 and re.search(r"\d", piece) and re.search(r"[A-Za-z]", piece))
        or (len(piece) >= 12 and re.search(r"[a-z]", piece) and re.search(r"[A-Z]", piece))
        for piece in re.split(r"[^A-Za-z0-9]+", word)
    )


def secrets_in(text: str) -> set[str]:
    """The values in the text of a file for few eyes that are secrets.

    These are the values of keys with a secret's name, of all environment variables, of password files of PostgreSQL and
    PgBouncer, credentials in URLs, words that look random, private keys line by line, and the only word of a file.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("#", ";"))]
    words = [word for line in lines for word in line.split()]
    found = set(words) if len(words) == 1 and not _ENVIRONMENT.match(words[0]) else set()
    for line in lines:
        found.update(unquoted for value in _values(line) for unquoted in (value, value.strip("\"'")))
        found.update(word.strip("\"',;") for word in re.split(r"[\s=:]+", line) if _looks_random(word))
    return {value for value in found if len(value) >= SHORTEST}


def _values(line: str) -> Iterator[str]:
    keyed = _KEYED.match(line)
    if keyed:
        yield keyed[1]
    environment = _ENVIRONMENT.match(line)
    if environment and not _PLAIN.match(environment[1].strip("\"'")):
        yield environment[1]
    pair = _QUOTED_PAIR.match(line)
    if pair:
        yield pair[1]
    for password in _CREDENTIALS.findall(line):
        yield password
        yield unquote(password)
    # pgpass: host:port:database:user:password, in which a colon is written as \:.
    parts = re.split(r"(?<!\\):", line)
    if len(parts) == 5 and not re.search(r"\s", line):
        yield parts[4].replace("\\:", ":").replace("\\\\", "\\")


def secrets_of_files(paths: Iterable[str]) -> set[str]:
    """What is secret in files that not everybody may read; others, and those that cannot be read, count for nothing.

    :param paths: absolute paths or patterns of them.
    """
    found: set[str] = set()
    for pattern in paths:
        for path in glob.glob(pattern) if glob.has_magic(pattern) else [pattern]:
            try:
                status = os.stat(path)
                if status.st_mode & 0o004 or status.st_size > LARGEST_FILE or not os.path.isfile(path):
                    continue
                with open(path, encoding="utf-8", errors="replace") as handle:
                    found |= secrets_in(handle.read())
            except OSError:
                continue
    return found


def secrets_of_variables(value: Any, secret: bool = False) -> set[str]:
    """The texts in variables whose names, or the names of what they are in, say that they are secret."""
    if isinstance(value, str):
        return {str(value)} if secret and value else set()
    if isinstance(value, Mapping):
        parts = (secrets_of_variables(item, secret or is_named_secret(str(key))) for key, item in value.items())
        return set().union(*parts)
    if isinstance(value, (list, tuple)):
        return set().union(*(secrets_of_variables(item, secret) for item in value))
    return set()


def is_named_secret(name: str) -> bool:
    """Whether a variable's name says that its value is secret."""
    return name.startswith("vault_") or bool(SECRET_NAME.search(name.lower()))


def holds_secrets(value: Any) -> bool:
    """Whether names inside a value say that something in it is secret."""
    if isinstance(value, Mapping):
        return any(is_named_secret(str(key)) or holds_secrets(item) for key, item in value.items())
    return isinstance(value, (list, tuple)) and any(holds_secrets(item) for item in value)
