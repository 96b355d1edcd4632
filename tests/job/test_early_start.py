"""The program starts Java and the workers' parent early, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from job_harness import JobRepo


def _run(*arguments: str | Path) -> tuple[int, str, list[tuple[str, str]], list[psutil.Process]]:
    """Run the program; return its exit status, what it says, and its family with names and parents' names."""
    command = [sys.executable, "-m", "spark_butler.cli", "run", *map(str, arguments)]
    environment = {**os.environ, "PYSPARK_SUBMIT_ARGS": "--conf spark.ui.enabled=false pyspark-shell"}
    names: dict[psutil.Process, tuple[str, str]] = {}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            for each in _family(driver):
                try:
                    names[each] = each.name(), psutil.Process(each.ppid()).name()
                except psutil.Error:
                    continue
            time.sleep(0.02)
        # At its end, and at that of all who have its streams.
        assert process.stdout is not None
        return process.returncode, process.stdout.read(), list(names.values()), list(names)


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _assert_all_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def test_a_refusal_is_all_that_is_seen_of_an_early_start(job_repo: JobRepo) -> None:
    status, output, names, processes = _run(*job_repo.arguments, "--no-versions", "-o", "early/no", "--oops")
    assert status == 2, output
    assert output.strip().splitlines()[-1] == "Error: No such option '--oops'."
    assert "java" not in output.lower()
    _assert_all_end(processes)


def test_nothing_is_started_for_what_is_not_there(job_repo: JobRepo, tmp_path: Path) -> None:
    status, output, names, _ = _run("-b", tmp_path / "gone", "-p", job_repo.pipeline, "-o", "early/gone")
    assert (status, names) == (2, []), output
