"""Names of jobs on Spark's pages.  Runs in the driver."""

from __future__ import annotations

__all__ = ["named_job"]

import contextlib
from collections.abc import Iterator

from pyspark import SparkContext

_DESCRIPTION = "spark.job.description"


@contextlib.contextmanager
def named_job(spark: SparkContext, text: str) -> Iterator[None]:
    """Name the jobs of this thread, and with them their stages."""
    before = spark.getLocalProperty(_DESCRIPTION)
    spark.setJobDescription(text)
    try:
        yield
    finally:
        spark.setLocalProperty(_DESCRIPTION, before)  # type: ignore[arg-type]
