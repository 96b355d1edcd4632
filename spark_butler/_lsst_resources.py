"""The only module that uses private API of lsst.resources.

The driver, the workers and their children call it.  Tested with lsst-resources
30.2026.4200; ``tests/test_seams.py`` has a test for each use.
"""

from __future__ import annotations

__all__ = ["bucket_of", "connection_parameters", "forget_s3_clients"]

from typing import Any

from lsst.resources.s3 import S3ResourcePath
from lsst.resources.s3utils import _get_s3_client, _get_s3_connection_parameters


def bucket_of(uri: S3ResourcePath) -> str:
    """Return the bucket that an object is in."""
    bucket: str = uri._bucket
    return bucket


def connection_parameters(uri: S3ResourcePath) -> Any:
    """Return endpoint, profile and keys of the store that an object is in."""
    return _get_s3_connection_parameters(uri._profile)


def forget_s3_clients() -> None:
    """Make lsst.resources build new clients for the next requests."""
    _get_s3_client.cache_clear()
