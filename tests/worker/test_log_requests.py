"""Requests for logs of running quanta, and the answers."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

import pytest
from lsst.resources import ResourcePath

from spark_butler.demo.s3server import wait_until
from spark_butler.errors import OptionsError
from spark_butler.worker.log_requests import LogRequest, answering_requests, read_answers

_DATA_ID = {"instrument": "Cam1", "visit": 42, "detector": 2}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("isr", True),
        ("isr:visit=42", True),
        ("isr:visit=42, detector=2", True),
        ("isr:visit=42,detector=3", False),
        ("isr:exposure=42", False),
        ("flat:visit=42", False),
        (str(uuid.UUID(int=7)), True),
        (str(uuid.UUID(int=8)), False),
    ],
)
def test_request_names_task_and_data_id_or_quantum(text: str, matches: bool) -> None:
    assert LogRequest.parse(text).matches(uuid.UUID(int=7), "isr", _DATA_ID) is matches


@pytest.mark.parametrize("text", ["", ":visit=42", "isr:visit", "isr:visit=", "isr:=42"])
def test_request_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(OptionsError, match="expected LABEL:DIMENSION=VALUE"):
        LogRequest.parse(text)


def test_running_quantum_answers_with_its_growing_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "hush-hush")
    folder = ResourcePath(f"{tmp_path}/logs/", forceDirectory=True)
    logger = logging.getLogger("lsst.isr")
    with answering_requests(str(folder), uuid.UUID(int=7), "isr", _DATA_ID, seconds=0.05):
        logger.warning("first line with hush-hush")
        ours = LogRequest.parse("isr:detector=2").send(folder)
        other = LogRequest.parse("isr:detector=3").send(folder)
        assert wait_until(lambda: read_answers(ours), 20)
        (answer,) = read_answers(ours)
        assert "first line with ***" in answer["text"]
        assert not answer["ended"]
        logger.warning("second line")
        assert wait_until(lambda: "second line" in read_answers(ours)[0]["text"], 20)
        logger.warning("last line")
    (answer,) = read_answers(ours)
    assert answer["ended"]
    assert answer["text"].splitlines()[-1].endswith("last line")
    assert answer["quantum"] == "isr:instrument=Cam1,visit=42,detector=2"
    assert read_answers(other) == []


def test_quantum_writes_nothing_without_a_request(tmp_path: Path) -> None:
    with answering_requests(f"{tmp_path}/logs/", uuid.UUID(int=7), "isr", _DATA_ID, seconds=0.01):
        logging.getLogger("lsst.isr").warning("a line")
    assert not list(tmp_path.iterdir())
