"""A host's variables and facts against what its roles need, and what no message may show."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils import _preflight as preflight
from ansible_collections.vmfleet.ops.plugins.module_utils._host_facts import assumed_facts

OPTIONS: dict[str, Any] = {
    "redis_port": {"type": "int"},
    "redis_maxmemory_policy": {"type": "str", "choices": ["noeviction", "allkeys-lru"]},
    "redis_password": {"type": "str", "required": True, "no_log": True},
    "redis_users": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "password": {"type": "str", "no_log": True},
            "level": {"type": "int"},
        },
    },
}


def check(values: dict[str, Any]) -> list[preflight.Problem]:
    return preflight.check_variables(OPTIONS, values, values.__getitem__)


def test_good_values_pass() -> None:
    good = {"redis_port": "6379", "redis_password": "c4fe", "redis_users": [{"name": "a", "password": "b"}]}
    assert check(good) == []


def test_every_problem_is_reported_with_value_and_remedy() -> None:
    found = check({"redis_port": "many", "redis_maxmemory_policy": "lru", "redis_users": [{"level": 1}]})
    assert [problem.variable for problem in found] == [
        "redis_maxmemory_policy",
        "redis_password",
        "redis_port",
        "redis_users",
    ]
    lines = preflight.report(found).splitlines()
    assert lines[0] == "4 problems found before any change:"
    assert "redis_maxmemory_policy = 'lru'" in lines[1]
    assert "give one of noeviction, allkeys-lru" in lines[1]
    assert "redis_password = (not set): is required; put it into the vault" in lines[2]
    assert "redis_port = 'many'" in lines[3]
    assert "give a value of type int" in lines[3]
    assert "name" in lines[4]


@pytest.mark.parametrize(
    "values",
    [
        {"redis_password": {"swordfish": "swordfish"}},
        {"redis_password": "ok", "redis_users": [{"name": "a", "password": "swordfish", "level": "swordfish"}]},
        {"redis_password": "ok", "redis_users": [{"password": "swordfish"}]},
        {"redis_password": "ok", "redis_users": [{"name": "a", "password": "swordfish", "unknown": 1}]},
    ],
)
def test_no_secret_is_shown(values: dict[str, Any]) -> None:
    found = check(values)
    assert "swordfish" not in preflight.report(found)
    if isinstance(values["redis_password"], str):
        assert found


def test_a_name_tells_a_secret_where_the_spec_does_not() -> None:
    text, flag = {"type": "str"}, {"type": "bool"}
    assert preflight.is_secret("tls_private_key", text)
    assert preflight.is_secret("app_services", {"type": "list", "options": {"secrets": {"type": "dict"}}})
    assert not preflight.is_secret("base_sshd_password_authentication", flag)
    assert not preflight.is_secret("postgresql_tls_key", {"type": "path"})
    assert not preflight.is_secret("pgbouncer_token", {"no_log": False})


def test_placeholders_are_no_secrets() -> None:
    found = check({"redis_password": "CHANGEME"})
    assert [(problem.variable, problem.problem) for problem in found] == [("redis_password", "is a placeholder")]


def test_text_that_says_false_would_be_taken_for_true() -> None:
    """``-e redis_tls=false`` gives text."""
    spec = {"redis_tls": {"type": "bool"}}
    assert preflight.check_variables(spec, spec, {"redis_tls": False}.__getitem__) == []
    assert preflight.check_variables(spec, spec, {"redis_tls": "true"}.__getitem__) == []
    (problem,) = preflight.check_variables(spec, spec, {"redis_tls": "False"}.__getitem__)
    assert (problem.variable, problem.value) == ("redis_tls", "'False'")
    assert "any text counts as true" in problem.problem and "redis_tls: false" in problem.remedy


def test_what_cannot_be_rendered_is_a_problem_of_its_own() -> None:
    def resolve(name: str) -> Any:
        raise preflight.Unresolved("refers to vault_redis_password, which is not defined")

    found = preflight.check_variables(OPTIONS, ["redis_password"], resolve)
    assert str(found[0]).startswith("redis_password: refers to vault_redis_password, which is not defined; define")


def test_a_slip_of_the_pen_is_found_and_helpers_are_left_alone() -> None:
    names = ["redis_maxmemory_polcy", "redis_port", "redis_site_label", "nginx_prot", "redis_exporter_prot"]
    found = preflight.check_spelling(names, OPTIONS, ["redis"], ["redis", "nginx", "redis_exporter"])
    assert [(problem.variable, problem.remedy) for problem in found] == [
        ("redis_maxmemory_polcy", "did you mean redis_maxmemory_policy?")
    ]


def test_a_host_as_it_should_be() -> None:
    assert preflight.check_host(assumed_facts("a", "10.0.0.1"), root=True, python="python3") == []


def test_a_host_that_lacks_everything() -> None:
    facts = {"ansible_distribution": "Fedora", "ansible_distribution_version": "41", "ansible_service_mgr": "sh"}
    found = preflight.check_host(facts, root=False, python="/opt/python")
    assert [problem.variable for problem in found] == [
        "operating system",
        "apt",
        "init system",
        "ansible_python_interpreter",
        "ansible_become",
    ]
    assert "Debian 13" in found[0].remedy


def test_sizes() -> None:
    facts = assumed_facts("a", None)
    facts["ansible_memtotal_mb"] = 15800
    assert preflight.check_requirements({"memory_mb": 16384, "vcpus": 8, "disk_gb": 500}, facts) == []
    found = preflight.check_requirements({"memory_mb": 32768, "vcpus": 16, "cpu": 1, "disk_gb": "big"}, facts)
    assert [problem.variable.rpartition(".")[2] for problem in found] == ["cpu", "disk_gb", "memory_mb", "vcpus"]
    assert preflight.check_requirements([], facts)[0].problem == "is no mapping"
    facts.update(ansible_memtotal_mb=7950, ansible_processor_vcpus=2)
    assert [str(problem) for problem in preflight.check_requirements({"memory_mb": 16384, "vcpus": 4}, facts)] == [
        "vmfleet_requires.memory_mb = 16384: the host has 7950; give the host more, or ask for less",
        "vmfleet_requires.vcpus = 4: the host has 2; give the host more, or ask for less",
    ]


def test_packages_of_several_roles_are_one_sorted_list() -> None:
    pinned = {"name": "nginx", "version": "1.26*"}
    declared = ["redis-server", pinned, "nginx", {"name": "old", "state": "absent"}, {"name": "curl"}, "redis-server"]
    assert preflight.merged_packages(declared) == ["curl", pinned, "redis-server"]
    first = {"name": "postgresql-17", "first": {"/etc/a": "b"}}
    assert preflight.merged_packages(["postgresql-17", first]) == [first]


def test_a_port_belongs_to_one_role_of_a_host() -> None:
    listening = [("redis", "redis_port", 6379), ("app_service", "app_service_services[0].port", "6379")]
    assert [str(problem) for problem in preflight.check_ports(listening)] == [
        "app_service_services[0].port = '6379': is redis_port of the same host too; change one of them"
    ]
    # A role's own rules are about its own ports; what is no port is told by its spec.
    assert preflight.check_ports([("a", "a_port", 1), ("a", "a_other_port", 1), ("b", "b_port", None)]) == []
