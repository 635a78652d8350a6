#!/bin/sh
# A virtual machine of libvirt writes one number after the other to both of its disks, and is saved meanwhile: they come
# back as of one moment, the same or one apart. Killed in the middle, the job goes with the next run. Saved while it is
# off, and restored off, running, and where nothing is left of it. No hardware helps qemu here.
. /root/common.sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
export DEBIAN_FRONTEND=noninteractive
apt-get -qq -y --no-install-recommends install busybox-static cpio libnbd-bin libvirt-clients libvirt-daemon-system \
    linux-image-cloud-amd64 qemu-system-x86 qemu-utils seabios xz-utils >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }

guest=/srv/guest
mkdir -p $guest/files/modules
cp /bin/busybox $guest/files/
release=$(ls /lib/modules | tail -1)
number=10
modprobe -S "$release" --show-depends virtio_pci >$guest/modules
modprobe -S "$release" --show-depends virtio_blk >>$guest/modules
grep '^insmod' $guest/modules | awk '!seen[$2]++ { print $2 }' | while read -r module; do
    number=$((number + 1))
    case $module in *.xz) xz -dc "$module" ;; *) cat "$module" ;; esac >$guest/files/modules/$number.ko
done
cat >$guest/files/init <<'INIT'
#!/busybox sh
bb=/busybox
$bb mkdir -p /dev
$bb mount -t devtmpfs dev /dev
for module in /modules/*; do $bb insmod $module; done
i=$(($($bb head -c 16 /dev/vda)))
while :; do
    i=$((i + 1))
    for disk in vda vdb; do printf '%16d' $i | $bb dd of=/dev/$disk conv=notrunc,fsync 2>/dev/null; done
    $bb usleep 200000  # not all of a processor
done
INIT
chmod 755 $guest/files/init
(cd $guest/files && find . | cpio -o -H newc --quiet | gzip -1) >$guest/initrd
cp "/boot/vmlinuz-$release" $guest/kernel
# Stand in for a firmware with variables, which takes a minute to start here.
cp /usr/share/seabios/bios-256k.bin $guest/firmware
echo variables | dd of=$guest/variables bs=256K conv=sync status=none
printf '%16d' 0 >$guest/first.img
truncate -s 64M $guest/first.img
head -c 12000000 /dev/urandom | dd of=$guest/first.img bs=1M seek=1 conv=notrunc status=none
qemu-img create -q -f raw $guest/base.img 80M
printf '%16d' 0 | dd of=$guest/base.img conv=notrunc status=none
head -c 5000000 /dev/urandom | dd of=$guest/base.img bs=1M seek=20 conv=notrunc status=none
qemu-img create -q -f qcow2 -b base.img -F raw "$guest/second, of two.qcow2"
cat >$guest/definition.xml <<XML
<domain type='qemu'>
  <name>guest</name>
  <memory unit='MiB'>192</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>$guest/firmware</loader>
    <nvram>$guest/variables</nvram>
    <kernel>$guest/kernel</kernel>
    <initrd>$guest/initrd</initrd>
    <cmdline>console=ttyS0 quiet mitigations=off</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='$guest/first.img'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='$guest/second, of two.qcow2'/><target dev='vdb' bus='virtio'/>
    </disk>
    <graphics type='vnc' passwd='hushhush'/>
  </devices>
</domain>
XML
virsh -q define $guest/definition.xml
virsh -q autostart guest
echo '[{"type": "libvirt", "name": "guest", "domain": "guest", "shutdown_seconds": 2}]' >/etc/vmfleet/backup.d/libvirt.json

number() { # What the machine has written to a disk.
    qemu-io -r -U --image-opts "driver=${2:-raw},file.driver=file,file.filename=$(echo "$1" | sed 's/,/,,/g')" \
        -c 'read -v 0 16' | sed -n 's/^00000000:.*[.]//p'
}
first() { number $guest/first.img; }
second() { number "$guest/second, of two.qcow2" qcow2; }
content() { # Of all but what the machine writes.
    tail -c +513 $guest/first.img | sha256sum
    qemu-img convert -U -O raw "$guest/second, of two.qcow2" /srv/raw
    tail -c +513 /srv/raw | sha256sum
    cat $guest/variables
}
writes() { # Waits until the machine writes.
    was=$(first)
    for _try in $(seq 120); do
        [ "$(first)" -gt "$was" ] && return
        sleep 0.5
    done
    die 'the machine writes nothing'
}
off() { [ "$(virsh domstate guest)" = 'shut off' ]; }
clean() {
    off || [ "$(virsh -q domjobinfo guest | grep -c None)" = 1 ] || return 1
    ! ls $guest/*.vmfleet-copied $guest/*.restored 2>/dev/null
}
refuses() { # A run ends with a code, and says something.
    code=$1 words=$2
    shift 2
    rc=0; vmfleet-backup "$@" >/root/said 2>&1 || rc=$?
    [ $rc = "$code" ] && grep -q "$words" /root/said || { cat /root/said; die "$* ended with $rc"; }
}

# Off, and then started while it is read.
content >/root/content
vmfleet-backup snapshot --only guest off
clean || die 'something is left'
before_restic 'virsh -q start guest || :'
refuses 70 'was started while it was read' snapshot --only guest broken
rm /usr/local/bin/restic

writes
vmfleet-backup snapshot --only guest running
clean || die 'something is left'
writes
vmfleet-backup verify running --thorough

# While restic reads.
before_restic 'kill -KILL $(ps -o ppid= -p $PPID)'
! vmfleet-backup snapshot --only guest broken 2>/dev/null || die 'was not killed'
virsh -q domjobinfo guest | grep -q Backup || die 'there was no such moment'
rm /usr/local/bin/restic
vmfleet-backup snapshot --only guest again
clean || die 'the job of the killed run is left'
printf '<domainbackup mode="pull"><server transport="unix" socket="%s/other.sock"/></domainbackup>' \
    "$(echo /var/lib/libvirt/qemu/domain-*-guest)" >$guest/other.xml
sed -i 's#</domainbackup>#<disks><disk name="vda" type="file"><scratch file="/srv/guest/other"/></disk></disks>&#' $guest/other.xml
virsh -q backup-begin guest $guest/other.xml
refuses 64 'has another job' snapshot --only guest broken
virsh -q domjobabort guest
sed -i 's/"domain": "guest",/& "disks": ["vdb"],/' /etc/vmfleet/backup.d/libvirt.json
vmfleet-backup snapshot --only guest vdb
vmfleet-backup verify vdb --thorough
vmfleet-backup --json list | python3 -c '
import json, sys
disks = sorted(json.load(sys.stdin)[-1]["members"][0]["details"]["disks"])
assert disks == ["nvram", "vdb"], disks' || die 'other disks were saved'
sed -i 's/ "disks": \["vdb"\],//' /etc/vmfleet/backup.d/libvirt.json
writes

# Without its disk's content, off.
virsh -q destroy guest
lose() {
    dd if=/dev/zero of=$guest/first.img bs=1M seek=2 count=2 conv=notrunc status=none
    echo lost | dd of=$guest/variables conv=notrunc status=none
}
lose
content >/root/lost
for phase in restore-staging restore-swapping swapped-libvirt; do
    killed $phase running guest
    content | cmp - /root/lost || die "killed at $phase: another content is there"
    clean && off || die "killed at $phase: something is left"
done
vmfleet-backup restore running --only guest --yes >/dev/null
content | cmp - /root/content || die 'another content came back'
off || die 'it was started'
a=$(first) z=$(second)
[ "$a" -gt 0 ] && { [ $((a - z)) = 0 ] || [ $((a - z)) = 1 ]; } || die "a is $a and z is $z, which never was"
[ "$(du -k $guest/first.img | cut -f1)" -lt 20000 ] || die 'what was empty takes room'
vmfleet-backup undo >/dev/null
content | cmp - /root/lost || die 'not undone'

# The same while it runs.
virsh -q start guest
writes
vmfleet-backup restore running --only guest --yes >/dev/null
content | cmp - /root/content || die 'another content came back'
writes
vmfleet-backup undo >/dev/null
content | cmp - /root/lost || die 'not undone'
writes
killed swapped-libvirt off guest
writes
vmfleet-backup restore off --only guest --yes >/dev/null
vmfleet-backup commit
content | cmp - /root/content || die 'another content came back'
writes

# It has a saved state, another machine has its name, and then nothing is there.
virsh -q managedsave guest
refuses 64 'virsh managedsave-remove' restore running --only guest --yes
virsh -q managedsave-remove guest
virsh -q dumpxml guest --inactive --security-info >/root/definition
virsh -q domrename guest other
refuses 64 'virsh domrename' restore running --only guest --yes
virsh -q undefine other --keep-nvram
rm $guest/*.img $guest/*.qcow2 $guest/variables
killed swapped-libvirt running guest
[ -z "$(virsh -q list --all --name)" ] && ! ls $guest/*.img $guest/*.qcow2* 2>/dev/null || die 'not undone'
vmfleet-backup restore running --only guest --yes >/dev/null
vmfleet-backup commit
content | cmp - /root/content || die 'another content came back'
writes
virsh -q dumpxml guest --inactive --security-info | cmp - /root/definition || die 'another definition came back'
virsh -q dominfo guest | grep -q 'Autostart:.*enable' || die 'it does not start by itself'
! grep -rq hushhush /var/log /var/lib/vmfleet /var/backups || die 'a password is where it should not be'

# Nothing of it for those that come later.
vmfleet-backup remove off running again vdb
virsh -q destroy guest
virsh -q undefine guest --keep-nvram
rm -r $guest /srv/raw /etc/vmfleet/backup.d/libvirt.json
