#!/bin/sh
# Every kind of key is saved, lost in several ways, and restored into a server with an append-only log; runs are killed
# in the middle of it. A script inside Redis, which knows nothing of the engine, says whether all keys are the same.
. /root/common.sh
tls=''
grep -q '^tls-port' /etc/redis/redis.conf && tls='--tls --cacert /etc/vmfleet/tls/ca.crt'
cli() { REDISCLI_AUTH="$(cat /etc/redis/auth)" redis-cli $tls "$@"; }
digest() {
    cli EVAL '
        local all = {}
        for _, database in ipairs({0, 3}) do
            redis.call("SELECT", database)
            local keys = redis.call("KEYS", "*")
            table.sort(keys)
            for _, key in ipairs(keys) do
                local kind, value = redis.call("TYPE", key).ok
                -- Members of these have no order of their own.
                if kind == "hash" or kind == "set" then
                    value = {}
                    for _, member in ipairs(redis.call(kind == "set" and "SMEMBERS" or "HKEYS", key)) do
                        value[#value + 1] = member .. (kind == "hash" and redis.call("HGET", key, member) or "")
                    end
                    table.sort(value)
                    value = table.concat(value, ",")
                else
                    value = redis.call("DUMP", key)
                end
                all[#all + 1] = table.concat({database, key, kind, redis.sha1hex(value), redis.call("PEXPIRETIME", key)}, " ")
            end
        end
        return #all .. " keys " .. redis.sha1hex(table.concat(all, "\n"))' 0
    cli FUNCTION LIST | grep -c shop || true
}
is() { [ "$(digest)" = "$1" ] || die "$2: keys are $(digest) instead of $1"; }
back() { vmfleet-backup restore keys --only redis --yes; }

cli FLUSHALL >/dev/null
cli EVAL '
    for i = 1, 5000 do
        redis.call("SET", "text" .. i, "value\0\255" .. i)
        redis.call("SADD", "set", i)
        redis.call("HSET", "hash", "field" .. i, i)
        redis.call("ZADD", "scores", i / 7, i)
        redis.call("RPUSH", "list", i)
    end
    redis.call("SADD", "small", 1, 2, 3)
    redis.call("XADD", "stream", "1-1", "what", "first")
    redis.call("XGROUP", "CREATE", "stream", "readers", "0")
    redis.call("SET", "mortal", "x", "EX", 86400)
    redis.call("SELECT", 3)
    redis.call("SET", "elsewhere", "x")' 0 >/dev/null
cli FUNCTION LOAD REPLACE '#!lua name=shop
redis.register_function("price", function() return 1 end)' >/dev/null
first=$(digest)
cli SET short-lived x PX 1500 >/dev/null

touch /root/watch
(while [ -e /root/watch ]; do ps axwwo args; sleep 0.02; done >/root/seen) &
vmfleet-backup snapshot --only redis keys
sleep 1.5
vmfleet-backup verify keys --thorough
rm /root/watch
wait
! grep -F -e "$(cat /etc/redis/auth)" -e this+test /root/seen || die 'a secret can be seen'
is "$first" 'saved'

cli FLUSHALL >/dev/null
cli SET other x >/dev/null
second=$(digest)
for point in restore-swapping swapped-redis; do
    killed $point keys redis
    is "$second" "killed at $point"
done
back
is "$first" 'restored'
cli INFO persistence | grep aof_enabled:1 || die 'there is no log'
systemctl kill -s KILL redis-server
until cli PING 2>/dev/null | grep -q PONG; do sleep 0.2; done
is "$first" 'restored and crashed'
vmfleet-backup undo
is "$second" 'undone'

systemctl stop redis-server
rm -r /var/lib/redis
back
is "$first" 'lost and restored'
vmfleet-backup commit
vmfleet-backup remove keys
cli FUNCTION FLUSH >/dev/null
[ -z "$(ls -d /var/lib/redis.* 2>/dev/null)" ] || die 'the former data are still there'
