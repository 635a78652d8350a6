# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A bucket of a store that speaks S3, over TLS. Objects of the catalogue go by boto3."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

from . import aws
from .model import Denied, NotFound, Refused, Unavailable
from .repository import Repository, ResticPlace

DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403")
ABSENT = ("NoSuchKey", "ObjectLockConfigurationNotFoundError", "404")


class S3(Repository):
    """``options``: endpoint (a URL), bucket, prefix (may be empty), region, path_style, storage_class (may be empty),
    credentials_file (as AWS' own tools have it), ca_file (may be empty), lock_days (0 without).
    """

    def _option(self, name: str) -> str:
        return str(self.options.get(name) or "")

    def _key(self, name: str) -> str:
        return "/".join(filter(None, (self._option("prefix").strip("/"), name)))

    @functools.cached_property
    def _client(self) -> Any:
        return aws.client(
            f"repository {self.name}",
            "s3",
            region=self._option("region"),
            endpoint=self._option("endpoint"),
            credentials_file=self._option("credentials_file"),
            ca_file=self._option("ca_file"),
            path_style=bool(self.options.get("path_style")),
        )

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

    def ready(self) -> None:
        # The bucket locks whatever is put there, by whom ever: restic and pgBackRest set no locks.
        wanted = int(self.options.get("lock_days") or 0)
        if not wanted:
            return
        bucket = self._option("bucket")
        try:
            with self._asking("ask for the lock of") as client:
                found = client.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]
        except NotFound:
            found = {}
        kept = found.get("Rule", {}).get("DefaultRetention", {})
        days = kept.get("Days") or 365 * (kept.get("Years") or 0)
        if days < wanted:
            raise Refused(
                f"repository {self.name}: bucket {bucket} locks objects for {days} days, and lock_days is {wanted}; "
                "give it that default retention, which needs a bucket that was made with locks, or say less"
            )

    def put(self, name: str, content: bytes) -> None:
        key = self._key(name)
        # Stores take nothing that is to be locked without it.
        md5 = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        with self._asking("put", key) as client:
            answer = client.put_object(Bucket=self._option("bucket"), Key=key, Body=content, ContentMD5=md5)
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
