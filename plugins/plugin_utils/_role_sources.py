# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a role says of itself on disk: its options, its defaults, its internal variables."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible.utils.unsafe_proxy import wrap_var

try:
    from ansible.template import trust_as_template as _trust
except ImportError:

    def _trust(value: str) -> str:
        return value


COLLECTION = "vmfleet.ops"


@dataclass(frozen=True)
class RoleSource:
    """One role: ``options`` are those of the main entry point, ``constants`` the defaults without a template."""

    name: str
    options: dict[str, Any]
    defaults: dict[str, Any]
    variables: dict[str, Any]
    constants: frozenset[str]


def trusted(text: str) -> str:
    """The text with the mark without which ansible-core 2.19 and newer do not render it."""
    marked: str = _trust(text)
    return marked


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain YAML with Ansible's two string tags; DataLoader parses the same text five times slower."""


def _text(loader: Any, node: Any) -> Any:
    value = loader.construct_scalar(node)
    return trusted(value) if "{" in value else value


def _unsafe(loader: Any, node: Any) -> Any:
    return wrap_var(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:str", _text)
_Loader.add_constructor("!unsafe", _unsafe)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; a missing or empty file is an empty one."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8") as stream:
        # The loader derives from SafeLoader.
        return yaml.load(stream, Loader=_Loader) or {}  # noqa: S506


def collection_root(collection: str) -> Path:
    """The folder of an installed collection.

    :raises ImportError: when there is none of that name.
    """
    return Path(next(iter(importlib.import_module(f"ansible_collections.{collection}").__path__)))


@functools.cache
def load_role(name: str) -> RoleSource:
    """The role of that name, of this collection unless the name is fully qualified.

    :raises LookupError: when no such role with a spec is installed.
    """
    namespace, _dot, short = name.rpartition(".")
    try:
        root = collection_root(namespace or COLLECTION) / "roles" / short
    except ImportError:
        raise LookupError(name) from None
    spec = read_yaml(root / "meta" / "argument_specs.yml").get("argument_specs") or {}
    if not spec:
        raise LookupError(name)
    options = (spec.get("main") or {}).get("options") or {}
    defaults = read_yaml(root / "defaults" / "main.yml")
    constants = frozenset(key for key, value in defaults.items() if "{{" not in repr(value) and "{%" not in repr(value))
    return RoleSource(name, options, defaults, read_yaml(root / "vars" / "main.yml"), constants)


def own_roles() -> list[str]:
    """Names of this collection's roles."""
    return sorted(path.parent.name for path in (collection_root(COLLECTION) / "roles").glob("*/meta"))


def preload() -> set[str]:
    """Read every role of the collection once, before the workers fork: each would parse them again.

    :returns: the texts in them that Jinja will have to compile.
    """
    root = collection_root(COLLECTION) / "roles"
    texts = {path.read_text(encoding="utf-8") for path in root.glob("*/templates/*.j2")}
    for name in own_roles():
        texts.update(_expressions(read_yaml(root / name / "tasks" / "main.yml")))
        try:
            role = load_role(name)
        except LookupError:
            continue
        texts.update(_expressions([role.defaults, role.variables]))
    return texts


def _expressions(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if "{" in value:
            yield str(value)
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _expressions(part)
