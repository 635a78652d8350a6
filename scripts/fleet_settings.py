"""Names, addresses and paths of the local fleet; standard library only, because the inventory imports it too."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import zlib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
USER = "ops"


class FleetError(Exception):
    """Something the person at the keyboard can act on."""


@dataclass(frozen=True)
class Settings:
    """One local fleet: everything it owns carries the prefix."""

    prefix: str
    subnet: ipaddress.IPv4Network

    @property
    def network(self) -> str:
        return f"{self.prefix}-net"

    @property
    def state(self) -> Path:
        return ROOT / ".fleet" / self.prefix

    @property
    def key(self) -> Path:
        return self.state / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.state / "known_hosts"

    @property
    def inventory(self) -> Path:
        return self.state / "hosts.yml"

    @property
    def control_path_dir(self) -> Path:
        # Not below the checkout: a socket's path may have about 100 characters only.
        return Path.home() / ".ansible" / "cp" / self.prefix

    def container(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def address(self, number: int) -> str:
        return str(self.subnet[number])

    def secret(self, name: str) -> str:
        """A password of the demo. All come from one random seed, made on first use and gone with the fleet."""
        seed = self.state / "seed"
        if not seed.exists():
            self.state.parent.mkdir(mode=0o700, exist_ok=True)
            self.state.mkdir(mode=0o700, exist_ok=True)
            draft = self.state / f"seed.{os.getpid()}"
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(32))
            # Unlike a rename, a link fails when somebody else was first.
            with contextlib.suppress(FileExistsError):
                seed.hardlink_to(draft)
            draft.unlink()
        return hmac.new(seed.read_bytes(), name.encode(), hashlib.sha256).hexdigest()[:32]

    def connection_vars(self) -> dict[str, str]:
        """How Ansible reaches any host of this fleet."""
        return {
            "ansible_user": USER,
            "ansible_ssh_private_key_file": str(self.key),
            # Keep-alives let a master connection notice that its container was replaced.
            "ansible_ssh_common_args": (
                f"-o UserKnownHostsFile='{self.known_hosts}' -o IdentitiesOnly=yes"
                " -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
            ),
            "ansible_control_path_dir": str(self.control_path_dir),
        }


def default_subnet(prefix: str) -> str:
    """Every prefix gets a network of its own, so that only the prefix has to be set to run two fleets.

    Of 8,192 networks: with 255, two scenarios of the project's own had the same one.
    """
    if prefix == "vmfleet":
        return "10.213.0.0/24"
    high, low = divmod(zlib.crc32(prefix.encode()) % 8192, 256)
    return f"10.{high + 214}.{low}.0/24"


def settings(prefix: str | None = None) -> Settings:
    """Read VMFLEET_PREFIX and VMFLEET_SUBNET."""
    name = prefix or os.environ.get("VMFLEET_PREFIX") or "vmfleet"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", name):
        raise FleetError(
            f"VMFLEET_PREFIX={name!r}: use lower-case letters, digits, dashes and underscores, at most 40."
        )
    wanted = os.environ.get("VMFLEET_SUBNET") or default_subnet(name)
    try:
        subnet = ipaddress.IPv4Network(wanted)
    except ValueError as error:
        raise FleetError(f"VMFLEET_SUBNET={wanted!r}: {error}") from error
    if subnet.prefixlen != 24:
        raise FleetError(f"VMFLEET_SUBNET={wanted!r}: the local fleet needs a /24, such as 10.213.0.0/24.")
    return Settings(prefix=name, subnet=subnet)
