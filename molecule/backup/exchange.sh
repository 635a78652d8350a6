#!/bin/sh
# A database goes to a file that plain tools read, and comes back; a changed file is refused before it is decrypted.
. /root/common.sh
file=/root/shop.sql.gz.enc
key=/etc/vmfleet/backup/$1/key
psql() { runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 "$@"; }
seen() { psql "$1" -c 'SELECT count(*), sum(hashtext(orders::text)) FROM orders'; }
wanted=$(seen shop)
vmfleet-backup export second --database shop --to $file
[ "$(stat -c '%a %U' $file $file.hmac | sort -u)" = '600 root' ] || die 'others can read it'

# As the documentation says, without us.
psql -c 'CREATE DATABASE by_hand'
openssl enc -d -aes-256-cbc -md sha256 -pbkdf2 -iter 600000 -pass "file:$key" -in $file | gunzip |
    psql -1 by_hand >/dev/null
[ "$(seen by_hand)" = "$wanted" ] || die "by hand came back $(seen by_hand) instead of $wanted"
vmfleet-backup import $file --database imported
[ "$(seen imported)" = "$wanted" ] || die "imported is $(seen imported) instead of $wanted"

rc=0; vmfleet-backup import $file --database imported 2>/dev/null || rc=$?
[ $rc = 64 ] || die "a database that is there ended with $rc"
rc=0; vmfleet-backup export second --database shop --to $file 2>/dev/null || rc=$?
[ $rc = 64 ] || die "a file that is there ended with $rc"
python3 -c '
with open("/root/shop.sql.gz.enc", "r+b") as file:
    file.seek(1000)
    byte = file.read(1)[0]
    file.seek(1000)
    file.write(bytes([byte ^ 1]))'
rc=0; vmfleet-backup import $file --database spoilt 2>/dev/null || rc=$?
[ $rc = 65 ] || die "a changed file ended with $rc"
[ "$(psql -c "SELECT count(*) FROM pg_database WHERE datname = 'spoilt'")" = 0 ] || die 'a changed file was read'
psql -c 'DROP DATABASE by_hand' -c 'DROP DATABASE imported'
rm $file $file.hmac
