"""Names of jobs and stages on Spark's pages."""

from __future__ import annotations

__all__ = ["name_stages", "named_job"]

import contextlib
import threading
from collections.abc import Iterator

from pyspark import SparkContext
from pyspark.traceback_utils import SCCallSiteSync

_CALL_SITES = ("callSite.short", "callSite.long")
_DESCRIPTION = "spark.job.description"

_depth = threading.Lock()


def name_stages(spark: SparkContext, text: str) -> None:
    """Name the stages of this thread's next job by what they do, not by the line that submits them.

    Parameters
    ----------
    spark
        Where they run.
    text
        The name.
    """
    for name in _CALL_SITES:
        spark.setLocalProperty(name, text)


@contextlib.contextmanager
def named_job(spark: SparkContext, text: str) -> Iterator[None]:
    """Name this thread's jobs and their stages, whichever actions start them.

    Parameters
    ----------
    spark
        Where they run.
    text
        The name.
    """
    before = {name: spark.getLocalProperty(name) for name in (*_CALL_SITES, _DESCRIPTION)}
    spark.setJobDescription(text)
    name_stages(spark, text)
    _keep_names(+1)
    try:
        yield
    finally:
        _keep_names(-1)
        for name, value in before.items():
            spark.setLocalProperty(name, value)  # type: ignore[arg-type]


def _keep_names(step: int) -> None:
    """Make actions of PySpark believe that one of them is going on, which is what has named the job."""
    with _depth:
        SCCallSiteSync._spark_stack_depth += step
