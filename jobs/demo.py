#!/usr/bin/env python3
"""Simulate a night, process it on Spark and an S3 server, and draw pictures: ``make demo``."""

from __future__ import annotations

__all__: list[str] = []

import argparse
import sys
from pathlib import Path

from spark_butler.cli.main import main as spark_butler


def main() -> None:
    """Run ``spark-butler demo run``, or ``serve``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="only start the object store, until Ctrl-C")
    parser.add_argument("--directory", default=str(Path(__file__).resolve().parent.parent / "demo-data"))
    arguments, others = parser.parse_known_args()
    command = "serve" if arguments.serve else "run"
    others = [] if arguments.serve else others
    sys.exit(spark_butler(["demo", command, arguments.directory, *others], prog_name="spark-butler"))


if __name__ == "__main__":
    main()
