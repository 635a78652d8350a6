#!/bin/sh
# Makes a bare host one that can be asked a thousand questions.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends \
    curl netcat-openbsd nginx-light postgresql python3-psycopg2 redis-server time >/dev/null
cat >/etc/nginx/nginx.conf <<'END'
events { worker_connections 4096; }
http {
    access_log off;
    server { listen 127.0.0.1:8000 backlog=4096; location / { default_type application/json; return 200 '{"status": "ready"}'; } }
}
END
systemctl restart nginx
systemctl start redis-server postgresql
mkdir -p /srv/checks
for number in $(seq 0 999); do echo content >/srv/checks/$number; done
chmod 0640 /srv/checks/*
# An interpreter that notes the memory of what it ran.
cat >/usr/local/bin/python3-measured <<'END'
#!/bin/sh
exec /usr/bin/time --append --output=/root/memory --format=%M /usr/bin/python3 "$@"
END
chmod 0755 /usr/local/bin/python3-measured
until runuser -u postgres -- psql -XAtqc 'SELECT 1' >/dev/null 2>&1; do sleep 0.5; done
