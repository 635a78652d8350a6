#!/bin/sh
# The store answers with errors, some as successes, and cuts connections, under the engines: faults.sh HOST STORE, both
# containers. A set that is made all the same must come back; one that is not made leaves nothing, and says what it met.
set -eu
host=$1
store=$2
die() { echo "$*" >&2; exit 1; }
on() { docker exec "$1" sh -c "$2"; }
docker cp -q "$(dirname "$0")/faulty_store.py" "$store:/usr/local/bin/faulty_store.py"
address=$(on "$store" 'hostname -i')
way="OUTPUT -p tcp -d $address --dport 9000 -j DNAT --to-destination $address:9001"
straight() {
    # At the exit mostly for the second time.
    on "$host" "iptables -t nat -D $way 2>/dev/null" || true
    on "$store" 'systemctl stop faulty-store 2>/dev/null' || true
}
trap straight EXIT
on "$host" 'command -v iptables >/dev/null || apt-get -qq -y install iptables >/dev/null'

for fault in '500 5' '503 3' '200 30' '200 7' 'reset 4'; do
    name=fault-${fault% *}
    before=$(on "$host" 'vmfleet-backup list | cut -d" " -f3')
    on "$store" "rm -f /run/faulty-store
        systemd-run -q --collect --unit faulty-store python3 /usr/local/bin/faulty_store.py $fault 9001 9000
        until ss -ltn | grep -q :9001; do sleep 0.1; done"
    on "$host" "iptables -t nat -I $way"
    rc=0
    on "$host" "vmfleet-backup snapshot --full $name" || rc=$?
    spoilt=$(on "$store" 'cat /run/faulty-store 2>/dev/null || true')
    straight
    [ -n "$spoilt" ] || die "$name: nothing was spoilt"
    echo "$name: ended with $rc, spoilt $spoilt"
    after=$(on "$host" 'vmfleet-backup list | cut -d" " -f3')
    case $rc in
        0)
            on "$host" "vmfleet-backup verify --thorough $name" >/dev/null || die "$name was sealed and is not sound"
            on "$host" "vmfleet-backup remove $name" >/dev/null ;;
        69 | 70) [ "$before" = "$after" ] || die "$name was not made, and the sets are others: $before; $after" ;;
        *) die "$name ended with $rc" ;;
    esac
done
# As when the full copy of a set is swept away that failed later: there is none to build on but an earlier one.
on "$host" 'vmfleet-backup snapshot --full --only postgresql gone && vmfleet-backup remove gone' >/dev/null
on "$host" 'vmfleet-backup snapshot' >/dev/null || die 'the next run failed'
on "$host" 'vmfleet-backup verify --thorough' >/dev/null || die 'the set after the faults is not sound'
