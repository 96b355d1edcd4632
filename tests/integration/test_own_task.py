"""The steps of the page on writing your own task."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from tests.support.night_harness import Night

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "your-own-task.md"


def _block(language: str) -> str:
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", _PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(block)


@pytest.mark.slow
def test_a_task_of_ones_own_runs_on_spark(simulated: Night, tmp_path: Path) -> None:
    (tmp_path / "sky_level.py").write_text(_block("python"))
    (tmp_path / "sky_level.yaml").write_text(_block("yaml"))
    environment = os.environ | {
        "REPO": str(simulated.repo),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),
    }
    script = f"set -euo pipefail\n{_block('sh')}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^ +level +auto: read by gather", done.stdout, re.MULTILINE), done.stdout
    assert simulated.list_folders("u/me/level") & {"level", "mean_level"} == {"mean_level"}
    with simulated.open("u/me/level") as butler:
        raws = [butler.get("raw", instrument="SimCam", exposure=202601010101, detector=n) for n in (0, 1)]
        mean = butler.get("mean_level", instrument="SimCam", exposure=202601010101)
    assert mean == {"adu": pytest.approx(np.mean([np.percentile(raw.array, 40) for raw in raws])), "n": 2}
