"""Plug-in in which Spark finds ``spark.read.format("butler")``.

Python processes of the driver import it: Spark 4 searches every module whose
name begins with ``pyspark_`` for `DefaultSource`, once in each application that
reads from a Python data source.  So the middleware is imported only when the
source is used.
"""

from __future__ import annotations

__all__ = ["DefaultSource"]

from pyspark.sql.datasource import DataSource, DataSourceReader
from pyspark.sql.types import StructType


class DefaultSource(DataSource):
    """The source `spark_butler.spark.datasource.ButlerDataSource`, without filters on data IDs.

    By default Spark refuses a source that takes filters;
    `spark_butler.spark.datasource.register` changes the setting.
    """

    @classmethod
    def name(cls) -> str:
        # Docstring inherited.
        return "butler"

    def schema(self) -> StructType:
        # Docstring inherited.
        from spark_butler.spark.datasource import find_schema

        return find_schema(self.options)

    def reader(self, schema: StructType) -> DataSourceReader:
        # Docstring inherited.
        from spark_butler.spark.datasource import ButlerReader

        return ButlerReader(self.options, schema)
