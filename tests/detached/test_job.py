"""Detached jobs: steps, failures, retries, stops and restarts."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from spark_butler.detached.job import DetachedJob, Step
from spark_butler.errors import OptionsError, UserError


def _step(name: str, code: str, **options: object) -> Step:
    return Step(name, (sys.executable, "-c", code), **options)  # type: ignore[arg-type]


def _run(folder: Path, *steps: Step) -> DetachedJob:
    job = DetachedJob.create(folder, steps, {})
    job.start()
    job.wait(60)
    return job


def _states(job: DetachedJob) -> dict[str, str]:
    return {name: step["state"] for name, step in job.read_state().steps.items()}


def test_job_runs_steps_in_order_and_keeps_their_logs(tmp_path: Path) -> None:
    job = _run(tmp_path / "job", _step("one", "print('first')"), _step("two", "import sys; sys.exit(0)"))
    assert job.read_state().state == "succeeded"
    assert _states(job) == {"one": "succeeded", "two": "succeeded"}
    assert job.log_file("one").read_text() == "first\n"


def test_failure_leaves_out_what_follows_but_for_steps_that_always_run(tmp_path: Path) -> None:
    job = _run(
        tmp_path / "job",
        _step("fails", "import sys; sys.exit(3)"),
        _step("skipped", "pass"),
        _step("always", "pass", always=True),
    )
    state = job.read_state()
    assert state.state == "failed"
    assert state.steps["fails"]["exit_status"] == 3
    assert _states(job) == {"fails": "failed", "always": "succeeded"}


def test_restart_repeats_what_failed_and_what_follows(tmp_path: Path) -> None:
    """A step that succeeded before the failure does not run again."""
    gate = tmp_path / "gate"
    job = _run(
        tmp_path / "job",
        _step("one", "print('first')"),
        _step("two", f"import os, sys; sys.exit(not os.path.exists({str(gate)!r}))"),
        _step("last", "print('last')", always=True),
    )
    assert _states(job) == {"one": "succeeded", "two": "failed", "last": "succeeded"}
    gate.touch()
    job.start()
    assert job.wait(60).state == "succeeded"
    assert job.log_file("one").read_text() == "first\n"
    assert job.log_file("last").read_text() == "last\nlast\n"


def test_step_is_repeated_unless_its_exit_status_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    code = "import sys; print('try'); sys.exit({})"
    job = _run(tmp_path / "job", _step("final", code.format(2), retries=3, final_statuses=(1, 2)))
    assert job.log_file("final").read_text() == "try\n"
    assert job.read_state().steps["final"]["tries"] == 1


def test_cancel_passes_the_signal_on(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    job = DetachedJob.create(
        tmp_path / "job",
        [
            _step("long", f"import time; open({str(marker)!r}, 'w').close(); time.sleep(60)"),
            _step("next", "pass", always=True),
        ],
        {},
    )
    job.start()
    with pytest.raises(UserError, match="running already"):
        job.start()
    while not marker.exists():
        time.sleep(0.05)
    job.cancel()
    state = job.wait(30)
    assert state.state == "stopped"
    assert state.steps["long"]["exit_status"] == 128 + signal.SIGTERM
    assert "next" not in state.steps
    with pytest.raises(UserError, match="is not running"):
        job.cancel()


def test_killed_job_is_lost_and_can_be_started_again(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    code = (
        "import os, time; "
        f"new = not os.path.exists({str(marker)!r}); open({str(marker)!r}, 'w'); new and time.sleep(60)"
    )
    job = DetachedJob.create(tmp_path / "job", [_step("long", code)], {})
    pid = job.start()
    while not marker.exists():
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    assert job.wait(10).state == "lost"
    job.start()
    assert job.wait(30).state == "succeeded"


def test_folder_is_used_once_and_must_hold_a_job(tmp_path: Path) -> None:
    DetachedJob.create(tmp_path / "job", [], {})
    with pytest.raises(OptionsError, match="holds a submitted job already"):
        DetachedJob.create(tmp_path / "job", [], {})
    with pytest.raises(UserError, match="holds no submitted job"):
        DetachedJob(tmp_path)


def test_program_that_is_missing_is_named(tmp_path: Path) -> None:
    job = _run(tmp_path / "job", Step("missing", ("/no/such/program",)))
    assert job.read_state().steps["missing"]["exit_status"] == 127
    assert "/no/such/program can't be started" in job.log_file("missing").read_text()
