"""Writes docs/checklists.md from playbooks/vars/checklists.yml."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "playbooks/vars/checklists.yml"
TARGET = "docs/checklists.md"
HEAD = f"""<!-- Made by scripts/checklists from {SOURCE}; edit that file. -->
# Lists to go through

Each box of the lists that the five systems give is proven by something that exists, or is left to a person for a
reason. (SAFLA, the first of them, gives none.)

    ansible-playbook playbooks/preflight.yml -i inventories/mine -e preflight_checklist=supernova_before

holds the inventory against one list: a box whose rule does not hold is reported like any other problem, before any
change, with the variable, its value, the remedy and the box; and what is left to other playbooks and to people is
printed. `site.yml` takes the same variable. Without it nothing of this is asked, except what preflight always proves.
"""


def proof(box: dict[str, Any], rules: dict[str, Any]) -> str:
    """What proves a box, as a cell of the table."""
    if "rule" in box:
        rule = rules[box["rule"]]
        where = "the fleet" if rule["where"] == "fleet" else f"each host of `{rule['where']}`"
        return f"`preflight.yml` with this list: `{rule['variable']}` of {where}"
    if "preflight" in box:
        return f"`preflight.yml`, always (`{box['preflight']}`)"
    if "verify" in box:
        return f"`verify.yml`: what {', '.join(f'`{role}`' for role in box['verify'])} announce"
    if "playbook" in box:
        return f"`{box['playbook']}`"
    return f"by hand: {box['manual']}"


def page(document: dict[str, Any]) -> str:
    """The whole page."""
    parts = [HEAD]
    for name, chosen in document["lists"].items():
        parts.append(f"## {chosen['title']}\n\n`{name}`\n\n| box | proven by |\n|---|---|")
        parts[-1] += "".join(f"\n| {box['box']} | {proof(box, document['rules'])} |" for box in chosen["boxes"])
        parts[-1] += "\n"
    return "\n".join(parts)


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if the page differs")
    options = parser.parse_args(argv)
    text = page(yaml.safe_load((root / SOURCE).read_text(encoding="utf-8")))
    target = root / TARGET
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return 0
    if options.check:
        print(f"checklists: {TARGET} is out of date; run scripts/checklists", file=sys.stderr)
        return 1
    target.write_text(text, encoding="utf-8")
    print(f"checklists: wrote {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
