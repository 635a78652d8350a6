"""Every role has the same shape, and its spec, defaults, README and place in the site playbook agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import role_readme
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.parent for path in (ROOT / "roles").glob("*/meta"))
ROLE = pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
TEMPLATE = re.compile(r"{[{%]")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None


def options_of(role: Path) -> dict[str, Any]:
    return (load(role / "meta/argument_specs.yml") or {})["argument_specs"]["main"].get("options") or {}


def tasks_of(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tasks, those inside blocks too."""
    found = []
    for task in tasks or []:
        for part in ("block", "rescue", "always"):
            found += tasks_of(task.get(part, []))
        if "block" not in task:
            found.append(task)
    return found


def test_there_are_roles() -> None:
    assert {"base", "firewall", "tls", "nginx", "haproxy", "postgresql", "redis"} <= {role.name for role in ROLES}


@ROLE
def test_spec_and_defaults_are_equal(role: Path) -> None:
    options = options_of(role)
    defaults = load(role / "defaults/main.yml") or {}
    assert {name for name, spec in options.items() if not spec.get("required")} == set(defaults)
    for name, value in defaults.items():
        spec = options[name]
        assert "default" in spec, f"{name} has no default in the spec"
        assert (type(spec["default"]), spec["default"]) == (type(value), value), name


@ROLE
def test_defaults_are_of_the_type_that_the_spec_says(role: Path) -> None:
    options = options_of(role)
    for name, value in (load(role / "defaults/main.yml") or {}).items():
        if isinstance(value, str) and TEMPLATE.search(value):
            continue
        if TEMPLATE.search(repr(value)):
            # What is inside may become anything.
            assert type(value).__name__ == options[name]["type"]
            continue
        spec = options[name]
        result = ArgumentSpecValidator({name: spec}).validate({name: value})
        assert result.error_messages == [], name
        if spec.get("type") in ("int", "bool", "float"):
            assert type(value).__name__ == spec["type"], f"{name}: {value!r} would only be converted to {spec['type']}"


@ROLE
def test_variables_carry_the_prefix_of_their_role(role: Path) -> None:
    assert [name for name in load(role / "defaults/main.yml") or {} if not name.startswith(f"{role.name}_")] == []
    assert [name for name in load(role / "vars/main.yml") or {} if not name.startswith(f"__{role.name}_")] == []


@ROLE
def test_a_role_can_be_taken_off_a_host(role: Path) -> None:
    spec = options_of(role)[f"{role.name}_state"]
    assert spec["choices"] == ["present", "absent"]
    assert spec["default"] == "present"


@ROLE
def test_a_role_is_one_transaction(role: Path) -> None:
    tasks = tasks_of(load(role / "tasks/main.yml"))
    assert "vmfleet.ops.converge" in tasks[0]
    assert len(tasks) <= 2


@ROLE
def test_packages_can_be_installed_ahead_of_the_role(role: Path) -> None:
    """base installs them all in one transaction of apt, from ``__<role>_packages``."""
    tasks = tasks_of(load(role / "tasks/main.yml"))
    name = f"__{role.name}_packages"
    arguments = tasks[0]["vmfleet.ops.converge"]
    declaration = str(arguments.get("declaration", "")).strip("{} ")
    declared = str(arguments.get("packages", ""))
    if declaration.endswith(".j2"):
        declared += (role / "templates" / declaration).read_text(encoding="utf-8")
    variables = load(role / "vars/main.yml")
    assert name in variables
    assert name in declared or f"{declaration}.packages" in variables[name]


@ROLE
def test_rules_for_preflight_are_complete(role: Path) -> None:
    for rule in (load(role / "vars/main.yml") or {}).get(f"__{role.name}_rules", []):
        assert set(rule) == {"variable", "holds", "problem", "remedy"}
        assert rule["variable"] in options_of(role)


@ROLE
def test_readme_is_the_spec(role: Path) -> None:
    path = role / "README.md"
    assert path.is_file(), "run scripts/role-readme"
    assert path.read_text(encoding="utf-8") == role_readme.readme(role), "run scripts/role-readme"


@ROLE
def test_every_role_has_a_molecule_scenario(role: Path) -> None:
    assert (ROOT / "molecule" / role.name / "molecule.yml").is_file()


class TestReadme:
    def test_markup(self) -> None:
        text = ["C(a b) and O(x=y),", "V(f(x\\)) L(docs, https://example.com/a) U(https://example.com) B(now)"]
        assert role_readme.markdown(text) == (
            "`a b` and `x=y`, `f(x)` [docs](https://example.com/a) <https://example.com> **now**"
        )

    def test_defaults_are_yaml(self) -> None:
        values: list[Any] = ["", True, [], {"a": 1}, "x", 1.5, None]
        assert [role_readme.literal(value) for value in values] == ['""', "true", "[]", "{a: 1}", "x", "1.5", "null"]

    def test_check_tells_and_changes_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        role = tmp_path / "roles/x"
        (role / "meta").mkdir(parents=True)
        (role / "meta/main.yml").write_text(
            "galaxy_info: {license: L, min_ansible_version: '2.17', platforms: [{name: Debian, versions: [trixie]}]}"
        )
        (role / "meta/argument_specs.yml").write_text(
            "argument_specs: {main: {short_description: S, description: D, options: {x_a: {description: A|B}}}}"
        )
        assert role_readme.main(["--check"], tmp_path) == 1
        assert "out of date" in capsys.readouterr().err
        assert role_readme.main([], tmp_path) == 0
        assert "| `x_a` | str |  | A\\|B |" in (role / "README.md").read_text()
        assert role_readme.main(["--check"], tmp_path) == 0

    def test_no_role_is_an_error(self, tmp_path: Path) -> None:
        assert role_readme.main(["--check"], tmp_path) == 1
        assert role_readme.main(["nonesuch"]) == 1


class TestSite:
    """What preflight validates is what the site applies."""

    @staticmethod
    def applied() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for play in load(ROOT / "playbooks/site.yml"):
            for task in tasks_of(play.get("tasks", [])):
                name = task["ansible.builtin.import_role"]["name"].removeprefix("vmfleet.ops.")
                found.setdefault(play["hosts"], set()).add(name)
        # The groups that a play names may be parts of the one that the map names.
        found["db"] = found.pop("db_primary") | found.pop("db_replica")
        return found

    @staticmethod
    def validated() -> dict[str, set[str]]:
        (play,) = load(ROOT / "playbooks/preflight.yml")
        wanted = play["tasks"][0]["vmfleet.ops.preflight"]["roles"]
        lb_types = {"{{ lb_type | default('haproxy') }}": {"nginx", "haproxy"}}
        return {group: set().union(*(lb_types.get(name, {name}) for name in names)) for group, names in wanted.items()}

    def test_the_map_is_the_site(self) -> None:
        assert self.applied() == self.validated()

    def test_every_role_that_is_applied_exists(self) -> None:
        assert set().union(*self.applied().values()) <= {role.name for role in ROLES}

    def test_no_role_proves_its_spec_again(self) -> None:
        for play in load(ROOT / "playbooks/site.yml"):
            assert "ansible.builtin.import_playbook" in play or play["gather_facts"] is False
            for task in tasks_of(play.get("tasks", [])):
                assert task["ansible.builtin.import_role"]["rolespec_validate"] is False
                assert task["tags"] == [task["ansible.builtin.import_role"]["name"].rpartition(".")[2]]
