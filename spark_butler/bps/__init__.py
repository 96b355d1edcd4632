"""Plugin for Rubin's batch system (``lsst.ctrl.bps``): the graph of a submission becomes one Spark run.

Set ``wmsServiceClass: spark_butler.bps.SparkService`` in the submit YAML.
"""

from __future__ import annotations

__all__ = ["SparkService"]

from .service import SparkService
