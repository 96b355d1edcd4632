#!/usr/bin/env python3
"""Process raw CCD frames to source catalogues on Spark: ``spark-submit jobs/process_ccd.py -b REPO ...``."""

from __future__ import annotations

__all__: list[str] = []

from pathlib import Path

from spark_butler.cli_run import make_run_command

PIPELINE = Path(__file__).resolve().parent.parent / "conf" / "pipelines" / "process_ccd.yaml"

if __name__ == "__main__":
    make_run_command("process_ccd.py", PIPELINE)()
