#!/usr/bin/env python3
"""Benchmark of `spark-butler run` on a running standalone Spark cluster of two workers."""

from __future__ import annotations

__all__: list[str] = []

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.clusters import Cluster


def main(arguments: Sequence[str]) -> int:
    """Run a command of ``spark-butler`` on the cluster, and print its time.

    Parameters
    ----------
    arguments
        Arguments of ``spark-butler``.
    """
    with tempfile.TemporaryDirectory() as name, Cluster.start(Path(name)) as cluster:
        conf = Path(name) / "conf"
        conf.mkdir()
        (conf / "spark-defaults.conf").write_text(
            f"spark.master {cluster.address}\nspark.driver.host 127.0.0.1\nspark.ui.enabled false\n"
            f"spark.pyspark.python {sys.executable}\n"
        )
        started = time.perf_counter()
        status = subprocess.run(
            [Path(sys.executable).with_name("spark-butler"), *arguments],
            env={**os.environ, "SPARK_CONF_DIR": str(conf)},
        ).returncode
        result = {"wall": time.perf_counter() - started}
    sys.stdout.write(f"RESULT {json.dumps(result)}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
