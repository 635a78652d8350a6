# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What of a virtual machine is saved; that it comes back is the business of scenario backup."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot import libvirt
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import Key, Refused
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.repository import LocalPath
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.sources import Context

IMAGE = "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/srv/a.qcow2'/><target dev='vda'/></disk>"
PLAIN = "<disk type='file' device='disk'><source file='/srv/b.img'/><target dev='vdb'/></disk>"
MEDIUM = "<disk type='file' device='cdrom'><source file='/srv/c.iso'/><target dev='sda'/><readonly/></disk>"
VOLUME = "<disk type='block' device='disk'><source dev='/dev/vg0/c'/><target dev='vdc'/></disk>"
OTHER = "<disk type='file'><driver type='vmdk'/><source file='/srv/d.vmdk'/><target dev='vdd'/></disk>"


def disks(*devices: str, only: list[str] | None = None, system: str = "") -> dict[str, Any]:
    """What is saved of a machine with these devices."""
    context: Any = None
    machine = libvirt.Machine("guest", libvirt.Options("guest", only or []), context)
    return machine._disks(f"<domain><os>{system}</os><devices>{''.join(devices)}</devices></domain>")


def test_disks_are_saved_and_media_are_not() -> None:
    assert disks(IMAGE, PLAIN, MEDIUM) == {
        "vda": {"image": "/srv/a.qcow2", "format": "qcow2"},
        "vdb": {"image": "/srv/b.img", "format": "raw"},
    }
    assert set(disks(IMAGE, PLAIN, VOLUME, only=["vdb"])) == {"vdb"}


def test_the_variables_of_firmware_are_saved_where_it_has_some(tmp_path: Path) -> None:
    variables = tmp_path / "variables"
    system = f"<nvram template='/usr/share/OVMF/vars'>{variables}</nvram>"
    assert set(disks(IMAGE, system=system)) == {"vda"}
    variables.write_bytes(b"")
    assert disks(IMAGE, system=system)["nvram"] == {"image": str(variables), "format": "raw"}


@pytest.mark.parametrize(
    ("devices", "only", "words"),
    [
        ([IMAGE, VOLUME], [], "disk vdc of guest is no file"),
        ([IMAGE, OTHER], [], "disk vdd has the format vmdk"),
        ([IMAGE], ["vdb"], "guest has no vdb"),
        ([MEDIUM], [], "guest has no disk to save"),
    ],
)
def test_what_cannot_be_saved_is_refused(devices: list[str], only: list[str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        disks(*devices, only=only)


def test_images_of_one_file_system_need_room_together(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    repository = LocalPath("main", Key("/key", "id", b"mac"), {"path": str(tmp_path)})
    machine = libvirt.Machine("guest", libvirt.Options("guest"), Context("host", repository, str(tmp_path), print))
    most = shutil.disk_usage(tmp_path).free * 2 // 3
    machine._room({f"{tmp_path}/vda": most, f"{tmp_path}/other/vdb": 0}, "the disks of guest")
    with pytest.raises(Refused, match=f"the disks of guest may take {2 * most} B; make room"):
        machine._room({f"{tmp_path}/vda": most, f"{tmp_path}/other/vdb": most}, "the disks of guest")


def test_what_is_restored_is_based_on_nothing(tmp_path: Path) -> None:
    based = "<backingStore type='file'><source file='/srv/base.img'/></backingStore>"
    path = tmp_path / "definition.xml"
    disk, other = IMAGE.replace("<target", f"{based}<target"), PLAIN.replace("<target", f"{based}<target")
    path.write_text(f"<domain><devices>{disk}{other}</devices></domain>")
    libvirt._stand_alone(str(path), ["vda"])
    wanted = f"<domain><devices>{IMAGE}{other}</devices></domain>"
    assert path.read_text() == wanted.replace("'", '"').replace("/>", " />")
