#!/bin/sh
# The store goes away in the middle of a copy, and in a run for all repositories: store.sh HOST STORE, both containers.
# HOST has its sets in the store first, and in a folder.
set -eu
host=$1
store=$2
die() { echo "$*" >&2; exit 1; }
on() { docker exec "$1" sh -c "$2"; }
ends() {
    rc=0
    on "$host" "$2" || rc=$?
    [ $rc = "$1" ] || die "$2 ended with $rc instead of $1"
}
before=$(on "$host" 'vmfleet-backup list')
[ -n "$before" ] || die 'there are no sets'
(
    on "$host" 'until pgrep -f "pgbackrest .* backup " >/dev/null; do sleep 0.05; done'
    on "$store" 'systemctl stop store'
) &
ends 69 'vmfleet-backup snapshot --only postgresql --full broken'
wait

ends 69 'vmfleet-backup --repository all snapshot --only uploads --prune alone'
ends 0 'vmfleet-backup --repository local list | grep -q " alone "'
# The server brings its log nowhere before it is everywhere; a set in the folder brings and reads its own.
ends 0 'vmfleet-backup --repository local snapshot --only postgresql near'
ends 0 'vmfleet-backup --repository local verify near --thorough'
ends 0 'grep -q "\"failed\": \"\"" /var/lib/vmfleet/backup/status-local.json'
ends 0 'grep "\"failed\": \"..*:9000" /var/lib/vmfleet/backup/status-remote.json'

on "$store" 'systemctl start store'
ends 0 'until vmfleet-backup list; do sleep 1; done'
[ "$(on "$host" 'vmfleet-backup list')" = "$before" ] || die 'other sets than before'
# As the timers do it.
ends 0 'systemctl start vmfleet-backup'
ends 0 'systemctl start vmfleet-backup-verify'
ends 0 '[ "$(vmfleet-backup --repository all list | grep -c " verified ")" -ge 2 ]'
# Another host in the place of the server is not trusted.
on "$store" 'cd /etc/vmfleet/backup/ssh
    cp -p known_hosts /root
    rm -f /root/other*
    ssh-keygen -q -t ed25519 -N "" -f /root/other
    echo "debian13 $(cut -d" " -f1,2 /root/other.pub)" >known_hosts
    rc=0
    vmfleet-backup list || rc=$?
    mv /root/known_hosts .
    [ $rc = 77 ] && vmfleet-backup list' || die 'another host was trusted'
# Neither settings nor logs have the secret.
ends 1 'grep -rsF this+test /etc/vmfleet/backup/settings.json /var/lib/vmfleet /var/log /run/log; [ $? = 0 ]'

# Another host that has its sets in the same store prunes them while this one makes a set.
on "$host" 'tar -C /etc/vmfleet/backup -c remote settings.json' | docker exec -i "$store" sh -ec 'tar -C /root -x
    mv /root/remote /etc/vmfleet/backup/remote
    cp -p /etc/vmfleet/backup/settings.json /root/own.json
    python3 -c "
import json
settings = json.load(open(\"/root/own.json\"))
settings[\"repositories\"].append(json.load(open(\"/root/settings.json\"))[\"repositories\"][0])
json.dump(settings, open(\"/etc/vmfleet/backup/settings.json\", \"w\"))"'
on "$store" 'for name in one two; do vmfleet-backup --repository remote snapshot --only uploads "$name"; done'
(
    on "$host" 'until pgrep -f "pgbackrest .* backup " >/dev/null; do sleep 0.05; done'
    on "$store" 'vmfleet-backup --repository remote prune'
) &
pruning=$!
ends 0 'vmfleet-backup snapshot --only postgresql,uploads --full beside'
wait $pruning || die 'the other host could not prune'
[ "$(on "$store" 'vmfleet-backup --repository remote list' | cut -d' ' -f3)" = two ] || die 'the other host pruned nothing'
ends 0 'vmfleet-backup verify beside --thorough && vmfleet-backup remove beside'
on "$store" 'vmfleet-backup --repository remote remove two
    mv /root/own.json /etc/vmfleet/backup/settings.json
    rm -r /etc/vmfleet/backup/remote /root/settings.json'
