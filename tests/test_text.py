"""Policies for errors of other libraries."""

from __future__ import annotations

import logging

import pytest

from spark_butler.errors import EngineError, OptionsError, RepositoryError
from spark_butler.text import as_engine_error, best_effort, translate_errors


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
