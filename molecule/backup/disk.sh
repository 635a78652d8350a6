#!/bin/sh
# Makes a file system of btrfs and mounts it in a host, which may not open devices itself: disk.sh CONTAINER. Root does
# that by itself, others by a privileged container.
set -eu
container=$1
docker exec "$container" sh -euc '
    export DEBIAN_FRONTEND=noninteractive
    command -v mkfs.btrfs >/dev/null || apt-get -qq -y install btrfs-progs >/dev/null 2>&1
    truncate -s 256M /srv/disk.img
    mkfs.btrfs -q /srv/disk.img >/dev/null
    mkdir -p /srv/disk'
pid=$(docker inspect -f '{{.State.Pid}}' "$container")
if [ "$(id -u)" = 0 ]; then
    root_shell() { sh "$@"; }
else
    image=$(docker inspect -f '{{.Config.Image}}' "$container")
    root_shell() { docker run --rm --privileged --pid=host --network=none --entrypoint sh "$image" "$@"; }
fi
root_shell -euc '
    loop=$(losetup -f --show "/proc/$1/root/srv/disk.img")
    nsenter -t "$1" -m sh -euc "
        rm -f /dev/loop\$1
        mknod /dev/loop\$1 b 7 \$1
        mount -t btrfs /dev/loop\$1 /srv/disk" sh "${loop#/dev/loop}"
    # With the mount it goes too.
    losetup -d "$loop"' sh "$pid"
