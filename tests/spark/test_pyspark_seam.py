"""Private API of PySpark and its JVM that the seam module uses: a test for each use.

A failure here means that a new release of PySpark has changed it.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark import RDD, daemon
from pyspark.sql import SparkSession

from spark_butler.spark import _pyspark

_PROGRAM = """
import sys
from pyspark import SparkContext
from spark_butler.spark import _pyspark

assert not _pyspark.jvm_is_up() and not _pyspark.context_is_up()
with open(sys.argv[1], "wb") as file:
    _pyspark.launch_jvm({"spark.driver.memory": "600m"}, file)
assert _pyspark.jvm_is_up() and not _pyspark.context_is_up()
_pyspark.launch_jvm({})
_pyspark.print_in_jvm("before")
context = SparkContext("local[1]", "seam")
assert context.getConf().get("spark.driver.memory") == "600m"
assert _pyspark.context_is_up() and not _pyspark.is_stopped(context)
log = context._jvm.org.apache.logging.log4j.LogManager
_pyspark.log_warnings_only()
assert str(log.getRootLogger().getLevel()) == "WARN"
_pyspark.hide_task_errors()
try:
    context.parallelize([0], 1).map(lambda n: 1 / n).collect()
except Exception as exc:
    assert "ZeroDivisionError" in str(exc)
context.stop()
assert _pyspark.is_stopped(context)
_pyspark.print_in_jvm("after")
"""


@pytest.mark.jvm
def test_jvm_is_launched_with_its_settings_and_logs_no_task_errors(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = subprocess.run(
        [sys.executable, "-c", _PROGRAM, log], capture_output=True, text=True, timeout=180, env=os.environ
    )
    assert process.returncode == 0, process.stderr
    lines = log.read_text().splitlines()
    assert {"before", "after"} <= set(lines)
    assert not [line for line in lines if "ZeroDivisionError" in line or " INFO " in line]


def test_property_of_the_jvm_is_read(spark: SparkSession) -> None:
    assert int(_pyspark.java_property("java.specification.version")) >= 17
    assert _pyspark.java_property("no.such.property") == ""


@pytest.mark.parametrize(("size", "mebibytes"), [("4g", 4096), ("512m", 512), ("2048k", 2)])
def test_size_is_parsed(spark: SparkSession, size: str, mebibytes: int) -> None:
    assert _pyspark.parse_mebibytes(size) == mebibytes


def test_records_are_shuffled_to_their_partitions_unpickled(spark: SparkSession) -> None:
    records: RDD[bytes] = spark.sparkContext.parallelize([0, 1], 2).flatMap(
        lambda n: [struct.pack("!q", n), b"a%d" % n, struct.pack("!q", 2), b"b%d" % n]
    )
    arrived = _pyspark.shuffle_records(records, 3, struct.pack)
    assert [sorted(part) for part in arrived.glom().collect()] == [[b"a0"], [b"a1"], [b"b0", b"b1"]]


def test_schemas_are_converted(spark: SparkSession) -> None:
    schema = pa.schema(
        [("n", pa.int64()), ("x", pa.list_(pa.float32())), ("t", pa.timestamp("us", tz="UTC"))]
    )
    found = _pyspark.to_spark(schema)
    assert found.simpleString() == "struct<n:bigint,x:array<float>,t:timestamp>"
    assert _pyspark.to_arrow(found).types[0] == pa.int64()
    assert [field.type for field in _pyspark.to_arrow(found)][2] == pa.timestamp("us", tz="UTC")


def test_workers_are_served_by_pysparks_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(daemon, "manager", lambda: calls.append(1))
    _pyspark.serve_workers()
    assert calls == [1]
