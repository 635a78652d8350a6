# Copyright (c) vmfleet.ops maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Clients of boto3, which only such hosts have that need one."""

from __future__ import annotations

import configparser
import os
from typing import Any

from .model import Denied, Unavailable

# Seconds to wait for a connection, and for an answer; and how often to ask.
CONNECT, ANSWER, ATTEMPTS = 10, 60, 4


def client(
    who: str,
    service: str,
    *,
    region: str,
    endpoint: str = "",
    credentials_file: str = "",
    ca_file: str = "",
    path_style: bool = False,
) -> Any:
    """A client of a service.

    :param who: what errors call the asker.
    :param credentials_file: as AWS' own tools have it; without one the account is that of the instance.
    :raises Unavailable: when boto3 is not there.
    :raises Denied: when the file cannot be read.
    """
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise Unavailable(f"{who}: {error}; apply role vmfleet.ops.backup, which installs python3-boto3") from None
    # Checksums in trailers, the default of later versions, are unknown to many stores; TLS protects what is sent.
    for name in ("REQUEST_CHECKSUM_CALCULATION", "RESPONSE_CHECKSUM_VALIDATION"):
        os.environ.setdefault(f"AWS_{name}", "when_required")
    access_key, secret_key = _credentials(credentials_file) if credentials_file else (None, None)
    return boto3.session.Session().client(
        service,
        endpoint_url=endpoint or None,
        region_name=region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        verify=ca_file or True,
        config=Config(
            connect_timeout=CONNECT,
            read_timeout=ANSWER,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            s3={"addressing_style": "path" if path_style else "virtual"},
        ),
    )


def _credentials(path: str) -> tuple[str, str]:
    parser = configparser.RawConfigParser()
    try:
        with open(path, encoding="utf-8") as handle:
            parser.read_file(handle)
        return parser.get("default", "aws_access_key_id"), parser.get("default", "aws_secret_access_key")
    except (OSError, configparser.Error) as error:
        raise Denied(f"{path}: {type(error).__name__}; apply role vmfleet.ops.backup") from None
