"""Where requests go."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter

from front_door.asking import H1, OTHER, SERVERS, Answer, ask, many, names, promise
from front_door.balancer import BALANCER
from front_door.faults import without


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


@promise(22)
def servers_take_turns() -> str:
    found = names("/round", 40)
    assert set(found) == set(SERVERS), found
    assert max(found.values()) - min(found.values()) <= 2, found
    return f"of 40: {dict(sorted(found.items()))}"


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
