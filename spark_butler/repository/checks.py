"""Checks, before anything else is done, that a repository is there and can be read and written.

Runs in the driver.
"""

from __future__ import annotations

__all__ = [
    "check_repository",
    "check_store",
    "check_writeable",
    "refuse_read_only",
    "register_run",
    "store_roots",
]

import base64
import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import boto3
import botocore.config
from botocore.exceptions import BotoCoreError, ClientError
from lsst.daf.butler import Butler, LimitedButler
from lsst.daf.butler.direct_butler import DirectButler
from lsst.resources import ResourcePath
from lsst.resources.s3 import S3ResourcePath

from .._lsst_resources import bucket_of, connection_parameters, prepare_client
from ..errors import RepositoryError
from ..text import best_effort, brief, hide_secrets

_CONNECT_SECONDS = 4
_READ_SECONDS = 15

_WRONG_MD5 = base64.b64encode(bytes(16)).decode()
_WRONG_CHECKSUM = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch")

_REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "access is denied to these credentials",
    "InvalidAccessKeyId": "the store doesn't know the access key",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "ExpiredToken": "the session token has expired",
    "403": "access is denied to these credentials",
    "404": "there is no such bucket",
}


def check_repository(butler_config: str) -> list[ResourcePath]:
    """Check that a repository is there and its datastore answers.

    Parameters
    ----------
    butler_config
        Address or alias of the repository.

    Returns
    -------
    roots
        The places where its datastores keep files.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if not, with the reason.
    """
    try:
        where = Butler.get_repo_uri(butler_config, return_label=True)
    except Exception as exc:  # an index may be anywhere
        raise RepositoryError(f"Can't look up the Butler repository {butler_config!r}: {brief(exc)}") from exc
    # Without this, a configuration in a store that doesn't answer costs minutes of retries.
    check_store(where)
    try:
        with Butler.from_config(butler_config, writeable=False) as butler:
            if not isinstance(butler, DirectButler):
                raise RepositoryError(
                    f"The Butler repository {butler_config!r} is served by a {type(butler).__name__}; "
                    "the engine needs direct access to registry and datastore."
                )
            roots = store_roots(butler)
    except RepositoryError:
        raise
    except FileNotFoundError as exc:
        raise RepositoryError(
            f"There is no Butler repository at {butler_config!r}, nor an alias of that name; correct the "
            f"address, or make one by `butler create {butler_config}`."
        ) from exc
    except Exception as exc:  # the errors of several libraries
        raise RepositoryError(f"Can't open the Butler repository {butler_config!r}: {brief(exc)}") from exc
    for root in roots:
        check_store(root)
    return roots


def store_roots(butler: LimitedButler) -> list[ResourcePath]:
    """Return the places where the datastores of a repository keep files.

    Parameters
    ----------
    butler
        Butler of the repository.
    """
    return [root for root in butler.get_datastore_roots().values() if root is not None]


def check_store(root: ResourcePath, *, write: bool = False) -> None:
    """Check that an object store answers and accepts the credentials, within about 10 s.

    Parameters
    ----------
    root
        A place in the store.  Places that are not in an S3 store pass.
    write
        Whether to write an object and remove it again, as well.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if not, with the reason.
    """
    if root.scheme != "s3":
        return
    assert isinstance(root, S3ResourcePath)
    bucket, parameters = bucket_of(root), connection_parameters(root)
    prefix = root.unquoted_path.lstrip("/")
    try:
        prepare_client(root)
        client = _make_client(parameters)
        client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        if write:
            _probe_writing(client, bucket, f"{prefix}.spark-butler-{uuid.uuid4().hex}")
    except ClientError as exc:
        error = exc.response.get("Error", {})
        code = str(error.get("Code", ""))
        reason = _REASONS.get(code) or hide_secrets(f"{code} {error.get('Message', '')}".strip())
        raise RepositoryError(
            f"The object store of {str(root)!r} refuses {exc.operation_name} "
            f"at {parameters.endpoint_url or 'AWS'}: {reason}."
        ) from exc
    except (BotoCoreError, OSError, ValueError) as exc:
        endpoint = parameters.endpoint_url or "AWS"
        raise RepositoryError(
            f"The object store of {str(root)!r} can't be reached at {endpoint}: {brief(exc)}"
        ) from exc


def _probe_writing(client: Any, bucket: str, key: str) -> None:
    """Write an object with a wrong checksum: a store that would take it refuses it for that only.

    So nothing is left behind, and no right to remove objects is needed.
    """
    try:
        client.put_object(Bucket=bucket, Key=key, Body=b"-", ContentMD5=_WRONG_MD5)
    except ClientError as exc:
        if exc.response.get("Error", {}).get("Code") not in _WRONG_CHECKSUM:
            raise
    else:
        # A store that does not compare them.
        with best_effort("An empty object stays in the object store"):
            client.delete_object(Bucket=bucket, Key=key)


def check_writeable(roots: Sequence[ResourcePath]) -> None:
    """Check that datastores may be written to.

    Parameters
    ----------
    roots
        Places of the datastores.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if not, with the reason.
    """
    for root in roots:
        check_store(root, write=True)
        if root.isLocal and not os.access(root.ospath, os.W_OK):
            raise RepositoryError(f"The datastore {root.ospath!r} can't be written to.")


@contextlib.contextmanager
def refuse_read_only(repository: str) -> Iterator[None]:
    """Raise what a registry raises at the first write of a run as an error of the user.

    Parameters
    ----------
    repository
        Name of the repository.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if the registry can't be written to.
    """
    try:
        yield
    except Exception as exc:  # the errors of several libraries
        raise RepositoryError(
            f"The registry of {repository} can't be written to: {brief(exc)}; "
            "a run needs write access to the database and to the datastore."
        ) from exc


def register_run(butler: Butler, run: str) -> None:
    """Register an output run, as the first write of all, so that a registry that refuses is found.

    Where the run exists, its documentation is written again as it is.

    Parameters
    ----------
    butler
        Writeable butler of the repository.
    run
        The output run.

    Raises
    ------
    spark_butler.errors.RepositoryError
        Raised if the registry can't be written to.
    """
    with refuse_read_only(f"run {run!r}"):
        if not butler.collections.register(run):
            documentation = butler.registry.getCollectionDocumentation(run)
            butler.registry.setCollectionDocumentation(run, documentation)


def _make_client(parameters: Any) -> Any:
    """Build a client that gives up soon, for the store that `lsst.resources` would talk to."""
    return boto3.Session(profile_name=parameters.profile).client(
        "s3",
        endpoint_url=parameters.endpoint_url,
        aws_access_key_id=parameters.access_key_id,
        aws_secret_access_key=parameters.secret_access_key,
        config=botocore.config.Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": 2},
        ),
    )
