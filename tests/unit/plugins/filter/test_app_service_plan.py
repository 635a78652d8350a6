"""What app_service declares for its services, and how values are quoted for systemd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.vmfleet.ops.plugins.filter.app_service_plan import (
    DEFAULTS,
    REQUIRED,
    app_service_plan,
    environment_value,
    unit_word,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._desired import ARGUMENT_SPEC

ROLE = Path(__file__).resolve().parents[4] / "roles" / "app_service"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    (tmp_path / "lib" / "deep").mkdir(parents=True)
    (tmp_path / "lib" / "__pycache__").mkdir()
    for name in ("main.py", "lib/a.py", "lib/deep/b.py", "lib/__pycache__/a.pyc"):
        (tmp_path / name).write_text(name)
    (tmp_path / "main.py").chmod(0o755)
    return tmp_path


def service(folder: Path, /, **more: Any) -> dict[str, Any]:
    return {
        "name": "api",
        "version": "1.0",
        "artifact": [str(folder)],
        "command": ["/usr/bin/python3", "main.py"],
        **more,
    }


def test_a_directory_becomes_a_release_with_its_folders_and_modes(artifact: Path) -> None:
    plan = app_service_plan([service(artifact)])
    release = "/opt/api/releases/1.0"
    files = {entry["dest"]: entry for entry in plan["files"]}
    assert list(files) == [
        f"{release}/lib/a.py",
        f"{release}/lib/deep/b.py",
        f"{release}/main.py",
        "/opt/api/current",
    ]
    assert files[f"{release}/main.py"]["mode"] == "0755"
    assert files[f"{release}/lib/a.py"]["mode"] == "0644"
    assert files["/opt/api/current"] == {"dest": "/opt/api/current", "state": "link", "target": "releases/1.0"}
    assert [entry["path"] for entry in plan["directories"]] == [
        "/opt/api",
        "/opt/api/releases",
        release,
        f"{release}/lib",
        f"{release}/lib/deep",
        "/etc/api",
    ]


def test_a_single_file_may_be_given_as_text(artifact: Path) -> None:
    plan = app_service_plan([service(artifact, artifact=str(artifact / "main.py"))])
    assert plan["files"][0]["dest"] == "/opt/api/releases/1.0/main.py"


def test_everything_is_what_converge_takes(artifact: Path) -> None:
    plan = app_service_plan([service(artifact, port=80, secrets={"A": "b"}, packages=["x"])], ["lb"])
    for key in ("users", "groups", "directories", "files", "units", "services", "firewall"):
        for entry in plan[key]:
            assert set(entry) <= set(ARGUMENT_SPEC[key]["options"]), key


def test_a_change_of_one_service_names_only_that_service(artifact: Path) -> None:
    plan = app_service_plan([service(artifact, port=1), service(artifact, name="ws", port=2, packages=["x"])])
    api, ws = plan["services"]
    assert api["on_change"] == ws["on_change"] == "none"
    assert api["restart_on"] == ["/opt/api/*", "/etc/api/*", "/etc/systemd/system/api.service"]
    assert "packages" in ws["restart_on"]


def test_services_may_share_a_user(artifact: Path) -> None:
    plan = app_service_plan(
        [service(artifact, user="app", groups=["ssl-cert"]), service(artifact, name="ws", user="app")]
    )
    assert [(user["name"], user["groups"]) for user in plan["users"]] == [("app", ["ssl-cert"])]
    assert plan["groups"] == [{"name": "app"}]


def test_the_firewall_follows_the_flow_unless_a_service_says_otherwise(artifact: Path) -> None:
    services = [service(artifact, port=1), service(artifact, name="ws", port=2, allow_from=[])]
    assert [rule["from"] for rule in app_service_plan(services, ["lb"])["firewall"]] == [["lb"], []]


def test_checks_and_facts_say_what_runs(artifact: Path) -> None:
    given = service(artifact, port=8081, health="/health", ready="/ready", metrics="/metrics", require_ready=False)
    plan = app_service_plan([given])
    assert [check["type"] for check in plan["announce"]["checks"]] == ["systemd", "file", "http", "http"]
    assert {check["service"] for check in plan["announce"]["checks"]} == {"api"}
    assert plan["announce"]["checks"][3]["url"] == "http://127.0.0.1:8081/ready"
    assert [check["name"] for check in plan["verify"]] == ["api runs", "api has a release", "api is alive"]
    assert plan["announce"]["facts"] == {
        "ports": {"api": 8081},
        "metrics": [{"job": "api", "port": 8081, "path": "/metrics"}],
        "versions": {"api": "1.0"},
    }


def unit_of(plan: dict[str, Any]) -> dict[str, Any]:
    unit: dict[str, Any] = plan["units"][0]["vars"]["__app_service_unit"]
    return unit


def test_the_window_for_restarts_is_long_enough_to_count_them_all(artifact: Path) -> None:
    unit = unit_of(
        app_service_plan([service(artifact, restart_burst=4, restart_delay=6, start_timeout=20, stop_timeout=10)])
    )
    assert unit["start_limit_interval"] >= 4 * (6 + 20 + 10)


def test_the_sandbox_can_be_changed_setting_by_setting(artifact: Path) -> None:
    sandbox = unit_of(app_service_plan([service(artifact, sandbox={"PrivateTmp": False, "UMask": "0077"})]))["sandbox"]
    assert sandbox["PrivateTmp"] == "no"
    assert sandbox["UMask"] == "0077"
    assert sandbox["ProtectSystem"] == "strict"


@pytest.mark.parametrize(("port", "bind"), [(80, True), (1024, False), (None, False)])
def test_low_ports_come_with_the_capability(artifact: Path, port: int | None, bind: bool) -> None:
    unit = unit_of(app_service_plan([service(artifact, port=port)]))
    assert unit["bind"] is bind
    assert unit["sandbox"]["CapabilityBoundingSet"] == ("CAP_NET_BIND_SERVICE" if bind else "")


def test_booleans_are_written_in_lower_case(artifact: Path) -> None:
    assert unit_of(app_service_plan([service(artifact, environment={"A": True})]))["environment"] == ['"A=true"']


def test_words_of_units() -> None:
    assert unit_word('a "b" $c %d \\e\nf') == '"a \\"b\\" $c %%d \\\\e\\nf"'
    assert unit_word("$c", command=True) == '"$$c"'


def test_values_of_environment_files() -> None:
    assert environment_value('a "b" $c %d \\e `f`\ng') == '"a \\"b\\" \\$c %d \\\\e \\`f\\`\ng"'


def test_all_errors_come_at_once_and_none_shows_a_secret(artifact: Path) -> None:
    wrong = [
        service(artifact, name="API"),
        service(artifact, name="b", port=1, artifact=["main.py"], memory_max="lots", health="health"),
        service(artifact, name="c", port=1, artifact=[str(artifact / "absent")], metrics="/m"),
        service(artifact, name="d", command=["python3"], environment={"X": 1}, secrets={"X": "hidden", "1": "hidden"}),
        service(artifact, name="d", version="../1", ready="/r"),
        {"name": "e", "version": "1"},
    ]
    with pytest.raises(AnsibleFilterError) as caught:
        app_service_plan(wrong)
    message = str(caught.value)
    for words in (
        "name: 'API'",
        "main.py is relative",
        "memory_max: 'lots'",
        "health: 'health' is not a path",
        "absent on the controller",
        "command: ['python3']",
        "X stands in both",
        "secrets: '1'",
        "b and c have the same port 1",
        "d and d have the same name d",
        "version: '../1'",
        "ready: needs a port",
        "artifact, command is missing",
    ):
        assert words in message
    assert "hidden" not in message


def test_two_files_cannot_take_the_same_place(artifact: Path) -> None:
    with pytest.raises(AnsibleFilterError, match=r"would both become a\.py"):
        app_service_plan([service(artifact, artifact=[str(artifact / "lib" / "a.py"), str(artifact / "lib")])])


def test_defaults_are_those_of_the_argument_specs() -> None:
    import yaml

    specs = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]["app_service_services"]["options"]
    assert {key for key, option in options.items() if option.get("required")} == set(REQUIRED)
    assert {key: option["default"] for key, option in options.items() if "default" in option} == DEFAULTS
