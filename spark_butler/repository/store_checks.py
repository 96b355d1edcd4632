"""Checks of an object store: answers, rights, clock.  Runs in the driver, and in workers before a run."""

from __future__ import annotations

__all__ = ["Finding", "check_store", "diagnose_store"]

import base64
import contextlib
import dataclasses
import datetime
import email.utils
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from lsst.resources import ResourcePath

from .._lsst_resources import bucket_of, connection_parameters, is_in_s3
from ..errors import RepositoryError
from ..masking import hide_secrets
from ..s3_retries import prepare_client
from ..text import best_effort, brief, format_seconds

if TYPE_CHECKING:
    from lsst.resources.s3 import S3ResourcePath

_CONNECT_SECONDS = 4
_READ_SECONDS = 15
_MOST_SKEW_SECONDS = 60.0
_PROBE_BYTES = 2**20
_PART_BYTES = 5 * 2**20

_WRONG_MD5 = base64.b64encode(bytes(16)).decode()
_WRONG_CHECKSUM = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch")

_REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "access is denied to these credentials",
    "InvalidAccessKeyId": "the store doesn't know the access key",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "ExpiredToken": "the session token has expired",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the store's; set it by NTP",
    "403": "access is denied to these credentials",
    "404": "there is no such bucket",
}
_OF_STORES = ("x-amz-request-id", "x-amz-id-2", "x-trans-id", "x-openstack-request-id")


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result of one check."""

    where: str
    """Driver, or host of a worker."""

    check: str
    state: Literal["ok", "warning", "fault"]
    """Whether a run would succeed: ``ok``, ``warning`` or ``fault``."""

    text: str
    remedy: str = ""


def check_store(root: ResourcePath, *, write: bool = False) -> None:
    """Check that an object store answers and accepts the credentials, within about 10 s.

    Places outside of S3 stores are not checked.  ``write`` asks also whether the store would accept an
    object.
    """
    if not is_in_s3(root):
        return
    bucket, prefix = bucket_of(root), root.unquoted_path.lstrip("/")
    with _explaining(root):
        client = _make_client(root)
        client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        if write:
            _probe_writing(client, bucket, f"{prefix}.spark-butler-{uuid.uuid4().hex}")


@contextlib.contextmanager
def _explaining(root: S3ResourcePath) -> Iterator[None]:
    """Translate errors of a store into a `RepositoryError` that names the reason."""
    from botocore.exceptions import BotoCoreError, ClientError, SSLError

    try:
        yield
    except ClientError as exc:
        error = exc.response.get("Error", {})
        code = str(error.get("Code", ""))
        headers = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        reason = _REASONS.get(code) or hide_secrets(f"{code} {error.get('Message') or ''}".strip())
        if not code.isalpha() and not set(_OF_STORES).intersection(headers):
            reason = "a web server that is not an S3 store answers there"
        raise RepositoryError(
            f"The object store of {str(root)!r} refuses {exc.operation_name} at {_endpoint(root)}: {reason}."
        ) from exc
    except (BotoCoreError, OSError, ValueError, RuntimeError) as exc:
        # botocore raises a RuntimeError if new credentials have expired, too.
        text = f"The object store of {str(root)!r} can't be reached at {_endpoint(root)}: {brief(exc)}"
        if isinstance(exc, SSLError) or "CA certificate" in str(exc):
            text += ". Set AWS_CA_BUNDLE to the file with the certificates of your authority."
        raise RepositoryError(text) from exc


def _endpoint(root: S3ResourcePath) -> str:
    """Return the address of a store."""
    return str(connection_parameters(root).endpoint_url or "AWS")


def _probe_writing(client: Any, bucket: str, key: str) -> None:
    """Write an object with a wrong checksum, which a store rejects after it has checked the rights.

    The probe thus leaves no object behind, and needs no right to remove objects.
    """
    from botocore.exceptions import ClientError

    try:
        client.put_object(Bucket=bucket, Key=key, Body=b"-", ContentMD5=_WRONG_MD5)
    except ClientError as exc:
        if exc.response.get("Error", {}).get("Code") not in _WRONG_CHECKSUM:
            raise
    else:
        # The store does not compare checksums.
        with best_effort("An empty object stays in the object store"):
            client.delete_object(Bucket=bucket, Key=key)


def _make_client(root: S3ResourcePath) -> Any:
    """Build a client with short deadlines for the store that `lsst.resources` would use."""
    import boto3
    import botocore.config

    prepare_client(root)
    parameters = connection_parameters(root)
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


def diagnose_store(root: ResourcePath, where: str) -> list[Finding]:
    """Check each right that runs need in an object store, its clock and its speed.

    In places that are not in an S3 store, a file is written, read and removed.  After a fault, checks that
    depend on it are left out.
    """
    found: list[Finding] = []
    probe = root.join(f".spark-butler-doctor-{uuid.uuid4().hex}")
    data = bytes(_PROBE_BYTES)
    seconds: dict[str, float] = {}

    def step(check: str, action: Callable[[], object], remedy: str, *, needed: bool = True) -> bool:
        began = time.perf_counter()
        try:
            with _explaining(root) if is_in_s3(root) else contextlib.nullcontext():
                text = action()
        except Exception as exc:  # noqa: BLE001  (any client may raise anything)
            found.append(Finding(where, check, "fault" if needed else "warning", brief(exc), remedy))
            return False
        seconds[check] = time.perf_counter() - began
        found.append(Finding(where, check, "ok", text if isinstance(text, str) else ""))
        return True

    if not is_in_s3(root):
        remedy = f"Give this user the right to write to {root}."
        if step("store: write", lambda: probe.write(data), remedy):
            step("store: read", probe.read, "Give this user the right to read there.")
            step("store: remove", probe.remove, "Give this user the right to remove files there.")
        return found
    bucket, key = bucket_of(root), probe.unquoted_path.lstrip("/")
    place = {"Bucket": bucket, "Key": key}
    answers: list[Any] = []

    def connect() -> str:
        client = _make_client(root)
        answers.append((client, client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)))
        return _endpoint(root)

    rights = f"Allow {{}} for these credentials on {root}."
    remedy = "Check S3_ENDPOINT_URL, the bucket, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    if not step("store: list", connect, remedy):
        return found
    client, answer = answers[0]
    found.append(_judge_clock(answer, where))
    if step("store: put", lambda: client.put_object(**place, Body=data), rights.format("PutObject")):
        get = lambda: client.get_object(**place)["Body"].read()  # noqa: E731
        if step("store: get", get, rights.format("GetObject")):
            rates = " / ".join(
                f"{_PROBE_BYTES / 1e6 / seconds[f'store: {way}']:.1f}" for way in ("put", "get")
            )
            found.append(Finding(where, "store: put / get", "ok", f"{rates} MB/s"))
    found.append(Finding(where, "store: round trip", "ok", format_seconds(seconds["store: list"])))
    step("store: multipart", lambda: _upload_in_parts(client, place), rights.format("multipart uploads"))
    remedy = f"{rights.format('DeleteObject')} Without it, scratch files and replaced outputs stay."
    step("store: delete", lambda: client.delete_object(**place), remedy, needed=False)
    return found


def _judge_clock(answer: Any, where: str) -> Finding:
    """Compare the clock of this machine with that of the store, by the date of an answer."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None:
        return Finding(where, "clock", "ok", "the store sends no time")
    skew = datetime.datetime.now(datetime.UTC) - email.utils.parsedate_to_datetime(date)
    seconds = abs(skew.total_seconds())
    text = f"differs by {format_seconds(seconds)} from that of the store"
    if seconds < _MOST_SKEW_SECONDS:
        return Finding(where, "clock", "ok", text)
    return Finding(
        where, "clock", "fault", text, "Set the clock by NTP: stores refuse requests with a wrong time."
    )


def _upload_in_parts(client: Any, place: dict[str, str]) -> None:
    """Write an object in parts."""
    upload = client.create_multipart_upload(**place)["UploadId"]
    part = client.upload_part(**place, UploadId=upload, PartNumber=1, Body=bytes(_PART_BYTES))
    parts = [{"PartNumber": 1, "ETag": part["ETag"]}]
    client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
