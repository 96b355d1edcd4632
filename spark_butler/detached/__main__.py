"""Main program of a detached job.  Runs in the job's own process."""

from __future__ import annotations

__all__: list[str] = []

import sys
from pathlib import Path

from .steps import run_job

if __name__ == "__main__":
    sys.exit(run_job(Path(sys.argv[1])))
