"""A bucket as a repository: of a real store over TLS, and of a server that fails in every way."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot import aws
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.model import Denied, Key, NotFound, Unavailable
from ansible_collections.vmfleet.ops.plugins.module_utils._snapshot.s3 import S3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SECRET = "only-for/this+test="


def certificate(folder: Path) -> None:
    """One that signs itself, for localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "host.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "host.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """rclone, and what a repository has to know of it."""
    # Beside this interpreter; one with another ansible-core has the checkout's own on its path.
    rclone = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert rclone, "rclone is missing; run scripts/bootstrap"
    root = tmp_path_factory.mktemp("store")
    certificate(root)
    (root / "data" / "backups").mkdir(parents=True)
    (root / "credentials").write_text(f"[default]\naws_access_key_id = tester\naws_secret_access_key = {SECRET}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}",
            "--cert", root / "host.crt", "--key", root / "host.key", root / "data",
        ],
        env={**os.environ, "RCLONE_AUTH_KEY": f'"tester,{SECRET}"', "RCLONE_CONFIG": str(root / "none")},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
        assert time.monotonic() < deadline and server.poll() is None, "rclone does not come up"
        time.sleep(0.1)
    yield {
        "endpoint": f"https://localhost:{port}", "bucket": "backups", "prefix": "fleet/one", "region": "us-east-1",
        "path_style": True, "credentials_file": str(root / "credentials"), "ca_file": str(root / "host.crt"),
    }  # fmt: skip
    server.terminate()
    server.wait(10)


def repository(options: dict[str, Any], **changes: Any) -> S3:
    return S3("remote", Key("/key", "id", b"mac"), {**options, **changes})


def put(bucket: S3, name: str) -> None:
    bucket.put(name, b"x")


# All that can be asked of a bucket.
CALLS: tuple[Callable[[S3, str], object], ...] = (S3.names, S3.get, S3.delete, put)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "ATTEMPTS", 1)


def test_objects_are_put_listed_read_and_deleted(store: dict[str, Any]) -> None:
    bucket = repository(store)
    assert bucket.names("catalogue/db1") == []
    for name, content in (("a.json", b"first"), ("b.json", b"x" * 70_000), ("a.json", b"second")):
        bucket.put(f"catalogue/db1/{name}", content)
    bucket.put("catalogue/db10/c.json", b"")
    assert repository(store).names("catalogue/db1") == ["catalogue/db1/a.json", "catalogue/db1/b.json"]
    assert bucket.get("catalogue/db1/a.json") == b"second"
    assert len(bucket.get("catalogue/db1/b.json")) == 70_000
    bucket.delete("catalogue/db1/a.json")
    bucket.delete("catalogue/db1/a.json")
    with pytest.raises(NotFound, match=r"s3://backups/fleet/one/catalogue/db1/a[.]json at https://localhost"):
        bucket.get("catalogue/db1/a.json")


def test_more_objects_than_one_answer_has_are_listed(store: dict[str, Any]) -> None:
    bucket = repository(store, prefix="")
    for number in range(3):
        bucket.put(f"many/{number}", b"")
    paginator = bucket._client.get_paginator
    bucket._client.get_paginator = lambda name: Small(paginator(name))
    assert bucket.names("many") == ["many/0", "many/1", "many/2"]


class Small:
    """Answers of one object each."""

    def __init__(self, paginator: Any) -> None:
        self.paginator = paginator

    def paginate(self, **given: Any) -> Any:
        return self.paginator.paginate(**given, PaginationConfig={"PageSize": 1})


def test_wrong_credentials_are_told_from_a_store_that_is_gone(store: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = tester\naws_secret_access_key = other\n")
    bucket = repository(store, credentials_file=str(tmp_path / "credentials"))
    for call in CALLS:
        with pytest.raises(Denied, match="look at access_key, secret_key"):
            call(bucket, "x")
    with pytest.raises(Denied, match="NoSectionError; apply role"):
        repository(store, credentials_file=os.devnull).get("x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bucket": "other"}, "there is no bucket other; make it"),
        ({"ca_file": ""}, "look at ca, by which the store's certificate is trusted"),
        ({"endpoint": "https://localhost:1"}, "look at the network"),
    ],
)
def test_what_keeps_a_store_from_use_is_named(store: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    bucket = repository(store, **changes)
    for call in (S3.names, put):
        with pytest.raises(Unavailable, match=words):
            call(bucket, "x")


class Failing(http.server.BaseHTTPRequestHandler):
    """Says what it is told to, to everything."""

    answer: tuple[int, bytes] | None

    def respond(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.answer is None:
            self.connection.close()
            return
        status, content = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_DELETE = respond

    def log_message(self, *words: Any) -> None:
        pass


@contextlib.contextmanager
def failing(answer: tuple[int, bytes] | None) -> Iterator[str]:
    handler = type("Handler", (Failing,), {"answer": answer})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def said(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>".encode()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((500, said("InternalError")), Unavailable),
        ((503, said("SlowDown")), Unavailable),
        ((503, b"<html>a balancer"), Unavailable),
        ((403, said("AccessDenied")), Denied),
        ((403, b""), Denied),
        (None, Unavailable),
    ],
)
def test_a_store_that_fails_is_never_taken_for_an_empty_one(
    store: dict[str, Any], answer: tuple[int, bytes] | None, error: type[Exception]
) -> None:
    with failing(answer) as endpoint:
        bucket = repository(store, endpoint=endpoint)
        for call in CALLS:
            with pytest.raises(error, match="repository remote: "):
                call(bucket, "x")


@pytest.mark.parametrize("content", [said("InternalError"), b"<html>welcome", b""])
def test_an_error_inside_a_success_is_none(store: dict[str, Any], content: bytes) -> None:
    with failing((200, content)) as endpoint:
        bucket = repository(store, endpoint=endpoint)
        for call in (S3.names, put):
            with pytest.raises(Unavailable, match="repository remote: "):
                call(bucket, "x")


def test_restic_is_told_all_but_secrets(store: dict[str, Any]) -> None:
    place = repository(store, storage_class="STANDARD_IA").restic("db1")
    assert place.address == f"s3:{store['endpoint']}/backups/fleet/one/restic/db1"
    assert place.options == [
        "-o", "s3.bucket-lookup=path", "-o", "s3.storage-class=STANDARD_IA", "--cacert", store["ca_file"],
    ]  # fmt: skip
    assert SECRET not in str(place)
