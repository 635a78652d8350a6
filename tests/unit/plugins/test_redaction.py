"""What must not be in a support bundle, and what must stay so that it is of use."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._redaction import (
    HIDDEN,
    Redaction,
    secrets_in,
    secrets_of_files,
    secrets_of_variables,
)


@pytest.mark.parametrize(
    "text",
    [
        "password=hunter2",
        "PGPASSWORD: 'hunter2'",
        '{"db_password": "hunter2", "port": 5432}',
        "--token hunter2",
        "JWT_SECRET_KEY=hunter2",
        "api-key: hunter2",
        "postgresql://api:hunter2@db1/prod",
        "redis://:hunter2@cache1:6379/0",
        "Authorization: Bearer hunter2",
        "Set-Cookie: session=hunter2; Path=/",
        "ALTER ROLE api PASSWORD 'hunter2'",
        "requirepass hunter2",
        "/usr/bin/app --db-password=hunter2 --port 80",
        "primary_conninfo = 'host=db1 password=hunter2'",
        "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----\nhunter2 and no end",
    ],
)
def test_shapes_of_secrets_are_hidden(text: str) -> None:
    shown = Redaction()(text)
    assert "hunter2" not in shown
    assert HIDDEN in shown
    # Done twice it is no different: the host and the controller both do it.
    assert Redaction()(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "auth_type=scram-sha-256 password_encryption: on the way",
        "the token bucket is full",
        'LISTEN 0 128 0.0.0.0:5432 users:(("postgres",pid=812,fd=6))',
        "https://api.supernova.test/health 200",
        "redis-server.service: Main process exited, code=killed, status=9/KILL",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    ],
)
def test_what_helps_stays(text: str) -> None:
    assert Redaction()(text).replace(HIDDEN, "").startswith(text.split(":")[0][:12])
    if "password" not in text:
        assert Redaction()(text) == text


def test_known_values_are_hidden_wherever_they_are() -> None:
    redact = Redaction(["correct horse", "short", "one-line\nanother-line"])
    assert redact("login failed for correct horse, short") == f"login failed for {HIDDEN}, short"
    assert "another-line" not in redact("x another-line y")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("s3cr3t-of-redis\n", "s3cr3t-of-redis"),
        ("db1:5432:replication:replicator:a\\:passphrase\n", "a:passphrase"),
        ('"api" "plain text password"\n', "plain text password"),
        ("# comment\nSMTP_LOGIN='correct-horse-battery'\n", "correct-horse-battery"),
        ("user default on >passphrase requirepass\nrequirepass open-sesame\n", "open-sesame"),
        ("url = https://u:p%40ssword@host/\n", "p@ssword"),
        ("key: 9f86d081884c7d659a2f\n", "9f86d081884c7d659a2f"),
    ],
)
def test_secrets_are_found_in_the_files_that_have_them(text: str, secret: str) -> None:
    assert secret in secrets_in(text)


def test_settings_in_such_files_are_no_secrets() -> None:
    text = "listen_port = 6432\nauth_type = scram-sha-256\nlogfile = /var/log/pgbouncer/pgbouncer.log\nPGPORT=6432\n"
    text += "HOST=db1.example.com\nMODE=production\n[databases]\ndemo = host=10.0.0.1 dbname=demo\n"
    assert secrets_in(text) == set()


def test_only_files_for_few_eyes_are_read(tmp_path: Path) -> None:
    closed, readable = tmp_path / "closed.env", tmp_path / "open.env"
    for path, mode in ((closed, 0o640), (readable, 0o644)):
        path.write_text(f"WORD={path.stem}-sesame\n")
        path.chmod(mode)
    assert secrets_of_files([f"{tmp_path}/*.env", f"{tmp_path}/missing"]) == {"closed-sesame"}


def test_variables_are_known_by_their_names() -> None:
    variables = {
        "redis_password": "one",
        "vault_key": "two",
        "app": [{"name": "api", "secrets": {"KEY": "three"}, "environment": {"LEVEL": "info", "API_TOKEN": "four"}}],
        "port": 80,
    }
    assert secrets_of_variables(variables) == {"one", "two", "three", "four"}
