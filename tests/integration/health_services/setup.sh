#!/usr/bin/env bash
# Brings up what test_health_types.py looks at, each service with a configuration of its own.
export DEBIAN_FRONTEND=noninteractive
# What the packages would start has other ports and files.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 0755 /usr/sbin/policy-rc.d
apt-get -qq update && apt-get -qq -y install --no-install-recommends bind9 chrony faketime nginx-light openssl prometheus redis-sentinel redis-server >/dev/null 2>&1

# An authority, a server, and clients: one of the authority's, one of a stranger's.
mkdir -p /root/tls && cd /root/tls
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=authority 2>/dev/null
openssl req -x509 -newkey rsa:2048 -nodes -keyout stranger.key -out stranger.crt -days 30 -subj /CN=stranger 2>/dev/null
for name in server client; do
  openssl req -newkey rsa:2048 -nodes -keyout $name.key -out $name.csr -subj /CN=$name 2>/dev/null
  printf 'subjectAltName=DNS:www.example.test,DNS:api.example.test,IP:127.0.0.1\n' >ext
  openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 10 -extfile ext \
    -out $name.crt 2>/dev/null
done
cat >/etc/nginx/nginx.conf <<'END'
events { }
http {
  ssl_certificate /root/tls/server.crt;
  ssl_certificate_key /root/tls/server.key;
  ssl_client_certificate /root/tls/ca.crt;
  server { listen 8443 ssl; http2 on; ssl_verify_client on;
    location / { default_type application/json; return 200 '{"by": "$ssl_client_s_dn"}'; } }
  server { listen 8444 ssl; location / { return 302 https://127.0.0.1:8445/there; } }
  server { listen 8445 ssl; http2 on; location / { add_header X-Way $uri; return 200 arrived; } }
}
END
nginx

cat >/root/zone <<'END'
$TTL 60
@ SOA ns root 1 60 60 60 60
@ NS ns
ns A 192.0.2.1
www A 192.0.2.10
www A 192.0.2.11
www AAAA 2001:db8::10
alias CNAME www
END
cat >/root/named.conf <<'END'
options { directory "/var/cache/bind"; listen-on port 5300 { 127.0.0.1; }; listen-on-v6 { none; }; recursion no;
  pid-file none; session-keyfile none; dnssec-validation no; };
controls { };
zone "example.test" { type primary; file "/root/zone"; };
END
named -c /root/named.conf -u root

redis-server --daemonize yes --port 7000 --requirepass open --masterauth open --dir /tmp --save '' >/dev/null
redis-server --daemonize yes --port 7001 --replicaof 127.0.0.1 7000 --masterauth open --dir /tmp --save '' >/dev/null
redis-cli -p 7000 --no-auth-warning -a open acl setuser probe on '>look' +ping +info >/dev/null
printf open >/root/password; printf look >/root/probe
for port in 7100 7101 7102; do
  mkdir -p /tmp/$port
  printf '%s\n' "port $port" 'sentinel monitor cache 127.0.0.1 7000 2' 'sentinel auth-pass cache open' \
    'sentinel down-after-milliseconds cache 1000' >/tmp/$port/sentinel.conf
  redis-sentinel /tmp/$port/sentinel.conf --daemonize yes --pidfile /tmp/$port/pid >/dev/null
done

cat >/root/prometheus.yml <<'END'
global: {scrape_interval: 1s}
scrape_configs:
  - {job_name: itself, static_configs: [{targets: ['127.0.0.1:9091']}]}
  - {job_name: search, metrics_path: /metrics, static_configs: [{targets: ['127.0.0.1:9200']}]}
END
setsid prometheus --config.file=/root/prometheus.yml --storage.tsdb.path=/tmp/tsdb \
  --web.listen-address=127.0.0.1:9091 >/tmp/prometheus.log 2>&1 </dev/null &

# Without the right to set the clock it serves the time all the same.
cat >/root/chrony.conf <<'END'
local stratum 8
allow 127.0.0.1
port 1123
cmdport 0
bindcmdaddress /
pidfile /tmp/chrony.pid
END
chronyd -x -u root -f /root/chrony.conf
sed 's/1123/1124/; s/chrony.pid/ahead.pid/' /root/chrony.conf >/root/ahead.conf
faketime -f +30.5s chronyd -x -u root -f /root/ahead.conf

mkdir -p /srv/backup && head -c 4096 /dev/zero >/srv/backup/a.dump && touch -d '-2 hours' /srv/backup/a.dump
for i in $(seq 150); do
  redis-cli -p 7100 sentinel ckquorum cache 2>/dev/null | grep -q ^OK.3 &&
  redis-cli -p 7001 info replication | grep -q master_link_status:up && exit 0
  sleep 0.2
done
echo "Sentinels or replica did not come up" >&2
exit 1
