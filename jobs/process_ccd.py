#!/usr/bin/env python3
"""Process raw CCD frames to source catalogs on Spark: ``spark-submit jobs/process_ccd.py -b REPO ...``."""

from __future__ import annotations

__all__: list[str] = []

import sys
from pathlib import Path

if sys.version_info < (3, 12):  # noqa: UP036  (the interpreter may be the system's)
    print(
        f"Error: This is Python {sys.version.split()[0]} ({sys.executable}); Rubin's middleware needs 3.12 "
        "or newer: let PYSPARK_PYTHON name one.",
        file=sys.stderr,
    )
    sys.exit(2)

from spark_butler.spark.startup import SparkStart

PIPELINE = Path(__file__).resolve().parent.parent / "conf" / "pipelines" / "process_ccd.yaml"


def main() -> None:
    """Run the command, and start Spark while the middleware is imported."""
    spark = SparkStart()
    spark.launch(sys.argv)
    from spark_butler.cli.run import make_run_command

    make_run_command("process_ccd.py", PIPELINE)(obj=spark)


if __name__ == "__main__":
    main()
