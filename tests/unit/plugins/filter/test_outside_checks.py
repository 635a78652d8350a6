"""Checks of sites from outside, and that the engine takes them."""

from __future__ import annotations

from typing import Any

from ansible_collections.vmfleet.ops.plugins.filter.outside_checks import outside_checks
from ansible_collections.vmfleet.ops.plugins.module_utils._health.model import parse_checks
from ansible_collections.vmfleet.ops.plugins.module_utils._health.registry import TYPES
from ansible_collections.vmfleet.ops.plugins.module_utils._lb_model import build_model

SERVICES = {"api": {"group": "app", "port": 8081, "health": "/health"}}
HOSTVARS = {
    "lb1": {"ansible_host": "192.0.2.11", "vmfleet_address": "10.0.0.11", "keepalived_addresses": ["192.0.2.9/24"]},
    "lb2": {"vmfleet_address": "2001:db8::12", "keepalived_addresses": ["192.0.2.9/24"]},
    "lb3.example": {},
}


def checks(certificate: str, **more: Any) -> dict[str, dict[str, Any]]:
    sites = [{
        "name": "api", "hosts": ["api.example", "www.example"], "certificate": certificate,
        "routes": [{"path": "/", "service": "api"}],
    }]  # fmt: skip
    model = build_model(sites, SERVICES, {"app": ["api1"]}, {})
    issued = ["api"] if certificate == "fleet" else []
    found = outside_checks(model, list(HOSTVARS), HOSTVARS, ca="/ca.crt", issued=issued, **more)
    assert len(parse_checks([("", entry) for entry in found], TYPES)) == len(found)
    return {entry["name"]: entry for entry in found}


def test_every_site_through_every_balancer_and_the_address_that_they_share() -> None:
    found = checks("fleet", https_port="8443")
    assert len(found) == 3 * 4
    assert [entry["url"] for name, entry in found.items() if name.endswith("is healthy")] == [
        "https://192.0.2.11:8443/health",
        "https://[2001:db8::12]:8443/health",
        "https://lb3.example:8443/health",
        "https://192.0.2.9:8443/health",
    ]
    certificate = found["site api through lb1 has a good certificate"]
    assert (certificate["names"], certificate["ca"]) == (["api.example", "www.example"], "/ca.crt")
    assert found["site api through 192.0.2.9 is led to HTTPS"]["host_header"] == "api.example"


def test_who_must_be_trusted_follows_from_the_certificate() -> None:
    host = checks("host")["site api through lb1 has a good certificate"]
    assert (host["names"], host["verify_name"], host["ca"]) == ([], False, "/ca.crt")
    for public in ("public", "acme"):
        given = checks(public)["site api through lb1 is healthy"]
        assert "ca" not in given and "verify_name" not in given


def test_a_site_of_files_has_no_health_to_ask_for() -> None:
    sites = [{"name": "www", "hosts": ["www.example"], "routes": [{"path": "/", "root": "/srv/www"}]}]
    model = build_model(sites, {}, {}, {})
    assert [entry["type"] for entry in outside_checks(model, ["lb3.example"], HOSTVARS)] == ["tls", "http"]
