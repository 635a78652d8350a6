"""Ask a balancer of this host what the routing model promises; which balancer answers makes no difference.

usage: suite.py HTTP_PORT HTTPS_PORT

It expects the sites and services of molecule/nginx and two echo_backend.py, a1 and a2, on two addresses. Prints one
line for each promise, with the features (spec) that it proves, and fails if any is broken, or if none was asked.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

HTTP, HTTPS = int(sys.argv[1]), int(sys.argv[2])
HOST, OTHER = "api.supernova.test", "own.supernova.test"
HEADERS = ("strict-transport-security", "x-content-type-options", "x-frame-options", "referrer-policy")
# A promise may tell what it saw.
Check = Callable[[], "str | None"]
PROMISES: list[tuple[tuple[int, ...], Check]] = []


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.body = response.read()
        self.headers = [(name.lower(), value) for name, value in response.getheaders()]

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def told(self) -> dict[str, Any]:
        assert self.status == 200, f"status {self.status}: {self.body[:200]!r}"
        told: dict[str, Any] = json.loads(self.body)
        return told

    def arrived(self, name: str) -> list[str]:
        return [value for key, value in self.told["headers"] if key == name]


def context(**limits: Any) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.set_ciphers("DEFAULT@SECLEVEL=0")
    for name, value in limits.items():
        setattr(made, name, value)
    return made


@contextlib.contextmanager
def tls(name: str | None = HOST, alpn: tuple[str, ...] = (), **limits: Any) -> Iterator[ssl.SSLSocket]:
    made = context(**limits)
    if alpn:
        made.set_alpn_protocols(list(alpn))
    with (
        socket.create_connection(("127.0.0.1", HTTPS), 10) as plain,
        made.wrap_socket(plain, server_hostname=name) as wrapped,
    ):
        yield wrapped


def ask(
    path: str,
    host: str = HOST,
    method: str = "GET",
    port: int = HTTPS,
    body: Any = None,
    chunked: bool = False,
    source: str = "127.0.0.1",
    **headers: str,
) -> Answer:
    connection: http.client.HTTPConnection
    if port == HTTPS:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=30, context=context(), source_address=(source, 0)
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30, source_address=(source, 0))
    sent = {"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            connection.request(method, path, body=body, headers=sent, encode_chunked=chunked)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def over_http_2(path: str, *options: str, sent: bytes = b"") -> tuple[str, str]:
    """The body, and what `--write-out` says, the version without another wish."""
    # HTTP/2 names a host in :authority, so curl has to be told where that host is.
    target = [f"https://{HOST}:{HTTPS}{path}", "--resolve", f"{HOST}:{HTTPS}:127.0.0.1"]
    command = ["curl", "-sk", "--http2", "--write-out", "\n%{http_version}", *options, *target]
    done = subprocess.run(command, input=sent, capture_output=True)
    # 92: the answer came before the body was sent, and the stream was reset after it.
    assert done.returncode in (0, 92), done
    body, said = done.stdout.decode().rsplit("\n", 1)
    return body, said


def service(action: str, *units: str) -> None:
    subprocess.run(["systemctl", action, *units], check=True)


def active(unit: str) -> bool:
    return subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode == 0


def promise(*features: int) -> Callable[[Check], Check]:
    """Note a promise and the numbers of the features that it proves."""

    def note(check: Check) -> Check:
        PROMISES.append((features, check))
        return check

    return note


@promise(9)
def plain_http_is_redirected_with_path_and_query() -> None:
    answer = ask("/x/y?a=1&b=%2F", port=HTTP)
    suffix = "" if HTTPS == 443 else f":{HTTPS}"
    assert answer.status == 301, answer.status
    assert answer.header("location") == [f"https://{HOST}{suffix}/x/y?a=1&b=%2F"], answer.header("location")


@promise(6, 28)
def unknown_names_are_refused() -> None:
    for port in (HTTP, HTTPS):
        for host in ("evil.test", "127.0.0.1", ""):
            status = ask("/", host=host, port=port).status
            assert status == 421 or (host == "" and status == 400), (port, host, status)


@promise(26)
def only_tls_12_and_13_are_spoken() -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with tls(minimum_version=version, maximum_version=version) as wrapped:
            cipher = (wrapped.cipher() or ("",))[0]
            assert "GCM" in cipher or "CHACHA20" in cipher, cipher
    try:
        with tls(minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1):
            raise AssertionError("TLS 1.1 was accepted")
    except (ssl.SSLError, ConnectionResetError):
        pass


@promise()
def http_2_is_spoken() -> None:
    with tls(alpn=("h2", "http/1.1")) as wrapped:
        assert wrapped.selected_alpn_protocol() == "h2", wrapped.selected_alpn_protocol()
    body, version = over_http_2("/over/h2")
    assert (json.loads(body)["path"], version) == ("/over/h2", "2"), (body, version)
    assert json.loads(over_http_2("/", "--request", "POST")[0])["method"] == "POST"


@promise(6)
def each_site_has_its_own_certificate() -> None:
    served = {}
    for name in (HOST, OTHER, None):
        with tls(name=name) as wrapped:
            served[name] = wrapped.getpeercert(binary_form=True)
    assert served[HOST] == served[None] != served[OTHER]


@promise(27)
def security_headers_stand_once_on_every_answer() -> None:
    answers = {
        "200": ask("/"),
        "301": ask("/", port=HTTP),
        "404 of the balancer": ask("/", host=OTHER),
        "404 of the service": ask("/status?404"),
        "411 or 413": ask("/", method="POST", body=b"x" * (11 << 20)),
        "421": ask("/", host="evil.test"),
        "500 of the service": ask("/status?500"),
        "503 of an empty group": ask("/none"),
        "lb-health": ask("/lb-health"),
        "health": ask("/health"),
        "rewritten": ask("/vector/x"),
        "429": [ask("/auth/x", source="127.0.1.9") for _ in range(7)][-1],
    }
    for name, answer in answers.items():
        for header in HEADERS:
            assert len(answer.header(header)) == 1, f"{name} ({answer.status}): {header}: {answer.header(header)}"
        assert answer.header("x-frame-options") == ["DENY"], name


@promise(17)
def the_service_learns_who_asks_and_forgeries_are_replaced() -> None:
    answer = ask(
        "/",
        X_Real_IP="6.6.6.6",
        X_Forwarded_For="6.6.6.6",
        X_Forwarded_Proto="http",
        X_Forwarded_Host="evil.test",
        Forwarded="for=6.6.6.6",
    )
    assert answer.arrived("host")[0].split(":")[0] == HOST, answer.told
    for header in ("x-real-ip", "x-forwarded-for"):
        assert answer.arrived(header) == ["127.0.0.1"], answer.told
    assert answer.arrived("x-forwarded-proto") == ["https"], answer.told
    assert answer.arrived("x-forwarded-host") == [HOST], answer.told
    assert answer.arrived("forwarded") == [], answer.told


@promise(8)
def ordinary_requests_carry_no_connection_header() -> None:
    for path in ("/", "/ws/ordinary", "/vector/x"):
        answer = ask(path)
        assert [value for value in answer.arrived("connection") if value.lower() != "keep-alive"] == [], (
            path,
            answer.told,
        )
        assert answer.arrived("upgrade") == [], (path, answer.told)
    forged = ask(
        "/",
        Upgrade="websocket",
        Connection="Upgrade",
        Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==",
        Sec_WebSocket_Version="13",
    )
    assert forged.arrived("upgrade") == [], forged.body


@promise(8)
def websockets_pass() -> None:
    with tls() as wrapped:
        wrapped.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            piece = wrapped.recv(4096)
            assert piece, head
            head += piece
        assert b" 101 " in head.splitlines()[0], head
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head, head
        for _ in range(3):
            wrapped.sendall(bytes([129, 128 + 5]) + bytes(4) + b"hello")
            assert wrapped.recv(4096) == bytes([129, 5]) + b"hello"
            time.sleep(0.2)


@promise(5, 22)
def paths_match_whole_segments() -> None:
    for asked, seen in {
        "/vector": "/",
        "/vector?q=1": "/?q=1",
        "/vector/": "/",
        "/vector/a/b?q=1": "/a/b?q=1",
        "/vector/a%2Fb%20c": "/a%2Fb%20c",
        "/vectorize": "/vectorize",
        "/vector.json": "/vector.json",
        "/sticky/x": "/sticky/x",
        "/a%2Fb": "/a%2Fb",
    }.items():
        assert ask(asked).told["path"] == seen, (asked, ask(asked).told["path"])
    assert ask("/only/x", host=OTHER).told["path"] == "/only/x"
    assert ask("/onlyx", host=OTHER).status == 404


@promise(1, 3)
def requests_are_spread() -> None:
    assert {ask("/").told["name"] for _ in range(20)} == {"a1", "a2"}
    assert len({ask("/sticky").told["name"] for _ in range(20)}) == 1


@promise(4)
def connections_to_the_service_are_kept() -> None:
    for path in ("/", "/vector/x"):
        ports = {ask(path).told["peer"] for _ in range(60)}
        assert len(ports) < 20, f"{path}: {len(ports)} connections for 60 requests"


@promise(18)
def health_is_the_services_and_lb_health_the_balancers() -> None:
    assert json.loads(ask("/health").body)["host"].split(":")[0] == HOST
    for port in (HTTP, HTTPS):
        answer = ask("/lb-health", host="127.0.0.1", port=port)
        assert (answer.status, answer.body) == (200, b"ok\n"), (answer.status, answer.body)


@promise(1)
def an_empty_group_answers_503() -> None:
    assert ask("/none/x").status == 503


@promise(13)
def bodies_have_a_limit() -> None:
    big = b"x" * (11 << 20)
    assert ask("/", method="POST", body=big).status == 413
    assert ask("/", method="POST", body=iter([big]), chunked=True, Transfer_Encoding="chunked").status in (411, 413)
    for size, refused in ((len(big), True), (0, False)):
        _, status = over_http_2("/", "--upload-file", "-", "--write-out", "\n%{http_code}", sent=big[:size])
        # 000: curl 7 forgets the answer when the stream is reset after it.
        assert (status in ("411", "413", "000")) == refused, (size, status)
    assert ask("/", method="POST", body=big[: 9 << 20]).told["length"] == 9 << 20
    assert ask("/vector/up", method="POST", body=big).told["length"] == len(big)
    assert ask("/unlimited", method="POST", body=iter([big]), chunked=True, Transfer_Encoding="chunked").told[
        "length"
    ] == len(big)


@promise(7)
def slow_answers_are_cut_at_the_routes_timeout() -> None:
    begun = time.monotonic()
    status = ask("/sticky/slow?6", method="POST").status
    assert status == 504, status
    assert 1.5 < time.monotonic() - begun < 4, time.monotonic() - begun
    assert ask("/vector/slow?3").status == 200


def statuses(path: str, count: int, source: str, method: str = "GET") -> list[int]:
    """The statuses of requests one after another on one connection, as quick as they go."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", HTTPS, timeout=30, context=context(), source_address=(source, 0)
    )
    found = []
    for _ in range(count):
        connection.request(method, path, headers={"Host": HOST})
        response = connection.getresponse()
        response.read()
        found.append(response.status)
    connection.close()
    return found


@promise(10)
def a_rate_lets_burst_and_one_pass_then_answers_429() -> str:
    """E0-15, E1-02: of many at once 1 + burst pass, the others get 429, none 503."""
    begun = time.monotonic()
    found = statuses("/rate", 40, "127.0.1.1")
    leaked = int(time.monotonic() - begun) + 1
    assert set(found) == {200, 429}, found
    assert 21 <= found.count(200) <= 21 + leaked, found.count(200)
    assert found[:21] == [200] * 21, found
    assert statuses("/rate", 1, "127.0.1.2") == [200], "another address is concerned"
    assert statuses("/rate", 40, "127.0.5.1") == [200] * 40, "an exempt address is counted"
    return f"{found.count(200)} of 40 at 1/s burst 20"


@promise(11)
def logins_are_limited_to_five_a_minute() -> str:
    """E4-01: the limit is in the site that serves, and the seventh login is the first refused."""
    found = statuses("/auth/login", 7, "127.0.1.3", "POST")
    assert found == [200] * 6 + [429], found
    deadline = time.monotonic() + 20
    while statuses("/auth/login", 1, "127.0.1.3", "POST") != [200]:
        assert time.monotonic() < deadline, "none passes after 12 s"
        time.sleep(1)
    return "the 7th of 7 POSTs got 429, later one passed"


@promise(12)
def ten_requests_of_an_address_may_be_under_way() -> str:
    found: list[int] = []
    askers = [
        threading.Thread(target=lambda: found.append(ask("/downloads/slow?3", source="127.0.1.4").status))
        for _ in range(12)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert sorted(found) == [200] * 10 + [429] * 2, sorted(found)
    return "10 of 12 at a time"


@promise(3)
def clients_stay_on_a_server() -> str:
    """E0-11: clients of one /24 are spread when the balance is hash."""
    assert len({ask("/hash").told["name"] for _ in range(10)}) == 1
    assert {ask("/hash", source=f"127.0.2.{end}").told["name"] for end in range(1, 30)} == {"a1", "a2"}
    first = ask("/cookie")
    (cookie,) = first.header("set-cookie")
    for word in ("httponly", "secure", "samesite=lax"):
        assert word in cookie.lower(), cookie
    given = cookie.split(";")[0]
    later = [ask("/cookie", Cookie=given) for _ in range(10)]
    stays = {answer.told["name"] for answer in later}
    assert len(stays) == 1, stays
    assert all(answer.header("set-cookie") == [] for answer in later)
    assert {ask("/cookie").told["name"] for _ in range(30)} == {"a1", "a2"}
    return "by address and by cookie"


@promise(14)
def texts_are_compressed() -> str:
    small = ask("/gzip/text?500", Accept_Encoding="gzip")
    large = ask("/gzip/text?4000", Accept_Encoding="gzip")
    assert large.header("content-encoding") == ["gzip"], large.headers
    assert "accept-encoding" in ",".join(large.header("vary")).lower(), large.headers
    assert ask("/gzip/text?4000").header("content-encoding") == []
    assert ask("/text?4000", Accept_Encoding="gzip").header("content-encoding") == [], "a route that does not ask"
    return f"4000 bytes in {len(large.body)}; 500 bytes: {small.header('content-encoding') or 'as they are'}"


@promise(16)
def answers_are_kept_apart_by_host_and_person() -> str:
    """E0-09, E1-09, E1-10, E2-08: the status header tells, hosts are kept apart, nobody gets what was for another."""
    path = f"/cached/{time.time_ns()}"

    def seen(**rest: Any) -> tuple[list[str], str]:
        answer = ask(path, **rest)
        return answer.header("x-cache-status"), str(dict(answer.told["headers"])["host"]).split(":")[0]

    personal = seen(Authorization="Basic eDp5")
    assert personal == (["BYPASS"], HOST), personal
    assert seen() == (["MISS"], HOST)
    deadline = time.monotonic() + 5
    while (again := seen()) != (["HIT"], HOST):
        assert time.monotonic() < deadline, again
    assert seen(Cookie="a=b") == (["BYPASS"], HOST)
    assert seen(host=OTHER) == (["MISS"], OTHER)
    assert len(ask(path).header("x-frame-options")) == 1
    return "BYPASS, MISS, HIT; MISS for the other host"


@promise(28)
def other_origins_may_ask_where_they_are_listed() -> str:
    asked: dict[str, Any] = {"Access_Control_Request_Method": "PUT", "Access_Control_Request_Headers": "content-type"}
    allowed = ask("/only", host=OTHER, method="OPTIONS", Origin=f"https://www.{HOST[4:]}", **asked)
    assert allowed.status == 204, allowed.status
    assert allowed.header("access-control-allow-origin") == [f"https://www.{HOST[4:]}"], allowed.headers
    assert "PUT" in allowed.header("access-control-allow-methods")[0], allowed.headers
    plain = ask("/only", host=OTHER, Origin=f"https://www.{HOST[4:]}")
    assert plain.header("access-control-allow-origin") == [f"https://www.{HOST[4:]}"], plain.headers
    assert "Origin" in plain.header("vary"), plain.headers
    for method in ("OPTIONS", "GET"):
        refused = ask("/only", host=OTHER, method=method, Origin="https://evil.test", **asked)
        assert refused.header("access-control-allow-origin") == [], refused.headers
    assert len(plain.header("x-frame-options")) == 1, plain.headers
    return "204 for the listed origin, nothing for another"


@promise(9, 30)
def acme_challenges_are_answered_on_the_plain_port() -> str:
    answer = ask("/.well-known/acme-challenge/token", port=HTTP)
    assert answer.told["path"] == "/.well-known/acme-challenge/token"
    return "the challenge is passed on, all else is redirected"


@promise(29)
def sessions_are_resumed() -> str:
    made = context(maximum_version=ssl.TLSVersion.TLSv1_2)
    session = None
    for turn in range(2):
        with (
            socket.create_connection(("127.0.0.1", HTTPS), 10) as plain,
            made.wrap_socket(plain, server_hostname=HOST, session=session) as wrapped,
        ):
            wrapped.sendall(f"GET /lb-health HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            while wrapped.recv(4096):
                pass
            assert wrapped.session_reused == bool(turn), turn
            session = wrapped.session
    return "the second handshake of TLS 1.2 resumed"


@promise(15, 19)
def files_are_served_and_nothing_beside_them() -> str:
    """E0-05, E0-13, E0-31, E1-07, E1-08, E4-07: one Cache-Control, all headers, no way out of the folder."""
    files = "files.supernova.test"
    if not active("nginx"):
        assert ask("/", host=files).status == 421
        return "refused in preflight for HAProxy"
    script = ask("/static/app.js", host=files, Accept_Encoding="gzip")
    assert script.status == 200
    assert script.header("cache-control") == ["public, max-age=31536000, immutable"], script.headers
    assert script.header("content-encoding") == ["gzip"], script.headers
    for path in ("/", "/some/client/route"):
        page = ask(path, host=files)
        assert (page.status, page.body) == (200, b"<title>app</title>\n"), (path, page.status, page.body)
        assert page.header("cache-control") == ["no-cache"], page.headers
        assert page.header("content-type")[0].startswith("text/html"), page.headers
    for path in (
        "/static/missing.js",
        "/assets/missing.js",
        "/static../secret.txt",
        "/static/../../secret.txt",
        "/static/%2e%2e/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/../app.secret/secret.txt",
    ):
        answer = ask(path, host=files)
        assert answer.status in (400, 404), (path, answer.status)
        assert b"secret" not in answer.body, path
        assert answer.header("cache-control") == [], (path, answer.headers)
    for header in HEADERS:
        assert len(script.header(header)) == 1, header
    return "files, deep links and 404 as they should be"


@promise(2)
def one_dead_server_costs_no_request() -> None:
    time.sleep(float(os.environ.get("FRONT_DOOR_SETTLE", "0")))
    service("stop", "echo-a1-8081")
    try:
        for _ in range(40):
            assert ask("/").told["name"] == "a2"
            assert ask("/", method="POST", body=b"x").told["length"] == 1
    finally:
        service("start", "echo-a1-8081")


@promise(20)
def a_reload_costs_no_request() -> None:
    statuses: list[int] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                statuses.append(ask("/", method="POST", body=b"x").status)
            except OSError as error:
                statuses.append(-(error.errno or 1))

    askers = [threading.Thread(target=keep_asking) for _ in range(4)]
    for asker in askers:
        asker.start()
    balancer = "nginx" if active("nginx") else "haproxy"
    for _ in range(3):
        service("reload", balancer)
        time.sleep(1)
    stop.set()
    for asker in askers:
        asker.join()
    assert len(statuses) > 50, len(statuses)
    assert set(statuses) == {200}, {status: statuses.count(status) for status in set(statuses)}


@promise(18)
def all_dead_is_told_by_health_and_not_by_lb_health() -> None:
    service("stop", "echo-a1-8081", "echo-a2-8081")
    try:
        status = ask("/health").status
        assert status in (502, 503), status
        assert ask("/lb-health").status == 200
        assert ask("/ws").status == 200
        missing = ask("/")
        assert missing.status in (502, 503), missing.status
        assert len(missing.header("x-frame-options")) == 1, missing.headers
    finally:
        service("start", "echo-a1-8081", "echo-a2-8081")
    # nginx gives servers that failed a rest of fail_timeout before it tries them again.
    deadline = time.monotonic() + 40
    while ask("/health").status != 200:
        assert time.monotonic() < deadline, "the servers are back, the balancer does not use them"
        time.sleep(1)


def main() -> int:
    broken = 0
    balancer = "nginx" if active("nginx") else "haproxy"
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    for features, check in PROMISES:
        title = check.__name__.replace("_", " ")
        where = f"{balancer} {release}  feature {', '.join(map(str, features)) or '-'}"
        try:
            seen = check()
            print(f"ok      {where}: {title}{f': {seen}' if seen else ''}")
        except Exception as error:  # noqa: BLE001  any error is a broken promise, and the others are to be asked still
            broken += 1
            print(f"BROKEN  {where}: {title}: {type(error).__name__}: {error}")
    print(f"{len(PROMISES) - broken} of {len(PROMISES)} promises hold")
    return 1 if broken or not PROMISES else 0


if __name__ == "__main__":
    sys.exit(main())
