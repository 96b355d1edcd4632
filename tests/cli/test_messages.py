"""Errors of other libraries become one line without secrets."""

from __future__ import annotations

import pytest
from botocore.exceptions import ResponseStreamingError
from urllib3.exceptions import IncompleteRead, ProtocolError

from spark_butler.masking import hide_secrets
from spark_butler.text import brief


def test_java_stack_becomes_its_message() -> None:
    text = (
        "An error occurred while calling None.org.apache.spark.api.java.JavaSparkContext.\n"
        ": org.apache.spark.SparkException: Could not parse Master URL: 'nonsense'\n"
        "\tat org.apache.spark.SparkContext$.createTaskScheduler(SparkContext.scala)\n"
    )
    assert brief(RuntimeError(text)) == "Could not parse Master URL: 'nonsense'"


def test_hints_to_other_pages_are_removed() -> None:
    text = "(sqlite3.OperationalError) unable to open\n(Background on this error at: https://sqlalche.me/e/x)"
    assert brief(ValueError(text)) == "(sqlite3.OperationalError) unable to open"


def test_size_of_an_incomplete_object_is_told() -> None:
    cause = IncompleteRead(205, 206)
    error = ProtocolError(f"Connection broken: {cause!r}", cause)
    assert brief(ResponseStreamingError(error=error)) == (
        "An error occurred while reading from response stream: only 205 of 411 bytes arrived"
    )


def test_message_is_never_empty_or_too_long() -> None:
    assert brief(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(brief(ValueError("x" * 10_000))) == 600
    assert "\n" not in brief(ValueError("a\nb\nc\nd\ne"))


def test_secrets_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t/key")
    text = hide_secrets("postgresql://butler:pass%40word@db.example.org/x and s3cr3t/key")
    assert text == "postgresql://butler:***@db.example.org/x and ***"
    assert hide_secrets("s3://bucket/a:b@c") == "s3://bucket/a:b@c"
