"""Where Spark finds ``spark.read.format("butler")`` by itself.

Spark 4 looks for `DefaultSource` in every module whose name begins with
``pyspark_``, once for each application that reads from a Python data source.
So this imports next to nothing, until the source is used.
"""

from __future__ import annotations

__all__ = ["DefaultSource"]

from pyspark.sql.datasource import DataSource, DataSourceReader
from pyspark.sql.types import StructType


class DefaultSource(DataSource):
    """The source `spark_butler.spark.datasource.ButlerDataSource`, without filters on data IDs.

    Spark refuses a source that takes filters where its settings don't allow
    it, which are as they are here; `spark_butler.spark.datasource.register` changes
    them.
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
