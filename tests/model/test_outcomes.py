"""Kinds of failures."""

from __future__ import annotations

import pytest
import requests
from botocore.exceptions import ClientError, EndpointConnectionError, IncompleteReadError
from lsst.daf.butler import FileIntegrityError
from lsst.pipe.base import InvalidQuantumError, RepeatableQuantumError

from spark_butler.model.outcomes import FailureKind, classify


def _client_error(code: str, status: int) -> ClientError:
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "GetObject")


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("x"), FailureKind.TASK),
        (RepeatableQuantumError("x"), FailureKind.REPEATABLE),
        (InvalidQuantumError("x"), FailureKind.INVALID),
        (SystemExit(3), FailureKind.EXIT),
        (MemoryError(), FailureKind.MEMORY),
        (_caused(ValueError("x"), MemoryError()), FailureKind.MEMORY),
        (FileNotFoundError("x"), FailureKind.TASK),
        (ConnectionResetError("x"), FailureKind.IO),
        (TimeoutError("x"), FailureKind.IO),
        (OSError(28, "No space left on device"), FailureKind.IO),
        (FileIntegrityError("x"), FailureKind.IO),
        (requests.ConnectionError("x"), FailureKind.IO),
        (EndpointConnectionError(endpoint_url="http://x"), FailureKind.IO),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), FailureKind.IO),
        (_client_error("SlowDown", 503), FailureKind.IO),
        (_client_error("ExpiredToken", 403), FailureKind.IO),
        (_client_error("NoSuchKey", 404), FailureKind.TASK),
        (_caused(RuntimeError("x"), _client_error("InternalError", 500)), FailureKind.IO),
        (_caused(FileNotFoundError("x"), _client_error("SlowDown", 503)), FailureKind.TASK),
    ],
)
def test_kind_of_an_exception(error: BaseException, kind: FailureKind) -> None:
    assert classify(error) is kind
    assert kind.is_transient == (kind in (FailureKind.IO, FailureKind.MEMORY))
