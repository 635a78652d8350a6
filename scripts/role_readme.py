"""Writes roles/<role>/README.md from the role's argument spec.

    scripts/role-readme                 all roles
    scripts/role-readme redis nginx     these
    scripts/role-readme --check [...]   only say which READMEs differ; exit 1 if any does

What a spec cannot say goes into roles/<role>/meta/example.yml: a comment block is kept as prose, the YAML as example.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
NAMESPACE = "vmfleet.ops"
# Markup of Ansible's documentation, https://docs.ansible.com/ansible/latest/dev_guide/ansible_markup.html
MARKUP = (
    (re.compile(r"\b[CVEI]\(((?:[^)\\]|\\.)*)\)"), r"`\1`"),
    (re.compile(r"\bO\(((?:[^)\\]|\\.)*)\)"), r"`\1`"),
    (re.compile(r"\bB\(([^()]*)\)"), r"**\1**"),
    (re.compile(r"\b[MP]\(([^()#]*)(?:#\w+)?\)"), r"`\1`"),
    (re.compile(r"\bU\(([^()]*)\)"), r"<\1>"),
    (re.compile(r"\bL\(([^(),]*), *([^()]*)\)"), r"[\1](\2)"),
)


class SpecError(ValueError):
    """A role whose README cannot be written; the message says what its spec lacks."""


def markdown(text: Any) -> str:
    """A description, string or list, as one line of Markdown."""
    joined = " ".join(" ".join(str(part).split()) for part in (text if isinstance(text, list) else [text or ""]))
    for pattern, replacement in MARKUP:
        joined = pattern.sub(replacement, joined)
    return re.sub(r"\\([()\\])", r"\1", joined)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def literal(value: Any) -> str:
    """A default as YAML on one line."""
    if isinstance(value, str):
        shown = value if value else '""'
        return " ".join(shown.split())
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def kind(spec: dict[str, Any]) -> str:
    name = str(spec.get("type", "str"))
    return f"{name} of {spec['elements']}" if spec.get("elements") else name


def rows(options: dict[str, Any], prefix: str = "") -> list[str]:
    """Table rows, options inside an option right below it."""
    result = []
    for name, spec in options.items():
        if not spec.get("description"):
            raise SpecError(f"{prefix}{name} has no description")
        description = markdown(spec["description"])
        if spec.get("choices"):
            description += f" One of {', '.join(f'`{literal(choice)}`' for choice in spec['choices'])}."
        if spec.get("no_log"):
            description += " Secret."
        if "default" in spec:
            default = f"`{literal(spec['default'])}`"
        else:
            default = "**required**" if spec.get("required") else ""
        result.append(f"| `{prefix}{name}` | {kind(spec)} | {cell(default)} | {cell(description)} |")
        if spec.get("options"):
            inside = "[]." if spec.get("type") == "list" else "."
            result += rows(spec["options"], f"{prefix}{name}{inside}")
    return result


def example(role: Path) -> tuple[str, str]:
    """Prose and YAML of meta/example.yml; without one, the shortest play that applies the role."""
    path = role / "meta" / "example.yml"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        body = [line for line in lines if line != "---"]
        prose = [line.removeprefix("#").strip() for line in body if line.startswith("#")]
        return " ".join(prose), "\n".join(line for line in body if not line.startswith("#")).strip("\n")
    return "", (
        "- hosts: all\n  become: true\n  gather_subset: [min, network, hardware]\n"
        f"  roles:\n    - role: {NAMESPACE}.{role.name}"
    )


def readme(role: Path) -> str:
    """The README of the role in that folder."""
    spec_path = role / "meta" / "argument_specs.yml"
    if not spec_path.is_file():
        raise SpecError(f"{spec_path} is missing")
    spec = yaml.safe_load(spec_path.read_text(encoding="utf-8"))["argument_specs"]["main"]
    if not spec.get("short_description") or not spec.get("description"):
        raise SpecError("main has no short_description or no description")
    meta = yaml.safe_load((role / "meta" / "main.yml").read_text(encoding="utf-8"))["galaxy_info"]
    platforms = "; ".join(
        f"{platform['name']} {', '.join(map(str, platform['versions']))}" for platform in meta["platforms"]
    )
    description = spec["description"] if isinstance(spec["description"], list) else [spec["description"]]
    prose, text = example(role)
    parts = [
        (
            "<!-- Made by scripts/role-readme from meta/argument_specs.yml; edit that file. -->\n"
            f"# {NAMESPACE}.{role.name}"
        ),
        markdown(spec["short_description"]).rstrip(".") + ".",
        *(markdown(paragraph) for paragraph in description),
        f"Runs on {platforms}. Needs root on the host and ansible-core {meta['min_ansible_version']} or newer.",
        "## Variables",
        "\n".join(["| variable | type | default | meaning |", "|---|---|---|---|", *rows(spec.get("options") or {})]),
        "## Example",
        *([prose] if prose else []),
        f"```yaml\n{text}\n```",
        f"License {meta['license']}.",
    ]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if a README differs")
    parser.add_argument("role", nargs="*", help="names of roles (default: all)")
    options = parser.parse_args(argv)
    found = sorted(path.parent.parent for path in (root / "roles").glob("*/meta/main.yml"))
    chosen = [role for role in found if not options.role or role.name in options.role]
    missing = set(options.role) - {role.name for role in found}
    if missing or not chosen:
        print(f"role-readme: no such role: {', '.join(sorted(missing)) or 'none at all'}", file=sys.stderr)
        return 1
    status = 0
    for role in chosen:
        path = role / "README.md"
        try:
            text = readme(role)
        except SpecError as error:
            print(f"role-readme: {role.name}: {error}", file=sys.stderr)
            status = 1
            continue
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if options.check:
            print(f"role-readme: {path.relative_to(root)} is out of date; run scripts/role-readme", file=sys.stderr)
            status = 1
        else:
            path.write_text(text, encoding="utf-8")
            print(f"role-readme: wrote {path.relative_to(root)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
