"""The only uses of private API of lsst.resources.

Runs in the driver, in workers and in their children.  Tested with lsst-resources
30.2026.4200; ``tests/test_seams.py`` has a test for each use.
"""

from __future__ import annotations

__all__ = ["bucket_of", "connection_parameters", "forget_s3_clients", "is_in_s3"]

from typing import TYPE_CHECKING, Any, TypeGuard

from lsst.resources import ResourcePath

if TYPE_CHECKING:
    from lsst.resources.s3 import S3ResourcePath


def is_in_s3(uri: ResourcePath) -> TypeGuard[S3ResourcePath]:
    """Return whether a place is in an S3 store."""
    return uri.scheme == "s3"


def bucket_of(uri: S3ResourcePath) -> str:
    """Return the bucket that an object is in."""
    bucket: str = uri._bucket
    return bucket


def connection_parameters(uri: S3ResourcePath) -> Any:
    """Return endpoint, profile and keys of the store that an object is in."""
    from lsst.resources.s3utils import _get_s3_connection_parameters

    return _get_s3_connection_parameters(uri._profile)


def forget_s3_clients() -> None:
    """Make lsst.resources build new clients for the next requests."""
    from lsst.resources.s3utils import _get_s3_client

    _get_s3_client.cache_clear()
