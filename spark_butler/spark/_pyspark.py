"""The only module that uses private API of PySpark, py4j and Spark's JVM.

The driver calls it; `serve_workers` runs in the daemon of an executor.  Tested
with PySpark 3.5 to 4.3; ``tests/spark/test_pyspark_seam.py`` has a test for
each use.
"""

from __future__ import annotations

__all__ = [
    "context_is_up",
    "hide_task_errors",
    "is_stopped",
    "java_property",
    "jvm_is_up",
    "launch_jvm",
    "log_warnings_only",
    "parse_mebibytes",
    "print_in_jvm",
    "serve_workers",
    "shuffle_records",
    "to_arrow",
    "to_spark",
]

import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark import RDD, SparkContext
    from pyspark.sql.types import StructType

_TASK_LOGGERS = ("executor.Executor", "scheduler.TaskSetManager")


def jvm_is_up() -> bool:
    """Return whether this process has a JVM, its own or that of the ``spark-submit`` that has started it."""
    from pyspark import SparkContext

    return SparkContext._gateway is not None or "PYSPARK_GATEWAY_PORT" in os.environ


def context_is_up() -> bool:
    """Return whether this process has a Spark context."""
    from pyspark import SparkContext

    return SparkContext._active_spark_context is not None


def is_stopped(context: SparkContext) -> bool:
    """Return whether a context was stopped, or has lost its JVM."""
    try:
        return bool(context._jsc.sc().isStopped())
    except Exception:  # noqa: BLE001  (py4j raises many things once the JVM is gone)
        return True


def launch_jvm(conf: Mapping[str, str], stderr: IO[bytes] | None = None) -> None:
    """Launch the JVM of this process, or connect to that of ``spark-submit``; return if that is done already.

    ``conf`` has settings of the JVM itself, such as ``spark.driver.memory``; ``stderr`` takes its output.
    """
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway

    # Another thread may be launching it.
    with SparkContext._lock:
        if SparkContext._gateway is None:
            settings = SparkConf(loadDefaults=False).setAll(list(conf.items()))
            gateway = launch_gateway(conf=settings, popen_kwargs={"stderr": stderr})  # type: ignore[no-untyped-call]
            SparkContext._ensure_initialized(gateway=gateway)


def _jvm() -> Any:
    from pyspark import SparkContext

    SparkContext._ensure_initialized()
    return SparkContext._jvm


def java_property(name: str) -> str:
    """Return a system property of the JVM of this process; an empty string if it is not set."""
    return str(_jvm().System.getProperty(name) or "")


def print_in_jvm(line: str) -> None:
    """Print a line on the standard error of the JVM."""
    _jvm().java.lang.System.err.println(line)


def log_warnings_only() -> None:
    """Let the JVM log warnings and errors only, unless the user has configured its logging."""
    jvm = _jvm()
    # Otherwise Spark would read its own profile at its first message.
    jvm.SparkConf(False).initializeLogIfNecessary(False)
    log4j = jvm.org.apache.logging.log4j
    source = str(log4j.LogManager.getContext(False).getConfiguration().getConfigurationSource().getLocation())
    if source.endswith("org/apache/spark/log4j2-defaults.properties"):
        log4j.core.config.Configurator.setRootLevel(log4j.Level.WARN)


def hide_task_errors() -> None:
    """Let the JVM log no errors of Python functions: Spark raises them, too."""
    log4j = _jvm().org.apache.logging.log4j
    for name in _TASK_LOGGERS:
        log4j.core.config.Configurator.setLevel(f"org.apache.spark.{name}", log4j.Level.OFF)


def parse_mebibytes(size: str) -> int:
    """Return the number of MiB of a size as Spark's settings have it, such as ``4g``."""
    return int(_jvm().org.apache.spark.network.util.JavaUtils.byteStringAsMb(size))


def shuffle_records(records: RDD[Any], width: int, partitioner: object) -> RDD[bytes]:
    """Send records to their next partitions, one by one as they come.

    `pyspark.RDD.partitionBy` collects up to a thousand records of any size
    before it sends the first.  This function uses the same transport, but it
    neither collects nor pickles records.

    Parameters
    ----------
    records
        Partitions (packed as 8 bytes) and records in turn.
    partitioner
        The function that has chosen the partitions; shuffles by the same one
        can be joined.
    """
    from pyspark import RDD
    from pyspark.serializers import NoOpSerializer

    jvm, spark = _jvm(), records.context
    records._bypass_serializer = True  # type: ignore[attr-defined]
    pairs = jvm.PairwiseRDD(records._jrdd.rdd()).asJavaPairRDD()
    partitioned = pairs.partitionBy(jvm.PythonPartitioner(width, id(partitioner)))
    return RDD(jvm.PythonRDD.valueOfPair(partitioned), spark, NoOpSerializer())


def to_spark(schema: pa.Schema) -> StructType:
    """Return the schema of Spark for one of Arrow."""
    from pyspark.sql.pandas.types import from_arrow_schema

    return from_arrow_schema(schema)


def to_arrow(schema: StructType) -> pa.Schema:
    """Return the schema of Arrow that Spark expects for one of its own."""
    from pyspark.sql.pandas.types import to_arrow_schema

    try:
        return to_arrow_schema(schema, timezone="UTC")
    except TypeError:
        # Before 4.3.
        return to_arrow_schema(schema)


def serve_workers() -> None:
    """Fork Python workers for Spark, until Spark ends this process."""
    from pyspark import daemon

    daemon.manager()
