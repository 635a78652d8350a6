#!/bin/sh
# A virtual machine that has the files of a host, for what containers do not have, such as LVM:
#   machine.sh make CONTAINER PACKAGE...   takes the files, and adds packages
#   machine.sh run CONTAINER SCRIPT        boots it and runs a script in it, once
# No hardware helps it, so all takes ten times as long there. The machine has a second disk, and no network.
set -eu
action=$1
container=$2
shift 2
name=$container-machine
inside() { docker exec -i "$name" "$@"; }

make() {
    image=$(docker inspect -f '{{.Config.Image}}' "$container")
    docker rm -f "$name" >/dev/null 2>&1 || :
    docker run -d --rm --name "$name" --network bridge --entrypoint sleep "$image" 7200 >/dev/null
    inside mkdir /root.d
    docker export "$container" | inside tar -xC /root.d --exclude=dev/* --exclude=.dockerenv
    # The image of the fleet has those units off, because containers share the devices of their host.
    inside sh -euc '
        export DEBIAN_FRONTEND=noninteractive
        install() { apt-get -qq -y --no-install-recommends install "$@"; }
        apt-get -qq update
        install busybox e2fsprogs initramfs-tools linux-image-cloud-amd64 qemu-system-x86
        cp -a /lib/modules /root.d/lib/
        cp /etc/resolv.conf /root.d/etc/
        chroot /root.d apt-get -qq -y --no-install-recommends install kmod udev "$@"
        rm -f /root.d/etc/systemd/system/systemd-udev*
        cat >/root.d/etc/systemd/system/script.service <<UNIT
[Unit]
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate

[Service]
Type=oneshot
ExecStart=/bin/sh -c "/root/script && echo machine: passed"
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
UNIT
    ' sh "$@" >/dev/null
}

run() {
    trap 'docker rm -f "$name" >/dev/null 2>&1' EXIT
    inside sh -c 'cat >/root.d/root/script; chmod 755 /root.d/root/script' <"$1"
    inside sh -euc '
        truncate -s 4G /root.img
        mke2fs -q -t ext4 -d /root.d /root.img
        truncate -s 2G /disk.img
        timeout 1800 qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m 1536 -nic none \
            -nographic -no-reboot -kernel /boot/vmlinuz-* -initrd /boot/initrd.img-* \
            -append "root=/dev/vda rw console=ttyS0 quiet mitigations=off systemd.unit=script.service" \
            -drive file=/root.img,if=virtio,format=raw,cache=unsafe \
            -drive file=/disk.img,if=virtio,format=raw,cache=unsafe </dev/null >/tmp/console 2>&1 || :
        tr -d "\r" </tmp/console
        grep -q "^machine: passed" /tmp/console'
}

"$action" "$@"
