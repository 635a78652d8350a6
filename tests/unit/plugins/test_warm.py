"""What is compiled once renders as if it had been compiled anew, and none but the user can write the file of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.vmfleet.ops.plugins.plugin_utils import _warm as warm
from ansible_collections.vmfleet.ops.plugins.plugin_utils._role_sources import trusted
from jinja2 import Environment

TEXT = "{% for name in names %}{{ name | upper }}\n{% endfor %}"


@pytest.fixture(autouse=True)
def remembering(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were really compiled, with a memory of their own."""
    original = Environment.compile
    seen: list[str] = []

    def compile_and_tell(environment: Environment, source: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(source, str):
            seen.append(source)
        return original(environment, source, *arguments, **options)

    monkeypatch.setattr(warm, "COMPILED", {})
    monkeypatch.setattr(Environment, "compile", compile_and_tell)
    warm._remember_compiled_templates()
    return seen


def render(text: str, **options: Any) -> Any:
    templar = Templar(loader=DataLoader(), variables={"names": ["a", "b"], "one": 1})
    return templar.template(trusted(text), **options)


def test_a_text_is_compiled_once(remembering: list[str]) -> None:
    assert [render(TEXT) for _time in range(3)] == ["A\nB\n"] * 3
    assert remembering == [TEXT]


def test_a_backslash_is_read_as_whoever_renders_wants_it() -> None:
    text = r"{{ 'a\tb' }}"
    assert [render(text, escape_backslashes=flag) for flag in (True, False, True)] == [r"a\tb", "a\tb", r"a\tb"]


def test_a_text_that_does_not_compile_fails_each_time() -> None:
    for _time in range(2):
        with pytest.raises(Exception, match=r"(?i)template"):
            render("{{ one")


def test_other_delimiters_make_another_template() -> None:
    ours, theirs = Environment(), Environment(variable_start_string="[[", variable_end_string="]]")
    text = "[[ 1 ]] {{ 2 }}"
    assert [environment.from_string(text).render() for environment in (ours, theirs, ours)] == [
        "[[ 1 ]] 2",
        "1 {{ 2 }}",
        "[[ 1 ]] 2",
    ]


def test_the_next_run_reads_what_this_one_compiled(
    tmp_path: Path, remembering: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    warm._compile_texts([TEXT, "{{ broken"], cache)
    assert {path.stat().st_mode & 0o777 for path in (cache, *cache.iterdir())} == {0o700, 0o600}
    monkeypatch.setattr(warm, "COMPILED", {})
    remembering.clear()
    warm._compile_texts([TEXT, "{{ broken"], cache)
    assert render(TEXT) == "A\nB\n"
    assert remembering == []


def test_other_texts_take_the_place_of_the_old_ones(
    tmp_path: Path, remembering: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm._compile_texts(["{{ one }}"], tmp_path)
    monkeypatch.setattr(warm, "COMPILED", {})
    warm._compile_texts([TEXT], tmp_path)
    assert remembering == ["{{ one }}", TEXT]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["writable", "cut", "empty"])
def test_a_file_that_cannot_be_trusted_is_made_anew(
    tmp_path: Path, damage: str, remembering: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm._compile_texts([TEXT], tmp_path)
    (file,) = tmp_path.iterdir()
    if damage == "writable":
        file.chmod(0o620)
    else:
        file.write_bytes(file.read_bytes()[: 40 if damage == "cut" else 0])
    monkeypatch.setattr(warm, "COMPILED", {})
    remembering.clear()
    warm._compile_texts([TEXT], tmp_path)
    assert remembering == [TEXT]
    assert render(TEXT) == "A\nB\n"


def test_a_folder_that_cannot_be_written_costs_only_the_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    warm._compile_texts([TEXT], tmp_path / "file" / "cache")
    assert render(TEXT) == "A\nB\n"
