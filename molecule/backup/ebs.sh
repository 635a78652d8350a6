#!/bin/sh
# Volumes of an instance are saved, lost, and come back as new ones: ebs.sh ENDPOINT, of a stand-in that speaks EC2.
. /root/common.sh
endpoint=$1
announced=/etc/vmfleet/backup.d/backup.json
settings=/etc/vmfleet/backup/settings.json
cp -p $announced $settings /root
trap 'cp -p /root/backup.json $announced; cp -p /root/settings.json $settings; rm -rf /root/ebs.py /dev/disk' EXIT
cat >/root/ebs.py <<END
import sys
import boto3
ec2 = boto3.client("ec2", endpoint_url="$endpoint", region_name="eu-central-1",
                   aws_access_key_id="tester", aws_secret_access_key="only-for-ebs")
verb, *names = sys.argv[1:]
if verb == "make":
    instance = ec2.run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1)["Instances"][0]
    for device, size in (("/dev/sdf", 8), ("/dev/sdg", 20)):
        volume = ec2.create_volume(Size=size, VolumeType="gp3", AvailabilityZone=instance["Placement"]["AvailabilityZone"])
        ec2.attach_volume(VolumeId=volume["VolumeId"], InstanceId=instance["InstanceId"], Device=device)
    print(instance["InstanceId"])
elif verb == "devices":
    (found,) = ec2.describe_instances(InstanceIds=names)["Reservations"][0]["Instances"]
    for entry in found["BlockDeviceMappings"]:
        (volume,) = ec2.describe_volumes(VolumeIds=[entry["Ebs"]["VolumeId"]])["Volumes"]
        print(entry["DeviceName"], volume["VolumeId"], volume["Size"], volume.get("SnapshotId") or "-")
elif verb == "lose":
    ec2.detach_volume(VolumeId=names[1], InstanceId=names[0])
    ec2.delete_volume(VolumeId=names[1])
elif verb in ("snapshots", "volumes"):
    owned = [{"Name": "tag:vmfleet-source", "Values": names}]
    found = ec2.describe_snapshots(Filters=owned)["Snapshots"] if verb == "snapshots" else [
        volume for volume in ec2.describe_volumes(Filters=owned)["Volumes"]
        if "vmfleet-purpose" in {tag["Key"] for tag in volume["Tags"]}
    ]
    print(*sorted(one.get("SnapshotId") or one["VolumeId"] for one in found))
elif verb == "forget":
    ec2.delete_snapshot(SnapshotId=names[0])
END
ec2() { python3 /root/ebs.py "$@"; }
instance=$(ec2 make)
sed -i "s/i-0123456789abcdef0/$instance/" $announced
sed -i '/"volumes"/d; s/"papers",/"papers"/' $settings
owner=$(vmfleet-backup list >/dev/null && python3 -c '
import json
settings = json.load(open("/etc/vmfleet/backup/settings.json"))
print(settings["repositories"][0]["name"], settings["host"], "volumes", sep="/")')
at() { ec2 devices "$instance" | grep "^$1 " | cut -d' ' -f"$2"; }
ends() {
    wanted=$1
    shift
    rc=0; "$@" 2>/root/said || rc=$?
    [ $rc = "$wanted" ] || die "$* ended with $rc: $(cat /root/said)"
}
first=$(ec2 devices "$instance")
echo "$first"

vmfleet-backup snapshot --only volumes one
vmfleet-backup verify one --thorough
[ -z "$(ec2 volumes "$owner")" ] || die 'a proof left volumes'
[ "$(ec2 devices "$instance")" = "$first" ] || die 'a proof changed the instance'

# Something of a volume is mounted, where the host has such a device.
sdf=$(at /dev/sdf 2)
sdg=$(at /dev/sdg 2)
if mountpoint -q /srv/disk; then
    mkdir -p /dev/disk/by-id
    ln -s "$(findmnt -no SOURCE /srv/disk)" "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_$(echo "$sdf" | tr -d -)"
    ends 64 vmfleet-backup restore one --only volumes --yes
    grep -q "$sdf is mounted at /srv/disk" /root/said || die "$(cat /root/said)"
    rm -r /dev/disk
fi

# One is lost; the other one holds what is not wanted any more.
ec2 lose "$instance" "$sdg"
lost=$(ec2 devices "$instance")
restored() {
    [ "$(at /dev/sdf 3) $(at /dev/sdg 3)" = '8 20' ] || die "not both are back: $(ec2 devices "$instance")"
    [ "$(at /dev/sdf 2)" != "$sdf" ] || die 'the former volume is attached'
    at /dev/sdf 4 | grep -q snap- || die 'a volume is of no snapshot'
    systemctl is-active --quiet uploads || die 'a unit was left stopped'
}
vmfleet-backup restore one --only volumes --yes
restored
vmfleet-backup undo
[ "$(ec2 devices "$instance")" = "$lost" ] || die "undone, but $(ec2 devices "$instance")"
[ -z "$(ec2 volumes "$owner")" ] || die 'an undone restore left volumes'
for phase in restore-staging restore-swapping swapped-ebs; do
    killed $phase one volumes
    [ "$(ec2 devices "$instance")" = "$lost" ] || die "killed at $phase: $(ec2 devices "$instance")"
    [ -z "$(ec2 volumes "$owner")" ] || die "killed at $phase: volumes were left"
    systemctl is-active --quiet uploads || die "killed at $phase: a unit was left stopped"
done
vmfleet-backup restore one --only volumes --yes
vmfleet-backup commit
restored
[ -z "$(ec2 volumes "$owner")" ] || die 'volumes are still called staged'

# What is of no set goes with the next one that is removed, and what is of another repository stays.
vmfleet-backup --repository local snapshot --only volumes two
kept=$(ec2 snapshots "local/${owner#*/}")
ends 137 env VMFLEET_FAIL_AT=copied-ebs vmfleet-backup snapshot --only volumes three
vmfleet-backup remove one
[ -z "$(ec2 snapshots "$owner")" ] || die "left: $(ec2 snapshots "$owner")"
[ "$(ec2 snapshots "local/${owner#*/}")" = "$kept" ] || die 'snapshots of another repository went'
vmfleet-backup --repository local verify two
ec2 forget "$(vmfleet-backup --repository local list | grep -o 'snap-[0-9a-f]*')"
ends 65 vmfleet-backup --repository local verify two
# The health check is content with a set that was made after that.
vmfleet-backup --repository local snapshot --only uploads sound
vmfleet-backup --repository local remove two sound
# AWS is away, or the account is.
sed -i "s|$endpoint|http://127.0.0.1:1|" $announced
ends 70 vmfleet-backup snapshot --only volumes four
sed -i 's/ebs-volumes.credentials/&.away/' $announced
ends 77 vmfleet-backup snapshot --only volumes four
