#!/bin/sh
# A database with a hypertable is saved one by one, loses rows, and comes back with its chunks.
. /root/common.sh
psql() { runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 "$@"; }
version=$(psql -c "SELECT split_part(current_setting('server_version'), '.', 1)")
export DEBIAN_FRONTEND=noninteractive
apt-get -qq -y install "postgresql-$version-timescaledb" >/dev/null
psql -c "ALTER SYSTEM SET shared_preload_libraries = 'timescaledb'"
systemctl restart "postgresql@$version-main"
psql metrics >/dev/null <<'END'
CREATE EXTENSION timescaledb;
CREATE TABLE samples (taken timestamptz NOT NULL, host text NOT NULL, value float8);
SELECT create_hypertable('samples', 'taken', chunk_time_interval => interval '1 day');
INSERT INTO samples SELECT timestamptz '2026-01-01' + i * interval '1 hour', 'db' || i % 3, i FROM generate_series(1, 240) AS i;
END
seen() {
    psql metrics -c "SELECT count(*), sum(value), min(taken) FROM samples" \
        -c "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_name = 'samples'"
}
first=$(seen)
vmfleet-backup snapshot --only postgresql_logical chunks
vmfleet-backup verify chunks --thorough
psql metrics -c "SELECT drop_chunks('samples', timestamptz '2026-01-06')" >/dev/null
[ "$(seen)" != "$first" ] || die 'no chunk was lost'
vmfleet-backup restore chunks --only postgresql_logical --database metrics --yes
[ "$(seen)" = "$first" ] || die "restored: $(seen) instead of $first"
vmfleet-backup commit
# It is a hypertable again: new rows make a new chunk.
psql metrics -c "INSERT INTO samples VALUES ('2026-03-01', 'new', 1)"
[ "$(seen)" != "$first" ] || die 'no new chunk was made'
vmfleet-backup snapshot --only postgresql_logical other
vmfleet-backup remove chunks other
psql metrics -c 'DROP TABLE samples' -c 'DROP EXTENSION timescaledb'
psql -c 'ALTER SYSTEM RESET shared_preload_libraries'
systemctl restart "postgresql@$version-main"
