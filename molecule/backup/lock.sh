#!/bin/sh
# A bucket whose objects are locked: lock.sh ENDPOINT, of a stand-in that speaks S3. What was removed is still in it, and
# nobody can end that before its time.
. /root/common.sh
endpoint=$1
settings=/etc/vmfleet/backup/settings.json
cp -p $settings /root
trap 'cp -p /root/settings.json $settings; rm -f /root/lock.* /var/lib/vmfleet/backup/status-locked.json' EXIT
cat >/root/lock.py <<END
import json
import sys
import boto3
from botocore.exceptions import ClientError
s3 = boto3.client("s3", endpoint_url="$endpoint", region_name="us-east-1",
                  aws_access_key_id="tester", aws_secret_access_key="only-for-lock")
verb, bucket, *words = sys.argv[1:]
if verb == "bucket":
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=bool(words))
    if words:
        rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": int(words[0])}}
        s3.put_object_lock_configuration(
            Bucket=bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule})
elif verb == "settings":
    settings = json.load(open("/root/settings.json"))
    # pgBackRest has no settings for it.
    settings["skip"] += ["postgresql"]
    settings["repositories"] = [{
        **settings["repositories"][0], "name": "locked", "kind": "s3", "endpoint": "$endpoint", "bucket": bucket,
        "prefix": "", "region": "us-east-1", "path_style": True, "credentials_file": "/root/lock.credentials",
        "ca_file": "", "storage_class": "", "lock_days": int(words[0])}]
    json.dump(settings, open("$settings", "w"))
elif verb == "locked":
    versions = s3.list_object_versions(Bucket=bucket).get("Versions", [])
    for one in versions:
        try:
            s3.delete_object(Bucket=bucket, Key=one["Key"], VersionId=one["VersionId"])
        except ClientError as error:
            assert error.response["Error"]["Code"] == "AccessDenied", error
        else:
            sys.exit(f"{one['Key']} could be deleted")
    print(len(versions))
END
umask 077
printf '[default]\naws_access_key_id = tester\naws_secret_access_key = only-for-lock\n' >/root/lock.credentials
lock() { python3 /root/lock.py "$@"; }
mine=$(hostname | cut -d. -f1)
lock bucket "$mine-plain"
lock bucket "$mine-locked" 30
for given in "$mine-plain 1" "$mine-locked 31"; do
    lock settings $given
    rc=0; vmfleet-backup snapshot --only uploads kept 2>/root/said || rc=$?
    [ $rc = 64 ] || die "a bucket that does not lock for so long ended with $rc: $(cat /root/said)"
    grep -q lock_days /root/said || die "$(cat /root/said)"
done
lock settings "$mine-locked" 30
vmfleet-backup snapshot --only uploads kept
vmfleet-backup verify kept --thorough
before=$(lock locked "$mine-locked")
[ "$before" -gt 5 ] || die "only $before objects are in the bucket"
vmfleet-backup remove kept
[ -z "$(vmfleet-backup list)" ] || die 'the set is still there'
[ "$(lock locked "$mine-locked")" -ge "$before" ] || die 'something went before its time'
