"""Requests for resources, limits of quanta, and options of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_butler.errors import OptionsError
from spark_butler.model.limits import Limits
from spark_butler.model.options import MIB, ResourceRequests, RunOptions, read_requests
from spark_butler.model.outcomes import FailureKind


def test_task_request_overrides_default_request(tmp_path: Path) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text(
        "requestMemory: 2048\nmemoryMultiplier: 3\nmemoryLimit: 9000\nnumberOfRetries: 5\ntimeout: 60\n"
        "pipetask:\n  isr:\n    requestMemory: 500\n    numberOfRetries: 0\n    timeout: 7.5\n"
    )
    limits = read_requests(str(file)).limits(["isr", "calibrate"], {"calibrate": 3000 * MIB, "isr": 1})
    assert limits["isr"] == Limits(7.5, 500 * MIB, 3.0, 9000 * MIB, 0)
    assert limits["calibrate"] == Limits(60.0, 3000 * MIB, 3.0, 9000 * MIB, 5)
    assert limits["calibrate"].grow(3000 * MIB) == 9000 * MIB
    assert limits["calibrate"].grow(9000 * MIB) == 9000 * MIB


def test_options_override_file_defaults_but_not_its_tasks() -> None:
    given = ResourceRequests.model_validate({"timeout": 60, "pipetask": {"isr": {"timeout": 5}}})
    limits = given.with_options(timeout=90.0, number_of_retries=None).limits(["isr", "calibrate"])
    assert (limits["isr"].timeout, limits["calibrate"].timeout) == (5.0, 90.0)
    assert limits["isr"].retries == Limits().retries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("requestmemory: 5", "'requestmemory' is not a known request; did you mean 'requestMemory'?"),
        ("pipetask: {isr: {requestMemory: lots}}", "pipetask.isr.requestMemory is 'lots'"),
        ("requestMemory: -1", "requestMemory is -1; expected more than 0"),
        ("- a", "must contain a YAML mapping"),
        ("a: [", "can't be read"),
    ],
)
def test_invalid_request_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "resources.yaml"
    file.write_text(text)
    with pytest.raises(OptionsError, match="--resources file") as caught:
        read_requests(str(file))
    assert message in str(caught.value)


def test_requests_for_unknown_tasks_are_refused() -> None:
    unknown = ResourceRequests.model_validate({"pipetask": {"irs": {"requestMemory": 5}}})
    with pytest.raises(OptionsError, match="requests for irs; the tasks of the pipeline are isr"):
        unknown.limits(["isr"])
    small = ResourceRequests.model_validate({"requestMemory": 500, "memoryLimit": 400})
    with pytest.raises(OptionsError, match="memoryLimit of 'isr' is 400 MB, less than its requestMemory"):
        small.limits(["isr"])
    with pytest.raises(OptionsError, match="can't be read"):
        read_requests("no/such/file.yaml")


@pytest.mark.parametrize("text", ["0", "-3", "x", "5.5%", "%"])
def test_invalid_failure_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number such as 10 or a percentage such as 5%"):
        RunOptions(max_failures=text)


def test_request_options_are_parsed_as_on_the_command_line() -> None:
    assert RunOptions(group_by="visit").group_by == ("visit",)
    assert RunOptions(group_by="visit, detector").group_by == ("visit", "detector")
    assert RunOptions(group_by="fused").group_by == "fused"
    with pytest.raises(OptionsError, match="group_by is 'visit,'; expected auto, fused, or names"):
        RunOptions(group_by="visit,")
    with pytest.raises(OptionsError, match="retries is -1; expected 0 or more"):
        RunOptions(retries=-1)
    with pytest.raises(OptionsError, match="'tempory' is not a known option; did you mean 'temporary'"):
        RunOptions(tempory=("a",))  # type: ignore[call-arg]


def test_transient_errors_are_retried_with_growing_delay() -> None:
    limits = Limits(memory=100, memory_cap=400, retries=3)
    assert not limits.may_retry(FailureKind.TASK, 1, None)
    assert limits.may_retry(FailureKind.IO, 3, None)
    assert not limits.may_retry(FailureKind.IO, 4, None)
    assert limits.may_retry(FailureKind.MEMORY, 1, 200)
    assert not limits.may_retry(FailureKind.MEMORY, 1, 400)
    assert limits.may_retry(FailureKind.MEMORY, 1, None)
    pauses = [Limits.pause(FailureKind.IO, n) for n in range(1, 12)]
    assert 1.0 <= pauses[0] <= 3.0
    assert 4.0 <= pauses[2] <= 12.0
    assert max(pauses) <= 90.0
    assert Limits.pause(FailureKind.MEMORY, 5) == 0.0
