# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from typing import Any


def fsync_directory(path: str) -> None:
    """Makes renames and new names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: str) -> Any:
    """What is noted in a file as JSON, or None where there is no such file."""
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except FileNotFoundError:
        return None


def write_durably(path: str, content: bytes, mode: int = 0o600) -> None:
    """Replaces a file's content in one step: temporary name, fsync, rename, fsync of the directory."""
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fchmod(handle.fileno(), mode)
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    fsync_directory(os.path.dirname(path))


def write_textfile(path: str, content: str) -> None:
    """Puts a file in place as a whole.

    The folder belongs to the exporter's account: the temporary name cannot be guessed, and its suffix is one that the
    exporter passes over. A host without the exporter has no folder, and nobody to tell.
    """
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".vmfleet-", suffix=".tmp")
    try:
        with open(descriptor, "w", encoding="utf-8") as handle:
            handle.write(content)
            os.fchmod(descriptor, 0o644)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
