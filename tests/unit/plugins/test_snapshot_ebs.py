"""Volumes of EBS in the states that moto does not know; molecule/backup/ebs.sh has the rest against it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot import ebs
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.ebs import Options, Volumes
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import (
    Damaged,
    Denied,
    EngineFailed,
    Key,
    Member,
    Refused,
)
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.repository import LocalPath
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.sources import Context, Target
from botocore.stub import ANY, Stubber

SAVED = {"/dev/sdf": {"volume": "vol-1", "snapshot": "snap-1", "size": 8, "made": {"VolumeType": "gp3"}}}
WORK = {"began": "2026-11-26T00:00:00.000000Z", "volumes": SAVED}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Volumes, Stubber]]:
    """A source, and the answers that it is to get, in their order."""
    monkeypatch.setattr(ebs, "PACE", 0.01)
    repository = LocalPath("main", Key("/key", "id", b"mac"), {"path": str(tmp_path)})
    context = Context("db1", repository, str(tmp_path), lambda line: None)
    source = Volumes("volumes", Options("eu-central-1", instance="i-1"), context)
    client = boto3.client("ec2", region_name="eu-central-1", aws_access_key_id="a", aws_secret_access_key="b")
    source.__dict__["_client"] = client
    with Stubber(client) as stubber:
        yield source, stubber
        stubber.assert_no_pending_responses()


def instance(stubber: Stubber, **devices: tuple[str, str]) -> None:
    """The next answer: volumes and their states by the last letter of their device; ``a`` is booted from."""
    mappings = [
        {"DeviceName": f"/dev/sd{letter}", "Ebs": {"VolumeId": volume, "Status": status}}
        for letter, (volume, status) in {"a": ("vol-0", "attached"), **devices}.items()
    ]
    found = {
        "InstanceId": "i-1",
        "RootDeviceName": "/dev/sda",
        "Placement": {"AvailabilityZone": "eu-central-1a"},
        "BlockDeviceMappings": mappings,
    }
    stubber.add_response("describe_instances", {"Reservations": [{"Instances": [found]}]}, {"InstanceIds": ["i-1"]})


def volumes(stubber: Stubber, **states: str) -> None:
    """The next answer: states of volumes by the number of each."""
    found = [{"VolumeId": f"vol-{name[1:]}", "State": state, "Size": 8} for name, state in states.items()]
    stubber.add_response("describe_volumes", {"Volumes": found}, {"Filters": ANY})


def snapshots(stubber: Stubber, *states: str) -> None:
    found = [
        {"SnapshotId": f"snap-{number}", "State": state, "Progress": "50%"} for number, state in enumerate(states, 1)
    ]
    stubber.add_response("describe_snapshots", {"Snapshots": found}, {"OwnerIds": ["self"], "Filters": ANY})


def member(**changes: Any) -> Member:
    fields = {"engine": "", "label": "snap-1", "consistency": "crash", "began": "", "ended": "", "size": 0, "stored": 0}
    return Member(source="volumes", type="ebs", **{**fields, "details": {"volumes": SAVED}, **changes})


def test_a_set_waits_until_its_snapshots_are_whole(asked: tuple[Volumes, Stubber]) -> None:
    source, stubber = asked
    snapshots(stubber, "pending")
    snapshots(stubber, "completed")
    made = source.finish("one", WORK)
    assert (made.label, made.size, made.consistency) == ("snap-1", 8 << 30, "crash")


@pytest.mark.parametrize(("states", "words"), [(["error"], "snap-1 is error"), ([], "snap-1 is gone")])
def test_a_snapshot_that_fails_is_none(asked: tuple[Volumes, Stubber], states: list[str], words: str) -> None:
    source, stubber = asked
    snapshots(stubber, *states)
    with pytest.raises(EngineFailed, match=words):
        source.finish("one", WORK)
    snapshots(stubber, *states)
    with pytest.raises(Damaged, match=words):
        source.verify(member(), thorough=False)


def test_a_volume_without_a_snapshot_is_told(asked: tuple[Volumes, Stubber]) -> None:
    source, stubber = asked
    instance(stubber, f=("vol-1", "attached"), g=("vol-2", "attached"))
    volumes(stubber, v1="in-use", v2="in-use")
    stubber.add_response("create_snapshots", {"Snapshots": [{"SnapshotId": "snap-1", "VolumeId": "vol-1"}]})
    with pytest.raises(EngineFailed, match="no snapshot was begun of vol-2"):
        source.mark("one", {})


def test_a_volume_on_its_way_out_is_waited_for_and_attached_again(asked: tuple[Volumes, Stubber]) -> None:
    source, stubber = asked
    choice = {"zone": "eu-central-1a", "volumes": SAVED, "existed": {"/dev/sdf": "vol-1"}}
    for _look in range(2):
        instance(stubber, f=("vol-1", "detaching"))
    volumes(stubber, v1="in-use")
    volumes(stubber, v1="available")
    stubber.add_response("attach_volume", {}, {"VolumeId": "vol-1", "InstanceId": "i-1", "Device": "/dev/sdf"})
    volumes(stubber, v1="in-use")
    volumes(stubber, v9="available")
    stubber.add_response("delete_volume", {}, {"VolumeId": "vol-9"})
    source.undo(choice)


def test_a_volume_that_cannot_be_made_ends_it(asked: tuple[Volumes, Stubber]) -> None:
    source, stubber = asked
    stubber.add_response("create_volume", {"VolumeId": "vol-9"})
    volumes(stubber, v9="creating")
    volumes(stubber, v9="error")
    with pytest.raises(EngineFailed, match="vol-9 is error and does not get available"):
        source.stage({"zone": "eu-central-1a", "volumes": SAVED, "existed": {}})


def test_what_it_boots_from_is_not_swapped(asked: tuple[Volumes, Stubber]) -> None:
    source, stubber = asked
    source.options.boot = True
    booted = member(details={"volumes": {"/dev/sda": SAVED["/dev/sdf"]}})
    snapshots(stubber, "completed")
    volumes(stubber)
    instance(stubber)
    with pytest.raises(Refused, match="boot another one from snapshot snap-1"):
        source.choose(booted, [booted], Target())


def test_an_account_that_may_not_is_told(asked: tuple[Volumes, Stubber]) -> None:
    source, stubber = asked
    stubber.add_client_error("describe_instances", "UnauthorizedOperation", "You are not authorized", 403)
    with pytest.raises(Denied, match="UnauthorizedOperation"):
        source.plan()


def test_an_instance_tells_its_id(
    asked: tuple[Volumes, Stubber], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, stubber = asked
    source.options.instance = ""
    told = tmp_path / "asset"
    monkeypatch.setattr(ebs, "IDENTITY", str(told))
    with pytest.raises(Refused, match="does not tell its id"):
        source.plan()
    told.write_text("i-1\n")
    instance(stubber)
    with pytest.raises(Refused, match="i-1 has no volume but the one that it boots from"):
        source.plan()
