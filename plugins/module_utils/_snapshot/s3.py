# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A bucket of a store that speaks S3, over TLS. Objects of the catalogue go by boto3, which only such hosts have."""

from __future__ import annotations

import configparser
import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

from .model import Denied, NotFound, Unavailable
from .repository import Repository, ResticPlace

# Seconds to wait for a connection, and for an answer; and how often to ask.
CONNECT, ANSWER, ATTEMPTS = 10, 60, 4
DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403")
ABSENT = ("NoSuchKey", "404")


class S3(Repository):
    """``options``: endpoint (a URL), bucket, prefix (may be empty), region, path_style, storage_class (may be empty),
    credentials_file (as AWS' own tools have it), ca_file (may be empty).
    """

    def _option(self, name: str) -> str:
        return str(self.options.get(name) or "")

    def _key(self, name: str) -> str:
        return "/".join(filter(None, (self._option("prefix").strip("/"), name)))

    @functools.cached_property
    def _client(self) -> Any:
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise Unavailable(
                f"repository {self.name}: {error}; apply role vmfleet.ops.backup, which installs python3-boto3"
            ) from None
        # Checksums in trailers, the default of later versions, are unknown to many stores; TLS protects what is sent.
        for name in ("REQUEST_CHECKSUM_CALCULATION", "RESPONSE_CHECKSUM_VALIDATION"):
            os.environ.setdefault(f"AWS_{name}", "when_required")
        access_key, secret_key = self._credentials()
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self._option("endpoint"),
            region_name=self._option("region"),
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            verify=self._option("ca_file") or True,
            config=Config(
                connect_timeout=CONNECT,
                read_timeout=ANSWER,
                retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                s3={"addressing_style": "path" if self.options.get("path_style") else "virtual"},
            ),
        )

    def _credentials(self) -> tuple[str, str]:
        path = self._option("credentials_file")
        parser = configparser.RawConfigParser()
        try:
            with open(path, encoding="utf-8") as handle:
                parser.read_file(handle)
            return parser.get("default", "aws_access_key_id"), parser.get("default", "aws_secret_access_key")
        except (OSError, configparser.Error) as error:
            raise Denied(f"{path}: {type(error).__name__}; apply role vmfleet.ops.backup") from None

    @contextlib.contextmanager
    def _asking(self, purpose: str, key: str = "") -> Iterator[Any]:
        """Gives the client, and has its errors mean what those of a repository do."""
        client = self._client
        # There, as the client is.
        from botocore.exceptions import BotoCoreError, ClientError, SSLError

        bucket = self._option("bucket")
        place = f"repository {self.name}: {purpose} s3://{bucket}/{key} at {self._option('endpoint')}"
        try:
            yield client
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in ABSENT:
                raise NotFound(f"{place}: is not there") from error
            if code == "NoSuchBucket":
                raise Unavailable(f"{place}: there is no bucket {bucket}; make it, or correct its name") from error
            if code in DENIED:
                raise Denied(
                    f"{place}: the store refuses ({error}); look at access_key, secret_key and what they may do, and "
                    "at locks of objects"
                ) from error
            raise Unavailable(f"{place}: {error}; try again when the store is sound") from error
        except SSLError as error:
            raise Unavailable(f"{place}: {error}; look at ca, by which the store's certificate is trusted") from error
        except BotoCoreError as error:
            raise Unavailable(f"{place}: {error}; look at the network and the store") from error

    def _no_answer(self, purpose: str, key: str) -> Unavailable:
        what = f"repository {self.name}: {purpose} s3://{self._option('bucket')}/{key}"
        return Unavailable(f"{what}: {self._option('endpoint')} answers with something else; try again")

    def put(self, name: str, content: bytes) -> None:
        key = self._key(name)
        with self._asking("put", key) as client:
            answer = client.put_object(Bucket=self._option("bucket"), Key=key, Body=content)
        if "ETag" not in answer:
            raise self._no_answer("put", key)

    def get(self, name: str) -> bytes:
        key = self._key(name)
        with self._asking("get", key) as client:
            content: bytes = client.get_object(Bucket=self._option("bucket"), Key=key)["Body"].read()
        return content

    def names(self, prefix: str) -> list[str]:
        key = self._key(prefix) + "/"
        found = []
        with self._asking("list", key) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._option("bucket"), Prefix=key)
            for page in pages:
                # An error may come as a success; taken for an empty list it would cost every set.
                if page.get("Name") != self._option("bucket"):
                    raise self._no_answer("list", key)
                found += [entry["Key"][len(key) :] for entry in page.get("Contents", [])]
        return sorted(f"{prefix}/{name}" for name in found if name and "/" not in name)

    def delete(self, name: str) -> None:
        key = self._key(name)
        with contextlib.suppress(NotFound), self._asking("delete", key) as client:
            client.delete_object(Bucket=self._option("bucket"), Key=key)

    def restic(self, host: str) -> ResticPlace:
        address = f"s3:{self._option('endpoint')}/{self._option('bucket')}/{self._key(f'restic/{host}')}"
        environment = {
            "AWS_SHARED_CREDENTIALS_FILE": self._option("credentials_file"),
            "AWS_DEFAULT_REGION": self._option("region"),
        }
        options = ["-o", f"s3.bucket-lookup={'path' if self.options.get('path_style') else 'dns'}"]
        if self._option("storage_class"):
            options += ["-o", f"s3.storage-class={self._option('storage_class')}"]
        if self._option("ca_file"):
            options += ["--cacert", self._option("ca_file")]
        return ResticPlace(address, environment, options)
