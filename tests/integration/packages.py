"""A private package archive on a host: a small web service in two versions, as a Debian maintainer would ship it.

Its maintainer scripts are those of debhelper: enabled and started on installation, restarted on upgrade. It appends
the greeting of its configuration to a log whenever it starts, so that a start with the default configuration shows.
"""

from __future__ import annotations

import textwrap

from lab import Host

STARTS = "/var/log/hello-web.starts"
ARCHIVE = "/srv/archive"

SERVER = """\
#!/usr/bin/python3
# hello-web @VERSION@
import http.server, os, signal, threading, time

def read():
    with open("/etc/hello-web.conf") as handle:
        return dict(line.strip().split("=", 1) for line in handle if "=" in line)

def note():
    with open("/var/log/hello-web.starts", "a") as handle:
        handle.write(settings.get("greeting", "") + "\\n")

def reread(*_):
    global settings
    settings = read()
    if settings.get("die") == "reload":
        # not at once: a process that dies while `systemctl reload` still waits fails the reload itself
        threading.Timer(0.5, os._exit, (3,)).start()

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = ("@VERSION@ " + settings.get("greeting", "")).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

settings = read()
note()
if settings.get("die") == "start":
    raise SystemExit(3)
if settings.get("die") == "soon":
    threading.Timer(1.0, os._exit, (3,)).start()
signal.signal(signal.SIGHUP, reread)
http.server.ThreadingHTTPServer(("127.0.0.1", int(settings.get("port", "8800"))), Handler).serve_forever()
"""

UNIT = """\
[Unit]
Description=A small web service
[Service]
ExecStart=/usr/bin/hello-web
ExecReload=/bin/kill -HUP $MAINPID
Environment=ROLE=default
[Install]
WantedBy=multi-user.target
"""

POSTINST = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    deb-systemd-helper unmask hello-web.service >/dev/null || true
    if deb-systemd-helper --quiet was-enabled hello-web.service; then
        deb-systemd-helper enable hello-web.service >/dev/null || true
    fi
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
        if [ -n "$2" ]; then verb=restart; else verb=start; fi
        deb-systemd-invoke $verb hello-web.service >/dev/null || true
    fi
fi
"""

PRERM = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop hello-web.service >/dev/null || true
fi
"""

POSTRM = """\
#!/bin/sh
set -e
if [ "$1" = purge ]; then deb-systemd-helper purge hello-web.service >/dev/null || true; fi
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then systemctl --system daemon-reload >/dev/null || true; fi
"""


# What is special about a version: much to unpack, or a maintainer script that takes its time.
BIG, SLOW = "1.2", "1.3"
VERSIONS = ("1.0", "1.1", BIG, SLOW)


def _build(host: Host, version: str) -> None:
    root = f"/tmp/build-{version}"
    control = f"""\
        Package: hello-web
        Version: {version}
        Architecture: all
        Maintainer: vmfleet.ops tests <tests@example.invalid>
        Depends: init-system-helpers, python3
        Section: web
        Priority: optional
        Description: a small web service for tests
    """
    host.put(f"{root}/DEBIAN/control", textwrap.dedent(control))
    host.put(f"{root}/DEBIAN/conffiles", "/etc/hello-web.conf\n")
    for name, text in (("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)):
        host.put(f"{root}/DEBIAN/{name}", text, "0755")
    host.put(f"{root}/usr/bin/hello-web", SERVER.replace("@VERSION@", version), "0755")
    host.put(f"{root}/usr/lib/systemd/system/hello-web.service", UNIT)
    host.put(f"{root}/etc/hello-web.conf", "greeting=default\nport=8800\n")
    host.put(f"{root}/usr/share/hello-web/about", f"{version}\n")
    if version == BIG:
        host.sh(f"head -c 4M /dev/urandom > {root}/usr/share/hello-web/blob")
    if version == SLOW:
        host.sh(f"sed -i '/^set -e/a sleep 4' {root}/DEBIAN/postinst")
    host.sh(f"mkdir -p {ARCHIVE}; dpkg-deb --root-owner-group -b {root} {ARCHIVE} && rm -r {root}")


def prepare(host: Host) -> None:
    """Archive, ufw and an unrelated neighbour; done once per host."""
    if host.sh(f"test -e {ARCHIVE}/Packages && echo there", check=False):
        return
    for version in VERSIONS:
        _build(host, version)
    host.sh(f"""
        cd {ARCHIVE}
        for deb in *.deb; do
            dpkg-deb -f $deb
            echo "Filename: ./$deb"
            echo "Size: $(stat -c %s $deb)"
            echo "SHA256: $(sha256sum $deb | cut -d' ' -f1)"
            echo
        done > Packages
        echo 'deb [trusted=yes] file:{ARCHIVE} ./' > /etc/apt/sources.list.d/archive.list
        apt-get -qq update
        apt-get -qq -y --no-install-recommends install ufw iptables curl >/dev/null 2>&1
    """)
