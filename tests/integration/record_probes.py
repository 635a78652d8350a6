"""Records what real hosts answer to the probe, for the unit tests: python tests/integration/record_probes.py

Needs the hosts of this directory's tests (VMFLEET_KEEP=1) with the role of declarations.py on them.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / ".collections"), str(ROOT / "tests" / "unit" / "plugins")]

from ansible_collections.vmfleet.ops.plugins.module_utils._probe import build_script, nonce_of  # noqa: E402
from converge_case import FIXTURES, desired  # noqa: E402
from declarations import firewall, web  # noqa: E402
from lab import Host, converge, succeeded  # noqa: E402

if __name__ == "__main__":
    known = [Host("deb13", "trixie"), Host("deb12", "bookworm")]
    hosts = [host for host in known if host.name in (sys.argv[1:] or [host.name])]
    succeeded(converge(hosts, firewall(), web()), hosts)
    script = build_script(desired())
    for host in hosts:
        answer = host.sh("sh -s", stdin=script.encode()) + "\n"
        (FIXTURES / f"probe-{host.release}.txt").write_text(answer.replace(f"@@{nonce_of(script)} ", "@@NONCE "))
