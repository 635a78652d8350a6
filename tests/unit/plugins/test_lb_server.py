"""Parsers and decisions of lb_server, on what the balancers really say."""

from __future__ import annotations

import http.server
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.vmfleet.ops.plugins.action.lb_server import thread_context
from ansible_collections.vmfleet.ops.plugins.module_utils import _lb_server as lb
from ansible_collections.vmfleet.ops.plugins.module_utils._host import CommandError
from ansible_collections.vmfleet.ops.plugins.plugin_utils._role_sources import trusted

NGINX = """# Managed by vmfleet.ops (nginx); changes made by hand are undone.

upstream api {
    # vmfleet: {"service": "api", "ready": {"path": "/ready", "host": "a.test"}}
    zone api 128k;
    server 10.0.0.1:8081 weight=100 max_fails=3 fail_timeout=5s; # app1
    server [fd00::2]:8081 weight=100 max_fails=3 fail_timeout=5s; # app2
}

upstream ws {
    # vmfleet: {"service": "ws", "ready": {}}
    server 10.0.0.1:8082 weight=100 max_fails=3 fail_timeout=5s; # app1
}
"""
HAPROXY = """frontend https
    bind :443

backend no_route
    http-request deny deny_status 404

backend api
    # vmfleet: {"service": "api", "ready": {"path": "/ready", "host": "a.test"}}
    server app1 10.0.0.1:8081 weight 100 check inter 2s fall 3 rise 2
    server app2 10.0.0.2:8081 weight 100 check inter 2s fall 3 rise 2

frontend metrics
    bind 127.0.0.1:8404
"""
STATES = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change
4 api 1 app1 10.0.0.1 0 1 100 100 7 6 3 7 6 0 0 0 - 8081 - 0 0 - - 0
4 api 2 app2 10.0.0.2 2 0 50 100 7 6 3 7 6 0 0 0 - 8081 - 0 0 - - 0
4 api 3 app3 10.0.0.3 2 8 100 100 7 6 3 7 6 0 0 0 - 8081 - 0 0 - - 0
"""
CONNECTIONS = """\
0 0 10.0.0.9:40000 10.0.0.1:8081 users:(("nginx",pid=12,fd=7))
0 0 10.0.0.9:40001 10.0.0.1:8081 users:(("prometheus",pid=13,fd=7))
0 0 10.0.0.9:40002 10.0.0.1:8082 users:(("nginx",pid=12,fd=8))
0 0 [::1]:40002 [fd00::2]:8081 users:(("nginx",pid=14,fd=8))
"""


def test_backends_are_read_from_either_configuration() -> None:
    api, ws = lb.parse_backends(NGINX)
    assert (api.name, api.service, api.ready["path"]) == ("api", "api", "/ready")
    assert api.servers == {"app1": "10.0.0.1:8081", "app2": "[fd00::2]:8081"}
    assert (ws.service, ws.ready, ws.servers) == ("ws", {}, {"app1": "10.0.0.1:8082"})
    (only,) = lb.parse_backends(HAPROXY)
    assert only.servers == {"app1": "10.0.0.1:8081", "app2": "10.0.0.2:8081"}


def test_states_are_read() -> None:
    assert lb.parse_haproxy_states(STATES) == {
        ("api", "app1"): {"state": "drain", "weight": 100},
        ("api", "app2"): {"state": "ready", "weight": 50},
        ("api", "app3"): {"state": "drain", "weight": 100},
    }
    assert lb.parse_nginx_states("api app1 drain 30\n\n") == {("api", "app1"): {"state": "drain", "weight": 30}}


def test_only_the_balancers_own_connections_count() -> None:
    assert lb.parse_connections(CONNECTIONS, "nginx", {"10.0.0.1:8081", "[fd00::2]:8081"}) == ["12", "14"]
    assert lb.parse_connections(CONNECTIONS, "haproxy", {"10.0.0.1:8081"}) == []


def test_all_services_of_a_server_or_those_named() -> None:
    backends = lb.parse_backends(NGINX)
    assert [one.name for one in lb.choose(backends, "app1", [])] == ["api", "ws"]
    assert [one.name for one in lb.choose(backends, "app1", ["ws"])] == ["ws"]


@pytest.mark.parametrize(
    ("server", "services", "words"),
    [
        ("app3", [], "no server called 'app3'; did you mean app2? It knows: app1, app2"),
        ("app2", ["ws"], "no server in ws called 'app2'"),
        ("app1", ["www"], "no service called 'www'"),
    ],
)
def test_unknown_names_are_named_with_the_known(server: str, services: list[str], words: str) -> None:
    with pytest.raises(lb.LbServerError) as caught:
        lb.choose(lb.parse_backends(NGINX), server, services)
    assert words in str(caught.value)


def test_what_is_not_asked_for_stays() -> None:
    former = {"api": {"state": "drain", "weight": 30}}
    assert lb.desired(former, "ready", None) == {"api": {"state": "ready", "weight": 30}}
    assert lb.desired(former, None, 0) == {"api": {"state": "drain", "weight": 0}}


def test_the_last_server_is_kept() -> None:
    backends = lb.parse_backends(HAPROXY)
    drained = {"api": {"state": "drain", "weight": 100}}
    lb._refuse_last(backends, {}, "app1", drained, 1)
    weightless = {("api", "app2"): {"state": "ready", "weight": 0}}
    with pytest.raises(lb.LbServerError, match="would have 0 ready servers"):
        lb._refuse_last(backends, weightless, "app1", drained, 1)
    lb._refuse_last(backends, weightless, "app1", drained, 0)


def test_readiness_is_asked_with_the_name_of_the_site() -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.headers["Host"] == "a.test" and self.path == "/ready" else 503)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"127.0.0.1:{server.server_port}"
        assert lb.probe(endpoint, {"path": "/ready", "host": "a.test"}) == ""
        assert "/ready answers 503" in lb.probe(endpoint, {"path": "/ready", "host": "b.test"})
        assert lb.probe(endpoint, {}) == ""
        server.shutdown()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert "refused" in lb.probe(f"127.0.0.1:{free.getsockname()[1]}", {})


class TestNginx:
    @pytest.fixture(autouse=True)
    def files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = tmp_path / "state"
        declared = tmp_path / "upstreams.conf"
        declared.write_text(NGINX)
        monkeypatch.setattr(lb.Nginx, "config", str(declared))
        monkeypatch.setattr(lb, "NGINX_STATE", str(self.state))

    def test_a_refused_configuration_leaves_the_old_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state.write_text("ws app1 drain 100\n")
        monkeypatch.setattr(lb, "NGINX_WRITER", "/bin/false")
        monkeypatch.setattr(lb.Nginx, "workers", staticmethod(lambda: set()))
        with pytest.raises(CommandError):
            lb.Nginx().apply("app1", {"api": {"state": "drain", "weight": 100}})
        assert self.state.read_text() == "ws app1 drain 100\n"


def test_templating_in_threads_keeps_to_itself() -> None:
    templar = Templar(loader=DataLoader(), variables={"inner": trusted("{{ [1, 2] | map('string') | list }}")})
    assert templar.template(trusted("{{ inner }}")) == ["1", "2"]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            jobs = [
                pool.submit(thread_context().run, templar.template, trusted("{{ inner | join(',') }}"))
                for _number in range(200)
            ]
            assert {job.result() for job in jobs} == {"1,2"}
    finally:
        sys.setswitchinterval(switch)
