"""The balancer of this host, by its own tools and logs."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run(*command: str) -> str:
    """What a command prints, on both of its outputs."""
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


class Balancer:
    """What only the balancer's own tools and logs tell, asked in the same words for both."""

    name = "nginx" if subprocess.run(["systemctl", "is-active", "--quiet", "nginx"]).returncode == 0 else "haproxy"
    is_nginx = name == "nginx"

    def socket(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect("/run/haproxy/admin.sock")
            asked.sendall(f"{command}\n".encode())
            return asked.makefile().read()

    def servers(self, upstream: str) -> set[str]:
        """Endpoints of an upstream, as the running balancer or its configuration lists them."""
        if self.is_nginx:
            block = run("nginx", "-T").split(f"upstream {upstream} {{")[1].split("\n}")[0]
            return set(re.findall(r"(?m)^ *server (\S+) ", block))
        lines = [line.split() for line in self.socket(f"show servers state {upstream}").splitlines()[2:] if line]
        return {f"{line[4]}:{line[18]}" for line in lines}

    def route(self, host: str, location: str, backend: str) -> str:
        """How a route of a site is configured: nginx's location, HAProxy's backend."""
        if self.is_nginx:
            # The site's server for plain HTTP comes first.
            served = run("nginx", "-T").split(f"    server_name {host} ")[2].split("\nserver {")[0]
            return served.split(f"    location {location} {{\n")[1].split("\n    }")[0]
        return run("cat", "/etc/haproxy/haproxy.cfg").split(f"\nbackend {backend}\n")[1].split("\nbackend ")[0]

    def up(self, upstream: str, server: str) -> bool:
        """Whether active checks find it well."""
        lines = [line.split() for line in self.socket(f"show servers state {upstream}").splitlines()[2:] if line]
        return next(line[5] for line in lines if line[3] == server) == "2"

    def logged(self, marker: str) -> list[str]:
        """Lines of the log of requests that hold a marker."""
        file = Path(f"/var/log/{self.name}/access.log")
        # With haproxy_log: syslog there is none.
        log = file.read_text() if file.exists() else run("journalctl", "-t", "haproxy", "-o", "cat", "--since", "-5min")
        return [line for line in log.splitlines() if marker in line]

    def refusals(self, source: str) -> list[str]:
        """Lines that tell of requests of an address above a limit."""
        if self.is_nginx:
            lines = run("cat", "/var/log/nginx/error.log").splitlines()
            return [line for line in lines if f"client: {source}," in line and "limiting" in line and "[warn]" in line]
        return [line for line in self.logged(f"{source}:") if " 429 " in line]

    def complaints(self) -> list[str]:
        """What the balancer says about its configuration beside that it is well."""
        check = ["nginx", "-t"] if self.is_nginx else ["haproxy", "-c", "-f", "/etc/haproxy/haproxy.cfg"]
        return [
            line
            for line in run(*check).splitlines()
            if "ok" not in line and "valid" not in line and "success" not in line
        ]

    def reload(self) -> None:
        run("systemctl", "reload", self.name)


def until(seconds: float, what: str, check: Callable[[], Any]) -> float:
    """Wait for something; returns the seconds that it took."""
    begun = time.monotonic()
    while not check():
        assert time.monotonic() < begun + seconds, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - begun


BALANCER = Balancer()
