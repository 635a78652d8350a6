#!/bin/sh
# Runs a script in a virtual machine that has the files of a host, and more packages: machine.sh CONTAINER SCRIPT PACKAGE...
# For what containers do not have, such as LVM. No hardware helps it, so all takes ten times as long there. The machine has
# a second disk, and no network.
set -eu
container=$1
script=$2
shift 2
name=$container-machine
image=$(docker inspect -f '{{.Config.Image}}' "$container")
docker rm -f "$name" >/dev/null 2>&1 || :
trap 'docker rm -f "$name" >/dev/null 2>&1' EXIT
docker run -d --name "$name" --network bridge --entrypoint sleep "$image" 3600 >/dev/null
docker exec "$name" sh -euc '
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq -y --no-install-recommends install \
        busybox e2fsprogs initramfs-tools linux-image-cloud-amd64 qemu-system-x86 >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
    mkdir /root.d'
docker export "$container" | docker exec -i "$name" tar -xC /root.d --exclude=dev/* --exclude=.dockerenv
docker exec -i "$name" sh -c 'cat >/root.d/root/script; chmod 755 /root.d/root/script' <"$script"
docker exec "$name" sh -euc '
    export DEBIAN_FRONTEND=noninteractive
    cp -a /lib/modules /root.d/lib/
    cp /etc/resolv.conf /root.d/etc/
    chroot /root.d apt-get -qq -y --no-install-recommends install "$@" >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }
    # The image of the fleet has these off, because containers share the devices of their host.
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
    truncate -s 4G /root.img
    mke2fs -q -t ext4 -d /root.d /root.img
    truncate -s 2G /disk.img
    timeout 1800 qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m 1536 -nic none -nographic \
        -no-reboot -kernel /boot/vmlinuz-* -initrd /boot/initrd.img-* \
        -append "root=/dev/vda rw console=ttyS0 quiet mitigations=off systemd.unit=script.service" \
        -drive file=/root.img,if=virtio,format=raw,cache=unsafe \
        -drive file=/disk.img,if=virtio,format=raw,cache=unsafe </dev/null >/tmp/console 2>&1 || :
    tr -d "\r" </tmp/console
    grep -q "^machine: passed" /tmp/console' sh kmod udev "$@"
