# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks over the network: tcp, http with its phases, tls, dns."""

from __future__ import annotations

import datetime
import hashlib
import http.client
import json
import re
import socket
import ssl
import time
import urllib.parse
from typing import Any

from .._host import run
from .model import CannotTell, Check, CheckFailed, CheckType, Key, Seen, grade, matches
from .shared import Shared

BODY_LIMIT = 1 << 20
REDIRECTS = (301, 302, 303, 307, 308)
TLS_KEYS = {
    "ca": Key("str", "File of the authority to trust instead of the system's."),
    "verify_tls": Key("bool", "Whether the certificate must be good for the name.", True),
    "verify_name": Key("bool", "Whether it must be for the name of the server, beside being trusted.", True),
    "client_certificate": Key("str", "File of the certificate that proves this host, for mutual TLS."),
    "client_key": Key("str", "File of its key."),
}


def tls_context(check: Check, alpn: list[str] | None = None) -> ssl.SSLContext:
    """What the TLS keys of a check say."""
    try:
        context = ssl.create_default_context(cafile=check["ca"])
        if check["client_certificate"]:
            context.load_cert_chain(check["client_certificate"], check["client_key"])
    except OSError as error:
        raise CannotTell(f"certificates cannot be loaded: {error}") from error
    # Python 3.13 began to refuse authorities that other clients accept; a host's Python must not decide.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = check["verify_tls"] and check["verify_name"]
    if not check["verify_tls"]:
        context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def connect(host: str, port: int, timeout: float) -> socket.socket:
    """A connection.

    :raises CheckFailed: when nobody answers.
    """
    try:
        return socket.create_connection((host, port), timeout=max(0.05, timeout))
    except OSError as error:
        raise CheckFailed(f"{host}:{port}: {error.strerror or error}") from error


def wrap(check: Check, raw: socket.socket, name: str, alpn: list[str] | None = None) -> ssl.SSLSocket:
    """TLS over a connection, whose timeout is that of the handshake.

    :raises CheckFailed: when the handshake fails, with the reason of the verification.
    """
    try:
        return tls_context(check, alpn).wrap_socket(raw, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        raw.close()
        raise CheckFailed(f"certificate: {error.verify_message or error}") from error
    except OSError as error:
        raw.close()
        raise CheckFailed(f"TLS: {error}") from error


def tcp(check: Check, shared: Shared) -> Seen:
    started = time.monotonic()
    connection = connect(check["host"], check["port"], check.timeout)
    milliseconds = (time.monotonic() - started) * 1000
    words = f"{check['host']}:{check['port']} accepts connections"
    with connection:
        try:
            if check["send"] is not None:
                connection.sendall(check["send"].encode())
            if check["expect"] is not None:
                seen = b""
                while not re.search(check["expect"].encode(), seen):
                    connection.settimeout(max(0.05, started + check.timeout - time.monotonic()))
                    part = connection.recv(4096)
                    seen += part
                    if not part or len(seen) > 65536:
                        raise CheckFailed(f"{words}, but answers {seen[:100].decode(errors='replace')!r}")
        except OSError as error:
            raise CheckFailed(f"{words}, but: {error}") from error
    return grade(check, round(milliseconds, 2), " ms", words)


def select(document: Any, expression: str) -> Any:
    """A value of a JSON document by JMESPath; names and numbers joined by dots need no library.

    :raises CannotTell: for any other expression where python3-jmespath is missing.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+|\[\d+\])*", expression):
        for part in re.findall(r"[A-Za-z0-9_-]+", expression):
            if isinstance(document, dict):
                document = document.get(part)
            elif isinstance(document, list) and part.isdigit() and int(part) < len(document):
                document = document[int(part)]
            else:
                return None
        return document
    try:
        import jmespath
    except ImportError as error:
        raise CannotTell(f"{expression!r} needs JMESPath: install python3-jmespath") from error
    return jmespath.search(expression, document)


def fetch(check: Check, url: str, end: float | None = None) -> tuple[int, dict[str, str], bytes, dict[str, float]]:
    """One request on a connection of its own: status, headers in lower case, body, milliseconds by phase.

    :param end: when it must be over, on the monotonic clock; by default the check's timeout from now.
    """
    parts = urllib.parse.urlsplit(url)
    secure = parts.scheme == "https"
    host, port = parts.hostname or "", parts.port or (443 if secure else 80)
    phases: dict[str, float] = {}
    mark = time.monotonic()
    limit = mark + check.timeout if end is None else end

    def lap(name: str) -> None:
        nonlocal mark
        now = time.monotonic()
        phases[name], mark = (now - mark) * 1000, now

    def left() -> float:
        remaining = limit - time.monotonic()
        if remaining <= 0:
            raise CheckFailed(f"{url}: no whole answer within {check.timeout:g} s ({', '.join(phases)} done)")
        return remaining

    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4]
    except OSError as error:
        raise CheckFailed(f"{url}: {error}") from error
    lap("dns")
    connection = connect(str(address[0]), port, left())
    lap("connect")
    name = str(check["host_header"] or host).partition(":")[0]
    try:
        if secure:
            connection.settimeout(left())
            try:
                connection = wrap(check, connection, name)
            except CheckFailed as error:
                raise CheckFailed(f"{url}: {error}") from error
            lap("tls")
        headers = {"Host": check["host_header"] or parts.netloc, "User-Agent": "vmfleet-health", "Accept": "*/*"}
        headers.update({str(key): str(value) for key, value in check["headers"].items()})
        body = check["body_sent"].encode() if check["body_sent"] is not None else b""
        if body:
            headers["Content-Length"] = str(len(body))
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"{check['method']} {target} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items())]
        connection.settimeout(left())
        connection.sendall(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode() + body)
        answer = http.client.HTTPResponse(connection, method=check["method"])
        answer.begin()
        lap("first_byte")
        content = b""
        while len(content) < BODY_LIMIT:
            connection.settimeout(left())
            part = answer.read1(65536)
            if not part:
                break
            content += part
        lap("transfer")
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, content, phases
    except socket.timeout as error:
        raise CheckFailed(f"{url}: no answer within {check.timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise CheckFailed(f"{url}: {error or type(error).__name__}") from error
    finally:
        connection.close()


def http_check(check: Check, shared: Shared) -> Seen:
    url, hops = check["url"], 0
    end = time.monotonic() + check.timeout
    while True:
        status, headers, content, phases = fetch(check, url, end)
        if status not in REDIRECTS or hops >= check["redirects"] or not headers.get("location"):
            break
        url, hops = urllib.parse.urljoin(url, headers["location"]), hops + 1
    text = content.decode(errors="replace")
    wanted = [int(one) for one in check["status"]]
    if status not in wanted:
        raise CheckFailed(f"{url}: status {status} instead of {' or '.join(map(str, wanted))}: {text[:200].strip()}")
    for name, rule in check["response_headers"].items():
        if not matches(headers.get(name.lower()), rule):
            raise CheckFailed(f"{url}: header {name} is {headers.get(name.lower())!r}, wanted {rule}")
    if check["body"] is not None and not re.search(check["body"], text, re.MULTILINE):
        raise CheckFailed(f"{url}: body does not match {check['body']!r}: {text[:200]}")
    if check["json"]:
        try:
            document = json.loads(text)
        except ValueError:
            raise CheckFailed(f"{url}: the body is no JSON: {text[:200]}") from None
        for expression, rule in check["json"].items():
            value = select(document, expression)
            if not matches(value, rule):
                raise CheckFailed(f"{url}: {expression} is {json.dumps(value)[:200]}, wanted {json.dumps(rule)}")
    if check["http2"]:
        _offers_http2(check, url, end)
    total = sum(phases.values())
    return grade(check, round(total, 2), " ms", f"{url}: {status}", phases=phases, latency=total)


def _offers_http2(check: Check, url: str, end: float) -> None:
    parts = urllib.parse.urlsplit(url)
    raw = connect(parts.hostname or "", parts.port or 443, end - time.monotonic())
    name = str(check["host_header"] or parts.hostname).partition(":")[0]
    with wrap(check, raw, name, ["h2", "http/1.1"]) as connection:
        if connection.selected_alpn_protocol() != "h2":
            raise CheckFailed(f"{url}: HTTP/2 is not offered")


def _certificate_of(pem: str, timeout: float) -> tuple[float, list[str]]:
    """End of validity (seconds since 1970) and names, as openssl reads them."""
    ended = run(["openssl", "x509", "-noout", "-enddate", "-ext", "subjectAltName"], stdin=pem, timeout=timeout)
    found = re.search(r"notAfter=(.*)", ended.stdout)
    if not found:
        raise CannotTell(f"openssl cannot read the certificate: {ended.stderr.strip()[-200:]}")
    return ssl.cert_time_to_seconds(found[1]), re.findall(r"(?:DNS|IP Address):([^,\s]+)", ended.stdout)


def tls(check: Check, shared: Shared) -> Seen:
    """A certificate, of a server or of a file: trusted, for the names, and how long it is still good."""
    if bool(check["path"]) == bool(check["port"]):
        raise CannotTell("needs exactly one of path and port")
    where = check["path"] or f"{check['host']}:{check['port']}"
    end = time.monotonic() + check.timeout
    if check["path"]:
        try:
            with open(check["path"], encoding="ascii") as handle:
                pem = handle.read()
            der = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERT") : pem.index("-----END CERT") + 26].strip())
        except FileNotFoundError:
            raise CheckFailed(f"{where} is not there") from None
        except (OSError, ValueError) as error:
            raise CheckFailed(f"{where}: {error}") from error
        if check["ca"] and check["verify_tls"]:
            proof = ["openssl", "verify", "-CAfile", check["ca"], "-untrusted", check["path"], check["path"]]
            outcome = run(proof, timeout=check.timeout)
            if outcome.rc and "has expired" not in outcome.stderr:
                raise CheckFailed(f"{where}: {(outcome.stderr or outcome.stdout).strip()[-200:]}")
    else:
        raw = connect(check["host"], check["port"], check.timeout)
        raw.settimeout(max(0.05, end - time.monotonic()))
        if check["starttls"] == "postgresql":
            # SSLRequest, PostgreSQL protocol 3.0, section "Message Formats".
            try:
                raw.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
                offer = raw.recv(1)
            except OSError as error:
                raw.close()
                raise CheckFailed(f"{where}: {error}") from error
            if offer != b"S":
                raw.close()
                raise CheckFailed(f"{where}: the server offers no TLS")
        with wrap(check, raw, check["server_name"] or check["host"]) as connection:
            der = connection.getpeercert(binary_form=True) or b""
    pem = ssl.DER_cert_to_PEM_cert(der)
    ends, names = _certificate_of(pem, max(0.05, end - time.monotonic()))
    missing = [name for name in check["names"] if name not in names]
    if missing:
        raise CheckFailed(f"{where}: the certificate is not for {', '.join(missing)}, only for {', '.join(names)}")
    days = (ends - time.time()) / 86400
    until = datetime.datetime.fromtimestamp(ends, datetime.timezone.utc).date()
    if days <= 0:
        raise CheckFailed(f"{where}: the certificate expired on {until}")
    data = {"until": str(until)}
    if not check["own"]:
        data["sha256"] = hashlib.sha256(der).hexdigest()
    message = f"{where}: good until {until}"
    if check.warn is None and check.crit is None:
        check.warn, check.crit = 21, 7
    return grade(check, round(days, 1), " days", message, falling=True, data=data)


DNS_TYPES = {"A": 1, "AAAA": 28}


def dns(check: Check, shared: Shared) -> Seen:
    if check["server"]:
        found = _ask_server(check)
    else:
        family = socket.AF_INET6 if check["record"] == "AAAA" else socket.AF_INET
        try:
            found = sorted({str(entry[4][0]) for entry in socket.getaddrinfo(check["query"], None, family)})
        except socket.gaierror as error:
            raise CheckFailed(f"{check['query']}: {error.strerror}") from error
    missing = [address for address in check["expect"] if address not in found]
    if missing or not found:
        raise CheckFailed(f"{check['query']} is {', '.join(found) or 'unknown'}, wanted {', '.join(missing)}")
    return Seen(f"{check['query']} is {', '.join(found)}")


def _ask_server(check: Check) -> list[str]:
    """One question over UDP, RFC 1035 section 4."""
    number = DNS_TYPES[check["record"]]
    labels = b"".join(bytes([len(part)]) + part.encode("idna") for part in check["query"].rstrip(".").split("."))
    packet = b"\x76\x66\x01\x00\x00\x01" + 6 * b"\0" + labels + b"\0" + number.to_bytes(2, "big") + b"\0\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        query.settimeout(check.timeout)
        try:
            query.sendto(packet, (check["server"], check["port"]))
            answer = query.recv(4096)
        except OSError as error:
            raise CheckFailed(f"{check['server']}: {error}") from error
    if answer[:2] != packet[:2] or len(answer) < 12 or answer[3] & 15:
        raise CheckFailed(f"{check['server']} knows no {check['query']} (code {answer[3] & 15})")
    found, at = [], len(packet)
    for _entry in range(int.from_bytes(answer[6:8], "big")):
        while answer[at] and answer[at] < 192:
            at += answer[at] + 1
        at += 2 if answer[at] >= 192 else 1
        kind, size = int.from_bytes(answer[at : at + 2], "big"), int.from_bytes(answer[at + 8 : at + 10], "big")
        value = answer[at + 10 : at + 10 + size]
        if kind == number:
            found.append(socket.inet_ntop(socket.AF_INET if number == 1 else socket.AF_INET6, value))
        at += 10 + size
    return sorted(found)


TYPES = (
    CheckType("tcp", tcp, {
        "host": Key("str", "Address or name.", "127.0.0.1"),
        "port": Key("int", "The port.", required=True),
        "send": Key("str", "What to send."),
        "expect": Key("str", "Regular expression for what must come."),
    }, "A connection. Thresholds: milliseconds until it stands.", target=("host", "port")),
    CheckType("http", http_check, {
        "url": Key("str", "What to ask for.", required=True),
        "method": Key("str", "The method.", "GET"),
        "headers": Key("dict", "Headers to send.", {}),
        "host_header": Key("str", "The site to ask for, where url has an address; also the name in TLS."),
        "body_sent": Key("str", "A body to send."),
        "status": Key("list", "Status codes that are good.", (200,)),
        "body": Key("str", "Regular expression that the body must match."),
        "json": Key("dict", "JMESPath expressions with the matchers for what they select.", {}),
        "response_headers": Key("dict", "Headers of the answer with matchers.", {}),
        "redirects": Key("int", "How many redirects to follow.", 0),
        "http2": Key("bool", "Whether the server must also offer HTTP/2 (by ALPN).", False),
        **TLS_KEYS,
    }, "A request, with dns, connect, tls, first_byte, transfer in ms. Thresholds: their sum.", target=("url",)),
    CheckType("tls", tls, {
        "host": Key("str", "Address or name.", "127.0.0.1"),
        "port": Key("int", "The port."),
        "path": Key("str", "A certificate's file instead."),
        "server_name": Key("str", "The name to ask for and to be verified."),
        "names": Key("list", "Names that the certificate must have.", ()),
        "starttls": Key("str", "A protocol that begins without TLS.", choices=("postgresql",)),
        "own": Key("bool", "Whether other hosts have others, so that the fleet's verdict compares none.", False),
        **TLS_KEYS,
    }, "A certificate. Thresholds: days left (without any: warn 21, crit 7).", target=("host", "port", "path")),
    CheckType("dns", dns, {
        "query": Key("str", "The name to look up.", required=True),
        "record": Key("str", "The type of record.", "A", choices=("A", "AAAA")),
        "server": Key("str", "The server to ask; by default as the system does."),
        "port": Key("int", "Its port.", 53),
        "expect": Key("list", "Addresses that must be among the answers.", ()),
    }, "A name.", target=("query",)),
)  # fmt: skip
