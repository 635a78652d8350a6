# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Volumes of Amazon EBS, by snapshots of one moment of all that are attached to this instance.

A restore makes new volumes of the snapshots and puts them in the place of the attached ones, which stay, detached,
until commit.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import aws
from .beside import mount_points, systemctl
from .model import Damaged, Denied, EngineFailed, Member, Refused, SnapshotError, now
from .sources import PATIENCE, Source, Target

# Where an instance of the Nitro generations tells its id, see "Identify EC2 instances" in AWS' guide.
IDENTITY = "/sys/devices/virtual/dmi/id/board_asset_tag"
BY_ID = "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_"
# Seconds between the first two looks at something that is being made, and at most.
PACE, SLOWEST = 1.0, 15.0
# Tags of what is ours, and what volumes were made for.
OWNER, SET, DEVICE, PURPOSE = "vmfleet-source", "vmfleet-set", "vmfleet-device", "vmfleet-purpose"
PROOF, RESTORE = "proof", "restore"
REFUSALS = ("AuthFailure", "InvalidClientTokenId", "SignatureDoesNotMatch", "UnauthorizedOperation")
GONE = "InvalidVolume.NotFound"
GIB = 1 << 30


@dataclass
class Options:
    """What operators announce by ``backup_ebs`` of role backup.

    ``instance`` is this one's id, where it does not tell. ``boot`` saves the volume that it boots from, too. ``units``
    use the volumes, mount units among them, and are stopped while a restore swaps these.
    """

    region: str
    instance: str = ""
    boot: bool = False
    units: list[str] = field(default_factory=list)
    endpoint: str = ""
    credentials_file: str = ""


class Volumes(Source):
    """See the module."""

    kind = "ebs"
    takes = Options
    options: Options

    @functools.cached_property
    def _client(self) -> Any:
        options = self.options
        return aws.client(
            self.name,
            "ec2",
            region=options.region,
            endpoint=options.endpoint,
            credentials_file=options.credentials_file,
        )

    def _ask(self, operation: str, **arguments: Any) -> Any:
        """:raises Denied: when the account may not do that.
        :raises EngineFailed: for every other error.
        """
        client = self._client
        # There, as the client is.
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            if client.can_paginate(operation):
                return client.get_paginator(operation).paginate(**arguments).build_full_result()
            return getattr(client, operation)(**arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            refused = Denied if code in REFUSALS else EngineFailed
            raise refused(f"{self.name}: {operation}: {error}") from error
        except (BotoCoreError, ResponseParserError) as error:
            raise EngineFailed(f"{self.name}: {operation}: {error}") from error

    @property
    def _instance(self) -> str:
        """The id of this instance. :raises Refused: when it does not tell."""
        if self.options.instance:
            return self.options.instance
        with contextlib.suppress(OSError), open(IDENTITY, encoding="ascii") as handle:
            found = handle.read().strip()
            if found.startswith("i-"):
                return found
        raise Refused(f"{self.name}: instance: this host does not tell its id; give it")

    def _described(self) -> dict[str, Any]:
        """Of this instance its ``zone``, the device that it boots from as ``root``, and ``devices``, the volumes that
        are saved by their devices.
        """
        found = self._ask("describe_instances", InstanceIds=[self._instance])["Reservations"][0]["Instances"][0]
        root = found.get("RootDeviceName", "")
        devices = {
            entry["DeviceName"]: entry["Ebs"]["VolumeId"]
            for entry in found["BlockDeviceMappings"]
            if entry["Ebs"]["Status"] not in ("detaching", "detached")
            and (self.options.boot or entry["DeviceName"] != root)
        }
        return {"zone": found["Placement"]["AvailabilityZone"], "root": root, "devices": devices}

    def _volumes(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        found = self._ask("describe_volumes", Filters=_filters({"volume-id": ids}))["Volumes"]
        return {volume["VolumeId"]: volume for volume in found}

    @property
    def _owner(self) -> str:
        """Of the snapshots and volumes of this source, host and repository, and of no others."""
        return f"{self.context.repository.name}/{self.context.host}/{self.name}"

    def _tags(self, kind: str, tags: Mapping[str, str]) -> list[dict[str, Any]]:
        named = {"Name": f"vmfleet {self._owner}", OWNER: self._owner, **tags}
        return [{"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in named.items()]}]

    def plan(self) -> None:
        if not self._described()["devices"]:
            raise Refused(f"{self.name}: {self._instance} has no volume but the one that it boots from; say boot: true")

    def estimate(self) -> int:
        devices = self._described()["devices"]
        return sum(int(volume["Size"]) for volume in self._volumes(list(devices.values())).values()) * GIB

    def mark(self, set_id: str, work: dict[str, Any]) -> dict[str, Any]:
        began = now()
        devices = self._described()["devices"]
        volumes = self._volumes(list(devices.values()))
        made = self._ask(
            "create_snapshots",
            InstanceSpecification={"InstanceId": self._instance, "ExcludeBootVolume": not self.options.boot},
            TagSpecifications=self._tags("snapshot", {SET: set_id}),
        )["Snapshots"]
        snapshots = {entry["VolumeId"]: entry["SnapshotId"] for entry in made}
        missing = sorted(set(devices.values()) - set(snapshots))
        if missing:
            raise EngineFailed(f"{self.name}: no snapshot was begun of {', '.join(missing)}")
        saved = {}
        for device, volume_id in devices.items():
            volume = volumes[volume_id]
            # What the type of the volume has; of the others some are not to be asked for.
            asked = {"gp3": ("Iops", "Throughput"), "io1": ("Iops",), "io2": ("Iops",)}.get(volume["VolumeType"], ())
            saved[device] = {
                "volume": volume_id,
                "snapshot": snapshots[volume_id],
                "size": volume["Size"],
                "made": {key: volume[key] for key in ("VolumeType", *asked) if key in volume},
            }
        return {"began": began, "volumes": saved}

    def _snapshots(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        found = self._ask("describe_snapshots", OwnerIds=["self"], Filters=_filters({"snapshot-id": ids}))["Snapshots"]
        return {snapshot["SnapshotId"]: snapshot for snapshot in found}

    def finish(self, set_id: str, work: dict[str, Any]) -> Member:
        ids = [saved["snapshot"] for saved in work["volumes"].values()]
        ends, pace = time.monotonic() + PATIENCE, PACE
        while True:
            found = self._snapshots(ids)
            wrong = _not_in(found, ids, "pending", "completed")
            if wrong:
                raise EngineFailed(f"{self.name}: snapshot {wrong}")
            waiting = [snapshot for snapshot in found.values() if snapshot["State"] == "pending"]
            if not waiting:
                break
            if time.monotonic() > ends:
                raise EngineFailed(f"{self.name}: snapshot {waiting[0]['SnapshotId']} is still pending after a day")
            self.context.say(f"{self.name}: {', '.join(snapshot['Progress'] or '0%' for snapshot in waiting)}")
            time.sleep(pace)
            pace = min(2 * pace, SLOWEST)
        return Member(
            source=self.name,
            type=self.kind,
            engine="Amazon EBS",
            label=ids[0],
            # As after a power cut, of all volumes at once.
            consistency="crash",
            began=work["began"],
            ended=now(),
            size=sum(saved["size"] for saved in work["volumes"].values()) * GIB,
            # EBS keeps what changed and does not say how much that is.
            stored=0,
            details={"volumes": work["volumes"]},
        )

    def _check(self, member: Member) -> None:
        """:raises Damaged: when a snapshot is gone or was never whole."""
        ids = [saved["snapshot"] for saved in member.details["volumes"].values()]
        wrong = _not_in(self._snapshots(ids), ids, "completed")
        if wrong:
            raise Damaged(f"{self.name}: snapshot {wrong}")

    def verify(self, member: Member, thorough: bool) -> dict[str, Any]:
        self._check(member)
        proven: dict[str, Any] = {"engine": "verified"}
        if thorough:
            try:
                self._make(member.details["volumes"], self._described()["zone"], PROOF)
            finally:
                self._unmake(PROOF)
            proven["volumes"] = len(member.details["volumes"])
        return proven

    def _make(self, volumes: Mapping[str, Any], zone: str, purpose: str) -> None:
        """Makes volumes of snapshots, and waits for them. :raises EngineFailed:"""
        made = []
        for device, saved in volumes.items():
            tags = self._tags("volume", {PURPOSE: purpose, DEVICE: device})
            answer = self._ask(
                "create_volume",
                SnapshotId=saved["snapshot"],
                AvailabilityZone=zone,
                TagSpecifications=tags,
                **saved["made"],
            )
            made.append(answer["VolumeId"])
        self._until(made, "available")

    def _until(self, ids: Sequence[str], state: str) -> None:
        """Waits until volumes are ``available`` or ``in-use``. :raises EngineFailed: when they do not get so."""
        ends, pace = time.monotonic() + PATIENCE, PACE
        while ids:
            found = self._volumes(ids)
            states = {name: found.get(name, {}).get("State", "gone") for name in ids}
            if set(states.values()) == {state}:
                return
            bad = [name for name, seen in states.items() if seen in ("error", "gone", "deleting", "deleted")]
            if bad or time.monotonic() > ends:
                name = (bad or list(states))[0]
                raise EngineFailed(f"{self.name}: volume {name} is {states[name]} and does not get {state}")
            time.sleep(pace)
            pace = min(2 * pace, SLOWEST)

    def _made(self, purpose: str) -> list[dict[str, Any]]:
        """Our volumes for a purpose."""
        filters = _filters({f"tag:{OWNER}": [self._owner], f"tag:{PURPOSE}": [purpose]})
        found = self._ask("describe_volumes", Filters=filters)["Volumes"]
        return [volume for volume in found if volume["State"] not in ("deleting", "deleted")]

    def _unmake(self, purpose: str) -> None:
        for volume in self._made(purpose):
            self._delete(volume["VolumeId"])

    def _delete(self, volume_id: str) -> None:
        try:
            self._ask("delete_volume", VolumeId=volume_id)
        except EngineFailed as error:
            if GONE not in str(error):
                raise

    def settle(self) -> None:
        # An AWS that does not answer keeps no run of other sources.
        with contextlib.suppress(SnapshotError):
            self._unmake(PROOF)

    def choose(self, member: Member, members: Sequence[Member], target: Target) -> dict[str, Any]:
        self.only_own_moment(target)
        self._check(member)
        left = self._made(RESTORE)
        if left:
            names = ", ".join(volume["VolumeId"] for volume in left)
            raise Refused(f"{self.name}: {names}: of a restore that is not open; look at it, and delete it")
        found = self._described()
        if found["root"] in member.details["volumes"]:
            raise Refused(
                f"{self.name}: {found['root']} is what this instance runs from; boot another one from snapshot "
                f"{member.details['volumes'][found['root']]['snapshot']}"
            )
        existed = {device: found["devices"].get(device, "") for device in member.details["volumes"]}
        if not self.options.units:
            self._unused(existed)
        return {"zone": found["zone"], "volumes": member.details["volumes"], "existed": existed}

    def _unused(self, existed: Mapping[str, str]) -> None:
        """:raises Refused: when something of a volume is mounted."""
        for device, volume_id in existed.items():
            places = [BY_ID + volume_id.replace("-", ""), device, device.replace("/dev/sd", "/dev/xvd")]
            for place in filter(os.path.exists, places if volume_id else []):
                mounted = mount_points(place)
                if mounted:
                    raise Refused(
                        f"{self.name}: {volume_id} is mounted at {', '.join(mounted)}; name the mount unit and what "
                        "uses it as units"
                    )

    def stage(self, choice: dict[str, Any]) -> dict[str, Any]:
        self._make(choice["volumes"], choice["zone"], RESTORE)
        return {"volumes": len(choice["volumes"])}

    def swap(self, choice: dict[str, Any]) -> None:
        systemctl(self.context, "stop", self.options.units)
        self._unused(choice["existed"])
        self._exchange({_tag(volume, DEVICE): volume["VolumeId"] for volume in self._made(RESTORE)}, choice)
        systemctl(self.context, "start", self.options.units)

    def _exchange(self, wanted: Mapping[str, str], choice: dict[str, Any]) -> None:
        """Has these volumes attached at the devices of a restore, and no others."""
        devices = self._described()["devices"]
        others = [devices[device] for device in choice["existed"] if devices.get(device) not in (None, wanted[device])]
        for volume_id in others:
            self._ask("detach_volume", VolumeId=volume_id, InstanceId=self._instance)
        missing = {device: name for device, name in wanted.items() if name and devices.get(device) != name}
        self._until([*others, *missing.values()], "available")
        for device, volume_id in missing.items():
            self._ask("attach_volume", VolumeId=volume_id, InstanceId=self._instance, Device=device)
        self._until(list(missing.values()), "in-use")

    def undo(self, choice: dict[str, Any]) -> None:
        devices = self._described()["devices"]
        swapped = {device: devices.get(device, "") for device in choice["existed"]} != choice["existed"]
        if swapped:
            systemctl(self.context, "stop", self.options.units)
            self._exchange(choice["existed"], choice)
        self._unmake(RESTORE)
        systemctl(self.context, "start", self.options.units)

    def commit(self, choice: dict[str, Any]) -> None:
        for volume_id in filter(None, choice["existed"].values()):
            self._delete(volume_id)
        for volume in self._made(RESTORE):
            self._ask("delete_tags", Resources=[volume["VolumeId"]], Tags=[{"Key": PURPOSE}])

    def prune(self, keep: Sequence[Member]) -> None:
        needed = {saved["snapshot"] for member in keep for saved in member.details["volumes"].values()}
        filters = _filters({f"tag:{OWNER}": [self._owner]})
        for snapshot in self._ask("describe_snapshots", OwnerIds=["self"], Filters=filters)["Snapshots"]:
            if snapshot["SnapshotId"] not in needed:
                self._ask("delete_snapshot", SnapshotId=snapshot["SnapshotId"])


def _filters(wanted: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    return [{"Name": name, "Values": list(values)} for name, values in wanted.items()]


def _not_in(found: Mapping[str, Mapping[str, Any]], ids: Sequence[str], *states: str) -> str:
    """The first that is in none of these states, and what it is in; nothing when all are."""
    seen = {name: found.get(name, {}).get("State", "gone") for name in ids}
    return next((f"{name} is {state}" for name, state in seen.items() if state not in states), "")


def _tag(resource: Mapping[str, Any], key: str) -> str:
    return next((str(tag["Value"]) for tag in resource.get("Tags", []) if tag["Key"] == key), "")
