"""Names and TLS: who is answered at all, and how the connection is made."""

from __future__ import annotations

import socket
import ssl
import subprocess

from front_door.asking import H1, HOST, HTTP, HTTPS, OTHER, TLS, ask, context, curl, promise, tls, turn
from front_door.balancer import BALANCER


@promise(9, by=(H1,))
def plain_http_is_redirected_with_path_and_query() -> str:
    """E0-04, E0-20, E3-02."""
    answer = ask("/x/y?a=1&b=%2F", port=HTTP)
    suffix = "" if HTTPS == 443 else f":{HTTPS}"
    assert answer.status == 301, answer.status
    assert answer.header("location") == [f"https://{HOST}{suffix}/x/y?a=1&b=%2F"], answer.header("location")
    return f"301 to {answer.header('location')[0]}"


@promise(9, by=(H1,))
def acme_challenges_are_answered_on_the_plain_port() -> str:
    """E4-09: whichever balancer is asked, what answers challenges gets them."""
    answer = ask("/.well-known/acme-challenge/token", port=HTTP)
    assert answer.told["path"] == "/.well-known/acme-challenge/token"
    return "the challenge is passed on, all else is redirected"


@promise(6, 28)
def unknown_names_are_refused() -> str:
    """E4-07."""
    for port in (HTTP, HTTPS):
        for host in ("evil.test", "127.0.0.1", *([""] if turn.over == H1 else [])):
            status = ask("/", host=host, port=port).status
            assert status == 421 or (host == "" and status == 400), (port, host, status)
    return "421 on both ports"


@promise(26, by=(TLS,))
def only_tls_12_and_13_are_spoken() -> str:
    """E0-03, E3-01."""
    seen = []
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with tls(minimum_version=version, maximum_version=version) as wrapped:
            cipher = (wrapped.cipher() or ("",))[0]
            assert "GCM" in cipher or "CHACHA20" in cipher, cipher
            seen.append(f"{version.name} with {cipher}")
    try:
        with tls(minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1):
            raise AssertionError("TLS 1.1 was accepted")
    except (ssl.SSLError, ConnectionResetError):
        pass
    return f"{', '.join(seen)}; TLSv1_1 refused"


@promise(26, by=(TLS,))
def http_2_is_offered() -> str:
    """E0-30, E4-08."""
    for offered, chosen in ((("h2", "http/1.1"), "h2"), (("http/1.1",), "http/1.1")):
        with tls(alpn=offered) as wrapped:
            assert wrapped.selected_alpn_protocol() == chosen, wrapped.selected_alpn_protocol()
    version = curl(["/"], HOST, "127.0.0.1", "--output", "/dev/null", "--write-out", "%{http_version}")
    assert version == b"2", version
    return "h2 where the client offers it"


@promise(6, by=(TLS,))
def each_site_has_its_own_certificate() -> str:
    seen = {}
    for name in (HOST, OTHER, None):
        with tls(name=name) as wrapped:
            der = wrapped.getpeercert(binary_form=True)
        assert der
        told = subprocess.run(
            ["openssl", "x509", "-noout", "-ext", "subjectAltName"],
            input=ssl.DER_cert_to_PEM_cert(der).encode(),
            capture_output=True,
            check=True,
        ).stdout.decode()
        seen[name] = told.split("DNS:")[1].strip()
    assert seen == {HOST: "host.supernova.test", OTHER: OTHER, None: "host.supernova.test"}, seen
    return f"{OTHER} has its own, others the host's"


@promise(6)
def each_site_has_its_own_service() -> str:
    """E1-04."""
    ports = {host: ask("/only", host=host).told["port"] for host in (HOST, OTHER)}
    assert ports == {HOST: 8081, OTHER: 8082}, ports
    return f"the same path of two names came to {ports}"


@promise(29, by=(TLS,))
def sessions_are_resumed() -> str:
    """E1-11, E4-08: without a responder nothing is said about stapling."""
    made = context(maximum_version=ssl.TLSVersion.TLSv1_2)
    session = None
    for again in (False, True):
        with (
            socket.create_connection(("127.0.0.1", HTTPS), 10) as plain,
            made.wrap_socket(plain, server_hostname=HOST, session=session) as wrapped,
        ):
            wrapped.sendall(f"GET /lb-health HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            while wrapped.recv(4096):
                pass
            assert wrapped.session_reused == again, again
            session = wrapped.session
    assert BALANCER.complaints() == [], BALANCER.complaints()
    return "the second handshake of TLS 1.2 resumed; the check of the configuration has no warning"
