"""Ask a balancer of this host what the routing model promises; which balancer answers makes no difference.

usage: suite.py HTTP_PORT HTTPS_PORT

It expects the sites and services of molecule/nginx and two echo_backend.py, a1 and a2, on two addresses. Prints what
was seen for each feature (spec), over each protocol, and fails if a promise is broken, or a feature was not asked for.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

HTTP, HTTPS = int(sys.argv[1]), int(sys.argv[2])
HOST, OTHER, FILES = "api.supernova.test", "own.supernova.test", "files.supernova.test"
HEADERS = {
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "strict-origin-when-cross-origin",
    "content-security-policy": "default-src 'self'",
}
SERVERS = {"a1": "127.0.0.11", "a2": "127.0.0.12"}
MEGABYTE = 1 << 20
PROTOCOLS = H1, H2, WS, TLS = "HTTP/1.1", "HTTP/2", "WebSocket", "TLS"
FEATURES = range(1, 30)
# What needs a controller is proved by others.
ELSEWHERE = {
    1: "        a host more in the inventory: tests/integration/test_balancers.py",
    20: "        a broken value: tests/integration/test_balancers.py",
    26: "        an unknown cipher: tests/unit/test_front_door.py",
    81: "        drained and put back: tests/integration/test_balancers.py",
}
# A promise tells what it saw.
Check = Callable[[], str]
PROMISES: list[tuple[tuple[int, ...], tuple[str, ...], Check]] = []
# The protocol that is asked over just now.
over = H1


def promise(*features: int, by: tuple[str, ...] = (H1, H2)) -> Callable[[Check], Check]:
    """Note a promise, the numbers of the features that it proves, and the protocols that it is asked over."""

    def note(check: Check) -> Check:
        PROMISES.append((features, by, check))
        return check

    return note


def client(number: int) -> str:
    """An address of a client that no other run of this suite and no other protocol has used up a limit of."""
    return f"127.{20 + os.getpid() % 200}.{PROTOCOLS.index(over)}.{number}"


class Answer:
    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.body = body
        self.headers = [(name.lower(), value) for name, value in headers]

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
    """One request on a connection of its own.

    :param body: bytes, or an iterator of them for a body of undeclared length (`chunked`).
    """
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if port == HTTPS and over == H2:
        options = [word for name, value in sent.items() for word in ("--header", f"{name}: {value}")]
        if chunked:
            options += ["--upload-file", "-"]
        elif body is not None:
            options += ["--data-binary", "@-"]
        options += ["--head"] if method == "HEAD" else ["--request", method]
        found = curl([path], host, source, *options, "--include", body=b"".join(body) if chunked else body)
        head, _, rest = found.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        if not status:
            # curl 7 forgets the answer when the stream is reset after it.
            return Answer(0, [], b"")
        assert status.startswith("HTTP/2 "), status
        named = [line.partition(": ") for line in lines]
        return Answer(int(status.split()[1]), [(name, value) for name, _, value in named], rest)
    connection: http.client.HTTPConnection
    if port == HTTPS:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=60, context=context(), source_address=(source, 0)
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            connection.request(method, path, body=body, headers={"Host": host, **sent}, encode_chunked=chunked)
        response = connection.getresponse()
        return Answer(response.status, response.getheaders(), response.read())
    finally:
        connection.close()


def curl(paths: list[str], host: str, source: str, *options: str, body: bytes | None = None) -> bytes:
    """What curl prints for requests over HTTP/2, which Python does not speak; all on one connection."""
    # HTTP/2 names a host in :authority, so curl has to be told where that host is.
    command = ["curl", "-sk", "--http2", "--path-as-is", "--max-time", "120", "--interface", source]
    command += ["--resolve", f"{host}:{HTTPS}:127.0.0.1", *options]
    command += [f"https://{host}:{HTTPS}{path}" for path in paths]
    done = subprocess.run(command, input=body, capture_output=True)
    # 92: the answer came before the body was sent, and the stream was reset after it.
    assert done.returncode in (0, 92), (done.returncode, done.stderr, done.stdout[:500])
    return done.stdout


def many(
    path: str, count: int, source: str = "127.0.0.1", method: str = "GET", at_once: bool = False
) -> list[tuple[int, bytes]]:
    """Status and body of so many requests on one connection; at once over HTTP/2, if asked for, and without bodies."""
    if over != H2:
        return many_over_http_1(path, count, source, method)
    options = ["--parallel", "--parallel-max", str(count), "--output", "/dev/null"] if at_once else []
    options += ["--request", method, "--write-out", "\x1e%{http_code}\x1f"]
    found = curl([f"{path}{'&' if '?' in path else '?'}[1-{count}]"], HOST, source, *options)
    answers = [answer.split(b"\x1e") for answer in found.split(b"\x1f")[:-1]]
    return [(int(status), body) for body, status in answers]


def many_over_http_1(path: str, count: int, source: str = "127.0.0.1", method: str = "GET") -> list[tuple[int, bytes]]:
    connection = http.client.HTTPSConnection(
        "127.0.0.1", HTTPS, timeout=60, context=context(), source_address=(source, 0)
    )
    found = []
    for number in range(1, count + 1):
        connection.request(method, f"{path}{'&' if '?' in path else '?'}{number}", headers={"Host": HOST})
        response = connection.getresponse()
        found.append((response.status, response.read()))
    connection.close()
    return found


def statuses(path: str, count: int, source: str = "127.0.0.1", method: str = "GET", at_once: bool = False) -> list[int]:
    return [status for status, _ in many(path, count, source, method, at_once)]


def names(path: str, count: int, source: str = "127.0.0.1") -> Counter[str]:
    """How many of so many requests each server answered."""
    return Counter(json.loads(body)["name"] for _, body in many(path, count, source))


class Steady(threading.Thread):
    """Requests at a constant rate for some seconds, every tenth of them a POST; over HTTP/2 on few connections."""

    def __init__(self, path: str, rate: int, seconds: float) -> None:
        super().__init__()
        self.path, self.rate, self.count = path, rate, int(rate * seconds)
        self.found: list[int] = []
        self.start()

    def run(self) -> None:
        if over == H2:
            crew = [
                threading.Thread(target=self.paced, args=(self.rate * 9 // 10, self.count * 9 // 10)),
                threading.Thread(target=self.paced, args=(self.rate // 10, self.count // 10, "--data", "x")),
            ]
        else:
            begun = time.monotonic()
            crew = [threading.Thread(target=self.turn, args=(begun, first, 8)) for first in range(8)]
        for one in crew:
            one.start()
        for one in crew:
            one.join()

    def paced(self, rate: int, count: int, *options: str) -> None:
        options += ("--rate", f"{rate}/s", "--output", "/dev/null", "--write-out", "%{http_code}\n")
        self.found += map(int, curl([f"{self.path}?[1-{count}]"], HOST, "127.0.0.1", *options).split())

    def turn(self, begun: float, first: int, step: int) -> None:
        for number in range(first, self.count, step):
            time.sleep(max(0.0, begun + number / self.rate - time.monotonic()))
            try:
                post = number % 10 == 9
                self.found.append(ask(self.path, method="POST" if post else "GET", body=b"x" if post else None).status)
            except (OSError, http.client.HTTPException) as error:
                self.found.append(-(getattr(error, "errno", None) or 1))

    def all_well(self) -> str:
        self.join()
        counts = Counter(self.found)
        assert self.count - 2 <= len(self.found) and set(counts) == {200}, counts
        return f"{len(self.found)} requests at {self.rate}/s, none lost"


class Socket:
    """A WebSocket."""

    def __init__(self, path: str = "/ws") -> None:
        plain = socket.create_connection(("127.0.0.1", HTTPS), 30)
        begun = time.monotonic()
        self.wrapped = context().wrap_socket(plain, server_hostname=HOST)
        self.wrapped.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            piece = self.wrapped.recv(4096)
            assert piece, head
            head += piece
        self.seconds = time.monotonic() - begun
        assert b" 101 " in head.splitlines()[0], head
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head, head
        self.server = re.search(rb"(?mi)^x-server: (\w+)", head)[1].decode()  # type: ignore[index]

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.wrapped.close()

    def echoes(self) -> None:
        self.wrapped.sendall(bytes([129, 128 + 5]) + bytes(4) + b"hello")
        assert self.wrapped.recv(4096) == bytes([129, 5]) + b"hello"


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

    def up(self, upstream: str, server: str) -> bool:
        """Whether active checks find it well."""
        lines = [line.split() for line in self.socket(f"show servers state {upstream}").splitlines()[2:] if line]
        return next(line[5] for line in lines if line[3] == server) == "2"

    def logged(self, marker: str) -> list[str]:
        """Lines of the log of requests that hold a marker."""
        if self.is_nginx:
            log = run("cat", "/var/log/nginx/access.log")
        else:
            log = run("journalctl", "-t", "haproxy", "--no-pager", "-o", "cat", "--since", "-5min")
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


BALANCER = Balancer()


def until(seconds: float, what: str, check: Callable[[], Any]) -> float:
    """Wait for something; returns the seconds that it took."""
    begun = time.monotonic()
    while not check():
        assert time.monotonic() < begun + seconds, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - begun


def all_serve() -> bool:
    """Whether the balancer uses all servers."""
    found = {json.loads(body).get("name") for status, body in many_over_http_1("/", 8) if status == 200}
    return found == set(SERVERS)


@contextlib.contextmanager
def without(*units: str) -> Iterator[None]:
    """Services stopped meanwhile; afterwards the balancer uses them again."""
    run("systemctl", "stop", *units)
    try:
        yield
    finally:
        run("systemctl", "start", *units)
        until(90, "the servers are back, and the balancer uses them", all_serve)


@contextlib.contextmanager
def frozen(unit: str) -> Iterator[None]:
    """A service whose kernel takes connections and that answers nothing."""
    run("systemctl", "kill", f"--signal={signal.SIGSTOP.name}", unit)
    try:
        yield
    finally:
        run("systemctl", "kill", f"--signal={signal.SIGCONT.name}", unit)
        until(90, "the server goes on, and the balancer uses it", all_serve)


@contextlib.contextmanager
def marked(name: str, what: str, value: str = "") -> Iterator[None]:
    """A server that echo_backend.py finds marked as broken or slow."""
    mark = f"/run/echo-{name}-{what}"
    with open(mark, "w") as written:
        written.write(value)
    try:
        yield
    finally:
        os.unlink(mark)


@contextlib.contextmanager
def unreachable(name: str, port: int) -> Iterator[None]:
    """An address where nothing answers, as that of a host without power: its queue is full, so packets are dropped."""
    with without(f"echo-{name}-{port}"), contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind((SERVERS[name], port))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((SERVERS[name], port))
        yield


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
        for host in ("evil.test", "127.0.0.1", *([""] if over == H1 else [])):
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


@promise(27)
def security_headers_stand_once_on_every_answer() -> str:
    """E0-05, E0-06, E1-08, E4-03, E4-06."""
    answers = {
        "200": ask("/"),
        "301": ask("/", port=HTTP),
        "404 of the balancer": ask("/", host=OTHER),
        "404 of the service": ask("/status?404"),
        "413 of the balancer": ask("/small", method="POST", body=b"x" * 4096),
        "421": ask("/", host="evil.test"),
        "500 of the service": ask("/status?500"),
        "502 of the service": ask("/status?502"),
        "503 of an empty group": ask("/none"),
        "lb-health": ask("/lb-health"),
        "health": ask("/health"),
        "rewritten": ask("/vector/x"),
        "429": [ask("/auth/x", source=client(9)) for _ in range(7)][-1],
    }
    for name, answer in answers.items():
        assert name[:3] in (str(answer.status), "lb-", "hea", "rew"), (name, answer.status)
        for header, value in HEADERS.items():
            assert answer.header(header) == [value], f"{name} ({answer.status}): {header}: {answer.header(header)}"
    return f"{len(HEADERS)} headers once, as configured, on {len(answers)} kinds of answers"


@promise(17)
def the_service_learns_who_asks_and_forgeries_are_replaced() -> str:
    """E0-21, E1-14."""
    answer = ask(
        "/",
        source=client(17),
        X_Real_IP="6.6.6.6",
        X_Forwarded_For="6.6.6.6",
        X_Forwarded_Proto="http",
        X_Forwarded_Host="evil.test",
        Forwarded="for=6.6.6.6",
    )
    assert answer.arrived("host")[0].split(":")[0] == HOST, answer.told
    for header in ("x-real-ip", "x-forwarded-for"):
        assert answer.arrived(header) == [client(17)], answer.told
    assert answer.arrived("x-forwarded-proto") == ["https"], answer.told
    assert answer.arrived("x-forwarded-host") == [HOST], answer.told
    assert answer.arrived("forwarded") == [], answer.told
    return f"{client(17)} and https, in place of 6.6.6.6 and http"


@promise(8)
def ordinary_requests_carry_no_connection_header() -> str:
    """E0-07."""
    paths = ("/", "/ws/ordinary", "/vector/x")
    for path in paths:
        answer = ask(path)
        assert [value for value in answer.arrived("connection") if value.lower() != "keep-alive"] == [], (
            path,
            answer.told,
        )
        assert answer.arrived("upgrade") == [], (path, answer.told)
    if over == H1:
        forged = ask(
            "/",
            Upgrade="websocket",
            Connection="Upgrade",
            Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==",
            Sec_WebSocket_Version="13",
        )
        assert forged.arrived("upgrade") == [], forged.body
    return f"none on {', '.join(paths)}, nor an upgrade where the route has none"


@promise(8, 20, by=(WS,))
def websockets_pass_and_outlive_a_reload() -> str:
    """E0-21, E1-06."""
    with Socket() as standing:
        for turn in range(3):
            standing.echoes()
            if turn == 0:
                BALANCER.reload()
            time.sleep(1)
    return f"101 after {1000 * standing.seconds:.0f} ms, 3 messages came back, a reload between them"


@promise(2, 8, by=(WS,))
def a_dead_websocket_server_is_passed_over() -> str:
    """E4-04."""
    taken = {}
    for fault, fails in (("refused", without("echo-a1-8082")), ("unreachable", unreachable("a1", 8082))):
        with fails:
            found = []
            for _ in range(6):
                with Socket() as made:
                    made.echoes()
                    found.append(made)
        assert {made.server for made in found} == {"a2"}, fault
        taken[fault] = max(made.seconds for made in found)
        assert taken[fault] < 5, taken
    return "longest handshake " + ", ".join(f"{seconds:.2f} s {fault}" for fault, seconds in taken.items())


@promise(5, 22)
def paths_match_whole_segments() -> str:
    """E0-16, E0-17."""
    wanted = {
        "/vector": "/",
        "/vector?q=1": "/?q=1",
        "/vector/": "/",
        "/vector/a/b?q=1": "/a/b?q=1",
        "/vector/a%2Fb%20c": "/a%2Fb%20c",
        "/vectorize": "/vectorize",
        "/vector.json": "/vector.json",
        "/sticky/x": "/sticky/x",
        "/a%2Fb": "/a%2Fb",
    }
    seen = {asked: ask(asked).told["path"] for asked in wanted}
    assert seen == wanted, seen
    assert ask("/only/x", host=OTHER).told["path"] == "/only/x"
    assert ask("/onlyx", host=OTHER).status == 404
    return "/vector/a/b arrives as /a/b, /vectorize as it is, what no route has is 404"


@promise(22)
def routes_lead_to_their_groups() -> str:
    ports = {path: ask(path).told["port"] for path in ("/", "/vector", "/only", "/ws/x")}
    assert ports == {"/": 8081, "/vector": 8081, "/only": 8081, "/ws/x": 8082}, ports
    return f"{ports}"


@promise(1)
def the_servers_are_the_members_of_the_group() -> str:
    """E0-12."""
    listed = {port: BALANCER.servers(upstream) for upstream, port in (("api", 8081), ("ws", 8082))}
    for port, endpoints in listed.items():
        assert endpoints == {f"{address}:{port}" for address in SERVERS.values()}, listed
    found = names("/", 300)
    assert set(found) == set(SERVERS), found
    return f"lists {', '.join(sorted(listed[8081]))}; 300 GETs: {dict(sorted(found.items()))}"


@promise(1)
def an_empty_group_answers_503() -> str:
    status = ask("/none/x").status
    assert status == 503, status
    return "503"


@promise(4)
def connections_to_the_service_are_kept() -> str:
    """E0-08, E1-05."""
    seen = {}
    for path, count in {
        "/": 1000,
        "/vector/x": 1000,
        "/hash": 100,
        "/cookie": 100,
        "/gzip": 100,
        "/stream": 100,
    }.items():
        told = [json.loads(body) for _, body in many(path, count)]
        opened = {(answer["name"], answer["peer"]) for answer in told}
        assert len(opened) < min(100, count // 5), f"{path}: {len(opened)} connections for {count} requests"
        seen[path] = len(opened)
    return f"connections opened for 1000 requests: {seen['/']}, below /vector/ {seen['/vector/x']}; others {seen}"


@promise(22, by=(H1,))
def the_idle_server_is_preferred() -> str:
    answers: list[Answer] = []
    waiting = threading.Thread(target=lambda: answers.append(ask("/slow?4")))
    waiting.start()
    time.sleep(1)
    quick = names("/", 20)
    waiting.join()
    busy = answers[0].told["name"]
    assert quick[busy] <= 1, (busy, quick)
    return f"with a request under way on {busy}, of 20: {dict(quick)}"


@promise(3, 22)
def clients_stay_on_a_server() -> str:
    """E0-11, E4-05: clients of one /24 are spread when the balance is hash."""
    for path in ("/sticky", "/hash"):
        assert len(names(path, 50)) == 1, path
    assert {ask("/hash", source=f"127.0.2.{end}").told["name"] for end in range(1, 15)} == set(SERVERS)
    first = ask("/cookie")
    (cookie,) = first.header("set-cookie")
    for word in ("httponly", "secure", "samesite=lax"):
        assert word in cookie.lower(), cookie
    given = cookie.split(";")[0]
    later = [ask("/cookie", Cookie=given) for _ in range(5)]
    stays = {answer.told["name"] for answer in later}
    assert len(stays) == 1, stays
    assert all(answer.header("set-cookie") == [] for answer in later)
    assert set(names("/cookie", 30)) == set(SERVERS)
    return "50 of 50 by address, 5 of 5 by cookie; a /24 is spread by hash"


@promise(3, by=(H1,))
def clients_of_a_stopped_server_move_together() -> str:
    was = {path: next(iter(names(path, 5))) for path in ("/sticky", "/hash")}
    moved = {}
    for path, server in was.items():
        with without(f"echo-{server}-8081"):
            found = many(path, 50)
            assert {status for status, _ in found} == {200}, (path, Counter(status for status, _ in found))
            (moved[path],) = {json.loads(body)["name"] for _, body in found}
        assert moved[path] != server
    return ", ".join(f"{path}: 50 of 50 from {was[path]} to {moved[path]}" for path in was)


@promise(18)
def health_is_the_services_and_lb_health_the_balancers() -> str:
    """E4-02, E4-28."""
    assert json.loads(ask("/health").body)["host"].split(":")[0] == HOST
    for port in (HTTP, HTTPS):
        answer = ask("/lb-health", host="127.0.0.1", port=port)
        assert (answer.status, answer.body) == (200, b"ok\n"), (answer.status, answer.body)
    return "/health comes from the service, /lb-health from the balancer for every name and port"


@promise(18, 21)
def requests_are_logged_once_and_health_not_at_all() -> str:
    """E0-18: nothing was logged for want of log global."""
    mark = f"mark{time.time_ns()}"
    for path in ("/health", "/lb-health"):
        assert ask(f"{path}?{mark}").status == 200
    many(f"/?{mark}", 50)
    until(10, "50 lines in the log", lambda: len(BALANCER.logged(mark)) >= 50)
    lines = BALANCER.logged(mark)
    assert len(lines) == 50 and not any("health" in line for line in lines), lines
    return "50 lines for 50 requests, none for health"


@promise(13)
def bodies_have_a_limit() -> str:
    """E0-14."""
    # 0: curl 7 forgets the answer when the stream is reset after it.
    refused = (413,) if over == H1 else (413, 0)
    unknown = (411, *refused)
    assert ask("/", method="POST", body=b"x" * (11 * MEGABYTE)).status in refused
    assert ask("/", method="POST", body=b"x" * (9 * MEGABYTE)).told["length"] == 9 * MEGABYTE
    assert ask("/vector/up", method="POST", body=b"x" * (11 * MEGABYTE)).told["length"] == 11 * MEGABYTE
    assert ask("/vector/up", method="POST", body=b"x" * (51 * MEGABYTE)).status in refused
    chunked: dict[str, Any] = {"method": "POST", "chunked": True}
    if over == H1:
        chunked["Transfer_Encoding"] = "chunked"
    assert ask("/", body=iter([b"x" * (11 * MEGABYTE)]), **chunked).status in unknown
    big = ask("/unlimited", body=iter([b"x" * (11 * MEGABYTE)]), **chunked)
    assert big.told["length"] == 11 * MEGABYTE
    assert ask("/", body=iter([b""]), **chunked).status == 200
    return "11 MB: 413 at /, 200 at /vector; 51 MB: 413; of undeclared length: refused at /, 200 without a limit"


@promise(7, by=(H1,))
def slow_answers_are_cut_at_the_routes_timeout() -> str:
    """E0-32, E1-41: tries are bounded."""
    taken = {}
    for method, path, tries in (("POST", "/sticky/slow?30", 1), ("GET", "/sticky/slow?30", 3)):
        begun = time.monotonic()
        status = ask(path, method=method).status
        taken[method] = time.monotonic() - begun
        assert status == 504, (method, status)
        assert 1.5 < taken[method] < 2 * tries + 5, taken
    assert ask("/vector/slow?3").status == 200
    return f"at 2 s: POST {taken['POST']:.1f} s, GET on all servers {taken['GET']:.1f} s; /vector 200 after 3 s"


@promise(7, by=(H1,))
def health_gives_up_after_two_seconds_a_server() -> str:
    with marked("a1", "slow", "3"), marked("a2", "slow", "3"):
        begun = time.monotonic()
        status = ask("/health").status
        taken = time.monotonic() - begun
    until(90, "the servers are well again", all_serve)
    # HAProxy may have taken them out by then.
    assert status in (503, 504), status
    assert taken < 3 * 2 + 4, taken
    return f"{status} after {taken:.1f} s of a service that takes 3 s"


@promise(7, by=(H1,))
def slow_requests_take_no_server_out() -> str:
    """E0-32: with all servers of a group resting, nginx answered 502."""
    for path in ("/sticky", "/quick"):
        slow = [threading.Thread(target=ask, args=(f"{path}/slow?5",)) for _ in range(10)]
        for asker in slow:
            asker.start()
        for asker in slow:
            asker.join()
        found = Counter(statuses(path, 30))
        assert set(found) == {200}, (path, found)
    return "after ten slow ones 30 of 30 at once on each of two routes"


@promise(7, by=(H1,))
def buffers_are_as_declared() -> str:
    """An answer's head of more than buffer_size is refused by nginx, and passed by HAProxy's 16k."""
    if BALANCER.is_nginx:
        shown = run("nginx", "-T")
        for line in ("proxy_buffer_size 4096;", "proxy_buffers 8 4096;", "proxy_busy_buffers_size 8192;"):
            assert line in shown, line
        return "nginx -T: 4k, 8 of 4k, 8k busy"
    size = next(line for line in BALANCER.socket("show info typed").splitlines() if "Maxconn" in line)
    assert size.endswith(":4096"), size
    return "HAProxy: none to declare but its own of 16k; maxconn 4096"


@promise(10)
def a_rate_lets_burst_and_one_pass_then_answers_429() -> str:
    """E0-15, E0-19, E1-02: of many at once 1 + burst pass, the others get 429, none 503."""
    begun = time.monotonic()
    found = statuses("/rate", 40, client(1), at_once=True)
    leaked = int(time.monotonic() - begun) + 1
    assert set(found) == {200, 429}, found
    assert 21 <= found.count(200) <= 21 + leaked, found.count(200)
    assert over == H2 or found[:21] == [200] * 21, found
    assert statuses("/rate", 1, client(2)) == [200], "another address is concerned"
    assert statuses("/rate", 40, "127.0.5.1") == [200] * 40, "an exempt address is counted"
    until(10, "each refusal is logged", lambda: len(BALANCER.refusals(client(1))) >= found.count(429))
    return f"{found.count(200)} of 40 at 1/s burst 20, {found.count(429)} got 429 and a line in the log"


@promise(11)
def logins_are_limited_to_five_a_minute() -> str:
    """E4-01: the limit is in the site that serves, and the seventh login is the first refused."""
    found = statuses("/auth/login", 7, client(3), "POST")
    assert found == [200] * 6 + [429], found
    if over == H1:
        until(20, "one passes after 12 s", lambda: statuses("/auth/login", 1, client(3), "POST") == [200])
        return "the 7th of 7 POSTs got 429, a later one passed"
    return "the 7th of 7 POSTs got 429"


@promise(12)
def ten_requests_of_an_address_may_be_under_way() -> str:
    """E1-12: over HTTP/2 each stream counts."""
    found: list[int] = []
    if over == H2:
        found = statuses("/downloads/slow?3", 12, client(4), at_once=True)
    else:
        askers = [
            threading.Thread(target=lambda: found.append(ask("/downloads/slow?3", source=client(4)).status))
            for _ in range(12)
        ]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    assert sorted(found) == [200] * 10 + [429] * 2, sorted(found)
    return "10 of 12 at a time"


@promise(24)
def twenty_in_ten_seconds_pass_and_the_next_is_answered_429() -> str:
    """E0-19: it is an answer with a body, not a reset."""
    begun = time.monotonic()
    found = many("/window", 40, client(5))
    leaked = int(2 * (time.monotonic() - begun)) + 1
    passed = [status for status, _ in found].index(429)
    assert 20 <= passed <= 20 + leaked, (passed, leaked)
    assert {status for status, _ in found} == {200, 429}
    bodies = {len(body) for status, body in found if status == 429}
    assert min(bodies) > 0, bodies
    assert statuses("/window", 1, client(6)) == [200], "another address is concerned"
    seen = f"{passed} passed, then 429 with {max(bodies)} bytes"
    if BALANCER.is_nginx:
        return f"{seen}; nginx has no table to show"
    (entry,) = [line for line in BALANCER.socket("show table api_window").splitlines() if client(5) in line]
    return f"{seen}; in the table: {entry.partition(': ')[2]}"


@promise(14)
def texts_are_compressed() -> str:
    small = ask("/gzip/json?500", Accept_Encoding="gzip")
    large = ask("/gzip/json?2048", Accept_Encoding="gzip")
    picture = ask("/gzip/png?4000", Accept_Encoding="gzip")
    assert large.header("content-encoding") == ["gzip"], large.headers
    assert "accept-encoding" in ",".join(large.header("vary")).lower(), large.headers
    assert picture.header("content-encoding") == [], picture.headers
    # HAProxy knows no least size.
    assert small.header("content-encoding") == ([] if BALANCER.is_nginx else ["gzip"]), small.headers
    assert ask("/gzip/text?4000", Accept_Encoding="gzip").header("content-encoding") == ["gzip"]
    assert ask("/gzip/text?4000").header("content-encoding") == []
    assert ask("/text?4000", Accept_Encoding="gzip").header("content-encoding") == [], "a route that does not ask"
    seen = f"JSON of 2048 bytes in {len(large.body)}, with Vary; png as it is"
    return f"{seen}; JSON of 500 bytes {'as it is' if BALANCER.is_nginx else 'too'}"


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
    until(5, "a hit", lambda: seen() == (["HIT"], HOST))
    assert seen(Cookie="a=b") == (["BYPASS"], HOST)
    assert seen(host=OTHER) == (["MISS"], OTHER)
    assert len(ask(path).header("x-frame-options")) == 1
    return "BYPASS, MISS, HIT; MISS for the other host"


@promise(28)
def other_origins_may_ask_where_they_are_listed() -> str:
    """E3-03."""
    asked: dict[str, Any] = {"Access_Control_Request_Method": "PUT", "Access_Control_Request_Headers": "content-type"}
    allowed = ask("/only", host=OTHER, method="OPTIONS", Origin=f"https://www.{HOST[4:]}", **asked)
    assert allowed.status == 204, allowed.status
    assert allowed.header("access-control-allow-origin") == [f"https://www.{HOST[4:]}"], allowed.headers
    assert "PUT" in allowed.header("access-control-allow-methods")[0], allowed.headers
    plain = ask("/only", host=OTHER, Origin=f"https://www.{HOST[4:]}")
    assert plain.header("access-control-allow-origin") == [f"https://www.{HOST[4:]}"], plain.headers
    assert "Origin" in ",".join(plain.header("vary")), plain.headers
    for method in ("OPTIONS", "GET"):
        refused = ask("/only", host=OTHER, method=method, Origin="https://evil.test", **asked)
        assert refused.header("access-control-allow-origin") == [], refused.headers
    assert len(plain.header("x-frame-options")) == 1, plain.headers
    return "204 for the listed origin, nothing for another; Content-Security-Policy on all answers"


@promise(29, by=(TLS,))
def sessions_are_resumed() -> str:
    """E1-11, E4-08: without a responder nothing is said about stapling."""
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
    assert BALANCER.complaints() == [], BALANCER.complaints()
    return "the second handshake of TLS 1.2 resumed; the check of the configuration has no warning"


@promise(25, by=(H1,))
def statistics_are_closed() -> str:
    """E1-13."""
    port = 8080 if BALANCER.is_nginx else 8404
    outside = run("hostname", "-I").split()[0]
    with socket.socket() as probe:
        probe.settimeout(5)
        assert probe.connect_ex((outside, port)) != 0, f"{outside}:{port} is open"
    if BALANCER.is_nginx:
        return f"nginx has no page; its counters are at 127.0.0.1:{port}, {outside}:{port} is closed"
    seen = []
    for given in ({}, {"Authorization": "Basic b3BlcmF0b3I6b25seS1mb3ItdGVzdHM="}):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/stats", headers=given)
        response = connection.getresponse()
        seen.append((response.status, response.getheader("refresh")))
        response.read()
    assert seen == [(401, None), (200, "30")], seen
    return f"401 without credentials, 200 with them and a refresh of 30 s; {outside}:{port} is closed"


@promise(15, 19)
def files_are_served_and_nothing_beside_them() -> str:
    """E0-05, E0-13, E0-31, E1-07, E1-08, E4-07: one Cache-Control, all headers, no way out of the folder."""
    if not BALANCER.is_nginx:
        assert ask("/", host=FILES).status == 421
        return "HAProxy serves no files, preflight refuses such a route"
    script = ask("/static/app.js", host=FILES, Accept_Encoding="gzip")
    assert script.status == 200
    assert script.header("cache-control") == ["public, max-age=31536000, immutable"], script.headers
    assert script.header("content-encoding") == ["gzip"], script.headers
    for path in ("/", "/some/client/route"):
        page = ask(path, host=FILES)
        assert (page.status, page.body) == (200, b"<title>app</title>\n"), (path, page.status, page.body)
        assert page.header("cache-control") == ["no-cache"], page.headers
        assert page.header("content-type")[0].startswith("text/html"), page.headers
        assert page.header("content-security-policy") == [HEADERS["content-security-policy"]], page.headers
    for path in (
        "/static/missing.js",
        "/assets/missing.js",
        "/static../secret.txt",
        "/static/../../secret.txt",
        "/static/%2e%2e/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/../app.secret/secret.txt",
    ):
        answer = ask(path, host=FILES)
        assert answer.status in (400, 404), (path, answer.status)
        assert b"secret" not in answer.body, path
        assert answer.header("cache-control") == [], (path, answer.headers)
    for header, value in HEADERS.items():
        assert script.header(header) == [value], header
    return "one Cache-Control of a year, all security headers; deep links get index.html; 404 beside the folder"


@promise(2)
def one_stopped_server_costs_no_request() -> str:
    load = Steady("/", 50, 6)
    time.sleep(1)
    with without("echo-a1-8081"):
        time.sleep(2)
    return load.all_well()


@promise(2, by=(H1,))
def a_server_that_says_nothing_costs_no_get() -> str:
    """E0-10: with the shared counters of the zone few requests meet it; each is done within its timeouts."""

    def timed(count: int) -> list[tuple[float, str]]:
        found = []
        for _ in range(count):
            begun = time.monotonic()
            name = ask("/quick").told["name"]
            found.append((time.monotonic() - begun, name))
        return found

    usual = max(timed(5))[0]
    seen = []
    # timeout_connect is 1 s, timeout_read 2 s.
    for fault, limit, fails in (("unreachable", 1, unreachable("a1", 8081)), ("frozen", 2, frozen("echo-a1-8081"))):
        with fails:
            found = timed(20)
        assert {name for _, name in found} == {"a2"}, fault
        longest = max(found)[0]
        assert longest < 3 * limit + 4 + 3 * usual, (fault, longest, usual)
        waited = sum(seconds > limit for seconds, _ in found)
        seen.append(f"{fault}: 20 of 20, {waited} had to wait, the longest {longest:.1f} s")
    return "; ".join(seen)


@promise(20)
def a_reload_costs_no_request() -> str:
    load = Steady("/", 100, 5)
    for _ in range(3):
        time.sleep(1)
        BALANCER.reload()
    return f"{load.all_well()} in 3 reloads"


@promise(23, by=(H1,))
def a_server_that_is_not_ready_is_taken_out() -> str:
    """E4-28: checks name a host of the site."""
    if BALANCER.is_nginx:
        return "nginx has no active checks; it finds a broken server by the requests that fail"
    assert ask("/").told["asked_for"] == [HOST], ask("/").told["asked_for"]
    with marked("a1", "broken"):
        down = until(15, "a1 is DOWN", lambda: not BALANCER.up("api", "a1"))
        assert set(names("/", 20)) == {"a2"}
    up = until(15, "a1 is UP", lambda: BALANCER.up("api", "a1"))
    until(10, "a1 serves", all_serve)
    return f"DOWN after {down:.1f} s of 503, UP after {up:.1f} s; checks ask for {HOST}"


@promise(18, 27, by=(H1,))
def all_dead_is_told_by_health_and_not_by_lb_health() -> str:
    """E4-02."""
    with without("echo-a1-8081", "echo-a2-8081"):
        status = ask("/health").status
        assert status in (502, 503), status
        assert ask("/lb-health").status == 200
        with Socket() as other:
            other.echoes()
        for path in ("/", "/hash"):
            missing = ask(path)
            assert missing.status in (502, 503), missing.status
            for header, value in HEADERS.items():
                assert missing.header(header) == [value], (missing.status, header, missing.header(header))
    assert ask("/health").status == 200
    return f"all stopped: /health {status}, with each header once, /lb-health 200, other services too; then 200 again"


def main() -> int:
    global over
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    report: dict[int, list[str]] = {}
    asked = broken = 0
    for features, protocols, check in PROMISES:
        for over in protocols:
            title = check.__name__.replace("_", " ")
            asked += 1
            try:
                said = f"ok      {over}: {title}: {check()}"
            except Exception as error:  # noqa: BLE001  any error is a broken promise, and the others are to be asked still
                broken += 1
                said = f"BROKEN  {over}: {title}: {type(error).__name__}: {error}"
            print(said, file=sys.stderr, flush=True)
            for feature in features:
                report.setdefault(feature, []).append(said)
    missing = [feature for feature in FEATURES if feature not in report]
    for feature, proof in [*((number, "BROKEN  nothing was asked") for number in missing), *ELSEWHERE.items()]:
        report.setdefault(feature, []).append(proof)
    for feature in sorted(report):
        for line in report[feature]:
            print(f"{BALANCER.name} {release}  feature {feature:2}  {line}")
    print(f"{asked - broken} of {asked + len(missing)} promises hold")
    return 1 if broken or missing or not asked else 0


if __name__ == "__main__":
    sys.exit(main())
