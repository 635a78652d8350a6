"""Ask a balancer of this host what the routing model promises; which balancer answers makes no difference.

usage: python3 -m front_door.suite HTTP_PORT HTTPS_PORT

It expects the sites and services of molecule/nginx and two echo_backend.py, a1 and a2, on two addresses. Prints what
was seen for each feature (spec), over each protocol, and fails if a promise is broken, or a feature was not asked for.
"""

from __future__ import annotations

import platform
import sys

from front_door.asking import PROMISES, turn
from front_door.balancer import BALANCER

# They note their promises when they are imported, and are asked in this order: those that stop all servers come last.
from front_door.promises import names, answers, routing, limits, websockets, failures  # noqa: F401  # isort: skip

FEATURES = range(1, 30)
# What needs a controller or an authority is proved by others.
ELSEWHERE = {
    1: "        a host more in the inventory: tests/integration/test_balancers.py",
    8: "        silent, and with a message every 30 s, for 300 s over reloads: tests/integration/test_balancers.py",
    20: "        a broken value: tests/integration/test_balancers.py",
    26: "        an unknown cipher: tests/unit/test_front_door.py",
    30: "        renewed on both balancers without a restart: molecule/acme",
    31: "        an expired certificate fails verify: tests/integration/fault_matrix.py",
    81: "        drained and put back: tests/integration/test_balancers.py",
}


def main() -> int:
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    report: dict[int, list[str]] = {}
    asked, broken = 0, list[str]()
    for features, protocols, check in PROMISES:
        for turn.over in protocols:
            title = check.__name__.replace("_", " ")
            asked += 1
            try:
                said = f"ok      {turn.over}: {title}: {check()}"
            except Exception as error:  # noqa: BLE001  any error is a broken promise, and the others are to be asked still
                said = f"BROKEN  {turn.over}: {title}: {type(error).__name__}: {error}"
                broken.append(said)
            print(said, file=sys.stderr, flush=True)
            for feature in features:
                report.setdefault(feature, []).append(said)
    missing = [feature for feature in FEATURES if feature not in report]
    for feature, proof in [*((number, "BROKEN  nothing was asked") for number in missing), *ELSEWHERE.items()]:
        report.setdefault(feature, []).append(proof)
    for feature in sorted(report):
        for line in report[feature]:
            print(f"{BALANCER.name} {release}  feature {feature:2}  {line}")
    # Once more, for whoever sees the end only.
    print(*broken, sep="\n", file=sys.stderr)
    print(f"{asked - len(broken)} of {asked + len(missing)} promises hold")
    return 1 if broken or missing or not asked else 0


if __name__ == "__main__":
    sys.exit(main())
