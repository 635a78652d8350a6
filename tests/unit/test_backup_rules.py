"""What preflight refuses of a host's repositories before anything is changed, entry by entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar
from ansible_collections.vmfleet.ops.plugins.plugin_utils._role_sources import read_yaml

ROLE = Path(__file__).resolve().parents[2] / "roles" / "backup"
VARIABLES = {**read_yaml(ROLE / "defaults" / "main.yml"), **read_yaml(ROLE / "vars" / "main.yml")}
FOLDER = {"name": "local", "kind": "path", "path": "/var/backups/vmfleet"}
SERVER = {
    "name": "remote",
    "kind": "sftp",
    "path": "/srv/backups",
    "host": "backup.example.com",
    "user": "vmfleet",
    "private_key": "-----BEGIN OPENSSH PRIVATE KEY-----\nonly-for-tests\n-----END OPENSSH PRIVATE KEY-----\n",
    "host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIonlyfortests",
}
STORE = {
    "name": "store",
    "kind": "s3",
    "endpoint": "https://s3.example.com:9000",
    "bucket": "fleet-sets",
    "prefix": "fleet/production",
    "access_key": "only-for-tests",
    "secret_key": "only/for+tests",
}
SEARCH = {"name": "search", "url": "https://search1:9200", "repository": "backups", "user": "a", "password": "b"}
VOLUMES = {"name": "volumes", "region": "eu-central-1", "instance": "i-0123456789abcdef0"}
FOUND = {
    "inventory_hostname": "db1",
    "group_names": ["db_primary"],
    "ansible_facts": {"distribution_release": "trixie"},
}
GOOD = {"backup_key": "a-key-of-more-than-twenty", "backup_repositories": [FOLDER, SERVER, STORE]}


def refused(**variables: Any) -> set[tuple[str, str]]:
    """The variable and the problem of each rule that does not hold."""
    templar = Templar(loader=DataLoader(), variables={**VARIABLES, **FOUND, **GOOD, **variables})
    return {
        (rule["variable"], rule["problem"])
        for rule in VARIABLES["__backup_rules"]
        if str(templar.template(rule["holds"])) != "True"
    }


def test_what_is_sound_is_taken() -> None:
    assert refused() == set()
    assert refused(backup_keep={}) == set()
    assert refused(backup_repositories=[{**FOLDER, "key": "another-key-of-more-than-twenty"}], backup_key="") == set()
    assert refused(backup_state="absent", backup_key="") == set()
    assert refused(backup_archives=[{"name": "old", "paths": ["/srv/app"], "days": 90, "keep_days": 0}]) == set()
    assert refused(backup_ebs=[VOLUMES, {**VOLUMES, "name": "own", "access_key": "a", "secret_key": "b/c+"}]) == set()
    assert refused(backup_lvm=[{"name": "images", "volume": "vg-0/images.1"}]) == set()
    assert refused(backup_libvirt=[{"name": "web", "domain": "web-1", "disks": ["vda"]}]) == set()
    assert refused(backup_search=[SEARCH, {**SEARCH, "name": "local", "url": "http://127.0.0.1:9200"}]) == set()


@pytest.mark.parametrize(
    ("repository", "change", "problem"),
    [
        (FOLDER, {"name": "all"}, "has a name twice"),
        (FOLDER, {"name": "remote"}, "has a name twice"),
        (FOLDER, {"name": "../up"}, "has a name twice"),
        (FOLDER, {"key": "short"}, "has a key that is too weak"),
        (FOLDER, {"path": "backups"}, "not plain and absolute"),
        (FOLDER, {"path": "/srv/of mine"}, "not plain and absolute"),
        (FOLDER, {"path": "/srv/$(reboot)"}, "not plain and absolute"),
        (SERVER, {"path": None}, "not plain and absolute"),
        (SERVER, {"host": None}, "without host or user"),
        (SERVER, {"host": "-oProxyCommand=reboot"}, "without host or user"),
        (SERVER, {"user": "a b"}, "without host or user"),
        (SERVER, {"private_key": "secret"}, "private_key is none"),
        (SERVER, {"host_key": None}, "without the key of its host"),
        (SERVER, {"host_key": "ssh-ed25519 AAAA backup"}, "without the key of its host"),
        (STORE, {"endpoint": "http://s3.example.com"}, "not that of a store with TLS"),
        (STORE, {"endpoint": "https://s3.example.com/bucket"}, "not that of a store with TLS"),
        (STORE, {"bucket": None}, "without a bucket"),
        (STORE, {"bucket": "Fleet_Sets"}, "without a bucket"),
        (STORE, {"access_key": None}, "access_key or secret_key is missing"),
        (STORE, {"secret_key": "a b"}, "access_key or secret_key is missing"),
        (STORE, {"prefix": "/fleet"}, "no plain folder"),
        (STORE, {"prefix": "fleet//production"}, "no plain folder"),
        (STORE, {"keep": {"last": 0}}, "keeps nothing"),
        (STORE, {"keep": {"daily": -1}}, "keeps less than nothing"),
        (STORE, {"keep": {"within": "30 days"}}, "has a time in within that is none"),
    ],
    ids=str,
)
def test_a_repository_that_is_not_is_refused_by_name(
    repository: dict[str, Any], change: dict[str, Any], problem: str
) -> None:
    changed = {name: value for name, value in {**repository, **change}.items() if value is not None}
    others = [other for other in (FOLDER, SERVER, STORE) if other is not repository]
    found = refused(backup_repositories=[*others, changed])
    assert {variable for variable, _problem in found} == {"backup_repositories"}, found
    assert any(problem in said for _variable, said in found), found
    assert len(found) == 1, found


def test_what_the_release_cannot_do_is_refused() -> None:
    old = {"ansible_facts": {"distribution_release": "bookworm"}}
    assert len(refused(**old)) == 1
    assert refused(**old, backup_postgresql=False) == set()
    assert refused(**old, backup_repositories=[FOLDER, STORE]) == set()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("backup_key", "short"),
        ("backup_key", "has a blank and is long enough"),
        ("backup_repositories", []),
        ("backup_keep", {"last": 0, "daily": 0}),
        ("backup_keep", {"last": -3}),
        ("backup_keep", {"within": "soon"}),
        ("backup_postgresql_full_days", -1),
        ("backup_files", [{"name": "uploads", "paths": ["srv/app"]}]),
        ("backup_files", [{"name": "uploads", "paths": []}]),
        ("backup_files", [{"name": "up loads", "paths": ["/srv/app"]}]),
        ("backup_archives", [{"name": "Old", "paths": ["/srv/app"], "days": 90}]),
        ("backup_archives", [{"name": "old", "paths": ["srv/app"], "days": 90}]),
        ("backup_archives", [{"name": "old", "paths": ["/srv/app"], "days": 0}]),
        ("backup_archives", [{"name": "old", "paths": ["/srv/app"], "days": 90, "keep_days": -1}]),
        ("backup_search", [{"name": "se arch", "url": "https://search1:9200", "repository": "backups"}]),
        ("backup_search", [{"name": "search", "url": "search1:9200", "repository": "backups"}]),
        ("backup_search", [{**SEARCH, "url": "http://search1:9200"}]),
        ("backup_ebs", [VOLUMES, VOLUMES]),
        ("backup_ebs", [{**VOLUMES, "region": "Frankfurt"}]),
        ("backup_ebs", [{**VOLUMES, "instance": "db1"}]),
        ("backup_ebs", [{**VOLUMES, "access_key": "alone"}]),
        ("backup_ebs", [{**VOLUMES, "access_key": "a", "secret_key": "two\nlines"}]),
        ("backup_lvm", [{"name": "images", "volume": "vg0/images"}, {"name": "images", "volume": "vg0/more"}]),
        ("backup_lvm", [{"name": "images", "volume": "/dev/vg0/images"}]),
        ("backup_lvm", [{"name": "images", "volume": "vg0/-images"}]),
        ("backup_libvirt", [{"name": "guest", "domain": "web 1"}]),
        ("backup_libvirt", [{"name": "guest", "domain": "web1", "disks": ["/dev/vda"]}]),
        ("backup_libvirt", [{"name": "guest", "domain": "web1", "shutdown_seconds": 0}]),
        ("backup_libvirt", [{"name": "Guest", "domain": "web1"}]),
    ],
    ids=str,
)
def test_other_values_are_refused_by_name(variable: str, value: Any) -> None:
    assert {name for name, _problem in refused(**{variable: value})} == {variable}


def test_no_two_sources_have_one_name() -> None:
    twice = refused(
        backup_files=[{"name": "images", "paths": ["/srv/app"]}],
        backup_lvm=[{"name": "images", "volume": "vg0/images"}],
    )
    assert {variable for variable, _problem in twice} == {"backup_files", "backup_lvm"}
