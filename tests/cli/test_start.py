"""A run launches the JVM early, and leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.job_harness import JobRepo


def _run(*arguments: str | Path) -> tuple[int, str, set[str], list[psutil.Process]]:
    """Run the program; return its exit status, its output, and names of and handles to its descendants."""
    command = [sys.executable, "-m", "spark_butler.cli", "run", *map(str, arguments)]
    environment = {**os.environ, "PYSPARK_SUBMIT_ARGS": "--conf spark.ui.enabled=false pyspark-shell"}
    names: dict[psutil.Process, str] = {}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            for each in _family(driver):
                try:
                    names[each] = each.name()
                except psutil.Error:
                    continue
            time.sleep(0.02)
        # At its end, and at that of all processes that have its streams.
        assert process.stdout is not None
        return process.returncode, process.stdout.read(), set(names.values()), list(names)


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _assert_all_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


@pytest.mark.slow
@pytest.mark.jvm
def test_run_leaves_no_process(job_repo: JobRepo) -> None:
    status, output, names, processes = _run(
        *(*job_repo.arguments, "--no-versions", "-o", "start/run", "--select-tasks", "first")
    )
    assert status == 0, output
    assert "all of 4 quanta succeeded" in output
    assert "java" in names
    _assert_all_end(processes)


@pytest.mark.jvm
def test_refused_run_ends_with_its_error_and_leaves_no_jvm(job_repo: JobRepo) -> None:
    status, output, _, processes = _run(*job_repo.arguments, "--no-versions", "-o", "start/no", "--oops")
    assert status == 2, output
    assert any(line.startswith("Error: No such option '--oops'.") for line in output.splitlines())
    _assert_all_end(processes)
