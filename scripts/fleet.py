"""Boots, shows and removes the local fleet: Docker containers that run systemd and sshd and behave like VMs.

Everything made here carries VMFLEET_PREFIX (default: vmfleet) and lives in one network (VMFLEET_SUBNET; by default
every prefix has its own), so that several checkouts and tests can run side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import IPAMConfig, IPAMPool
from fleet_settings import ROOT, USER, FleetError, Settings, settings

RELEASES = ("trixie", "bookworm")
REPOSITORY = "vmfleet-host"
RECIPE = ROOT / "scripts" / "fleet-image"
PACKAGES = (
    "apt-utils",
    "ca-certificates",
    "dbus",
    "iproute2",
    "netbase",
    "openssh-server",
    "procps",
    "python3-apt",
    "python3-minimal",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tzdata",
)
LABEL = "vmfleet"
FIRST_FREE_NUMBER = 101
BOOT_TIMEOUT = 90.0

STARTED = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.1f}s] {text}", flush=True)


@dataclass(frozen=True)
class Host:
    name: str
    number: int
    release: str


def connect() -> Any:
    try:
        client = docker.from_env(timeout=300)
        client.ping()
    except DockerException as error:
        raise FleetError(
            "Docker does not answer. scripts/bootstrap starts it, or installs it when run as root;"
            f" or set DOCKER_HOST. ({error})"
        ) from error
    return client


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {what}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# --- image -----------------------------------------------------------------------------------------------------------


@functools.cache
def mirror() -> str:
    """The Debian mirror for the image: the one asked for, else the one that this machine uses, else none: then the base
    image's own."""
    if given := os.environ.get("VMFLEET_MIRROR"):
        return given.rstrip("/")
    if not shutil.which("apt-get"):
        return ""
    sites = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"], capture_output=True, text=True
    ).stdout.split()
    return next((site.removesuffix("/debian") for site in sites if site.endswith("/debian")), "")


def recipe_hash(release: str) -> str:
    digest = hashlib.sha256("\0".join((release, USER, mirror(), *PACKAGES)).encode())
    for part in sorted(RECIPE.iterdir()):
        digest.update(part.read_bytes())
    return digest.hexdigest()[:16]


def archive(*members: tuple[str, bytes, int, int]) -> bytes:
    """A tar of (name, content, mode, uid), the form in which Docker takes files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content, mode, uid in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.gid = len(content), mode, uid, uid
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def debootstrap(client: Any, release: str, tag: str) -> None:
    """Base image from the distribution's packages; needs root and no container registry."""
    root = Path(tempfile.mkdtemp(prefix="vmfleet-image-"))
    log = ROOT / ".fleet" / f"image-{release}.log"
    try:
        root.chmod(0o755)
        command = ["debootstrap", "--force-check-gpg", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        command += [release, str(root / "root"), *([f"{mirror()}/debian"] if mirror() else [])]
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "LC_ALL": "C"}
            )
            assert process.stdout is not None
            shown = time.monotonic()
            for line in process.stdout:
                output.write(line)
                if time.monotonic() - shown > 5:
                    shown = time.monotonic()
                    say(f"image {release}: {line.removeprefix('I: ').strip()}")
        if process.wait() != 0:
            raise FleetError(f"debootstrap ended with {process.returncode}; its output is in {log}.")
        tar = subprocess.Popen(
            ["tar", "-C", str(root / "root"), "--numeric-owner", "-c", "."], stdout=subprocess.PIPE, bufsize=1 << 20
        )
        assert tar.stdout is not None
        repository, _, version = tag.rpartition(":")
        client.api.import_image_from_stream(tar.stdout, repository=repository, tag=version)
        if tar.wait() != 0:
            raise FleetError("tar could not read the new root; is the disk full?")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def base_image(client: Any, release: str) -> str:
    """Tag of a bare Debian: made by debootstrap where that is possible, pulled otherwise."""
    if os.geteuid() == 0 and shutil.which("debootstrap"):
        tag = f"{REPOSITORY}-base:{release}"
        say(f"image {release}: debootstrap from {mirror() or 'its default mirror'}")
        try:
            debootstrap(client, release, tag)
            return tag
        except FleetError as error:
            say(f"image {release}: {error} Pulling debian:{release} instead.")
    else:
        say(f"image {release}: pulling debian:{release} (as root, with debootstrap installed, no registry is needed)")
    try:
        client.images.pull("debian", tag=release)
    except APIError as error:
        raise FleetError(
            f"No base image: debian:{release} cannot be pulled ({error.explanation or error})."
            " Without a container registry run this as root with debootstrap installed (scripts/bootstrap does both)."
        ) from error
    return f"debian:{release}"


def build_image(client: Any, release: str, force: bool) -> None:
    tag = f"{REPOSITORY}:{release}"
    wanted = recipe_hash(release)
    with contextlib.suppress(ImageNotFound):
        if client.images.get(tag).labels.get(f"{LABEL}.recipe") == wanted and not force:
            say(f"image {tag} is up to date")
            return
    base = base_image(client, release)
    say(f"image {release}: customise")
    name = f"{REPOSITORY}-build-{release}-{os.getpid()}"
    builder = client.containers.create(
        base, ["/bin/sh", "/customise", release, USER, mirror(), *PACKAGES], name=name, network_mode="bridge"
    )
    try:
        builder.put_archive("/", archive(("customise", (RECIPE / "customise").read_bytes(), 0o755, 0)))
        builder.put_archive("/usr/local/sbin", archive(("fleet-boot", (RECIPE / "boot").read_bytes(), 0o755, 0)))
        builder.start()
        if builder.wait()["StatusCode"] != 0:
            tail = builder.logs(tail=20).decode(errors="replace")
            raise FleetError(f"The image could not be customised; the last lines were:\n{tail}")
        # Export and import again: one layer, without the files that the steps above took away.
        client.api.import_image_from_stream(
            builder.export(),
            repository=REPOSITORY,
            tag=release,
            changes=[
                'CMD ["/usr/local/sbin/fleet-boot"]',
                "ENV container=docker",
                f"LABEL {LABEL}.recipe={wanted} {LABEL}.release={release}",
            ],
        )
    finally:
        builder.remove(force=True)
        if base.startswith(REPOSITORY):
            client.images.remove(base)
    megabytes = client.images.get(tag).attrs["Size"] // 1_000_000
    say(f"image {tag} is ready, {megabytes} MB")


def command_image(fleet: Settings, arguments: argparse.Namespace) -> None:
    client = connect()
    (ROOT / ".fleet").mkdir(mode=0o700, exist_ok=True)
    releases = RELEASES if arguments.release == "all" else (arguments.release or RELEASES[0],)

    def build(release: str) -> None:
        with locked(Path.home() / ".cache" / "vmfleet" / f"image-{release}.lock", f"another build of {release}"):
            build_image(client, release, arguments.force)

    # dpkg works on one processor.
    with ThreadPoolExecutor() as pool:
        for _built in pool.map(build, releases):
            pass


# --- hosts -----------------------------------------------------------------------------------------------------------


def read_inventory(path: Path, release: str) -> list[Host]:
    """Hosts of an inventory that have a fleet_number; host variable fleet_release picks another Debian."""
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", str(path), "--list"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        raise FleetError(f"{path} cannot be read:\n{result.stderr.strip()}")
    found = json.loads(result.stdout)["_meta"]["hostvars"]
    hosts = [
        Host(name, int(variables["fleet_number"]), str(variables.get("fleet_release", release)))
        for name, variables in found.items()
        if "fleet_number" in variables
    ]
    if not hosts:
        raise FleetError(f"{path} has no host with a fleet_number, so there is nothing to boot.")
    numbers: dict[int, str] = {}
    for host in hosts:
        if not 2 <= host.number <= 254 or host.number in numbers:
            raise FleetError(f"{path}: fleet_number {host.number} of {host.name} is taken or not within 2..254.")
        numbers[host.number] = host.name
    return hosts


def standing(client: Any, fleet: Settings) -> dict[str, Any]:
    """Containers of this fleet by host name."""
    found = client.containers.list(all=True, filters={"label": f"{LABEL}.prefix={fleet.prefix}"})
    return {container.labels[f"{LABEL}.host"]: container for container in found}


def number_of(container: Any) -> int:
    return int(container.labels[f"{LABEL}.number"])


def release_of(container: Any) -> str:
    return str(container.labels[f"{LABEL}.release"])


def throw_away(names: Iterable[str], release: str, present: dict[str, Any], reserved: set[int]) -> list[Host]:
    """Hosts that no inventory knows; they keep their number for as long as they stand."""
    taken = {number_of(container) for container in present.values()} | reserved
    hosts = []
    for name in names:
        if name in present:
            hosts.append(Host(name, number_of(present[name]), release_of(present[name])))
            continue
        number = next(number for number in range(FIRST_FREE_NUMBER, 255) if number not in taken)
        taken.add(number)
        hosts.append(Host(name, number, release))
    return hosts


def ensure_key(fleet: Settings) -> str:
    (ROOT / ".fleet").mkdir(mode=0o700, exist_ok=True)
    fleet.state.mkdir(mode=0o700, exist_ok=True)
    fleet.control_path_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not fleet.key.exists():
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", fleet.prefix, "-f", str(fleet.key)]
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError as error:
            raise FleetError("ssh-keygen is missing: install the OpenSSH client.") from error
    return fleet.key.with_suffix(".pub").read_text()


def refuse_foreign(fleet: Settings, network: Any) -> None:
    """Two checkouts with one prefix must not take hosts away from each other."""
    owner = (network.attrs["Labels"] or {}).get(f"{LABEL}.checkout")
    if owner != str(ROOT):
        raise FleetError(
            f"The fleet {fleet.prefix} belongs to the checkout {owner}. Set VMFLEET_PREFIX to another name here,"
            f" or take that fleet down there: {owner}/scripts/fleet down"
        )


def ensure_network(client: Any, fleet: Settings) -> None:
    try:
        network = client.networks.get(fleet.network)
    except NotFound:
        pool = IPAMPool(subnet=str(fleet.subnet), gateway=fleet.address(1))
        try:
            client.networks.create(
                fleet.network,
                driver="bridge",
                ipam=IPAMConfig(pool_configs=[pool]),
                labels={f"{LABEL}.prefix": fleet.prefix, f"{LABEL}.checkout": str(ROOT)},
            )
        except APIError as error:
            raise FleetError(
                f"Network {fleet.subnet} cannot be made ({error.explanation})."
                " Choose another: VMFLEET_SUBNET=10.x.y.0/24"
            ) from error
        say(f"network {fleet.network} {fleet.subnet}")
        return
    refuse_foreign(fleet, network)
    subnet = network.attrs["IPAM"]["Config"][0]["Subnet"]
    if subnet != str(fleet.subnet):
        raise FleetError(f"The fleet stands on {subnet}, not {fleet.subnet}: scripts/fleet down first.")


def create(client: Any, fleet: Settings, host: Host, public_key: str, names: dict[str, str]) -> Any:
    try:
        container = client.containers.create(
            f"{REPOSITORY}:{host.release}",
            name=fleet.container(host.name),
            hostname=host.name,
            stop_signal="SIGRTMIN+3",
            cap_add=["SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE"],
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            cgroupns="private",
            tmpfs={"/run": "exec,mode=755", "/run/lock": "", "/tmp": "exec,mode=1777"},
            extra_hosts=names,
            network=fleet.network,
            networking_config={
                fleet.network: client.api.create_endpoint_config(
                    ipv4_address=fleet.address(host.number), aliases=[host.name]
                )
            },
            labels={
                f"{LABEL}.prefix": fleet.prefix,
                f"{LABEL}.host": host.name,
                f"{LABEL}.number": str(host.number),
                f"{LABEL}.release": host.release,
            },
        )
    except ImageNotFound as error:
        raise FleetError(f"No image for {host.release}: scripts/fleet image --release {host.release}") from error
    # 1000 is the first ordinary user, which is the one that the image made.
    container.put_archive(f"/home/{USER}/.ssh", archive(("authorized_keys", public_key.encode(), 0o600, 1000)))
    return container


def in_container(container: Any, *command: str) -> tuple[int, str]:
    code, output = container.exec_run(list(command))
    return int(code), output.decode(errors="replace").strip()


def wait_for(what: str, container: Any, probe: Callable[[], str]) -> None:
    """Run the probe until it returns nothing; what it last returned is the reason of a failure."""
    deadline = time.monotonic() + BOOT_TIMEOUT
    reason = ""
    while time.monotonic() < deadline:
        container.reload()
        if container.status != "running":
            tail = container.logs(tail=5).decode(errors="replace").strip()
            raise FleetError(f"{container.name} stopped while booting: {tail or 'no output'}")
        reason = probe()
        if not reason:
            return
        time.sleep(0.3)
    raise FleetError(
        f"{container.name}: {what} not reached in {BOOT_TIMEOUT:.0f} s ({reason}). Look inside with:"
        f" docker exec -it {container.name} systemctl status; docker logs {container.name}"
    )


def boot(fleet: Settings, host: Host, container: Any, public_key: str, names: dict[str, str]) -> str:
    """Make one host stand and answer; returns what had to be done."""
    client = connect()
    done = "stands"
    fresh = container is None
    if fresh:
        container = create(client, fleet, host, public_key, names)
        done = "booted"
    else:
        container = client.containers.get(container.id)
    if container.status == "paused":
        container.unpause()
        done = "unpaused"
    elif container.status != "running":
        container.start()
        done = done if fresh else "started"

    def systemd() -> str:
        state = in_container(container, "systemctl", "is-system-running")[1]
        if state == "degraded" and fresh:
            units = in_container(container, "systemctl", "--failed", "--plain", "--no-legend")[1].splitlines()
            names = ", ".join(line.split()[0] for line in units if line)
            raise FleetError(f"{container.name} booted with failed units: {names or 'none any more'}")
        # A host that already carries services may have a failed one; reaching it is what counts then.
        return "" if state in ("running", "degraded") else f"systemd is {state}"

    wait_for("a running systemd", container, systemd)
    address = fleet.address(host.number)

    def host_key() -> str:
        # On a busy machine Docker may lose what a command in a container has said.
        key = in_container(container, "cat", "/etc/ssh/ssh_host_ed25519_key.pub")[1]
        if not key.startswith("ssh-"):
            return f"cat says {key!r}"
        remember(fleet, address, host.name, key)
        return ""

    wait_for("an ssh host key", container, host_key)

    def login() -> str:
        result = subprocess.run(ssh_command(fleet, address, "true"), capture_output=True, text=True)
        return "" if result.returncode == 0 else f"ssh: {result.stderr.strip()}"

    wait_for("a login by ssh", container, login)
    return done


KNOWN_HOSTS = threading.Lock()


def remember(fleet: Settings, address: str, name: str, key: str) -> None:
    line = f"{address},{name} {' '.join(key.split()[:2])}"
    with KNOWN_HOSTS:
        lines = fleet.known_hosts.read_text().splitlines() if fleet.known_hosts.exists() else []
        if line in lines:
            return
        lines = [old for old in lines if not old.startswith(f"{address},")]
        fleet.known_hosts.write_text("\n".join([*lines, line]) + "\n")
        # A master connection to the container that had this address before would only time out.
        forget_connections(fleet)


def forget_connections(fleet: Settings) -> None:
    if not fleet.control_path_dir.is_dir():
        return
    for socket in fleet.control_path_dir.iterdir():
        if socket.is_socket():
            subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "fleet"], capture_output=True)
            socket.unlink(missing_ok=True)


def ssh_command(fleet: Settings, address: str, *command: str) -> list[str]:
    options = {
        "UserKnownHostsFile": f"'{fleet.known_hosts}'",
        "IdentitiesOnly": "yes",
        "IdentityFile": f"'{fleet.key}'",
        "BatchMode": "yes",
        "ConnectTimeout": "5",
        "LogLevel": "ERROR",
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    return ["ssh", "-F", "none", *flags, f"{USER}@{address}", *command]


def write_inventory(client: Any, fleet: Settings) -> None:
    """An inventory of all that stands, for playbooks on throw-away hosts."""
    hosts = {
        name: {"ansible_host": fleet.address(number_of(container)), "fleet_release": release_of(container)}
        for name, container in sorted(standing(client, fleet).items())
    }
    content = {"all": {"vars": {**fleet.connection_vars(), "ansible_become": True}, "hosts": hosts}}
    # JSON is YAML too, and molecule/shared/inventory.py can read it with the standard library alone.
    fleet.inventory.write_text(json.dumps(content, indent=2) + "\n")


def command_up(fleet: Settings, arguments: argparse.Namespace) -> None:
    client = connect()
    release = arguments.release or RELEASES[0]
    with locked(ROOT / ".fleet" / f"{fleet.prefix}.lock", f"another run on the fleet {fleet.prefix}"):
        present = standing(client, fleet)
        names: dict[str, str] = {}
        if arguments.host:
            hosts = throw_away(arguments.host, release, present, set())
            if arguments.hosts:
                raise FleetError("Give either hosts of the inventory or --host, not both.")
        else:
            known = read_inventory(arguments.inventory, release)
            names = {host.name: fleet.address(host.number) for host in known}
            unknown = set(arguments.hosts) - {host.name for host in known}
            if unknown:
                raise FleetError(
                    f"{arguments.inventory} has no host {', '.join(sorted(unknown))}; --host makes others."
                )
            hosts = [host for host in known if not arguments.hosts or host.name in arguments.hosts]
        for host in hosts:
            if host.name in present and number_of(present[host.name]) != host.number:
                raise FleetError(f"{host.name} stands at another address: scripts/fleet down {host.name} first.")
        for other in sorted({host.release for host in hosts}):
            build_missing(client, other)
        public_key = ensure_key(fleet)
        ensure_network(client, fleet)
        failures = []
        # More at once only makes each of them slower.
        with ThreadPoolExecutor(max_workers=max(4, 2 * (os.cpu_count() or 2))) as pool:
            jobs = {pool.submit(boot, fleet, host, present.get(host.name), public_key, names): host for host in hosts}
            for job in as_completed(jobs):
                host = jobs[job]
                try:
                    say(f"{host.name} {job.result()}: {fleet.address(host.number)}, {host.release}")
                except (FleetError, DockerException) as error:
                    say(f"{host.name} FAILED: {error}")
                    failures.append(host.name)
        write_inventory(client, fleet)
    if failures:
        raise FleetError(f"{len(failures)} of {len(hosts)} hosts did not boot: {', '.join(sorted(failures))}.")
    say(f"{len(hosts)} hosts up; {fleet.inventory.relative_to(ROOT)} lists all that stand")


def build_missing(client: Any, release: str) -> None:
    try:
        client.images.get(f"{REPOSITORY}:{release}")
    except ImageNotFound:
        with locked(Path.home() / ".cache" / "vmfleet" / f"image-{release}.lock", f"another build of {release}"):
            build_image(client, release, force=False)


def remove(container: Any) -> None:
    if container.status == "paused":
        # A frozen process does not die; where cgroups are of version 1, Docker waits for it for ever.
        container.unpause()
    container.remove(force=True, v=True)


def command_down(fleet: Settings, arguments: argparse.Namespace) -> None:
    client = connect()
    with locked(ROOT / ".fleet" / f"{fleet.prefix}.lock", f"another run on the fleet {fleet.prefix}"):
        networks = client.networks.list(filters={"label": f"{LABEL}.prefix={fleet.prefix}"})
        # A checkout that was deleted cannot clean up after itself any more.
        for network in networks:
            if Path((network.attrs["Labels"] or {}).get(f"{LABEL}.checkout", "")).is_dir():
                refuse_foreign(fleet, network)
        present = standing(client, fleet)
        chosen = {name: box for name, box in present.items() if not arguments.hosts or name in arguments.hosts}
        forget_connections(fleet)
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(remove, chosen.values()))
        say(f"{len(chosen)} hosts removed")
        if len(chosen) < len(present):
            write_inventory(client, fleet)
            return
        for network in networks:
            network.remove()
        for volume in client.volumes.list(filters={"label": f"{LABEL}.prefix={fleet.prefix}"}):
            volume.remove(force=True)
        shutil.rmtree(fleet.state, ignore_errors=True)
        shutil.rmtree(fleet.control_path_dir, ignore_errors=True)
        say(f"network, keys and inventory of {fleet.prefix} removed")


def command_status(fleet: Settings, arguments: argparse.Namespace) -> None:
    present = standing(connect(), fleet)
    print(f"fleet {fleet.prefix} on {fleet.subnet}: {len(present)} hosts")
    for name, container in sorted(present.items(), key=lambda item: number_of(item[1])):
        state = container.status
        if state == "running":
            state = f"systemd {in_container(container, 'systemctl', 'is-system-running')[1]}"
        print(f"  {name:<16} {fleet.address(number_of(container)):<16} {release_of(container):<9} {state}")


def command_ssh(fleet: Settings, arguments: argparse.Namespace) -> None:
    present = standing(connect(), fleet)
    if arguments.name not in present:
        raise FleetError(f"No host {arguments.name} stands in the fleet {fleet.prefix}: scripts/fleet status")
    os.execvp("ssh", ssh_command(fleet, fleet.address(number_of(present[arguments.name])), *arguments.command))


def command_guide(fleet: Settings, arguments: argparse.Namespace) -> None:
    """Says what to open and type next; the commands reach this fleet, also when it is not the default one."""
    inventory = read_inventory(ROOT / "inventories" / "local", RELEASES[0])
    address = {host.name: fleet.address(host.number) for host in inventory}
    chosen = [f"{name}={os.environ[name]}" for name in ("VMFLEET_PREFIX", "VMFLEET_SUBNET") if os.environ.get(name)]
    prefix = "".join(f"{setting} " for setting in chosen)
    state, site = os.path.relpath(fleet.state), "api.supernova.test"
    resolve = f"{site}:443:{address['lb1']}"
    entries = {
        f"open {state}/verdict/report.html": "what was checked, and the last runs",
        f"open http://{address['mon1']}:9090/targets": "Prometheus",
        f"curl --cacert {state}/pki/ca.crt --resolve {resolve} https://{site}/whoami": "",
        f"{prefix}scripts/fleet ssh db1": "",
        f"{prefix}make site": 'the site again: nothing changes (ARGS="--check --diff --limit lb1")',
        f"{prefix}make verify": "the verdict again",
        f"{prefix}make demo-down": "take it all away",
    }
    width = max(len(command) for command, words in entries.items() if words)
    print("Next:")
    for command, words in entries.items():
        print(f"  {command:<{width}}  {words}".rstrip())


# --- command line ----------------------------------------------------------------------------------------------------

EXAMPLES = """
examples:
  scripts/fleet image --release all                     build the images of Debian 13 and 12 (only what is missing)
  scripts/fleet up                                      all hosts of inventories/local
  scripts/fleet up lb1 api1                             only these two
  VMFLEET_PREFIX=try scripts/fleet up --host a --host b two bare throw-away hosts in a fleet of their own
  VMFLEET_PREFIX=try ansible-playbook -i .fleet/try/hosts.yml play.yml
  VMFLEET_PREFIX=try scripts/fleet ssh a -- sudo id
  VMFLEET_PREFIX=try scripts/fleet down                 take them away again

environment:
  VMFLEET_PREFIX   name of the fleet and of all that it owns (vmfleet)
  VMFLEET_SUBNET   its /24 network (10.213.0.0/24; another one for each other prefix)
  VMFLEET_MIRROR   Debian mirror for the image (what this machine uses itself)
"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="scripts/fleet",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    image = commands.add_parser("image", help="build the image that hosts boot from, unless it is up to date")
    image.add_argument("--release", choices=[*RELEASES, "all"], help=f"default: {RELEASES[0]}")
    image.add_argument("--force", action="store_true", help="build it even if it is up to date")
    image.set_defaults(run=command_image)

    up = commands.add_parser("up", help="boot hosts, or start again what is stopped; returns when ssh answers")
    up.add_argument("hosts", nargs="*", metavar="NAME", help="only these hosts of the inventory (default: all)")
    up.add_argument("--inventory", type=Path, default=ROOT / "inventories" / "local", help="default: inventories/local")
    up.add_argument("--host", action="append", default=[], metavar="NAME", help="a throw-away host of that name")
    up.add_argument("--release", choices=RELEASES, help=f"Debian of new hosts without a fleet_release ({RELEASES[0]})")
    up.set_defaults(run=command_up)

    down = commands.add_parser("down", help="remove hosts; without names also the network and keys of this prefix")
    down.add_argument("hosts", nargs="*", metavar="NAME")
    down.set_defaults(run=command_down)

    status = commands.add_parser("status", help="show what stands")
    status.set_defaults(run=command_status)

    guide = commands.add_parser("guide", help="say what to open and type next on the local fleet")
    guide.set_defaults(run=command_guide)

    ssh = commands.add_parser("ssh", help="log in to a host, or run a command there")
    ssh.add_argument("name")
    ssh.add_argument("command", nargs="*")
    ssh.set_defaults(run=command_ssh)
    return top


def main() -> int:
    arguments = parser().parse_args()
    try:
        arguments.run(settings(), arguments)
    except FleetError as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1
    except DockerException as error:
        print(f"fleet: Docker refused: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fleet: stopped; run the same command again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
