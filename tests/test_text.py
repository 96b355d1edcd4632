"""Policies for errors of other libraries."""

from __future__ import annotations

import logging

import pytest

from spark_butler.errors import EngineError, OptionsError, RepositoryError
from spark_butler.text import as_engine_error, best_effort, brief, translate_errors


def test_best_effort_logs_the_reason_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), best_effort("Can't write the report"):
        raise OSError("the disk is full")
    assert caplog.messages == ["Can't write the report: the disk is full"]


def test_best_effort_lets_an_interrupt_pass() -> None:
    with pytest.raises(KeyboardInterrupt), best_effort("Can't write the report"):
        raise KeyboardInterrupt


def test_translated_error_has_reason_remedy_and_cause() -> None:
    reason = OSError("the disk is full")
    with (
        pytest.raises(RepositoryError) as caught,
        translate_errors(RepositoryError, "Can't read x", remedy="Try again."),
    ):
        raise reason
    assert str(caught.value) == "Can't read x: the disk is full. Try again."
    assert caught.value.__cause__ is reason


def test_errors_of_the_package_are_not_translated() -> None:
    with pytest.raises(OptionsError, match="^no such option$"), as_engine_error("Can't cut the graph"):
        raise OptionsError("no such option")
    with pytest.raises(EngineError, match="^Can't cut the graph: 7$"), as_engine_error("Can't cut the graph"):
        raise ValueError(7)


def test_worker_error_is_extracted_from_spark_error() -> None:
    text = (
        "An exception was thrown from the Python worker:\nTraceback (most recent call last):\n"
        '  File "worker.py", line 1, in main\n    process()\nValueError: first\n\nDuring handling:\n'
        'Traceback (most recent call last):\n  File "b.py", line 2\n'
        "spark_butler.errors.EngineError: the last\n\n\tat org.apache.spark.api.PythonRunner(P.scala:9)\n"
        "org.apache.spark.SparkException: no\n"
    )
    assert brief(RuntimeError(text)) == "spark_butler.errors.EngineError: the last"
    assert brief(RuntimeError("plain")) == "plain"
