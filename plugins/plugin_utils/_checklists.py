# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lists to go through around a deployment; ``playbooks/vars/checklists.yml`` has them and says what boxes are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ._role_sources import COLLECTION, collection_root, read_yaml

FILE = "playbooks/vars/checklists.yml"


@dataclasses.dataclass(frozen=True)
class Checklist:
    """One list: its title, its boxes as they are written, and the rules that boxes refer to."""

    title: str
    boxes: list[dict[str, Any]]
    rules: dict[str, dict[str, Any]]

    def judged(self, group: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Boxes, with their rules, that hold for the hosts of a group; ``fleet`` is no group but all of it, once."""
        for box in self.boxes:
            rule = self.rules[box["rule"]] if "rule" in box else {}
            if rule.get("where") == group:
                yield str(box["box"]), rule

    def left(self) -> list[str]:
        """What preflight does not prove, a line for each box."""
        lines = []
        for box in self.boxes:
            if "manual" in box:
                lines.append(f"[ ] {box['box']}: by hand; {box['manual']}")
            elif "playbook" in box:
                lines.append(f"[ ] {box['box']}: run playbooks/{box['playbook']}")
            elif "verify" in box:
                lines.append(f"[ ] {box['box']}: run playbooks/verify.yml ({', '.join(box['verify'])})")
        return lines


def load_checklist(name: str) -> Checklist:
    """The list of that name.

    :raises LookupError: when there is none; the message names those that there are.
    """
    document = read_yaml(collection_root(COLLECTION) / FILE)
    try:
        chosen = document["lists"][name]
    except KeyError:
        raise LookupError(f"there are {', '.join(sorted(document.get('lists') or ()))}") from None
    return Checklist(str(chosen["title"]), chosen["boxes"], document["rules"])
