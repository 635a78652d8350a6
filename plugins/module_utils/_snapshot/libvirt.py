# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Virtual machines of libvirt: their disks, as of one moment while they run, and their definitions, by restic.

A running machine is read by libvirt's backup job in pull mode: nothing of its disks is replaced, and what a killed run
leaves is a job that can be aborted. A restore fills new images beside the live ones, and swaps them while the machine
is off.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import glob
import os
import shlex
import shutil
import stat
import time
import xml.etree.ElementTree as ET
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .._durable import write_durably
from .beside import STAGING, Beside, remove
from .model import EngineFailed, Member, Refused, SnapshotError, now
from .restic import Kept, stored
from .sources import Target
from .tree import identity

# Of the image's name: what the machine overwrites while it is read, kept for whoever reads.
COPIED = ".vmfleet-copied"
DEFINITION = "definition.xml"
# What the variables of a machine's firmware are called among its disks, as which they are saved.
FIRMWARE = "nvram"
# The folder that libvirt has for a running machine, the only one in which AppArmor lets it make a socket.
RUNNING = "/var/lib/libvirt/qemu/domain-{}-*"
SOCKET = "vmfleet-backup.sock"
FORMATS = ("raw", "qcow2")
TIMEOUT = 120
# Reads a disk once, for restic and for its digest. What follows are the words that start restic.
READ = """
[ -p "$0/pipe" ] || mkfifo "$0/pipe"
sha256sum <"$0/pipe" >"$0/sha256" &
nbdcopy -- {source} - | tee "$0/pipe" | "$@"
said=$?
wait
exit $said
"""
WRITE = "nbdcopy --flush -- - [ qemu-nbd --format={format} --discard=unmap --detect-zeroes=unmap {image} ]"


@dataclass
class Options:
    """What operators announce by ``backup_libvirt`` of role backup.

    ``domain`` is the machine as virsh knows it. ``disks`` are those of its disks that are saved, such as ``vda``;
    without any, all are. ``shutdown_seconds`` is for how long a restore waits for the machine to shut down before it
    ends it.
    """

    domain: str
    disks: list[str] = field(default_factory=list)
    shutdown_seconds: int = 120


class Machine(Kept):
    """See the module."""

    kind = "libvirt"
    takes = Options
    options: Options

    def _virsh_for_all(self, purpose: str, *command: str) -> str:
        """:raises EngineFailed: when libvirt refuses.
        :raises Refused: where libvirt is not.
        """
        if shutil.which("virsh") is None:
            raise Refused(f"{self.name}: there is no virsh on this host; install libvirt-clients")
        argv = ["virsh", "--connect", "qemu:///system", "--quiet", *command]
        return self.context.command(purpose, argv, timeout=TIMEOUT).stdout.strip()

    def _virsh(self, command: str, *arguments: str) -> str:
        """The same for a command about this machine."""
        domain = self.options.domain
        return self._virsh_for_all(f"{command} of {domain}", command, domain, *arguments)

    def _listed(self, what: str) -> list[str]:
        """Of all machines that libvirt knows ``name`` or ``uuid``."""
        return self._virsh_for_all("ask libvirt for its machines", "list", "--all", f"--{what}").split("\n")

    def _exists(self) -> bool:
        return self.options.domain in self._listed("name")

    def _number(self) -> str:
        """What libvirt calls the machine while it runs, or nothing."""
        number = self._virsh("domid")
        return number if number.isdigit() else ""

    def _definition(self) -> str:
        """What makes the machine anew, with its passwords."""
        return self._virsh("dumpxml", "--inactive", "--security-info")

    def _facts(self) -> dict[str, str]:
        """What virsh dominfo says, by its words."""
        pairs = (line.partition(":")[::2] for line in self._virsh("dominfo").splitlines())
        return {word: value.strip() for word, value in pairs}

    def _disks(self, definition: str) -> dict[str, dict[str, str]]:
        """Of the disks that are saved ``image`` and ``format``, by name. :raises Refused: for what cannot be saved."""
        parsed = _parsed(definition)
        found = {}
        for disk in parsed.iter("disk"):
            name = _attribute(disk, "target", "dev")
            listed = name in self.options.disks
            if not listed and (
                self.options.disks or disk.get("device", "disk") != "disk" or disk.find("readonly") is not None
            ):
                continue
            image, kind = _attribute(disk, "source", "file"), _attribute(disk, "driver", "type") or "raw"
            if disk.get("type") != "file" or not image:
                raise Refused(
                    f"{self.name}: disk {name} of {self.options.domain} is no file; name the others as disks, and save "
                    "it by what it is, such as backup_lvm"
                )
            if kind not in FORMATS:
                raise Refused(f"{self.name}: disk {name} has the format {kind}; convert it to {' or '.join(FORMATS)}")
            found[name] = {"image": image, "format": kind}
        unknown = sorted(set(self.options.disks) - set(found))
        if unknown or not found:
            raise Refused(f"{self.name}: disks: {self.options.domain} has no {', '.join(unknown) or 'disk to save'}")
        firmware = parsed.find("os/nvram")
        if firmware is not None and firmware.text and os.path.exists(firmware.text):
            found[FIRMWARE] = {"image": firmware.text, "format": firmware.get("format", "raw")}
        return found

    def _sizes(self, name: str, disk: Mapping[str, str]) -> dict[str, int]:
        """Bytes: ``size``, what the machine sees of a disk, and ``takes``, what that takes on the host."""
        if name == FIRMWARE:
            size = os.path.getsize(disk["image"])
            return {"size": size, "takes": size}
        facts = dict(line.partition(":")[::2] for line in self._virsh("domblkinfo", name).splitlines())
        return {"size": int(facts["Capacity"]), "takes": int(facts["Allocation"])}

    def plan(self) -> None:
        if shutil.which("nbdcopy") is None:
            raise Refused(f"{self.name}: there is no nbdcopy on this host; install libnbd-bin")
        if not self._exists():
            raise Refused(f"{self.name}: domain: libvirt has no {self.options.domain}")
        disks = self._disks(self._definition())
        if self._number() and not self._virsh("domjobinfo").endswith("None"):
            raise Refused(f"{self.name}: {self.options.domain} has another job, see virsh domjobinfo; wait for its end")
        # Without it the machine could not write any more.
        overwritten = {disk["image"]: self._sizes(name, disk)["size"] // 5 for name, disk in disks.items()}
        self._room(overwritten, f"what {self.options.domain} overwrites meanwhile")

    def _room(self, wanted: Mapping[str, int], what: str) -> None:
        """:raises Refused: when there is no room for some bytes beside each image, those of a file system together."""
        sizes: collections.Counter[int] = collections.Counter()
        folders = {}
        for image, size in wanted.items():
            folder = os.path.dirname(image)
            device = os.stat(folder).st_dev
            folders[device] = folder
            sizes[device] += size
        for device, size in sizes.items():
            self.context.room(folders[device], size, what)

    def estimate(self) -> int:
        return sum(self._sizes(name, disk)["size"] for name, disk in self._disks(self._definition()).items())

    def mark(self, set_id: str, work: dict[str, Any]) -> dict[str, Any]:
        began, definition = now(), self._definition()
        disks: dict[str, dict[str, Any]] = {}
        for name, disk in self._disks(definition).items():
            disks[name] = {**disk, **self._sizes(name, disk), "identity": identity(os.stat(disk["image"]))}
        number = self._number()
        if number:
            self._begin(number, definition, disks)
        return {"began": began, "definition": definition, "disks": disks, "running": number}

    def _begin(self, number: str, definition: str, disks: Mapping[str, Any]) -> None:
        """Begins the backup job of the machine that runs under a number."""
        job = ET.Element("domainbackup", mode="pull")
        ET.SubElement(job, "server", transport="unix", socket=self._socket(number))
        listed = ET.SubElement(job, "disks")
        for name in [_attribute(disk, "target", "dev") for disk in _parsed(definition).iter("disk")]:
            entry = ET.SubElement(listed, "disk", name=name, backup="yes" if name in disks else "no")
            if name in disks:
                entry.set("type", "file")
                ET.SubElement(entry, "scratch", file=disks[name]["image"] + COPIED)
        path = os.path.join(self.scratch(), "job.xml")
        write_durably(path, ET.tostring(job))
        self._virsh("backup-begin", path)

    def _socket(self, number: str) -> str:
        """Where the job of a running machine answers."""
        folders = glob.glob(RUNNING.format(number))
        if not folders:
            raise EngineFailed(f"{self.name}: {RUNNING.format(number)} is not there; is {self.options.domain} of qemu?")
        return os.path.join(folders[0], SOCKET)

    def finish(self, set_id: str, work: dict[str, Any]) -> Member:
        folder = self.scratch()
        write_durably(f"{folder}/{DEFINITION}", work["definition"].encode())
        saved: dict[str, dict[str, Any]] = {}
        digests, added = {}, 0
        try:
            for name, disk in work["disks"].items():
                self.context.say(f"{self.name}: {name}, {disk['size']} B")
                if work["running"] and name != FIRMWARE:
                    source = [f"nbd+unix:///{name}?socket={self._socket(work['running'])}"]
                else:
                    source = _opened(disk)
                script = READ.format(source=shlex.join(source))
                summary = self.restic.save(
                    set_id,
                    [],
                    "--stdin",
                    f"--stdin-filename={name}",
                    wrapper=["bash", "-o", "pipefail", "-c", script, folder],
                )
                if summary["total_bytes_processed"] != disk["size"]:
                    raise EngineFailed(f"{self.name}: {name}: {summary['total_bytes_processed']} B were read of it")
                with open(f"{folder}/sha256", encoding="ascii") as handle:
                    digests[name] = handle.read().split()[0]
                added += stored(summary)
                saved[name] = {key: disk[key] for key in ("image", "format", "size", "takes")}
                saved[name]["label"] = summary["snapshot_id"]
            if not work["running"] and not all(map(_untouched, work["disks"].values())):
                raise EngineFailed(f"{self.name}: {self.options.domain} was started while it was read; try again")
        finally:
            self.settle()
        details = {
            "folder": folder,
            "disks": saved,
            "running": bool(work["running"]),
            "uuid": _uuid(work["definition"]),
            "autostart": self._facts()["Autostart"] == "enable",
        }
        member = self.save(
            set_id,
            work["began"],
            [f"{folder}/{DEFINITION}"],
            engine="libvirt",
            consistency="crash",
            digests=digests,
            details=details,
        )
        return dataclasses.replace(
            member, size=sum(disk["size"] for disk in saved.values()), stored=member.stored + added
        )

    def settle(self) -> None:
        # Where libvirt is not, or does not answer, there is no job, and other sources do not wait for it.
        with contextlib.suppress(SnapshotError):
            if not self._exists():
                return
            number = self._number()
            if number:
                with contextlib.suppress(EngineFailed):  # there is no job
                    if SOCKET in self._virsh("backup-dumpxml"):
                        self._virsh("domjobabort")
            for disk in self._disks(self._definition()).values():
                remove(disk["image"] + COPIED)

    def labels(self, member: Member) -> list[str]:
        return [member.label, *(disk["label"] for disk in member.details["disks"].values())]

    def prove(self, member: Member) -> dict[str, Any]:
        for name, disk in member.details["disks"].items():
            said = self.restic.dump(disk["label"], name, "sha256sum")
            self.same(name, member.digests[name], said.split()[0])
        return {"disks": len(member.details["disks"]), "bytes": member.size}

    def choose(self, member: Member, members: Sequence[Member], target: Target) -> dict[str, Any]:
        self.only_own_moment(target)
        disks = member.details["disks"]
        existed = Beside.choose({disk["image"]: disk["image"] + STAGING for disk in disks.values()})
        takes = {disk["image"]: disk["takes"] for disk in disks.values()}
        self._room(takes, f"the disks of {self.options.domain}")
        known = self._exists()
        definition = self._definition() if known else ""
        uuid = _uuid(definition) if known else ""
        if uuid != member.details["uuid"] and (known or member.details["uuid"] in self._listed("uuid")):
            raise Refused(
                f"{self.name}: libvirt has another {self.options.domain}, or that one by another name; its id is "
                f"{member.details['uuid']}. Rename it by virsh domrename"
            )
        if known and self._facts()["Managed save"] == "yes":
            raise Refused(
                f"{self.name}: {self.options.domain} would go on from its saved state, which belongs to other disks; "
                "start it, or discard that by virsh managedsave-remove"
            )
        return {
            "label": member.label,
            "folder": member.details["folder"],
            "disks": disks,
            "digests": member.digests,
            "existed": existed,
            # What is put back, if there is something.
            "definition": definition,
            "start": bool(self._number()) if known else member.details["running"],
            "autostart": member.details["autostart"],
        }

    @staticmethod
    def _places(choice: dict[str, Any]) -> dict[str, str]:
        return {image: image + STAGING for image in choice["existed"]}

    def stage(self, choice: dict[str, Any]) -> dict[str, Any]:
        for name, disk in choice["disks"].items():
            self.context.say(f"{self.name}: {name}, {disk['size']} B")
            staged = disk["image"] + STAGING
            argv = ["qemu-img", "create", "-q", "-f", disk["format"], staged, str(disk["size"])]
            self.context.command(f"make {staged}", argv, timeout=TIMEOUT)
            self._as_live(disk["image"], staged)
            self.restic.dump(disk["label"], name, WRITE.format(format=disk["format"], image=shlex.quote(staged)))
            read = shlex.join(["nbdcopy", "--", *_opened({**disk, "image": staged}), "-"])
            argv = ["bash", "-o", "pipefail", "-c", f"{read} | sha256sum"]
            said = self.context.command(f"read {staged}", argv).stdout
            self.same(name, choice["digests"][name], said.split()[0])
        return {"disks": len(choice["disks"]), "bytes": sum(disk["size"] for disk in choice["disks"].values())}

    @staticmethod
    def _as_live(live: str, staged: str) -> None:
        """Has an image as safe as the one that it replaces, or for root only."""
        os.chmod(staged, 0o600)
        if os.path.exists(live):
            status = os.stat(live)
            os.chown(staged, status.st_uid, status.st_gid)
            os.chmod(staged, stat.S_IMODE(status.st_mode))

    def swap(self, choice: dict[str, Any]) -> None:
        # What it is to be is at hand before anything stops.
        path = f"{self.fetch(choice['label'], choice['folder'])}/{DEFINITION}"
        _stand_alone(path, choice["disks"])
        self._stop()
        Beside(self.context, []).swap(choice["existed"], self._places(choice))
        self._define(path)
        if not choice["definition"] and choice["autostart"]:
            self._virsh("autostart")
        self._start(choice)

    def _define(self, path: str) -> None:
        self._virsh_for_all(f"define {self.options.domain}", "define", path)

    def _start(self, choice: dict[str, Any]) -> None:
        if choice["start"] and not self._number():
            self._virsh("start")

    def _stop(self) -> None:
        """Has the machine shut down, or ends it when it does not."""
        if not self._exists() or not self._number():
            return
        self._virsh("shutdown")
        ends = time.monotonic() + self.options.shutdown_seconds
        while self._number():
            if time.monotonic() > ends:
                self.context.say(f"{self.options.domain} does not shut down, and is ended")
                self._virsh("destroy")
                return
            time.sleep(0.5)

    def undo(self, choice: dict[str, Any]) -> None:
        places = self._places(choice)
        if Beside.swapped(choice["existed"], places):
            self._stop()
        Beside(self.context, []).undo(choice["existed"], places)
        if choice["definition"]:
            path = os.path.join(self.scratch(), DEFINITION)
            write_durably(path, choice["definition"].encode())
            self._define(path)
            self._start(choice)
        elif self._exists():
            self._stop()
            self._virsh("undefine", "--keep-nvram")

    def commit(self, choice: dict[str, Any]) -> None:
        Beside.commit(choice["existed"])


def _attribute(element: ET.Element, below: str, key: str) -> str:
    """Of the first element of a name below another one an attribute, or nothing."""
    found = element.find(below)
    return "" if found is None else found.get(key, "")


def _untouched(disk: Mapping[str, Any]) -> bool:
    """Whether an image is as it was when it was marked."""
    return identity(os.stat(disk["image"])) == list(disk["identity"])


def _stand_alone(path: str, disks: Collection[str]) -> None:
    """Has a definition know nothing of images that disks were based on: what is restored holds it all."""
    with open(path, encoding="utf-8") as handle:
        found = _parsed(handle.read())
    for disk in found.iter("disk"):
        for below in disk.findall("backingStore") if _attribute(disk, "target", "dev") in disks else []:
            disk.remove(below)
    write_durably(path, ET.tostring(found))


def _parsed(definition: str) -> ET.Element:
    return ET.fromstring(definition)  # noqa: S314 - libvirt has written it


def _uuid(definition: str) -> str:
    return _parsed(definition).findtext("uuid", "")


def _opened(disk: Mapping[str, str]) -> list[str]:
    """What nbdcopy takes for an image that nobody else is kept from."""
    image = disk["image"].replace(",", ",,")
    options = f"driver={disk['format']},file.driver=file,file.filename={image},read-only=on,force-share=on"
    return ["[", "qemu-nbd", "--read-only", "--image-opts", options, "]"]
