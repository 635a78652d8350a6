"""What answers hold, what services are told, and what is written down."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import Any

from front_door.asking import FILES, H1, HEADERS, HOST, HTTP, HTTPS, OTHER, ask, client, many, promise, turn
from front_door.balancer import BALANCER, run, until


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
    if turn.over == H1:
        forged = ask(
            "/",
            Upgrade="websocket",
            Connection="Upgrade",
            Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==",
            Sec_WebSocket_Version="13",
        )
        assert forged.arrived("upgrade") == [], forged.body
    return f"none on {', '.join(paths)}, nor an upgrade where the route has none"


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


@promise(14)
def texts_are_compressed() -> str:
    large = ask("/gzip/json?2048", Accept_Encoding="gzip")
    picture = ask("/gzip/png?4000", Accept_Encoding="gzip")
    assert large.header("content-encoding") == ["gzip"], large.headers
    assert "accept-encoding" in ",".join(large.header("vary")).lower(), large.headers
    assert picture.header("content-encoding") == [], picture.headers
    for size, encodings in ((500, []), (1023, []), (1024, ["gzip"])):
        answer = ask(f"/gzip/json?{size}", Accept_Encoding="gzip")
        assert answer.header("content-encoding") == encodings, (size, answer.headers)
        assert encodings or answer.body == b"x" * size, (size, answer.body)
    assert ask("/gzip/text?4000", Accept_Encoding="gzip").header("content-encoding") == ["gzip"]
    assert ask("/gzip/text?4000").header("content-encoding") == []
    assert ask("/text?4000", Accept_Encoding="gzip").header("content-encoding") == [], "a route that does not ask"
    return f"JSON of 2048 bytes in {len(large.body)}, with Vary; JSON of 500 and 1023 bytes and png as they are"


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
