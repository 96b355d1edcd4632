"""Functions that tests of the files of conf/ share."""

from __future__ import annotations

__all__ = ["CONF", "ROOT", "check_arguments", "tools_path"]

import os
import sys
from pathlib import Path

from spark_butler.cli.run import make_run_command

ROOT = Path(__file__).resolve().parents[2]

CONF = ROOT / "conf"


def check_arguments(arguments: list[str]) -> None:
    """Check that the command takes arguments; the pipeline is that of the job."""
    context = make_run_command().make_context("run", [*arguments, "-p", "pipeline.yaml"])
    assert context.params["butler_config"]
    assert (ROOT / "jobs" / "process_ccd.py").is_file()


def tools_path() -> str:
    """Where programs are looked for: those of this environment first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
