"""A fleet that has lost its data: the drill brings back what database and cache had, and measures it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lab import ROOT, Host, Run, play
from site_fleet import ENVIRONMENT, site

CHOSEN = "localhost,db1,db2,cache1"
REDIS = "REDISCLI_AUTH=$(cat /etc/redis/auth) redis-cli --tls --insecure"


def run(tmp_path: Path, playbook: str, *options: str) -> Run:
    return site(tmp_path, "--limit", CHOSEN, *options, playbook=playbook)


def apply(tasks: list[dict[str, Any]]) -> None:
    """Tasks on the hosts that have data, after a look at them."""
    look = {"vmfleet.ops.preflight": {"connect": True, "roles": {}}}
    book = {"hosts": "backup", "gather_facts": False, "become": True, "tasks": [look, *tasks]}
    done = play([book], inventory=ROOT / "inventories" / "local", env=ENVIRONMENT)
    assert done.rc == 0, done.output[-6000:]


def psql(host: Host, query: str) -> str:
    return host.sh(f'runuser -u postgres -- psql -XAtq demo -c "{query}"')


def take_back_with_data(db1: Host, db2: Host, cache1: Host, tmp_path: Path) -> None:
    """A change and what was written since go; what the set has from before is there."""
    apply([{"vmfleet.ops.converge": {"name": "trial", "files": [{"dest": "/etc/trial", "content": "trial\n"}]}}])
    psql(db1, "INSERT INTO drill VALUES ('since')")
    cache1.sh(f"{REDIS} SET drill since")
    asked = ("-e", "rollback_confirm=local", "-e", "rollback_data=true")
    foretold = run(tmp_path, "rollback", "--check", *asked)
    assert foretold.rc == 0, foretold.output[-6000:]
    assert "would be restored on cache1, db1: what was written" in foretold.output
    unsaid = run(tmp_path, "rollback", *asked)
    assert unsaid.rc != 0 and "say -e rollback_data_confirm=drill" in " ".join(unsaid.output.split())
    for host in (db1, cache1):
        assert host.sh("cat /etc/trial") == "trial"
    assert psql(db1, "SELECT count(*) FROM drill") == "2"

    done = run(tmp_path, "rollback", *asked, "-e", "rollback_data_confirm=drill", "-e", "verify_wait=60")
    assert done.rc == 0 and "Verdict ok" in done.output, done.output[-6000:]
    for host in (db1, cache1):
        assert host.sh("ls /etc/trial /var/lib/vmfleet/roles/trial.json 2>/dev/null; true") == "", done.output[-6000:]
    # The replica has followed what is gone, and was cloned anew.
    for host in (db1, db2):
        assert psql(host, "SELECT string_agg(what, ' ') FROM drill") == "before", host.name
    assert db2.sh("ls -d /var/lib/postgresql/*/main*") == "/var/lib/postgresql/17/main"
    assert cache1.sh(f"{REDIS} GET drill") == "before"
    apply([{"vmfleet.ops.restore": {"state": "committed"}}])


def test_the_drill_brings_the_data_back_and_measures_it(fleet: dict[str, Host], tmp_path: Path) -> None:
    db1, db2, cache1 = (fleet[name] for name in ("db1", "db2", "cache1"))
    done = run(tmp_path, "site")
    assert done.rc == 0, done.output[-6000:]

    psql(db1, "CREATE TABLE drill (what text); INSERT INTO drill VALUES ('before')")
    cache1.sh(f"{REDIS} SET drill before")
    done = run(tmp_path, "snapshot", "-e", "snapshot_name=drill")
    assert done.rc == 0, done.output[-6000:]
    take_back_with_data(db1, db2, cache1, tmp_path)
    psql(db1, "INSERT INTO drill VALUES ('after')")
    log = psql(db1, "SELECT pg_walfile_name(pg_switch_wal())")
    db1.wait(f"runuser -u postgres -- psql -XAtqc 'SELECT last_archived_wal FROM pg_stat_archiver' | grep {log}", 60)

    for host in (db1, db2):
        host.sh("systemctl stop 'postgresql@*'; rm -r /var/lib/postgresql/*/main")
    cache1.sh("systemctl stop redis-server; find /var/lib/redis -mindepth 1 -delete")
    refused = run(tmp_path, "dr_drill", "-e", "dr_confirm=production")
    assert refused.rc != 0 and "say -e dr_confirm=local" in refused.output
    assert "Apply the roles" not in refused.output

    report = tmp_path / "drill.json"
    done = run(tmp_path, "dr_drill", "-e", "dr_confirm=local", "-e", "dr_latest=true", "-e", f"dr_report={report}")
    assert done.rc == 0, done.output[-6000:]
    assert "Verdict ok" in done.output
    told = json.loads(report.read_text())
    assert 0 < told["rto"] < told["rto_target"] == 3600
    assert {name: host["rpo_target"] for name, host in told["hosts"].items()} == {"db1": 300, "cache1": 86400}
    assert all(0 < host["rpo"] < host["rpo_target"] for host in told["hosts"].values())
    # The log goes on where the set ends.
    assert told["hosts"]["db1"]["moment"] > told["hosts"]["cache1"]["moment"]
    for host in (db1, db2):
        assert psql(host, "SELECT string_agg(what, ' ' ORDER BY what) FROM drill") == "after before", host.name
    assert cache1.sh(f"{REDIS} GET drill") == "before"

    psql(db1, "DROP TABLE drill")
    cache1.sh(f"{REDIS} DEL drill")
    apply([{"vmfleet.ops.restore": {"state": "committed"}}])
