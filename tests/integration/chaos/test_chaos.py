"""A few of the chaos runs; ``make chaos`` does many."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_runs_end_equal_to_the_serial_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.integration.chaos", "--seeds", "2", "--folder", str(tmp_path)]
    process = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.returncode == 0, process.stdout


def test_unequal_run_is_reported(tmp_path: Path) -> None:
    from tests.integration.chaos.chaos_checks import check_reports

    assert check_reports([tmp_path / "summary1.json"], [], []) == ["the last attempt has left no summary"]
