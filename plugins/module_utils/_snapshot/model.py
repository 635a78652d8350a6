# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a snapshot set is: its members, its manifest, and what can go wrong with one."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import hmac
import json
import os
import re
import stat
from dataclasses import dataclass, field
from typing import Any

FORMAT = 2
COPYING, SEALED, VERIFIED, DRILLED = "copying", "sealed", "verified", "drilled"
STATES = (COPYING, SEALED, VERIFIED, DRILLED)
# What a member, and a set as its weakest member, is worth: as after a power cut; as the application wrote it; all
# members at one named point; that, with writers kept out.
CLASSES = ("crash", "application", "barrier", "fenced")
ID_LENGTH = 63
ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{ID_LENGTH - 1}}}")
KEY_LENGTH = 20
# The type of the only member of a set that does not save the host.
ARCHIVE = "archive"
# Of PBKDF2, from the secret to what is derived from it. Part of the format: with others no manifest can be read.
ROUNDS = 100_000


class SnapshotError(RuntimeError):
    """What went wrong and what to do about it; ``code`` is the exit code, after sysexits.h."""

    code = 70


class Refused(SnapshotError):
    """Nothing was begun: what was asked for is wrong or cannot be had."""

    code = 64


class Damaged(SnapshotError):
    """What is in the repository is not what was put there."""

    code = 65


class NotFound(SnapshotError):
    """There is no such set, member or object."""

    code = 66


class Unavailable(SnapshotError):
    """The repository cannot be reached."""

    code = 69


class EngineFailed(SnapshotError):
    """A program that does the work failed."""

    code = 70


class HostFailed(SnapshotError):
    """This host could not read or write: a disk is full or broken, or rights are missing."""

    code = 74


class Busy(SnapshotError):
    """Another run is at work."""

    code = 75


class Denied(SnapshotError):
    """The repository refuses: credentials are wrong, or may not do this."""

    code = 77


class WrongKey(SnapshotError):
    """The key is missing, unsafe, or not the one that the set was made with."""

    code = 77


def now() -> str:
    """The time in UTC as manifests have it, to the microsecond; sorts as text."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> datetime.datetime:
    """An ISO 8601 time with its zone.

    :raises Refused: for anything else; a time without a zone would mean another moment on another host.
    """
    try:
        moment = datetime.datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
    except ValueError:
        raise Refused(f"{text!r} is no time; give one such as 2026-11-25T19:00:00Z") from None
    if moment.tzinfo is None:
        raise Refused(f"{text!r} has no time zone; add Z or an offset such as +01:00")
    return moment.astimezone(datetime.timezone.utc)


def canonical(value: Any) -> bytes:
    """JSON of which there is one form only, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode() + b"\n"


@dataclass(frozen=True)
class Key:
    """The secret of a repository. ``id`` tells keys apart and is no help in guessing; ``mac`` signs manifests."""

    path: str
    id: str
    mac: bytes = field(repr=False)

    @classmethod
    def load(cls, path: str) -> Key:
        """:raises WrongKey: when it is not there, others may read it, or it is short."""
        try:
            with open(path, "rb") as handle:
                mode = stat.S_IMODE(os.fstat(handle.fileno()).st_mode)
                secret = handle.read().strip()
        except OSError as error:
            raise WrongKey(f"{path}: {error.strerror}; bring the key of the repository there") from None
        if mode & 0o077:
            raise WrongKey(f"{path}: has mode {mode:04o}; make it 0600")
        if len(secret) < KEY_LENGTH:
            raise WrongKey(f"{path}: has {len(secret)} characters; a key has at least {KEY_LENGTH}")
        derived = hashlib.pbkdf2_hmac("sha256", secret, b"vmfleet.ops manifest", ROUNDS, 40)
        return cls(path, derived[:8].hex(), derived[8:])


@dataclass(frozen=True)
class Member:
    """One source's part of a set.

    ``label`` is the engine's name for it in the repository, ``size`` the bytes of the source and ``stored`` those that
    were added to the repository. ``digests`` says of each part what it must be when restored, as far as the engine does
    not know that by itself. ``details`` is the engine's own, such as LSN, timeline and system identifier.
    """

    source: str
    type: str
    engine: str
    label: str
    consistency: str
    began: str
    ended: str
    size: int
    stored: int
    digests: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """All that is known of a set. Times are UTC, see :func:`now`; ``verified`` and ``drilled`` say when, or nothing.

    ``fleet`` is there when several hosts made it together, see :mod:`.fleet`: ``id`` of that attempt, ``hosts`` that
    have a part, ``attempted``, the time by which retention judges all of them, ``began`` and ``ended`` of the moment on
    this host, and ``complete``, the time at which all were known to be sealed, or nothing.
    """

    id: str
    host: str
    state: str
    began: str
    key: str
    reason: str = ""
    sealed: str = ""
    verified: str = ""
    drilled: str = ""
    members: tuple[Member, ...] = ()
    fleet: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def consistency(self) -> str:
        """That of the weakest member."""
        return min((member.consistency for member in self.members), key=CLASSES.index, default="")

    @property
    def is_archive(self) -> bool:
        """Whether it holds what has gone from the host, and does not save it."""
        return any(member.type == ARCHIVE for member in self.members)

    def member(self, source: str) -> Member:
        """:raises NotFound: when the set has none of that source."""
        for member in self.members:
            if member.source == source:
                return member
        have = ", ".join(member.source for member in self.members)
        raise NotFound(f"set {self.id} has no member of source {source}; it has {have or 'none'}")

    def shown(self) -> dict[str, Any]:
        """As reports show it."""
        size, stored = (sum(getattr(member, name) for member in self.members) for name in ("size", "stored"))
        return {**dataclasses.asdict(self), "consistency": self.consistency, "size": size, "stored": stored}


def pack(manifest: Manifest, key: Key) -> bytes:
    """A manifest as it is stored: canonical JSON with the manifest's code of authentication."""
    body = dataclasses.asdict(manifest)
    return canonical({"manifest": body, "hmac": hmac.new(key.mac, canonical(body), hashlib.sha256).hexdigest()})


def unpack(content: bytes, key: Key, where: str) -> Manifest:
    """:raises Damaged: when it is not what :func:`pack` has made.
    :raises WrongKey: when it was made with another key.
    :raises Refused: when it is of a later format.
    """
    try:
        envelope = json.loads(content)
        body = envelope["manifest"]
        made_with, version, code = str(body["key"]), int(body["format"]), str(envelope["hmac"])
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{where}: is no manifest ({error!r})") from None
    if version > FORMAT:
        raise Refused(f"{where}: is of format {version}; this version reads up to {FORMAT}. Use a newer one.")
    if made_with != key.id:
        raise WrongKey(f"{where}: was made with key {made_with}, and {key.path} is {key.id}")
    if not hmac.compare_digest(code, hmac.new(key.mac, canonical(body), hashlib.sha256).hexdigest()):
        raise Damaged(f"{where}: does not agree with its code of authentication")
    members = tuple(Member(**entry) for entry in body.pop("members"))
    return Manifest(**{**body, "format": FORMAT}, members=members)


def new_id() -> str:
    """A name for a set: the time."""
    return re.sub(r"[-:]|\.[0-9]+", "", now())


def check_id(text: str) -> str:
    """:raises Refused: for what cannot be the name of a set."""
    if not ID.fullmatch(text) or ".." in text:
        raise Refused(f"{text!r} cannot name a set; use up to 63 letters, digits, dots, dashes and underscores")
    return text
